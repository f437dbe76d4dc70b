package admit

import (
	"errors"
	"fmt"
	"math"
	"time"

	"varve/internal/invariant"
)

// Class is the kind of a request, most urgent first.
type Class uint8

// The classes.
const (
	Heartbeat Class = iota
	Guest
	Replication
	Repair
	Rebalance
	Scrub
	Classes = int(Scrub) + 1
)

// background reports whether a class makes way for active guests and replication.
func (c Class) background() bool { return c >= Repair }

// Share is what one class gets of the whole.
type Share struct {
	// Weight is the share of service beside other classes that wait.
	Weight uint32
	// Reserve is the part of Ops and Bytes, in percent, that no other class may use.
	Reserve int
	// Rate is what a class behind guests gets in any case, in bytes a second, each request counted with OpCost.
	Rate int64
}

// Options of a Queue. Ops and Bytes are required.
type Options struct {
	Ops   int   // requests under way
	Bytes int64 // their payload
	// Largest is the most bytes of one request. It must fit beside the reserves.
	Largest int64
	// PerFlow is the part of Ops and Bytes, in percent, that one client may use, so that one that does not read its answers cannot hold
	// all. Default: 50.
	PerFlow int
	// Waiting bounds the requests that wait. Default: 16,384.
	Waiting int
	// Shares, by class. Default: DefaultShares.
	Shares [Classes]Share
	// BusyFor is how long guests count as active after their last request. Default: 100 ms.
	BusyFor time.Duration
}

// OpCost is what a request costs besides its bytes, in bytes: about what a disk could transfer instead.
const OpCost = 16 << 10

// DefaultShares of the classes.
var DefaultShares = [Classes]Share{
	Guest:       {Weight: 64, Reserve: 25},
	Replication: {Weight: 64, Reserve: 25},
	Repair:      {Weight: 8, Rate: 32 << 20},
	Rebalance:   {Weight: 4, Rate: 8 << 20},
	Scrub:       {Weight: 2, Rate: 8 << 20},
}

const (
	defaultWaiting = 16384
	defaultPerFlow = 50
	defaultBusyFor = 100 * time.Millisecond
	// unit is that of virtual time at the highest weight, in bytes: 2^64 of them are more than a server does in its life.
	unit      = 64
	maxWeight = 1 << 10
	// burst is how long a class behind guests may save up its rate.
	burst = 50 * time.Millisecond
)

// Request is one request. It is the caller's memory; Class, Bytes and Owner are set before Ask and not changed until the request is idle.
type Request struct {
	Class Class
	Bytes int64 // of payload that it will hold
	Owner any   // the caller's

	flow  *Flow
	next  *Request
	state state
}

type state uint8

const (
	idle state = iota
	waiting
	underWay
)

// UnderWay reports whether the request may go on: Next has returned it, and Done was not called.
func (r *Request) UnderWay() bool { return r.state == underWay }

// Flow is one client. The zero value works; it is used with one Queue.
type Flow struct {
	lanes  [Classes]lane
	used   use
	parked int // lanes that are not due although they have requests, since the client uses all it may
}

// lane is the requests of one client and class that wait.
type lane struct {
	head, tail *Request
	start      uint64 // virtual time of its class at which head is due
	finish     uint64 // at which the one before it was done
	place      int    // in class.due, while head is set; parked if it is not there
}

// parked is the place of a lane whose client uses all it may.
const parked = -1

// use is what requests hold.
type use struct {
	ops   int
	bytes int64
}

func (u use) plus(v use) use { return use{u.ops + v.ops, u.bytes + v.bytes} }

// over returns by how much u exceeds v.
func (u use) over(v use) use { return use{max(0, u.ops-v.ops), max(0, u.bytes-v.bytes)} }

func (u use) within(v use) bool { return u.ops <= v.ops && u.bytes <= v.bytes }

// class is the state of one class.
type class struct {
	Share
	reserve use
	used    use
	due     []*lane // heap by start
	virtual uint64  // start of the lane that was served last
	start   uint64  // virtual time of the queue at which the class is due
	finish  uint64
	credit  int64 // bytes that Rate gives now, as of refilled
	filled  time.Duration
}

// Queue decides for one server.
type Queue struct {
	o       Options
	shared  use // the budget without the reserves
	perFlow use
	classes [Classes]class
	virtual uint64
	waiting int
	waits   [Classes]int  // of waiting
	active  time.Duration // when a guest or replication was last under way
	wake    time.Duration
}

