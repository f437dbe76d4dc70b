package store

import (
	"slices"
	"time"

	"varve/internal/disk"
)

// Usage is how the room on the disk is used, in bytes. Total and Free are of the filesystem, Free without what is reserved; Allocated is
// what the chunk files take up as the filesystem accounts for them, tables and the filesystem's own blocks for them included.
type Usage struct {
	Total, Free, Reserved uint64
	Allocated             uint64
	Chunks                int
	Uncounted             int // chunks whose files are not in Allocated yet: they are counted in the background after the start
	Bad                   int // blocks in quarantine
}

// Usage returns how the room is used. It is exact when Uncounted is 0, but for what is written at this moment.
func (s *Store) Usage() (Usage, error) {
	if err := s.begin(); err != nil {
		return Usage{}, err
	}
	defer s.end()
	sp, err := s.o.FS.Space(s.o.Dir)
	if err != nil {
		return Usage{}, err
	}
	s.recountOpen()
	s.mu.RLock()
	n := len(s.ids)
	s.mu.RUnlock()
	reserve := s.o.reserve(sp.Total)
	bad, _ := s.bad.counts()
	return Usage{
		Total: sp.Total, Free: uint64(max(0, int64(sp.Free)-reserve)), Reserved: uint64(reserve),
		Allocated: uint64(max(0, s.allocated.Load())), Chunks: n, Uncounted: max(0, n-int(s.counted.Load())), Bad: bad,
	}, nil
}

// recountOpen looks again at the files that were written to.
func (s *Store) recountOpen() {
	s.openMu.Lock()
	open := slices.Clone(s.open)
	s.openMu.Unlock()
	for _, e := range open {
		if !e.gate.TryRLock() {
			continue // it is changing, and is counted the next time
		}
		if e.img != nil {
			if n := e.img.written.Load(); e.countedAt.Swap(n) != n {
				s.recount(e)
			}
		}
		e.gate.RUnlock()
	}
}

// recount asks the filesystem what the chunk takes up. Preconditions: the gate is held and the chunk is there.
func (s *Store) recount(e *entry) {
	fi, err := s.o.FS.Stat(s.pathOf(e.id))
	if err != nil {
		return
	}
	n, ok := disk.Allocated(fi)
	if !ok {
		return
	}
	// The entry keeps one more than the bytes, so that 0 is a chunk that was never counted.
	old := e.allocated.Swap(n + 1)
	if old == 0 {
		s.counted.Add(1)
		old = 1
	}
	s.allocated.Add(n + 1 - old)
}

// uncount forgets a chunk that is gone. Preconditions: the gate is held exclusively.
func (s *Store) uncount(e *entry) {
	if old := e.allocated.Swap(0); old != 0 {
		s.counted.Add(-1)
		s.allocated.Add(1 - old)
	}
}

// countAll counts the chunks that nobody has opened yet, until the store is closed.
func (s *Store) countAll() {
	t := time.NewTimer(s.o.CountAfter)
	defer t.Stop()
	select {
	case <-s.stop:
		return
	case <-t.C:
	}
	s.mu.RLock()
	ids := slices.Clone(s.ids)
	s.mu.RUnlock()
	for _, c := range ids {
		select {
		case <-s.stop:
			return
		default:
		}
		e := s.find(c)
		if e == nil || e.allocated.Load() != 0 {
			continue
		}
		e.gate.RLock()
		if !e.gone && e.allocated.Load() == 0 {
			s.recount(e)
		}
		e.gate.RUnlock()
	}
}
