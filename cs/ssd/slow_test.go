package ssd

import (
	"fmt"
	"math/rand"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/disk"
)

// slowDisk makes an FS as slow as a disk with one arm: an operation that does not go on where the last one ended costs a seek, each byte
// its share of the bandwidth, and a sync a seek if something was written since the last one.
type slowDisk struct {
	disk.FS
	seek      time.Duration
	bandwidth float64 // bytes a second

	mu    sync.Mutex
	free  time.Time // when the arm is
	path  string    // where it is
	off   int64
	dirty bool
}

// take waits until the arm has done an operation.
func (d *slowDisk) take(path string, off int64, n int, write, sync bool) {
	d.mu.Lock()
	now := time.Now()
	if d.free.Before(now) {
		d.free = now
	}
	switch {
	case sync:
		if d.dirty {
			d.free = d.free.Add(d.seek)
		}
		d.dirty = false
	default:
		if d.path != path || d.off != off {
			d.free = d.free.Add(d.seek)
		}
		d.free = d.free.Add(time.Duration(float64(n) / d.bandwidth * float64(time.Second)))
		d.path, d.off = path, off+int64(n)
		d.dirty = d.dirty || write
	}
	until := d.free
	d.mu.Unlock()
	time.Sleep(time.Until(until))
}

func (d *slowDisk) Open(path string, flag disk.Flag) (disk.File, error) {
	f, err := d.FS.Open(path, flag)
	if err != nil {
		return nil, err
	}
	return &slowFile{f, d, path}, nil
}

type slowFile struct {
	disk.File
	d    *slowDisk
	path string
}

func (f *slowFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.take(f.path, off, len(p), false, false)
	return f.File.ReadAt(p, off)
}

func (f *slowFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.take(f.path, off, len(p), true, false)
	return f.File.WriteAt(p, off)
}

func (f *slowFile) Sync() error {
	f.d.take(f.path, 0, 0, false, true)
	return f.File.Sync()
}

// syncWrites makes random writes of 4 KiB with a sync each for a time, and returns how long each took.
func syncWrites(t testing.TB, f disk.File, rng *rand.Rand, pages int64, until func(n int) bool) []time.Duration {
	b := disk.AlignedBuffer(pageSize)
	var took []time.Duration
	for n := 0; !until(n); n++ {
		rng.Read(b[:64])
		began := time.Now()
		if _, err := f.WriteAt(b, rng.Int63n(pages)*pageSize); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	return took
}

func rate(took []time.Duration) float64 {
	var all time.Duration
	for _, d := range took {
		all += d
	}
	return float64(len(took)) / all.Seconds()
}

func percentile(took []time.Duration, p float64) time.Duration {
	s := slices.Sorted(slices.Values(took))
	return s[int(p*float64(len(s)-1))]
}

// TestSlowDisk writes at random, with a sync each, until the journal has long been full: at the speed of the fast disk first, then slower
// and slower, and never with a stall. Only what the slow disk takes, and what waits for it, counts as time.
func TestSlowDisk(t *testing.T) { synctest.Test(t, slowDiskTest) }

func slowDiskTest(t *testing.T) {
	const pages = 8192
	slow := &slowDisk{FS: new(disk.Faulty), seek: 2 * time.Millisecond, bandwidth: 150e6}
	b := newBench(t, new(disk.Faulty), slow, "/fast", "/slow", minRingBlocks)
	rng := rand.New(rand.NewSource(1))
	f := b.mustFile("a.chk", pages*pageSize)
	half := b.fs.ring.blocks * pageSize / 2
	began := time.Now()
	after := func(d time.Duration) bool { return time.Since(began) > d }
	empty := syncWrites(t, f, rng, pages, func(int) bool { return b.fs.Stats().Used > half || after(10*time.Second) })
	began = time.Now()
	filling := syncWrites(t, f, rng, pages, func(int) bool { return b.fs.Stats().Paced > 100*time.Millisecond || after(10*time.Second) })
	began = time.Now()
	fulls := syncWrites(t, f, rng, pages, func(int) bool { return after(3 * time.Second) })
	must(t, f.Close())
	must(t, b.fs.Close())
	b.o.Dir = "" // no journal

	bare, err := slow.Open("/slow/a.chk", disk.ReadWrite)
	must(t, err)
	began = time.Now()
	without := syncWrites(t, bare, rng, pages, func(int) bool { return after(time.Second) })
	for _, p := range []struct {
		what string
		took []time.Duration
	}{{"journal up to half full", empty}, {"journal filling", filling}, {"journal full", fulls}, {"no journal", without}} {
		t.Logf("%-24s %8.0f writes/s, p50 %v, p99 %v, longest %v (%d writes)", p.what, rate(p.took), percentile(p.took, 0.5), percentile(p.took, 0.99),
			percentile(p.took, 1), len(p.took))
	}
	st := b.fs.Stats()
	t.Logf("%+v", st)
	if rate(empty) < 2*rate(without) {
		t.Errorf("%.0f writes/s with an empty journal, %.0f without one", rate(empty), rate(without))
	}
	if rate(fulls) < rate(without)/3 {
		t.Errorf("%.0f writes/s with a full journal, %.0f without one", rate(fulls), rate(without))
	}
	if longest := percentile(slices.Concat(filling, fulls), 1); longest > 2*time.Second {
		t.Errorf("a write took %v: a stall", longest)
	}
}

// BenchmarkSync is a random write of 4 KiB with a sync on a disk of 150 seeks a second, with and without a journal.
func BenchmarkSync(b *testing.B) {
	const pages = 16384
	for _, journal := range []bool{false, true} {
		b.Run(fmt.Sprintf("size=4096/iops=150/journal=%t", journal), func(b *testing.B) {
			slow := &slowDisk{FS: new(disk.Faulty), seek: time.Second / 150, bandwidth: 150e6}
			w := newBench(b, disk.OS{}, slow, filepath.Join(b.TempDir(), "fast"), "/slow", 64*minRingBlocks)
			f := w.mustFile("a.chk", pages*pageSize)
			if !journal {
				must(b, f.Close())
				var err error
				f, err = slow.Open("/slow/a.chk", disk.ReadWrite)
				must(b, err)
			}
			rng := rand.New(rand.NewSource(1))
			b.SetBytes(pageSize)
			b.ReportAllocs()
			p := disk.AlignedBuffer(pageSize)
			for b.Loop() {
				if _, err := f.WriteAt(p, rng.Int63n(pages)*pageSize); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			must(b, f.Close())
			must(b, w.fs.Close())
		})
	}
}
