package perf

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// memoryServer is a chunk server as far as a load generator can tell, with its chunks in memory.
type memoryServer struct {
	listener net.Listener
	server   *wire.Server

	mu      sync.Mutex
	chunks  map[id.ChunkID][]byte
	made    int
	flushes map[id.ChunkID]int
	unsaved map[id.ChunkID]bool // written since the last flush
	fail    func(wire.Type, *wire.DataRequest) fserr.Code
	rot     bool // answers do not match their checksums
	silent  bool // nothing is answered
}

func newMemoryServer(t *testing.T) *memoryServer {
	l, err := wire.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &memoryServer{listener: l, chunks: map[id.ChunkID][]byte{}, flushes: map[id.ChunkID]int{}, unsaved: map[id.ChunkID]bool{}}
	m.server = &wire.Server{Accept: func(_ *wire.Conn, hello *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
		if hello.Role != msg.Hello_ADMIN {
			return nil, nil, fserr.Protocol
		}
		cluster := slices.Repeat([]byte{7}, 16)
		if len(hello.Cluster) > 0 && string(hello.Cluster) != string(cluster) {
			return nil, nil, fserr.WrongCluster
		}
		return m, &msg.HelloReply{Cluster: cluster}, fserr.OK
	}}
	go m.server.Serve(l)
	t.Cleanup(func() { l.Close(); m.server.Close() })
	return m
}

func (m *memoryServer) target() string { return "cs:" + m.listener.Addr().String() }

// Serve implements wire.Handler.
func (m *memoryServer) Serve(_ context.Context, c *wire.Conn, req *wire.Frame) {
	m.mu.Lock()
	code, body, data := m.serve(req)
	silent := m.silent && req.Type == wire.Read
	m.mu.Unlock()
	if !silent {
		_ = c.Reply(req, code, body, data)
	}
}

func (m *memoryServer) serve(req *wire.Frame) (fserr.Code, []byte, []byte) {
	switch req.Type {
	case wire.ChunkCreate:
		q := new(msg.ChunkCreate)
		if q.UnmarshalVT(req.Body) != nil || !id.ChunkID(q.Chunk).IsScratch() {
			return fserr.Protocol, nil, nil
		}
		m.made++
		m.chunks[id.ChunkID(q.Chunk)] = make([]byte, chunk.Size)
		return fserr.OK, nil, nil
	case wire.ChunkDelete:
		q := new(msg.ChunkDelete)
		if q.UnmarshalVT(req.Body) != nil {
			return fserr.Protocol, nil, nil
		}
		for _, k := range q.Chunks {
			delete(m.chunks, id.ChunkID(k))
		}
		return fserr.OK, nil, nil
	}
	var r wire.DataRequest
	if r.Decode(req.Body) != nil {
		return fserr.Protocol, nil, nil
	}
	p := m.chunks[r.Chunk]
	if p == nil {
		return fserr.NoChunk, nil, nil
	}
	if m.fail != nil {
		if code := m.fail(req.Type, &r); code != fserr.OK {
			return code, nil, nil
		}
	}
	p = p[r.Offset : r.Offset+r.Length]
	switch req.Type {
	case wire.Write:
		if chunk.VerifySums(r.Sums, r.Offset, req.Data) >= 0 || len(req.Data) != len(p) {
			return fserr.BadChecksum, nil, nil
		}
		copy(p, req.Data)
		m.unsaved[r.Chunk] = true
	case wire.Flush:
		m.flushes[r.Chunk]++
		delete(m.unsaved, r.Chunk)
	case wire.Read:
		sums := chunk.AppendSums(nil, r.Offset, p)
		if m.rot {
			sums[0]++
		}
		return fserr.OK, wire.AppendSums(nil, sums), p
	}
	return fserr.OK, nil, nil
}

func TestChunkServer(t *testing.T) {
	m := newMemoryServer(t)
	for _, rw := range patterns {
		for _, bs := range []int64{4096, 1 << 20} {
			m.mu.Lock()
			m.made = 0
			m.mu.Unlock()
			size, perJob := int64(2<<20), 1
			if rw == Write && bs > 4096 || rw == RandRead {
				size, perJob = 65<<20, 2 // the second chunk as well
			}
			o := Options{Target: m.target(), RW: rw, BlockSize: bs, Size: size, QD: 1, Jobs: 2, FsyncEvery: 50, Verify: true, Seed: 3}
			if bs == 4096 {
				o.QD = 8
			}
			res := mustRun(t, o)
			want := 2 * size / bs
			if !res.OK() || res.Total.Count != want || res.Options.Engine != Wire || rw.reads() != (res.Read != nil) {
				t.Errorf("%s of %d: %d operations, want %d, %+v, %q", rw, bs, res.Total.Count, want, res.Errors, res.Stopped)
			}
			if rw.writes() && bs == 4096 && (res.Fsync == nil || res.Fsync.Count > res.Write.Count/50) {
				t.Errorf("%s: fsync %+v", rw, res.Fsync)
			}
			if v := res.Verify; v.Checked == 0 || rw.writes() != (v.ReadBack == "done") {
				t.Errorf("%s: %+v", rw, v)
			}
			m.mu.Lock()
			if m.made != 2*perJob || len(m.chunks) != 0 || len(m.unsaved) != 0 {
				t.Errorf("%s: %d chunks made, %d left, %d not flushed", rw, m.made, len(m.chunks), len(m.unsaved))
			}
			m.mu.Unlock()
		}
	}
}

