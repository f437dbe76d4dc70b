package plan

import (
	"cmp"
	"slices"

	"varve/internal/id"
	"varve/mds/state"
)

// planner is one run of Repair.
type planner struct {
	s     *state.State
	views map[id.ServerID]*ServerView
	list  []*ServerView // of live members, by id
	load  map[id.ServerID]int
	limit Limits
	out   []Action
}

// Repair returns the next steps for degraded chunks, those with fewest in-sync replicas first, then by id. busy
// reports the chunks whose rebuild is under way (nil: none); they are left alone. For each chunk, one step:
//
//   - a joining replica on a live server joins again, since nobody rebuilds it;
//   - a joining replica on a lost server is dropped, it only slows writes;
//   - else a server joins: one that has an old copy first, then a host without replica, then the most free space. A chunk
//     that has enough replicas with the joining ones waits for them.
//
// The source is the in-sync live replica with the least load. No server gets more than limits.PerServer rebuilds.
func Repair(s *state.State, views []ServerView, limits Limits, busy func(id.ChunkID) bool) []Action {
	p := &planner{s: s, views: map[id.ServerID]*ServerView{}, load: map[id.ServerID]int{}, limit: limits.orDefault()}
	for i := range views {
		p.views[views[i].ID] = &views[i]
		p.load[views[i].ID] = views[i].Load
	}
	p.list = candidates(s, views, p.limit.Reserve, nil)
	seen := 0
	s.Degraded(func(c *state.Chunk) bool {
		if seen++; seen > p.limit.Scan || len(p.out) >= p.limit.Actions {
			return false
		}
		if busy == nil || !busy(c.ID) {
			p.chunk(c)
		}
		return true
	})
	return p.out
}

// chunk adds the next step for c, if there is one.
func (p *planner) chunk(c *state.Chunk) {
	source, ok := p.source(c)
	waiting := false
	for i := range c.Len() {
		r := c.Replica(i)
		v := p.views[r.Server]
		switch {
		case !r.Joining:
		case v != nil && v.Live:
			if ok && p.room(r.Server) {
				p.add(Action{Chunk: c.ID, Kind: Join, Target: r.Server, Source: source})
				return
			}
			waiting = true
		case v == nil || v.Lost:
			p.out = append(p.out, Action{Chunk: c.ID, Kind: Drop, Target: r.Server})
			return
		default:
			waiting = true // it may come back
		}
	}
	if !ok || waiting || c.Len() >= c.Norm() || c.Len() == state.MaxReplicas {
		return
	}
	if target, found := p.target(c); found {
		p.add(Action{Chunk: c.ID, Kind: Join, Target: target, Source: source})
	}
}

func (p *planner) add(a Action) {
	p.load[a.Target]++
	p.load[a.Source]++
	p.out = append(p.out, a)
}

func (p *planner) room(server id.ServerID) bool { return p.load[server] < p.limit.PerServer }

// source returns the in-sync replica on a live server with the least load, if that has room for a rebuild.
func (p *planner) source(c *state.Chunk) (id.ServerID, bool) {
	var best id.ServerID
	for i := range c.InSync() {
		r := c.Replica(i).Server
		if v := p.views[r]; v != nil && v.Live && p.room(r) && (best == 0 || p.load[r] < p.load[best]) {
			best = r
		}
	}
	return best, best != 0
}

// target returns the best live server without a replica of c.
func (p *planner) target(c *state.Chunk) (id.ServerID, bool) {
	hosts := map[string]bool{}
	for i := range c.Len() {
		if r, ok := p.s.Server(c.Replica(i).Server); ok {
			hosts[r.Host] = true
		}
	}
	var best *ServerView
	for _, v := range p.list {
		if _, has := c.Find(v.ID); has || !p.room(v.ID) {
			continue
		}
		if best == nil || p.better(v, best, c.ID, hosts) {
			best = v
		}
	}
	if best == nil {
		return 0, false
	}
	return best.ID, true
}

// better reports whether a is a better target than b. Rebuilds spread: load counts before space.
func (p *planner) better(a, b *ServerView, c id.ChunkID, hosts map[string]bool) bool {
	return slices.Compare(p.rank(a, c, hosts), p.rank(b, c, hosts)) < 0 ||
		slices.Equal(p.rank(a, c, hosts), p.rank(b, c, hosts)) && cmp.Or(cmp.Compare(b.Free, a.Free), cmp.Compare(a.ID, b.ID)) < 0
}

// rank is smaller for a better target.
func (p *planner) rank(v *ServerView, c id.ChunkID, hosts map[string]bool) []int {
	fresh, shared := 1, 0
	if v.Stale != nil && v.Stale(c) {
		fresh = 0
	}
	if hosts[v.Host] {
		shared = 1
	}
	return []int{fresh, shared, p.load[v.ID]}
}

// candidates returns the views of live members that keep reserve bytes free and are not excluded.
func candidates(s *state.State, views []ServerView, reserve uint64, exclude []id.ServerID) []*ServerView {
	var list []*ServerView
	for i := range views {
		v := &views[i]
		r, ok := s.Server(v.ID)
		if ok && r.TakesData() && v.Live && v.Free > reserve && !slices.Contains(exclude, v.ID) {
			list = append(list, v)
		}
	}
	return list
}
