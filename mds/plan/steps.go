package plan

import (
	"varve/mds/state"
)

// restore plans for degraded chunks: from the one with the fewest in-sync replicas on, and, since those may be ones that nothing can be done for,
// also from where the last call ended.
func (r *round) restore() {
	look := func(c *state.Chunk) bool {
		// When nothing more can be copied, only what is joining is of interest: it may have to go.
		if !r.done[c.ID] && (c.Joining() > 0 || !r.busy()) && r.in.Hold(c) != HoldAll {
			r.chunk(c)
		}
		return true
	}
	left := r.limit.Scan
	half := max(left/2, 1)
	r.in.State.Degraded(func(c *state.Chunk) bool {
		if left <= half && r.limit.Scan > 1 || r.full() {
			return false
		}
		left--
		return look(c)
	})
	next := degradedAt{}
	r.in.State.DegradedFrom(r.degraded.sync, r.degraded.chunk, func(c *state.Chunk) bool {
		if left <= 0 || r.full() {
			next = degradedAt{c.InSync(), c.ID}
			return false
		}
		left--
		return look(c)
	})
	r.degraded = next
}

// chunk plans the next step for a degraded chunk, if there is one:
//
//   - a joining replica on a lost server is dropped, it only slows writes; so is one on a server that is being emptied, and one that is not needed;
//   - one on a live server joins again, since nobody rebuilds it;
//   - else a server joins. A chunk that has enough replicas with the joining ones waits for them.
func (r *round) chunk(c *state.Chunk) {
	m, w := r.f.members(c), r.f.wants.of(c.Ino)
	class, reason := pressing(c, w)
	waiting := false
	for i := m.sync; i < m.n; i++ {
		x := m.s[i]
		needed, why := r.needed(c, &m, i, w, class, reason)
		if x.Lost || x.leaves || !needed.ok {
			if x.Lost {
				why = JoiningLost
			} else if x.leaves {
				why = ServerDrained
			}
			r.add(Action{Chunk: c.ID, Kind: Drop, Target: x.ID, Class: Tidy, Reason: why, Bytes: r.in.Bytes(c)})
			return
		}
		source := r.f.source(&m)
		if x.Live && source != nil && !r.f.busy(x) {
			r.join(c, x, source, needed.class, why, needed.from)
			return
		}
		waiting = true // it may come back, or is busy
	}
	if waiting && class != Urgent || m.n >= c.Norm() || m.n >= state.MaxReplicas {
		return
	}
	source := r.f.source(&m)
	if source == nil {
		if m.live() == 0 {
			r.warn(c, "no live server has a replica in sync")
		}
		return
	}
	a := &ask{chunk: c.ID, w: w, m: &m, host: r.writing(c.Ino), urgent: class == Urgent, old: r.in.Hold(c) == HoldMoves}
	target, answer := r.f.target(a)
	if answer == none {
		r.warn(c, "no chunk server with room has no replica of it yet: add servers, or free space")
	}
	if target != nil {
		r.join(c, target, source, class, reason, nil)
	}
}

// role is what a joining replica is for.
type role struct {
	ok    bool
	class Class
	from  *server // whose place it takes
}

// needed says what the i-th replica, which is joining, is for: one of those that are missing, or one that takes the place of another.
func (r *round) needed(c *state.Chunk, m *members, i int, w *want, class Class, reason Reason) (role, Reason) {
	if m.sync < c.Norm() {
		if reason == BelowNorm && m.n >= c.Norm() {
			reason = NotRebuilt
		}
		return role{ok: true, class: class}, reason
	}
	if m.sync > c.Norm() {
		return role{}, Surplus
	}
	host := r.writing(c.Ino)
	set := *m
	set.n = m.sync
	before := w.score(&set, host)
	set = set.with(m.s[i])
	set.sync++
	worst, after := r.f.best(w, &set, host)
	if worst < 0 || set.s[worst] == m.s[i] {
		return role{}, Surplus
	}
	if after == before { // for the fill levels: it was begun when they differed
		if mv, ok := r.moves[c.ID]; !ok || mv.to != m.s[i].ID {
			return role{}, Surplus
		}
	}
	class, reason = why(before, after)
	return role{ok: true, class: class, from: set.s[worst]}, reason
}

