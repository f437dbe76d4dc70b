package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// flip inverts a bit of a block on the disk, behind the store's back.
func flip(t testing.TB, o Options, c id.ChunkID, block uint32, at int64) {
	t.Helper()
	f, err := o.FS.Open((&Store{o: o}).pathOf(c), disk.ReadWrite)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, place(block)+at)
	must(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b, place(block)+at)
	must(t, err)
	must(t, f.Sync())
}

// worn is a disk of which some places cannot be read, until they are written.
type worn struct {
	disk.FS
	mu  sync.Mutex
	bad map[string]map[int64]bool // path and offset of a block
	// stuck places stay bad when they are written.
	stuck bool
}

func (d *worn) Identify(path string) (disk.Identity, error) { return disk.Identify(d.FS, path) }

func (d *worn) Open(path string, flag disk.Flag) (disk.File, error) {
	f, err := d.FS.Open(path, flag)
	if err != nil {
		return nil, err
	}
	return &wornFile{f, d, path}, nil
}

func (d *worn) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bad[from] != nil {
		d.bad[to] = d.bad[from]
		delete(d.bad, from)
	}
	return d.FS.Rename(from, to)
}

func (d *worn) wear(path string, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bad[path] == nil {
		d.bad[path] = make(map[int64]bool)
	}
	d.bad[path][off] = true
}

type wornFile struct {
	disk.File
	d    *worn
	path string
}

func (f *wornFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for at := range f.d.bad[f.path] {
		if at < off+int64(len(p)) && off < at+chunk.BlockSize {
			return 0, &wornError{f.path, at}
		}
	}
	return f.File.ReadAt(p, off)
}

func (f *wornFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for at := range f.d.bad[f.path] {
		if !f.d.stuck && at >= off && at < off+int64(len(p)) {
			delete(f.d.bad[f.path], at)
		}
	}
	return f.File.WriteAt(p, off)
}

func (f *wornFile) PunchHole(off, n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for at := range f.d.bad[f.path] {
		if at >= off && at < off+n {
			delete(f.d.bad[f.path], at)
		}
	}
	return f.File.PunchHole(off, n)
}

type wornError struct {
	path string
	at   int64
}

func (e *wornError) Error() string {
	return fmt.Sprintf("%s: offset %d: %v", e.path, e.at, syscall.EIO)
}
func (e *wornError) Unwrap() error { return syscall.EIO }

// kindsOfBad runs a test with a block that rots and one that cannot be read, on both disks.
func kindsOfBad(t *testing.T, test func(t *testing.T, o Options, spoil func(c id.ChunkID, block uint32), code fserr.Code)) {
	onBoth(t, func(t *testing.T, o Options) {
		base := o
		t.Run("rotten", func(t *testing.T) {
			test(t, base, func(c id.ChunkID, block uint32) { flip(t, base, c, block, 99) }, fserr.BadChecksum)
		})
		base = testOptions(disk.OS{}, t.TempDir())
		if _, ok := o.FS.(*disk.Faulty); ok {
			base = testOptions(new(disk.Faulty), "/d")
		}
		t.Run("unreadable", func(t *testing.T) {
			d := &worn{FS: base.FS, bad: make(map[string]map[int64]bool)}
			base.FS = d
			test(t, base, func(c id.ChunkID, block uint32) { d.wear((&Store{o: base}).pathOf(c), place(block)) }, fserr.IO)
		})
	})
}

func badOf(s *Store) string {
	_, list := s.BadBlocks(100)
	var all []string
	for _, b := range list {
		all = append(all, fmt.Sprintf("%d/%d", b.Chunk, b.Block))
	}
	return strings.Join(all, " ")
}

