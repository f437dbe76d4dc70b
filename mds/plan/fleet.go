package plan

import (
	"math"
	"slices"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/state"
)

// tiers is how many there are.
const tiers = state.MaxTier + 1

// server is a chunk server while steps are planned.
type server struct {
	ServerView
	at     place
	takes  bool   // new replicas may go there
	known  bool   // it is counted in its pools
	leaves bool   // its replicas are to go elsewhere
	room   int64  // bytes that it can still take
	load   int    // rebuilds from and to it, planned ones included
	work   work   // what it has had to do: who has done least is taken first
	weight uint64 // its part of what is written: 256, but for those with less than half or more than twice the mean room
	in     int64  // bytes that come and go by what is planned; negative: it gets emptier
	pos    [2 * pools]int32
}

// work is bytes that a server has had to write and to read for rebuilds. They are kept apart, so that all have an equal share of both.
type work struct{ written, read uint64 }

// since returns the work beyond that of another.
func (w work) since(o work) work {
	return work{w.written - min(w.written, o.written), w.read - min(w.read, o.read)}
}

// pools are the tiers, and all servers together; slow ones are in other pools than the rest.
const pools = tiers + 1

// maxDense is the highest id of a server up to which servers are found by a list.
const maxDense = 1 << 16

// fleet is all members.
type fleet struct {
	s      *state.State
	all    []*server // by id
	dense  []*server // by id, with gaps
	byID   map[id.ServerID]*server
	byHost map[string][]*server
	stale  []*server // live ones with old copies
	pool   [2 * pools]pool
	mean   [tiers]float64 // of the fill levels
	most   int            // rebuilds of a server
	wants  wants
}

// newFleet prepares for planning. before is what servers have had to do until now.
func newFleet(s *state.State, views []ServerView, most int, reserve uint64, before map[id.ServerID]work) *fleet {
	f := &fleet{s: s, byID: make(map[id.ServerID]*server, len(views)), byHost: map[string][]*server{}, most: most}
	f.wants.init(s)
	given := make(map[id.ServerID]*ServerView, len(views))
	least := work{math.MaxUint64, math.MaxUint64}
	for i := range views {
		given[views[i].ID] = &views[i]
		w := before[views[i].ID]
		least = work{min(least.written, w.written), min(least.read, w.read)}
	}
	where := newAtlas()
	s.Servers(func(r *state.Server) bool {
		if r.Retired {
			return true
		}
		x := &server{ServerView: ServerView{ID: r.ID, Host: r.Host, Rack: r.Rack, Tier: r.Tier, Lost: true}}
		if v := given[r.ID]; v != nil {
			x.ServerView = *v
			x.work = before[r.ID].since(least)
			x.work.written += uint64(v.Load) * chunk.Size
			x.work.read += uint64(v.Load) * chunk.Size
		}
		x.at, x.load = where.find(&x.ServerView), x.Load
		x.takes = x.Live && r.TakesData() && !x.Standby && !x.Draining
		x.leaves = r.Leaving() || x.Draining
		x.room = int64(min(x.Free, math.MaxInt64)) - int64(x.Coming) - int64(KeepsFree(x.Total, reserve))
		for p := range x.pos {
			x.pos[p] = -1
		}
		f.all = append(f.all, x)
		return true
	})
	if n := len(f.all); n > 0 && f.all[n-1].ID < maxDense {
		f.dense = make([]*server, f.all[n-1].ID+1)
	}
	f.weigh()
	for _, x := range f.all {
		f.add(x)
	}
	return f
}

// reserveShare is the part of a disk, 1 in so many, that repair leaves free at most, but not less than a chunk.
const reserveShare = 16

// KeepsFree returns how many bytes repair leaves free on a disk: most, or less on a small one, which else would never get a replica.
func KeepsFree(total, most uint64) uint64 { return min(most, max(total/reserveShare, chunk.Size)) }

