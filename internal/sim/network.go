package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"varve/internal/wire"
)

const (
	// userTimeout is how long a kernel keeps a connection whose peer acknowledges nothing (package wire).
	userTimeout = 10 * time.Second
	// keepAlive is after what time a kernel finds out that the peer of an idle connection is gone.
	keepAlive = 30 * time.Second
	// dialTimeout bounds a Dial whose context has no end.
	dialTimeout = 5 * time.Second
)

// network is the hosts of one simulation and what is under way between them.
type network struct {
	seed uint64
	log  func(format string, args ...any)

	mu      sync.Mutex
	rules   rules
	meddle  meddler
	cover   *cover            // nil: nothing is counted
	hosts   map[string]*host  // by IP; the process that runs there now
	all     []*host           // that ever were
	links   map[[2]string]int // how many reasons there are for nothing to get from one IP to another
	slow    map[string]time.Duration
	still   map[string]int // how many reasons there are for the process at an IP to stand still
	dials   map[[2]string]uint64
	writes  map[uint64]bool // ordered writes that were sent, by what they say
	telling bool            // each frame that arrives is noted
	calm    bool            // nothing is lost or late any more
	stats   netStats
}

// rules are how often what happens to frames. Each is one of so many; 0: never.
type rules struct {
	lost   uint64 // the connection breaks in place of a frame
	reply  uint64 // the connection breaks right after a frame arrived, mostly before it was answered
	late   uint64 // a frame is late by up to lateBy
	lateBy time.Duration
}

type netStats struct {
	frames, broken, late uint64
	repeated             uint64 // ordered writes that were sent again
	trace                uint64 // of what arrived when
}

func newNetwork(seed uint64, r rules, log func(string, ...any)) *network {
	return &network{seed: seed, rules: r, log: log, hosts: make(map[string]*host), links: make(map[[2]string]int), slow: make(map[string]time.Duration), still: make(map[string]int), dials: make(map[[2]string]uint64)}
}

// mix is splitmix64's finalizer over a running hash: what happens to a frame depends on which frame of which connection it is, and not on what
// else was drawn before.
func mix(h uint64, v ...uint64) uint64 {
	for _, x := range v {
		h += x + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

func mixString(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return mix(h, uint64(len(s)))
}

// host is one process at one IP. When the process ends, so does the host: the next one gets another.
type host struct {
	n         *network
	ip        string
	dead      bool
	ends      map[*end]struct{}
	listeners map[string]*listener
}

var _ wire.Network = (*host)(nil)

// start returns the network of a new process at an IP. The earlier one must have ended.
func (n *network) start(ip string) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &host{n: n, ip: ip, ends: make(map[*end]struct{}), listeners: make(map[string]*listener)}
	n.hosts[ip] = h
	n.all = append(n.all, h)
	return h
}

// stop ends a process: nothing of it gets out any more. If power is lost, or the host is cut off, its peers hear nothing of it.
func (n *network) stop(h *host, power bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.dead = true
	if n.hosts[h.ip] == h {
		delete(n.still, h.ip) // the next process runs
	}
	if n.hosts[h.ip] == h && power {
		n.hosts[h.ip] = nil // present, and silent
	} else if n.hosts[h.ip] == h {
		delete(n.hosts, h.ip)
	}
	for _, l := range h.listeners {
		l.closeLocked()
	}
	for e := range h.ends {
		e.failLocked(net.ErrClosed)
		e.out.dropLocked()
		if power {
			e.peer.goneLocked()
		} else {
			e.out.sendLocked(segment{rst: true})
		}
	}
}

// close ends all processes.
func (n *network) close() {
	n.mu.Lock()
	all := n.all
	n.all = nil
	n.mu.Unlock()
	for _, h := range all {
		n.stop(h, false)
	}
}

// cut stops what goes from one IP to another until heal is called as often.
func (n *network) cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[[2]string{from, to}]++
}

func (n *network) heal(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := [2]string{from, to}
	if n.links[k]--; n.links[k] > 0 {
		return
	}
	delete(n.links, k)
	for _, h := range n.hosts {
		if h == nil || h.ip != from {
			continue
		}
		for e := range h.ends {
			if e.peer.ip == to {
				e.out.armLocked()
			}
		}
	}
	for _, h := range n.hosts { // what was sent by ends that were closed since
		if h == nil || h.ip != to {
			continue
		}
		for e := range h.ends {
			if e.peer.ip == from {
				e.peer.out.armLocked()
			}
		}
	}
}

