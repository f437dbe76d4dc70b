package fuse

import (
	"context"
	"slices"
	"sync"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// Who holds a lock, as the kernel tells it: for fcntl(F_SETLK) an owner is a process, whose locks are given
// back when it closes any descriptor of the file (FLUSH names the owner); for fcntl(F_OFD_SETLK), which
// qemu uses, and for flock(2) it is the open file. At the last close of an open file the kernel says
// which flock owner to unlock, and says nothing of the F_OFD_SETLK owner. So each file remembers the
// owners that took fcntl locks through it: by the time it is released every process has closed it
// and so given its locks back, and what is left belongs to the open file itself.

func (s *Session) getlk(r *request) (int, error) {
	req, err := parseLock(r)
	if err != nil {
		return 0, err
	}
	reply, err := s.backend.Lock(r.flight, req)
	if err != nil {
		return 0, err
	}
	putLock(r.room(24), reply)
	return 24, nil
}

// setlk is SETLK and SETLKW, of all three kinds of locks.
func (s *Session) setlk(r *request) (int, error) {
	req, err := parseLock(r)
	if err != nil {
		return 0, err
	}
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	if !req.Flock && req.Type != msg.LockType_UNLOCK {
		// Before: the Backend may grant the lock and fail to say so.
		if err := s.owners.add(r.flight, ownerOf{r.ino, req.Owner}, f); err != nil {
			return 0, fserr.Interrupted
		}
	}
	_, err = s.backend.Lock(r.flight, req)
	if err != nil && r.flight.Err() != nil {
		return 0, fserr.Interrupted
	}
	return 0, err
}

// unlockOwner gives back the fcntl locks that owner has on an inode, through whichever open file it took them.
func (s *Session) unlockOwner(ctx context.Context, ino id.Ino, owner uint64) error {
	key := ownerOf{ino, owner}
	if !s.owners.has(key) {
		return nil
	}
	if err := s.unlock(ctx, ino, owner, false); err != nil {
		return err // it stays an owner, so that the release of the file tries again
	}
	s.owners.remove(key)
	return nil
}

// unlockOwners gives back what is left of the locks taken through f, which is being released.
func (s *Session) unlockOwners(ctx context.Context, f *file) {
	for _, key := range s.owners.takeThrough(f) {
		if err := s.unlock(ctx, key.ino, key.owner, false); err != nil {
			s.log.Warn("unlock at release failed", "inode", f.ino, "cause", err)
		}
		s.owners.taken(key)
	}
}

func (s *Session) unlockFlock(ctx context.Context, ino id.Ino, owner uint64) error {
	return s.unlock(ctx, ino, owner, true)
}

func (s *Session) unlock(ctx context.Context, ino id.Ino, owner uint64, flock bool) error {
	_, err := s.backend.Lock(ctx, &msg.Lock{
		Ino: uint64(ino), Owner: owner, Type: msg.LockType_UNLOCK, End: maxOffset, Flock: flock,
	})
	return err
}

// ownerOf is an owner of fcntl locks on one inode.
type ownerOf struct {
	ino   id.Ino
	owner uint64
}

// owners are the owners that may hold fcntl locks, each with the open files it took them through.
type owners struct {
	mu sync.Mutex
	m  map[ownerOf][]*file
	by map[*file][]ownerOf // the same the other way round
	// leaving are those whose locks are being given back since their file is gone, closed when that is done. The kernel names an open file by its
	// place in memory, where the next one may be already.
	leaving map[ownerOf]chan struct{}
}

func (t *owners) init() {
	t.m, t.by, t.leaving = make(map[ownerOf][]*file), make(map[*file][]ownerOf), make(map[ownerOf]chan struct{})
}

// add notes an owner, when none of that name is leaving.
func (t *owners) add(ctx context.Context, key ownerOf, f *file) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.leaving[key] != nil {
		gone := t.leaving[key]
		t.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if !slices.Contains(t.m[key], f) {
		t.m[key] = append(t.m[key], f)
		t.by[f] = append(t.by[f], key)
	}
	return nil
}

func (t *owners) has(key ownerOf) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m[key]) > 0
}

// remove forgets an owner.
func (t *owners) remove(key ownerOf) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.m[key] {
		t.by[f] = slices.DeleteFunc(t.by[f], func(k ownerOf) bool { return k == key })
		if len(t.by[f]) == 0 {
			delete(t.by, f)
		}
	}
	delete(t.m, key)
}

// takeThrough forgets the owners that took locks through f and returns those that took none through another file: their locks are to be given
// back, and then taken is to be called. What another file has taken under the same name stays.
func (t *owners) takeThrough(f *file) (last []ownerOf) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range t.by[f] {
		t.m[key] = slices.DeleteFunc(t.m[key], func(other *file) bool { return other == f })
		if len(t.m[key]) == 0 {
			delete(t.m, key)
			t.leaving[key] = make(chan struct{})
			last = append(last, key)
		}
	}
	delete(t.by, f)
	return last
}

// taken notes that the locks of an owner that takeThrough returned were given back.
func (t *owners) taken(key ownerOf) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.leaving[key])
	delete(t.leaving, key)
}