// pressing returns how pressing it is that a chunk gets another replica, and why.
func pressing(c *state.Chunk, w *want) (Class, Reason) {
	switch n := c.InSync(); {
	case n >= c.Norm():
		return Restore, NotRebuilt
	case n == 1:
		return Urgent, LastReplica
	case n < w.min:
		return Urgent, BelowMin
	}
	return Restore, BelowNorm
}

// tidy takes replicas out that chunks have too many of. Only what is left on live servers counts.
func (r *round) tidy() {
	left, from := r.limit.Scan, r.surplus
	r.surplus = 0
	r.in.State.Surplus(from, func(c *state.Chunk) bool {
		if left == 0 || r.full() {
			r.surplus = c.ID
			return false
		}
		left--
		if r.done[c.ID] || r.in.Hold(c) == HoldAll {
			return true
		}
		m, w := r.f.members(c), r.f.wants.of(c.Ino)
		worst, _ := r.f.best(w, &m, r.writing(c.Ino))
		if worst < 0 || m.sync <= c.Norm() {
			return true
		}
		if rest := m.without(worst); rest.liveOf(m.sync-1) < c.Norm() {
			return true // it may be all that is left
		}
		r.add(Action{Chunk: c.ID, Kind: Remove, Target: m.s[worst].ID, Class: Tidy, Reason: Surplus, Bytes: r.in.Bytes(c)})
		return true
	})
}

// liveOf counts the live ones among the first n.
func (m *members) liveOf(n int) int {
	m.sync = n
	return m.live()
}

// band is how far a server's fill level may be from the mean of its tier.
const band = 0.05

// roomToReturn is the part of a server's disk that must be free for replicas to be moved there for the sake of the tier.
const roomToReturn = 0.1

// sweep looks at chunks that have as many replicas as they should, for ones that should be elsewhere. It reports whether
// it came to the last one.
func (r *round) sweep() bool {
	left := r.limit.Sweep
	if n := r.in.State.Counts().Chunks; left > n {
		left = n
	}
	even := r.f.even()
	swept := false
	for turns := 0; turns < 2 && left > 0; turns++ {
		ended := true
		r.in.State.AllChunks(r.cursor, func(c *state.Chunk) bool {
			if left == 0 || r.busy() {
				ended = false
				return false
			}
			left--
			r.cursor = c.ID
			if !c.Degraded() && c.InSync() == c.Norm() && !r.done[c.ID] {
				r.improve(c, even)
			}
			return true
		})
		if !ended {
			break
		}
		r.cursor, swept = 0, true
		r.forgetWriters()
	}
	return swept
}

// forgetWriters forgets the files that no chunk of was seen in the last sweep.
func (r *round) forgetWriters() {
	for ino, w := range r.writers {
		if r.writing(ino) != w.host {
			delete(r.writers, ino)
		}
	}
}

// even reports, for each tier, whether all fill levels are within the band.
func (f *fleet) even() (even [tiers]bool) {
	for t := range even {
		even[t] = true
	}
	for _, x := range f.all {
		if x.takes && x.Total > 0 {
			d := x.fill() - f.mean[x.tier()]
			even[x.tier()] = even[x.tier()] && -band <= d && d <= band
		}
	}
	return even
}

// improve moves a replica of a healthy chunk to a better place, if there is one.
func (r *round) improve(c *state.Chunk, even [tiers]bool) {
	m, w := r.f.members(c), r.f.wants.of(c.Ino)
	host := r.settled(c.Ino)
	before := w.score(&m, host)
	uneven := false
	for _, x := range m.list() {
		if !x.Live {
			return // first see what becomes of that
		}
		uneven = uneven || !even[x.tier()]
	}
	if m.n != c.Norm() || before == 0 && !uneven || r.in.Hold(c) != HoldNone {
		return
	}
	source := r.f.source(&m)
	if source == nil {
		return
	}
	if before != 0 && r.better(c, &m, w, host, before, source) {
		return
	}
	if uneven && r.tries < maxTries && r.mayImprove() {
		r.level(c, &m, w, host, before, source)
	}
}

