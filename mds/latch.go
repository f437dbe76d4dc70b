package mds

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/waits"
	"varve/mds/decide"
)

// Further kinds of latches, beyond those of package decide. Grant comes before a freeze, and both before all others;
// membership comes last. A request takes each group with one acquire.
const (
	latchGrant      decide.LatchKind = 101 + iota // an inode's holders: Open, upgrades
	latchFreeze                                   // layouts of an inode are handed out (shared) or changed (exclusive)
	latchMembership                               // replica sets: one chunk's (shared), all of a server (exclusive)
	latchNonce                                    // the opening of one session; Name is the nonce
	latchServer                                   // the registration of one chunk server; Name is its UUID
	latchMeta                                     // the members of Raft
	latchSecurity                                 // who may speak
)

func grantLatch(ino id.Ino) []decide.Latch {
	return []decide.Latch{{Kind: latchGrant, A: uint64(ino), Exclusive: true}}
}

func freezeLatch(ino id.Ino, exclusive bool) []decide.Latch {
	return []decide.Latch{{Kind: latchFreeze, A: uint64(ino), Exclusive: exclusive}}
}

// withMembership adds what keeps whole servers from leaving replica sets, if latches are about chunks.
func withMembership(latches []decide.Latch) []decide.Latch {
	for _, l := range latches {
		if l.Kind == decide.LatchLayout || l.Kind == decide.LatchInode && l.Exclusive {
			return append(slices.Clone(latches), decide.Latch{Kind: latchMembership})
		}
	}
	return latches
}

type latchKey struct {
	kind decide.LatchKind
	a    uint64
	name string
}

func keyOf(l decide.Latch) latchKey { return latchKey{l.Kind, l.A, l.Name} }

// latchTable grants latches, each in the order of asking, so that nobody waits for ever. Its zero value works.
type latchTable struct {
	waits   *waits.Table
	mu      sync.Mutex
	latches map[latchKey]*latchState
	waiting int
}

type latchState struct {
	exclusive bool
	shared    int
	queue     []*latchWaiter
}

type latchWaiter struct {
	exclusive bool
	granted   chan struct{}
}

func (s *latchState) free(exclusive bool) bool {
	return !s.exclusive && (!exclusive || s.shared == 0)
}

func (s *latchState) take(exclusive bool) {
	if exclusive {
		s.exclusive = true
	} else {
		s.shared++
	}
}

// acquire takes the latches in the order given; on error it holds none of them.
func (t *latchTable) acquire(ctx context.Context, latches []decide.Latch) error {
	for i, l := range latches {
		if err := t.acquireOne(ctx, l); err != nil {
			t.release(latches[:i])
			return err
		}
	}
	return nil
}

func (t *latchTable) acquireOne(ctx context.Context, l decide.Latch) error {
	k := keyOf(l)
	t.mu.Lock()
	if t.latches == nil {
		t.latches = make(map[latchKey]*latchState)
	}
	s := t.latches[k]
	if s == nil {
		s = new(latchState)
		t.latches[k] = s
	}
	if len(s.queue) == 0 && s.free(l.Exclusive) {
		s.take(l.Exclusive)
		t.mu.Unlock()
		return nil
	}
	if t.waiting >= maxLatchWaiters {
		t.mu.Unlock()
		return fmt.Errorf("latch: %d requests wait already: %w", maxLatchWaiters, fserr.Unavailable)
	}
	t.waiting++
	defer t.waits.For("a request that has the same latch", "latch", int(l.Kind), "of", l.A, "name", l.Name).End()
	w := &latchWaiter{exclusive: l.Exclusive, granted: make(chan struct{})}
	s.queue = append(s.queue, w)
	t.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(s.queue, w); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		t.waiting--
		t.wake(k, s)
	} else { // granted at the same moment
		t.releaseOne(k, l.Exclusive)
	}
	return fmt.Errorf("waiting for latch kind %d of %d %q: %w: %w", l.Kind, l.A, l.Name, fserr.Unavailable, ctx.Err())
}

func (t *latchTable) release(latches []decide.Latch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range latches {
		t.releaseOne(keyOf(l), l.Exclusive)
	}
}

func (t *latchTable) releaseOne(k latchKey, exclusive bool) {
	s := t.latches[k]
	if exclusive {
		s.exclusive = false
	} else {
		s.shared--
	}
	t.wake(k, s)
}

func (t *latchTable) wake(k latchKey, s *latchState) {
	for len(s.queue) > 0 && s.free(s.queue[0].exclusive) {
		s.take(s.queue[0].exclusive)
		close(s.queue[0].granted)
		s.queue = s.queue[1:]
		t.waiting--
	}
	if len(s.queue) == 0 && !s.exclusive && s.shared == 0 {
		delete(t.latches, k)
	}
}
