package ssd

import (
	"io/fs"
	"sync"
	"syscall"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// requests are kept for their checksums.
var requests = sync.Pool{New: func() any { return new(pooled) }}

type pooled struct {
	request
	sums [batchPages]uint32
}

// WriteAt implements disk.File.
func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.enter("write"); err != nil {
		return 0, err
	}
	if h.flag&disk.ReadWrite == 0 {
		return 0, &fs.PathError{Op: "write", Path: h.path, Err: syscall.EBADF}
	}
	h.fs.touch()
	f := h.file
	f.alter.RLock()
	defer f.alter.RUnlock()
	if f.gone.Load() {
		return 0, h.enter("write")
	}
	f.stream(off, len(p))
	done := 0
	for done < len(p) {
		at, rest := off+int64(done), p[done:]
		end := f.size.Load() / pageSize * pageSize // whole pages that are there may be journaled
		if at >= end {
			n, err := h.extend(rest, at)
			return done + n, err
		}
		n := min(int64(len(rest)), batchPages*pageSize-at%pageSize, end-at)
		if err := h.writePiece(rest[:n], at); err != nil {
			return done, err
		}
		done += int(n)
	}
	return done, nil
}

// stream notes a write for what tells sequences.
func (f *file) stream(off int64, n int) {
	f.streamMu.Lock()
	defer f.streamMu.Unlock()
	if off < f.end-bypassSlack || off > f.end+bypassSlack {
		f.streak = 0
		f.end = off
	}
	f.streak += int64(n)
	f.end = max(f.end, off+int64(n))
}

// extend writes what the journal does not take: behind the last whole page of the file.
func (h *handle) extend(p []byte, off int64) (int, error) {
	f := h.file
	n, err := h.slow.WriteAt(p, off)
	for end := off + int64(n); n > 0; {
		old := f.size.Load()
		if old >= end || f.size.CompareAndSwap(old, end) {
			break
		}
	}
	f.direct.Add(1)
	return n, err
}

// writePiece writes bytes of at most as many pages as a batch has, all of which are in the file.
func (h *handle) writePiece(p []byte, off int64) error {
	skip := off % pageSize
	if skip == 0 && len(p)%pageSize == 0 {
		return h.writePages(p, off, kindData)
	}
	// The rest of the first and the last page is read and journaled with it.
	h.file.partial.Lock()
	defer h.file.partial.Unlock()
	b := getBuffer()
	defer putBuffer(b)
	whole := (skip + int64(len(p)) + pageSize - 1) / pageSize * pageSize
	b = b[:whole]
	if skip != 0 || whole == pageSize {
		if _, err := h.ReadAt(b[:pageSize], off-skip); err != nil {
			return err
		}
	}
	if last := whole - pageSize; last > 0 && (skip+int64(len(p)))%pageSize != 0 {
		if _, err := h.ReadAt(b[last:], off-skip+last); err != nil {
			return err
		}
	}
	copy(b[skip:], p)
	return h.writePages(b, off-skip, kindData)
}

// writePages writes whole pages to the journal, or to the slow disk if they are better there or there is no room.
func (h *handle) writePages(p []byte, off int64, kind byte) error {
	f, page, n := h.file, uint32(off/pageSize), len(p)/pageSize
	journaled := h.fs.overlaps(f, page, n)
	if kind == kindData && !journaled && f.long(len(p), h.fs.o.BypassAfter) {
		h.fs.stats.bypassed.Add(uint64(n))
		return h.writeSlow(p, off)
	}
	l, err := h.fs.lifeOf(f)
	if err != nil {
		return err
	}
	ok, err := h.fs.reserve(n, journaled)
	switch {
	case err != nil:
		return err
	case !ok && kind == kindData:
		h.fs.stats.overflowed.Add(uint64(n))
		return h.writeSlow(p, off)
	case !ok:
		return h.punchSlow(off, int64(len(p)))
	}
	h.fs.stats.journaled.Add(uint64(n))
	q := requests.Get().(*pooled)
	q.request = request{life: l, kind: kind, page: page, data: p, sums: q.sums[:n]}
	for i := range q.request.sums {
		q.sums[i] = chunk.Sum(p[i*pageSize : (i+1)*pageSize])
	}
	err = h.fs.ring.append(&q.request)
	q.request = request{}
	requests.Put(q)
	return err
}

