package mds

import (
	"context"
	"errors"
	"sync"
	"time"
)

var errRequestTime = errors.New("the request's time is over")

// requestContext ends with its connection, the leadership, the session of a change, or when the request's time is over. Most requests
// never wait, and for those it is only looked at: the timer and the hooks that wake a waiter are set when Done is first called.
type requestContext struct {
	conn     context.Context
	l        *leadership
	x        *session // nil: of a read
	deadline time.Time

	mu     sync.Mutex
	full   context.Context // set by Done
	cancel context.CancelCauseFunc
	stops  [2]func() bool
	ended  bool
}

var _ context.Context = (*requestContext)(nil)

func (l *leadership) requestContext(conn context.Context, x *session) *requestContext {
	return &requestContext{conn: conn, l: l, x: x, deadline: time.Now().Add(l.s.o.RequestTimeout)}
}

// Deadline implements context.Context.
func (c *requestContext) Deadline() (time.Time, bool) {
	if d, ok := c.conn.Deadline(); ok && d.Before(c.deadline) {
		return d, true
	}
	return c.deadline, true
}

// Value implements context.Context.
func (c *requestContext) Value(key any) any {
	c.mu.Lock()
	full := c.full
	c.mu.Unlock()
	if full != nil {
		return full.Value(key) // knows the cause, too
	}
	return c.conn.Value(key)
}

// Done implements context.Context.
func (c *requestContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full != nil {
		return c.full.Done()
	}
	var timer context.Context
	timer, stopTimer := context.WithDeadlineCause(c.conn, c.deadline, errRequestTime)
	full, cancel := context.WithCancelCause(timer)
	c.full, c.cancel = full, func(err error) { cancel(err); stopTimer() }
	c.stops[0] = context.AfterFunc(c.l.ctx, func() { cancel(context.Cause(c.l.ctx)) })
	if c.x != nil {
		c.stops[1] = context.AfterFunc(c.x.ctx, func() { cancel(context.Cause(c.x.ctx)) })
	}
	if c.ended {
		c.release()
	}
	return c.full.Done()
}

// Err implements context.Context.
func (c *requestContext) Err() error {
	c.mu.Lock()
	full, ended := c.full, c.ended
	c.mu.Unlock()
	if full != nil {
		return full.Err()
	}
	if err := c.conn.Err(); err != nil {
		return err
	}
	if ended || c.l.ctx.Err() != nil || c.x != nil && c.x.ctx.Err() != nil {
		return context.Canceled
	}
	if !time.Now().Before(c.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// end releases what Done has set up. The request is over.
func (c *requestContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.full != nil {
		c.release()
	}
}

func (c *requestContext) release() {
	for _, stop := range c.stops {
		if stop != nil {
			stop()
		}
	}
	c.cancel(context.Canceled)
}
