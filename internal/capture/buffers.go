package capture

import (
	"sync"
	"time"
)

const (
	shards      = 8
	shardBytes  = 8192 * RecordSize // so much a shard, and once more while it is being taken: 8 MiB in all
	takeEvery   = 100 * time.Millisecond
	wakeAtBytes = shardBytes / 2
)

// Buffers hold the records of a capture until they are taken. Add never waits for who takes them.
type Buffers struct {
	began  time.Time
	wake   chan struct{} // gets an element when a shard is half full
	shards [shards]shard
	spare  []byte
}

// shard has a lock of its own, so that threads seldom meet, and cache lines of its own.
type shard struct {
	mu      sync.Mutex
	full    []byte // whole records
	dropped uint64
	_       [64]byte
}

// NewBuffers starts a capture.
func NewBuffers() *Buffers {
	b := &Buffers{began: time.Now(), wake: make(chan struct{}, 1), spare: make([]byte, 0, shardBytes)}
	for i := range b.shards {
		b.shards[i].full = make([]byte, 0, shardBytes)
	}
	return b
}

// Began is when the capture started: what began before does not belong to it.
func (b *Buffers) Began() time.Time { return b.began }

// Add adds a record, or drops it if nobody has taken the ones before in time. Numbers that differ in lane spread the load.
func (b *Buffers) Add(lane uint64, r *Record) {
	s := &b.shards[lane%shards]
	s.mu.Lock()
	n := len(s.full)
	if n+RecordSize > shardBytes {
		s.dropped++
		s.mu.Unlock()
		return
	}
	s.full = s.full[:n+RecordSize]
	r.put(s.full[n:])
	s.mu.Unlock()
	if n == wakeAtBytes {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// take calls f with the records of each shard, and returns how many were dropped in all. It belongs to one goroutine; what f gets is valid
// until it returns.
func (b *Buffers) take(f func([]byte) error) (dropped uint64, err error) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		full := s.full
		s.full = b.spare[:0]
		dropped += s.dropped
		s.mu.Unlock()
		b.spare = full
		if len(full) > 0 && err == nil {
			err = f(full)
		}
	}
	return dropped, err
}