func (f *fleet) add(x *server) {
	f.byID[x.ID] = x
	if f.dense != nil {
		f.dense[x.ID] = x
	}
	f.byHost[x.Host] = append(f.byHost[x.Host], x)
	if x.Live && x.Stale != nil && !x.leaves {
		f.stale = append(f.stale, x)
	}
	if !x.takes || x.room <= 0 {
		return
	}
	x.known = true
	for _, k := range x.pools() {
		f.pool[k].know(x)
		if !f.busy(x) {
			f.pool[k].push(x, k)
		}
	}
}

// find returns a member, nil if it is none.
func (f *fleet) find(k id.ServerID) *server {
	if f.dense == nil {
		return f.byID[k]
	}
	if int(k) < len(f.dense) {
		return f.dense[k]
	}
	return nil
}

// pools returns the numbers of the pools that x is in: its tier's and that of all.
func (x *server) pools() [2]int {
	first := 0
	if x.Slow {
		first = pools
	}
	return [2]int{first + x.tier(), first + tiers}
}

func (x *server) tier() int { return int(min(x.Tier, tiers-1)) }

// weigh sets weights, and the mean fill levels.
func (f *fleet) weigh() {
	var used, total [tiers]float64
	room, n := 0.0, 0.0
	for _, x := range f.all {
		if x.takes {
			used[x.tier()] += x.used()
			total[x.tier()] += float64(x.Total)
			room += float64(max(x.room, 0))
			n++
		}
	}
	for t := range f.mean {
		if total[t] > 0 {
			f.mean[t] = used[t] / total[t]
		}
	}
	for _, x := range f.all {
		x.weight = 256
		if room <= 0 {
			continue
		}
		switch r := float64(max(x.room, 0)) * n / room; {
		case r < 0.5:
			x.weight = uint64(max(2*r, 1.0/8) * 256)
		case r > 2:
			x.weight = uint64(min(r/2, 8) * 256)
		}
	}
}

// used returns the bytes in use when all that is under way or planned is done.
func (x *server) used() float64 {
	return float64(x.Total) - float64(x.Free) + float64(x.Coming) - float64(x.Going) + float64(x.in)
}

// fill returns the part of the disk that is in use, as used.
func (x *server) fill() float64 {
	if x.Total == 0 {
		return 0
	}
	return x.used() / float64(x.Total)
}

// leastWork is what a rebuild counts for at least, in bytes: it has messages and events however small the chunk is.
const leastWork = 1 << 20

// charge notes that bytes are to be copied from one server to another.
func (f *fleet) charge(from, to *server, bytes uint64) {
	counts := max(bytes, leastWork)
	from.load++
	from.work.read += counts
	to.load++
	to.work.written += counts * 256 / to.weight
	to.room -= int64(bytes)
	to.in += int64(bytes)
	f.moved(from)
	f.moved(to)
}

// moved puts x where it belongs in its pools, which it leaves when it can take no more.
func (f *fleet) moved(x *server) {
	if !x.known { // it takes none, or was full from the beginning
		return
	}
	for _, k := range x.pools() {
		p := &f.pool[k]
		if x.room <= 0 {
			p.forget(x)
		}
		switch {
		case x.pos[k] < 0:
		case x.room <= 0 || f.busy(x):
			p.remove(x, k)
		default:
			p.down(int(x.pos[k]), k)
		}
	}
	if x.room <= 0 {
		x.takes, x.known = false, false
	}
}

// busy reports whether the server may begin no more rebuilds now.
func (f *fleet) busy(x *server) bool { return x.load >= f.most }

// idle reports whether there is a server that may begin a rebuild.
func (f *fleet) idle() bool { return len(f.pool[tiers].heap)+len(f.pool[pools+tiers].heap) > 0 }

// pool is servers that take replicas.
type pool struct {
	heap  []*server // those that may begin a rebuild; who has had least to do is first
	front []int     // of first
	// domains counts the servers in each failure domain, busy ones too, so that it is known whether there is another one.
	domains [levels]map[uint32]int
}

