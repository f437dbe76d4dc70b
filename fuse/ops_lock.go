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
		s.owners.add(ownerOf{r.ino, req.Owner}, f) // before: the Backend may grant the lock and fail to say so
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
}

func (t *owners) init() {
	t.m, t.by = make(map[ownerOf][]*file), make(map[*file][]ownerOf)
}

func (t *owners) add(key ownerOf, f *file) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.m[key], f) {
		t.m[key] = append(t.m[key], f)
		t.by[f] = append(t.by[f], key)
	}
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

// takeThrough forgets the owners that took locks through f and returns them.
func (t *owners) takeThrough(f *file) []ownerOf {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := t.by[f]
	delete(t.by, f)
	for _, key := range keys {
		t.m[key] = slices.DeleteFunc(t.m[key], func(other *file) bool { return other == f })
		if len(t.m[key]) == 0 {
			delete(t.m, key)
		}
	}
	return keys
}
