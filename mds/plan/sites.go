package plan

import (
	"math/bits"
	"slices"
	"sort"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/state"
)

// Sites are the servers that take new data, prepared so that a place for a chunk is found without looking at all of them. They are used for as long
// as the views that they were made of are good enough. They do not change, so many may use them at once.
type Sites struct {
	views  []ServerView // all, for what is not found at once
	pool   [2 * pools]sitePool
	byHost map[string][]*site
	full   float64 // a host that is fuller is not chosen for locality
}

// site is a server that takes new data.
type site struct {
	*ServerView
	pools [2]int // as server.pools
}

// sitePool is sites that can be drawn, each as likely as its free bytes are many.
type sitePool struct {
	sites []*site
	upTo  []uint64 // sum of the weights up to and with each
}

// takesNew reports whether a new chunk may be put on a live server, and its weight.
func (v *ServerView) takesNew(s *state.State) (weight uint64, ok bool) {
	r, member := s.Server(v.ID)
	if !member || !r.TakesData() || !v.Live || v.Standby || v.Draining || v.Free <= chunk.Size+v.Coming {
		return 0, false
	}
	return max((v.Free-v.Coming)>>20, 1), true
}

// NewSites prepares the servers. views must not change afterwards.
func NewSites(s *state.State, views []ServerView) *Sites {
	x := &Sites{views: views, byHost: make(map[string][]*site, len(views)), full: 1}
	used, total := 0.0, 0.0
	for i := range views {
		v := &views[i]
		weight, ok := v.takesNew(s)
		if !ok {
			continue
		}
		in := server{ServerView: ServerView{Slow: v.Slow, Tier: v.Tier}}
		one := &site{v, in.pools()}
		x.byHost[v.Host] = append(x.byHost[v.Host], one)
		for _, k := range one.pools {
			x.pool[k].add(one, weight)
		}
		used += float64(v.Total) - float64(v.Free)
		total += float64(v.Total)
	}
	if total > 0 {
		x.full = used/total + band
	}
	return x
}

func (p *sitePool) add(x *site, weight uint64) {
	if n := len(p.upTo); n > 0 {
		weight += p.upTo[n-1]
	}
	p.sites, p.upTo = append(p.sites, x), append(p.upTo, weight)
}

// draw returns one of the pool by a random number; nil if there are none.
func (p *sitePool) draw(random uint64) *site {
	if len(p.sites) == 0 {
		return nil
	}
	at, _ := bits.Mul64(random, p.upTo[len(p.upTo)-1]) // below the sum, and as even as that is small against 2^64
	return p.sites[sort.Search(len(p.upTo), func(i int) bool { return p.upTo[i] > at })]
}

// siteTries is how often a site is drawn that does not fit before all are looked at.
const siteTries = 16

// Place is the function Place: the servers are as good, and each is as likely. It looks at all servers only where hardly any is right in everything.
func (x *Sites) Place(s *state.State, ino id.Ino, seed uint64, norm int, exclude ...id.ServerID) []id.ServerID {
	w := newWant(s.Policy(ino))
	writer := soleWriter(s, ino)
	var taken []*ServerView
	for i := range x.views {
		if len(exclude) > 0 && slices.Contains(exclude, x.views[i].ID) {
			taken = append(taken, &x.views[i])
		} else if len(taken) == len(exclude) {
			break
		}
	}
	out := make([]id.ServerID, 0, norm)
	for k := range norm {
		random := mix(seed ^ mix(uint64(k)+1))
		v := x.preferred(s, w, writer, taken, random)
		for try := uint64(0); v == nil && try < siteTries; try++ {
			one := x.pool[w.order[0]].draw(mix(random ^ try))
			if one == nil {
				break
			}
			if x.fits(s, w, one, taken) {
				v = one.ServerView
			}
		}
		if v == nil {
			rest := Place(s, x.views, ino, random, norm-k, append(slices.Clone(exclude), out...)...)
			return append(out, rest...)
		}
		out, taken = append(out, v.ID), append(taken, v)
	}
	return out
}

// fits reports whether a site of the right pool is in no failure domain that has a replica, and takes data still.
func (x *Sites) fits(s *state.State, w *want, one *site, taken []*ServerView) bool {
	for _, t := range taken {
		if one.ID == t.ID {
			return false
		}
		for level := state.Host; level <= w.level; level++ {
			if one.together(t, level) {
				return false
			}
		}
	}
	_, ok := one.takesNew(s)
	return ok
}

// preferred returns one of the sites on hosts that are preferred and have no replica, if one is right in everything; nil if there is none.
func (x *Sites) preferred(s *state.State, w *want, writer string, taken []*ServerView, random uint64) *ServerView {
	var p sitePool
	look := func(host string, local bool) {
		if slices.ContainsFunc(taken, func(t *ServerView) bool { return t.Host == host }) {
			return
		}
		for _, one := range x.byHost[host] {
			right := slices.Contains(one.pools[:], w.order[0])
			if local && float64(one.Total)-float64(one.Free) > x.full*float64(one.Total) || !right || !x.fits(s, w, one, taken) {
				continue
			}
			weight, _ := one.takesNew(s)
			p.add(one, weight)
		}
	}
	for _, h := range w.hosts {
		look(h, false)
	}
	if writer != "" && !slices.Contains(w.hosts, writer) {
		look(writer, true)
	}
	if one := p.draw(random); one != nil {
		return one.ServerView
	}
	return nil
}
