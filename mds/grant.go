package mds

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/id"
)

// Leases on metadata: sessions may be granted to cache the attributes of an inode, or the names of a directory, until they are called
// back. The table is soft state of one leadership.
//
// Why no session ever uses what is no longer so:
//   - A grant is registered while the state that it is about cannot change (fsm.view). A change that was applied before is in
//     what was read; one that comes later finds the grant here.
//   - A change marks its keys (begin) before it looks for holders, and until it is applied; while they are marked nobody but the
//     session that makes the change is granted them. Then it waits until every holder has answered a callback, or cannot use its
//     grants any more.
//   - A holder cannot use its grants any more when it has made another connection, before which it forgets them, or when its cache lease is
//     over. The client counts the lease from when it sent the last renewal that was answered, the leader from when it answered, which is
//     later; margin covers clocks that run at different speeds.
//   - A renewal is answered only by a server that was the leader when it looked (confirmRead) after the renewal came. So a lease that an earlier
//     leader gave began before this one was elected, and is over at wildUntil. Until then a session that has not connected
//     to this leader may hold anything. That covers an earlier leader which was stopped between confirmRead and its answer as well: what
//     it then sends grants nothing for longer than that.
//   - Callbacks wait for nothing at the metadata server: a client answers when it has dropped its copies and the kernel's, and takes no
//     latch for that. So a change that waits here with its latches held waits for no other request.
const (
	maxSessionGrants = 1 << 18
	maxGrants        = 1 << 20
	grantShards      = 64
	// grantShrink is how much of a session's grants is called back when it has too many.
	grantShrink = maxSessionGrants / 8
	// maxCallbackKeys bounds one callback.
	maxCallbackKeys = 4096
)

// grantKey is an inode's attributes, or a directory's names.
type grantKey uint64

func attrKey(ino id.Ino) grantKey  { return grantKey(ino) << 1 }
func namesKey(ino id.Ino) grantKey { return grantKey(ino)<<1 | 1 }

func (k grantKey) ino() id.Ino { return id.Ino(k >> 1) }
func (k grantKey) names() bool { return k&1 != 0 }

// cacher is a session as a holder of grants.
type cacher struct {
	session id.SessionID
	count   atomic.Int64 // grants of this generation
	shrinks atomic.Bool  // grants are being called back because there are too many

	mu      sync.Mutex
	gen     uint32        // counts connections: grants of earlier ones are void
	known   bool          // connected to this leader
	revoked bool          // it renews but answers no callback: it is not to cache
	until   time.Duration // bootNow: until then it may use its grants, those of earlier generations included
}

// holder is one grant.
type holder struct {
	c   *cacher
	gen uint32
}

// changer is a session that changes a key, in n changes. 0 is the leader itself.
type changer struct {
	session id.SessionID
	n       int
}

type grantShard struct {
	mu       sync.Mutex
	holders  map[grantKey][]holder
	changing map[grantKey][]changer
}

// grants is the table.
type grants struct {
	lease, margin time.Duration
	wildUntil     time.Duration // bootNow
	total         atomic.Int64
	shards        [grantShards]grantShard

	mu      sync.RWMutex
	cachers map[id.SessionID]*cacher
	bound   chan struct{} // closed and replaced when a session has connected
}

// newGrants makes the table of a leader that was elected by now. The sessions are those that an earlier one may have granted
// anything.
func newGrants(lease, margin time.Duration, now time.Duration) *grants {
	g := &grants{lease: lease, margin: margin, wildUntil: now + lease + margin, cachers: make(map[id.SessionID]*cacher), bound: make(chan struct{})}
	for i := range g.shards {
		g.shards[i].holders = make(map[grantKey][]holder)
		g.shards[i].changing = make(map[grantKey][]changer)
	}
	return g
}

func (g *grants) shard(k grantKey) *grantShard {
	return &g.shards[(uint64(k)*0x9e3779b97f4a7c15)>>58]
}

// wild adds a session that has not connected to this leader.
func (g *grants) wild(session id.SessionID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cachers[session] = &cacher{session: session, until: g.wildUntil}
}

func (g *grants) cacher(session id.SessionID) *cacher {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.cachers[session]
}

// bind notes a new connection of the session: it has forgotten what it was granted. It reports whether many grants are void now.
func (g *grants) bind(session id.SessionID) (many bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.cachers[session]
	if c == nil {
		c = &cacher{session: session}
		g.cachers[session] = c
	}
	c.mu.Lock()
	c.gen++
	c.known, c.revoked, c.until = true, false, bootNow()+g.lease+g.margin
	many = c.count.Swap(0) > 0
	c.mu.Unlock()
	close(g.bound)
	g.bound = make(chan struct{})
	return many
}

// renewed notes that a renewal is about to be answered, and returns for how long the session may use what it is granted.
func (g *grants) renewed(session id.SessionID) time.Duration {
	c := g.cacher(session)
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || c.revoked {
		return 0
	}
	c.until = bootNow() + g.lease + g.margin
	return g.lease
}

// over reports whether grants of the generation can be used no more, else for how long they can. A session whose cache lease has run out
// does not get it back with its next renewal, but by a new connection.
func (c *cacher) over(gen uint32) (over bool, left time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen != gen {
		return true, 0
	}
	left = c.until - bootNow()
	if left <= 0 {
		c.revoked = true
	}
	return left <= 0, left
}

