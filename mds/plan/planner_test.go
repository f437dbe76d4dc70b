package plan

import (
	"fmt"
	"slices"
	"testing"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// seeds runs fn with worlds of different seeds.
func seeds(t *testing.T, n uint64, fn func(w *world)) {
	for seed := range n {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { fn(newWorld(t, seed)) })
	}
}

// TestNextClasses: the class and the reason follow from how many replicas are left.
func TestNextClasses(t *testing.T) {
	s, views := cluster(4, 1)
	alloc(s, 1, 1)
	alloc(s, 2, 1, 2)
	want := map[int]Action{
		1: {Class: Urgent, Reason: LastReplica},
		2: {Class: Restore, Reason: BelowNorm},
	}
	got := NewPlanner().Next(Input{State: s, Servers: views, Bytes: func(*state.Chunk) uint64 { return 7 }}).Actions
	if len(got) != 2 {
		t.Fatalf("got %+v", got)
	}
	for _, a := range got {
		w := want[int(a.Chunk)]
		if a.Kind != Join || a.Class != w.Class || a.Reason != w.Reason || a.Bytes != 7 {
			t.Errorf("got %+v, want %+v", a, w)
		}
	}
	hold := func(c *state.Chunk) Hold {
		if c.ID == 1 {
			return HoldAll
		}
		return HoldMoves
	}
	if got := NewPlanner().Next(Input{State: s, Servers: views, Hold: hold}).Actions; len(got) != 0 {
		t.Errorf("held back, yet %+v", got)
	}
	views[3].Stale = func(c id.ChunkID) bool { return c == 2 }
	if got := NewPlanner().Next(Input{State: s, Servers: views, Hold: hold}).Actions; len(got) != 1 || got[0].Target != 4 {
		t.Errorf("an old copy is not used: %+v", got)
	}
}

// TestRepairRandom: whatever is lost, chunks become whole, apart, and then nothing is done any more.
func TestRepairRandom(t *testing.T) {
	seeds(t, 6, func(w *world) {
		w.lazy = w.rand.IntN(2) == 0
		racks := 4 + w.rand.IntN(3)
		for i := range racks * 4 {
			w.server(fmt.Sprint("h", i/2), fmt.Sprint("r", i/4), 0, 400)
		}
		level := state.Domain(1 + w.rand.IntN(3)) // disk, host, rack
		w.policy(state.Policy{Norm: 3, Min: 2, Domain: level})
		for range 300 {
			w.chunk(3, w.random(3)...)
		}
		w.settle(2000)
		w.whole(3)
		w.apart(level)
		lost := id.ServerID(1 + w.rand.IntN(len(w.views)))
		w.lose(lost)
		w.settle(2000)
		w.whole(3)
		w.apart(level)
		w.back(lost)
		for range 2 { // while it fills up again
			w.settle(2000)
		}
		w.whole(3)
		w.apart(level)
	})
}

// TestNorms: replicas changed from 3 to 2 to 1 and back.
func TestNorms(t *testing.T) {
	seeds(t, 4, func(w *world) {
		for i := range 9 {
			w.server(fmt.Sprint("h", i), "", 0, 400)
		}
		for range 100 {
			w.chunk(3, w.random(3)...)
		}
		for _, norm := range []uint32{2, 1, 3, 1, 5, 3} {
			w.policy(state.Policy{Norm: norm, Min: 1})
			w.settle(2000)
			w.whole(int(norm))
			w.apart(state.Host)
		}
	})
}

// TestDrain: a drained server loses all it has, and only that moves; a host that is drained likewise.
func TestDrain(t *testing.T) {
	seeds(t, 4, func(w *world) {
		for i := range 12 {
			w.server(fmt.Sprint("h", i/2), "", 0, 400)
		}
		for range 200 {
			w.chunk(3, w.random(3)...)
		}
		w.settle(2000)
		had := 0
		w.each(func(_ *state.Chunk, on []*ServerView) {
			for _, v := range on {
				if v.Host == "h0" {
					had++
				}
			}
		})
		w.view(1).Draining, w.view(2).Draining = true, true
		moved := w.settle(2000)
		w.whole(3)
		w.apart(state.Host)
		w.each(func(c *state.Chunk, on []*ServerView) {
			for _, v := range on {
				if v.Host == "h0" {
					w.t.Fatalf("chunk %v is still on %v", c.ID, v.ID)
				}
			}
		})
		if moved != had || w.done[ServerDrained] != had {
			w.t.Errorf("%d replicas moved, %d for the drain; there were %d", moved, w.done[ServerDrained], had)
		}
	})
}

