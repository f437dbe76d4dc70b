// Package store keeps the chunks of one chunk server on a disk: a file for each chunk with its data in
// place and a table of block checksums, and a log that says which extents a crash would leave open.
//
// Use: Open a directory; Create, Write, Read, Punch, Flush and Delete chunks by id; Close. Every
// operation carries the epoch of the chunk and obeys package repl. Check and Dump are for people.
//
// Guarantees. What Flush, Create, Delete, Adopt, Join, Promote and Accept did before they returned
// survives a crash. A block that Read returns has the checksum that was written with it, or, after a
// crash and only in extents that were active, the checksum of what is on the disk. Writers of
// different blocks run in parallel, of one block in the order in which they came, and a reader waits
// for the writers before it. A full disk (NoSpace) leaves every block as it was or as it was to be.
// Any other failure to write or sync takes the store out of service for good: every later call fails
// with it. All methods may be called at once.
//
// Memory: MaxOpen tables of 64 KiB, some 200 bytes a chunk, and Stages buffers of 1 MiB; data
// does not go through the page cache.
//
// Lock order: Store.life, entry.gate, a block range of the entry, a stage, Store.openMu, entry.mu. The gates
// of two entries are never waited for together: with one held, another is only tried.
//
// Formats: format.go. What an operation of which epoch may do: package repl.
package store

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// maxChunkSize bounds the offsets of requests; it is chunk.Size in 64 bits.
const maxChunkSize = uint64(chunk.Size)

// Store is the chunks under one directory.
type Store struct {
	o         Options
	direct    bool
	start     time.Time
	unlock    func() error
	log       *activity
	failed    atomic.Pointer[error]
	active    atomic.Int64 // chunks with active extents
	rest      atomic.Int64 // of these, in the list beside the activity log
	lostPower atomic.Bool  // since every chunk was in order, as far as is known
	label     disk.File
	bad       *quarantine
	headless  sync.Map // id.ChunkID of the chunks without a readable header
	scrub     scrub
	index     index
	found     atomic.Uint64 // blocks put in quarantine by this process
	stages    chan *stage
	stop      chan struct{}
	quit      sync.Once      // closes stop
	settler   sync.WaitGroup // all that runs in the background
	settleMu  sync.Mutex     // one pass at a time

	life   sync.RWMutex // held shared by every operation
	closed bool         // guarded by life

	allocated, counted atomic.Int64 // bytes of the chunks that were counted; how many these are

	room atomic.Int64 // bytes that may be stored before the disk is asked again how much is free

	mu     sync.RWMutex
	chunks map[id.ChunkID]*entry
	ids    []id.ChunkID // the keys of chunks in order

	openMu sync.Mutex
	open   []*entry // with an image
	hand   int      // of the evictor
}

// Info is what List tells of a chunk. A chunk whose header cannot be read has epoch 0 and is Lost.
type Info struct {
	ID    id.ChunkID
	Epoch id.Epoch
	State repl.State
}

// Open opens a store, or makes it. It takes the directory's lock, and refuses the directory of
// another cluster with WrongCluster. It lists the chunks but reads none of them.
func Open(o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Existing {
		if _, err := o.FS.Stat(o.Dir); err != nil {
			return nil, fmt.Errorf("%s is not there: is its filesystem mounted? %w", o.Dir, err)
		}
	} else if err := o.FS.MkdirAll(o.Dir); err != nil {
		return nil, err
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, err
	}
	s := &Store{
		o: o, start: time.Now(), unlock: unlock, stages: make(chan *stage, o.Stages),
		stop: make(chan struct{}), chunks: make(map[id.ChunkID]*entry),
	}
	for range o.Stages {
		s.stages <- nil // made when it is first taken
	}
	if err := s.recover(); err != nil {
		s.closeFiles()
		return nil, errors.Join(fmt.Errorf("store %s: %w", o.Dir, err), unlock())
	}
	if o.SettleEvery > 0 {
		s.settler.Go(s.settleForever)
	}
	if o.CountAfter > 0 {
		s.settler.Go(s.countAll)
	}
	s.settler.Go(s.scrub.run)
	return s, nil
}