// better plans the move that makes the score best, if one makes it better.
func (r *round) better(c *state.Chunk, m *members, w *want, host string, before uint32, source *server) bool {
	var to *server
	from, best := -1, before
	homeless := false
	for i, x := range m.list() {
		rest := m.without(i)
		after, y, answer := r.instead(c, &rest, w, host, x)
		homeless = homeless || answer == none && x.leaves
		// Of two that are as good, the one on the fuller server goes.
		if y != nil && (after < best || after == best && from >= 0 && x.fill() > m.s[from].fill()) {
			from, best, to = i, after, y
		}
	}
	if from < 0 {
		r.cannot(c, w, before, homeless)
		return false
	}
	class, reason := why(before, best)
	if class == Improve {
		if !r.mayImprove() {
			return false
		}
		r.improves++
	}
	return r.join(c, to, source, class, reason, m.s[from])
}

// instead returns where a replica could be instead of on x, beside the rest, and the score with it there.
func (r *round) instead(c *state.Chunk, rest *members, w *want, host string, x *server) (uint32, *server, answer) {
	y, answer := r.f.target(&ask{chunk: c.ID, w: w, m: rest, not: x, host: host})
	if y == nil {
		return 0, nil, answer
	}
	if !x.leaves && w.away(y.tier()) < w.away(x.tier()) && float64(y.room) < roomToReturn*float64(y.Total) {
		return 0, nil, later // it would soon be full again
	}
	set := rest.with(y)
	return w.score(&set, host), y, found
}

// cannot warns of what no move mends.
func (r *round) cannot(c *state.Chunk, w *want, score uint32, homeless bool) {
	if homeless {
		r.warn(c, "a server is being emptied, and no other one has room for its replicas")
	}
	if w.shared(score) && r.f.domains(w) < c.Norm() {
		r.warn(c, "replicas share a %v: %d replicas want as many of them with chunk servers that take data, and there are %d",
			w.level, c.Norm(), r.f.domains(w))
	}
}

// domains counts the failure domains of a want's level in which there are servers that take replicas.
func (f *fleet) domains(w *want) int {
	seen := map[uint32]bool{}
	for _, k := range []int{tiers, pools + tiers} {
		for d := range f.pool[k].domains[w.level] {
			seen[d] = true
		}
	}
	return len(seen)
}

// maxTries bounds how often in a call all servers are looked at for one that is emptier.
const maxTries = 256

// level moves a replica from a server that is fuller than the others of its tier to one that is emptier, if that makes nothing else worse.
func (r *round) level(c *state.Chunk, m *members, w *want, host string, before uint32, source *server) {
	bytes := r.in.Bytes(c)
	if bytes == 0 {
		return
	}
	for i, x := range m.list() {
		t := x.tier()
		over := x.fill() - r.f.mean[t]
		if over <= 0 || x.Total == 0 {
			continue
		}
		rest := m.without(i)
		r.tries++
		y := r.f.emptier(t, func(y *server) bool {
			under := r.f.mean[t] - y.fill()
			if y.tier() != t || y.Slow || m.has(y) || over <= band && under <= band || y.Total == 0 {
				return false
			}
			// Afterwards neither is on the other side of the mean, so that nothing goes back.
			if under < float64(bytes)/float64(y.Total) || over < float64(bytes)/float64(x.Total) {
				return false
			}
			set := rest.with(y)
			return w.score(&set, host) <= before
		})
		if y != nil && r.join(c, y, source, Improve, UnevenFill, x) {
			r.improves++
			return
		}
	}
}

// emptier returns the emptiest of a tier's servers that may begin a rebuild and that ok takes.
func (f *fleet) emptier(t int, ok func(*server) bool) (best *server) {
	for _, x := range f.pool[t].heap {
		if (best == nil || x.fill() < best.fill()) && ok(x) {
			best = x
		}
	}
	return best
}
