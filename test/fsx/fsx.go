// Package fsx does random operations on one file of a mounted filesystem and compares what comes back
// with a model in memory. With several directories, which are mounts of the same filesystem, every
// operation goes through a mount chosen at random, so each sees at once what the others did.
//
// Run is bounded by Options.Ops. Everything follows from Options.Seed, and an error says the seed, the number of
// the operation and the operations before it. It is for tests only, after the idea of fsx by Avadis Tevanian.
package fsx

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	page = 4096
	// window is the size of each of the two regions that offsets are chosen from: the start of the file and around
	// boundary, where one chunk of varve ends and the next begins.
	window   = 256 << 10
	boundary = 64 << 20
	maxSize  = boundary + window/2
	maxIO    = 96 << 10
)

// Options of a run.
type Options struct {
	Dirs []string // mounts of one filesystem; at least one
	Name string   // file name in Dirs
	Ops  int
	Seed uint64
	// Progress, if set, is called every thousand operations.
	Progress func(op int)
}

type runner struct {
	o    Options
	rng  *rand.Rand
	data []byte // the model: what the file holds; len is its size
	name string
	fds  []handles
	log  []string // the last operations
	op   int
}

// handles of the file on one mount.
type handles struct{ plain, direct, app int }

type operation struct {
	name   string
	weight int
	run    func(*runner, int) error
}

var operations = []operation{
	{"write", 18, (*runner).write},
	{"write-direct", 14, (*runner).writeDirect},
	{"append", 5, (*runner).appendWrite},
	{"read", 18, (*runner).read},
	{"read-direct", 12, (*runner).readDirect},
	{"mmap-read", 8, (*runner).mmapRead},
	{"mmap-write", 8, (*runner).mmapWrite},
	{"truncate", 5, (*runner).truncate},
	{"allocate", 2, (*runner).allocate},
	{"punch", 4, (*runner).punch},
	{"zero", 4, (*runner).zero},
	{"seek", 5, (*runner).seek},
	{"sync", 3, (*runner).sync},
	{"stat", 4, (*runner).stat},
	{"reopen", 2, (*runner).reopen},
	{"rename", 2, (*runner).rename},
	{"lock", 2, (*runner).lock},
}

// Run does o.Ops operations and a full comparison at the end. The file is removed when all was well.
func Run(o Options) (err error) {
	r := &runner{o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x76617276)), name: o.Name}
	defer func() {
		r.closeAll()
		if err != nil {
			err = fmt.Errorf("fsx seed %d, operation %d: %w\n  before it:\n    %s", o.Seed, r.op, err, strings.Join(r.log, "\n    "))
		}
	}()
	for range o.Dirs {
		r.fds = append(r.fds, handles{-1, -1, -1})
	}
	if err := os.WriteFile(r.path(0), nil, 0o644); err != nil {
		return err
	}
	for m := range o.Dirs {
		if err := r.open(m); err != nil {
			return err
		}
	}
	total := 0
	for _, op := range operations {
		total += op.weight
	}
	for r.op = range o.Ops {
		n := r.rng.IntN(total)
		for _, op := range operations {
			if n -= op.weight; n < 0 {
				m := r.rng.IntN(len(o.Dirs))
				r.note("%d: mount %d %s", r.op, m, op.name)
				if err := op.run(r, m); err != nil {
					return fmt.Errorf("mount %d %s: %w", m, op.name, err)
				}
				break
			}
		}
		if o.Progress != nil && r.op%1000 == 999 {
			o.Progress(r.op + 1)
		}
	}
	for m := range o.Dirs {
		if err := r.compareAll(m); err != nil {
			return fmt.Errorf("final comparison on mount %d: %w", m, err)
		}
	}
	r.closeAll()
	return os.Remove(r.path(0))
}

func (r *runner) note(format string, args ...any) {
	r.log = append(r.log, fmt.Sprintf(format, args...))
	if len(r.log) > 40 {
		r.log = r.log[1:]
	}
}

// detail adds to the last note.
func (r *runner) detail(format string, args ...any) {
	r.log[len(r.log)-1] += " " + fmt.Sprintf(format, args...)
}

func (r *runner) path(m int) string { return filepath.Join(r.o.Dirs[m], r.name) }

func (r *runner) open(m int) error {
	for _, f := range []struct {
		fd    *int
		flags int
	}{
		{&r.fds[m].plain, unix.O_RDWR}, {&r.fds[m].direct, unix.O_RDWR | unix.O_DIRECT}, {&r.fds[m].app, unix.O_RDWR | unix.O_APPEND},
	} {
		fd, err := unix.Open(r.path(m), f.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", r.path(m), err)
		}
		*f.fd = fd
	}
	return nil
}

func (r *runner) closeAll() {
	for m := range r.fds {
		for _, fd := range []*int{&r.fds[m].plain, &r.fds[m].direct, &r.fds[m].app} {
			if *fd >= 0 {
				unix.Close(*fd)
				*fd = -1
			}
		}
	}
}

// offset chooses where to do something, n bytes at most past the window's end.
func (r *runner) offset() int64 {
	if r.rng.IntN(4) == 0 {
		return boundary - window/2 + r.rng.Int64N(window-maxIO)
	}
	return r.rng.Int64N(window)
}

// inside chooses a range that starts inside the file; ok is false if the file is empty.
func (r *runner) inside() (off, n int64, ok bool) {
	if len(r.data) == 0 {
		return 0, 0, false
	}
	off = r.offset()
	if off >= int64(len(r.data)) {
		off = r.rng.Int64N(min(int64(len(r.data)), window))
	}
	return off, 1 + r.rng.Int64N(min(maxIO, int64(len(r.data))-off)), true
}

func (r *runner) fill(p []byte) {
	if r.rng.IntN(16) == 0 {
		clear(p) // zeros are data too
		return
	}
	x := r.rng.Uint64() | 1
	for i := range p {
		p[i] = byte(x >> (8 * (i & 7)))
		if i&7 == 7 {
			x = x*6364136223846793005 + 1442695040888963407
		}
	}
}

// put writes p into the model, growing it with zeros.
func (r *runner) put(p []byte, off int64) {
	r.grow(off + int64(len(p)))
	copy(r.data[off:], p)
}

func (r *runner) grow(size int64) {
	if size > int64(len(r.data)) {
		r.resize(size)
	}
}

func (r *runner) resize(size int64) {
	old := int64(len(r.data))
	if cap(r.data) == 0 {
		r.data = make([]byte, 0, maxSize+maxIO+page)
	}
	r.data = r.data[:size]
	if size > old {
		clear(r.data[old:size])
	}
}

// compare reports the first difference of got from the model at off.
func (r *runner) compare(got []byte, off int64) error {
	want := r.data[off : off+int64(len(got))]
	if string(got) == string(want) {
		return nil
	}
	first, last, count := -1, 0, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
			count++
		}
	}
	return fmt.Errorf("[%d,+%d): %d bytes differ, from %d to %d: first got %#02x, want %#02x (size %d)",
		off, len(got), count, off+int64(first), off+int64(last), got[first], want[first], len(r.data))
}
