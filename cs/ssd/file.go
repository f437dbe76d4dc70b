package ssd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// file is a journaled file that is open or has pages in the journal.
type file struct {
	path    string               // guarded by FS.filesMu
	handles int                  // guarded by FS.filesMu
	life    atomic.Pointer[life] // nil: nothing of it is in the journal
	gone    atomic.Bool          // removed or replaced: its handles are of no use
	size    atomic.Int64         // on the slow disk; no page of the journal lies behind it

	// alter is held shared by writes and exclusively by what ends a life.
	alter   sync.RWMutex
	partial sync.Mutex // one write at a time reads the rest of a page that it changes a part of

	direct atomic.Uint64 // changes made on the slow disk
	synced atomic.Uint64 // of these, on stable media

	streamMu sync.Mutex
	end      int64 // of the newest write in sequence
	streak   int64 // bytes that came in sequence
}

// handle is one open.
type handle struct {
	fs   *FS
	file *file
	slow disk.File
	flag disk.Flag
	path string // as it was opened
	shut atomic.Bool
}

var _ disk.File = (*handle)(nil)

// enter must come first in every operation.
func (h *handle) enter(op string) error {
	if err := h.fs.ring.err(); err != nil {
		return err
	}
	if h.file.gone.Load() || h.shut.Load() {
		return &fs.PathError{Op: op, Path: h.path, Err: fs.ErrClosed}
	}
	return nil
}

// Close implements disk.File.
func (h *handle) Close() error {
	if h.shut.Swap(true) {
		return nil
	}
	err := h.slow.Close()
	h.fs.release(h.file)
	return err
}

// Size implements disk.File.
func (h *handle) Size() (int64, error) {
	if err := h.enter("stat"); err != nil {
		return 0, err
	}
	return h.slow.Size()
}

// Sync implements disk.File. Journal and slow disk are synced only if something of the file is not on stable media there.
func (h *handle) Sync() error {
	if err := h.enter("sync"); err != nil {
		return err
	}
	f := h.file
	direct := f.direct.Load()
	if l := f.life.Load(); l != nil {
		h.fs.ring.mu.RLock()
		last := l.last
		h.fs.ring.mu.RUnlock()
		if last > 0 {
			if err := h.fs.ring.sync(last); err != nil {
				return err
			}
		}
	}
	if f.synced.Load() >= direct {
		return nil
	}
	h.fs.stats.slowSyncs.Add(1)
	if err := h.slow.Sync(); err != nil {
		return h.fs.ring.failSlow("sync "+h.path, err)
	}
	raise(&f.synced, direct)
	return nil
}

// raise makes v at least n.
func raise(v *atomic.Uint64, n uint64) {
	for old := v.Load(); old < n && !v.CompareAndSwap(old, n); old = v.Load() {
	}
}

// Truncate implements disk.File.
func (h *handle) Truncate(size int64) error {
	if err := h.enter("truncate"); err != nil {
		return err
	}
	f := h.file
	f.alter.Lock()
	defer f.alter.Unlock()
	if err := h.fs.retire(f); err != nil {
		return err
	}
	if err := h.slow.Truncate(size); err != nil {
		return err
	}
	f.size.Store(size)
	f.direct.Add(1)
	return nil
}

// ReadAt implements disk.File.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.enter("read"); err != nil {
		return 0, err
	}
	h.fs.touch()
	if l := h.file.life.Load(); l == nil || !h.fs.any(l) {
		return h.slow.ReadAt(p, off)
	}
	if off%pageSize == 0 && len(p)%pageSize == 0 && aligned(p) {
		return h.readPages(p, off)
	}
	return h.readBounced(p, off)
}

// readBounced reads through an aligned buffer.
func (h *handle) readBounced(p []byte, off int64) (n int, err error) {
	b := getBuffer()
	defer putBuffer(b)
	for len(p) > 0 {
		skip := off % pageSize
		m := min(int64(len(p)), int64(len(b))-skip)
		whole := (skip + m + pageSize - 1) / pageSize * pageSize
		got, err := h.readPages(b[:whole], off-skip)
		got = min(max(got-int(skip), 0), int(m))
		copy(p[:got], b[skip:])
		n += got
		if int64(got) < m {
			return n, err
		}
		p, off = p[m:], off+m
	}
	return n, nil
}

// source says where pages come from: a run of blocks of the ring, or the slow disk.
type source struct {
	first, pages int   // in the request
	position     int64 // of the first block in the ring; -1: the slow disk
}

