package bond

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/wire"
)

const (
	probeTries = 2                      // attempts to connect over a slave before it counts as dead
	probeFor   = 200 * time.Millisecond // each of them
	probeStep  = 50 * time.Millisecond  // between their beginnings
	heardFor   = time.Second            // a connection over another slave that has heard of the peer since then says that the peer lives
	tryAgain   = 200 * time.Millisecond // where nothing says so
	probeAgain = time.Second            // until a slave that was found alive is tried again
	probeMin   = 150 * time.Millisecond // between probes of a dead slave at first
	probeMax   = 2 * time.Second        // and later, if it comes and goes
	probeGood  = 2                      // probes in a row that a dead slave must answer
	flapping   = 30 * time.Second       // a slave that dies again so soon is tried less often
	maxSuspect = 1024
	maxProbes  = 16 // tries for a port that is free
)

// Verdict is what to do with a connection.
type Verdict uint8

// Verdicts.
const (
	Stay Verdict = iota
	Move         // to a new connection, when nothing is under way: its slave carries another one's share
	Drop         // at once: its slave is dead, and what is under way will not be answered
)

// wayKey is a slave as a peer is reached over it: its number among the usable.
type wayKey struct {
	bond  string
	peer  netip.Addr
	slave int
}

// suspect is a slave over which a peer did not answer.
type suspect struct {
	dead   bool
	trying bool
	since  time.Time // dead, or alive again
	next   time.Time // not to be tried before, since it was just found alive
	good   int       // probes answered since it was dead
	pause  time.Duration
}

// Judge says what to do with connection number (wire.Options.Way) to a peer that is doing so. It is to be asked
// many times a second while something is waited for, and else now and then.
func (b *Bonds) Judge(number int, s *wire.Sign) Verdict {
	if b == nil || number == 0 || !s.Local.IsValid() || !s.Remote.IsValid() {
		return Stay
	}
	w, ok := b.toward(s.Local.Addr(), s.Remote.Addr())
	if !ok || !w.steered || w.usable == 0 {
		return Stay
	}
	b.noteMTU(s)
	pair := pairOf(s.Local, s.Remote)
	port := s.Local.Port()
	out, back := int(pair.Out(port))%w.usable, int(pair.Back(port))%w.usable
	want := b.slaveOf(w, s.Remote.Addr(), number-1)
	if out == back && s.SinceData < quietEdge {
		b.noteHeard(wayKey{w.bond, s.Remote.Addr().Unmap(), out})
	}
	if out != want || back != want {
		if s.Silent(quietEdge) || b.isDead(w, s.Remote.Addr(), out) || b.isDead(w, s.Remote.Addr(), back) {
			return Drop
		}
		return Move
	}
	if w.usable > 1 && s.Silent(quietEdge) {
		b.try(w, s.Remote, want)
	}
	return Stay
}

func (b *Bonds) isDead(w way, peer netip.Addr, k int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.dead[wayKey{w.bond, peer.Unmap(), k}]
	return s != nil && s.dead
}

// try begins to find out whether a slave still leads to a peer.
func (b *Bonds) try(w way, remote netip.AddrPort, k int) {
	key := wayKey{w.bond, remote.Addr().Unmap(), k}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.dead[key]
	if s == nil {
		if len(b.dead) >= maxSuspect {
			return
		}
		s = &suspect{pause: probeMin}
		b.dead[key] = s
	}
	if s.trying || s.dead || time.Now().Before(s.next) {
		return
	}
	select {
	case <-b.stop:
		return
	default:
	}
	s.trying = true
	b.done.Go(func() { b.probe(w, remote, key, s) })
}

