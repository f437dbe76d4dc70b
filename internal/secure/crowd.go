package secure

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// Those who have not said who they are, and came from an address from which nobody has been let in lately, or from one from which somebody
	// has been: each at once, and of these from one source. What strangers do takes no room from members.
	maxStrangers, maxStrangersFromOne = 256, 64
	maxKnown, maxKnownFromOne         = 1024, 256
	// settled is how old a connection is before it has to make room for others: who hurries is through by then, and when thousands of members
	// come at once, those who came first are served.
	settled = 300 * time.Millisecond

	// What handshakes that came to nothing use up, of one source and in all. Those that succeed give theirs back.
	strangerEvery, strangerBurst = 50 * time.Millisecond, 128
	strangersEvery               = 5 * time.Millisecond
	strangersBurst               = 1024
	knownEvery, knownBurst       = 5 * time.Millisecond, 1024

	// knownFor is how long an address counts as known after somebody was let in from there, or was found there.
	knownFor = 30 * time.Minute
	// maxAddresses bounds the addresses that are kept, of either kind.
	maxAddresses = 8192
	forgetSample = 32
)

// sourceOf is what limits count by: an IPv4 address, or the network of an IPv6 address, of which a host has many.
func sourceOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{} // not of a network
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

// guest is a connection that is bounded in number.
type guest struct {
	nc    net.Conn
	from  netip.Addr
	since time.Time
}

// crowd is a bounded number of connections, and of these from one source.
type crowd struct {
	max, fromOne int
	all          map[*guest]struct{}
	count        map[netip.Addr]int
}

func newCrowd(max, fromOne int) *crowd {
	return &crowd{max: max, fromOne: fromOne, all: make(map[*guest]struct{}), count: make(map[netip.Addr]int)}
}

// enter takes g in, and closes another one if there are too many: the oldest one of its own source if that has all that it may have, else the oldest one of
// the source that has the most. It reports false, and changes nothing, if that one is too young.
func (c *crowd) enter(g *guest) bool {
	var leaves *guest
	switch {
	case c.count[g.from] >= c.fromOne:
		leaves = c.oldest(func(from netip.Addr) bool { return from == g.from })
	case len(c.all) >= c.max:
		most := 0
		for _, n := range c.count {
			most = max(most, n)
		}
		leaves = c.oldest(func(from netip.Addr) bool { return c.count[from] == most })
	}
	if leaves != nil {
		if g.since.Sub(leaves.since) < settled {
			return false
		}
		c.leave(leaves) // at once, so that there are never more than there may be
		leaves.nc.Close()
	}
	c.all[g] = struct{}{}
	c.count[g.from]++
	return true
}

func (c *crowd) oldest(of func(from netip.Addr) bool) (oldest *guest) {
	for g := range c.all {
		if of(g.from) && (oldest == nil || g.since.Before(oldest.since)) {
			oldest = g
		}
	}
	return oldest
}

// leave forgets g, if it is still there.
func (c *crowd) leave(g *guest) {
	if _, in := c.all[g]; !in {
		return
	}
	delete(c.all, g)
	if c.count[g.from]--; c.count[g.from] == 0 {
		delete(c.count, g.from)
	}
}

// closeAll ends all of them. They leave by themselves.
func (c *crowd) closeAll() {
	for g := range c.all {
		g.nc.Close()
	}
}

// acquaintances are the addresses that a process has met, by whatever listener or connection.
type acquaintances struct {
	now func() time.Time

	mu        sync.Mutex
	known     map[netip.Addr]*address
	strangers map[netip.Addr]*address
	all       bucket // of strangers
}

type address struct {
	bucket
	last time.Time // when somebody was let in, or tried
}

// bucket has a token for each attempt that may be made at once; they come back with time.
type bucket struct {
	used float64
	at   time.Time
}

// take takes a token, or reports that there is none.
func (b *bucket) take(now time.Time, every time.Duration, burst float64) bool {
	b.used = max(0, b.used-max(0, now.Sub(b.at).Seconds())/every.Seconds())
	b.at = now
	if b.used+1 > burst {
		return false
	}
	b.used++
	return true
}

func (b *bucket) give() { b.used = max(0, b.used-1) }

func newAcquaintances() *acquaintances {
	return &acquaintances{now: time.Now, known: make(map[netip.Addr]*address), strangers: make(map[netip.Addr]*address)}
}

// try says whether somebody from an address may try to say who he is now, and whether the address is known.
func (a *acquaintances) try(from netip.Addr) (known, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if k := a.known[from]; k != nil && now.Sub(k.last) < knownFor {
		return true, k.take(now, knownEvery, knownBurst)
	}
	s := a.strangers[from]
	if s == nil {
		forget(a.strangers)
		s = new(address)
		a.strangers[from] = s
	}
	s.last = now
	if !s.take(now, strangerEvery, strangerBurst) {
		return false, false
	}
	if !a.all.take(now, strangersEvery, strangersBurst) {
		s.give()
		return false, false
	}
	return false, true
}

// met notes that somebody of the cluster is at an address. tried says that it was he who came, so that what try took is given back.
func (a *acquaintances) met(from netip.Addr, tried bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.known[from]
	if k == nil {
		forget(a.known)
		k = new(address)
		a.known[from] = k
		if s := a.strangers[from]; s != nil {
			delete(a.strangers, from)
			if tried {
				a.all.give()
			}
		}
	} else if tried {
		k.give()
	}
	k.last = a.now()
}

// forget makes room for one more: for the one of some that was seen last the longest time ago.
func forget(m map[netip.Addr]*address) {
	if len(m) < maxAddresses {
		return
	}
	var oldest netip.Addr
	var found *address
	n := 0
	for from, a := range m {
		if found == nil || a.last.Before(found.last) {
			oldest, found = from, a
		}
		if n++; n == forgetSample {
			break
		}
	}
	delete(m, oldest)
}
