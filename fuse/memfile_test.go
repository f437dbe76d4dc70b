package fuse

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// truncate runs under memFS.mu.
func (n *memInode) truncate(size uint64) {
	for i, p := range n.pages {
		if start := i * pageSize; start >= int64(size) {
			delete(n.pages, i)
		} else if cut := int64(size) - start; cut < pageSize {
			clear(p[cut:])
		}
	}
	n.attr.Size = size
	n.attr.Mtime = time.Now().UnixNano()
}

// each calls f for the parts of [off, off+n) that are in one page; page is nil where there is none and make is false.
func (n *memInode) each(off, length int64, make_ bool, f func(page []byte, i, from, to int64)) {
	for end := off + length; off < end; {
		i := off / pageSize
		stop := min(end, (i+1)*pageSize)
		p := n.pages[i]
		if p == nil && make_ {
			p = make([]byte, pageSize)
			n.pages[i] = p
		}
		f(p, i, off-i*pageSize, stop-i*pageSize)
		off = stop
	}
}

type memHandle struct {
	m *memFS
	n *memInode
}

var _ Handle = (*memHandle)(nil)

func (h *memHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if h.n.stalled {
		h.m.stalled <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	size := int64(h.n.attr.Size)
	if off >= size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), size-off)]
	at := 0
	h.n.each(off, int64(len(p)), false, func(page []byte, _, from, to int64) {
		if page == nil {
			clear(p[at : at+int(to-from)])
		} else {
			copy(p[at:], page[from:to])
		}
		at += int(to - from)
	})
	return len(p), nil
}

func (h *memHandle) WriteAt(_ context.Context, p []byte, off int64, appendMode bool) (int, int64, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if appendMode {
		off = int64(h.n.attr.Size)
	}
	rest := p
	h.n.each(off, int64(len(p)), true, func(page []byte, _, from, to int64) {
		rest = rest[copy(page[from:to], rest):]
	})
	end := off + int64(len(p))
	h.n.attr.Size = max(h.n.attr.Size, uint64(end))
	h.n.attr.Mtime = time.Now().UnixNano()
	for old := h.m.largest.Load(); int64(len(p)) > old && !h.m.largest.CompareAndSwap(old, int64(len(p))); old = h.m.largest.Load() {
	}
	return len(p), end, nil
}

func (h *memHandle) Fsync(context.Context, bool) error { return nil }
func (h *memHandle) Flush(context.Context) error       { return nil }

func (h *memHandle) Fallocate(_ context.Context, mode uint32, off, n int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		h.n.each(off, n, false, func(page []byte, i, from, to int64) {
			if page != nil {
				clear(page[from:to])
			}
			if to-from == pageSize {
				delete(h.n.pages, i)
			}
		})
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		h.n.attr.Size = max(h.n.attr.Size, uint64(off+n))
	}
	return nil
}

func (h *memHandle) Seek(_ context.Context, off int64, whence int) (int64, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	size := int64(h.n.attr.Size)
	if off >= size {
		return 0, fserr.NoDevice
	}
	for ; off < size; off = (off/pageSize + 1) * pageSize {
		if (h.n.pages[off/pageSize] != nil) == (whence == unix.SEEK_DATA) {
			return off, nil
		}
	}
	if whence == unix.SEEK_DATA {
		return 0, fserr.NoDevice
	}
	return size, nil
}

func (h *memHandle) Release(context.Context) error {
	h.m.releases.Add(1)
	return nil
}

func (m *memFS) Lock(ctx context.Context, req *msg.Lock) (*msg.LockReply, error) {
	stop := context.AfterFunc(ctx, func() { m.mu.Lock(); m.changed.Broadcast(); m.mu.Unlock() })
	defer stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.inodes[id.Ino(req.Ino)]
	for {
		other := n.conflict(req)
		if req.Test {
			if other == nil {
				return &msg.LockReply{}, nil
			}
			return &msg.LockReply{Type: other.Type, Start: other.Start, End: other.End, Pid: other.Pid}, nil
		}
		if other == nil {
			n.setLock(req)
			m.changed.Broadcast()
			return &msg.LockReply{}, nil
		}
		if !req.Wait {
			return nil, fserr.Again
		}
		if ctx.Err() != nil {
			return nil, fserr.Interrupted
		}
		m.changed.Wait()
	}
}

func overlap(a, b *msg.Lock) bool { return a.Flock == b.Flock && a.Start <= b.End && b.Start <= a.End }

func (n *memInode) conflict(req *msg.Lock) *msg.Lock {
	if req.Type == msg.LockType_UNLOCK {
		return nil
	}
	for _, l := range n.locks {
		if l.Owner != req.Owner && overlap(l, req) && (l.Type == msg.LockType_WRITE_LOCK || req.Type == msg.LockType_WRITE_LOCK) {
			return l
		}
	}
	return nil
}

// setLock replaces what the owner has in the range.
func (n *memInode) setLock(req *msg.Lock) {
	var out []*msg.Lock
	for _, l := range n.locks {
		if l.Owner != req.Owner || !overlap(l, req) {
			out = append(out, l)
			continue
		}
		if l.Start < req.Start {
			left := dup(l)
			left.End = req.Start - 1
			out = append(out, left)
		}
		if l.End > req.End {
			right := dup(l)
			right.Start = req.End + 1
			out = append(out, right)
		}
	}
	if req.Type != msg.LockType_UNLOCK {
		out = append(out, dup(req))
	}
	n.locks = out
}
