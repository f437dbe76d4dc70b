package mds

import (
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Two mounts that truncate a file at the same moment: the second waits until the tail that the first left is punched. It was refused.
func TestTruncateWaitsForThePunch(t *testing.T) {
	c := newCluster(t, 1, patient)
	_ = []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1}))
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	size, less := uint64(100000), uint64(5000)
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &less}))
	done := make(chan fserr.Code, 1)
	go func() {
		_, code := b.do(b.change(&msg.SetAttr{Ino: ino, Size: &size}))
		done <- code
	}()
	select {
	case code := <-done:
		t.Errorf("a truncate was answered %v while a punch is pending", code)
	case <-time.After(200 * time.Millisecond):
	}
	a.must(a.change(&msg.PunchDone{Ino: ino}))
	if code := <-done; code != fserr.OK {
		t.Errorf("the truncate that waited: %v", code)
	}
}

// While a chunk's unclean replica waits to join a clean one, that one is dropped: the unclean one is still to be looked after. It was forgotten, and
// nobody could read or write the chunk any more.
func TestUncleanReplicaWhoseSourceWasDropped(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { patient(o); o.Replicas = "2:1" })
	cs := []*testChunks{newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ}))
	hold, asked := make(chan struct{}), make(chan struct{}, 1)
	b.mu.Lock()
	b.fn = func(cb *msg.Callback) *msg.CallbackReply {
		if cb.Kind == msg.Callback_LAYOUT {
			select {
			case asked <- struct{}{}:
			default:
			}
			<-hold
		}
		return &msg.CallbackReply{Keep: msg.Want_WANT_READ}
	}
	b.mu.Unlock()
	dropped := make(chan fserr.Code, 1)
	go func() {
		_, code := a.do(a.change(&msg.DropReplica{Ino: ino, Server: uint32(cs[1].id), Chunk: chunk.Id, Epoch: chunk.Epoch, Reason: "test", Count: 1}))
		dropped <- code
	}()
	<-asked // layouts are frozen, so that nothing joins
	cs[0].crash(chunk.Id, unclean)
	cs[0].run()
	c.eventually("the unclean replica to be reported", cs[0].isReady)
	time.Sleep(2 * c.leader().o.RepairInterval / 4) // by when it waits to join the other
	close(hold)
	if code := <-dropped; code != fserr.OK {
		t.Fatalf("drop: %v", code)
	}
	c.eventually("the unclean replica to be accepted, and the other to join it", func() bool {
		return cs[0].count(wire.ChunkAccept) > 0 && c.leader().status().Degraded == 0
	})
}

// The last replica that has what was answered is not dropped while the others came back from a loss of power.
func TestLastSoundReplicaIsNotDropped(t *testing.T) {
	for _, power := range []bool{false, true} {
		c := newCluster(t, 1, func(o *Options) { patient(o); o.UncleanWait = time.Hour; o.Replicas = "2:1" })
		cs := []*testChunks{newChunks(c), newChunks(c)}
		a := newClient(c)
		ino := a.create("f", true).Attr.Ino
		chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
		cs[1].halt()
		cs[0].crash(chunk.Id, func(k *msg.ChunkInfo) { k.Unclean, k.Power = true, power })
		cs[0].run()
		c.eventually("the unclean replica to be reported", cs[0].isReady)
		_, code := a.do(a.change(&msg.DropReplica{Ino: ino, Server: uint32(cs[1].id), Chunk: chunk.Id, Epoch: chunk.Epoch, Reason: "test", Count: 1}))
		if want := map[bool]fserr.Code{false: fserr.OK, true: fserr.TooFew}[power]; code != want {
			t.Errorf("power lost %v: drop answered %v, want %v", power, code, want)
		}
		cs[1].run()
		c.eventually("both replicas to be in sync", func() bool { return c.leader().status().Degraded == 0 })
		cs[0].halt()
		cs[1].halt()
		a.close()
		c.kill(0)
	}
}