// TestStandby: a server on standby gets nothing and keeps what it has.
func TestStandby(t *testing.T) {
	w := newWorld(t, 1)
	for i := range 5 {
		w.server(fmt.Sprint("h", i), "", 0, 4000)
	}
	c := w.chunk(3, 1, 2, 3)
	d := w.chunk(3, 2, 3)
	w.view(1).Standby = true
	w.settle(100)
	w.whole(3)
	if x, _ := w.s.ChunkByID(c); x.Len() != 3 || w.joins != 1 {
		t.Errorf("%d replicas copied", w.joins)
	}
	if x, _ := w.s.ChunkByID(d); x.Len() == 3 {
		if _, ok := x.Find(1); ok {
			t.Error("a replica was put on a server on standby")
		}
	}
}

// TestTier: replicas go where the attribute says, to the next tier while there is no room, and back.
func TestTier(t *testing.T) {
	seeds(t, 4, func(w *world) {
		for i := range 12 {
			w.server(fmt.Sprint("h", i), "", uint32(i%3), 400)
		}
		for range 100 {
			w.chunk(2, w.random(2)...)
		}
		on := func(tier uint32) (n int) {
			w.each(func(_ *state.Chunk, on []*ServerView) {
				for _, v := range on {
					if v.Tier == tier {
						n++
					}
				}
			})
			return n
		}
		w.policy(state.Policy{Norm: 2, Min: 1, Tier: 2}) // tier 1
		w.settle(2000)
		if n := on(1); n != 200 {
			w.t.Fatalf("%d replicas of 200 on tier 1", n)
		}
		// Servers of tier 1 shrink: new chunks spill, and those that are there stay.
		for i := range w.views {
			if v := &w.views[i]; v.Tier == 1 {
				v.Total -= v.Free - 1
			}
		}
		spilled := w.chunk(2, 1) // to be restored
		w.settle(2000)
		w.whole(2)
		x, _ := w.s.ChunkByID(spilled)
		for i := range x.Len() {
			if w.view(x.Replica(i).Server).Tier == 1 {
				w.t.Errorf("a replica on tier 1, which is full")
			}
		}
		if n := on(1); n != 200 {
			w.t.Fatalf("%d replicas of 200 on tier 1 when it got full", n)
		}
		// There is room again.
		for i := range w.views {
			if v := &w.views[i]; v.Tier == 1 {
				v.Total = 400 * chunk.Size
			}
		}
		w.settle(2000)
		if n := on(1); n != 202 {
			w.t.Fatalf("%d replicas of 202 on tier 1 when it had room again", n)
		}
		// A server moves to another tier: what it has leaves.
		for i := range w.views {
			if v := &w.views[i]; v.ID == 2 {
				v.Tier = 3
			}
		}
		w.settle(2000)
		if n := on(1); n != 202 {
			w.t.Fatalf("%d replicas of 202 on tier 1 when a server had left it", n)
		}
		w.policy(state.Policy{Norm: 2, Min: 1, Tier: state.AnyTier})
		moved := w.settle(2000)
		if moved > 0 && w.done[UnevenFill] == 0 {
			w.t.Errorf("%d replicas moved though any tier is right", moved)
		}
	})
}

// TestPrefer: a preferred host gets one replica of each chunk.
func TestPrefer(t *testing.T) {
	w := newWorld(t, 3)
	for i := range 9 {
		w.server(fmt.Sprint("h", i/2), "", 0, 4000)
	}
	for range 60 {
		w.chunk(3, w.random(3)...)
	}
	w.policy(state.Policy{Norm: 3, Min: 2, Prefer: "h1,h4"})
	w.settle(2000)
	w.whole(3)
	w.apart(state.Host)
	w.each(func(c *state.Chunk, on []*ServerView) {
		for _, h := range []string{"h1", "h4"} {
			if !slices.ContainsFunc(on, func(v *ServerView) bool { return v.Host == h }) {
				t.Fatalf("chunk %v has none on %s", c.ID, h)
			}
		}
	})
}