// delay makes all that an IP sends late by d; 0 ends that.
func (n *network) delay(ip string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[ip] = d
}

// setRules changes what happens to frames from now on.
func (n *network) setRules(r rules) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules = r
}

// settle ends all that goes wrong by itself.
func (n *network) settle() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calm = true
}

// freeze has the process at an IP stand still, as far as others see: it takes nothing from its connections, which stay, and what it writes leaves when it goes
// on. Its timers run, so it finds out that it was stopped while it is.
func (n *network) freeze(ip string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.still[ip]++
}

// thaw lets it go on.
func (n *network) thaw(ip string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.still[ip] == 0 {
		return // it was killed meanwhile
	}
	if n.still[ip]--; n.still[ip] > 0 {
		return
	}
	h := n.hosts[ip]
	if h == nil {
		return
	}
	for e := range h.ends {
		held := e.out.held
		e.out.held = nil
		for _, s := range held {
			e.out.sendLocked(s)
		}
		e.cond.Broadcast()
	}
	for _, l := range h.listeners {
		l.cond.Broadcast()
	}
}

// tell begins or ends to note each frame that arrives.
func (n *network) tell(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.telling = on
}

func (n *network) isCut(from, to string) bool { return n.links[[2]string{from, to}] > 0 }

// latency is how long what an IP sends is on its way, by a hash: 50 µs to 500 µs, and now and then more.
func (n *network) latency(ip string, h uint64) time.Duration {
	d := 50*time.Microsecond + time.Duration(h%450_000)
	if h>>32%64 == 0 {
		d += time.Duration(h >> 40 % 20_000_000)
	}
	return d + n.slow[ip]
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

type listener struct {
	h      *host
	addr   string
	cond   sync.Cond
	queue  []*end
	closed bool
}

// Listen implements wire.Network.
func (h *host) Listen(_ context.Context, addr string) (net.Listener, error) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.dead {
		return nil, fmt.Errorf("listen on %s: %w", addr, net.ErrClosed)
	}
	if h.listeners[addr] != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, syscall.EADDRINUSE)
	}
	l := &listener{h: h, addr: addr}
	l.cond.L = &n.mu
	h.listeners[addr] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	n := l.h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for (len(l.queue) == 0 || n.still[l.h.ip] > 0) && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, net.ErrClosed
	}
	e := l.queue[0]
	l.queue = l.queue[1:]
	return e, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.h.n.mu.Lock()
	defer l.h.n.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.h.listeners, l.addr)
	for _, e := range l.queue {
		e.closeLocked()
	}
	l.cond.Broadcast()
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return address(l.addr) }

// Dial implements wire.Network.
func (h *host) Dial(ctx context.Context, addr string, _ wire.Class) (net.Conn, error) {
	n := h.n
	ip, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	n.mu.Lock()
	n.dials[[2]string{h.ip, addr}]++
	key := mix(mixString(mixString(n.seed, h.ip), addr), n.dials[[2]string{h.ip, addr}])
	wait := n.latency(h.ip, key) + n.latency(ip, mix(key, 1))
	n.mu.Unlock()
	for again := time.Second; ; again *= 2 {
		if err := pause(ctx, wait); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: address(addr), Err: os.ErrDeadlineExceeded}
		}
		c, err := h.connect(ip, addr, key)
		if err == nil || !errors.Is(err, errSilent) {
			return c, err
		}
		wait = again // as the kernel repeats a SYN
	}
}

var errSilent = errors.New("no answer")

func (h *host) connect(ip, addr string, key uint64) (net.Conn, error) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	to, present := n.hosts[ip]
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: address(addr), Err: err}
	}
	switch {
	case h.dead:
		return fail(net.ErrClosed)
	case n.still[h.ip] > 0:
		return fail(errSilent) // it asks when it goes on
	case n.isCut(h.ip, ip) || n.isCut(ip, h.ip) || present && to == nil:
		return fail(errSilent)
	case !present || to.listeners[addr] == nil:
		return fail(syscall.ECONNREFUSED)
	}
	l := to.listeners[addr]
	a, b := newEnd(h, addr), newEnd(to, addr)
	a.peer, b.peer = b, a
	a.local, a.remote = h.ip+":0", addr
	b.local, b.remote = addr, h.ip+":0"
	a.out, b.out = newPipe(a, mix(key, 2)), newPipe(b, mix(key, 3))
	h.ends[a], to.ends[b] = struct{}{}, struct{}{}
	l.queue = append(l.queue, b)
	l.cond.Broadcast()
	return a, nil
}

// pause sleeps for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
