package waits

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// first is after how long a wait is told, most the longest time until it is told again.
	first = 2 * time.Second
	most  = time.Minute
	// maxTold bounds the things that are told of at once.
	maxTold = 1024
)

// Table is what a process waits for.
type Table struct {
	Log   *slog.Logger
	First time.Duration // after how long a wait is told; default 2 s

	mu   sync.Mutex
	told map[string]*thing
}

// thing is something that is waited for, and was told.
type thing struct {
	key     string
	what    string
	attrs   []any
	since   time.Time
	waiting int
	next    time.Duration
	timer   *time.Timer
}

// Wait is one that waits.
type Wait struct {
	t     *Table
	what  string
	attrs []any
	start time.Time
	timer *time.Timer

	// Guarded by Table.mu.
	ended bool
	told  *thing // nil: not told yet
}

// For begins a wait. attrs are as for slog; two waits with the same words and attributes are for the same thing.
func (t *Table) For(what string, attrs ...any) *Wait {
	if t == nil || t.Log == nil {
		return nil
	}
	w := &Wait{t: t, what: what, attrs: attrs, start: time.Now()}
	w.timer = time.AfterFunc(t.first(), w.long)
	return w
}

func (t *Table) first() time.Duration {
	if t.First > 0 {
		return t.First
	}
	return first
}

// long is called when the wait has taken long.
func (w *Wait) long() {
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.ended {
		return
	}
	key := w.what + fmt.Sprint(w.attrs...)
	x := t.told[key]
	if x == nil {
		if len(t.told) >= maxTold {
			return
		}
		if t.told == nil {
			t.told = make(map[string]*thing)
		}
		x = &thing{key: key, what: w.what, attrs: w.attrs, since: w.start, next: t.first()}
		t.told[key] = x
		x.timer = time.AfterFunc(x.next, func() { t.again(x) })
		t.tell(x, "waiting")
	}
	x.waiting++
	w.told = x
}

// again tells of what is still waited for.
func (t *Table) again(x *thing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.told[x.key] != x {
		return
	}
	x.next = min(2*x.next, most)
	x.timer.Reset(x.next)
	t.tell(x, "still waiting")
}

func (t *Table) tell(x *thing, how string) {
	attrs := append([]any{"for", x.what, "waited", time.Since(x.since).Round(100 * time.Millisecond), "requests", max(x.waiting, 1)}, x.attrs...)
	t.Log.Warn(how, attrs...)
}

// End ends the wait. A nil wait has nothing to end.
func (w *Wait) End() {
	if w == nil || w.timer.Stop() {
		return
	}
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.ended {
		return
	}
	w.ended = true
	x := w.told
	if x == nil {
		return
	}
	if x.waiting--; x.waiting > 0 {
		return
	}
	x.timer.Stop()
	delete(t.told, x.key)
	t.Log.Info("waited", append([]any{"for", x.what, "waited", time.Since(x.since).Round(100 * time.Millisecond)}, x.attrs...)...)
}
