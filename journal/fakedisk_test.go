package journal

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"varve/internal/disk"
	"varve/internal/id"
)

var errPower = errors.New("power failed")

// fakeDisk is one directory in memory that can lose what was not synced. It belongs to one goroutine.
type fakeDisk struct {
	disk.FS // nil: a method that is not implemented below panics
	rng     *rand.Rand
	names   map[string]*fakeFile
	pending []func(map[string]*fakeFile) // changes of names since SyncDir
	durable map[string]*fakeFile
	budget  int // changes until errPower; below zero: never
	syncs   int
	failAt  func(op string) error
}

type fakeFile struct {
	d      *fakeDisk
	data   []byte
	stable []byte // as of the last Sync
}

func newFakeDisk(rng *rand.Rand) *fakeDisk {
	return &fakeDisk{rng: rng, names: map[string]*fakeFile{}, durable: map[string]*fakeFile{}, budget: -1}
}

// change is called before anything that changes the disk.
func (d *fakeDisk) change(op string) error {
	if d.failAt != nil {
		if err := d.failAt(op); err != nil {
			return err
		}
	}
	if d.budget == 0 {
		return errPower
	}
	if d.budget > 0 {
		d.budget--
	}
	return nil
}

func (d *fakeDisk) rename(f func(map[string]*fakeFile)) {
	f(d.names)
	d.pending = append(d.pending, f)
}

// crash returns the disk as it may be found after the power failed.
func (d *fakeDisk) crash() *fakeDisk {
	after := newFakeDisk(d.rng)
	names := cloneMap(d.durable)
	for _, f := range d.pending[:d.rng.IntN(len(d.pending)+1)] {
		f(names)
	}
	for name, f := range names {
		data := slices.Clone(f.stable)
		if size := f.size(d.rng); size < len(data) {
			data = data[:size]
		} else {
			data = append(data, make([]byte, size-len(data))...)
		}
		for off := 0; off < len(data); off += 512 {
			end := min(off+512, len(data))
			if d.rng.IntN(2) == 0 && off < len(f.data) {
				copy(data[off:end], f.data[off:])
			}
		}
		g := &fakeFile{d: after, data: data, stable: slices.Clone(data)}
		after.names[name], after.durable[name] = g, g
	}
	return after
}

// size picks a size that the file may have after the power failed.
func (f *fakeFile) size(rng *rand.Rand) int {
	low, high := min(len(f.data), len(f.stable)), max(len(f.data), len(f.stable))
	switch rng.IntN(3) {
	case 0:
		return len(f.data)
	case 1:
		return len(f.stable)
	}
	return low + rng.IntN(high-low+1)
}

func cloneMap(m map[string]*fakeFile) map[string]*fakeFile {
	c := map[string]*fakeFile{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func (d *fakeDisk) Open(path string, flag disk.Flag) (disk.File, error) {
	name := filepath.Base(path)
	f := d.names[name]
	if f == nil {
		if flag&disk.Create == 0 {
			return nil, fs.ErrNotExist
		}
		if err := d.change("create"); err != nil {
			return nil, err
		}
		f = &fakeFile{d: d}
		d.rename(func(m map[string]*fakeFile) { m[name] = f })
	}
	return f, nil
}

func (d *fakeDisk) Rename(from, to string) error {
	if err := d.change("rename"); err != nil {
		return err
	}
	from, to = filepath.Base(from), filepath.Base(to)
	d.rename(func(m map[string]*fakeFile) {
		if f := m[from]; f != nil {
			m[to] = f
			delete(m, from)
		}
	})
	return nil
}

func (d *fakeDisk) Remove(path string) error {
	if err := d.change("remove"); err != nil {
		return err
	}
	d.rename(func(m map[string]*fakeFile) { delete(m, filepath.Base(path)) })
	return nil
}

func (d *fakeDisk) SyncDir(string) error {
	if err := d.change("syncdir"); err != nil {
		return err
	}
	d.durable, d.pending = cloneMap(d.names), nil
	return nil
}

func (d *fakeDisk) MkdirAll(string) error { return nil }

func (d *fakeDisk) ReadDir(string) ([]fs.DirEntry, error) {
	m := fstest.MapFS{}
	for name, f := range d.names {
		m[name] = &fstest.MapFile{Data: f.data}
	}
	return m.ReadDir(".")
}

func (d *fakeDisk) Stat(path string) (fs.FileInfo, error) {
	if d.names[filepath.Base(path)] == nil {
		return nil, fs.ErrNotExist
	}
	return nil, nil
}

func (f *fakeFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *fakeFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.d.change("write")
	if errors.Is(err, errPower) {
		p = p[:f.d.rng.IntN(len(p)+1)] // part of it was on its way
	} else if err != nil {
		return 0, err
	}
	if grow := int(off) + len(p) - len(f.data); grow > 0 {
		f.data = append(f.data, make([]byte, grow)...)
	}
	copy(f.data[off:], p)
	return len(p), err
}

func (f *fakeFile) Truncate(size int64) error {
	if err := f.d.change("truncate"); err != nil {
		return err
	}
	f.data = append(f.data[:min(int(size), len(f.data))], make([]byte, max(0, int(size)-len(f.data)))...)
	return nil
}

func (f *fakeFile) Sync() error {
	f.d.syncs++
	if err := f.d.change("sync"); err != nil {
		return err
	}
	f.stable = slices.Clone(f.data)
	return nil
}

func (f *fakeFile) PunchHole(off, n int64) error { return errors.ErrUnsupported }
func (f *fakeFile) Size() (int64, error)         { return int64(len(f.data)), nil }
func (f *fakeFile) Close() error                 { return nil }

// TestPoison lets one operation fail and checks that nothing is tried again.
func TestPoison(t *testing.T) {
	broken := errors.New("broken disk")
	for _, op := range []string{"write", "sync", "rename", "syncdir", "create"} {
		t.Run("op="+op, func(t *testing.T) {
			d := newFakeDisk(rand.New(rand.NewPCG(1, 2)))
			o := testOptions("journal")
			o.FS = d
			j := mustOpen(t, o)
			mustAppend(t, j, records(1, 10))
			ok(t, j.Sync())
			d.failAt = func(got string) error {
				if strings.HasPrefix(got, op) {
					return broken
				}
				return nil
			}
			var err error
			for i := id.Index(11); err == nil && i < 1000; i++ {
				if err = j.Append(records(i, i)); err == nil {
					err = j.Sync()
				}
			}
			if !errors.Is(err, broken) {
				t.Fatalf("want %v, got %v", broken, err)
			}
			d.failAt = nil
			syncs := d.syncs
			_, readerErr := j.Reader(1)
			_, _, rawErr := j.ReadRaw(1, 100)
			_, timeErr := j.FindTime(100000)
			_, checkpointsErr := j.Checkpoints()
			_, _, openErr := j.OpenCheckpoint(5)
			for i, later := range []error{
				j.Append(records(j.Last().Index+1, j.Last().Index+1)), j.Sync(), j.Reset(Position{Index: 5000}), j.Trim(5),
				j.WriteCheckpoint(j.Last(), writeState(16)), readerErr, rawErr, timeErr, checkpointsErr, openErr, j.Close(),
			} {
				if !errors.Is(later, broken) {
					t.Errorf("call %d after the failure: want %v, got %v", i, broken, later)
				}
			}
			if d.syncs != syncs {
				t.Errorf("synced %d times after the failure", d.syncs-syncs)
			}
		})
	}
}