// A bad block is known after a restart, is never served, is not healed by a part, and is by a whole.
func TestBadBlock(t *testing.T) {
	kindsOfBad(t, func(t *testing.T, o Options, spoil func(id.ChunkID, uint32), code fserr.Code) {
		rng := rand.New(rand.NewSource(1))
		a := random(rng, 8*chunk.BlockSize)
		s := mustOpen(t, o)
		for c := id.ChunkID(1); c <= 2; c++ {
			must(t, s.Create(c, 1))
			must(t, write(s, c, 1, 0, a))
		}
		must(t, s.Close())
		spoil(1, 3)
		spoil(1, 5)
		s = mustOpen(t, o)
		if n, _ := s.BadBlocks(0); n != 0 {
			t.Fatalf("%d bad blocks before anybody has read them", n)
		}
		bad := func(what string, err error) {
			t.Helper()
			if fserr.Of(err) != code || !errors.Is(err, ErrBadBlock) || !strings.Contains(err.Error(), "block 3") {
				t.Fatalf("%s: %v, want %v of block 3", what, err, code)
			}
		}
		_, err := read(s, 1, 1, 0, 8*chunk.BlockSize)
		bad("read", err)
		if got := badOf(s); got != "1/3 1/5" {
			t.Fatalf("in quarantine: %s", got)
		}
		must(t, s.Close())
		s = mustOpen(t, o)
		if got := badOf(s); got != "1/3 1/5" {
			t.Fatalf("in quarantine after a restart: %s", got)
		}
		_, err = read(s, 1, 1, 3*chunk.BlockSize, chunk.BlockSize)
		bad("read after a restart", err)
		bad("partial write", write(s, 1, 1, 3*chunk.BlockSize+5, []byte("part")))
		bad("partial punch", s.Punch(1, 1, 3*chunk.BlockSize+5, 4*chunk.BlockSize))
		if got := badOf(s); got != "1/3 1/5" {
			t.Fatalf("in quarantine after partial writes: %s", got)
		}
		theirs, _, _, err := s.Table(2)
		must(t, err)
		ours, _, _, err := s.Table(1)
		must(t, err)
		for b := range ours {
			if differ := ours[b] != theirs[b]; differ != (b == 3 || b == 5) {
				t.Fatalf("block %d: a comparison of tables finds that they differ: %t", b, differ)
			}
		}
		if got, err := read(s, 1, 1, 0, 3*chunk.BlockSize); err != nil || !bytes.Equal(got, a[:3*chunk.BlockSize]) {
			t.Fatalf("blocks beside the bad one: %v", err)
		}
		// A write over more than the bad block heals it.
		w := random(rng, 3*chunk.BlockSize)
		must(t, write(s, 1, 1, 2*chunk.BlockSize, w))
		copy(a[2*chunk.BlockSize:], w)
		if got := badOf(s); got != "1/5" {
			t.Fatalf("in quarantine after the write: %s", got)
		}
		must(t, s.Punch(1, 1, 5*chunk.BlockSize, 6*chunk.BlockSize))
		clear(a[5*chunk.BlockSize : 6*chunk.BlockSize])
		if got := badOf(s); got != "" {
			t.Fatalf("in quarantine after the punch: %s", got)
		}
		must(t, s.Close())
		s = mustOpen(t, o)
		got, err := read(s, 1, 1, 0, 8*chunk.BlockSize)
		must(t, err)
		if !bytes.Equal(got, a) {
			t.Fatal("healed blocks differ from what was written")
		}
		must(t, s.Close())
		if r, err := Check(t.Context(), o, CheckOptions{}); err != nil || r.Count != 0 || r.Quarantine != 0 {
			t.Fatalf("%+v %v", r, err)
		}
	})
}

// A block that was bad when its extent became active must not get the checksum of what is on the disk after a crash.
func TestBadBlockInActiveExtent(t *testing.T) {
	for seed := range int64(20) {
		d := new(disk.Faulty)
		o := testOptions(d, "/d")
		s := mustOpen(t, o)
		must(t, s.Create(1, 1))
		must(t, write(s, 1, 1, 0, bytes.Repeat([]byte{1}, 4*chunk.BlockSize)))
		must(t, s.Close())
		flip(t, o, 1, 2, 7)
		s = mustOpen(t, o)
		_, err := read(s, 1, 1, 0, 4*chunk.BlockSize)
		wantCode(t, err, fserr.BadChecksum)
		must(t, write(s, 1, 1, 0, bytes.Repeat([]byte{2}, chunk.BlockSize)))
		healed := seed%2 == 1
		if healed {
			must(t, write(s, 1, 1, 2*chunk.BlockSize, bytes.Repeat([]byte{3}, chunk.BlockSize)))
		}
		d.PowerOff()
		s.Close()
		if seed%4 < 2 {
			d.Kill()
		} else {
			d.Crash(rand.New(rand.NewSource(seed)))
		}
		s = mustOpen(t, o)
		must(t, s.Accept(1))
		got, err := read(s, 1, 1, 2*chunk.BlockSize, chunk.BlockSize)
		if !healed {
			if !errors.Is(err, ErrBadBlock) {
				t.Fatalf("seed %d: a bad block was healed by a crash: %v", seed, err)
			}
		} else if err != nil || got[0] != 3 || got[4095] != 3 {
			t.Fatalf("seed %d: a block that was written whole is not there: %v", seed, err)
		}
		must(t, s.Close())
	}
}

