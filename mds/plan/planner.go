package plan

import (
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/state"
)

// Hold says how far a chunk is to be left alone.
type Hold uint8

const (
	HoldNone  Hold = iota // do what it needs
	HoldMoves             // no server that has no copy of it may get one yet: who has left may be back at once
	HoldAll               // nothing: it is being worked on, or that has failed lately
)

// Budget bounds what one call returns and looks at.
type Budget struct {
	Actions      int    // steps; default 16
	Bytes        uint64 // that they copy; the first one may be larger; default no limit
	PerServer    int    // rebuilds from or to one server, those under way (ServerView.Load) included; default 2
	Reserve      uint64 // bytes that a server keeps free; default one chunk
	Scan         int    // degraded chunks looked at; default 4,096
	Sweep        int    // other chunks looked at; default 65,536
	NoBackground bool   // nothing less pressing than Tidy
}

func (b Budget) limits() Limits {
	return Limits{Actions: b.Actions, PerServer: b.PerServer, Reserve: b.Reserve, Scan: b.Scan}.orDefault()
}

// Input is what a call of Next works from.
type Input struct {
	State   *state.State // a clone: it must not change meanwhile
	Servers []ServerView
	Budget  Budget
	Now     time.Duration               // on a clock that never goes back
	Hold    func(c *state.Chunk) Hold   // nil: HoldNone for all
	Bytes   func(c *state.Chunk) uint64 // how much of a chunk a rebuild copies; nil: what is inside the file's size
}

// Plan is what a call of Next returns.
type Plan struct {
	Actions  []Action  // most pressing first
	Warnings []Warning // what cannot be as attributes say, one for each kind and failure domain
}

// Warning is something that the planner met and cannot mend.
type Warning struct {
	Text   string     // for people
	Chunk  id.ChunkID // an example
	Chunks int        // seen in this call
}

// Planner plans what Place does not. See the package's description.
type Planner struct{}

// NewPlanner returns a planner that has looked at nothing yet.
func NewPlanner() *Planner { return &Planner{} }

// Next returns the next steps.
func (p *Planner) Next(in Input) Plan {
	if in.Hold == nil {
		in.Hold = func(*state.Chunk) Hold { return HoldNone }
	}
	if in.Bytes == nil {
		in.Bytes = func(c *state.Chunk) uint64 { return within(in.State, c) }
	}
	views := make(map[id.ServerID]*ServerView, len(in.Servers))
	for i := range in.Servers {
		views[in.Servers[i].ID] = &in.Servers[i]
	}
	busy := func(k id.ChunkID) bool {
		c, ok := in.State.ChunkByID(k)
		return !ok || in.Hold(c) == HoldAll
	}
	var out Plan
	var bytes uint64
	for _, a := range Repair(in.State, in.Servers, in.Budget.limits(), busy) {
		c, ok := in.State.ChunkByID(a.Chunk)
		if !ok {
			continue
		}
		a.Class, a.Reason = pressing(in.State, c)
		r, member := c.Find(a.Target)
		v := views[a.Target]
		has := member || v != nil && v.Stale != nil && v.Stale(c.ID)
		if a.Kind == Join && !has && in.Hold(c) == HoldMoves {
			continue
		}
		if a.Kind == Drop {
			a.Class, a.Reason = Tidy, JoiningLost
		} else if a.Bytes = in.Bytes(c); member && r.Joining && c.InSync() == c.Norm() {
			a.Reason = NotRebuilt
		}
		if bytes += a.Bytes; in.Budget.Bytes > 0 && bytes > in.Budget.Bytes && len(out.Actions) > 0 {
			break
		}
		out.Actions = append(out.Actions, a)
	}
	return out
}

// pressing returns how pressing it is that a chunk gets another replica, and why.
func pressing(s *state.State, c *state.Chunk) (Class, Reason) {
	switch n := c.InSync(); {
	case n == 1 && c.Norm() > 1:
		return Urgent, LastReplica
	case n < int(s.Policy(c.Ino).Min):
		return Urgent, BelowMin
	case n < c.Norm():
		return Restore, BelowNorm
	}
	return Restore, NotRebuilt
}

// within returns how many bytes of the chunk are inside the file's size.
func within(s *state.State, c *state.Chunk) uint64 {
	n, ok := s.Inode(c.Ino)
	from := uint64(c.Index()) * chunk.Size
	if !ok || n.Size <= from {
		return 0
	}
	return min(n.Size-from, chunk.Size)
}
