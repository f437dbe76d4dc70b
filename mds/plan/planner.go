package plan

import (
	"cmp"
	"fmt"
	"slices"
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
	Joins        int    // of them, that copy something; negative: none; default all
	Bytes        uint64 // that they copy; the first one may be larger; default no limit
	PerServer    int    // rebuilds from or to one server, those under way (ServerView.Load) included; default 2
	Reserve      uint64 // bytes that a server keeps free at most, see KeepsFree; default one chunk
	Scan         int    // degraded chunks looked at; default 4,096
	Sweep        int    // other chunks looked at; default 65,536
	NoBackground bool   // nothing less pressing than Tidy
}

// improveShare is the part of the joins that may be of the class Improve, but one always may.
const improveShare = 4

func (b Budget) orDefault() Budget {
	for _, x := range []struct {
		v   *int
		def int
	}{{&b.Actions, 16}, {&b.PerServer, 2}, {&b.Scan, 4096}, {&b.Sweep, 65536}} {
		if *x.v == 0 {
			*x.v = x.def
		}
	}
	if b.Joins == 0 || b.Joins > b.Actions {
		b.Joins = b.Actions
	}
	if b.Reserve == 0 {
		b.Reserve = chunk.Size
	}
	return b
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
	Warnings []Warning // what cannot be as attributes say
	Swept    bool      // the sweep has come to its end, so all chunks have been looked at
}

// Warning is something that the planner met and cannot mend.
type Warning struct {
	Text   string     // for people
	Chunk  id.ChunkID // an example
	Chunks int        // seen in this call
}

// What a Planner remembers is bounded: of more, the rest is not remembered.
const (
	maxMoves   = 1 << 16
	maxWriters = 1 << 16
)

// localAfter is how long a host must have written a file before replicas follow it.
const localAfter = time.Minute

// Planner plans what Place does not. See the package's description.
type Planner struct {
	cursor   id.ChunkID // the last chunk that the sweep has looked at
	surplus  id.ChunkID // where the next look at chunks with too many replicas begins
	degraded degradedAt
	work     map[id.ServerID]work
	moves    map[id.ChunkID]move
	writers  map[id.Ino]writer
}

// degradedAt is a place in the order of degraded chunks.
type degradedAt struct {
	sync  int
	chunk id.ChunkID
}

// move is a replica that is to leave From when To is in sync.
type move struct {
	from, to id.ServerID
	bytes    uint64
}

// writer is which host has written a file since when.
type writer struct {
	host  string
	since time.Duration
	seen  time.Duration
}

// NewPlanner returns a planner that has looked at nothing yet.
func NewPlanner() *Planner {
	return &Planner{work: map[id.ServerID]work{}, moves: map[id.ChunkID]move{}, writers: map[id.Ino]writer{}}
}

// round is one call of Next.
type round struct {
	*Planner
	f        *fleet
	in       Input
	limit    Budget
	out      []Action
	joins    int
	bytes    uint64
	improves int
	tries    int
	warned   map[string]*Warning
	done     map[id.ChunkID]bool // planned in this call
}

// Next returns the next steps.
func (p *Planner) Next(in Input) Plan {
	if in.Hold == nil {
		in.Hold = func(*state.Chunk) Hold { return HoldNone }
	}
	if in.Bytes == nil {
		in.Bytes = func(c *state.Chunk) uint64 { return insideFile(in.State, c) }
	}
	r := &round{Planner: p, in: in, limit: in.Budget.orDefault(), warned: map[string]*Warning{}, done: map[id.ChunkID]bool{}}
	r.f = newFleet(in.State, in.Servers, r.limit.PerServer, r.limit.Reserve, p.work)
	r.underWay()
	r.restore()
	r.tidy()
	swept := false
	if !in.Budget.NoBackground {
		swept = r.sweep()
	}
	p.remember(r.f)
	slices.SortStableFunc(r.out, func(a, b Action) int { return cmp.Compare(a.Class, b.Class) })
	out := Plan{Actions: r.out, Swept: swept}
	for _, w := range r.warned {
		out.Warnings = append(out.Warnings, *w)
	}
	slices.SortFunc(out.Warnings, func(a, b Warning) int { return cmp.Compare(a.Text, b.Text) })
	return out
}

