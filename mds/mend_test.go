package mds

import (
	"slices"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/event"
)

func (k *testChunks) tell(more func(*msg.Heartbeat)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	more(&k.more)
}

func (k *testChunks) bad() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.more.BadChunks)
}

// A replica with bad blocks is rebuilt from another one; without another it is left alone.
func TestBadBlocksAreMended(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	chunks := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 2})).GetLayout().Chunks
	layout := func() []*msg.Chunk { return a.must(a.read(&msg.GetLayout{Ino: ino, Count: 2})).GetLayout().Chunks }
	cs[1].tell(func(h *msg.Heartbeat) { h.BadChunks, h.BadBlocks = []uint64{chunks[0].Id}, 3 })
	c.eventually("the replica to be rebuilt", func() bool { return cs[1].bad() == 0 && c.leader().status().Degraded == 0 })
	got := layout()
	if got[0].Epoch <= chunks[0].Epoch || len(got[0].Replicas) != 3 || got[1].Epoch != chunks[1].Epoch {
		t.Errorf("from %v to %v", chunks, got)
	}
	for i, k := range cs {
		if n := k.count(wire.ChunkRebuild); n > 0 != (i == 1) {
			t.Errorf("cs %d was rebuilt %d times", i, n)
		}
	}
	status := func(k *testChunks) *msg.ChunkServer {
		all := c.leader().status().Servers
		return all[slices.IndexFunc(all, func(s *msg.ChunkServer) bool { return id.ServerID(s.Server) == k.id })]
	}
	if n := status(cs[1]).BadBlocks; n != 3 {
		t.Errorf("the status tells of %d bad blocks, want 3", n)
	}
	cs[0].halt()
	cs[2].halt()
	c.eventually("two servers to be away", func() bool { return status(cs[0]).State != "live" && status(cs[2]).State != "live" })
	cs[1].tell(func(h *msg.Heartbeat) { h.BadChunks, h.BadBlocks = []uint64{chunks[1].Id}, 4 })
	c.eventually("another bad block", func() bool { return status(cs[1]).BadBlocks == 4 })
	time.Sleep(200 * time.Millisecond) // several looks of the planner
	if got := layout()[1]; got.Epoch != chunks[1].Epoch {
		t.Errorf("a chunk without another live replica was touched: %v", got)
	}
}

// Bad blocks that a server tells of are an event, before the replica joins again, and once, however often it tells of them; also where
// nothing can be mended.
func TestBadBlocksAreAnEvent(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	chunks := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 2})).GetLayout().Chunks
	told := func() (out []*event.Event) {
		b, _, err := c.leader().journal.ReadRaw(1, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		err = journal.DecodeRaw(b, func(r journal.Record) error {
			ev := new(event.Event)
			err := ev.UnmarshalVT(r.Payload)
			if ev.GetBadBlocks() != nil || ev.GetReplicaJoin() != nil {
				out = append(out, ev)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	cs[1].tell(func(h *msg.Heartbeat) {
		h.BadChunks, h.BadBlocks = []uint64{chunks[0].Id}, 3
		h.Bad = []*msg.BadBlock{{Chunk: chunks[0].Id, Block: 9, Cause: "checksum", Since: 5}, {Chunk: chunks[0].Id, Block: 7, Cause: "checksum", Since: 5},
			{Chunk: chunks[0].Id, Block: 3, Cause: "read error", Since: 6}, {Chunk: 1 << 40, Block: 1, Cause: "checksum", Since: 6}}
	})
	c.eventually("the replica to be rebuilt", func() bool { return cs[1].bad() == 0 && c.leader().status().Degraded == 0 })
	got := told()
	if len(got) < 3 || got[0].GetBadBlocks() == nil || got[1].GetBadBlocks() == nil || got[2].GetReplicaJoin() == nil {
		t.Fatalf("events %v: want two about bad blocks, then joins", got)
	}
	for i, want := range []*event.BadBlocks{{Blocks: []uint32{7, 9}, Cause: "checksum"}, {Blocks: []uint32{3}, Cause: "read error"}} {
		b := got[i].GetBadBlocks()
		if b.GetChunk() != chunks[0].Id || id.ServerID(b.GetServer()) != cs[1].id || !slices.Equal(b.GetBlocks(), want.Blocks) || b.GetCause() != want.Cause ||
			got[i].GetCause().GetReason() == "" {
			t.Errorf("event %d: %v, want %v", i, got[i], want)
		}
	}
	cs[0].halt()
	cs[2].halt()
	cs[1].tell(func(h *msg.Heartbeat) {
		h.BadChunks = []uint64{chunks[1].Id}
		h.Bad = []*msg.BadBlock{{Chunk: chunks[1].Id, Cause: "header"}}
	})
	bad := func() []*event.Event {
		return slices.DeleteFunc(told(), func(ev *event.Event) bool { return ev.GetBadBlocks() == nil })
	}
	c.eventually("an event about a replica that nobody can mend", func() bool { return len(bad()) > 2 })
	time.Sleep(200 * time.Millisecond) // several looks of the planner
	if got = bad(); len(got) != 3 || len(got[2].GetBadBlocks().GetBlocks()) != 0 || got[2].GetBadBlocks().GetCause() != "header" {
		t.Errorf("events %v", got)
	}
}

// A disk that failed is not waited for, long as the grace may be.
func TestFailedDiskIsGivenUpAtOnce(t *testing.T) {
	c := newCluster(t, 1, patient) // with a grace of an hour
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 4}))
	cs[2].tell(func(h *msg.Heartbeat) { h.State, h.Reason = stateFailed, "sync: chunk 7: input/output error" })
	c.eventually("its replicas to be elsewhere", func() bool {
		for _, k := range a.must(a.read(&msg.GetLayout{Ino: ino, Count: 4})).GetLayout().Chunks {
			if len(k.Replicas) != 3 || slices.ContainsFunc(k.Replicas, func(r *msg.Replica) bool { return r.Joining || id.ServerID(r.Server) == cs[2].id }) {
				return false
			}
		}
		return true
	})
	for _, s := range c.leader().status().Servers {
		if id.ServerID(s.Server) == cs[2].id && (s.State != stateFailed || s.Reason == "") {
			t.Errorf("status of the server: %v", s)
		}
	}
}