// know counts x.
func (p *pool) know(x *server) {
	for level := range p.domains {
		if p.domains[level] == nil {
			p.domains[level] = make(map[uint32]int)
		}
		p.domains[level][x.at[level]]++
	}
}

func (p *pool) forget(x *server) {
	for level := range p.domains {
		if p.domains[level][x.at[level]]--; p.domains[level][x.at[level]] == 0 {
			delete(p.domains[level], x.at[level])
		}
	}
}

// another reports whether there is a server, busy or not, in a failure domain in which no member is. k is the number of the pool.
func (p *pool) another(level state.Domain, k int, a *ask) bool {
	n := len(p.domains[level])
	for i, x := range a.m.list() {
		d := x.at[level]
		if p.domains[level][d] > 0 && !slices.ContainsFunc(a.m.list()[:i], func(y *server) bool { return y.at[level] == d }) {
			n--
		}
	}
	if x := a.not; x != nil && x.takes && x.room > 0 && p.domains[level][x.at[level]] == 1 {
		in := x.pools()
		if (in[0] == k || in[1] == k) && !slices.ContainsFunc(a.m.list(), func(y *server) bool { return y.at[level] == x.at[level] }) {
			n--
		}
	}
	return n > 0
}

func (p *pool) less(i, j int) bool {
	a, b := p.heap[i], p.heap[j]
	return a.work.written < b.work.written || a.work.written == b.work.written && (a.Free > b.Free || a.Free == b.Free && a.ID < b.ID)
}

func (p *pool) swap(i, j, k int) {
	p.heap[i], p.heap[j] = p.heap[j], p.heap[i]
	p.heap[i].pos[k], p.heap[j].pos[k] = int32(i), int32(j)
}

func (p *pool) push(x *server, k int) {
	x.pos[k] = int32(len(p.heap))
	p.heap = append(p.heap, x)
	p.up(len(p.heap)-1, k)
}

func (p *pool) remove(x *server, k int) {
	i, last := int(x.pos[k]), len(p.heap)-1
	p.swap(i, last, k)
	p.heap, x.pos[k] = p.heap[:last], -1
	if i < last {
		p.up(i, k)
		p.down(i, k)
	}
}

func (p *pool) up(i, k int) {
	for i > 0 && p.less(i, (i-1)/2) {
		p.swap(i, (i-1)/2, k)
		i = (i - 1) / 2
	}
}

func (p *pool) down(i, k int) {
	for {
		c := 2*i + 1
		if c+1 < len(p.heap) && p.less(c+1, c) {
			c++
		}
		if c >= len(p.heap) || !p.less(c, i) {
			return
		}
		p.swap(i, c, k)
		i = c
	}
}

// first returns the first server that ok takes. It looks at no more of the heap than it must: at first at the top, then at what is below those
// that were refused.
func (p *pool) first(ok func(*server) bool) *server {
	if len(p.heap) == 0 {
		return nil
	}
	p.front = append(p.front[:0], 0)
	for len(p.front) > 0 {
		i := p.pop()
		if ok(p.heap[i]) {
			return p.heap[i]
		}
		for c := 2*i + 1; c <= 2*i+2 && c < len(p.heap); c++ {
			p.reach(c)
		}
	}
	return nil
}

// reach adds an index to the front, itself a heap.
func (p *pool) reach(c int) {
	p.front = append(p.front, c)
	for i := len(p.front) - 1; i > 0 && p.less(p.front[i], p.front[(i-1)/2]); i = (i - 1) / 2 {
		p.front[i], p.front[(i-1)/2] = p.front[(i-1)/2], p.front[i]
	}
}

func (p *pool) pop() int {
	out, last := p.front[0], len(p.front)-1
	p.front[0] = p.front[last]
	p.front = p.front[:last]
	for i := 0; ; {
		c := 2*i + 1
		if c+1 < last && p.less(p.front[c+1], p.front[c]) {
			c++
		}
		if c >= last || !p.less(p.front[c], p.front[i]) {
			return out
		}
		p.front[i], p.front[c] = p.front[c], p.front[i]
		i = c
	}
}