// remember keeps what servers have had to do, so that the next call goes on from there.
func (p *Planner) remember(f *fleet) {
	clear(p.work)
	for _, x := range f.all {
		if x.Live {
			under := uint64(x.Load) * chunk.Size // is counted anew
			p.work[x.ID] = x.work.since(work{under, under})
		}
	}
}

// underWay takes moves into account that an earlier call planned and that have not come to their end.
func (r *round) underWay() {
	for k, m := range r.moves {
		c, ok := r.in.State.ChunkByID(k)
		if ok {
			_, from := c.Find(m.from)
			_, to := c.Find(m.to)
			ok = from && (to || r.in.Hold(c) == HoldAll)
		}
		if !ok {
			delete(r.moves, k)
		} else if x := r.f.find(m.from); x != nil {
			x.in -= int64(m.bytes)
		}
	}
}

// full reports whether the budget is used up.
func (r *round) full() bool { return len(r.out) >= r.limit.Actions }

// busy reports whether nothing more can be copied in this call.
func (r *round) busy() bool {
	return r.full() || r.joins >= r.limit.Joins || !r.f.idle() && len(r.f.stale) == 0
}

// mayImprove reports whether another step of the class Improve is in the budget.
func (r *round) mayImprove() bool { return r.improves < max(r.limit.Joins/improveShare, 1) }

// fits reports whether so many bytes more are in the budget.
func (r *round) fits(bytes uint64) bool {
	return r.limit.Bytes == 0 || r.joins == 0 || r.bytes+bytes <= r.limit.Bytes
}

func (r *round) add(a Action) {
	r.out = append(r.out, a)
	r.done[a.Chunk] = true
}

// join plans that target gets a copy from source.
func (r *round) join(c *state.Chunk, target, source *server, class Class, reason Reason, from *server) bool {
	a := Action{Chunk: c.ID, Kind: Join, Target: target.ID, Source: source.ID, Class: class, Reason: reason, Bytes: r.in.Bytes(c)}
	if !r.fits(a.Bytes) || r.joins >= r.limit.Joins {
		return false
	}
	r.joins++
	if from != nil {
		a.From = from.ID
		from.in -= int64(a.Bytes)
		if len(r.moves) < maxMoves {
			r.moves[c.ID] = move{from.ID, target.ID, a.Bytes}
		}
	}
	r.bytes += a.Bytes
	r.f.charge(source, target, a.Bytes)
	r.add(a)
	return true
}

func (r *round) warn(c *state.Chunk, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w := r.warned[text]
	if w == nil {
		w = &Warning{Text: text, Chunk: c.ID}
		r.warned[text] = w
	}
	w.Chunks++
}

// writing returns the host that alone writes the file.
func (r *round) writing(ino id.Ino) string { return soleWriter(r.in.State, ino) }

// settled returns the host that alone writes the file and has done so for a while, if there are chunk servers on it.
func (r *round) settled(ino id.Ino) string {
	host := r.writing(ino)
	if host == "" || len(r.f.byHost[host]) == 0 {
		delete(r.writers, ino)
		return ""
	}
	w, ok := r.writers[ino]
	if !ok || w.host != host {
		if len(r.writers) >= maxWriters && !ok {
			return ""
		}
		w = writer{host: host, since: r.in.Now}
	}
	w.seen = r.in.Now
	r.writers[ino] = w
	if r.in.Now-w.since < localAfter {
		return ""
	}
	return host
}

// insideFile returns how many bytes of the chunk are inside the file's size.
func insideFile(s *state.State, c *state.Chunk) uint64 {
	n, ok := s.Inode(c.Ino)
	from := uint64(c.Index()) * chunk.Size
	if !ok || n.Size <= from {
		return 0
	}
	return min(n.Size-from, chunk.Size)
}
