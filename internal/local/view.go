package local

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
)

// Why a read does not count. Whoever gets one of them reads in the ordinary way.
var (
	// ErrChanging says that a block was being changed.
	ErrChanging = errors.New("block is being changed")
	// ErrRevoked says that the grant is over.
	ErrRevoked = errors.New("grant of the chunk is over")
	// ErrPlace says that the session has no place on the board any more: it was fenced.
	ErrPlace = errors.New("session has lost its place")
	// ErrLapsed says that the board does not count now: its server does not run, or has not heard from the leader.
	ErrLapsed = errors.New("board has lapsed")
)

// maxRead is how long a read may take to count, so that no version comes round meanwhile.
const maxRead = 30 * time.Second

// Clock returns nanoseconds of the boot-time clock, which runs while the host sleeps.
func Clock() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 1 << 62 // no board counts by then
	}
	return ts.Nano()
}

// View is a board as its readers have mapped it.
type View struct {
	head   []atomic.Uint64
	places []atomic.Uint64
	stamps []atomic.Uint64
	rows   []atomic.Uint64
}

// Map maps a board, and takes over the descriptor.
func Map(f *os.File) (*View, error) {
	defer f.Close() // the mapping stays
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("board: %w: %w", fserr.Protocol, err)
	}
	// Without them whoever made the board could take its memory away, which would kill us.
	if want := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW; seals&want != want {
		return nil, fmt.Errorf("board is not sealed against changes of size (%#x): %w", seals, fserr.Protocol)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := st.Size()
	if size < boardSize(1) || size > boardSize(MaxSlots) {
		return nil, fmt.Errorf("board of %d bytes: %w", size, fserr.Protocol)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the board: %w", err)
	}
	head := words(mem, 0, 3)
	version := head[wordVersion].Load()
	slots := int(version >> 32)
	if head[wordMagic].Load() != boardMagic || uint32(version) != boardVersion || slots < 1 || slots > MaxSlots || boardSize(slots) != size {
		return nil, errors.Join(fmt.Errorf("board of %d bytes with version %#x: %w", size, version, fserr.Protocol), unix.Munmap(mem))
	}
	v := &View{head: head, places: words(mem, placesOffset, Places), stamps: words(mem, slotsOffset, slots), rows: words(mem, entriesOffset, slots*chunk.Blocks)}
	runtime.AddCleanup(v, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return v, nil
}

// Seat is a session's place on a board.
type Seat struct {
	View  *View
	Place uint32
	Stamp uint64
}

// Check reports whether place and slot of a grant are on the board at all.
func (s *Seat) Check(slot uint32) error {
	if s.Place >= uint32(len(s.View.places)) || slot >= uint32(len(s.View.stamps)) || s.Stamp == 0 {
		return fmt.Errorf("place %d, slot %d: not on the board: %w", s.Place, slot, fserr.Protocol)
	}
	return nil
}

// Grant is the right to read a chunk at the epoch for which it was asked.
type Grant struct {
	seat  Seat
	slot  uint32
	stamp uint64
	file  *os.File
	base  int64
}

// NewGrant takes over the descriptor of a chunk file whose data starts at base. If the slot is not on the board or its grant is over
// already, the descriptor is closed.
func NewGrant(seat Seat, slot uint32, stamp uint64, f *os.File, base int64) (*Grant, error) {
	g := &Grant{seat: seat, slot: slot, stamp: stamp, file: f, base: base}
	err := seat.Check(slot)
	if err == nil && (stamp == 0 || base < 0) {
		err = fmt.Errorf("grant with stamp %d, data at %d: %w", stamp, base, fserr.Protocol)
	}
	if err == nil {
		err = g.valid()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return g, nil
}

// Stamp returns the number of the grant.
func (g *Grant) Stamp() uint64 { return g.stamp }

// Close closes the descriptor. A read under way goes on.
func (g *Grant) Close() error { return g.file.Close() }

// valid says whether slot and place still are what the grant names.
func (g *Grant) valid() error {
	v := g.seat.View
	defer runtime.KeepAlive(v)
	switch {
	case v.stamps[g.slot].Load() != g.stamp:
		return ErrRevoked
	case v.places[g.seat.Place].Load() != g.seat.Stamp:
		return ErrPlace
	}
	return nil
}

// counts says whether the board counts at a time.
func (v *View) counts(now int64) error {
	if now >= int64(v.head[wordUntil].Load()) {
		return ErrLapsed
	}
	return nil
}

// Read fills dst, whole blocks in aligned memory, with the blocks from first on. seen has room for an entry of each. An error says that what is in
// dst does not count: one of those above, fserr.BadChecksum, or what the disk said. The steps are those of the package doc.
func (g *Grant) Read(dst []byte, first uint32, seen []uint64) error {
	n := uint32(len(dst) / chunk.BlockSize)
	if len(dst)%chunk.BlockSize != 0 || n == 0 || first >= chunk.Blocks || n > chunk.Blocks-first || len(seen) < int(n) {
		return fmt.Errorf("local read of %d bytes at block %d with %d entries: %w", len(dst), first, len(seen), fserr.Invalid)
	}
	seen = seen[:n]
	start, err := g.look(first, seen)
	if err != nil {
		return err
	}
	err = g.fetch(dst, first, seen)
	if again := g.lookAgain(first, seen, start); again != nil {
		return again
	}
	return err
}

// row returns the entries of the blocks from first on.
func (g *Grant) row(first uint32, n int) []atomic.Uint64 {
	return g.seat.View.rows[int(g.slot)*chunk.Blocks+int(first):][:n]
}

// look is what comes before the disk: it fills seen, and returns the time at which the read takes place.
func (g *Grant) look(first uint32, seen []uint64) (start int64, err error) {
	defer runtime.KeepAlive(g.seat.View)
	if err := g.valid(); err != nil {
		return 0, err
	}
	row := g.row(first, len(seen))
	for i := range seen {
		if seen[i] = row[i].Load(); seen[i]&odd != 0 {
			return 0, ErrChanging
		}
	}
	start = Clock()
	return start, g.seat.View.counts(start)
}

// lookAgain is what comes after the disk.
func (g *Grant) lookAgain(first uint32, seen []uint64, start int64) error {
	defer runtime.KeepAlive(g.seat.View)
	row := g.row(first, len(seen))
	for i := range seen {
		if row[i].Load() != seen[i] {
			return ErrChanging
		}
	}
	if err := g.valid(); err != nil {
		return err
	}
	now := Clock()
	if now-start > int64(maxRead) {
		return ErrLapsed
	}
	return g.seat.View.counts(now)
}

// fetch reads from the disk what is no hole, and compares checksums.
func (g *Grant) fetch(dst []byte, first uint32, seen []uint64) error {
	for i := 0; i < len(seen); {
		hole := uint32(seen[i]) == chunk.Hole
		j := i + 1
		for j < len(seen) && (uint32(seen[j]) == chunk.Hole) == hole {
			j++
		}
		part := dst[i*chunk.BlockSize : j*chunk.BlockSize]
		if hole {
			clear(part)
		} else if _, err := g.file.ReadAt(part, g.base+int64(first+uint32(i))*chunk.BlockSize); err != nil {
			return fmt.Errorf("local read: block %d: %w: %w", first+uint32(i), fserr.IO, err)
		}
		i = j
	}
	for i, e := range seen {
		if uint32(e) == chunk.Hole {
			continue
		}
		if got := chunk.Sum(dst[i*chunk.BlockSize:][:chunk.BlockSize]); got != uint32(e) {
			return fmt.Errorf("local read: block %d: checksum want %08x, got %08x: %w", first+uint32(i), uint32(e), got, fserr.BadChecksum)
		}
	}
	return nil
}
