package plan

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/state"
)

// WhatIfOptions say how a Forecast is made. The zero value works.
type WhatIfOptions struct {
	Rate       uint64                         // bytes/s that all rebuilds together copy; 0: no limit
	ServerRate uint64                         // bytes/s that one server reads for rebuilds, and writes for them; 0: no limit
	Reserve    uint64                         // as in Budget
	MaxFiles   int                            // of Forecast.Files; 0: none
	Bytes      func(*state.Chunk) uint64      // how much of a chunk a rebuild copies; nil: what is inside the file's size
	Stop       func() bool                    // asked now and then: end with ErrStopped; nil: never
	Each       func(c *state.Chunk, a Action) // called with every step; nil: not
}

// ErrStopped is what WhatIf returns when Stop said so.
var ErrStopped = errors.New("plan: stopped")

// Forecast is what would be if servers were lost: what is lost with them, and what repair would do, by the rules that the Planner
// goes by.
type Forecast struct {
	Chunks        uint64 // there are
	Hit           uint64 // with a replica on a lost server
	Gone          Sum    // of which no in-sync replica would be left
	UnderMin      Sum    // that could not be written until something is rebuilt
	Last          uint64 // with one in-sync replica left of several
	Moves         uint64 // replicas to be made
	MoveBytes     uint64 // in them
	Homeless      uint64 // replicas for which there is no server, or no room
	HomelessBytes uint64
	Shared        uint64        // replicas that would share a failure domain against their attribute
	Lost          []Share       // what is on the lost servers
	Survivors     []Share       // what the others would get, and read for it
	Files         []FileLoss    // that would lose chunks, or wait; those that lose most first
	LeftOut       uint64        // files that are not in Files
	ETA           time.Duration // until all is rebuilt; 0: nothing is, or rates are not known
	ByServer      bool          // one server's rate is what it takes so long for, not Rate
	Degraded      bool          // some chunks are degraded already; what they lack is not in here
}

// Sum is chunks, and what is in them.
type Sum struct {
	Chunks, Bytes, Files uint64
}

// Share is what falls to one server. For a lost one, Chunks and Bytes are what it has.
type Share struct {
	Server           ServerView
	Chunks, Bytes    uint64 // that it gets
	Reads, ReadBytes uint64 // that it is copied from
}

// FileLoss is a file that would lose data, or that could not be written everywhere.
type FileLoss struct {
	Ino      id.Ino
	Gone     Sum    // Files is 0
	UnderMin uint64 // chunks
}

// maxFilesCounted bounds the files that are told apart; chunks of more files are counted, the files are not.
const maxFilesCounted = 1 << 20

// stopEvery is after how many chunks Stop is asked.
const stopEvery = 4096

// forecast is a Forecast being made.
type forecast struct {
	Forecast
	f     *fleet
	o     WhatIfOptions
	lost  map[*server]int // where in Forecast.Lost
	share map[*server]int // where in Forecast.Survivors
	files map[id.Ino]*FileLoss
	work  [state.MaxReplicas + 1][]*state.Chunk // by how many in-sync replicas are left
	left  int                                   // chunks until Stop is asked
}

// WhatIf returns what would be if the servers were lost for good at once. It looks at every chunk there is, which takes about a second for
// a few million; s must not change meanwhile.
func WhatIf(s *state.State, views []ServerView, lost []id.ServerID, o WhatIfOptions) (*Forecast, error) {
	if o.Bytes == nil {
		o.Bytes = func(c *state.Chunk) uint64 { return insideFile(s, c) }
	}
	if o.Reserve == 0 {
		o.Reserve = chunk.Size
	}
	views = slices.Clone(views)
	for i := range views {
		v := &views[i]
		v.Stale = nil // whether a copy is old enough to be of use is not known beforehand
		if slices.Contains(lost, v.ID) {
			v.Live, v.Lost = false, true
		}
	}
	w := &forecast{f: newFleet(s, views, math.MaxInt, o.Reserve, nil), o: o,
		lost: map[*server]int{}, share: map[*server]int{}, files: map[id.Ino]*FileLoss{}}
	for _, x := range w.f.all {
		if slices.Contains(lost, x.ID) {
			w.lost[x] = len(w.Lost)
			w.Lost = append(w.Lost, Share{Server: x.ServerView})
		} else {
			w.share[x] = len(w.Survivors)
			w.Survivors = append(w.Survivors, Share{Server: x.ServerView})
		}
	}
	w.Degraded = s.Counts().Degraded > 0
	ok := true
	s.AllChunks(0, func(c *state.Chunk) bool {
		w.look(c)
		ok = w.goOn()
		return ok
	})
	for left := 1; ok && left < len(w.work); left++ { // as repair does: those with fewest replicas first
		for _, c := range w.work[left] {
			w.rebuild(c)
			if ok = w.goOn(); !ok {
				break
			}
		}
	}
	if !ok {
		return nil, ErrStopped
	}
	w.listFiles()
	w.estimate()
	return &w.Forecast, nil
}

