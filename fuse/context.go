package fuse

import (
	"context"
	"sync"
	"time"

	"varve/internal/id"
)

// flight is one request under way and at once the context of its operation. It is cheap: the channel
// is made only when somebody asks for it, and contexts derived from it need no goroutine of their own
// (package context looks for the method AfterFunc). It is not reused, so that a Backend may keep it.
type flight struct {
	op      opcode
	ino     id.Ino
	pid     uint32
	started time.Time

	mu          sync.Mutex
	done        chan struct{}
	err         error
	after       []*afterCall
	interrupted bool // the kernel said that a signal is pending for the caller
	reported    bool // logged as slow
}

var _ context.Context = (*flight)(nil)

type afterCall struct{ f func() }

// Deadline says that there is none: the Backend has time-outs of its own.
func (c *flight) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value knows no keys.
func (c *flight) Value(any) any { return nil }

// Err returns context.Canceled once the request was interrupted or the mount is going away.
func (c *flight) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done returns a channel that is closed when Err becomes non-nil.
func (c *flight) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

// AfterFunc calls f in a goroutine of its own when the context is done, and returns a function that
// calls this off. It has the shape that package context looks for in a parent.
func (c *flight) AfterFunc(f func()) (stop func() bool) {
	call := &afterCall{f}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	c.after = append(c.after, call)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, a := range c.after {
			if a == call {
				c.after = append(c.after[:i], c.after[i+1:]...)
				return true
			}
		}
		return false
	}
}

// cancel ends the context. It may be called more than once.
func (c *flight) cancel() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
	calls := c.after
	c.after = nil
	c.mu.Unlock()
	for _, a := range calls {
		go a.f()
	}
}

// flightShards spreads the lock of the table; a power of two.
const flightShards = 16

// flights are the requests under way, by the kernel's number of the request.
type flights struct {
	shards [flightShards]struct {
		mu sync.Mutex
		m  map[uint64]*flight
	}
}

func (t *flights) init() {
	for i := range t.shards {
		t.shards[i].m = make(map[uint64]*flight)
	}
}

func (t *flights) add(unique uint64, f *flight) {
	s := &t.shards[unique>>1%flightShards]
	s.mu.Lock()
	s.m[unique] = f
	s.mu.Unlock()
}

func (t *flights) remove(unique uint64) {
	s := &t.shards[unique>>1%flightShards]
	s.mu.Lock()
	delete(s.m, unique)
	s.mu.Unlock()
}

func (t *flights) get(unique uint64) *flight {
	s := &t.shards[unique>>1%flightShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[unique]
}

// all returns those under way now, in no order.
func (t *flights) all() []*flight {
	var out []*flight
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, f := range s.m {
			out = append(out, f)
		}
		s.mu.Unlock()
	}
	return out
}
