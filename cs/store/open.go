package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// recover lists the chunks and reads which extents of them a crash left active.
func (s *Store) recover() error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	if err := s.probe(); err != nil {
		return err
	}
	for i := range 256 {
		if err := s.list(filepath.Join(s.o.Dir, "chunks", fmt.Sprintf("%02x", i))); err != nil {
			return err
		}
	}
	slices.Sort(s.ids)
	log, rebuilt, err := openActivity(s.o.FS, s.o.Dir, s.o.Cluster, s.ids)
	if err != nil {
		return err
	}
	s.log = log
	if rebuilt && len(s.ids) > 0 {
		s.o.Logger.Error("activity log is missing or damaged: every chunk is unclean", "chunks", len(s.ids))
	}
	for c, x := range log.active {
		e := s.chunks[c]
		if e == nil {
			log.unmark(c, x) // deleted just before the crash
			continue
		}
		e.marked, e.replay = x, x
		s.active.Add(1)
	}
	if n := s.active.Load(); n > 0 {
		s.o.Logger.Info("store was not stopped cleanly", "dir", s.o.Dir, "chunks", len(s.ids), "unclean", n)
	}
	return nil
}

// makeDirs makes the directories of a new store.
func (s *Store) makeDirs() error {
	root := filepath.Join(s.o.Dir, "chunks")
	if _, err := s.o.FS.Stat(filepath.Join(root, "ff")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for i := range 256 {
		if err := s.o.FS.MkdirAll(filepath.Join(root, fmt.Sprintf("%02x", i))); err != nil {
			return err
		}
	}
	if err := s.o.FS.SyncDir(root); err != nil {
		return err
	}
	if err := s.o.FS.SyncDir(filepath.Dir(filepath.Clean(s.o.Dir))); err != nil {
		return err
	}
	return s.o.FS.SyncDir(s.o.Dir)
}

// probe finds out whether the filesystem takes direct I/O.
func (s *Store) probe() error {
	if s.o.Buffered {
		return nil
	}
	path := filepath.Join(s.o.Dir, "probe.new")
	f, err := s.o.FS.Open(path, disk.ReadWrite|disk.Create|disk.Direct)
	if err == nil {
		b := disk.AlignedBuffer(chunk.BlockSize)
		if _, err = f.WriteAt(b, 0); err == nil {
			_, err = f.ReadAt(b, 0)
		}
		err = errors.Join(err, f.Close())
	}
	switch {
	case err == nil:
		s.direct = true
	case errors.Is(err, syscall.ENOSPC):
		s.direct = true // a full disk says nothing about direct I/O
	case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP):
		s.o.Logger.Info("direct I/O is refused: data goes through the page cache", "dir", s.o.Dir, "cause", err)
	default:
		return err
	}
	if err := s.o.FS.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// list adds the chunks in one directory.
func (s *Store) list(dir string) error {
	files, err := s.o.FS.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		if strings.HasSuffix(name, ".new") {
			if err := s.o.FS.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
			continue
		}
		digits, ok := strings.CutSuffix(name, ".chk")
		n, err := strconv.ParseUint(digits, 16, 64)
		if c := id.ChunkID(n); ok && err == nil && s.pathOf(c) == filepath.Join(dir, name) {
			s.chunks[c] = &entry{id: c}
			s.ids = append(s.ids, c)
		} else {
			s.o.Logger.Warn("not a chunk file: left alone", "path", filepath.Join(dir, name))
		}
	}
	return nil
}
