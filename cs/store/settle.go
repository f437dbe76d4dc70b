package store

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
)

func cannotPunch(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS)
}

// settleForever settles at intervals until the store is closed.
func (s *Store) settleForever() {
	tick := time.NewTicker(s.o.SettleEvery)
	defer tick.Stop()
	turn := 0
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		// A failure took the store out of service and was logged.
		_, _ = s.Settle(settlePass)
		if turn++; turn%bootTurns == 0 {
			s.noteBoot()
		}
	}
}

// bootTurns is how many passes of settling there are between two looks at whether every chunk is in order.
const bootTurns = 5

// Settle flushes and unmarks extents that were quiet for SettleAfter, of at most max chunks, and
// returns of how many.
func (s *Store) Settle(max int) (int, error) {
	if err := s.begin(); err != nil {
		return 0, err
	}
	defer s.end()
	return s.settlePass(s.now()-int64(s.o.SettleAfter), max)
}

// settlePass settles extents that were last written before cutoff, the quietest chunks first.
func (s *Store) settlePass(cutoff int64, max int) (int, error) {
	s.settleMu.Lock()
	defer s.settleMu.Unlock()
	n := 0
	for _, e := range s.quietest(cutoff, max) {
		if !e.gate.TryRLock() {
			continue
		}
		if e.img != nil && s.settle(e, cutoff) {
			n++
		}
		e.gate.RUnlock()
	}
	if n == 0 {
		return 0, s.failure()
	}
	if err := s.log.sync(); err != nil {
		return n, s.fail("unmark", 0, err)
	}
	return n, s.failure()
}

// quietest returns the loaded chunks that have extents to settle, at most max.
func (s *Store) quietest(cutoff int64, max int) []*entry {
	type quiet struct {
		e    *entry
		last int64
	}
	s.openMu.Lock()
	open := slices.Clone(s.open)
	s.openMu.Unlock()
	var all []quiet
	for _, e := range open {
		if !e.gate.TryRLock() {
			continue
		}
		if e.img != nil {
			e.mu.Lock()
			x, last := e.quiet(cutoff)
			e.mu.Unlock()
			if x != 0 {
				all = append(all, quiet{e, last})
			}
		}
		e.gate.RUnlock()
	}
	slices.SortFunc(all, func(a, b quiet) int { return cmp.Compare(a.last, b.last) })
	found := make([]*entry, 0, min(max, len(all)))
	for _, q := range all[:cap(found)] {
		found = append(found, q.e)
	}
	return found
}

// quiet returns the active extents without a write since cutoff, and the time of the last write to
// any of them.
func (e *entry) quiet(cutoff int64) (x extents, last int64) {
	last = math.MinInt64
	for i := range uint32(chunk.Extents) {
		if e.marked.has(i) && e.img.writers[i] == 0 && e.img.last[i] <= cutoff {
			x |= span(i, i)
			last = max(last, e.img.last[i])
		}
	}
	return x, last
}

// settle makes the data and the checksums of the quiet extents of a chunk durable and unmarks them.
// Writers to these extents wait, all others go on. It returns false if there was nothing to do or
// the store failed. Preconditions: the gate is held shared; one settles a chunk at a time.
func (s *Store) settle(e *entry, cutoff int64) bool {
	im := e.img
	e.mu.Lock()
	x, _ := e.quiet(cutoff)
	if x == 0 || im.settling != 0 {
		e.mu.Unlock()
		return false
	}
	im.settling = x
	dirty := im.dirty & x
	e.mu.Unlock()
	err := s.settleTable(e, dirty)
	if err == nil {
		s.log.unmark(e.id, x)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	im.settling = 0
	im.cond.Broadcast()
	if err != nil {
		return false
	}
	im.dirty &^= x
	if e.marked &^= x; e.marked == 0 {
		s.quieted(e)
	}
	return true
}

// settleTable writes table pages and the header that vouches for them, and syncs.
func (s *Store) settleTable(e *entry, dirty extents) error {
	if dirty == 0 {
		return nil
	}
	im := e.img
	covered := im.written.Load()
	st := s.getStage()
	defer s.putStage(st)
	page := st.buf[:pageSize]
	for i := range uint32(chunk.Extents) {
		if !dirty.has(i) {
			continue
		}
		e.mu.Lock()
		encodePage(page, im.sums[i*pageSums:(i+1)*pageSums])
		e.mu.Unlock()
		if _, err := im.f.WriteAt(page, tableOffset+int64(i)*pageSize); err != nil {
			return s.fail("write table", e.id, err)
		}
		im.pages[i] = chunk.Sum(page)
	}
	if err := s.writeHeader(e, e.rep.Record()); err != nil {
		return err
	}
	if err := im.f.Sync(); err != nil {
		return s.fail("sync", e.id, err)
	}
	im.flushMu.Lock()
	im.synced.Store(max(im.synced.Load(), covered))
	im.flushMu.Unlock()
	return nil
}

// makeRoom settles the quietest chunks if too many are active for one more, so that the log stays
// bounded however many chunks are written to. It is called with no gate held.
func (s *Store) makeRoom(c id.ChunkID) {
	if s.active.Load() < int64(s.o.MaxActive) {
		return
	}
	if e := s.find(c); e != nil {
		e.mu.Lock()
		is := e.marked != 0
		e.mu.Unlock()
		if is {
			return
		}
	}
	if n, err := s.settlePass(s.now(), roomPass); n > 0 || err != nil {
		return
	}
	s.loadUnclean()
}

// roomPass is the number of chunks settled at once when too many are active.
const roomPass = 16

// loadUnclean loads and settles a chunk that a crash left active, if nothing else can be settled.
func (s *Store) loadUnclean() {
	s.mu.RLock()
	var found *entry
	for _, e := range s.chunks {
		e.mu.Lock()
		replay := e.replay != 0
		e.mu.Unlock()
		if replay {
			found = e
			break
		}
	}
	s.mu.RUnlock()
	if found == nil || !found.gate.TryLock() {
		return
	}
	err := s.load(found)
	found.gate.Unlock()
	if err != nil {
		return // it is unreadable and was logged
	}
	_, _ = s.settlePass(s.now(), roomPass)
}

// settleAll settles every loaded chunk when nothing else runs any more.
func (s *Store) settleAll() error {
	var next atomic.Int64
	var wg sync.WaitGroup
	now := s.now()
	for range closers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(s.open)); i = next.Add(1) - 1 {
				s.settle(s.open[i], now)
			}
		})
	}
	wg.Wait()
	return s.failure()
}

// closers is the number of chunks that Close settles at once.
const closers = 8
