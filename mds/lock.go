package mds

import (
	"context"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
)

// lock sets or tests a byte-range lock; one that waits is held here until it is granted or its time is over.
func (l *leadership) lock(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	op := req.GetLock()
	ino := id.Ino(op.Ino)
	var timeout <-chan time.Time
	if op.Wait {
		wait := min(time.Duration(op.WaitMs)*time.Millisecond, maxLockWait)
		t := time.NewTimer(wait)
		defer t.Stop()
		timeout = t.C
	}
	for {
		var released <-chan struct{}
		if op.Wait {
			released = l.lockReleased(ino)
		}
		out, err := l.commit(ctx, req)
		if err == nil && out.Event != nil {
			l.wakeLocks(ino) // also a change from writing to reading lets others in
		}
		if err == nil && l.oustLockers(ctx, req, out) {
			continue // what was in the way is gone
		}
		if err != nil || out.Code != fserr.Again || !op.Wait || op.Test {
			return out, err
		}
		l.mu.Lock()
		full := l.waiting >= maxLockWaiters
		if !full {
			l.waiting++
		}
		l.mu.Unlock()
		if full {
			return out, nil
		}
		over := false
		select {
		case <-released:
		case <-timeout:
			over = true
		case <-ctx.Done():
			over = true
		}
		l.mu.Lock()
		l.waiting--
		l.mu.Unlock()
		if over {
			return out, nil
		}
	}
}

// lockReleased returns a channel that is closed when locks on the inode may have been released.
func (l *leadership) lockReleased(ino id.Ino) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.locks[ino]
	if c == nil {
		if len(l.locks) >= maxLockWaiters { // most of them nobody waits for any more
			for old, c := range l.locks {
				close(c)
				delete(l.locks, old)
			}
		}
		c = make(chan struct{})
		l.locks[ino] = c
	}
	return c
}

func (l *leadership) wakeLocks(ino id.Ino) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.locks[ino]; c != nil {
		close(c)
		delete(l.locks, ino)
	}
}

func (l *leadership) wakeAllLocks() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ino, c := range l.locks {
		close(c)
		delete(l.locks, ino)
	}
}
