package store

import (
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"varve/cs/ssd"
	"varve/internal/disk"
)

// crashDisk is a disk that can lose power.
type crashDisk interface {
	disk.FS
	Inject(func(disk.Op) error)
	PowerOff()
	Kill()
	Crash(*rand.Rand)
}

var _ crashDisk = (*disk.Faulty)(nil)
var _ crashDisk = (*journaled)(nil)

// journaled is a slow disk behind a write journal, of which the store does not know. The journal is opened when the store takes its
// lock, and closed when it drops it.
type journaled struct {
	slow, fast disk.FS
	o          ssd.Options

	mu    sync.Mutex
	below disk.FS // the journal while it is open, else the slow disk
}

func newJournaled(t testing.TB, slow, fast disk.FS, dir, fastDir string) *journaled {
	t.Helper()
	j := &journaled{slow: slow, fast: fast, below: slow}
	j.o = ssd.Options{Fast: fast, Slow: slow, Dir: fastDir, Root: dir, Journal: ssd.UUID{1}, Server: ssd.UUID{2}, Cluster: testCluster, Bytes: ssd.MinBytes}
	j.o.Commit = func(n uint64) error { j.o.Generation = n; return nil }
	must(t, ssd.Create(j.o))
	return j
}

func (j *journaled) now() disk.FS {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.below
}

func (j *journaled) set(below disk.FS) (old disk.FS) {
	j.mu.Lock()
	defer j.mu.Unlock()
	old, j.below = j.below, below
	return old
}

func (j *journaled) Lock(path string) (func() error, error) {
	unlock, err := j.slow.Lock(path)
	if err != nil {
		return nil, err
	}
	f, err := ssd.Open(j.o)
	if err != nil {
		return nil, fmt.Errorf("%w (%v)", err, unlock())
	}
	j.set(f)
	return func() error {
		j.set(j.slow)
		if err := f.Close(); err != nil {
			return err
		}
		return unlock()
	}, nil
}

func (j *journaled) Open(path string, flag disk.Flag) (disk.File, error) {
	return j.now().Open(path, flag)
}
func (j *journaled) Rename(from, to string) error               { return j.now().Rename(from, to) }
func (j *journaled) Remove(path string) error                   { return j.now().Remove(path) }
func (j *journaled) MkdirAll(path string) error                 { return j.now().MkdirAll(path) }
func (j *journaled) ReadDir(path string) ([]fs.DirEntry, error) { return j.now().ReadDir(path) }
func (j *journaled) Stat(path string) (fs.FileInfo, error)      { return j.now().Stat(path) }
func (j *journaled) SyncDir(path string) error                  { return j.now().SyncDir(path) }
func (j *journaled) Space(path string) (disk.Space, error)      { return j.now().Space(path) }
func (j *journaled) Identify(path string) (disk.Identity, error) {
	return disk.Identify(j.now(), path)
}

// both returns the two disks as such that can lose power.
func (j *journaled) both() [2]*disk.Faulty {
	return [2]*disk.Faulty{j.slow.(*disk.Faulty), j.fast.(*disk.Faulty)}
}

func (j *journaled) Inject(fn func(disk.Op) error) {
	var mu sync.Mutex // the destager works at the same time
	for _, d := range j.both() {
		d.Inject(func(op disk.Op) error {
			mu.Lock()
			defer mu.Unlock()
			return fn(op)
		})
	}
}

func (j *journaled) PowerOff() {
	for _, d := range j.both() {
		d.PowerOff()
	}
}

// die ends the process that had the journal open.
func (j *journaled) die() {
	if f, ok := j.set(j.slow).(*ssd.FS); ok {
		f.Abandon()
	}
}

func (j *journaled) Kill() {
	j.die()
	for _, d := range j.both() {
		d.Kill()
	}
}

func (j *journaled) Crash(rng *rand.Rand) {
	j.die()
	for _, d := range j.both() {
		d.Crash(rng)
	}
}

// around are the tests that change or count bytes on the disk itself, while the journal has newer ones.
var around = []string{"TestBadBlock", "TestLostQuarantine", "TestScrubFinds", "TestScrubResumes", "TestUsageIsExact"}

// onJournal runs a test of the suite on a journal before a real directory and before the faulty disk.
func onJournal(t *testing.T, test func(t *testing.T, o Options)) {
	if slices.Contains(around, t.Name()) {
		t.Run("fs=journal", func(t *testing.T) { t.Skip("it goes around the journal, to what lies on the disk") })
		return
	}
	t.Run("fs=os,journal", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "slow"), 0o700))
		d := newJournaled(t, disk.OS{}, disk.OS{}, filepath.Join(dir, "slow"), filepath.Join(dir, "fast"))
		test(t, testOptions(d, filepath.Join(dir, "slow")))
	})
	t.Run("fs=faulty,journal", func(t *testing.T) {
		test(t, testOptions(newJournaled(t, new(disk.Faulty), new(disk.Faulty), "/d", "/fast"), "/d"))
	})
}

// suite says that every test that runs on several disks runs on a journal as well; a model and crashes always do.
func suite() bool { return os.Getenv("VARVE_STORE_SSD") != "" }

func TestCrashJournal(t *testing.T) {
	seeds := int64(8)
	if testing.Short() {
		seeds = 2
	}
	if suite() {
		seeds = 100
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			crash(t, seed, newJournaled(t, new(disk.Faulty), new(disk.Faulty), "/d", "/fast"))
		})
	}
}

func TestModelJournal(t *testing.T) { onJournal(t, model) }
