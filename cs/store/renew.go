package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
)

// wornName is the directory of files that hold nothing but blocks which do not take what is written to them, so that the filesystem does
// not give these to another file. They are named by the chunk and a number.
const wornName = "worn"

// maxWorn bounds the files of one chunk in there.
const maxWorn = 1000

// renew gives a chunk that is about to join a new, empty file, since a block of the one that it has stays bad when it is written: the rebuild
// would fail there for ever. The old file is set aside. If the server dies in between, it has no such chunk, and the metadata server
// places a replica as it would for any that is missing. Preconditions: the gate is held exclusively.
func (s *Store) renew(e *entry, in repl.Input) error {
	next, v := e.rep.Step(in)
	if v != repl.Persist {
		return refuse(e, in, v)
	}
	bad := s.bad.of(e.id)
	if err := s.allot(dataOffset); err != nil {
		return fmt.Errorf("renew: chunk %v: %w", e.id, err)
	}
	if err := s.index.made(e.id); err != nil {
		return s.fail("write index", e.id, err)
	}
	e.unshare()
	if e.img != nil {
		s.forget(e)
		s.closeImage(e)
	}
	aside, err := s.setAside(e)
	if err != nil {
		return s.fail("set aside", e.id, err)
	}
	e.mu.Lock()
	marked := e.marked
	e.marked, e.replay = 0, 0
	e.mu.Unlock()
	if marked != 0 {
		s.log.unmark(e.id, marked)
		s.quieted(e)
	}
	if err := s.make(e.id, next.Record()); err != nil {
		s.drop(e)
		return err
	}
	e.rec = next.Record()
	if err := s.pardon(e); err != nil {
		return err
	}
	e.rep, e.known = next, true
	e.stuck.Store(false)
	s.recount(e)
	s.o.Logger.Warn("chunk got a new file, since blocks of the old one stay bad", "chunk", e.id, "epoch", next.Epoch, "blocks", len(bad), "old", aside)
	s.shrink(aside, bad)
	return nil
}

// setAside moves the file of a chunk, durably, and returns where to.
func (s *Store) setAside(e *entry) (string, error) {
	dir := filepath.Join(s.o.Dir, wornName)
	if err := s.o.FS.MkdirAll(dir); err != nil {
		return "", err
	}
	to := ""
	for n := 1; to == "" && n <= maxWorn; n++ {
		path := filepath.Join(dir, fmt.Sprintf("%v.%d", e.id, n))
		if _, err := s.o.FS.Stat(path); errors.Is(err, fs.ErrNotExist) {
			to = path
		} else if err != nil {
			return "", err
		}
	}
	if to == "" {
		return "", fmt.Errorf("%s has %d files of chunk %v: %w", dir, maxWorn, e.id, errDiskWorn)
	}
	if err := s.o.FS.Rename(s.pathOf(e.id), to); err != nil {
		return "", err
	}
	return to, errors.Join(s.o.FS.SyncDir(dir), s.o.FS.SyncDir(s.o.Dir), s.o.FS.SyncDir(s.dirOf(e.id)))
}

// shrink gives the space of a file that was set aside back, but for the bad blocks. What fails keeps its space.
func (s *Store) shrink(path string, bad map[uint32]bool) {
	f, err := s.openFile(path, disk.ReadWrite)
	if err != nil {
		return
	}
	defer f.Close()
	for first := uint32(0); first < chunk.Blocks; {
		end := first
		for end < chunk.Blocks && !bad[end] {
			end++
		}
		if end > first && f.PunchHole(place(first), int64(end-first)*chunk.BlockSize) != nil {
			return
		}
		first = end + 1
	}
}
