package throttle

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"varve/internal/id"
)

const (
	// slowWindow looks are remembered, and slowAfter of them must have been late.
	slowWindow = 5
	slowAfter  = 4
	// calmAfter looks in a row must not have been late.
	calmAfter = 15
	// leastMet is how many requests there must be in a look for their p90 to be worth something.
	leastMet = 5
	// lateFloor is what is never late, however fast the others are.
	lateFloor = 30 * time.Millisecond
	// maxSlowShare bounds the slow servers: 1 in so many.
	maxSlowShare = 3
)

// Met is what those who asked a server have waited since the last look.
type Met struct {
	Server   id.ServerID
	Requests uint64
	P90      time.Duration // nine of ten waited no longer
}

// Watch finds slow servers. The zero value has met nothing yet.
type Watch struct{ all map[id.ServerID]*watched }

type watched struct {
	late  uint8 // a bit for each of the last slowWindow looks, the newest lowest
	calm  int   // looks since it was late, while it is slow
	slow  string
	worst time.Duration
}

// Slow says why the server is slow, "" if it is not.
func (w *Watch) Slow(server id.ServerID) string {
	if x := w.all[server]; x != nil {
		return x.slow
	}
	return ""
}

// Step takes a look, about a second after the one before. met has one entry a server at most; servers that are not in members are forgotten. factor is how
// many times what the others take is late; 0: nobody is slow. It returns the servers whose state has changed, by id.
func (w *Watch) Step(members []id.ServerID, met []Met, factor int) (changed []id.ServerID) {
	if w.all == nil {
		w.all = make(map[id.ServerID]*watched)
	}
	seen := make(map[id.ServerID]Met, len(met))
	for _, m := range met {
		if m.Requests >= leastMet {
			seen[m.Server] = m
		}
	}
	members = slices.Clone(members)
	slices.Sort(members)
	slow := 0
	for server := range w.all {
		if _, member := slices.BinarySearch(members, server); !member {
			delete(w.all, server)
		}
	}
	for _, server := range members {
		x := w.all[server]
		if x == nil {
			x = new(watched)
			w.all[server] = x
		}
		m, ok := seen[server]
		others := median(members, seen, server)
		late := ok && factor > 0 && others > 0 && m.P90 > max(lateFloor, others*time.Duration(factor))
		x.note(ok, late, m.P90)
		switch {
		case x.slow == "":
		case factor <= 0 || x.calm >= calmAfter:
			x.slow, x.late = "", 0
			changed = append(changed, server)
		default:
			slow++
		}
	}
	for _, x := range w.candidates(members) {
		if slow >= len(members)/maxSlowShare {
			break
		}
		slow++
		r := w.all[x]
		r.slow, r.calm = fmt.Sprintf("nine of ten requests take up to %v, those to others %v", r.worst, median(members, seen, x)), 0
		changed = append(changed, x)
	}
	slices.Sort(changed)
	return changed
}

// note takes a look at one server.
func (x *watched) note(met, late bool, took time.Duration) {
	if !met { // nobody asked it: nothing speaks against it any more
		x.calm++
		return
	}
	x.late = x.late << 1 & (1<<slowWindow - 1)
	if !late {
		x.calm++
		return
	}
	x.late |= 1
	x.calm, x.worst = 0, took
}

// candidates returns the servers that are to be slow, the slowest first.
func (w *Watch) candidates(members []id.ServerID) []id.ServerID {
	var out []id.ServerID
	for _, server := range members {
		x := w.all[server]
		n := 0
		for b := x.late; b != 0; b &= b - 1 {
			n++
		}
		if x.slow == "" && x.late&1 != 0 && n >= slowAfter {
			out = append(out, server)
		}
	}
	slices.SortFunc(out, func(a, b id.ServerID) int {
		return cmp.Or(cmp.Compare(w.all[b].worst, w.all[a].worst), cmp.Compare(a, b))
	})
	return out
}

// median returns the median p90 of the members but one, 0 if fewer than two of them were met.
func median(members []id.ServerID, seen map[id.ServerID]Met, but id.ServerID) time.Duration {
	var all []time.Duration
	for _, server := range members {
		if m, ok := seen[server]; ok && server != but {
			all = append(all, m.P90)
		}
	}
	if len(all) < 2 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}