// TestLocality: replicas follow the host that has the file open for writing, not at once, and not when others have it too.
func TestLocality(t *testing.T) {
	w := newWorld(t, 3)
	for i := range 6 {
		w.server(fmt.Sprint("h", i), "", 0, 4000)
	}
	for range 20 {
		w.chunk(2, 1, 2)
	}
	w.policy(state.Policy{Norm: 2, Min: 1})
	local := func(host string) (n int) {
		w.each(func(_ *state.Chunk, on []*ServerView) {
			if slices.ContainsFunc(on, func(v *ServerView) bool { return v.Host == host }) {
				n++
			}
		})
		return n
	}
	open := func(session uint64, host string) {
		w.apply(&event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: session, Host: host, Nonce: []byte(host)}}})
		w.apply(&event.Event{Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
			Entries: []*event.LeaseSet_Entry{{Session: session, Ino: 2, Want: uint32(msg.Want_WANT_WRITE)}}}}})
	}
	open(1, "h4")
	w.round()
	if w.joins != 0 {
		t.Fatalf("%d replicas copied at once", w.joins)
	}
	w.now += localAfter
	w.budget.Actions = 8
	w.round()
	if w.joins == 0 || w.joins > w.budget.Actions/improveShare {
		t.Fatalf("%d replicas copied in one call", w.joins)
	}
	w.settle(2000)
	w.whole(2)
	if n := local("h4"); n != 20 {
		t.Errorf("%d chunks of 20 on the host that writes", n)
	}
	before := w.joins
	open(2, "h5") // several write: nothing is local
	w.now += 2 * localAfter
	w.settle(2000)
	if w.joins != before {
		t.Errorf("%d replicas copied for a file that several write", w.joins-before)
	}
	// The first one leaves: the guest has moved.
	w.apply(&event.Event{Body: &event.Event_SessionClose{SessionClose: &event.SessionClose{Id: 1, Kind: event.SessionClose_CLEAN}}})
	w.round()
	w.now += localAfter
	w.settle(2000)
	if n := local("h5"); n != 20 {
		t.Errorf("%d chunks of 20 on the host that writes now", n)
	}
}

// TestDomainReturns: while there are too few racks replicas share one, which is said; when a rack comes back they part.
func TestDomainReturns(t *testing.T) {
	w := newWorld(t, 5)
	for i := range 9 {
		w.server(fmt.Sprint("h", i), fmt.Sprint("room1/row1/r", i/3), 0, 4000)
	}
	w.policy(state.Policy{Norm: 3, Min: 2, Domain: state.Rack})
	for range 60 {
		w.chunk(3, 1, 4, 7)
	}
	for k := id.ServerID(7); k <= 9; k++ {
		w.lose(k)
	}
	w.settle(2000)
	w.whole(3)
	w.apart(state.Host)
	if len(w.last.Warnings) != 1 || w.last.Warnings[0].Chunks != 60 {
		t.Errorf("warnings %+v", w.last.Warnings)
	}
	for k := id.ServerID(7); k <= 9; k++ {
		w.back(k)
	}
	moved := w.settle(2000)
	w.whole(3)
	w.apart(state.Rack)
	if moved != 60 || w.done[SharedDomain] != 60 || len(w.last.Warnings) != 0 {
		t.Errorf("%d moved, done %v, warnings %+v", moved, w.done, w.last.Warnings)
	}
}

// TestFewServers: with fewer servers than replicas each has one, and that is said; nothing is done over and over.
func TestFewServers(t *testing.T) {
	w := newWorld(t, 5)
	w.server("h", "", 0, 400)
	w.server("h", "", 0, 400)
	for range 5 {
		w.chunk(3, 1)
	}
	w.settle(100)
	w.whole2(t, 2)
	if len(w.last.Warnings) == 0 {
		t.Error("no warning")
	}
}

func (w *world) whole2(t *testing.T, sync int) {
	w.each(func(c *state.Chunk, _ []*ServerView) {
		if c.InSync() != sync {
			t.Errorf("chunk %v has %d in sync, want %d", c.ID, c.InSync(), sync)
		}
	})
}

