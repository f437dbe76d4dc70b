package plan

import (
	"varve/internal/id"
	"varve/mds/state"
)

// ask is for which replica a server is looked for.
type ask struct {
	chunk  id.ChunkID
	w      *want
	m      *members // no replica goes where one is
	not    *server  // nor here, though its failure domain is free; nil: none
	host   string   // that writes the file, "" if it does not matter
	urgent bool     // rather at once in a worse place than later in the right one
	old    bool     // only a server that has an old copy
}

// answer is what was found.
type answer uint8

const (
	found answer = iota
	later        // the right ones are busy
	none         // there is no server with room
)

// target returns where another replica goes: to a server that has an old copy, else to a host that is preferred, else to who has had least to do of
// those on the right tier, where no other replica is in the same failure domain. Where there is none, the failure domain is given up last.
func (f *fleet) target(a *ask) (*server, answer) {
	if x := f.oldCopy(a); x != nil || a.old {
		if x == nil {
			return nil, later
		}
		return x, found
	}
	if x := f.preferred(a); x != nil {
		return x, found
	}
	waiting := false
	for _, level := range a.w.levels() {
		for _, k := range a.w.order {
			p := &f.pool[k]
			if !p.another(level, k, a) {
				continue
			}
			x := p.first(func(x *server) bool { return x != a.not && f.apart(x, a.m, level) })
			if x != nil {
				return x, found
			}
			if !a.urgent {
				return nil, later
			}
			waiting = true
		}
	}
	if waiting {
		return nil, later
	}
	return nil, none
}

// apart reports whether x has no replica and shares no failure domain of the level with one.
func (f *fleet) apart(x *server, m *members, level state.Domain) bool {
	for _, y := range m.list() {
		if x == y || x.at.shares(&y.at, level) {
			return false
		}
	}
	return true
}

// oldCopy returns the server with an old copy that has had least to do.
func (f *fleet) oldCopy(a *ask) (best *server) {
	for _, x := range f.stale {
		if !f.busy(x) && !a.m.has(x) && x != a.not && (best == nil || x.work.written < best.work.written) && x.Stale(a.chunk) {
			best = x
		}
	}
	return best
}

// preferred returns a server on a host that the file's attributes name, or that writes it.
func (f *fleet) preferred(a *ask) *server {
	for _, h := range a.w.hosts {
		if x := f.on(h, a); x != nil {
			return x
		}
	}
	if a.host != "" {
		return f.on(a.host, a)
	}
	return nil
}

// on returns the server of a host that has had least to do and is right in all else.
func (f *fleet) on(host string, a *ask) (best *server) {
	for _, x := range f.byHost[host] {
		if x.takes && x.room > 0 && x != a.not && !x.Slow && !f.busy(x) && a.w.away(x.tier()) == 0 && f.apart(x, a.m, a.w.level) &&
			(best == nil || x.work.written < best.work.written) {
			best = x
		}
	}
	return best
}

// source returns the in-sync replica on a live server that is to be copied: rather not from a slow one, and from who has had least to do.
func (f *fleet) source(m *members) (best *server) {
	for _, x := range m.s[:m.sync] {
		if x.Live && !f.busy(x) && (best == nil || less(x, best)) {
			best = x
		}
	}
	return best
}

func less(a, b *server) bool {
	if a.Slow != b.Slow {
		return b.Slow
	}
	return a.work.read < b.work.read
}

// live counts the in-sync replicas on live servers.
func (m *members) live() (n int) {
	for _, x := range m.s[:m.sync] {
		if x.Live {
			n++
		}
	}
	return n
}

// best returns the i-th replica without which the score is best, one on a dead server first: of equal ones the one on the fullest server.
func (f *fleet) best(w *want, m *members, host string) (worst int, score uint32) {
	worst = -1
	for i, x := range m.s[:m.sync] {
		rest := m.without(i)
		now := w.score(&rest, host)
		switch {
		case worst < 0:
		case m.s[worst].Live != x.Live:
			if x.Live {
				continue
			}
		case now > score || now == score && x.fill() <= m.s[worst].fill():
			continue
		}
		worst, score = i, now
	}
	return worst, score
}
