package mds

import (
	"slices"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// TestBackAtOnce: a server that a client had a replica on it dropped gets it back as soon as it is heard from, however long repair waits for one that
// is away: whether it kept its connection, made a new one, or failed to do it before.
func TestBackAtOnce(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { patient(o); o.RepairGrace = time.Hour })
	cs := c.chunkServers(4)
	a := newClient(c)
	ino, chunks := a.file("f", 1)
	k := chunks[0]
	victim := k.Replicas[2].Server
	drop := func() {
		t.Helper()
		var epoch uint64
		c.leader().fsm.view(func(st *state.State) {
			x, _ := st.ChunkByID(id.ChunkID(k.Id))
			epoch = uint64(x.Epoch())
		})
		a.must(a.change(&msg.DropReplica{Ino: uint64(ino), Server: victim, Chunk: k.Id, Epoch: epoch, Reason: "test", Count: 1}))
	}
	back := func(how string) {
		t.Helper()
		c.until("the replica to be back, "+how, func(st *state.State) bool {
			x, _ := st.ChunkByID(id.ChunkID(k.Id))
			_, there := x.Find(id.ServerID(victim))
			return there && x.InSync() == 3
		})
	}
	drop()
	back("on its connection")
	cs[victim].halt()
	drop()
	cs[victim].run()
	back("on a new connection")

	// What failed while it was away is not waited out.
	cs[victim].mu.Lock()
	cs[victim].refuse[wire.ChunkRebuild] = fserr.Unavailable
	cs[victim].mu.Unlock()
	drop()
	l := c.lead()
	failed := func() (ok bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		b, ok := l.retry[id.ChunkID(k.Id)]
		ok = ok && b.target == id.ServerID(victim) && len(l.busy) == 0
		if ok {
			b.until += time.Hour
			l.retry[id.ChunkID(k.Id)] = b
		}
		return ok
	}
	c.eventually("a rebuild to fail", failed)
	cs[victim].halt()
	cs[victim].mu.Lock()
	delete(cs[victim].refuse, wire.ChunkRebuild)
	cs[victim].mu.Unlock()
	cs[victim].run()
	back("after what failed")

	// And it is counted, when the server has been told of its promotion.
	c.eventually("all that was rebuilt to be counted", func() bool { return l.s.status().Repair.Rebuilt >= 3 })
	r := l.s.status().Repair
	if r.Failed < 1 || r.CountingMs < 1 || r.Left != 0 || r.EtaMs != 0 {
		t.Errorf("%d rebuilt, %d failed, in %d ms; %d bytes left, for %d ms", r.Rebuilt, r.Failed, r.CountingMs, r.Left, r.EtaMs)
	}
}

// TestGoing: what a server is still to delete is known to the planner, and told.
func TestGoing(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := c.chunkServers(3)
	for _, k := range cs {
		k.mu.Lock()
		k.refuse[wire.ChunkDelete] = fserr.Unavailable
		k.more.Chunks, k.more.Allocated = 4, 4000
		k.mu.Unlock()
	}
	a := newClient(c)
	opened := a.create("f", true)
	a.must(a.change(&msg.AllocChunk{Ino: opened.Attr.Ino, Count: 2}))
	l := c.lead()
	c.eventually("the heartbeats", func() bool { return l.s.status().Servers[0].Allocated == 4000 })
	a.must(a.change(&msg.Remove{Parent: 1, Name: []byte("f")}))
	a.must(a.change(&msg.Release{Ino: opened.Attr.Ino, Lease: opened.GetOpen().Lease}))
	going := func(n uint64) func() bool {
		return func() bool {
			for _, v := range l.views(l.s.fsm.clone()) {
				if v.Going != n {
					return false
				}
			}
			return l.s.status().Servers[1].Going == n
		}
	}
	c.eventually("two of four chunks to be going", going(2000))
	for _, k := range cs {
		k.mu.Lock()
		delete(k.refuse, wire.ChunkDelete)
		k.mu.Unlock()
	}
	c.eventually("them to be gone", going(0))
}

// TestDoubted: a server that a client had a replica on it dropped gets nothing until it is heard from again, live as it may seem.
func TestDoubted(t *testing.T) {
	c := newCluster(t, 1, nil)
	cs := c.chunkServers(4)
	a := newClient(c)
	ino, chunks := a.file("f", 1)
	victim := id.ServerID(chunks[0].Replicas[0].Server)
	l := c.lead()
	c.eventually("it to be there", func() bool { return l.isLive(victim) })
	k := cs[uint32(victim)]
	k.mu.Lock()
	close(k.stop) // no heartbeats from now on; its connection stays
	k.mu.Unlock()
	<-k.beaten
	a.must(a.change(&msg.DropReplica{Ino: uint64(ino), Server: uint32(victim), Chunk: chunks[0].Id, Epoch: chunks[0].Epoch, Reason: "test", Count: 1}))
	seen := false
	for range 10 {
		if !l.isLive(victim) {
			break
		}
		for _, v := range l.views(l.s.fsm.clone()) {
			seen = seen || v.ID == victim && v.Live
		}
		time.Sleep(5 * time.Millisecond)
	}
	// A heartbeat may have been on its way when the others were stopped.
	if n := k.count(wire.ChunkJoin); n > 0 && !seen {
		t.Errorf("it joined %d times", n)
	}
	k.run()
	c.until("the replica to be back", func(st *state.State) bool {
		x, _ := st.ChunkByID(id.ChunkID(chunks[0].Id))
		return x.InSync() == 3
	})
}

// TestSilentIsTold: who has missed heartbeats while others send theirs is told to clients; when most have, nobody is.
func TestSilentIsTold(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.ServerTimeout = 1600 * time.Millisecond })
	cs := c.chunkServers(4)
	l := c.lead()
	quiet := func(s uint32) { // it sends no heartbeats, and keeps its connection
		cs[s].mu.Lock()
		defer cs[s].mu.Unlock()
		close(cs[s].stop)
	}
	quiet(2)
	c.eventually("cs2 to be silent", func() bool { return slices.Equal(l.silent(), []uint32{2}) })
	quiet(3)
	gone := func(s id.ServerID) (age time.Duration) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return bootNow() - l.servers[s].heard
	}
	c.eventually("cs3 to be silent too", func() bool { return gone(3) > time.Second })
	if list := l.silent(); list != nil {
		t.Errorf("%v are called silent, though half of the servers are", list)
	}
	cs[2].run()
	c.eventually("cs3 alone to be silent", func() bool { return slices.Equal(l.silent(), []uint32{3}) })
}
