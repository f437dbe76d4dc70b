package plan

import (
	"cmp"
	"slices"

	"varve/internal/id"
	"varve/mds/state"
)

// want is where the replicas of a file should be.
type want struct {
	min   int
	level state.Domain
	tier  int // -1: any
	hosts []string
	order []int // pools, the best first
}

func newWant(p state.Policy) *want {
	w := &want{min: int(p.Min), level: p.Level(), tier: -1, hosts: p.Prefers(), order: []int{tiers, pools + tiers}}
	t, ok := p.OnTier()
	if !ok {
		return w
	}
	w.tier = int(t)
	var near []int
	for t := range tiers {
		near = append(near, t)
	}
	slices.SortStableFunc(near, func(a, b int) int { return cmp.Or(cmp.Compare(w.away(a), w.away(b)), cmp.Compare(a, b)) })
	w.order = slices.Clone(near)
	for _, t := range near {
		w.order = append(w.order, pools+t)
	}
	return w
}

// away returns how far a tier is from the right one.
func (w *want) away(tier int) int {
	if w.tier < 0 {
		return 0
	}
	return max(tier-w.tier, w.tier-tier)
}

// levels are the failure domains that replicas should not share, the one that they must not share first, and at last the server itself.
func (w *want) levels() []state.Domain { return domainOrder[len(domainOrder)-int(w.level):] }

var domainOrder = []state.Domain{state.Room, state.Row, state.Rack, state.Host, state.Disk}

// wants finds out what files want, and remembers it by directory, since most files have nothing set themselves.
type wants struct {
	s        *state.State
	byPolicy map[state.Policy]*want
	byDir    map[id.Ino]*want
	lastIno  id.Ino
	last     *want
}

func (ws *wants) init(s *state.State) {
	*ws = wants{s: s, byPolicy: map[state.Policy]*want{}, byDir: map[id.Ino]*want{}}
}

// maxDirs bounds the directories that are remembered.
const maxDirs = 1 << 16

func (ws *wants) of(ino id.Ino) *want {
	if ws.last != nil && ws.lastIno == ino {
		return ws.last
	}
	n, ok := ws.s.Inode(ino)
	inherits := ok && n.OwnPolicy() == state.Policy{}
	var w *want
	if inherits {
		w = ws.byDir[n.Parent]
	}
	if w == nil {
		p := ws.s.Policy(ino)
		if w = ws.byPolicy[p]; w == nil {
			w = newWant(p)
			ws.byPolicy[p] = w
		}
		if inherits && len(ws.byDir) < maxDirs {
			ws.byDir[n.Parent] = w
		}
	}
	ws.lastIno, ws.last = ino, w
	return w
}

// members is a replica set.
type members struct {
	n    int
	sync int // the first so many are in sync
	s    [state.MaxReplicas + 1]*server
}

func (m *members) list() []*server { return m.s[:m.n] }

func (m *members) has(x *server) bool { return slices.Contains(m.list(), x) }

// with returns the set with x.
func (m members) with(x *server) members {
	m.s[m.n] = x
	m.n++
	return m
}

// without returns the set without the i-th.
func (m members) without(i int) members {
	copy(m.s[i:], m.s[i+1:m.n])
	m.n--
	m.s[m.n] = nil
	return m
}

// members returns the replica set of a chunk. Servers that are no members of the cluster any more are left out.
func (f *fleet) members(c *state.Chunk) (m members) {
	for i := range c.Len() {
		r := c.Replica(i)
		if x := f.find(r.Server); x != nil {
			m.s[m.n] = x
			m.n++
			if !r.Joining {
				m.sync++
			}
		}
	}
	return m
}

// The score of a set says how well it is where it should be: smaller is better. It is made of counts, the weightiest first.
const (
	scoreLocal  = 0  // 1 bit: the host that writes has none
	scorePrefer = 1  // 3 bits: preferred hosts that have none
	scoreTier   = 4  // 5 bits: sum of the distances from the tier
	scoreDomain = 9  // 4 times 3 bits, host to room: replicas that share the domain with another
	scoreLeave  = 21 // 3 bits: on servers that are being emptied
)

// score returns the score of a set, all of it in sync. host: that writes the file, "" if that does not matter.
func (w *want) score(m *members, host string) uint32 {
	var score uint32
	local, preferred := host == "", 0
	for i, x := range m.list() {
		if x.leaves {
			score += 1 << scoreLeave
		}
		for level := state.Host; level <= w.level; level++ {
			for _, y := range m.list()[:i] {
				if x.at.shares(&y.at, level) {
					score += 1 << (scoreDomain + 3*uint(level-state.Host))
					break
				}
			}
		}
		score += uint32(w.away(x.tier())) << scoreTier
		local = local || x.Host == host
	}
	if len(w.hosts) > 0 {
		preferred = min(len(w.hosts), m.n)
		for _, h := range w.hosts {
			if slices.ContainsFunc(m.list(), func(x *server) bool { return x.Host == h }) {
				preferred--
			}
		}
	}
	score += uint32(max(preferred, 0)) << scorePrefer
	if !local {
		score += 1 << scoreLocal
	}
	return score
}

// why returns what is better with one score than with another.
func why(before, after uint32) (Class, Reason) {
	part := func(v uint32, shift, bits uint) uint32 { return v >> shift & (1<<bits - 1) }
	switch {
	case part(before, scoreLeave, 3) > part(after, scoreLeave, 3):
		return Evacuate, ServerDrained
	case part(before, scoreDomain, 12) > part(after, scoreDomain, 12):
		return Correct, SharedDomain
	case part(before, scoreTier, 5) > part(after, scoreTier, 5):
		return Correct, WrongTier
	case part(before, scorePrefer, 3) > part(after, scorePrefer, 3):
		return Correct, NotPreferred
	case before > after:
		return Improve, NotLocal
	}
	return Improve, UnevenFill
}

// shared reports whether replicas share the failure domain that they should not.
func (w *want) shared(score uint32) bool {
	return w.level >= state.Host && score>>(scoreDomain+3*uint(w.level-state.Host))&7 != 0
}
