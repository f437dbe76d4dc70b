package mds

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

func TestLeaseIsCalledBack(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	made := a.create("f", true)
	ino := made.Attr.Ino
	if m := made.GetOpen().Mode; m != msg.Mode_EXCLUSIVE_WRITE {
		t.Fatalf("mode of the only holder: %v", m)
	}
	a.mu.Lock()
	a.fn = func(cb *msg.Callback) *msg.CallbackReply {
		return &msg.CallbackReply{Keep: msg.Want_WANT_WRITE, HasAttr: true, Size: 12345, Mtime: 77}
	}
	a.mu.Unlock()
	if r := b.must(b.read(&msg.GetAttr{Ino: ino})); r.Attr.Size != 12345 || a.calls(msg.Callback_ATTR) != 1 {
		t.Errorf("another's getattr: size %d after %d callbacks", r.Attr.Size, a.calls(msg.Callback_ATTR))
	}
	if a.must(a.read(&msg.GetAttr{Ino: ino})); a.calls(msg.Callback_ATTR) != 1 {
		t.Error("the writer was called back for its own getattr")
	}
	opened := b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ}))
	if m := opened.GetOpen().Mode; m != msg.Mode_SHARED_WRITE || a.calls(msg.Callback_LEASE) != 1 {
		t.Errorf("mode of the second holder: %v after %d callbacks", m, a.calls(msg.Callback_LEASE))
	}
	b.must(b.change(&msg.Release{Ino: ino, Lease: opened.GetOpen().Lease}))
	c.eventually("the writer to be told", func() bool { return a.calls(msg.Callback_UPGRADE) == 1 })
}

// An append that overtakes the answer to the recall by which its session leaves off writing alone goes to where the session says that the file ends;
// once the answer has come, to where it does.
func TestAppendBeforeTheRecallIsAnswered(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	a.mu.Lock()
	a.fn = func(cb *msg.Callback) *msg.CallbackReply {
		if cb.Kind == msg.Callback_LEASE {
			select {
			case asked <- struct{}{}:
			default:
			}
			<-answer
		}
		return &msg.CallbackReply{Keep: msg.Want_WANT_WRITE, HasAttr: true, Size: 6870, Mtime: 77}
	}
	a.mu.Unlock()
	opened := make(chan *msg.MetaReply, 1)
	go func() {
		r, _ := b.do(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
		opened <- r
	}()
	<-asked
	add := func(k *testClient, size, want uint64) {
		t.Helper()
		if got := k.must(k.change(&msg.Append{Ino: ino, Length: 100, Size: size})).GetAppend().GetOffset(); got != want {
			t.Errorf("appended at %d, want %d", got, want)
		}
	}
	add(a, 6870, 6870)
	add(a, 6870, 6970)
	close(answer)
	if m := (<-opened).GetOpen().GetMode(); m != msg.Mode_SHARED_WRITE {
		t.Fatalf("mode of the second writer: %v", m)
	}
	if size := b.must(b.read(&msg.GetAttr{Ino: ino})).Attr.Size; size != 7070 {
		t.Errorf("size %d, want 7070", size)
	}
	add(b, 0, 7070)
	size := uint64(50)
	b.must(b.change(&msg.SetAttr{Ino: ino, Size: &size}))
	add(a, 6870, 50) // what was answered says nothing any more
}

// An answer that a client made before it cut the file, and that comes after, does not bring back the size that was cut. Nor does a report of a
// session that does not write alone any more.
func TestCutIsNotUndoneByAnEarlierAnswer(t *testing.T) {
	for _, kind := range []msg.Callback_Kind{msg.Callback_ATTR, msg.Callback_LEASE} {
		t.Run(kind.String(), func(t *testing.T) {
			c := newCluster(t, 1, patient)
			a, b := newClient(c), newClient(c)
			ino := a.create("f", true).Attr.Ino
			old, size := uint64(6870), uint64(50)
			a.must(a.change(&msg.SetAttr{Ino: ino, Size: &old, Flush: true}))
			asked, cut := make(chan struct{}), make(chan struct{})
			var once sync.Once
			a.mu.Lock()
			a.fn = func(cb *msg.Callback) *msg.CallbackReply {
				r := &msg.CallbackReply{Keep: msg.Want_WANT_WRITE}
				if cb.Kind == kind {
					once.Do(func() {
						close(asked)
						<-cut
						r.HasAttr, r.Size, r.Mtime = true, old, 77
					})
				}
				return r
			}
			a.mu.Unlock()
			done := make(chan fserr.Code, 1)
			go func() {
				req := b.read(&msg.GetAttr{Ino: ino})
				if kind == msg.Callback_LEASE {
					req = b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})
				}
				_, code := b.do(req)
				done <- code
			}()
			<-asked
			a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
			close(cut)
			if code := <-done; code != fserr.OK {
				t.Fatal(code)
			}
			now := func() uint64 { return a.must(a.read(&msg.GetAttr{Ino: ino})).Attr.Size }
			if got := now(); got != size {
				t.Errorf("size %d, want %d", got, size)
			}
			if kind == msg.Callback_LEASE {
				a.must(a.change(&msg.SetAttr{Ino: ino, Size: &old, Flush: true}))
				if got := now(); got != size {
					t.Errorf("size %d after a report of one of two writers, want %d", got, size)
				}
			}
			if n := a.calls(kind); n < 2 {
				t.Errorf("asked %d times, want again", n)
			}
		})
	}
}