// New returns a queue with nothing in it.
func New(o Options) (*Queue, error) {
	if o.Waiting == 0 {
		o.Waiting = defaultWaiting
	}
	if o.PerFlow == 0 {
		o.PerFlow = defaultPerFlow
	}
	if o.BusyFor == 0 {
		o.BusyFor = defaultBusyFor
	}
	if o.Shares == [Classes]Share{} {
		o.Shares = DefaultShares
	}
	q := &Queue{o: o, shared: use{o.Ops, o.Bytes}, active: math.MinInt64 / 2}
	q.perFlow = use{max(1, o.Ops*o.PerFlow/100), max(o.Largest, o.Bytes*int64(o.PerFlow)/100)}
	var faults []error
	for i := Guest; int(i) < Classes; i++ {
		sh := o.Shares[i]
		if sh.Weight == 0 || sh.Weight > maxWeight || sh.Reserve < 0 || sh.Rate < 0 {
			faults = append(faults, fmt.Errorf("admission: class %d: weight %d, reserve %d %%, rate %d: want a weight from 1 to %d, and nothing negative",
				i, sh.Weight, sh.Reserve, sh.Rate, maxWeight))
		}
		c := &q.classes[i]
		c.Share, c.reserve = sh, use{o.Ops * sh.Reserve / 100, o.Bytes * int64(sh.Reserve) / 100}
		q.shared.ops -= c.reserve.ops
		q.shared.bytes -= c.reserve.bytes
	}
	if q.shared.ops < 1 || q.shared.bytes < max(o.Largest, 1) {
		faults = append(faults, fmt.Errorf("admission: of %d requests and %d bytes, %d and %d are not reserved: want at least one request of %d bytes",
			o.Ops, o.Bytes, q.shared.ops, q.shared.bytes, max(o.Largest, 1)))
	}
	if o.Waiting < 0 || o.BusyFor < 0 || o.PerFlow < 0 || o.PerFlow > 100 {
		faults = append(faults, fmt.Errorf("admission: Waiting %d, BusyFor %v, PerFlow %d %%: want nothing negative, and at most all", o.Waiting, o.BusyFor, o.PerFlow))
	}
	return q, errors.Join(faults...)
}

// Ask has a request of a client wait. It returns false, and has done nothing, if too many wait.
func (q *Queue) Ask(r *Request, f *Flow) bool {
	if r.state != idle || int(r.Class) >= Classes || r.Bytes < 0 || r.Bytes > max(q.o.Largest, 1) && r.Class != Heartbeat {
		invariant.Failf("admission: request of class %d and %d bytes in state %d is asked for; limit %d bytes", r.Class, r.Bytes, r.state, q.o.Largest)
	}
	if q.waiting >= q.o.Waiting {
		return false
	}
	r.flow, r.next, r.state = f, nil, waiting
	q.waiting++
	q.waits[r.Class]++
	l := &f.lanes[r.Class]
	if l.head != nil {
		l.tail.next = r
		l.tail = r
		return true
	}
	l.head, l.tail = r, r
	q.due(r.Class, l)
	return true
}

// due has the requests of a lane that is not due be so.
func (q *Queue) due(k Class, l *lane) {
	c := &q.classes[k]
	l.start = max(c.virtual, l.finish)
	if len(c.due) == 0 {
		c.start = max(q.virtual, c.finish)
	}
	c.push(l)
}

// park takes the lanes of a class that come first off those that are due, until the client of the first may use more.
func (q *Queue) park(c *class) {
	for len(c.due) > 0 {
		l := c.due[0]
		f := l.head.flow
		if f.used.plus(use{1, l.head.Bytes}).within(q.perFlow) {
			return
		}
		c.remove(0)
		f.parked++
	}
}

// unpark has the lanes of a client be due again.
func (q *Queue) unpark(f *Flow) {
	for k := range f.lanes {
		if l := &f.lanes[k]; l.head != nil && l.place == parked {
			q.due(Class(k), l)
		}
	}
	f.parked = 0
}

// Next returns a request that may go on now, or nil.
func (q *Queue) Next(now time.Duration) *Request {
	q.wake = math.MaxInt64
	if q.waiting == 0 {
		return nil
	}
	busy := q.busy(now)
	if len(q.classes[Heartbeat].due) > 0 {
		return q.serve(Heartbeat, now, busy)
	}
	var seen [Classes]bool
	// Once a class whose turn it is needs more than is left of the shared budget, the others leave it that: else many small requests would
	// keep a large one away.
	left := true
	for {
		k := q.first(&seen)
		if k == Heartbeat {
			return nil
		}
		seen[k] = true
		if q.park(&q.classes[k]); len(q.classes[k].due) == 0 {
			continue
		}
		if busy && k.background() && !q.allowed(k, now) {
			continue
		}
		c := &q.classes[k]
		after := c.used.plus(use{1, c.due[0].head.Bytes})
		if after.within(c.reserve) {
			return q.serve(k, now, busy)
		}
		if left && q.borrowed(k).plus(after.over(c.reserve)).within(q.shared) {
			return q.serve(k, now, busy)
		}
		left = false
	}
}

// Wake returns when Next may have something although nothing was done since; it is in the far future if never.
func (q *Queue) Wake() time.Duration { return q.wake }

// first returns the class that was not seen and is due first, or Heartbeat if there is none. Of two that are due at once the more
// urgent is first.
func (q *Queue) first(seen *[Classes]bool) Class {
	best := Heartbeat
	for k := Guest; int(k) < Classes; k++ {
		if c := &q.classes[k]; len(c.due) > 0 && !seen[k] && (best == Heartbeat || c.start < q.classes[best].start) {
			best = k
		}
	}
	return best
}

