package throttle

import (
	"fmt"
	"time"
)

const (
	// tolerated is how much longer than usual guests may wait, in percent. They are promised 150.
	tolerated = 130
	// leastGuests is how many requests there must be in a look for their p99 to be worth something.
	leastGuests = 50
	// fullMemory and fullLink are what counts as short of memory and as a full link, in permille.
	fullMemory = 900
	fullLink   = 900
	// lateHeartbeat is an answer to a heartbeat that took so long that the way is full.
	lateHeartbeat = 400 * time.Millisecond
	// probing is how many looks a rate is held at its least to learn what guests usually wait.
	probing = 4
	// drifting is how many looks at the least rate it takes until it is taken for not being repair's doing that guests wait longer.
	drifting = 10
	// settling is how many looks the rate rests after pressure, since what was measured is older than what was decided.
	settling = 2
	// startShare is the part, 1 in so many, of the most with which a repair begins.
	startShare = 16
	// quiet is how many looks without copying it takes until what guests wait is not repair's doing.
	quiet = 2
	// usualWeight is the share, 1 in so many, of a look in what is usual; driftWeight while the rate is at its least and guests wait longer.
	usualWeight = 8
	driftWeight = 32
)

// Views is how many independent measures of what guests wait there are: for reads and for changes as they see it, and as servers do.
const Views = 3

// Guests is what guests met since the last look.
type Guests struct {
	Requests uint64
	P99      time.Duration
}

// Sample is what was met since the last look.
type Sample struct {
	Guests    [Views]Guests
	Memory    uint32        // payload memory in use, of the server that has least left, in permille
	Link      uint32        // of its speed, the fullest link of a server, in permille; 0: not known
	Heartbeat time.Duration // the longest that an answer to a heartbeat took
	Copied    uint64        // bytes that rebuilds have copied
}

// Limits of the rate, in bytes a second.
type Limits struct{ Least, Most uint64 }

// Budget is the rate at which all rebuilds together may copy. The zero value has met nothing yet.
type Budget struct {
	rate   uint64
	broke  uint64 // where pressure began last, 0: it has not
	rest   int    // looks until the rate may grow
	bottom int    // looks at the least rate so far, while something is copied
	silent int    // looks without copying, at most quiet
	usual  [Views]time.Duration
	held   string
}

// Rate returns the rate that the last Step decided.
func (b *Budget) Rate() uint64 { return b.rate }

// Held says why the rate was lowered or is not raised; "" if it grows or is at its most.
func (b *Budget) Held() string { return b.held }

// Usual returns the p99 that guests usually meet, as a view has it; 0 if it is not known.
func (b *Budget) Usual(view int) time.Duration { return b.usual[view] }

// Step takes a look, about a second after the one before, and returns the rate until the next.
func (b *Budget) Step(s Sample, l Limits) uint64 {
	l.Most = max(l.Most, 1)
	l.Least = min(max(l.Least, 1), l.Most)
	if b.rate == 0 {
		b.rate = l.Most / startShare
	}
	if b.silent = min(b.silent+1, quiet); s.Copied > 0 {
		b.silent = 0
	}
	why := b.pressure(s)
	b.learn(s, l)
	switch {
	case b.silent == quiet: // nothing is copied: this is how the next repair begins
		b.rate, b.rest, b.held = l.Most/startShare, 0, ""
		if b.broke > 0 {
			b.rate = min(b.rate, b.broke*3/4)
		}
	case why != "":
		if b.rest == 0 { // else the last decision has not been felt yet
			b.broke = b.rate
			b.rate /= 2
			b.rest = settling + 1
		}
		b.held = why
	case b.unknown(s):
		// Something is copied, and nobody knows how fast guests would be without.
		b.rate, b.held = l.Least, "finding out what guests usually wait"
	case b.rest > 0:
		// What was decided last is still to be felt.
	default:
		b.held = ""
		b.grow(s)
	}
	b.rest = max(b.rest-1, 0)
	b.rate = min(max(b.rate, l.Least), l.Most)
	return b.rate
}

// grow raises the rate.
func (b *Budget) grow(s Sample) {
	working := false
	for _, g := range s.Guests {
		working = working || g.Requests >= leastGuests
	}
	switch {
	case !working:
		b.rate *= 2
		b.broke = 0
	case b.broke == 0 || b.rate < b.broke*3/4:
		b.rate += max(b.rate/4, 1)
	default:
		b.rate += max(b.rate/32, 1)
	}
}

// pressure says what speaks against going on as fast as now, "" if nothing.
func (b *Budget) pressure(s Sample) string {
	switch {
	case s.Memory >= fullMemory:
		return fmt.Sprintf("memory is short: %d.%d %% of a server's is in use", s.Memory/10, s.Memory%10)
	case s.Link >= fullLink:
		return fmt.Sprintf("a link is full: %d.%d %% of it is used", s.Link/10, s.Link%10)
	case s.Heartbeat >= lateHeartbeat:
		return fmt.Sprintf("heartbeats are late: one took %v", s.Heartbeat)
	}
	for i, g := range s.Guests {
		if u := b.usual[i]; u > 0 && g.Requests >= leastGuests && g.P99*100 > u*tolerated {
			return fmt.Sprintf("guests wait longer: p99 %v, usually %v", g.P99, u)
		}
	}
	return ""
}

// unknown reports whether guests are at work of whom it is not known what they usually wait.
func (b *Budget) unknown(s Sample) bool {
	for i, g := range s.Guests {
		if g.Requests >= leastGuests && b.usual[i] == 0 {
			return true
		}
	}
	return false
}

// learn takes note of what guests usually wait.
func (b *Budget) learn(s Sample, l Limits) {
	if b.silent < quiet && b.rate <= l.Least {
		b.bottom++
	} else {
		b.bottom = 0
	}
	for i, g := range s.Guests {
		u := &b.usual[i]
		switch {
		case g.Requests < leastGuests:
		case b.silent == quiet, *u != 0 && g.P99 < *u:
			// Not repair's doing, or better than usual in spite of it.
			if *u == 0 {
				*u = g.P99
			}
			*u += (g.P99 - *u) / usualWeight
		case *u == 0 && b.bottom >= probing:
			*u = g.P99
		case *u != 0 && b.bottom >= drifting && g.P99 > *u:
			*u += (g.P99 - *u) / driftWeight
		}
	}
}
