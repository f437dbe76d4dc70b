package plan

import (
	"cmp"
	"math/bits"
	"slices"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/state"
)

// Place chooses up to norm different servers for a new chunk, best first: live members with room, none of exclude.
// Hosts differ as long as there are hosts that have none. Among equals the choice is
// random by seed (the same for the same arguments), each server weighted by its free bytes: the highest of
// hash^(1/weight) wins, which is weighted rendezvous hashing (Schindelhauer and Schomaker, 2005).
func Place(s *state.State, views []ServerView, seed uint64, norm int, exclude ...id.ServerID) []id.ServerID {
	list := candidates(s, views, chunk.Size, exclude)
	slices.SortFunc(list, func(a, b *ServerView) int {
		return cmp.Or(cmp.Compare(cost(a, seed), cost(b, seed)), cmp.Compare(a.ID, b.ID))
	})
	hosts := map[string]bool{}
	for _, x := range exclude {
		if r, ok := s.Server(x); ok {
			hosts[r.Host] = true
		}
	}
	return spread(list, norm, hosts)
}

// spread takes up to n of list in order, first those on hosts that are not taken, then the rest. It marks
// the hosts it takes.
func spread(list []*ServerView, n int, taken map[string]bool) []id.ServerID {
	var out []id.ServerID
	var rest []*ServerView
	for _, v := range list {
		switch {
		case len(out) >= n:
			return out
		case taken[v.Host]:
			rest = append(rest, v)
		default:
			taken[v.Host] = true
			out = append(out, v.ID)
		}
	}
	for _, v := range rest {
		if len(out) >= n {
			break
		}
		out = append(out, v.ID)
	}
	return out
}

// candidates returns the views of live members that keep reserve bytes free and are not excluded.
func candidates(s *state.State, views []ServerView, reserve uint64, exclude []id.ServerID) []*ServerView {
	var list []*ServerView
	for i := range views {
		v := &views[i]
		r, ok := s.Server(v.ID)
		if ok && !r.Retired && v.Live && v.Free > reserve && !slices.Contains(exclude, v.ID) {
			list = append(list, v)
		}
	}
	return list
}

// cost is smaller for the server that should be taken: -ln(u)/weight for a uniform u from the seed and the
// server, in integers so that it is the same on every machine.
func cost(v *ServerView, seed uint64) uint64 {
	u := mix(seed ^ mix(uint64(v.ID)))
	weight := max(v.Free>>20, 1)
	return negLog(u) / weight
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// negLog returns -log2(u/2^64) in units of 2^-56: the leading zeros and, by repeated squaring, 32 bits after the point.
func negLog(u uint64) uint64 {
	if u == 0 {
		u = 1
	}
	z := bits.LeadingZeros64(u)
	m := u << z // in [1, 2) as a fixed-point number with 63 bits
	var frac uint64
	for range 32 {
		hi, _ := bits.Mul64(m, m) // in [1, 4) with 62 bits
		frac <<= 1
		if hi>>63 != 0 {
			frac |= 1
			m = hi
		} else {
			m = hi << 1
		}
	}
	return uint64(z+1)<<56 - frac<<24
}