// Healing is cut off at every operation of the disk: afterwards the block is bad, or holds what was to be written.
func TestHealCutOff(t *testing.T) {
	for ops := 0; ; ops++ {
		d := new(disk.Faulty)
		o := testOptions(d, "/d")
		s := mustOpen(t, o)
		must(t, s.Create(1, 1))
		must(t, write(s, 1, 1, 0, bytes.Repeat([]byte{1}, 4*chunk.BlockSize)))
		must(t, s.Close())
		flip(t, o, 1, 2, 7)
		s = mustOpen(t, o)
		_, err := read(s, 1, 1, 0, 4*chunk.BlockSize)
		wantCode(t, err, fserr.BadChecksum)
		left := ops
		d.Inject(func(disk.Op) error {
			if left--; left < 0 {
				return disk.ErrPowerOff
			}
			return nil
		})
		err = write(s, 1, 1, 2*chunk.BlockSize, bytes.Repeat([]byte{9}, chunk.BlockSize))
		d.PowerOff()
		s.Close()
		d.Crash(rand.New(rand.NewSource(int64(ops))))
		s = mustOpen(t, o)
		must(t, s.Accept(1))
		got, rerr := read(s, 1, 1, 2*chunk.BlockSize, chunk.BlockSize)
		good := rerr == nil && bytes.Equal(got, bytes.Repeat([]byte{9}, chunk.BlockSize))
		if err == nil && !good || !good && !errors.Is(rerr, ErrBadBlock) {
			t.Fatalf("cut off after %d operations (%v): read gives %v", ops, err, rerr)
		}
		must(t, s.Close())
		if err == nil {
			return
		}
		if ops > 100 {
			t.Fatal("the write never succeeds")
		}
	}
}

// A block that does not take what is written to it stays bad, and the writer is told.
func TestBadBlockStays(t *testing.T) {
	d := &worn{FS: disk.OS{}, bad: make(map[string]map[int64]bool), stuck: true}
	o := testOptions(d, t.TempDir())
	s := mustOpen(t, o)
	must(t, s.Create(1, 1))
	must(t, write(s, 1, 1, 0, bytes.Repeat([]byte{1}, 4*chunk.BlockSize)))
	d.wear(s.pathOf(1), place(2))
	_, err := read(s, 1, 1, 0, 4*chunk.BlockSize)
	wantCode(t, err, fserr.IO)
	wantCode(t, write(s, 1, 1, 0, bytes.Repeat([]byte{2}, 4*chunk.BlockSize)), fserr.IO)
	if got := badOf(s); got != "1/2" {
		t.Fatalf("in quarantine: %s", got)
	}
	// What was written beside it is there.
	if got, err := read(s, 1, 1, 3*chunk.BlockSize, chunk.BlockSize); err != nil || got[0] != 2 {
		t.Fatal(err)
	}
	// The next join gets a new file, whose blocks are others; the bad one is kept from the filesystem.
	must(t, s.Join(1, 2))
	if got := badOf(s); got != "" {
		t.Fatalf("in quarantine after the join: %s", got)
	}
	p := bytes.Repeat([]byte{3}, 4*chunk.BlockSize)
	if n, err := s.RepairWrite(1, 2, 0, p, chunk.AppendSums(nil, 0, p)); err != nil || n != 4 {
		t.Fatalf("%d blocks repaired: %v", n, err)
	}
	must(t, s.Complete(1, 2))
	must(t, s.Promote(1, 2))
	got, err := read(s, 1, 2, 0, 5*chunk.BlockSize)
	must(t, err)
	if !bytes.Equal(got[:len(p)], p) || !chunk.IsZero(got[len(p):]) {
		t.Fatal("the new file does not hold what was copied")
	}
	fi, err := os.Stat(filepath.Join(o.Dir, wornName, id.ChunkID(1).String()+".1"))
	must(t, err)
	if n, ok := disk.Allocated(fi); !ok || n < chunk.BlockSize || n > 1<<20 {
		t.Errorf("the old file takes up %d bytes, want little more than the bad block", n)
	}
	must(t, s.Close())
	s = mustOpen(t, o)
	if got, err = read(s, 1, 2, 0, 4*chunk.BlockSize); err != nil || !bytes.Equal(got, p) {
		t.Fatalf("after a restart: %v", err)
	}
	must(t, s.Close())
	if r, err := Check(t.Context(), o, CheckOptions{}); err != nil || r.Count != 0 {
		t.Fatalf("%+v %v", r, err)
	}
}

// A read that fails or does not match once is done again.
func TestPassingReadError(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(1, 1))
	p := bytes.Repeat([]byte{7}, 4*chunk.BlockSize)
	must(t, write(s, 1, 1, 0, p))
	once := true
	d.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpRead && once {
			once = false
			return syscall.EIO
		}
		return nil
	})
	got, err := read(s, 1, 1, 0, 4*chunk.BlockSize)
	if err != nil || !bytes.Equal(got, p) || badOf(s) != "" {
		t.Fatalf("%v, in quarantine: %s", err, badOf(s))
	}
	must(t, s.Close())
}

