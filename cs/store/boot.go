package store

// The file `boot` holds the id of a boot of the machine, as text. It says how long ago every chunk was known to be in order: if the
// id is that of the running machine, a chunk that is unclean now was made so by the death of a process, and holds all that was ever answered;
// if it is another one, or the file is missing or torn, the machine may have lost power since, and with it what was not flushed. The file is
// written anew only when no chunk is unclean any more, so that the answer stays the same however often the server starts until then.

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"

	"varve/cs/repl"
	"varve/internal/disk"
)

const (
	bootName = "boot"
	maxBoot  = 128
)

// LostPower reports whether unclean chunks may lack what was answered but not flushed: there was a loss of power since they were in
// order, or nobody knows that there was none.
func (s *Store) LostPower() bool { return s.lostPower.Load() }

// recoverBoot finds out whether the machine has run without a break. What cannot be read or written counts as one.
func (s *Store) recoverBoot() {
	was, err := s.readBoot()
	if err != nil {
		s.o.Logger.Warn("the id of the last boot cannot be read: taken for another one", "dir", s.o.Dir, "cause", err)
	}
	s.lostPower.Store(s.o.Boot == "" || was != s.o.Boot)
	s.noteBoot()
}

// noteBoot writes the id of the boot if it has to be written and no chunk is unclean.
func (s *Store) noteBoot() {
	if s.o.Boot == "" || !s.lostPower.Load() || !s.allClean() {
		return
	}
	if err := s.writeBoot(); err != nil {
		s.o.Logger.Warn("the id of this boot cannot be written, going on", "dir", s.o.Dir, "cause", err)
		return
	}
	s.lostPower.Store(false)
}

func (s *Store) readBoot() (string, error) {
	f, err := s.o.FS.Open(filepath.Join(s.o.Dir, bootName), disk.ReadOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, maxBoot)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(b[:n]), nil
}

func (s *Store) writeBoot() error {
	path := filepath.Join(s.o.Dir, bootName)
	f, err := s.o.FS.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		if _, err = f.WriteAt([]byte(s.o.Boot), 0); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := s.o.FS.Rename(path+".new", path); err != nil {
		return err
	}
	return s.o.FS.SyncDir(s.o.Dir)
}

// allClean reports whether every chunk is known not to be unclean.
func (s *Store) allClean() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range s.chunks {
		if !e.gate.TryRLock() {
			return false
		}
		e.mu.Lock()
		replay := e.replay != 0
		e.mu.Unlock()
		clean := e.gone || e.known && e.rep.State != repl.Unclean && !replay
		e.gate.RUnlock()
		if !clean {
			return false
		}
	}
	return true
}
