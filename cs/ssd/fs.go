package ssd

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"varve/internal/disk"
)

// FS is a slow disk with a journal. The paths of its methods are those of the slow disk.
type FS struct {
	o      Options
	slow   disk.FS
	ring   *ring
	pace   pace
	stats  counters
	unlock func() error
	active atomic.Int64 // time of the newest read or write, in nanoseconds
	lastID uint64       // of a life; guarded by nameMu

	// nameMu is held shared while a name is opened, exclusively while names change.
	nameMu  sync.RWMutex
	filesMu sync.Mutex
	files   map[string]*file   // by path relative to Root: those that are open or have pages in the journal; guarded by filesMu
	ghosts  map[string][]*life // removed, with pages in the journal that a file of that name must not inherit; guarded by filesMu

	namesMu sync.Mutex
	names   map[string]names // by directory

	destager destager
	wake     chan struct{}
	stop     chan struct{}
	work     sync.WaitGroup
	closed   atomic.Bool
}

var _ disk.FS = (*FS)(nil)
var _ disk.Identifier = (*FS)(nil)

// rel returns the path relative to Root of a file whose writes go to the journal.
func (f *FS) rel(path string) (string, bool) {
	rel, err := filepath.Rel(f.o.Root, path)
	if err != nil || rel == "." || strings.HasPrefix(rel, "..") || len(rel) > maxPath || !f.o.Journaled(rel) {
		return "", false
	}
	return rel, true
}

// path is the inverse of rel.
func (f *FS) path(rel string) string { return filepath.Join(f.o.Root, rel) }

// newLife returns the next life of a path.
func (f *FS) newLife(rel string) (*life, error) {
	if err := f.settled(f.path(rel)); err != nil {
		return nil, f.ring.failSlow("sync the directory of "+rel, err)
	}
	f.filesMu.Lock()
	f.lastID++
	l := &life{id: f.ring.generation<<32 | f.lastID, path: rel}
	f.filesMu.Unlock()
	f.ring.mu.Lock()
	f.ring.index.add(l)
	f.ring.mu.Unlock()
	return l, nil
}

// Open implements disk.FS.
func (f *FS) Open(path string, flag disk.Flag) (disk.File, error) {
	if err := f.ring.err(); err != nil {
		return nil, err
	}
	if f.o.ReadOnly && flag&(disk.ReadWrite|disk.Create) != 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EROFS}
	}
	rel, ok := f.rel(path)
	if !ok {
		return f.slow.Open(path, flag)
	}
	if flag&disk.Create != 0 {
		f.nameMu.Lock()
		defer f.nameMu.Unlock()
		if _, err := f.slow.Stat(path); errors.Is(err, fs.ErrNotExist) {
			f.missing(rel)
			if err := f.bury(rel); err != nil {
				return nil, err
			}
			defer f.named(path)
		}
	} else {
		f.nameMu.RLock()
		defer f.nameMu.RUnlock()
	}
	back, err := f.slow.Open(path, flag)
	if err != nil {
		return nil, err
	}
	size, err := back.Size()
	if err != nil {
		back.Close()
		return nil, err
	}
	return &handle{fs: f, file: f.attach(rel, size), slow: back, flag: flag, path: path}, nil
}

// attach returns the file of a path for one more handle.
func (f *FS) attach(rel string, size int64) *file {
	f.filesMu.Lock()
	fl := f.files[rel]
	if fl == nil {
		fl = &file{path: rel}
		f.files[rel] = fl
	}
	if fl.handles++; fl.handles == 1 {
		fl.size.Store(size)
	}
	if l := fl.life.Load(); l != nil {
		f.ring.mu.Lock()
		l.found = false
		f.ring.mu.Unlock()
	}
	f.filesMu.Unlock()
	return fl
}

// release is the opposite of attach.
func (f *FS) release(fl *file) {
	f.filesMu.Lock()
	fl.handles--
	f.filesMu.Unlock()
	f.tidy(fl)
}

// tidy forgets a file that is not open and has no block in the journal.
func (f *FS) tidy(fl *file) {
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	f.ring.mu.Lock()
	defer f.ring.mu.Unlock()
	l := fl.life.Load()
	if fl.handles > 0 || l != nil && l.blocks > 0 {
		return
	}
	if f.files[fl.path] == fl {
		delete(f.files, fl.path)
	}
	if l != nil && fl.life.CompareAndSwap(l, nil) {
		f.ring.index.drop(l)
	}
}

// lookup returns the file of a path, or nil if it is neither open nor in the journal.
func (f *FS) lookup(rel string) *file {
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	return f.files[rel]
}

