package ssd

import (
	"path/filepath"
	"slices"
)

// names counts the changes that gave files in a directory their names, and how many of them are on stable media. A file is not journaled
// before its name is: replay finds it by its name, and after a crash another file might have it.
type names struct{ changes, synced uint64 }

// namesOf returns the state of a directory. One that was never synced since the start may hold names that a killed process gave.
func (f *FS) namesOf(dir string) names {
	n, ok := f.names[dir]
	if !ok {
		return names{changes: 1}
	}
	return n
}

// named notes that a file was given its name.
func (f *FS) named(path string) {
	dir := filepath.Dir(path)
	f.namesMu.Lock()
	defer f.namesMu.Unlock()
	n := f.namesOf(dir)
	n.changes++
	f.names[dir] = n
}

// syncDir puts the names in a directory on stable media.
func (f *FS) syncDir(dir string) error {
	dir = filepath.Clean(dir)
	f.namesMu.Lock()
	n := f.namesOf(dir)
	f.namesMu.Unlock()
	if err := f.slow.SyncDir(dir); err != nil {
		return err
	}
	f.namesMu.Lock()
	defer f.namesMu.Unlock()
	now := f.namesOf(dir)
	now.synced = max(now.synced, n.changes)
	f.names[dir] = now
	return nil
}

// settled makes sure that the name of a file is on stable media.
func (f *FS) settled(path string) error {
	dir := filepath.Dir(path)
	f.namesMu.Lock()
	n := f.namesOf(dir)
	f.namesMu.Unlock()
	if n.synced >= n.changes {
		return nil
	}
	return f.syncDir(dir)
}

// going notes that a file is being removed, so that the destager does not wonder where it is.
func (f *FS) going(fl *file, yes bool) {
	if l := fl.life.Load(); l != nil {
		f.ring.mu.Lock()
		l.going = yes
		f.ring.mu.Unlock()
	}
}

// missing makes a ghost of what replay found of a file that is not there. It is called with nameMu held.
func (f *FS) missing(rel string) {
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	fl := f.files[rel]
	if fl == nil {
		return
	}
	fl.gone.Store(true)
	delete(f.files, rel)
	if l := fl.life.Swap(nil); l != nil {
		f.ring.mu.Lock()
		l.ended = true
		f.ring.mu.Unlock()
		f.ghosts[rel] = append(f.ghosts[rel], l)
	}
}

// bury makes sure that pages that removed files of a name have in the journal are never replayed into a file that is made under that
// name now: that the removal is on stable media, and then that the end of these lives is. It is called with nameMu held.
func (f *FS) bury(rel string) error {
	f.filesMu.Lock()
	lives := slices.Clone(f.ghosts[rel])
	f.filesMu.Unlock()
	if len(lives) == 0 {
		return nil
	}
	if err := f.syncDir(filepath.Dir(f.path(rel))); err != nil {
		return err
	}
	for _, l := range lives {
		f.ring.mu.Lock()
		l.synced = true
		left := l.blocks > 0
		f.ring.mu.Unlock()
		if left {
			if err := f.end(l); err != nil {
				return err
			}
		}
	}
	f.filesMu.Lock()
	delete(f.ghosts, rel)
	f.filesMu.Unlock()
	return nil
}

// end puts the end of a life on stable media.
func (f *FS) end(l *life) error {
	if _, err := f.reserve(0, true); err != nil {
		return err
	}
	q := &request{life: l, kind: kindEnd}
	if err := f.ring.append(q); err != nil {
		return err
	}
	f.ring.mu.RLock()
	last := l.last
	f.ring.mu.RUnlock()
	return f.ring.sync(last)
}

// retire brings what a file has in the journal to the slow disk and ends its life there. Preconditions: file.alter is held
// exclusively.
func (f *FS) retire(fl *file) error {
	l := fl.life.Load()
	if l == nil {
		return nil
	}
	f.ring.mu.RLock()
	blocks := l.blocks
	f.ring.mu.RUnlock()
	if blocks > 0 {
		if err := f.bring(l); err != nil {
			return err
		}
		if err := f.end(l); err != nil {
			return err
		}
	}
	fl.life.Store(nil)
	f.ring.mu.Lock()
	defer f.ring.mu.Unlock()
	l.ended, l.synced = true, true
	if l.blocks == 0 {
		f.ring.index.drop(l)
	}
	return nil
}