func TestLeaseKeptAfterCloseIsGivenUp(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.mu.Lock()
	a.fn = func(cb *msg.Callback) *msg.CallbackReply { return &msg.CallbackReply{Keep: msg.Want_WANT_NONE} }
	a.mu.Unlock()
	if m := b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})).GetOpen().Mode; m != msg.Mode_EXCLUSIVE_WRITE {
		t.Errorf("mode after the other let go: %v", m)
	}
}

func TestDeadClientIsFencedBeforeTheNextLease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, dying)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	layout := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 2})).GetLayout()
	if len(layout.Chunks) != 2 || len(layout.Chunks[0].Replicas) != 3 {
		t.Fatalf("layout %v", layout)
	}
	a.close()
	opened := b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})).GetOpen()
	if opened.Mode != msg.Mode_EXCLUSIVE_WRITE {
		t.Errorf("mode %v", opened.Mode)
	}
	for i, s := range cs {
		s.mu.Lock()
		if !s.fenced[uint64(a.session)] {
			t.Errorf("chunk server %d does not refuse the dead client", i)
		}
		s.mu.Unlock()
	}
	if e := opened.Layout.Chunks[0].Epoch; e < 3 {
		t.Errorf("epoch %d: two replicas should have joined again", e)
	}
	c.eventually("all replicas to be in sync again", func() bool { return c.leader().status().Degraded == 0 })
	if _, code := b.do(b.change(&msg.SetAttr{Ino: ino, Size: new(uint64)})); code != fserr.OK {
		t.Errorf("truncate: %v", code)
	}
}

func TestDeadPuncherIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, dying)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1}))
	size := uint64(100000)
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	size = 5000
	if r := a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size})).GetSetAttr(); !r.GetPunch() || r.From != 5000 {
		t.Fatalf("truncate answered %v", r)
	}
	a.close()
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	for i, s := range cs {
		s.mu.Lock()
		if len(s.punches) == 0 || s.punches[0].From != 5000 {
			t.Errorf("chunk server %d was asked to punch %v", i, s.punches)
		}
		s.mu.Unlock()
	}
}

// A new leader knows who was to punch: an open waits for nobody else who writes to the file.
func TestDeadPuncherIsReplacedAfterAChangeOfLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, dying)
	_ = []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b, other := newClient(c), newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1}))
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	size := uint64(100000)
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	size = 5000
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	a.close()
	c.kill(c.leaderIndex())
	other.must(other.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	c.leader().fsm.view(func(st *state.State) {
		if n, _ := st.Inode(id.Ino(ino)); n == nil || n.Nlink() == 0 {
			t.Fatal("the file is gone")
		} else if _, pending := n.Punch(); pending || st.Puncher(id.Ino(ino)) != 0 {
			t.Error("the tail is not punched")
		}
	})
}

// What another mount writes behind the new end must not be wiped by the punch that is still to come.
func TestLayoutWaitsForThePunch(t *testing.T) {
	c := newCluster(t, 1, patient)
	_ = []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1}))
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	size := uint64(100000)
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	size = 5000
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.do(b.read(&msg.GetLayout{Ino: ino, Count: 1}))
	}()
	a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})) // the puncher needs it
	select {
	case <-done:
		t.Error("another session was given a layout while a punch is pending")
	case <-time.After(200 * time.Millisecond):
	}
	a.must(a.change(&msg.PunchDone{Ino: ino}))
	<-done
}