// void is over without a consequence.
func (c *cacher) void(gen uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gen != gen || c.revoked && c.until <= bootNow()
}

// revoke ends the caching of a session that does not answer, with its cache lease.
func (c *cacher) revoke() (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first = !c.revoked
	c.revoked = true
	return first
}

// grant registers the key, or refuses. The caller holds the state still.
func (g *grants) grant(c *cacher, k grantKey) bool {
	c.mu.Lock()
	gen, ok := c.gen, c.known && !c.revoked
	c.mu.Unlock()
	if !ok {
		return false
	}
	s := g.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range s.changing[k] {
		if ch.session != c.session {
			return false
		}
	}
	list := s.holders[k]
	for i := range list {
		if list[i].c != c {
			continue
		}
		if list[i].gen != gen {
			list[i].gen = gen
			c.count.Add(1)
		}
		return true
	}
	if c.count.Load() >= maxSessionGrants || g.total.Load() >= maxGrants {
		return false
	}
	s.holders[k] = append(list, holder{c, gen})
	c.count.Add(1)
	g.total.Add(1)
	return true
}

// drop removes one grant.
func (g *grants) drop(k grantKey, h holder) {
	s := g.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.holders[k]
	i := slices.Index(list, h)
	if i < 0 {
		return
	}
	g.total.Add(-1)
	h.c.mu.Lock()
	if h.c.gen == h.gen {
		h.c.count.Add(-1)
	}
	h.c.mu.Unlock()
	if len(list) == 1 {
		delete(s.holders, k)
		return
	}
	s.holders[k] = slices.Delete(slices.Clone(list), i, i+1)
}

// recalled is what one session must be called back for.
type recalled struct {
	h    holder
	keys []grantKey
}

// begin marks the keys as being changed by the session and returns whom to call back. end must follow.
func (g *grants) begin(session id.SessionID, keys []grantKey) []recalled {
	var out []recalled
	for _, k := range keys {
		s := g.shard(k)
		s.mu.Lock()
		list := s.changing[k]
		if i := slices.IndexFunc(list, func(ch changer) bool { return ch.session == session }); i >= 0 {
			list[i].n++
		} else {
			s.changing[k] = append(list, changer{session, 1})
		}
		for _, h := range s.holders[k] {
			if h.c.session == session && session != 0 {
				continue
			}
			i := slices.IndexFunc(out, func(r recalled) bool { return r.h == h })
			if i < 0 {
				i = len(out)
				out = append(out, recalled{h: h})
			}
			out[i].keys = append(out[i].keys, k)
		}
		s.mu.Unlock()
	}
	return out
}

func (g *grants) end(session id.SessionID, keys []grantKey) {
	for _, k := range keys {
		s := g.shard(k)
		s.mu.Lock()
		list := s.changing[k]
		i := slices.IndexFunc(list, func(ch changer) bool { return ch.session == session })
		if list[i].n--; list[i].n == 0 {
			if len(list) == 1 {
				delete(s.changing, k)
			} else {
				s.changing[k] = slices.Delete(list, i, i+1)
			}
		}
		s.mu.Unlock()
	}
}

// unheard returns the sessions but one that may hold anything, and what is closed when one of them may have connected.
func (g *grants) unheard(but id.SessionID) (list []*cacher, bound <-chan struct{}) {
	if bootNow() >= g.wildUntil {
		return nil, nil
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, c := range g.cachers {
		c.mu.Lock()
		if !c.known && c.session != but {
			list = append(list, c)
		}
		c.mu.Unlock()
	}
	return list, g.bound
}

// sweep drops the grants that are void: of earlier connections, and of sessions that are gone.
func (g *grants) sweep() {
	for i := range g.shards {
		s := &g.shards[i]
		s.mu.Lock()
		for k, list := range s.holders {
			kept := slices.DeleteFunc(slices.Clone(list), func(h holder) bool { return h.c.void(h.gen) })
			g.total.Add(int64(len(kept) - len(list)))
			if len(kept) == 0 {
				delete(s.holders, k)
			} else if len(kept) < len(list) {
				s.holders[k] = kept
			}
		}
		s.mu.Unlock()
	}
}

// gone forgets a session that is closed. clean: it has forgotten its grants; else they are void when its lease is over.
func (g *grants) gone(session id.SessionID, clean bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.cachers[session]
	if c == nil {
		return
	}
	c.mu.Lock()
	c.revoked = true
	if clean {
		c.gen++
		c.known, c.until = true, 0
	}
	over := c.until <= bootNow()
	c.mu.Unlock()
	if over {
		delete(g.cachers, session)
	}
}

// some returns up to n keys that the session holds, with the grant.
func (g *grants) some(c *cacher, n int) (holder, []grantKey) {
	c.mu.Lock()
	h := holder{c, c.gen}
	c.mu.Unlock()
	var keys []grantKey
	for i := range g.shards {
		s := &g.shards[i]
		s.mu.Lock()
		for k, list := range s.holders {
			if len(keys) >= n {
				break
			}
			if slices.Contains(list, h) {
				keys = append(keys, k)
			}
		}
		s.mu.Unlock()
	}
	return h, keys
}
