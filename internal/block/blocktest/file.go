// Package blocktest is an image in memory for tests of servers of block protocols, which also fails as it is told to.
//
// Use: New, or Hot for one whose operations begin on a loop. A File may be used at once by as many as the test wants.
package blocktest

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/iouring/reactor"
)

// blockSize is the unit in which holes are kept.
const blockSize = 4096

// File is an image.
type File struct {
	mu        sync.Mutex
	fault     func(what string, off, n int64) error
	gate      func(ctx context.Context, what string) error
	data      []byte
	kept      []bool // of blocks
	unflushed int    // writes
	counts    map[string]int
	inherited int
	released  int
	size      int
}

// New returns an image of a size with nothing in it.
func New(size int) *File {
	return &File{data: make([]byte, size), kept: make([]bool, (size+blockSize-1)/blockSize), counts: map[string]int{}, size: size}
}

// Fault sets what may return an error for what is to be done.
func (f *File) Fault(fault func(what string, off, n int64) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// Gate sets what is asked before each operation on a goroutine, and may wait.
func (f *File) Gate(gate func(ctx context.Context, what string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = gate
}

// Count returns how often something was done: read, write, flush, punch, seek, and those begun on a loop: hotread, hotwrite.
func (f *File) Count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[what]
}

// Unflushed returns how many changes no flush has covered.
func (f *File) Unflushed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unflushed
}

// Inherited returns how often the image was handed on.
func (f *File) Inherited() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inherited
}

// Released returns how often the image was given back.
func (f *File) Released() int { f.mu.Lock(); defer f.mu.Unlock(); return f.released }

// Heir notes that what was not flushed of another is to be flushed with this.
func (f *File) Heir() { f.mu.Lock(); f.inherited++; f.mu.Unlock() }

// Data gives fn the contents.
func (f *File) Data(fn func([]byte)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(f.data)
}

// Cut makes the file shorter.
func (f *File) Cut(size int) { f.mu.Lock(); f.size = size; f.mu.Unlock() }

func (f *File) begin(ctx context.Context, what string, off, n int64) error {
	f.mu.Lock()
	gate, fault := f.gate, f.fault
	f.mu.Unlock()
	if gate != nil {
		if err := gate(ctx, what); err != nil {
			return err
		}
	}
	if fault != nil {
		return fault(what, off, n)
	}
	return nil
}

// ReadAt reads.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.begin(ctx, "read", off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.read("read", p, off), nil
}

func (f *File) read(what string, p []byte, off int64) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[what]++
	if off >= int64(f.size) {
		return 0
	}
	return copy(p, f.data[off:f.size])
}

// WriteAt writes.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64, _ bool) (int, int64, error) {
	if err := f.begin(ctx, "write", off, int64(len(p))); err != nil {
		return 0, 0, err
	}
	f.write("write", p, off)
	return len(p), off + int64(len(p)), nil
}

func (f *File) write(what string, p []byte, off int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[what]++
	f.unflushed++
	copy(f.data[off:], p)
	for b := off / blockSize; b*blockSize < off+int64(len(p)); b++ {
		f.kept[b] = true
	}
}

// Fsync flushes.
func (f *File) Fsync(ctx context.Context, _ bool) error {
	if err := f.begin(ctx, "flush", 0, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["flush"]++
	f.unflushed = 0
	return nil
}

// Fallocate punches.
func (f *File) Fallocate(ctx context.Context, mode uint32, off, n int64) error {
	if err := f.begin(ctx, "punch", off, n); err != nil {
		return err
	}
	if mode != unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE {
		return fserr.NotSupported
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["punch"]++
	f.unflushed++
	end := min(off+n, int64(len(f.data)))
	clear(f.data[off:end])
	for b := (off + blockSize - 1) / blockSize; (b+1)*blockSize <= end; b++ {
		f.kept[b] = false
	}
	return nil
}

// Seek finds data or a hole.
func (f *File) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	if err := f.begin(ctx, "seek", off, 0); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["seek"]++
	if off >= int64(f.size) {
		return 0, fserr.NoDevice
	}
	for b := int(off / blockSize); b < len(f.kept); b++ {
		if f.kept[b] == (whence == unix.SEEK_DATA) {
			return max(off, int64(b)*blockSize), nil
		}
	}
	if whence == unix.SEEK_HOLE {
		return int64(f.size), nil
	}
	return 0, fserr.NoDevice
}

// Release gives the image back.
func (f *File) Release(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released++
	return nil
}

// Seats is a host whose seats belong to the loops of a test.
type Seats struct {
	mu    sync.Mutex
	loops []*reactor.Loop
	left  int
}

var _ hot.Host = (*Seats)(nil)

// Sit implements hot.Host.
func (s *Seats) Sit(l *reactor.Loop) (hot.Seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loops = append(s.loops, l)
	return hot.Seat(len(s.loops) - 1), nil
}

// Leave implements hot.Host.
func (s *Seats) Leave(hot.Seat) { s.mu.Lock(); s.left++; s.mu.Unlock() }

// Left returns how many seats were left.
func (s *Seats) Left() int { s.mu.Lock(); defer s.mu.Unlock(); return s.left }

func (s *Seats) loop(n hot.Seat) *reactor.Loop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loops[n]
}

// Hot is a File that begins operations on loops, but every fourth.
type Hot struct {
	*File
	Seats *Seats
	mu    sync.Mutex
	n     int
}

var _ hot.File = (*Hot)(nil)

func (h *Hot) may() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	return h.n%4 != 0
}

// BeginRead implements hot.File.
func (h *Hot) BeginRead(s hot.Seat, p []byte, off int64, e hot.Ender) bool {
	return h.may() && h.Seats.loop(s).Do(func() {
		if err := h.check("hotread", off, len(p)); err != nil {
			e.Ended(0, err)
			return
		}
		e.Ended(h.read("hotread", p, off), nil)
	})
}

// BeginWrite implements hot.File.
func (h *Hot) BeginWrite(s hot.Seat, p []byte, off int64, e hot.Ender) bool {
	return h.may() && h.Seats.loop(s).Do(func() {
		if err := h.check("hotwrite", off, len(p)); err != nil {
			e.Ended(0, err)
			return
		}
		h.write("hotwrite", p, off)
		e.Ended(len(p), nil)
	})
}

func (h *Hot) check(what string, off int64, n int) error {
	h.File.mu.Lock()
	fault := h.File.fault
	h.File.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(what, off, int64(n))
}