func TestUnlinkedInodeGoesWithItsLastHolder(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.mu.Lock()
	a.fn = func(cb *msg.Callback) *msg.CallbackReply {
		if cb.Unlinked {
			return &msg.CallbackReply{Keep: msg.Want_WANT_NONE}
		}
		return &msg.CallbackReply{Keep: msg.Want_WANT_WRITE}
	}
	a.mu.Unlock()
	b.must(b.change(&msg.Remove{Parent: 1, Name: []byte("f")}))
	c.eventually("the inode to go", func() bool {
		gone := false
		c.leader().fsm.view(func(st *state.State) { _, ok := st.Inode(id.Ino(ino)); gone = !ok })
		return gone
	})
}

func TestLockWaitsForUnlock(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.RequestTimeout = time.Minute })
	a, b := newClient(c), newClient(c)
	ino := a.create("f", false).Attr.Ino
	lock := func(k *testClient, typ msg.LockType, wait bool) fserr.Code {
		_, code := k.do(k.change(&msg.Lock{Ino: ino, Owner: 1, Type: typ, End: state.LockEnd, Wait: wait, WaitMs: 30_000}))
		return code
	}
	if code := lock(a, msg.LockType_WRITE_LOCK, false); code != fserr.OK {
		t.Fatal(code)
	}
	if code := lock(b, msg.LockType_WRITE_LOCK, false); code != fserr.Again {
		t.Errorf("lock in the way: %v", code)
	}
	done := make(chan fserr.Code, 1)
	go func() { done <- lock(b, msg.LockType_WRITE_LOCK, true) }()
	select {
	case code := <-done:
		t.Errorf("granted while another holds it: %v", code)
	case <-time.After(100 * time.Millisecond):
	}
	lock(a, msg.LockType_UNLOCK, false)
	if code := <-done; code != fserr.OK {
		t.Errorf("after the unlock: %v", code)
	}
	// A session that ends gives its locks up.
	go func() { done <- lock(a, msg.LockType_WRITE_LOCK, true) }()
	b.close()
	if code := <-done; code != fserr.OK {
		t.Errorf("after the holder died: %v", code)
	}
}

func TestDropCallsLayoutsBackAndRepairRejoins(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	victim := chunk.Replicas[1].Server
	for _, s := range cs {
		if uint32(s.id) == victim {
			s.halt()
		}
	}
	drop := func(server uint32, epoch uint64) (*msg.MetaReply, fserr.Code) {
		return a.do(a.change(&msg.DropReplica{Ino: ino, Server: server, Chunk: chunk.Id, Epoch: epoch, Reason: "test", Count: 1}))
	}
	r, code := drop(victim, chunk.Epoch)
	if code != fserr.OK || len(r.GetLayout().Chunks[0].Replicas) != 2 || b.calls(msg.Callback_LAYOUT) != 1 {
		t.Fatalf("drop: %v, layout %v, %d callbacks", code, r.GetLayout(), b.calls(msg.Callback_LAYOUT))
	}
	left := r.GetLayout().Chunks[0]
	if _, code := drop(left.Replicas[0].Server, left.Epoch); code != fserr.TooFew {
		t.Errorf("drop below the minimum: %v", code)
	}
	for _, s := range cs {
		if uint32(s.id) == victim {
			s.run()
		}
	}
	c.eventually("the old copy to be rebuilt", func() bool { return c.leader().status().Degraded == 0 })
	got := a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	if len(got.Replicas) != 3 || got.Epoch <= left.Epoch {
		t.Errorf("after the repair: %v", got)
	}
	a.must(a.change(&msg.WriteDone{Ino: ino, Length: 10}))
	if n := b.calls(msg.Callback_INVALIDATE); n != 1 {
		t.Errorf("%d invalidations of the other holder", n)
	}
	b.must(b.change(&msg.Release{Ino: ino}))
	a.must(a.change(&msg.Release{Ino: ino}))
	a.must(a.change(&msg.Remove{Parent: 1, Name: []byte("f")}))
	c.eventually("garbage to be deleted", func() bool {
		return c.leader().status().Garbage == 0 && cs[0].count(wire.ChunkDelete) > 0
	})
}

func TestAllocReplacesAServerThatFails(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c), newChunks(c)}
	cs[0].mu.Lock()
	cs[0].refuse[wire.ChunkCreate] = fserr.IO
	cs[0].mu.Unlock()
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	for i := range uint32(8) {
		l := a.must(a.change(&msg.AllocChunk{Ino: ino, First: i, Count: 1})).GetLayout()
		for _, r := range l.Chunks[0].Replicas {
			if r.Server == uint32(cs[0].id) {
				t.Errorf("chunk %d was placed on a server that refused it", i)
			}
		}
	}
}

