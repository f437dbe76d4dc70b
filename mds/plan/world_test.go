package plan

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/state"
)

// world is a cluster whose leader does at once, or later, what a Planner says.
type world struct {
	t       *testing.T
	rand    *rand.Rand
	s       *state.State
	p       *Planner
	views   []ServerView
	chunks  uint64
	budget  Budget
	now     time.Duration
	lazy    bool // joins end in a later round, or never and are begun anew
	joining map[id.ChunkID]bool
	joins   int
	done    map[Reason]int
	last    Plan
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 1)), s: state.New(), p: NewPlanner(), joining: map[id.ChunkID]bool{}, done: map[Reason]int{}}
	w.budget = Budget{Actions: 64, PerServer: 1 << 20}
	w.apply(&event.Event{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Perm: 0o755}}})
	w.apply(&event.Event{Body: &event.Event_Create{Create: &event.Create{Parent: 1, Name: []byte("f"), Ino: 2, Type: 1}}})
	size := uint64(1) << 40
	w.apply(&event.Event{Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: 2, Size: &size}}})
	return w
}

func (w *world) apply(ev *event.Event) { w.s.Apply(ev) }

// server adds one that has room for so many chunks.
func (w *world) server(host, rack string, tier uint32, chunks int) id.ServerID {
	n := uint32(w.s.NextServer())
	w.apply(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{
		Id: n, Uuid: fmt.Appendf(nil, "%16d", n), Host: host, Rack: rack, Tier: tier}}})
	w.views = append(w.views, ServerView{ID: id.ServerID(n), Host: host, Rack: rack, Tier: tier, Total: uint64(chunks) * chunk.Size, Live: true})
	return id.ServerID(n)
}

func (w *world) view(k id.ServerID) *ServerView { return &w.views[k-1] }

// chunk adds a chunk of file f on the servers.
func (w *world) chunk(norm int, servers ...id.ServerID) id.ChunkID {
	w.chunks++
	e := &event.ChunkAlloc_Entry{Index: uint32(w.chunks), Id: w.chunks, Epoch: 1}
	for _, v := range servers {
		e.Servers = append(e.Servers, uint32(v))
	}
	w.apply(&event.Event{Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{Ino: 2, Norm: uint32(norm), Chunks: []*event.ChunkAlloc_Entry{e}}}})
	return id.ChunkID(w.chunks)
}

func (w *world) policy(p state.Policy) {
	w.apply(&event.Event{Body: &event.Event_PolicySet{PolicySet: &event.PolicySet{
		Ino: 2, Norm: p.Norm, Min: p.Min, Tier: uint32(p.Tier), Domain: uint32(p.Domain), Prefer: p.Prefer}}})
}

// lose has the cluster give a server up; back has it come back with nothing.
func (w *world) lose(k id.ServerID) {
	w.view(k).Live, w.view(k).Lost = false, true
	w.apply(&event.Event{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: uint32(k)}}})
}

func (w *world) back(k id.ServerID) { w.view(k).Live, w.view(k).Lost = true, false }

// measure sets how full servers are.
func (w *world) measure() {
	for i := range w.views {
		w.views[i].Free = w.views[i].Total
	}
	w.s.AllChunks(0, func(c *state.Chunk) bool {
		for i := range c.Len() {
			v := w.view(c.Replica(i).Server)
			v.Free -= min(v.Free, chunk.Size)
		}
		return true
	})
}

// round asks for the next steps, checks them, and does them. It reports whether there were any.
func (w *world) round() bool {
	w.t.Helper()
	w.measure()
	w.now += time.Second
	w.last = w.p.Next(Input{State: w.s.Clone(), Servers: w.views, Budget: w.budget, Now: w.now})
	plan := w.last
	if len(plan.Actions) > w.budget.Actions {
		w.t.Fatalf("%d actions, budget %d", len(plan.Actions), w.budget.Actions)
	}
	seen := map[id.ChunkID]bool{}
	for i, a := range plan.Actions {
		c, ok := w.s.ChunkByID(a.Chunk)
		if !ok || seen[a.Chunk] {
			w.t.Fatalf("%+v: no such chunk, or twice", a)
		}
		if i > 0 && a.Class < plan.Actions[i-1].Class {
			w.t.Fatalf("%+v after %+v", a, plan.Actions[i-1])
		}
		seen[a.Chunk] = true
		w.done[a.Reason]++
		w.do(c, a)
	}
	return len(plan.Actions) > 0
}