// Close waits for operations under way, flushes and settles everything that is loaded and drops the
// lock. Chunks that a crash left unclean and nobody touched since stay unclean.
func (s *Store) Close() error {
	s.life.Lock()
	if s.closed {
		s.life.Unlock()
		return nil
	}
	s.closed = true
	s.stopSharing()
	s.life.Unlock()
	s.quit.Do(func() { close(s.stop) })
	s.settler.Wait()
	err := s.failure()
	if err == nil {
		err = s.settleAll()
	}
	if err == nil {
		err = s.log.sync()
	}
	if err == nil {
		s.noteBoot()
		s.scrub.save()
		s.writeIndex()
	}
	for _, e := range s.open {
		err = errors.Join(err, e.img.f.Close())
	}
	s.dropStages()
	return errors.Join(err, s.closeFiles(), s.unlock())
}

// Abandon ends what goes on in the background, and leaves everything else as it is, as the end of the process would: nothing is flushed, the
// lock is held, files stay open. It is for tests.
func (s *Store) Abandon() {
	s.quit.Do(func() { close(s.stop) })
	s.settler.Wait()
}

// closeFiles closes what recover opened.
func (s *Store) closeFiles() (err error) {
	if s.log != nil {
		err = s.log.close()
	}
	if s.bad != nil {
		err = errors.Join(err, s.bad.f.Close())
	}
	err = errors.Join(err, s.index.close())
	if s.scrub.file != nil {
		err = errors.Join(err, s.scrub.file.f.Close())
	}
	if s.label != nil {
		err = errors.Join(err, s.label.Close())
	}
	return err
}

// begin must come first in every operation, end last.
func (s *Store) begin() error {
	s.life.RLock()
	err := s.failure()
	if s.closed {
		err = fmt.Errorf("store is closed: %w", fserr.Unavailable)
	}
	if err != nil {
		s.life.RUnlock()
	}
	return err
}

func (s *Store) end() { s.life.RUnlock() }

// Failure returns why the store is out of service, nil if it is not.
func (s *Store) Failure() error { return s.failure() }

func (s *Store) failure() error {
	if p := s.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail takes the store out of service.
func (s *Store) fail(op string, c id.ChunkID, cause error) error {
	err := fmt.Errorf("store %s: out of service: %s: chunk %v: %w: %w", s.o.Dir, op, c, fserr.IO, cause)
	s.stopSharing()
	if s.failed.CompareAndSwap(nil, &err) {
		s.o.Logger.Error("store is out of service", "dir", s.o.Dir, "op", op, "chunk", c, "cause", cause)
		if disk.Medium(cause) || errors.Is(cause, errDiskWorn) {
			s.retire(fmt.Errorf("%s: chunk %v: %w", op, c, cause))
		}
		return err
	}
	return s.failure()
}

// opening turns the failure to open a chunk file: a shortage passes, what the disk answers does not.
func (s *Store) opening(c id.ChunkID, err error) error {
	if disk.Medium(err) {
		return s.fail("open", c, err)
	}
	return fmt.Errorf("open: chunk %v: %w: %w", c, fserr.Unavailable, err)
}

// outcome turns the failure of a write: a full disk is an outcome, anything else the end of the store.
func (s *Store) outcome(op string, c id.ChunkID, err error) error {
	if full(err) {
		return fmt.Errorf("%s: chunk %v: %w: %w", op, c, fserr.NoSpace, err)
	}
	return s.fail(op, c, err)
}

func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// now is the time on the monotonic clock since the store was opened.
func (s *Store) now() int64 { return int64(time.Since(s.start)) }

func (s *Store) find(c id.ChunkID) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.chunks[c]
}