// long reports whether a write of n bytes is part of a sequence that is better off on the slow disk.
func (f *file) long(n int, after int64) bool {
	if after < 0 || n < bypassWrite {
		return false
	}
	f.streamMu.Lock()
	defer f.streamMu.Unlock()
	return f.streak > after
}

// overlaps reports whether one of the pages is in the journal. If so, nothing may be written to it on the slow disk: replay would put the
// older page over it.
func (f *FS) overlaps(fl *file, page uint32, n int) bool {
	l := fl.life.Load()
	if l == nil {
		return false
	}
	f.ring.mu.RLock()
	defer f.ring.mu.RUnlock()
	for i := range uint32(n) {
		if _, ok := f.ring.index.lookup(l, page+i); ok {
			return true
		}
	}
	return false
}

// lifeOf returns the life of a file, and begins one if it has none.
func (f *FS) lifeOf(fl *file) (*life, error) {
	for {
		if l := fl.life.Load(); l != nil {
			return l, nil
		}
		l, err := f.newLife(fl.path)
		if err != nil {
			return nil, err
		}
		if fl.life.CompareAndSwap(nil, l) {
			return l, nil
		}
		f.ring.mu.Lock()
		f.ring.index.drop(l)
		f.ring.mu.Unlock()
	}
}

// writeSlow writes pages that are not in the journal to the slow disk.
func (h *handle) writeSlow(p []byte, off int64) error {
	if h.flag&disk.Direct != 0 && !aligned(p) {
		b := getBuffer()
		defer putBuffer(b)
		p = b[:copy(b, p)]
	}
	_, err := h.slow.WriteAt(p, off)
	h.file.direct.Add(1)
	return err
}

func (h *handle) punchSlow(off, n int64) error {
	err := h.slow.PunchHole(off, n)
	h.file.direct.Add(1)
	return err
}

// zeros are the pages of holes.
var zeros = disk.AlignedBuffer(batchPages * pageSize)

// PunchHole implements disk.File. Pages that the journal has become holes there, all others on the slow disk.
func (h *handle) PunchHole(off, n int64) error {
	if err := h.enter("punch"); err != nil {
		return err
	}
	f := h.file
	f.alter.RLock()
	defer f.alter.RUnlock()
	if f.gone.Load() {
		return h.enter("punch")
	}
	if h.fs.untouched(f) {
		return h.punchSlow(off, n)
	}
	end := min(off+n, f.size.Load()/pageSize*pageSize)
	if off+n > end {
		from := max(off, end)
		if err := h.punchSlow(from, off+n-from); err != nil {
			return err
		}
	}
	for off < end {
		if m := min(end, (off/pageSize+1)*pageSize) - off; m < pageSize {
			if err := h.writePiece(zeros[:m], off); err != nil {
				return err
			}
			off += m
			continue
		}
		first, last := uint32(off/pageSize), uint32(end/pageSize)
		run, journaled := h.fs.run(f, first, last)
		m := int64(run) * pageSize
		err := error(nil)
		if journaled {
			m = min(m, batchPages*pageSize)
			err = h.writePages(zeros[:m], off, kindHole)
		} else {
			err = h.punchSlow(off, m)
		}
		if err != nil {
			return err
		}
		off += m
	}
	return nil
}

// untouched reports whether the journal has no page of a file.
func (f *FS) untouched(fl *file) bool {
	l := fl.life.Load()
	return l == nil || !f.any(l)
}

// any reports whether the journal has pages of a life.
func (f *FS) any(l *life) bool {
	f.ring.mu.RLock()
	defer f.ring.mu.RUnlock()
	return l.pages > 0 && !l.ended
}

// run returns how many pages from first on, before last, are in the journal, or are not.
func (f *FS) run(fl *file, first, last uint32) (n uint32, journaled bool) {
	l := fl.life.Load()
	f.ring.mu.RLock()
	defer f.ring.mu.RUnlock()
	for p := first; p < last; p++ {
		ok := false
		if l != nil {
			_, ok = f.ring.index.lookup(l, p)
		}
		if p == first {
			journaled = ok
		} else if ok != journaled {
			break
		}
		n++
	}
	return n, journaled
}
