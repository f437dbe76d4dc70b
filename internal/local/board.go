package local

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// Residence is how long a chunk keeps its slot before another one may take it, so that a working set that is too large does not
// spend its time on grants.
const Residence = 10 * time.Second

// Board is the memory of a server that its local readers map.
//
// Lock order: mu, then one cell.
type Board struct {
	file   *os.File
	head   []atomic.Uint64
	places []atomic.Uint64
	stamps []atomic.Uint64
	rows   []atomic.Uint64 // the entries of all slots
	cells  []cell

	// OnRevoke, if set before the board is used, is told of every stamp that ends. It must not block, nor call the board.
	OnRevoke func(stamp uint64)

	mu       sync.Mutex
	stopped  bool
	last     uint64 // the stamp given out last; stamps are never used again
	sessions [Places]id.SessionID
	steals   bool // tests: residence does not count
}

// cell is who has a slot. slot is changed with Board.mu and cell.mu held.
type cell struct {
	mu    sync.Mutex
	slot  *Slot
	since time.Time
}

// Slot is a chunk's place on the board. It ends with Revoke, when another chunk takes its place, or with the board; then its
// methods do nothing.
type Slot struct {
	board *Board
	n     int
	stamp uint64
	row   []atomic.Uint64
}

// NewBoard makes a board for up to slots chunks. Memory is used as slots are: 128 KiB each.
func NewBoard(slots int) (*Board, error) {
	if slots < 1 || slots > MaxSlots {
		return nil, fmt.Errorf("board of %d slots, want 1 to %d: %w", slots, MaxSlots, fserr.Invalid)
	}
	fd, err := unix.MemfdCreate("varve-board", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "varve-board")
	size := boardSize(slots)
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map the board: %w", err), f.Close())
	}
	// What is mapped by now can be written; nobody can map it so again.
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal the board: %w", err), unix.Munmap(mem), f.Close())
	}
	b := &Board{
		file: f, head: words(mem, 0, 3), places: words(mem, placesOffset, Places), stamps: words(mem, slotsOffset, slots),
		rows: words(mem, entriesOffset, slots*chunk.Blocks), cells: make([]cell, slots),
	}
	runtime.AddCleanup(b, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	b.head[wordVersion].Store(boardVersion | uint64(slots)<<32)
	b.head[wordMagic].Store(boardMagic)
	return b, nil
}

// Descriptor returns what is passed to a reader.
func (b *Board) Descriptor() int { return int(b.file.Fd()) }

// Extend lets the board count until a time on the boot-time clock, unless it counts for longer or was stopped.
func (b *Board) Extend(until int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stopped && until > int64(b.head[wordUntil].Load()) {
		b.head[wordUntil].Store(uint64(until))
	}
}

// Until returns how long the board counts.
func (b *Board) Until() int64 { return int64(b.head[wordUntil].Load()) }

// Stop ends everything on the board, for good.
func (b *Board) Stop() {
	defer runtime.KeepAlive(b)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	b.head[wordUntil].Store(0)
	for i := range b.places {
		b.places[i].Store(0)
	}
	for n := range b.cells {
		b.vacate(n)
	}
}

// Enter gives a session a place. NoSpace if there is none.
func (b *Board) Enter(s id.SessionID) (place uint32, stamp uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, 0, fserr.Unavailable
	}
	for i := range b.places {
		if b.places[i].Load() == 0 {
			b.last++
			b.sessions[i] = s
			b.places[i].Store(b.last)
			return uint32(i), b.last, nil
		}
	}
	return 0, 0, fmt.Errorf("%d sessions have a place: %w", Places, fserr.NoSpace)
}

// Leave takes back a place.
func (b *Board) Leave(place uint32, stamp uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.places[place].Load() == stamp {
		b.places[place].Store(0)
	}
}

// Fence takes back all places of a session: what it reads from now on does not count.
func (b *Board) Fence(s id.SessionID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.places {
		if b.sessions[i] == s {
			b.places[i].Store(0)
		}
	}
}

// Take gives a chunk a slot whose entries are sums. changing, called once, calls mark for every range of blocks that is being changed. NoSpace if
// all slots are taken by chunks that have not had theirs for Residence. Until Take returns nobody may change blocks.
func (b *Board) Take(sums []uint32, changing func(mark func(first, end uint32))) (*Slot, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, fserr.Unavailable
	}
	n := b.victim()
	if n < 0 {
		return nil, fmt.Errorf("all %d slots were taken within %v: %w", len(b.cells), Residence, fserr.NoSpace)
	}
	b.vacate(n)
	b.last++
	s := &Slot{board: b, n: n, stamp: b.last, row: b.rows[n*chunk.Blocks:][:chunk.Blocks]}
	c := &b.cells[n]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slot, c.since = s, time.Now()
	for i := range s.row {
		s.row[i].Store(uint64(sums[i]))
	}
	changing(s.begin)
	b.stamps[n].Store(s.stamp)
	return s, nil
}

// victim returns a slot that is free, or the one that was taken longest ago, or -1.
func (b *Board) victim() int {
	oldest := 0
	for n := range b.cells {
		if b.cells[n].slot == nil {
			return n
		}
		if b.cells[n].since.Before(b.cells[oldest].since) {
			oldest = n
		}
	}
	if !b.steals && time.Since(b.cells[oldest].since) < Residence {
		return -1
	}
	return oldest
}

// vacate ends whatever has slot n. Preconditions: mu is held.
func (b *Board) vacate(n int) {
	c := &b.cells[n]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slot == nil {
		return
	}
	stamp := c.slot.stamp
	c.slot = nil
	b.stamps[n].Store(0)
	if b.OnRevoke != nil {
		b.OnRevoke(stamp)
	}
}

// Taken returns how many slots are taken.
func (b *Board) Taken() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.cells {
		if b.cells[i].slot != nil {
			n++
		}
	}
	return n
}

// Slot and stamp are what a grant is told by.
func (s *Slot) Slot() (slot uint32, stamp uint64) { return uint32(s.n), s.stamp }

// Live reports whether the slot has not ended.
func (s *Slot) Live() bool {
	c := &s.board.cells[s.n]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slot == s
}

// Revoke ends the slot: no read that ends from now on counts.
func (s *Slot) Revoke() {
	s.board.mu.Lock()
	defer s.board.mu.Unlock()
	if s.board.cells[s.n].slot == s {
		s.board.vacate(s.n)
	}
}

// Begin comes before the blocks [first, end) are changed, which one caller at a time does to a block.
func (s *Slot) Begin(first, end uint32) {
	defer runtime.KeepAlive(s.board)
	c := &s.board.cells[s.n]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slot == s {
		s.begin(first, end)
	}
}

func (s *Slot) begin(first, end uint32) {
	for i := range s.row[first:end] {
		w := &s.row[first:end][i]
		w.Store(w.Load() | odd)
	}
}

// End comes after blocks from first on were changed, or not, and says their checksums.
func (s *Slot) End(first uint32, sums []uint32) {
	defer runtime.KeepAlive(s.board)
	c := &s.board.cells[s.n]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slot != s {
		return
	}
	for i, sum := range sums {
		w := &s.row[int(first)+i]
		version := uint32(w.Load()>>32) | 1
		w.Store(uint64(version+1)<<32 | uint64(sum))
	}
}
