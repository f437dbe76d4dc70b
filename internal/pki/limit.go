package pki

import (
	"net/netip"
	"sync"
	"time"
)

// Limits on attempts to join. None keeps an administrator out for longer than maxDelay, but for what others do from many addresses; and what these can do
// ends soon, since those of whose attempts one came to nothing have a share of their own.
const (
	sourceBurst   = 10
	sourceEvery   = time.Second // an attempt of one source, in the long run
	totalBurst    = 32
	totalEvery    = 200 * time.Millisecond // an attempt of all together
	maxUnderWay   = 24                     // of either share
	maxFromSource = 3
	// maxTurn is how long somebody may take for the proof while others wait for his turn.
	maxTurn      = 4 * time.Second
	firstDelay   = time.Second
	maxDelay     = time.Minute
	forgetAfter  = 15 * time.Minute // a wrong password
	maxSources   = 4096
	forgetSample = 64
)

// limiter says when somebody may try to join. The work of an attempt is the node's; here it costs a few hashes, so what is limited is
// guessing.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[netip.Prefix]*attempts
	shares  [2]share // of sources that have done nothing wrong lately, and of the others
}

// share is what one kind of sources may do together.
type share struct {
	all   bucket
	turns map[*turn]struct{}
}

// attempts are those of one source.
type attempts struct {
	bucket
	under  int
	wrong  int
	left   bool      // an attempt ended without a proof
	last   time.Time // when it last tried
	closed time.Time // until when it may not
}

// bucket has a token for each attempt that may be made at once; they come back with time.
type bucket struct {
	used float64
	at   time.Time
}

// take takes a token, or says after what time there is one.
func (b *bucket) take(now time.Time, every time.Duration, burst float64) time.Duration {
	if !b.at.IsZero() {
		b.used = max(0, b.used-max(0, now.Sub(b.at).Seconds())/every.Seconds())
	}
	b.at = now
	if b.used+1 > burst {
		return time.Duration((b.used + 1 - burst) * float64(every))
	}
	b.used++
	return 0
}

func newLimiter(now func() time.Time) *limiter {
	l := &limiter{now: now, sources: make(map[netip.Prefix]*attempts)}
	for n := range l.shares {
		l.shares[n].turns = make(map[*turn]struct{})
	}
	return l
}

// turn is an attempt under way.
type turn struct {
	l      *limiter
	of     *share
	from   *attempts
	since  time.Time
	proved bool // or was about to
	cut    func()
}

// begin begins an attempt, or returns nil and when to try again. cut is called if it takes too long while others wait; it must not block.
func (l *limiter) begin(from netip.Prefix, cut func()) (*turn, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	a := l.sources[from]
	if a == nil {
		if len(l.sources) >= maxSources {
			l.forget()
		}
		a = new(attempts)
		l.sources[from] = a
	}
	if a.wrong > 0 && now.Sub(a.last) > forgetAfter {
		a.wrong, a.left = 0, false
	}
	if wait := a.closed.Sub(now); wait > 0 {
		return nil, wait
	}
	of := &l.shares[0]
	if a.wrong > 0 || a.left {
		of = &l.shares[1]
	}
	if a.under >= maxFromSource || len(of.turns) >= maxUnderWay && !of.cutOne(now) {
		return nil, firstDelay
	}
	if wait := a.take(now, sourceEvery, sourceBurst); wait > 0 {
		return nil, wait
	}
	if wait := of.all.take(now, totalEvery, totalBurst); wait > 0 {
		return nil, wait
	}
	a.last = now
	a.under++
	t := &turn{l: l, of: of, from: a, since: now, cut: cut}
	of.turns[t] = struct{}{}
	return t, 0
}

// cutOne ends the attempt that takes longest, if that is too long.
func (s *share) cutOne(now time.Time) bool {
	var oldest *turn
	for t := range s.turns {
		if oldest == nil || t.since.Before(oldest.since) {
			oldest = t
		}
	}
	if now.Sub(oldest.since) < maxTurn {
		return false
	}
	delete(s.turns, oldest)
	oldest.cut()
	return true
}

// forget makes room: for the one of some sources that has not tried for the longest time.
func (l *limiter) forget() {
	var oldest netip.Prefix
	var found *attempts
	n := 0
	for p, a := range l.sources {
		if a.under == 0 && (found == nil || a.last.Before(found.last)) {
			oldest, found = p, a
		}
		if n++; n == forgetSample {
			break
		}
	}
	if found != nil {
		delete(l.sources, oldest)
	}
}

// failed notes a wrong password, and returns for how long the source has to wait.
func (t *turn) failed() time.Duration {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.proved = true
	delay := firstDelay
	for range min(t.from.wrong, 16) {
		delay = min(2*delay, maxDelay)
	}
	t.from.wrong++
	t.from.closed = t.l.now().Add(delay)
	return delay
}

func (t *turn) succeeded() {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.proved = true
	t.from.wrong, t.from.left = 0, false
}

func (t *turn) end() {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.from.under--
	delete(t.of.turns, t)
	if !t.proved {
		t.from.left = true
	}
}
