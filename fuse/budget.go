package fuse

import (
	"sync"
	"sync/atomic"
)

// budget bounds the requests served at once, by number and by the bytes they hold. Where there is room it takes no lock.
type budget struct {
	requests, bytes atomic.Int64 // still to be had; below zero only for a moment, by those who try
	closed          atomic.Bool

	mu      sync.Mutex
	free    *sync.Cond
	waiting atomic.Int32 // who waits for free; changed under mu
}

func (b *budget) init(requests, bytes int) {
	b.free = sync.NewCond(&b.mu)
	b.requests.Store(int64(requests))
	b.bytes.Store(int64(bytes))
}

// try takes room for one more request of cost bytes if there is some. It may miss room while others try.
func (b *budget) try(cost int) bool {
	if b.closed.Load() {
		return false
	}
	if b.subtract(cost) {
		return true
	}
	b.give(cost)
	return false
}

// subtract takes room, and says whether there was so much.
func (b *budget) subtract(cost int) bool {
	requests, bytes := b.requests.Add(-1), b.bytes.Add(-int64(cost))
	return requests >= 0 && bytes >= 0
}

// take waits until there is room for one more request of cost bytes; false means that the session ends.
func (b *budget) take(cost int, waiting func()) bool {
	if b.try(cost) {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Who gives after this sees that somebody waits, and what was given before is seen by the next look.
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	for told := false; !b.closed.Load(); b.free.Wait() {
		if b.subtract(cost) {
			return true
		}
		b.requests.Add(1)
		b.bytes.Add(int64(cost))
		if !told {
			told = true
			waiting()
		}
	}
	return false
}

func (b *budget) give(cost int) {
	b.requests.Add(1)
	b.bytes.Add(int64(cost))
	if b.waiting.Load() > 0 {
		b.mu.Lock() // who looks at this moment is waiting after it
		b.free.Broadcast()
		b.mu.Unlock()
	}
}

// close makes everyone who waits give up.
func (b *budget) close() {
	b.mu.Lock()
	b.closed.Store(true)
	b.mu.Unlock()
	b.free.Broadcast()
}
