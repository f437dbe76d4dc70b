package fuse

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"varve/internal/id"
)

// maxEntryNotes bounds the names that wait to be forgotten. Names over it are left out, which does no harm: no
// name is valid in the kernel's cache for any time. Inodes need no bound: only those that the kernel refers to wait.
const maxEntryNotes = 1 << 14

// span is a range of bytes; end is exclusive, math.MaxInt64 for "to the end".
type span struct{ from, end int64 }

type entryName struct {
	parent id.Ino
	name   string
}

// notes are the notifications that wait to be written. Several for one inode become one.
type notes struct {
	mu      sync.Mutex
	inodes  map[id.Ino]span
	entries map[entryName]struct{}
	waiting map[id.Ino][]chan struct{} // closed when the notes of the inode were written
	wake    chan struct{}              // has room for one
	writing bool                       // some are being written
}

func (n *notes) init() {
	n.inodes, n.entries = make(map[id.Ino]span), make(map[entryName]struct{})
	n.waiting, n.wake = make(map[id.Ino][]chan struct{}), make(chan struct{}, 1)
}

const maxOffset = 1<<63 - 1

// InvalidateInode makes the kernel drop the attributes of an inode and its cached pages in [off, off+length);
// a length of 0 or less means to the end, an off below 0 attributes only. It only queues.
func (s *Session) InvalidateInode(ino id.Ino, off, length int64) { s.queueInode(ino, off, length, nil) }

// InvalidateInodeWait is InvalidateInode and waits until the kernel has dropped the pages. It must not be called
// from anything that the answer to a READ or WRITE of the same inode waits for; see the package documentation.
func (s *Session) InvalidateInodeWait(ctx context.Context, ino id.Ino, off, length int64) error {
	written := make(chan struct{})
	if !s.queueInode(ino, off, length, written) {
		return nil
	}
	select {
	case <-written:
		return nil
	case <-s.ended:
		return nil // nothing is cached any more
	case <-ctx.Done():
		return ctx.Err()
	}
}

// queueInode reports whether the kernel refers to the inode at all.
func (s *Session) queueInode(ino id.Ino, off, length int64, written chan struct{}) bool {
	if _, known := s.nodes.get(ino); !known {
		return false
	}
	add := span{off, maxOffset}
	if length > 0 && off <= maxOffset-length {
		add.end = off + length
	}
	n := &s.notes
	n.mu.Lock()
	if old, ok := n.inodes[ino]; ok && old.from >= 0 && off >= 0 {
		add = span{min(old.from, off), max(old.end, add.end)}
	} else if ok && off < 0 {
		add = old // dropping pages drops the attributes too
	}
	n.inodes[ino] = add
	if written != nil {
		n.waiting[ino] = append(n.waiting[ino], written)
	}
	n.mu.Unlock()
	n.poke()
	return true
}

// InvalidateEntry makes the kernel forget a name. It only queues.
func (s *Session) InvalidateEntry(parent id.Ino, name []byte) {
	if _, known := s.nodes.get(parent); !known {
		return
	}
	n := &s.notes
	n.mu.Lock()
	if len(n.entries) < maxEntryNotes {
		n.entries[entryName{parent, string(name)}] = struct{}{}
	}
	n.mu.Unlock()
	n.poke()
}

func (n *notes) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// sendNotes writes what is queued until stop is closed. It holds no lock while it writes, since the kernel
// may make it wait for an operation that needs one.
func (s *Session) sendNotes(stop <-chan struct{}) {
	n := &s.notes
	for {
		select {
		case <-stop:
			return
		case <-n.wake:
		}
		n.mu.Lock()
		inodes, entries, waiting := n.inodes, n.entries, n.waiting
		n.inodes, n.entries = make(map[id.Ino]span), make(map[entryName]struct{})
		n.waiting = make(map[id.Ino][]chan struct{})
		n.writing = true
		n.mu.Unlock()
		for ino, sp := range inodes {
			s.noteInode(ino, sp)
			for _, w := range waiting[ino] {
				close(w)
			}
		}
		for e := range entries {
			s.noteEntry(e)
		}
		n.mu.Lock()
		n.writing = false
		n.mu.Unlock()
	}
}

// idle says that none wait and none are being written.
func (n *notes) idle() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.inodes) == 0 && len(n.entries) == 0 && !n.writing
}

// noteInode writes struct fuse_notify_inval_inode_out.
func (s *Session) noteInode(ino id.Ino, sp span) {
	var b [24]byte
	le.PutUint64(b[:], uint64(ino))
	le.PutUint64(b[8:], uint64(sp.from))
	if sp.end != maxOffset {
		le.PutUint64(b[16:], uint64(sp.end-sp.from))
	} // else 0: to the end
	s.noted("inode", ino, s.via.notify(notifyInvalInode, b[:]))
}

// noteEntry writes struct fuse_notify_inval_entry_out and the name.
func (s *Session) noteEntry(e entryName) {
	var b [16]byte
	le.PutUint64(b[:], uint64(e.parent))
	le.PutUint32(b[8:], uint32(len(e.name)))
	s.noted("parent", e.parent, s.via.notify(notifyInvalEntry, b[:], append(bytes.Clone([]byte(e.name)), 0)))
}

// noted logs a notification that failed for another reason than that there was nothing to forget.
func (s *Session) noted(key string, ino id.Ino, err error) {
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENODEV) {
		s.log.Warn("invalidation failed", key, ino, "cause", err)
	}
}
