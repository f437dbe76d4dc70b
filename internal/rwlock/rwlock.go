// Package rwlock is a lock like sync.RWMutex for holders that wait, under it, for other machines.
//
// Who waits for it waits on a condition, and so package testing/synctest knows that he waits: under a sync.RWMutex virtual time would stand
// still for ever, since for all that package knows the holder is at work. Locking and unlocking for reading is one atomic operation each
// while nobody writes. The algorithm is that of sync.RWMutex.
package rwlock

import (
	"sync"
	"sync/atomic"
)

// Mutex is held by many for reading or by one for writing. One who waits for writing keeps later readers out, and a writer that is done lets in
// all readers that wait. The zero value is free. It must not be copied.
type Mutex struct {
	readers   atomic.Int32 // holding and waiting; less by maxReaders while somebody writes or waits for that
	departing atomic.Int32 // readers that the writer waits for
	turn      semaphore    // of writers: whose turn it is
	begun     atomic.Bool  // turn has its one unit
	read      semaphore
	write     semaphore
}

const maxReaders = 1 << 30

// RLock locks for reading.
func (m *Mutex) RLock() {
	if m.readers.Add(1) < 0 {
		m.read.acquire()
	}
}

// TryRLock locks for reading if it need not wait.
func (m *Mutex) TryRLock() bool {
	for {
		n := m.readers.Load()
		if n < 0 {
			return false
		}
		if m.readers.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// RUnlock ends RLock.
func (m *Mutex) RUnlock() {
	n := m.readers.Add(-1)
	if n >= 0 {
		return
	}
	if n+1 == 0 || n+1 == -maxReaders {
		panic("rwlock: RUnlock of a Mutex that is not locked for reading")
	}
	if m.departing.Add(-1) == 0 {
		m.write.release(1)
	}
}

// Lock locks for writing.
func (m *Mutex) Lock() {
	m.begin()
	m.turn.acquire()
	if n := m.readers.Add(-maxReaders) + maxReaders; n != 0 && m.departing.Add(n) != 0 {
		m.write.acquire()
	}
}

// TryLock locks for writing if it need not wait.
func (m *Mutex) TryLock() bool {
	m.begin()
	if !m.turn.try() {
		return false
	}
	if !m.readers.CompareAndSwap(0, -maxReaders) {
		m.turn.release(1)
		return false
	}
	return true
}

// Unlock ends Lock.
func (m *Mutex) Unlock() {
	n := m.readers.Add(maxReaders)
	if n >= maxReaders {
		panic("rwlock: Unlock of a Mutex that is not locked for writing")
	}
	if n > 0 {
		m.read.release(int(n))
	}
	m.turn.release(1)
}

// begin makes the zero value one that is free for writing.
func (m *Mutex) begin() {
	if !m.begun.Load() && m.begun.CompareAndSwap(false, true) {
		m.turn.release(1)
	}
}

// semaphore is a number of units, none at first.
type semaphore struct {
	mu   sync.Mutex
	cond sync.Cond // on mu
	n    int
}

func (s *semaphore) acquire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cond.L == nil {
		s.cond.L = &s.mu
	}
	for s.n == 0 {
		s.cond.Wait()
	}
	s.n--
}

func (s *semaphore) try() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return false
	}
	s.n--
	return true
}

func (s *semaphore) release(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += n
	if n == 1 {
		s.cond.Signal()
	} else {
		s.cond.Broadcast()
	}
}