// hold returns the entry of a chunk with the gate held shared and its image loaded.
func (s *Store) hold(c id.ChunkID) (*entry, error) {
	for {
		e := s.find(c)
		if e == nil {
			return nil, fmt.Errorf("chunk %v: %w", c, fserr.NoChunk)
		}
		e.gate.RLock()
		if e.img != nil {
			e.used.Store(true)
			return e, nil
		}
		e.gate.RUnlock()
		e.gate.Lock()
		err := s.load(e)
		e.gate.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// enter returns the entry of a chunk as hold does if package repl lets the message in. An epoch that
// must be persisted first is.
func (s *Store) enter(c id.ChunkID, in repl.Input) (*entry, repl.Verdict, error) {
	if err := s.admit(c, in); err != nil {
		return nil, 0, err
	}
	for {
		e, err := s.hold(c)
		if err != nil {
			return nil, 0, err
		}
		_, v := e.rep.Step(in)
		if v == repl.Do || v == repl.DoNote {
			return e, v, nil
		}
		err = refuse(e, in, v)
		e.gate.RUnlock()
		if v == repl.Persist {
			err = s.change(e, in)
		}
		if err != nil {
			return nil, 0, err
		}
	}
}

// admit refuses what would be refused anyway before an unclean chunk is read at length.
func (s *Store) admit(c id.ChunkID, in repl.Input) error {
	e := s.find(c)
	if e == nil {
		return fmt.Errorf("chunk %v: %w", c, fserr.NoChunk)
	}
	e.gate.RLock()
	loaded, known, rep := e.img != nil, e.known, e.rep
	e.gate.RUnlock()
	if loaded {
		return nil
	}
	if !known {
		if err := s.peek(e); err != nil {
			return err
		}
		e.gate.RLock()
		rep = e.rep
		e.gate.RUnlock()
	}
	_, v := rep.Step(in)
	return refuse(e, in, v)
}

// refuse returns the error of a verdict that refuses.
func refuse(e *entry, in repl.Input, v repl.Verdict) error {
	switch v {
	case repl.Stale:
		return fmt.Errorf("chunk %v: %v at epoch %v: %w", e.id, in.Kind, in.Epoch, fserr.StaleEpoch)
	case repl.NotReady:
		return fmt.Errorf("chunk %v: %v at epoch %v: %w", e.id, in.Kind, in.Epoch, fserr.NotReady)
	}
	return nil
}

// List returns up to max chunks with ids above after, in order, and whether there are more.
func (s *Store) List(after id.ChunkID, max int) (infos []Info, more bool) {
	if s.begin() != nil {
		return nil, false
	}
	defer s.end()
	s.mu.RLock()
	i, _ := slices.BinarySearch(s.ids, after+1)
	more = len(s.ids)-i > max
	page := make([]*entry, 0, min(max, len(s.ids)-i))
	for _, c := range s.ids[i : i+cap(page)] {
		page = append(page, s.chunks[c])
	}
	s.mu.RUnlock()
	s.peekAll(page)
	for _, e := range page {
		e.gate.RLock()
		switch {
		case e.gone:
		case e.known:
			infos = append(infos, Info{ID: e.id, Epoch: e.rep.Epoch, State: e.rep.State})
		default: // it could not be opened just now
			infos = append(infos, Info{ID: e.id, State: repl.Lost})
		}
		e.gate.RUnlock()
	}
	return infos, more
}

// peekAll reads the headers that are not known yet, some at once. One that cannot be read is known
// as lost afterwards, and logged.
func (s *Store) peekAll(page []*entry) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(listers, len(page)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(page)); i = next.Add(1) - 1 {
				e := page[i]
				e.gate.RLock()
				known := e.known || e.gone
				e.gate.RUnlock()
				if !known {
					_ = s.peek(e)
				}
			}
		})
	}
	wg.Wait()
}

// listers is the number of headers that List reads at once.
const listers = 8

// Count returns the number of chunks.
func (s *Store) Count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ids)
}

// Space returns the room on the filesystem in bytes. What is free does not include the reserve.
func (s *Store) Space() (total, free uint64, err error) {
	if err := s.begin(); err != nil {
		return 0, 0, err
	}
	defer s.end()
	sp, err := s.o.FS.Space(s.o.Dir)
	return sp.Total, uint64(max(0, int64(sp.Free)-s.o.reserve(sp.Total))), err
}

// reserve is how much of a disk is kept free.
func (o *Options) reserve(total uint64) int64 {
	switch {
	case o.Reserve < 0:
		return 0
	case o.Reserve > 0:
		return o.Reserve
	}
	return min(max(int64(total/reserveShare), minReserve), maxReserve, int64(total/4))
}

// tryAllot takes n bytes of the disk for new data if that needs no look at the disk.
func (s *Store) tryAllot(n int64) bool { return s.o.Reserve < 0 || s.room.Add(-n) >= 0 }

// allot takes n bytes of the disk for new data, or returns NoSpace.
func (s *Store) allot(n int64) error {
	if s.tryAllot(n) {
		return nil
	}
	sp, err := s.o.FS.Space(s.o.Dir)
	if err != nil {
		return nil // the write itself will tell
	}
	free := int64(min(sp.Free, math.MaxInt64)) - s.o.reserve(sp.Total)
	if free < n {
		return fmt.Errorf("%s: %d bytes are free, of which %d are kept: %w", s.o.Dir, sp.Free, s.o.reserve(sp.Total), fserr.NoSpace)
	}
	s.room.Store(min(free, maxRoom) - n)
	return nil
}