// borrowed returns what the classes but one use of the shared budget.
func (q *Queue) borrowed(but Class) (u use) {
	for k := Guest; int(k) < Classes; k++ {
		if c := &q.classes[k]; k != but {
			u = u.plus(c.used.over(c.reserve))
		}
	}
	return u
}

// busy reports whether guests or replication are active.
func (q *Queue) busy(now time.Duration) bool {
	if q.classes[Guest].used.ops+q.classes[Replication].used.ops > 0 {
		q.active = now
	}
	return now-q.active < q.o.BusyFor
}

// allowed reports whether a class behind guests may go on beside them: it has had less than its share of what they had, or than its rate.
func (q *Queue) allowed(k Class, now time.Duration) bool {
	c := &q.classes[k]
	if c.start <= q.virtual {
		return true
	}
	c.refill(now)
	if c.credit > 0 {
		return true
	}
	if c.Rate > 0 {
		q.wake = min(q.wake, now+time.Duration((1-c.credit)*int64(time.Second)/c.Rate)+1)
	}
	q.wake = min(q.wake, q.active+q.o.BusyFor)
	return false
}

// refill adds what Rate gave since it was called last.
func (c *class) refill(now time.Duration) {
	// The time is bounded first, so that the product is.
	spent := min(now-c.filled, time.Minute)
	most := c.Rate * int64(burst) / int64(time.Second)
	if add := int64(spent) / 1000 * c.Rate / 1_000_000; add > 0 || spent >= time.Minute {
		c.credit = min(c.credit+add, most)
		c.filled = now
	}
}

// serve takes the request of a class that is due and lets it go on.
func (q *Queue) serve(k Class, now time.Duration, busy bool) *Request {
	c := &q.classes[k]
	l := c.due[0]
	r := l.head
	q.waiting--
	q.waits[k]--
	r.state = underWay
	l.head, r.next = r.next, nil
	cost := r.Bytes + OpCost
	c.virtual, l.finish = l.start, l.start+uint64(cost)/unit
	if l.start = l.finish; l.head != nil {
		c.down(0)
	} else {
		l.tail = nil
		c.remove(0)
	}
	if k == Heartbeat {
		return r
	}
	c.used = c.used.plus(use{1, r.Bytes})
	r.flow.used = r.flow.used.plus(use{1, r.Bytes})
	switch {
	case !k.background():
		q.active = now
		q.virtual = max(q.virtual, c.start)
	case busy:
		// What it gets by its rate it has had of its share, and the other way round; but a fat share leaves no debt. Its time does not
		// count: it may be ahead of its turn.
		c.refill(now)
		c.credit = max(c.credit-cost, -cost)
	default:
		q.virtual = max(q.virtual, c.start)
	}
	c.finish = c.start + uint64(cost)/unit*maxWeight/uint64(c.Weight)
	c.start = c.finish
	return r
}

// Done takes back what a request used that was under way.
func (q *Queue) Done(r *Request, now time.Duration) {
	if r.state != underWay {
		invariant.Failf("admission: request of class %d in state %d is done", r.Class, r.state)
	}
	f := r.flow
	r.state, r.flow = idle, nil
	if r.Class == Heartbeat {
		return
	}
	f.used = f.used.plus(use{-1, -r.Bytes})
	if f.parked > 0 {
		q.unpark(f)
	}
	c := &q.classes[r.Class]
	c.used = c.used.plus(use{-1, -r.Bytes})
	if c.used.ops < 0 || c.used.bytes < 0 {
		invariant.Failf("admission: class %d holds %d requests and %d bytes", r.Class, c.used.ops, c.used.bytes)
	}
	if !r.Class.background() {
		q.active = now
	}
}

// Cancel has a request wait no longer. It returns false if the request does not wait.
func (q *Queue) Cancel(r *Request) bool {
	if r.state != waiting {
		return false
	}
	q.waiting--
	q.waits[r.Class]--
	l := &r.flow.lanes[r.Class]
	c := &q.classes[r.Class]
	switch {
	case l.head != r:
		p := l.head
		for p.next != r {
			p = p.next
		}
		if p.next = r.next; l.tail == r {
			l.tail = p
		}
	case r.next != nil:
		l.head = r.next
	default:
		l.head, l.tail = nil, nil
		if l.place == parked {
			r.flow.parked--
		} else {
			c.remove(l.place)
		}
	}
	r.state, r.flow, r.next = idle, nil, nil
	return true
}

// Use returns how many clients have requests of a class that are due, and what those under way hold.
func (q *Queue) Use(k Class) (clients, ops int, bytes int64) {
	c := &q.classes[k]
	return len(c.due), c.used.ops, c.used.bytes
}

// WaitingOf returns how many requests of a class wait.
func (q *Queue) WaitingOf(k Class) int { return q.waits[k] }

// Waiting returns how many requests wait.
func (q *Queue) Waiting() int { return q.waiting }
