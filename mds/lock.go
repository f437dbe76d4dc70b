package mds

import (
	"context"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/state"
)

// lockersTimeout is how long who has a lock may take to say that it is about to give it up.
const lockersTimeout = 2 * time.Second

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
	asked := false
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
			if err == nil && out.Code == fserr.Again && !asked {
				asked = true
				l.askLockers(ctx, req)
				continue
			}
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

// lockers returns the sessions that have locks in the way of a request.
func (l *leadership) lockers(req *msg.MetaRequest) (all []id.SessionID) {
	op := req.GetLock()
	want := state.Lock{Owner: state.Owner{Session: id.SessionID(req.Session), Number: op.Owner}, Write: op.Type == msg.LockType_WRITE_LOCK,
		Start: op.Start, End: op.End}
	if op.Flock {
		want.Start, want.End = 0, state.LockEnd
	}
	l.s.fsm.view(func(st *state.State) {
		for _, k := range st.Locks(id.Ino(op.Ino), op.Flock) {
			if _, conflict := state.Conflict([]state.Lock{k}, want); conflict && !slices.Contains(all, k.Owner.Session) {
				all = append(all, k.Owner.Session)
			}
		}
	})
	return all
}

// askLockers has those whose locks are in the way of a request that will not wait say whether they are about to give them up. The kernel gives the
// locks of an open file up after its last close(2) has returned, so who closed a file and then had somebody else open it, perhaps on another
// host, as when a guest is moved, would find it locked. Who does not answer soon is not waited for.
func (l *leadership) askLockers(ctx context.Context, req *msg.MetaRequest) {
	ctx, cancel := context.WithTimeout(ctx, lockersTimeout)
	defer cancel()
	_ = together(l.lockers(req), func(s id.SessionID) error { // the request is decided anew in any case
		_, err := l.callback(ctx, s, &msg.Callback{Kind: msg.Callback_NOP, Ino: req.GetLock().Ino})
		return err
	})
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