// Rename implements disk.FS. What either name has in the journal is brought to the slow disk first. Handles of a file that is replaced
// fail from then on.
func (f *FS) Rename(from, to string) error {
	if err := f.writable("rename", from); err != nil {
		return err
	}
	relFrom, okFrom := f.rel(from)
	relTo, okTo := f.rel(to)
	if !okFrom && !okTo {
		return f.slow.Rename(from, to)
	}
	f.nameMu.Lock()
	defer f.nameMu.Unlock()
	var names []string
	if okFrom {
		names = append(names, relFrom)
	}
	if okTo && relTo != relFrom {
		names = append(names, relTo)
	}
	for _, rel := range names {
		if fl := f.lookup(rel); fl != nil {
			fl.alter.Lock() // until the names have changed
			defer fl.alter.Unlock()
			if err := f.retire(fl); err != nil {
				return err
			}
		}
		if err := f.bury(rel); err != nil {
			return err
		}
	}
	err := f.slow.Rename(from, to)
	f.named(to)
	if err != nil {
		return err
	}
	if relFrom == relTo {
		return nil
	}
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	if old := f.files[relTo]; okTo && old != nil {
		old.gone.Store(true)
		delete(f.files, relTo)
	}
	if fl := f.files[relFrom]; okFrom && fl != nil {
		delete(f.files, relFrom)
		if !okTo {
			fl.gone.Store(true) // its handles would write past the journal what others cannot know
			return nil
		}
		fl.path = relTo
		f.files[relTo] = fl
	}
	return nil
}

// Remove implements disk.FS. Handles of a file that is removed fail from then on.
func (f *FS) Remove(path string) error {
	if err := f.writable("remove", path); err != nil {
		return err
	}
	rel, ok := f.rel(path)
	if !ok {
		return f.slow.Remove(path)
	}
	f.nameMu.Lock()
	defer f.nameMu.Unlock()
	fl := f.lookup(rel)
	if fl != nil {
		fl.alter.Lock() // no write is under way that could get into the journal behind the end
		defer fl.alter.Unlock()
	}
	if fl == nil {
		return f.slow.Remove(path)
	}
	f.going(fl, true)
	if err := f.slow.Remove(path); err != nil {
		f.going(fl, false)
		return err
	}
	fl.gone.Store(true)
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	delete(f.files, rel)
	l := fl.life.Swap(nil)
	if l == nil {
		return nil
	}
	f.ring.mu.Lock()
	defer f.ring.mu.Unlock()
	l.ended = true
	if l.blocks == 0 {
		f.ring.index.drop(l)
		return nil
	}
	f.ghosts[rel] = append(f.ghosts[rel], l)
	return nil
}

// writable says why names cannot change.
func (f *FS) writable(op, path string) error {
	if f.o.ReadOnly {
		return &fs.PathError{Op: op, Path: path, Err: syscall.EROFS}
	}
	return f.ring.err()
}

// SyncDir implements disk.FS.
func (f *FS) SyncDir(path string) error {
	if err := f.writable("syncdir", path); err != nil {
		return err
	}
	return f.syncDir(path)
}

// MkdirAll implements disk.FS.
func (f *FS) MkdirAll(path string) error {
	if f.o.ReadOnly {
		return nil // what is looked at is there
	}
	if err := f.ring.err(); err != nil {
		return err
	}
	return f.slow.MkdirAll(path)
}

// ReadDir implements disk.FS.
func (f *FS) ReadDir(path string) ([]fs.DirEntry, error) { return f.slow.ReadDir(path) }

// Stat implements disk.FS. Sizes are those of the slow disk: no write that makes a file longer is journaled.
func (f *FS) Stat(path string) (fs.FileInfo, error) { return f.slow.Stat(path) }

// Space implements disk.FS. What is only in the journal counts as used, since it will need the room.
func (f *FS) Space(path string) (disk.Space, error) {
	sp, err := f.slow.Space(path)
	f.ring.mu.RLock()
	dirty := uint64(f.ring.index.dirty) * pageSize
	f.ring.mu.RUnlock()
	sp.Free -= min(sp.Free, dirty)
	return sp, err
}

// Lock implements disk.FS.
func (f *FS) Lock(path string) (func() error, error) { return f.slow.Lock(path) }

// Err returns why the FS is out of service, or nil.
func (f *FS) Err() error { return f.ring.err() }

// Abandon ends destaging and leaves everything else as it is, as the end of the process would. It is for tests.
func (f *FS) Abandon() {
	if !f.closed.Swap(true) {
		close(f.stop)
		f.work.Wait()
	}
}

// Close waits for destaging to pause and closes the journal. What is in it stays there for the next Open.
func (f *FS) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	close(f.stop)
	f.work.Wait()
	var err error
	if !f.o.ReadOnly && f.ring.err() == nil {
		if err = f.ring.sync(f.ring.written.Load() - 1); err == nil {
			h := f.ring.head
			h.durable = f.ring.durable.Load()
			err = f.ring.writeHeader(h)
		}
		f.o.Logger.Info("write journal closed", "dir", f.o.Dir, "used", f.Stats().Used)
	}
	err = errors.Join(err, f.ring.f.Close(), f.unlock())
	closed := fmt.Errorf("write journal is closed: %w", fs.ErrClosed)
	f.ring.failed.CompareAndSwap(nil, &closed)
	return err
}

// Identify implements disk.Identifier: the directory is that of the slow disk.
func (f *FS) Identify(path string) (disk.Identity, error) { return disk.Identify(f.slow, path) }