func TestUncleanReplicas(t *testing.T) {
	for _, all := range []bool{false, true} {
		c := newCluster(t, 1, patient)
		cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
		a := newClient(c)
		ino := a.create("f", true).Attr.Ino
		chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
		crash := cs[:1]
		if all {
			crash = cs
		}
		for _, s := range crash {
			s.halt()
			s.mu.Lock()
			s.chunks[chunk.Id].Unclean = true
			s.mu.Unlock()
		}
		for _, s := range crash {
			s.run()
		}
		c.eventually("the unclean replicas to be clean", func() bool {
			for _, s := range cs {
				s.mu.Lock()
				i := s.chunks[chunk.Id]
				bad := !s.ready || i.Unclean || i.Joining
				s.mu.Unlock()
				if bad {
					return false
				}
			}
			return c.leader().status().Degraded == 0
		})
		accepted := 0
		for _, s := range cs {
			accepted += s.count(wire.ChunkAccept)
		}
		if all != (accepted == 1) {
			t.Errorf("all unclean %v: %d replicas were accepted", all, accepted)
		}
		for _, s := range cs {
			s.halt()
		}
		a.close()
		c.kill(0)
	}
}

// crash stops the server and leaves its copy of the chunk as change says.
func (k *testChunks) crash(chunk uint64, change func(*msg.ChunkInfo)) {
	k.halt()
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k.chunks[chunk])
}

func unclean(i *msg.ChunkInfo) { i.Unclean = true }

// When every replica lost power, the chunk says from which epoch on what was not flushed may be gone, and the replica that is accepted has
// that epoch. One whose process only died has all, so it is the truth and nothing is lost.
func TestLossOfPowerIsRemembered(t *testing.T) {
	for _, survivor := range []int{-1, 2} {
		c := newCluster(t, 1, func(o *Options) { patient(o); o.UncleanWait = time.Hour })
		cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
		a := newClient(c)
		ino := a.create("f", true).Attr.Ino
		before := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
		for i, s := range cs {
			s.crash(before.Id, func(k *msg.ChunkInfo) { k.Unclean, k.Power = true, i != survivor })
		}
		for _, s := range cs {
			s.run()
		}
		truth := max(survivor, 0)
		c.eventually("a replica to be accepted and the others to be rebuilt", func() bool {
			return cs[truth].count(wire.ChunkAccept) > 0 && c.leader().status().Degraded == 0
		})
		got := a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})).GetLayout().Chunks[0]
		switch {
		case survivor >= 0 && got.Lost != 0:
			t.Errorf("%v: a replica that had all was the truth, and yet something is lost", got)
		case survivor < 0 && (got.Lost <= before.Epoch || got.Lost > got.Epoch):
			t.Errorf("%v: want the epoch at which it was accepted, after %d", got, before.Epoch)
		}
		cs[truth].mu.Lock()
		if k := cs[truth].chunks[before.Id]; k.Unclean || k.Epoch < got.Lost {
			t.Errorf("the truth is %v, lost before epoch %d", k, got.Lost)
		}
		cs[truth].mu.Unlock()
		for i, s := range cs {
			if n := s.count(wire.ChunkAccept); (n > 0) != (i == truth) {
				t.Errorf("chunk server %d was accepted %d times", i, n)
			}
			s.halt()
		}
		a.close()
		c.kill(0)
	}
}

// A replica that is away when an unclean one becomes the truth may hold other bytes, clean as it is.
func TestAbsentReplicaFollowsTheAccepted(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	cs[1].halt()
	cs[2].halt()
	cs[0].crash(chunk.Id, unclean)
	cs[0].run()
	c.eventually("the unclean replica to be accepted", func() bool { return cs[0].count(wire.ChunkAccept) > 0 })
	got := a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	for _, r := range got.Replicas {
		if r.Joining != (r.Server != uint32(cs[0].id)) {
			t.Errorf("server %d, joining %t, after server %d was accepted", r.Server, r.Joining, cs[0].id)
		}
	}
	cs[1].run()
	cs[2].run()
	c.eventually("the others to follow", func() bool { return c.leader().status().Degraded == 0 })
	if cs[1].count(wire.ChunkJoin) == 0 || cs[2].count(wire.ChunkJoin) == 0 {
		t.Error("a replica that was absent is in sync without having joined")
	}
}