func (w *forecast) goOn() bool {
	if w.left--; w.left >= 0 || w.o.Stop == nil {
		return true
	}
	w.left = stopEvery
	return !w.o.Stop()
}

// look counts what the loss does to a chunk.
func (w *forecast) look(c *state.Chunk) {
	w.Chunks++
	hit, left := false, 0
	for i := range c.Len() {
		r := c.Replica(i)
		x := w.f.find(r.Server)
		if x == nil {
			continue
		}
		if at, gone := w.lost[x]; gone {
			hit = true
			w.Lost[at].Chunks++
			w.Lost[at].Bytes += w.o.Bytes(c)
		} else if !r.Joining {
			left++
		}
	}
	if !hit {
		return
	}
	w.Hit++
	want := w.f.wants.of(c.Ino)
	switch {
	case left == 0:
		w.file(c, &w.Gone, func(f *FileLoss, bytes uint64) { f.Gone.Chunks++; f.Gone.Bytes += bytes })
		return
	case left < want.min:
		w.file(c, &w.UnderMin, func(f *FileLoss, _ uint64) { f.UnderMin++ })
	}
	if left == 1 && c.Norm() > 1 {
		w.Last++
	}
	w.work[left] = append(w.work[left], c)
}

// file counts a chunk that is gone or cannot be written.
func (w *forecast) file(c *state.Chunk, sum *Sum, count func(*FileLoss, uint64)) {
	bytes := w.o.Bytes(c)
	sum.Chunks++
	sum.Bytes += bytes
	f := w.files[c.Ino]
	if f == nil {
		if len(w.files) >= maxFilesCounted {
			return
		}
		f = &FileLoss{Ino: c.Ino}
		w.files[c.Ino] = f
	}
	count(f, bytes)
}

// rebuild plans what repair would do for a chunk that has lost replicas.
func (w *forecast) rebuild(c *state.Chunk) {
	m := w.f.members(c)
	for i := m.n - 1; i >= 0; i-- {
		if _, gone := w.lost[m.s[i]]; gone {
			if i < m.sync {
				m.sync--
			}
			m = m.without(i)
		}
	}
	want, bytes := w.f.wants.of(c.Ino), w.o.Bytes(c)
	class, reason := Restore, BelowNorm
	switch {
	case m.sync == 1 && c.Norm() > 1:
		class, reason = Urgent, LastReplica
	case m.sync < want.min:
		class, reason = Urgent, BelowMin
	}
	for m.n < c.Norm() {
		source := w.f.source(&m)
		target, _ := w.f.target(&ask{chunk: c.ID, w: want, m: &m, urgent: true})
		if source == nil || target == nil {
			w.Homeless += uint64(c.Norm() - m.n)
			w.HomelessBytes += bytes * uint64(c.Norm()-m.n)
			return
		}
		w.f.charge(source, target, bytes)
		w.Moves++
		w.MoveBytes += bytes
		to, from := &w.Survivors[w.share[target]], &w.Survivors[w.share[source]]
		to.Chunks++
		to.Bytes += bytes
		from.Reads++
		from.ReadBytes += bytes
		if !w.f.apart(target, &m, want.level) {
			w.Shared++
		}
		m = m.with(target)
		if w.o.Each != nil {
			w.o.Each(c, Action{Chunk: c.ID, Kind: Join, Target: target.ID, Source: source.ID, Class: class, Reason: reason, Bytes: bytes})
		}
	}
}

// listFiles counts files, and lists those that lose most.
func (w *forecast) listFiles() {
	all := make([]*FileLoss, 0, len(w.files))
	for _, f := range w.files {
		if f.Gone.Chunks > 0 {
			w.Gone.Files++
		}
		if f.UnderMin > 0 {
			w.UnderMin.Files++
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *FileLoss) int {
		return cmp.Or(cmp.Compare(b.Gone.Bytes, a.Gone.Bytes), cmp.Compare(b.Gone.Chunks, a.Gone.Chunks), cmp.Compare(b.UnderMin, a.UnderMin),
			cmp.Compare(a.Ino, b.Ino))
	})
	for _, f := range all[:min(len(all), w.o.MaxFiles)] {
		w.Files = append(w.Files, *f)
	}
	w.LeftOut = uint64(len(all) - len(w.Files))
}

// estimate says how long it takes: what all may copy together is one limit, what the server with the most to read or to write can do is another.
func (w *forecast) estimate() {
	var most uint64
	for _, s := range w.Survivors {
		most = max(most, s.Bytes, s.ReadBytes)
	}
	if w.o.Rate > 0 {
		w.ETA = takes(w.MoveBytes, w.o.Rate)
	}
	if w.o.ServerRate > 0 {
		if t := takes(most, w.o.ServerRate); t > w.ETA {
			w.ETA, w.ByServer = t, true
		}
	}
}

// takes returns how long it takes to copy so many bytes.
func takes(bytes, rate uint64) time.Duration {
	return time.Duration(min(float64(bytes)/float64(rate)*float64(time.Second), math.MaxInt64))
}
