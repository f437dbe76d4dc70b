package plan

import (
	"math/bits"
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// candidate is a server that could get a new chunk.
type candidate struct {
	v      *ServerView
	weight uint64
	rank   uint32
}

// Place chooses up to norm different servers for a new chunk of the file, best first: live members that take data and have room, none of exclude. They are in different
// failure domains as long as there are some that have none, those of exclude counted, then not slow, then on the tier of the file's attribute, then on the hosts that it prefers, or
// on the one that writes it unless that is fuller than the rest. Among equals the choice is random by seed (the same for the same arguments), each
// server weighted by its free bytes. It looks at all servers; Sites do not.
func Place(s *state.State, views []ServerView, ino id.Ino, seed uint64, norm int, exclude ...id.ServerID) []id.ServerID {
	w := newWant(s.Policy(ino))
	hosts := w.hosts
	if h := soleWriter(s, ino); h != "" {
		hosts = append(slices.Clone(hosts), h)
	}
	var taken []*ServerView
	list := make([]candidate, 0, len(views))
	used, total := 0.0, 0.0
	for i := range views {
		v := &views[i]
		if slices.Contains(exclude, v.ID) {
			taken = append(taken, v)
			continue
		}
		if weight, ok := v.takesNew(s); ok {
			list = append(list, candidate{v: v, weight: weight})
			used += float64(v.Total) - float64(v.Free)
			total += float64(v.Total)
		}
	}
	full := 1.0
	if total > 0 {
		full = used/total + band
	}
	for i := range list {
		list[i].rank = w.rank(list[i].v, hosts, full)
	}
	for _, x := range taken {
		w.beside(list, x)
	}
	var out []id.ServerID
	for k := range norm {
		i := draw(list, mix(seed^mix(uint64(k)+1)))
		if i < 0 {
			break
		}
		x := list[i].v
		out = append(out, x.ID)
		list[i] = list[len(list)-1]
		list = list[:len(list)-1]
		w.beside(list, x)
	}
	return out
}

// A rank is made of bits, the weightiest first: for each level of failure domains whether it is shared, slow, distance from the tier, not preferred.
const (
	rankHosts = 1
	rankTier  = 1
	rankSlow  = 3
	rankLevel = 4 // of the server itself, which is never shared; then host and so on
)

// rank is smaller for a better place. A host that is fuller than full is not chosen for locality.
func (w *want) rank(v *ServerView, hosts []string, full float64) uint32 {
	rank := uint32(w.away(int(min(v.Tier, tiers-1)))) << rankTier
	if v.Slow {
		rank |= 1 << rankSlow
	}
	i := -1
	if len(hosts) > 0 {
		i = slices.Index(hosts, v.Host)
	}
	if i < 0 || i == len(w.hosts) && float64(v.Total)-float64(v.Free) > full*float64(v.Total) {
		rank |= rankHosts
	}
	return rank
}

// beside makes the ranks what they are when x has a replica.
func (w *want) beside(list []candidate, x *ServerView) {
	for i := range list {
		c := &list[i]
		if c.v.Host == x.Host {
			c.rank |= rankHosts
		}
		for level := state.Host; level <= w.level; level++ {
			if c.v.together(x, level) {
				c.rank |= 1 << (rankLevel + uint(level-state.Disk))
			}
		}
	}
}

// together reports whether two servers are in one failure domain.
func (v *ServerView) together(o *ServerView, level state.Domain) bool {
	switch level {
	case state.Disk:
		return v.ID == o.ID
	case state.Host:
		return v.Host == o.Host
	case state.Rack:
		return v.Rack == o.Rack
	}
	return v.within(level) == o.within(level)
}

// draw returns one of the candidates of the lowest rank, each as likely as its weight is; -1 if there are none.
func draw(list []candidate, random uint64) int {
	rank, sum := ^uint32(0), uint64(0)
	for i := range list {
		switch c := &list[i]; {
		case c.rank < rank:
			rank, sum = c.rank, c.weight
		case c.rank == rank:
			sum += c.weight
		}
	}
	at, _ := bits.Mul64(random, sum) // below sum, and as even as sum is small against 2^64
	for i := range list {
		if list[i].rank != rank {
			continue
		}
		if at < list[i].weight {
			return i
		}
		at -= list[i].weight
	}
	return -1
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// soleWriter returns the host of the one session that has the file open, if it writes.
func soleWriter(s *state.State, ino id.Ino) string {
	var only state.Lease
	n := 0
	s.Leases(ino, func(l state.Lease) bool {
		only = l
		n++
		return n < 2
	})
	if n != 1 || only.Want != msg.Want_WANT_WRITE {
		return ""
	}
	if x, ok := s.Session(only.Session); ok && !x.Fenced {
		return x.Host
	}
	return ""
}
