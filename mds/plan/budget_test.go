package plan

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/state"
)

// TestSweepGoesOn: with little to look at in a call everything is seen in the end, and a chunk that nothing can be done for holds nobody up.
func TestSweepGoesOn(t *testing.T) {
	w := newWorld(t, 9)
	for i := range 8 {
		w.server(fmt.Sprint("h", i), "", 0, 4000)
	}
	for range 50 {
		w.chunk(3, 8) // which is dead: nobody can help
	}
	for range 100 {
		w.chunk(3, 1, 2, 3)
	}
	late := w.chunk(3, 1, 2)
	w.view(8).Live = false
	w.view(1).Draining = true
	w.budget.Sweep, w.budget.Scan, w.budget.Actions = 7, 10, 5
	for range 400 {
		w.round()
	}
	w.each(func(c *state.Chunk, on []*ServerView) {
		for _, v := range on {
			if v.ID == 1 {
				t.Errorf("chunk %v is still on cs1", c.ID)
			}
		}
	})
	if c, _ := w.s.ChunkByID(late); c.InSync() != 3 {
		t.Errorf("chunk %v has %d in sync", late, c.InSync())
	}
}

// TestBudget: no more bytes and no more rebuilds of a server than allowed, most pressing first.
func TestBudget(t *testing.T) {
	w := newWorld(t, 9)
	for i := range 8 {
		w.server(fmt.Sprint("h", i), "", 0, 4000)
	}
	for i := range 40 {
		w.chunk(3, w.random(1+i%2)...)
	}
	w.measure()
	b := Budget{Actions: 100, PerServer: 2, Bytes: 5 * chunk.Size}
	out := w.p.Next(Input{State: w.s, Servers: w.views, Budget: b}).Actions
	if len(out) != 5 {
		t.Fatalf("%d actions in %d bytes", len(out), b.Bytes)
	}
	for _, a := range out {
		if a.Class != Urgent {
			t.Errorf("%+v before those that are urgent", a)
		}
	}
	b.Bytes = 0
	load := map[id.ServerID]int{}
	out = w.p.Next(Input{State: w.s, Servers: w.views, Budget: b}).Actions
	for _, a := range out {
		load[a.Source]++
		load[a.Target]++
	}
	for k, n := range load {
		if n > 2 {
			t.Errorf("%v has %d rebuilds", k, n)
		}
	}
	if len(out) < 7 {
		t.Errorf("%d actions for 8 servers with 2 rebuilds each", len(out))
	}
	// Without copies there is still what is in the way.
	x := w.chunk(1, 1, 2)
	b.Joins = -1
	if out := w.p.Next(Input{State: w.s, Servers: w.views, Budget: b}).Actions; len(out) != 1 || out[0].Chunk != x || out[0].Kind != Remove {
		t.Errorf("without joins: %+v", out)
	}
	b.Joins = 3
	if out := w.p.Next(Input{State: w.s, Servers: w.views, Budget: b}).Actions; len(out) != 4 {
		t.Errorf("with 3 joins: %+v", out)
	}
	b.Joins, b.NoBackground = 0, true
	w.view(1).Draining = true
	for _, a := range w.p.Next(Input{State: w.s, Servers: w.views, Budget: b}).Actions {
		if a.Class > Tidy {
			t.Errorf("%+v, though only what is pressing was asked for", a)
		}
	}
}

// TestShare: one step at a time, all survivors do the same in the end.
func TestShare(t *testing.T) {
	w := newWorld(t, 11)
	const n = 12
	for i := range n {
		w.server(fmt.Sprint("h", i), "", 0, 4000)
	}
	for range 3000 {
		w.chunk(3, w.random(3)...)
	}
	w.lose(7)
	w.budget = Budget{Actions: 16, PerServer: 2}
	in, out := map[id.ServerID]int{}, map[id.ServerID]int{}
	for range 100000 {
		w.measure()
		plan := w.p.Next(Input{State: w.s.Clone(), Servers: w.views, Budget: w.budget, Now: time.Second})
		if len(plan.Actions) == 0 || plan.Actions[0].Class > Restore {
			break
		}
		for _, a := range plan.Actions {
			c, _ := w.s.ChunkByID(a.Chunk)
			in[a.Target]++
			out[a.Source]++
			w.do(c, a)
		}
	}
	w.whole(3)
	low, high := math.MaxInt, 0
	for _, v := range w.views {
		if v.Live {
			low, high = min(low, in[v.ID]+out[v.ID]), max(high, in[v.ID]+out[v.ID])
		}
	}
	if float64(high-low) > 0.1*float64(high+low)/2 {
		t.Errorf("a survivor does between %d and %d", low, high)
	}
	t.Logf("work of a survivor: %d to %d", low, high)
}

// TestSlow: slow servers are taken only where there is no other.
func TestSlow(t *testing.T) {
	w := newWorld(t, 1)
	for i := range 4 {
		w.server(fmt.Sprint("h", i), "", 0, 4000)
	}
	w.chunk(2, 1)
	w.chunk(3, 2, 3)
	w.view(4).Slow, w.view(3).Slow = true, true
	w.measure()
	for _, a := range w.p.Next(Input{State: w.s, Servers: w.views}).Actions {
		switch a.Chunk {
		case 1:
			if a.Target != 2 {
				t.Errorf("chunk 1 goes to %v", a.Target)
			}
		case 2:
			if a.Target != 1 || a.Source != 2 {
				t.Errorf("chunk 2 goes from %v to %v", a.Source, a.Target)
			}
		}
	}
	w.settle(100)
	w.each(func(c *state.Chunk, _ []*ServerView) {
		if c.InSync() != c.Norm() {
			t.Errorf("chunk %v has %d in sync of %d", c.ID, c.InSync(), c.Norm())
		}
	})
}

// TestDeterministic: the same calls have the same answers.
func TestDeterministic(t *testing.T) {
	w := newWorld(t, 21)
	for i := range 12 {
		w.server(fmt.Sprint("h", i/2), fmt.Sprint("r", i/4), uint32(i%2), 100)
	}
	for range 200 {
		w.chunk(3, w.random(1+w.rand.IntN(3))...)
	}
	w.policy(state.Policy{Norm: 3, Min: 2, Tier: 1, Domain: state.Rack})
	other := NewPlanner()
	for range 60 {
		w.measure()
		in := Input{State: w.s.Clone(), Servers: w.views, Now: w.now + time.Second}
		again := other.Next(in)
		in.Servers = slices.Clone(w.views)
		slices.Reverse(in.Servers)
		got := w.p.Next(in)
		if !slices.Equal(got.Actions, again.Actions) || !slices.Equal(got.Warnings, again.Warnings) {
			t.Fatalf("got %+v, then %+v", got, again)
		}
		for _, a := range got.Actions {
			c, _ := w.s.ChunkByID(a.Chunk)
			w.do(c, a)
		}
	}
}