// A chunk that is deleted, or made anew, takes its bad blocks with it.
func TestBadBlocksGoWithTheirChunk(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := mustOpen(t, o)
		p := bytes.Repeat([]byte{7}, chunk.BlockSize)
		for c := id.ChunkID(1); c <= 3; c++ {
			must(t, s.Create(c, 1))
			must(t, write(s, c, 1, 0, p))
			must(t, s.Flush(c, 1))
			flip(t, o, c, 0, 3)
			_, err := read(s, c, 1, 0, chunk.BlockSize)
			wantCode(t, err, fserr.BadChecksum)
		}
		if got := s.BadChunks(2); !slices.Equal(got, []id.ChunkID{1, 2}) {
			t.Fatal(got)
		}
		must(t, s.Delete(1))
		if got := badOf(s); got != "2/0 3/0" {
			t.Fatal(got)
		}
		must(t, s.Create(1, 1))
		must(t, write(s, 1, 1, 5, []byte("part")))
		must(t, s.Close())
		must(t, o.FS.Remove((&Store{o: o}).pathOf(2))) // behind the store's back
		s = mustOpen(t, o)
		if got := badOf(s); got != "3/0" {
			t.Fatal(got)
		}
		must(t, s.Close())
	})
}

// The source of a rebuild mends what is bad in the target, and a block that is bad in the source is not copied.
func TestRebuildMendsBadBlocks(t *testing.T) {
	kindsOfBad(t, func(t *testing.T, o Options, spoil func(id.ChunkID, uint32), code fserr.Code) {
		s := mustOpen(t, o)
		p := random(rand.New(rand.NewSource(3)), 4*chunk.BlockSize)
		for c := id.ChunkID(1); c <= 2; c++ {
			must(t, s.Create(c, 1))
			must(t, write(s, c, 1, 0, p))
			must(t, s.Flush(c, 1))
		}
		spoil(2, 1)
		_, err := read(s, 2, 1, 0, 4*chunk.BlockSize)
		wantCode(t, err, code)
		must(t, s.Join(2, 2))
		must(t, write(s, 2, 2, chunk.BlockSize+1, []byte("fresh"))) // the bad block is written in part while it is stale
		theirs, _, _, err := s.Table(1)
		must(t, err)
		ours, _, _, err := s.Table(2)
		must(t, err)
		for b := range uint32(8) {
			if theirs[b] != ours[b] {
				data, sums := make([]byte, chunk.BlockSize), make([]uint32, 1)
				must(t, s.Read(1, 1, b*chunk.BlockSize, chunk.BlockSize, data, sums))
				_, err := s.RepairWrite(2, 2, b, data, sums)
				must(t, err)
			}
		}
		must(t, s.Promote(2, 2))
		copy(p[chunk.BlockSize+1:], "fresh")
		got, err := read(s, 2, 2, 0, 4*chunk.BlockSize)
		must(t, err)
		if !bytes.Equal(got, p) || badOf(s) != "" {
			t.Fatalf("after the rebuild in quarantine: %s", badOf(s))
		}
		must(t, s.Close())
	})
}

// A list that was lost is made anew; one of another cluster is refused.
func TestLostQuarantine(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := mustOpen(t, o)
		must(t, s.Create(1, 1))
		must(t, write(s, 1, 1, 0, bytes.Repeat([]byte{7}, chunk.BlockSize)))
		must(t, s.Close())
		flip(t, o, 1, 0, 3)
		f, err := o.FS.Open(filepath.Join(o.Dir, quarantineName), disk.ReadWrite)
		must(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte{1}, 2*badRegionSize), 0)
		must(t, errors.Join(err, f.Close()))
		s = mustOpen(t, o)
		_, err = read(s, 1, 1, 0, chunk.BlockSize)
		wantCode(t, err, fserr.BadChecksum)
		if got := badOf(s); got != "1/0" {
			t.Fatal(got)
		}
		must(t, s.Close())
	})
}

// A disk with too many places that it cannot read is retired.
func TestWornDiskIsRetired(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		d := &worn{FS: o.FS, bad: make(map[string]map[int64]bool)}
		o.FS, o.MaxUnreadable = d, 3
		s := mustOpen(t, o)
		must(t, s.Create(1, 1))
		must(t, write(s, 1, 1, 0, bytes.Repeat([]byte{1}, 8*chunk.BlockSize)))
		for b := range uint32(4) {
			d.wear(s.pathOf(1), place(b))
			_, err := read(s, 1, 1, b*chunk.BlockSize, chunk.BlockSize)
			wantCode(t, err, fserr.IO)
			if out := s.failure() != nil; out != (b == 3) {
				t.Fatalf("with %d unreadable blocks and a limit of 3: out of service %t", b+1, out)
			}
		}
		s.Close()
		if _, err := Open(o); !errors.Is(err, ErrRetired) {
			t.Fatalf("a worn disk starts again: %v", err)
		}
	})
}