func (w *world) do(c *state.Chunk, a Action) {
	w.t.Helper()
	r, member := c.Find(a.Target)
	live := 0
	for i := range c.InSync() {
		if x := c.Replica(i).Server; w.view(x).Live && x != a.Target {
			live++
		}
	}
	switch a.Kind {
	case Join:
		src, ok := c.Find(a.Source)
		if !ok || src.Joining || !w.view(a.Source).Live || !w.view(a.Target).Live || a.Source == a.Target || member && !r.Joining {
			w.t.Fatalf("join %+v of %v", a, c)
		}
		w.joins++
		w.apply(&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: uint64(a.Chunk), Server: uint32(a.Target), Epoch: uint64(c.Epoch() + 1)}}})
		if !w.lazy || w.rand.IntN(3) > 0 {
			w.apply(&event.Event{Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{Chunk: uint64(a.Chunk), Server: uint32(a.Target), Epoch: uint64(c.Epoch() + 1)}}})
		}
	case Drop, Remove:
		if !member || r.Joining != (a.Kind == Drop) {
			w.t.Fatalf("%+v of %v", a, c)
		}
		if a.Kind == Remove && live < c.Norm() {
			w.t.Fatalf("%+v leaves %d live replicas of %d", a, live, c.Norm())
		}
		w.apply(&event.Event{Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{Ino: uint64(c.Ino), Server: uint32(a.Target),
			Chunks: []*event.ReplicaDrop_Entry{{Index: c.Index(), Epoch: uint64(c.Epoch() + 1)}}}}})
	default:
		w.t.Fatalf("unknown action %+v", a)
	}
}

// settle goes on until nothing is to be done, which has to come after so many rounds. It returns how many replicas were copied.
func (w *world) settle(rounds int) int {
	w.t.Helper()
	before := w.joins
	for range rounds {
		if !w.round() {
			if w.round() {
				continue
			}
			if err := w.s.Check(); err != nil {
				w.t.Fatal(err)
			}
			return w.joins - before
		}
	}
	w.t.Fatalf("not settled after %d rounds; last %+v", rounds, w.last.Actions)
	return 0
}

// each calls fn with every chunk and its servers.
func (w *world) each(fn func(c *state.Chunk, on []*ServerView)) {
	w.s.AllChunks(0, func(c *state.Chunk) bool {
		var on []*ServerView
		for i := range c.Len() {
			on = append(on, w.view(c.Replica(i).Server))
		}
		fn(c, on)
		return true
	})
}

// whole checks that every chunk has so many replicas, all in sync, on live servers.
func (w *world) whole(norm int) {
	w.t.Helper()
	w.each(func(c *state.Chunk, on []*ServerView) {
		if c.InSync() != norm || c.Len() != norm {
			w.t.Fatalf("chunk %v has %d replicas, %d in sync, want %d", c.ID, c.Len(), c.InSync(), norm)
		}
		for _, v := range on {
			if !v.Live {
				w.t.Fatalf("chunk %v is on %v, which is dead", c.ID, v.ID)
			}
		}
	})
}

// apart checks that no chunk has two replicas in one failure domain.
func (w *world) apart(level state.Domain) {
	w.t.Helper()
	w.each(func(c *state.Chunk, on []*ServerView) {
		seen := map[string]bool{}
		for _, v := range on {
			if seen[v.within(level)] {
				w.t.Fatalf("chunk %v has two replicas in %v %q", c.ID, level, v.within(level))
			}
			seen[v.within(level)] = true
		}
	})
}

// fills returns the lowest and the highest fill level.
func (w *world) fills() (low, high float64) {
	w.measure()
	low = 1
	for _, v := range w.views {
		if v.Live {
			f := 1 - float64(v.Free)/float64(v.Total)
			low, high = min(low, f), max(high, f)
		}
	}
	return low, high
}

// random returns n different servers.
func (w *world) random(n int) []id.ServerID {
	var out []id.ServerID
	for _, i := range w.rand.Perm(len(w.views))[:n] {
		out = append(out, w.views[i].ID)
	}
	return out
}
