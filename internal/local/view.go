package local

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/boottime"
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
	return int64(boottime.Now())
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
	fd    uintptr
	base  int64
	refs  atomic.Int32 // who needs the descriptor: the owner until Close, and reads under way
}

// NewGrant takes over the descriptor of a chunk file whose data starts at base. If the slot is not on the board or its grant is over
// already, the descriptor is closed.
func NewGrant(seat Seat, slot uint32, stamp uint64, f *os.File, base int64) (*Grant, error) {
	g := &Grant{seat: seat, slot: slot, stamp: stamp, file: f, fd: f.Fd(), base: base}
	g.refs.Store(1)
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

// Close ends the owner's use of the grant, once. The descriptor is closed when no read needs it any more.
func (g *Grant) Close() { g.release() }

// hold keeps the descriptor open until release. It returns false if the grant was closed.
func (g *Grant) hold() bool {
	for {
		n := g.refs.Load()
		if n == 0 {
			return false
		}
		if g.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *Grant) release() {
	if g.refs.Add(-1) == 0 {
		g.file.Close() // it was only read
	}
}

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

// Op is a read that has begun: Dst is to be filled from Offset of the file FD, which stays open until Finish. If Dst is empty there is
// nothing to read. An Op can be used again.
type Op struct {
	FD     int
	Offset int64
	Dst    []byte

	g     *Grant
	whole []byte
	first uint32
	start int64
	seen  []uint64
}

// Begin begins a read of the blocks from first on into dst, whole blocks in aligned memory. It takes steps 1 to 3 of the package doc. An
// error is one of those above, and then there is nothing to finish.
func (g *Grant) Begin(op *Op, dst []byte, first uint32) (err error) {
	n := uint32(len(dst) / chunk.BlockSize)
	if len(dst)%chunk.BlockSize != 0 || n == 0 || first >= chunk.Blocks || n > chunk.Blocks-first {
		return fmt.Errorf("local read of %d bytes at block %d: %w", len(dst), first, fserr.Invalid)
	}
	if cap(op.seen) < int(n) {
		op.seen = make([]uint64, n)
	}
	op.seen = op.seen[:n]
	if op.start, err = g.look(first, op.seen); err != nil {
		return err
	}
	if !g.hold() {
		return ErrRevoked
	}
	// Holes in between are read as well, and cleared afterwards: another operation would cost more.
	from, to := 0, len(op.seen)
	for from < to && uint32(op.seen[from]) == chunk.Hole {
		from++
	}
	for from < to && uint32(op.seen[to-1]) == chunk.Hole {
		to--
	}
	op.g, op.whole, op.first = g, dst, first
	op.FD, op.Offset = int(g.fd), g.base+int64(first+uint32(from))*chunk.BlockSize
	op.Dst = dst[from*chunk.BlockSize : to*chunk.BlockSize]
	return nil
}

// Finish ends a read after n bytes of Dst were filled, and err. A nil error says that what is in the buffer that Begin got is what the
// chunk held; any other that it does not count: one of those above, fserr.BadChecksum, or what the disk said.
func (op *Op) Finish(n int, err error) error {
	g := op.g
	defer func() {
		op.g, op.whole, op.Dst = nil, nil, nil
		g.release()
	}()
	switch {
	case err != nil:
		err = fmt.Errorf("local read: blocks from %d on: %w: %w", op.first, fserr.IO, err)
	case n != len(op.Dst):
		err = fmt.Errorf("local read: blocks from %d on: %d bytes of %d: %w", op.first, n, len(op.Dst), fserr.IO)
	default:
		err = op.match()
	}
	if again := g.lookAgain(op.first, op.seen, op.start); again != nil {
		return again
	}
	return err
}

// match compares checksums and clears holes.
func (op *Op) match() error {
	for i, e := range op.seen {
		b := op.whole[i*chunk.BlockSize:][:chunk.BlockSize]
		if uint32(e) == chunk.Hole {
			clear(b)
		} else if got := chunk.Sum(b); got != uint32(e) {
			return fmt.Errorf("local read: block %d: checksum want %08x, got %08x: %w", op.first+uint32(i), uint32(e), got, fserr.BadChecksum)
		}
	}
	return nil
}

// Do does the read that Begin has begun, and waits for the disk.
func (op *Op) Do() error {
	if len(op.Dst) == 0 {
		return op.Finish(0, nil)
	}
	return op.Finish(op.g.file.ReadAt(op.Dst, op.Offset))
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