// readPages reads whole pages into an aligned buffer. What it finds in the journal may be destaged and overwritten while it reads, which
// the position of the tail tells afterwards; then the slow disk has it.
func (h *handle) readPages(p []byte, off int64) (int, error) {
	r := h.fs.ring
	var sums [batchPages]uint32
	var sources []source
	if len(p) > len(sums)*pageSize {
		n, err := h.readPages(p[:len(sums)*pageSize], off)
		if err != nil {
			return n, err
		}
		m, err := h.readPages(p[n:], off+int64(n))
		return n + m, err
	}
	for {
		sources = h.locate(sources[:0], sums[:len(p)/pageSize], off/pageSize)
		n, err := h.readSlow(sources, p, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		bad, rerr := h.readRing(sources, sums[:], p)
		if rerr != nil {
			return 0, rerr
		}
		r.mu.RLock()
		tail := r.tail
		r.mu.RUnlock()
		moved := false
		for _, s := range sources {
			moved = moved || s.position >= 0 && uint64(s.position) < tail
		}
		switch {
		case moved:
			continue
		case bad != nil:
			return 0, r.fail("read", bad)
		case n < len(p):
			return n, io.EOF
		}
		return n, nil
	}
}

// locate divides a range of pages into runs by where they are.
func (h *handle) locate(sources []source, sums []uint32, first int64) []source {
	r := h.fs.ring
	r.mu.RLock()
	defer r.mu.RUnlock()
	l := h.file.life.Load()
	tail := r.tail % r.blocks
	hits := 0
	for i := range sums {
		position := int64(-1)
		if l != nil {
			if b, ok := r.index.lookup(l, uint32(first+int64(i))); ok {
				// The block's only position between the tail and one lap behind it.
				position = int64(r.tail + (uint64(b)+r.blocks-tail)%r.blocks)
				sums[i] = r.index.sum[b]
				hits++
			}
		}
		if n := len(sources); n > 0 {
			last := &sources[n-1]
			follows := position == last.position+int64(last.pages) && uint64(position)%r.blocks != 0
			if position < 0 && last.position < 0 || position >= 0 && last.position >= 0 && follows {
				last.pages++
				continue
			}
		}
		sources = append(sources, source{i, 1, position})
	}
	h.fs.stats.hits.Add(uint64(hits))
	h.fs.stats.misses.Add(uint64(len(sums) - hits))
	return sources
}

// maxGaps is the number of runs that are read from the slow disk one by one; if there are more, all between the first and the last is
// read at once, and what the journal has is put over it.
const maxGaps = 4

// readSlow reads what the slow disk has. It returns how many bytes from the start there are, with io.EOF if not all.
func (h *handle) readSlow(sources []source, p []byte, off int64) (int, error) {
	gaps, from, to := 0, 0, 0
	for _, s := range sources {
		if s.position < 0 {
			if gaps == 0 {
				from = s.first
			}
			to = s.first + s.pages
			gaps++
		}
	}
	if gaps > maxGaps {
		sources = []source{{from, to - from, -1}}
	}
	for _, s := range sources {
		if s.position >= 0 {
			continue
		}
		at := s.first * pageSize
		n, err := h.slow.ReadAt(p[at:at+s.pages*pageSize], off+int64(at))
		if n < s.pages*pageSize {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return at + n, err // no page of the journal lies behind the end of the file
		}
	}
	return len(p), nil
}

// readRing reads what the journal has and verifies it. A page that does not fit its checksum is bad, unless it was overwritten
// meanwhile.
func (h *handle) readRing(sources []source, sums []uint32, p []byte) (bad, err error) {
	r := h.fs.ring
	for _, s := range sources {
		if s.position < 0 {
			continue
		}
		b := p[s.first*pageSize : (s.first+s.pages)*pageSize]
		if _, err := r.f.ReadAt(b, r.place(uint64(s.position))); err != nil {
			return nil, r.fail("read", err)
		}
		for i := range s.pages {
			want := sums[s.first+i]
			if got := chunk.Sum(b[i*pageSize : (i+1)*pageSize]); got != want && bad == nil {
				bad = fmt.Errorf("%s: offset %d: checksum want %08x, got %08x: %w", name, r.place(uint64(s.position)+uint64(i)), want, got, ErrDamaged)
			}
		}
	}
	return bad, nil
}

// buffers of 1 MiB, aligned.
var buffers = sync.Pool{New: func() any {
	b := disk.AlignedBuffer(batchPages * pageSize)
	return &b
}}

func getBuffer() []byte { return *buffers.Get().(*[]byte) }

func putBuffer(b []byte) {
	b = b[:batchPages*pageSize]
	buffers.Put(&b)
}
