package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// Init makes an empty store. What an interrupted Init has made is used. Preconditions: the caller holds the lock of the directory.
func Init(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	s := &Store{o: o}
	if s.label, err = openLabel(&s.o); err == nil {
		if err = s.makeDirs(); err == nil {
			if s.log, _, err = openActivity(o.FS, o.Dir, o.Cluster, nil); err == nil {
				s.bad, _, err = openQuarantine(o.FS, o.Dir, o.Cluster)
			}
		}
	}
	return errors.Join(err, s.closeFiles())
}

// recover lists the chunks and reads which extents of them a crash left active.
func (s *Store) recover() error {
	var err error
	if s.label, err = openLabel(&s.o); err != nil {
		return err
	}
	if err := s.makeDirs(); err != nil {
		return err
	}
	if err := s.probe(); err != nil {
		return err
	}
	if err := s.list(); err != nil {
		return err
	}
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
	if err := s.recoverRest(); err != nil {
		return err
	}
	if err := s.recoverIndex(); err != nil {
		return err
	}
	if err := s.recoverBad(); err != nil {
		return err
	}
	s.recoverBoot()
	if n := s.active.Load(); n > 0 {
		s.o.Logger.Info("store was not stopped cleanly", "dir", s.o.Dir, "chunks", len(s.ids), "unclean", n, "power_lost", s.LostPower())
	}
	return nil
}

// recoverBad reads which blocks are in quarantine.
func (s *Store) recoverBad() error {
	q, damaged, err := openQuarantine(s.o.FS, s.o.Dir, s.o.Cluster)
	if err != nil {
		return err
	}
	s.bad = q
	if damaged {
		s.o.Logger.Error("the list of bad blocks was damaged and is empty now: they are found again when they are read", "dir", s.o.Dir)
	}
	counts, err := q.keep(func(c id.ChunkID) bool { return s.chunks[c] != nil })
	if err != nil {
		return err
	}
	s.scrub.s, s.scrub.wake = s, make(chan struct{}, 1)
	if s.scrub.file, s.scrub.state, err = openScrub(s.o.FS, s.o.Dir, s.o.Cluster); err != nil {
		return err
	}
	for c, n := range counts {
		s.chunks[c].bad.Store(n)
	}
	if n, _ := q.counts(); n > 0 {
		s.o.Logger.Warn("the disk has bad blocks", "dir", s.o.Dir, "blocks", n, "chunks", len(counts))
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
	for i := range fanout {
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

// list finds the chunks, and removes what was being made when the server died.
func (s *Store) list() error {
	ids, strays, err := listChunks(s.o.FS, s.o.Dir)
	if err != nil {
		return err
	}
	for _, path := range strays {
		if !strings.HasSuffix(path, ".new") {
			s.o.Logger.Warn("not a chunk file: left alone", "path", path)
		} else if err := s.o.FS.Remove(path); err != nil {
			return err
		}
	}
	s.ids = ids
	entries := make([]entry, len(ids)) // together: one allocation instead of 100,000
	for i, c := range ids {
		entries[i].id = c
		s.chunks[c] = &entries[i]
	}
	return nil
}

// readers is the number of directories that are listed at once.
const readers = 8

// listChunks returns the ids of the chunk files below a store's directory, in order, and the paths of what else is there.
func listChunks(fsys disk.FS, dir string) (ids []id.ChunkID, strays []string, err error) {
	var next atomic.Int64
	var mu sync.Mutex
	var work sync.WaitGroup
	for range readers {
		work.Go(func() {
			for i := next.Add(1) - 1; i < fanout; i = next.Add(1) - 1 {
				found, rest, e := listDir(fsys, filepath.Join(dir, "chunks", fmt.Sprintf("%02x", i)), uint8(i))
				mu.Lock()
				ids, strays, err = append(ids, found...), append(strays, rest...), errors.Join(err, e)
				mu.Unlock()
			}
		})
	}
	work.Wait()
	slices.Sort(ids)
	slices.Sort(strays)
	return ids, strays, err
}

// fanout is the number of directories that the chunks are spread over, by the last byte of their ids.
const fanout = 256

func listDir(fsys disk.FS, dir string, last uint8) (ids []id.ChunkID, strays []string, err error) {
	files, err := fsys.ReadDir(dir)
	for _, f := range files {
		name := f.Name()
		digits, ok := strings.CutSuffix(name, ".chk")
		n, err := strconv.ParseUint(digits, 16, 64)
		if c := id.ChunkID(n); ok && err == nil && c != 0 && uint8(n) == last && c.String() == digits {
			ids = append(ids, c)
		} else {
			strays = append(strays, filepath.Join(dir, name))
		}
	}
	return ids, strays, err
}
