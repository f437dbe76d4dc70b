package cs

import (
	"bytes"
	"context"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// dialAdmin connects as an administrator.
func dialAdmin(t *testing.T, s *testServer) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	c, _, err := wire.Dial(ctx, s.Addr(), &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, c: c}
}

// message sends a control message and returns the outcome.
func (c *client) message(t wire.Type, m wire.Message) fserr.Code {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	code, err := c.c.CallMessage(ctx, t, wire.ClassGuest, m, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return code
}

func TestScratch(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	guest, admin, other := dial(t, s, 5), dialAdmin(t, s), dialAdmin(t, s)
	guest.want(guest.write(7, 1, 0, pattern(1, block)), fserr.OK, "write of a guest")
	k := id.Scratch(42)
	create := &msg.ChunkCreate{Chunk: uint64(k), Epoch: 1}
	admin.want(admin.message(wire.ChunkCreate, create), fserr.OK, "create")

	// Nothing of a file can be touched, and nobody else touches what is scratch.
	p := pattern(2, 3*block)
	flush := func(c *client, k id.ChunkID) fserr.Code {
		code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: k}, nil)
		return code
	}
	punch := func(c *client, k id.ChunkID) fserr.Code {
		code, _, _ := c.do(wire.Punch, 1, wire.DataRequest{Chunk: k, Length: block}, nil)
		return code
	}
	session := &client{t: t, c: admin.c, session: 5}
	for what, code := range map[string]fserr.Code{
		"create of a file's chunk by an administrator":  admin.message(wire.ChunkCreate, &msg.ChunkCreate{Chunk: 8, Epoch: 1}),
		"delete of a file's chunk by an administrator":  admin.message(wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{uint64(k), 7}}),
		"write to a file's chunk by an administrator":   admin.write(7, 1, 0, p),
		"the same with a session":                       session.write(7, 1, 0, p),
		"punch of a file's chunk by an administrator":   punch(admin, 7),
		"flush of a file's chunk by an administrator":   flush(admin, 7),
		"create by a guest":                             guest.message(wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(id.Scratch(1)), Epoch: 1}),
		"delete by a guest":                             guest.message(wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{uint64(k)}}),
		"write to a scratch chunk by a guest":           guest.write(k, 1, 0, p),
		"write of an administrator, forwarded":          forwardedWrite(admin, k, p),
		"flush of a scratch chunk by a guest":           flush(guest, k),
		"punch of a scratch chunk by a guest":           punch(guest, k),
		"read of a scratch chunk by a guest":            first(guest.read(k, 1, 0, block)),
		"delete of a file's chunk alone, administrator": admin.message(wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{7}}),
	} {
		if code != fserr.Protocol {
			t.Errorf("%s: %v, want %v", what, code, fserr.Protocol)
		}
	}
	other.want(other.message(wire.ChunkCreate, create), fserr.Exist, "create what another has")
	if code, got := guest.read(7, 1, 0, block); code != fserr.OK || !bytes.Equal(got, pattern(1, block)) {
		t.Errorf("the file's chunk: %v, changed", code)
	}

	admin.want(admin.write(k, 1, block, p), fserr.OK, "write")
	admin.want(flush(admin, k), fserr.OK, "flush")
	if code, got := admin.read(k, 1, block, 3*block); code != fserr.OK || !bytes.Equal(got, p) {
		t.Errorf("read: %v", code)
	}

	// The leader does not hear of it.
	f.mu.Lock()
	conn, before := f.conns[uint32(s.ID())], f.reported[uint32(s.ID())]
	f.mu.Unlock()
	conn.Close()
	wait(t, "a new report", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.reported[uint32(s.ID())] > before
	})
	f.mu.Lock()
	report := f.reports[uint32(s.ID())]
	f.mu.Unlock()
	if len(report) != 1 || report[0].Id != 7 {
		t.Errorf("reported: %v", report)
	}

	// It goes with its connection, or before.
	k2 := id.Scratch(43)
	admin.want(admin.message(wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(k2), Epoch: 1}), fserr.OK, "create a second")
	admin.want(admin.message(wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{uint64(k2)}}), fserr.OK, "delete it")
	if n := s.store.Count(); n != 2 {
		t.Errorf("%d chunks, want 2", n)
	}
	other.want(other.message(wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(k2), Epoch: 1}), fserr.OK, "create what was deleted")
	admin.c.Close()
	wait(t, "the chunk to go with its connection", func() bool { return s.store.Count() == 2 })
	if code, _ := other.read(k2, 1, 0, block); code != fserr.OK {
		t.Errorf("the chunk of another connection: %v", code)
	}

	// A crash leaves it to the next start.
	s.crash()
	s.start(t)
	s.waitServing(t)
	if n := s.store.Count(); n != 1 {
		t.Errorf("%d chunks after a crash, want 1", n)
	}
	guest = dial(t, s, 5)
	f.must(s.ID(), wire.ChunkAccept, &msg.ChunkAccept{Chunks: []uint64{7}})
	if code, got := guest.read(7, 1, 0, block); code != fserr.OK || !bytes.Equal(got, pattern(1, block)) {
		t.Errorf("the file's chunk after a crash: %v", code)
	}
}

func first(code fserr.Code, _ []byte) fserr.Code { return code }

func forwardedWrite(c *client, k id.ChunkID, p []byte) fserr.Code {
	r := writeRequest(k, 0, p)
	r.Flags = wire.Forwarded
	code, _, _ := c.do(wire.Write, 1, r, p)
	return code
}

func TestScratchLimit(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	var own scratch
	for n := range uint64(maxScratch) {
		if first, err := own.claim(id.Scratch(n), nil); err != nil || first != (n == 0) {
			t.Fatal(n, first, err)
		}
	}
	if _, err := own.claim(id.Scratch(maxScratch), nil); fserr.Of(err) != fserr.NoSpace {
		t.Error(err)
	}
	own.release(id.Scratch(5))
	if _, err := own.claim(id.Scratch(maxScratch), nil); err != nil {
		t.Error(err)
	}
	a := dialAdmin(t, s)
	for n := range uint64(20) {
		a.want(a.message(wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(id.Scratch(n)), Epoch: 1}), fserr.OK, "create")
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	s.waitServing(t)
	if n := s.store.Count(); n != 0 {
		t.Errorf("%d chunks after an orderly stop", n)
	}
}