// probe tries a slave, and another one, and if the slave is dead goes on until it is not.
func (b *Bonds) probe(w way, remote netip.AddrPort, key wayKey, s *suspect) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stopped sync.WaitGroup
	stopped.Go(func() {
		select {
		case <-b.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	defer stopped.Wait()
	defer cancel()
	others := make(chan bool, 1)
	stopped.Go(func() { others <- b.othersAnswer(ctx, w, remote, key) })
	alive := b.tries(ctx, w, remote, key.slave)
	if other := <-others; !other || alive || ctx.Err() != nil { // it is the peer that is silent, or nobody
		b.mu.Lock()
		s.trying, s.next = false, time.Now().Add(probeAgain)
		if !other {
			s.next = time.Now().Add(tryAgain)
		}
		b.mu.Unlock()
		return
	}
	b.mu.Lock()
	if b.dead[key] != s { // the driver has other slaves now
		b.mu.Unlock()
		return
	}
	if time.Since(s.since) < flapping && !s.since.IsZero() {
		s.pause = min(2*s.pause, probeMax)
	} else {
		s.pause = probeMin
	}
	s.dead, s.good, s.since = true, 0, time.Now()
	b.mu.Unlock()
	b.o.Logger.Warn("a link of a bond leads nowhere, though the driver has it up: connections go over the others", "bond", key.bond, "slave", b.slaveName(key), "peer", key.peer)
	b.wake()
	for b.good(s) < probeGood {
		select {
		case <-time.After(s.pause):
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		current := b.dead[key] == s
		b.mu.Unlock()
		if !current {
			return
		}
		answers := b.answers(ctx, w, remote, key.slave)
		b.mu.Lock()
		if s.good++; !answers {
			s.good = 0
		}
		b.mu.Unlock()
	}
	b.mu.Lock()
	s.dead, s.trying, s.since = false, false, time.Now()
	b.mu.Unlock()
	b.o.Logger.Info("a link of a bond leads to its peer again", "bond", key.bond, "slave", b.slaveName(key), "peer", key.peer)
	b.wake()
}

// tries reports whether one of several attempts to connect over a slave is answered.
func (b *Bonds) tries(ctx context.Context, w way, remote netip.AddrPort, k int) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got := make(chan bool, probeTries)
	for i := range probeTries {
		go func() { // ends with ctx, or after probeFor
			select {
			case <-time.After(time.Duration(i) * probeStep):
				got <- b.answers(ctx, w, remote, k)
			case <-ctx.Done():
				got <- false
			}
		}()
	}
	alive := false
	for range probeTries {
		if <-got {
			alive = true
			cancel()
		}
	}
	return alive
}

// othersAnswer reports whether a peer lives, as far as other slaves know: connections over them have heard of it, or an attempt to connect is answered.
func (b *Bonds) othersAnswer(ctx context.Context, w way, remote netip.AddrPort, key wayKey) bool {
	for k := range w.usable {
		if k == key.slave || b.isDead(w, key.peer, k) {
			continue
		}
		b.mu.Lock()
		heard := b.heard[wayKey{key.bond, key.peer, k}]
		b.mu.Unlock()
		if time.Since(heard) < heardFor || b.tries(ctx, w, remote, k) {
			return true
		}
	}
	return false
}

// noteHeard remembers that a peer was heard of over a slave just now.
func (b *Bonds) noteHeard(key wayKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.heard[key]; known || len(b.heard) < maxPaths {
		b.heard[key] = time.Now()
	}
}

func (b *Bonds) good(s *suspect) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s.good
}

// slaveName returns the name of a usable slave.
func (b *Bonds) slaveName(key wayKey) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.bonds[key.bond]; s != nil {
		if u := s.Usable(); key.slave < len(u) {
			return u[key.slave].Name
		}
	}
	return "?"
}

// answers reports whether the peer's kernel answers an attempt to connect over a slave.
func (b *Bonds) answers(ctx context.Context, w way, remote netip.AddrPort, k int) bool {
	for range maxProbes {
		from := b.choose(w, remote, k, k)
		if !from.IsValid() {
			return false
		}
		d := net.Dialer{Timeout: probeFor, LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuse}
		d.SetMultipathTCP(false)
		c, err := d.DialContext(ctx, "tcp", remote.String())
		if err == nil {
			c.Close()
			return true
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return true
		}
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return false
		}
	}
	return false
}

func reuse(_, _ string, rc syscall.RawConn) error {
	return rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
}
