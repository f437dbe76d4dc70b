package client

import (
	"context"
	"sync"
)

// rangeLock locks ranges of blocks of a file: shared for reads, exclusive for writes. Requests are granted in order
// of arrival where they overlap, so that none starves.
type rangeLock struct {
	mu  sync.Mutex
	all []*rangeHold // held and waiting, by arrival
	// granted is called when blocks, both inclusive, were locked for writing, before the holder goes on.
	granted func(first, last int64)
}

// rangeHold is one request. Its fields are guarded by the lock's mu.
type rangeHold struct {
	first, last int64 // blocks, both inclusive
	write       bool
	held        bool
	granted     chan struct{} // nil unless it had to wait
}

// lastBlock is beyond every file.
const lastBlock = int64(1) << 60

var holdPool = sync.Pool{New: func() any { return new(rangeHold) }}

// lock waits for [first, last]. The result is given to unlock.
func (l *rangeLock) lock(ctx context.Context, first, last int64, write bool) (*rangeHold, error) {
	h := holdPool.Get().(*rangeHold)
	*h = rangeHold{first: first, last: last, write: write}
	l.mu.Lock()
	h.held = !l.blocked(h, len(l.all))
	l.all = append(l.all, h)
	if h.held {
		l.mu.Unlock()
		l.locked(h)
		return h, nil
	}
	granted := make(chan struct{})
	h.granted = granted
	l.mu.Unlock()
	select {
	case <-granted:
		l.locked(h)
		return h, nil
	case <-ctx.Done():
		l.unlock(h) // wherever it stands
		return nil, ended(ctx)
	}
}

func (l *rangeLock) locked(h *rangeHold) {
	if h.write && l.granted != nil {
		l.granted(h.first, h.last)
	}
}

// try locks [first, last] if it need not wait, and else returns nil.
func (l *rangeLock) try(first, last int64, write bool) *rangeHold {
	h := holdPool.Get().(*rangeHold)
	*h = rangeHold{first: first, last: last, write: write, held: true}
	l.mu.Lock()
	if l.blocked(h, len(l.all)) {
		l.mu.Unlock()
		holdPool.Put(h)
		return nil
	}
	l.all = append(l.all, h)
	l.mu.Unlock()
	l.locked(h)
	return h
}

// blocked reports whether one of the first n requests keeps h waiting.
func (l *rangeLock) blocked(h *rangeHold, n int) bool {
	for _, o := range l.all[:n] {
		if o.first <= h.last && h.first <= o.last && (o.write || h.write) {
			return true
		}
	}
	return false
}

// unlock ends a request and grants those that it kept waiting.
func (l *rangeLock) unlock(h *rangeHold) {
	l.mu.Lock()
	at := -1
	for i, o := range l.all {
		if o == h {
			at = i
			break
		}
	}
	l.all = append(l.all[:at], l.all[at+1:]...)
	for i := at; i < len(l.all); i++ {
		if o := l.all[i]; !o.held && !l.blocked(o, i) {
			o.held = true
			close(o.granted)
		}
	}
	l.mu.Unlock()
	holdPool.Put(h)
}