func TestChunkServerRate(t *testing.T) {
	m := newMemoryServer(t)
	tries(t, func() error {
		res := mustRun(t, Options{Target: m.target(), RW: RandRW, Rate: 500, Size: 1 << 20, Duration: 400 * time.Millisecond, QD: 4, Jobs: 2})
		if !res.OK() || res.StartLag == nil || res.Total.Count+res.Missed < 190 || res.Total.Count > 202 {
			return fmt.Errorf("%+v, %d missed, %q", res.Total, res.Missed, res.Stopped)
		}
		return nil
	})
	span := time.Second
	tries(t, func() error { // a busy machine may need longer to begin
		ctx, cancel := context.WithTimeout(t.Context(), span)
		defer cancel()
		start := time.Now() // the second operation is due in a minute
		res, err := Run(ctx, Options{Target: m.target(), Size: 1 << 20, Rate: 1. / 60, Duration: time.Hour})
		if err != nil || res.Stopped != cancelled || time.Since(start) > span+20*time.Second {
			span *= 2
			return fmt.Errorf("%+v, %v", res, err)
		}
		return nil
	})
}

func TestChunkServerFails(t *testing.T) {
	m := newMemoryServer(t)
	set := func(f func()) {
		m.mu.Lock()
		defer m.mu.Unlock()
		f()
	}
	o := Options{Target: m.target(), RW: RandRead, Size: 1 << 20, QD: 4}

	set(func() { m.rot = true })
	if res := mustRun(t, o); len(res.Errors) != 1 || !strings.Contains(res.Errors[0].Error, fserr.BadChecksum.Error()) || res.OK() {
		t.Errorf("answers that do not match their checksums: %+v", res.Errors)
	}
	set(func() { m.rot = false })

	n := 0
	set(func() {
		m.fail = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
			if n++; typ == wire.Read && n%10 == 0 {
				return fserr.IO
			}
			return fserr.OK
		}
	})
	if res := mustRun(t, o); len(res.Errors) != 1 || res.Errors[0].Count < 20 || res.Stopped != "" {
		t.Errorf("some reads fail: %+v, %q", res.Errors, res.Stopped)
	}
	set(func() {
		m.fail = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
			if typ == wire.Flush {
				return fserr.IO
			}
			return fserr.OK
		}
	})
	w := o
	w.RW, w.FsyncEvery = RandWrite, 5
	if res := mustRun(t, w); len(res.Errors) != 1 || res.Errors[0].Op != "fsync" {
		t.Errorf("flushes fail: %+v", res.Errors)
	}
	set(func() {
		m.fail = func(typ wire.Type, r *wire.DataRequest) fserr.Code { return fserr.NoSpace }
	})
	if res := mustRun(t, w); !strings.HasPrefix(res.Stopped, "disk full") {
		t.Errorf("disk full: %q", res.Stopped)
	}
	set(func() { m.fail = nil })

	// The server goes away in the middle.
	o.Duration = time.Minute
	set(func() {
		n = 0
		m.fail = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
			if typ == wire.Read {
				n++
			}
			return fserr.OK
		}
	})
	go func() {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			m.mu.Lock()
			begun := n > 0
			m.mu.Unlock()
			if begun {
				break
			}
		}
		m.listener.Close()
		m.server.Close()
	}()
	if res := mustRun(t, o); !strings.HasPrefix(res.Stopped, "target gone") {
		t.Errorf("server gone: %q, %+v", res.Stopped, res.Errors)
	}
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), m.target()) {
		t.Errorf("no server: %v", err)
	}
}

// TestChunkServerHangs: a run does not wait for ever.
func TestChunkServerHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a run waits for operations that hang; not with -short")
	}
	t.Parallel()
	m := newMemoryServer(t)
	m.silent = true
	span := 2 * time.Second
	tries(t, func() error { // a busy machine may need longer to begin
		ctx, cancel := context.WithTimeout(t.Context(), span)
		defer cancel()
		span *= 2
		res, err := Run(ctx, Options{Target: m.target(), Size: 1 << 20, QD: 3})
		if err != nil || res.Stuck != 3 || res.Stopped != cancelled {
			return fmt.Errorf("%+v, %v", res, err)
		}
		return nil
	})
}

func TestChunkServerOptions(t *testing.T) {
	for _, o := range []Options{
		{Target: "cs:a:1", BlockSize: 512},
		{Target: "cs:a:1", BlockSize: 12288},
		{Target: "cs:a:1", BlockSize: 4 << 20, Size: 1 << 30},
		{Target: "cs:a:1", Size: maxChunks*chunk.Size + 4096},
		{Target: "cs:a:1", Engine: Sync},
		{Target: "null", Engine: Wire},
		{Target: "cs:"},
	} {
		if o.Validate() == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