// A replica that restarted before it was told of its promotion neither serves nor is it a source.
func TestMissedPromotionAmongUncleanReplicas(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	cs[0].crash(chunk.Id, func(i *msg.ChunkInfo) { i.Joining = true })
	cs[0].mu.Lock()
	cs[0].refuse[wire.ChunkPromote] = fserr.NotReady
	cs[0].mu.Unlock()
	cs[1].crash(chunk.Id, unclean)
	cs[2].crash(chunk.Id, unclean)
	cs[0].run()
	c.eventually("the promotion to be refused", func() bool { return cs[0].count(wire.ChunkPromote) > 0 })
	cs[1].run()
	cs[2].run()
	c.eventually("the replica to join again", func() bool { return cs[0].count(wire.ChunkJoin) > 0 })
	if cs[0].count(wire.ChunkAccept) > 0 || cs[1].count(wire.ChunkAccept)+cs[2].count(wire.ChunkAccept) != 1 {
		t.Error("not one of the unclean replicas was accepted")
	}
}

func TestUncleanReplicaThatWasDroppedIsRepaired(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { patient(o); o.UncleanWait = time.Hour })
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	chunk := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	cs[1].halt()
	cs[0].crash(chunk.Id, unclean)
	cs[0].run()
	c.eventually("the unclean replica to be reported", cs[0].isReady)
	a.must(a.change(&msg.DropReplica{Ino: ino, Server: uint32(cs[0].id), Chunk: chunk.Id, Epoch: chunk.Epoch, Reason: "test", Count: 1}))
	cs[1].run()
	c.eventually("the dropped replica to be rebuilt", func() bool { return c.leader().status().Degraded == 0 })
	if got := a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})).GetLayout().Chunks[0]; len(got.Replicas) != 3 {
		t.Errorf("after the repair: %v", got)
	}
}

// A server that was given up may come back and still answer reads of the epoch that it knows.
func TestLeaderCallsLayoutsBackBeforeItDropsAReplica(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(o *Options) { dying(o); o.LostGrace = 500 * time.Millisecond })
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1}))
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ}))
	replicas := func() []*msg.Replica {
		return a.must(a.read(&msg.GetLayout{Ino: ino, Count: 1})).GetLayout().Chunks[0].Replicas
	}
	cs[2].halt()
	c.eventually("the lost server to be given up", func() bool { return len(replicas()) == 2 })
	if a.calls(msg.Callback_LAYOUT) != 1 || b.calls(msg.Callback_LAYOUT) != 1 {
		t.Errorf("the holders were called back %d and %d times for a lost server", a.calls(msg.Callback_LAYOUT), b.calls(msg.Callback_LAYOUT))
	}
	size := uint64(100000)
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	size = 5000
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	cs[1].mu.Lock()
	cs[1].refuse[wire.ChunkPunch] = fserr.IO
	cs[1].mu.Unlock()
	before := b.calls(msg.Callback_LAYOUT)
	a.close() // the leader punches in its place
	c.eventually("the tail to be punched", func() bool {
		pending := false
		c.leader().fsm.view(func(st *state.State) { st.Punching(func(id.Ino) bool { pending = true; return false }) })
		return !pending
	})
	if got := b.calls(msg.Callback_LAYOUT); got == before {
		t.Error("the holder was not called back for a replica that did not punch")
	}
}

func TestLeaderChangeKeepsSessionsAndServers(t *testing.T) {
	c := newCluster(t, 3, nil)
	for range 3 {
		newChunks(c)
	}
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1}))
	c.kill(c.leaderIndex())
	if m := b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})).GetOpen().Mode; m != msg.Mode_SHARED_WRITE {
		t.Errorf("mode beside a holder of the earlier leader's time: %v", m)
	}
	if a.calls(msg.Callback_LEASE) == 0 { // each leader that the open came to has called it back
		t.Error("no recall of the holder")
	}
	a.must(a.change(&msg.AllocChunk{Ino: ino, First: 1, Count: 1}))
}

// TestTruncateIsToldTwice: the other holders are called back before the size is set, and again when it is: one that asked for the size in between was told
// the old one, and would go on believing it.
func TestTruncateIsToldTwice(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE}))
	size := uint64(1 << 20)
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	var mu sync.Mutex
	var seen []string
	b.answer(func(cb *msg.Callback) *msg.CallbackReply {
		var now uint64
		c.leader().fsm.view(func(st *state.State) {
			if in, ok := st.Inode(id.Ino(ino)); ok {
				now = in.Size
			}
		})
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%v at size %d from %d", cb.Kind, now, cb.Offset))
		return &msg.CallbackReply{Keep: msg.Want_WANT_WRITE}
	})
	size = 4096
	a.must(a.change(&msg.SetAttr{Ino: ino, Size: &size}))
	mu.Lock()
	defer mu.Unlock()
	want := []string{"LAYOUT at size 1048576 from 0", "INVALIDATE at size 4096 from 4096"}
	if !slices.Equal(seen, want) {
		t.Errorf("called back %q, want %q", seen, want)
	}
}
