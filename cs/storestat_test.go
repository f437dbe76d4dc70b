package cs

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// ask sends a control message and wants an outcome.
func (c *client) ask(t wire.Type, req, reply wire.Message, want fserr.Code) {
	c.t.Helper()
	code, err := c.c.CallMessage(c.t.Context(), t, wire.ClassMeta, req, reply)
	if err != nil || code != want {
		c.t.Fatalf("request type %d: %v %v, want %v", t, code, err, want)
	}
}

func awaitBeat(t *testing.T, f *fakeLeader, s *testServer, what string, ok func(*msg.Heartbeat) bool) *msg.Heartbeat {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		f.mu.Lock()
		b := f.beats[uint32(s.ID())]
		f.mu.Unlock()
		if b != nil && ok(b) {
			return b
		}
	}
	t.Fatalf("no heartbeat with %s", what)
	return nil
}

// A disk that fails is reported, and the server does not start on it again.
func TestFailedDiskIsReported(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 100)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	s.disk.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpSync && strings.HasSuffix(op.Path, ".chk") {
			return syscall.EIO
		}
		return nil
	})
	code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
	c.want(code, fserr.IO, "flush")
	b := awaitBeat(t, f, s, "the state failed", func(b *msg.Heartbeat) bool { return b.State == "failed" })
	if !strings.Contains(b.Reason, "out of service") || !strings.Contains(b.Reason, "input/output error") {
		t.Fatalf("reason %q", b.Reason)
	}
	stat := new(msg.StoreStatReply)
	dialAdmin(t, s).ask(wire.StoreStat, &msg.StoreStat{}, stat, fserr.OK)
	if !strings.Contains(stat.Failed, "input/output error") {
		t.Fatalf("%+v", stat)
	}
	if stat.Memory != uint64(s.o.Memory) || stat.PayloadSize == 0 || stat.PayloadSize > stat.Memory || stat.Resident == 0 || stat.DataPath == "" || stat.MostUnderWay != maxOps {
		t.Errorf("memory and requests: %+v", stat)
	}
	s.Kill()
	s.disk.Kill()
	if _, err := Open(s.o); !errors.Is(err, store.ErrRetired) || !strings.Contains(err.Error(), "varve cs readmit") {
		t.Fatalf("the server starts on a disk that failed: %v", err)
	}
	was, server, err := Readmit(s.o)
	if err != nil || len(was) != 1 || server != s.ID() {
		t.Fatal(was, server, err)
	}
	s.start(t)
	s.waitServing(t)
}

// What the scrub finds is in the next heartbeats, with the space of the chunks.
func TestBadBlockIsReported(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 100)
	c.want(c.write(7, 1, 0, pattern(1, 4*block)), fserr.OK, "write")
	if err := s.disk.Flip("/cs/chunks/07/0000000000000007.chk", 1<<20+chunk.BlockSize+9); err != nil {
		t.Fatal(err)
	}
	c.ask(wire.Scrub, &msg.Scrub{Begin: true}, new(msg.ScrubStat), fserr.Perm)
	a := dialAdmin(t, s)
	a.ask(wire.Scrub, &msg.Scrub{Rate: 1 << 30, SetRate: true, Begin: true}, new(msg.ScrubStat), fserr.OK)
	b := awaitBeat(t, f, s, "a bad block and a finished scrub", func(b *msg.Heartbeat) bool { return b.BadBlocks == 1 && b.Scrubbed > 0 })
	if len(b.BadChunks) != 1 || id.ChunkID(b.BadChunks[0]) != 7 || b.State != "ok" || b.Allocated < 4*block || b.Reserved == 0 {
		t.Fatalf("%+v", b)
	}
	stat := new(msg.StoreStatReply)
	a.ask(wire.StoreStat, &msg.StoreStat{MaxBad: 10}, stat, fserr.OK)
	if stat.Bad != 1 || len(stat.BadBlocks) != 1 || stat.BadBlocks[0].Block != 1 || stat.BadBlocks[0].Cause != "checksum" || stat.Scrub.Found != 1 ||
		stat.Scrub.Passes != 1 || stat.Scrub.Rate != 1<<30 {
		t.Fatalf("%+v", stat)
	}
	code, _, _ := c.do(wire.Read, 1, wire.DataRequest{Chunk: 7, Length: 4 * block}, nil)
	c.want(code, fserr.IO, "read over the bad block")
	c.want(c.write(7, 1, 0, pattern(2, 4*block)), fserr.OK, "write over the bad block")
	b = awaitBeat(t, f, s, "no bad block", func(b *msg.Heartbeat) bool { return b.BadBlocks == 0 && len(b.BadChunks) == 0 })
	if len(b.Bad) != 1 || b.Bad[0].Chunk != 7 || b.Bad[0].Block != 1 || b.Bad[0].Cause != "checksum" || b.Bad[0].Since != stat.BadBlocks[0].Since {
		t.Errorf("a block that was written anew before anybody asked is not told of: %v", b.Bad)
	}
}

// A directory without its chunks is not served as an empty server.
func TestChunksAreMissing(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	s.Kill()
	s.disk.Kill()
	for _, name := range []string{"label", "active.log"} {
		if err := s.disk.Remove("/cs/" + name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.o); !errors.Is(err, store.ErrMoved) {
		t.Fatalf("a directory without chunks: %v", err)
	}
	if err := s.disk.Remove("/cs/cs.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.o); err == nil || !strings.Contains(err.Error(), "is not the directory of a chunk server") {
		t.Fatalf("an empty directory: %v", err)
	}
}
