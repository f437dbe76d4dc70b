package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// stallAgain is how often a stall that goes on is logged again.
const stallAgain = time.Minute

// Stall is something that operations have waited for longer than Options.StallAfter.
type Stall struct {
	What       string    `json:"what"` // such as "replicas inode=3"
	Since      time.Time `json:"since"`
	Operations int       `json:"operations"` // that wait for it now
}

// stalls are what operations wait for. Many that wait for one thing are one stall, which is logged when it begins, once a minute, and when it ends.
type stalls struct {
	log *slog.Logger
	mu  sync.Mutex
	m   map[string]*stalled
}

type stalled struct {
	what  string
	attrs []any // of the first operation
	since time.Time
	now   int // operations that wait
	all   int // that have waited
	again *time.Timer
}

func (t *stalls) init(log *slog.Logger) { t.log, t.m = log, make(map[string]*stalled) }

// begin notes an operation that has waited since a time, and returns the stall that it is part of.
func (t *stalls) begin(what string, attrs []any, since time.Time) string {
	key := what
	if len(attrs) >= 2 {
		key = fmt.Sprintf("%s %v=%v", what, attrs[0], attrs[1])
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.m[key]
	if x == nil {
		x = &stalled{what: what, attrs: attrs, since: since}
		t.m[key] = x
		x.again = time.AfterFunc(stallAgain, func() { t.goesOn(key, x) })
		t.log.Warn("operation stalled", append([]any{"waiting for", what}, attrs...)...)
	}
	x.now++
	x.all++
	return key
}

func (t *stalls) goesOn(key string, x *stalled) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[key] != x {
		return
	}
	t.log.Warn("operation still stalled", append([]any{"waiting for", x.what, "waited", time.Since(x.since).Round(time.Second), "operations", x.now}, x.attrs...)...)
	x.again.Reset(stallAgain)
}

// end notes that an operation waits no more.
func (t *stalls) end(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.m[key]
	if x == nil {
		return
	}
	if x.now--; x.now > 0 {
		return
	}
	delete(t.m, key)
	x.again.Stop()
	t.log.Info("stalled operation ended", append([]any{"waited for", x.what, "took", time.Since(x.since).Round(time.Millisecond), "operations", x.all}, x.attrs...)...)
}

// Stalls returns what operations wait for, the longest first.
func (c *Client) Stalls() []Stall {
	t := &c.stalls
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Stall
	for key, x := range t.m {
		all = append(all, Stall{What: key, Since: x.since, Operations: x.now})
	}
	slices.SortFunc(all, func(a, b Stall) int { return a.Since.Compare(b.Since) })
	return all
}

// stall is the wait of one operation.
type stall struct {
	t     *stalls
	timer *time.Timer
	mu    sync.Mutex
	key   string // of what it is part of; "": it has not waited for so long
	ended bool
}

// watch counts an operation among the stalled ones from when it has waited for Options.StallAfter until end.
func (c *Client) watch(what string, attrs ...any) *stall {
	s := &stall{t: &c.stalls}
	start := time.Now()
	s.timer = time.AfterFunc(c.o.StallAfter, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.ended {
			s.key = s.t.begin(what, attrs, start)
		}
	})
	return s
}

func (s *stall) end() {
	if s == nil || s.timer.Stop() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended = true; s.key != "" {
		s.t.end(s.key)
		s.key = ""
	}
}

// failFast is how long an operation may take, at most, while the cluster is known to be out of reach.
const failFast = time.Second

// patience is what is known of how long operations take where Options.Timeout bounds them.
type patience struct {
	data, meta atomic.Bool  // the last one that ended was given up
	left       atomic.Int64 // bytes of writes that were given up when some replicas might have had them: they are carried out without their caller
}

// maxLeft bounds patience.left: above it no write begins.
const maxLeft = 256 << 20

// roomToGiveUp waits until a write could be given up.
func (c *Client) roomToGiveUp(ctx context.Context) error {
	if c.patience.left.Load() < maxLeft {
		return nil
	}
	st := c.watch("writes that were given up")
	defer st.end()
	var wait backoff
	for c.patience.left.Load() >= maxLeft {
		if err := wait.wait(ctx, c.ctx); err != nil {
			return err
		}
	}
	return nil
}

// limit applies Options.Timeout and Options.FailFast to an operation on metadata, limitData to one on an open file. The latter may ask the
// metadata servers meanwhile: that they answer says nothing of the data.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.limitOf(ctx, &c.patience.meta, 0)
}

func (c *Client) limitData(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.limitOf(ctx, &c.patience.data, 0)
}

// limitOf limits an operation that has taken some time already.
func (c *Client) limitOf(ctx context.Context, stuck *atomic.Bool, spent time.Duration) (context.Context, context.CancelFunc) {
	d := c.o.Timeout
	if d <= 0 {
		return ctx, func() {}
	}
	if c.o.FailFast && stuck.Load() {
		d = min(d, failFast)
	}
	d = max(d-spent, 0)
	limited, cancel := context.WithTimeout(ctx, d)
	return limited, func() {
		if ctx.Err() == nil { // else it was interrupted, which says nothing
			late := errors.Is(limited.Err(), context.DeadlineExceeded)
			if stuck.Swap(late) != late {
				c.tellStuck(late, d)
			}
		}
		cancel()
	}
}

func (c *Client) tellStuck(stuck bool, after time.Duration) {
	if !stuck {
		c.log.Info("operations succeed again")
		return
	}
	text := "an operation was given up: it fails with an I/O error"
	if c.o.FailFast {
		text += ", and so do others at once until one succeeds"
	}
	c.log.Error(text, "after", after)
}