// TestRebalance: fill levels come within the band, with no more moves than it takes, and then all is quiet, whatever the sizes of the disks.
func TestRebalance(t *testing.T) {
	seeds(t, 6, func(w *world) {
		w.lazy = w.rand.IntN(2) == 0
		n := 6 + w.rand.IntN(8)
		for i := range n {
			w.server(fmt.Sprint("h", i), "", 0, 200+w.rand.IntN(200))
		}
		first := 3 + w.rand.IntN(n-3) // the others are new
		for range 40 * first {
			var on []id.ServerID
			for _, i := range w.rand.Perm(first)[:2] {
				on = append(on, id.ServerID(i+1))
			}
			w.chunk(2, on...)
		}
		w.policy(state.Policy{Norm: 2, Min: 1})
		w.measure()
		// What has to move at least to bring every server to the mean.
		used, total := 0.0, 0.0
		for _, v := range w.views {
			used += float64(v.Total - v.Free)
			total += float64(v.Total)
		}
		need := 0.0
		for _, v := range w.views {
			need += max(0, float64(v.Total)*used/total-float64(v.Total-v.Free)) / chunk.Size
		}
		failed := w.joins
		moved := w.settle(4000)
		w.whole(2)
		w.apart(state.Host)
		low, high := w.fills()
		mean := used / total
		if low < mean-band-0.01 || high > mean+band+0.01 {
			w.t.Errorf("fill levels %.3f to %.3f, mean %.3f", low, high, mean)
		}
		if limit := 1.1*need + 5; !w.lazy && float64(moved-failed) > limit {
			w.t.Errorf("%d replicas moved, at least %.0f have to", moved, need)
		}
		w.t.Logf("%d servers, %d with data: fill %.3f to %.3f, mean %.3f; %d moved, %.0f had to", n, first, low, high, mean, moved, need)
	})
}

// TestAllFull: where no server has room, what is joining on one and what one has an old copy of is rebuilt there all the same, and nothing else; a
// server that had no room to begin with is not taken out of the reckoning twice.
func TestAllFull(t *testing.T) {
	for _, roomy := range []int{0, 1} {
		w := newWorld(t, 1)
		for i := range 4 {
			w.server(fmt.Sprint("h", i), "", 0, 100)
		}
		for i := range w.views {
			w.views[i].Free = 0
		}
		for i := range roomy {
			w.views[3-i].Free = 100 * chunk.Size
		}
		joining, old, short := w.chunk(3, 1, 2), w.chunk(3, 1, 2), w.chunk(3, 1, 2)
		w.apply(&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: uint64(joining), Server: 3, Epoch: 2}}})
		w.views[2].Stale = func(k id.ChunkID) bool { return k == old }
		got := map[id.ChunkID]id.ServerID{}
		for _, a := range w.p.Next(Input{State: w.s.Clone(), Servers: w.views, Budget: Budget{PerServer: 8}}).Actions {
			if a.Kind != Join {
				t.Errorf("%+v", a)
			}
			got[a.Chunk] = a.Target
		}
		if got[joining] != 3 || got[old] != 3 || got[short] != id.ServerID(4*roomy) {
			t.Errorf("with %d that have room: %v", roomy, got)
		}
	}
}

// TestSmallDisks: what is kept free of a small disk is a part of it, so that it gets a replica which it has room for.
func TestSmallDisks(t *testing.T) {
	for _, x := range []struct {
		total, free uint64 // in chunks
		joins       int
	}{{5, 1, 0}, {5, 2, 1}, {31, 2, 1}, {32, 2, 0}, {48, 3, 0}, {48, 4, 1}, {1000, 4, 0}, {1000, 5, 1}} {
		s, views := cluster(3, 1)
		alloc(s, 1, 1, 2)
		views[2].Total, views[2].Free = x.total*chunk.Size, x.free*chunk.Size
		if got := NewPlanner().Next(Input{State: s, Servers: views, Budget: Budget{Reserve: 4 * chunk.Size}}).Actions; len(got) != x.joins {
			t.Errorf("%d of %d chunks free: %+v, want %d joins", x.free, x.total, got, x.joins)
		}
	}
}
