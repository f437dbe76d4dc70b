package store

import (
	"errors"
	"fmt"
	"sync"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// stageSize is the length of a staging buffer; longer requests go through it in pieces.
const stageSize = 1 << 20

// stage is an aligned buffer and the checksums of the blocks in it.
type stage struct {
	buf  []byte
	sums [stageSize / chunk.BlockSize]uint32
}

// getStage returns a staging buffer when there is one: there are Options.Stages at most. Lock order: it comes last, and who has one needs
// no other; what is done meanwhile takes pages.
func (s *Store) getStage() *stage {
	if st := <-s.stages; st != nil {
		return st
	}
	return newStage()
}

func (s *Store) putStage(st *stage) { s.stages <- st }

// idleStages are those of stores that were closed.
var idleStages = sync.Pool{New: func() any { return &stage{buf: disk.AlignedBuffer(stageSize)} }}

func newStage() *stage { return idleStages.Get().(*stage) }

// dropStages gives up the stages that nobody uses.
func (s *Store) dropStages() {
	for {
		select {
		case st := <-s.stages:
			if st != nil {
				idleStages.Put(st)
			}
		default:
			return
		}
	}
}

// page is an aligned buffer of two blocks, for what is done with one or two.
type page [2 * chunk.BlockSize]byte

var pages = sync.Pool{New: func() any { return (*page)(disk.AlignedBuffer(len(page{}))) }}

func getPage() *page  { return pages.Get().(*page) }
func putPage(p *page) { pages.Put(p) }

var zeros = disk.AlignedBuffer(stageSize)

// Write writes p at off of the chunk. sums is as chunk.AppendSums makes it, and is verified first
// (BadChecksum). A block of which p is only a part is merged after the old block was verified.
func (s *Store) Write(c id.ChunkID, epoch id.Epoch, off uint32, p []byte, sums []uint32) error {
	return s.WriteThen(c, epoch, off, p, sums, nil)
}

// WriteThen is Write; if that succeeds it calls then, unless nil, while the blocks are still locked,
// and returns what then returns.
func (s *Store) WriteThen(c id.ChunkID, epoch id.Epoch, off uint32, p []byte, sums []uint32, then func() error) error {
	return s.WriteAround(c, epoch, off, p, sums, follow(then))
}

// WriteAround is Write with what is to be done around it while the blocks are locked.
func (s *Store) WriteAround(c id.ChunkID, epoch id.Epoch, off uint32, p []byte, sums []uint32, around Around) error {
	if len(p) == 0 || uint64(off)+uint64(len(p)) > maxChunkSize {
		return fmt.Errorf("chunk %v: write of %d bytes at %d: %w", c, len(p), off, fserr.Invalid)
	}
	n := uint32(len(p))
	if _, count := chunk.Span(off, n); int(count) != len(sums) {
		return fmt.Errorf("chunk %v: write of %d blocks with %d checksums: %w", c, count, len(sums), fserr.Invalid)
	}
	if i := chunk.VerifySums(sums, off, p); i >= 0 {
		return fmt.Errorf("chunk %v: write at %d: payload of block %d does not match %08x: %w",
			c, off, off/chunk.BlockSize+uint32(i), sums[i], fserr.BadChecksum)
	}
	return s.alter(c, repl.Input{Kind: repl.Write, Epoch: epoch}, off, off+n, p, sums, around)
}

// Punch makes the bytes [from, to) of the chunk zero. Whole blocks become holes and give back their
// space; partial ones are merged with zeros.
func (s *Store) Punch(c id.ChunkID, epoch id.Epoch, from, to uint32) error {
	return s.PunchThen(c, epoch, from, to, nil)
}

// PunchThen is Punch; then is called as by WriteThen.
func (s *Store) PunchThen(c id.ChunkID, epoch id.Epoch, from, to uint32, then func() error) error {
	return s.PunchAround(c, epoch, from, to, follow(then))
}

// PunchAround is Punch with what is to be done around it while the blocks are locked.
func (s *Store) PunchAround(c id.ChunkID, epoch id.Epoch, from, to uint32, around Around) error {
	if from >= to || to > chunk.Size {
		return fmt.Errorf("chunk %v: punch from %d to %d: %w", c, from, to, fserr.Invalid)
	}
	return s.alter(c, repl.Input{Kind: repl.Punch, Epoch: epoch}, from, to, nil, nil, around)
}

// alter is what writes and punches have in common.
func (s *Store) alter(c id.ChunkID, in repl.Input, from, to uint32, p []byte, sums []uint32, around Around) error {
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	s.makeRoom(c)
	e, v, err := s.enter(c, in)
	if err != nil {
		return err
	}
	defer e.gate.RUnlock()
	first, end := from/chunk.BlockSize, (to-1)/chunk.BlockSize+1
	t := e.lock(first, end, true)
	defer e.unlock(t)
	if v == repl.DoNote && !e.noteRoom(from, to) {
		return fmt.Errorf("chunk %v: more than %d blocks would be fresh in part: %w", c, repl.MaxPartial, fserr.NotReady)
	}
	if err := s.activate(e, first, end); err != nil {
		return err
	}
	if around.Before != nil {
		err = around.Before(&Held{s: s, e: e, first: first, end: end})
	}
	switch {
	case err != nil:
		s.release(e, first, end, false, from, to)
		return err
	case in.Kind == repl.Punch:
		err = s.punch(e, from, to)
	default:
		err = s.write(e, from, p, sums)
	}
	s.release(e, first, end, err == nil && v == repl.DoNote, from, to)
	if around.After == nil {
		return err
	}
	return around.After(&Held{s: s, e: e, first: first, end: end}, err)
}

func (e *entry) noteRoom(from, to uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rep.Fresh.Room(from, to)
}

// activate returns when the extents of the blocks [first, end) are active on stable media, and keeps
// them from being settled until release.
func (s *Store) activate(e *entry, first, end uint32) error {
	lo, hi := first/pageSums, (end-1)/pageSums
	need := span(lo, hi)
	e.mu.Lock()
	defer e.mu.Unlock()
	im := e.img
	for e.marked&need != need || im.settling&need != 0 {
		if (im.settling|im.marking)&need != 0 {
			im.cond.Wait()
			continue
		}
		want := (need | prefetch(e.marked, lo, hi)) &^ (e.marked | im.marking | im.settling)
		im.marking |= want
		e.mu.Unlock()
		err := s.log.mark(e.id, want)
		e.mu.Lock()
		im.marking &^= want
		im.cond.Broadcast()
		if err != nil {
			return s.fail("mark active", e.id, err)
		}
		if e.marked == 0 {
			s.active.Add(1)
		}
		e.marked |= want
		for i := range im.last {
			if want.has(uint32(i)) {
				im.last[i] = s.now()
			}
		}
	}
	for i := lo; i <= hi; i++ {
		im.writers[i]++
	}
	return nil
}

// prefetch returns the extents to mark along with those from lo to hi: if the one before is active
// too, the writes come in sequence and more will follow.
func prefetch(marked extents, lo, hi uint32) extents {
	switch {
	case lo == 0:
		return span(0, min(hi+1, chunk.Extents-1))
	case marked.has(lo - 1):
		return span(lo, min(max(hi, lo+ahead-1), chunk.Extents-1))
	}
	return 0
}

// release ends what activate began, and notes the bytes [from, to) as fresh if note says so.
func (s *Store) release(e *entry, first, end uint32, note bool, from, to uint32) {
	now := s.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := first / pageSums; i <= (end-1)/pageSums; i++ {
		e.img.writers[i]--
		e.img.last[i] = now
	}
	if note {
		e.rep.Fresh.Note(from, to)
	}
}

// write writes p at off. Preconditions: the blocks are locked and active.
func (s *Store) write(e *entry, off uint32, p []byte, sums []uint32) error {
	if chunk.Aligned(off, uint32(len(p))) && (!s.direct || aligned(p)) {
		return s.put(e, off/chunk.BlockSize, p, sums)
	}
	put := s.put
	if first, count := chunk.Span(off, uint32(len(p))); count > stageSize/chunk.BlockSize {
		if err := s.reserve(e, first, int(count)); err != nil {
			return err
		}
		put = s.putReserved
	}
	st := s.getStage()
	defer s.putStage(st)
	for len(p) > 0 {
		// A piece ends at a block, so that only the first and the last block can be partial.
		head := off % chunk.BlockSize
		n := min(uint32(len(p)), stageSize-head)
		first, count := chunk.Span(off, n)
		blocks := st.buf[:count*chunk.BlockSize]
		copy(st.sums[:], sums[:count])
		if head != 0 || n < chunk.BlockSize {
			if err := s.old(e, first, blocks[:chunk.BlockSize]); err != nil {
				return err
			}
		}
		if tail := (head + n) % chunk.BlockSize; tail != 0 && count > 1 {
			if err := s.old(e, first+count-1, blocks[len(blocks)-chunk.BlockSize:]); err != nil {
				return err
			}
		}
		copy(blocks[head:], p[:n])
		if head != 0 || n < chunk.BlockSize {
			st.sums[0] = chunk.Sum(blocks[:chunk.BlockSize])
		}
		if (head+n)%chunk.BlockSize != 0 && count > 1 {
			st.sums[count-1] = chunk.Sum(blocks[len(blocks)-chunk.BlockSize:])
		}
		if err := put(e, first, blocks, st.sums[:count]); err != nil {
			return err
		}
		p, sums, off = p[n:], sums[count:], off+n
	}
	return nil
}

// old reads the block that is about to be merged and verifies it. In a joining replica a block that
// is not fresh may be bad, since the rebuild replaces what the merge leaves of it.
func (s *Store) old(e *entry, block uint32, dst []byte) error {
	e.mu.Lock()
	sum := e.img.sums[block]
	stale := e.rep.State == repl.Tracking && !e.rep.Fresh.Whole(block) && e.rep.Fresh.Spans(block) == nil
	e.mu.Unlock()
	err := s.get(e, block, dst, []uint32{sum})
	if stale && errors.Is(err, ErrBadBlock) {
		clear(dst)
		return nil
	}
	return err
}

// get reads whole blocks into dst, which is aligned, and verifies them.
func (s *Store) get(e *entry, block uint32, dst []byte, sums []uint32) error {
	if err := s.refuseBad(e, block, len(sums)); err != nil {
		return err
	}
	for i := 0; i < len(sums); {
		j := i + 1
		for j < len(sums) && (sums[j] == chunk.Hole) == (sums[i] == chunk.Hole) {
			j++
		}
		part := dst[i*chunk.BlockSize : j*chunk.BlockSize]
		if sums[i] == chunk.Hole {
			clear(part)
		} else if _, err := e.img.f.ReadAt(part, place(block+uint32(i))); err != nil {
			if err := s.misread(e, e.img.f, block+uint32(i), part, err); err != nil {
				return err
			}
		}
		i = j
	}
	return s.match(e, block, dst, sums)
}

// match verifies blocks that were read. Holes are passed over.
func (s *Store) match(e *entry, block uint32, dst []byte, sums []uint32) error {
	for i, want := range sums {
		if want == chunk.Hole {
			continue
		}
		if chunk.Sum(dst[i*chunk.BlockSize:][:chunk.BlockSize]) != want {
			return s.mismatch(e, e.img.f, block, dst, sums)
		}
	}
	return nil
}

// place is where a block is in the chunk file.
func place(block uint32) int64 { return dataOffset + int64(block)*chunk.BlockSize }

// put writes whole blocks from data, which is aligned, and their checksums. Preconditions: the blocks
// are locked and active.
func (s *Store) put(e *entry, block uint32, data []byte, sums []uint32) error {
	switch n := e.holes(block, len(sums)); {
	case n == int64(len(sums)):
		if err := s.allot(n * chunk.BlockSize); err != nil {
			return fmt.Errorf("write: chunk %v: block %d: %w", e.id, block, err)
		}
	case n > 0:
		if err := s.reserve(e, block, len(sums)); err != nil {
			return err
		}
	}
	return s.putReserved(e, block, data, sums)
}

// putReserved is put for blocks that have room.
func (s *Store) putReserved(e *entry, block uint32, data []byte, sums []uint32) error {
	_, err := e.img.f.WriteAt(data, place(block))
	return s.wrote(e, block, sums, err)
}

// wrote follows a write of whole blocks that ended with err.
func (s *Store) wrote(e *entry, block uint32, sums []uint32, err error) error {
	switch {
	case err == nil:
		err := s.heal(e, block, len(sums), sums)
		e.record(block, sums)
		return err
	case full(err):
		return s.full(e, block, sums, err)
	}
	return s.fail("write", e.id, err)
}

// holes counts the blocks among n that take up no space yet.
func (e *entry) holes(block uint32, n int) (holes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, sum := range e.img.sums[block:][:n] {
		if sum == chunk.Hole {
			holes++
		}
	}
	return holes
}

// record notes the checksums of blocks that were just written.
func (e *entry) record(block uint32, sums []uint32) {
	e.mu.Lock()
	copy(e.img.sums[block:], sums)
	e.img.dirty |= span(block/pageSums, (block+uint32(len(sums))-1)/pageSums)
	e.mu.Unlock()
	e.img.written.Add(1)
}

// punch makes [from, to) zero. Preconditions: the blocks are locked and active.
func (s *Store) punch(e *entry, from, to uint32) error {
	first, end := from/chunk.BlockSize, to/chunk.BlockSize
	if head := from % chunk.BlockSize; head != 0 {
		stop := min(to, (first+1)*chunk.BlockSize)
		if err := s.wipe(e, first, head, stop-first*chunk.BlockSize); err != nil {
			return err
		}
		first++
	}
	if tail := to % chunk.BlockSize; tail != 0 && end >= first {
		if err := s.wipe(e, end, 0, tail); err != nil {
			return err
		}
	}
	if first >= end {
		return nil
	}
	return s.dig(e, first, end)
}

// wipe makes the bytes [from, to) of one block zero, and a hole of it if no others are left.
func (s *Store) wipe(e *entry, block, from, to uint32) error {
	e.mu.Lock()
	hole := e.img.sums[block] == chunk.Hole
	e.mu.Unlock()
	if hole && e.bad.Load() == 0 {
		return nil
	}
	st := getPage()
	defer putPage(st)
	b := st[:chunk.BlockSize]
	if err := s.old(e, block, b); err != nil {
		return err
	}
	clear(b[from:to])
	if chunk.IsZero(b) {
		return s.dig(e, block, block+1)
	}
	return s.put(e, block, b, []uint32{chunk.Sum(b)})
}

// dig makes holes of the blocks [first, end).
func (s *Store) dig(e *entry, first, end uint32) error {
	worn := e.bad.Load() > 0 // what is listed is a hole only when it was dug
	e.mu.Lock()
	for !worn && first < end && e.img.sums[first] == chunk.Hole {
		first++
	}
	for !worn && first < end && e.img.sums[end-1] == chunk.Hole {
		end--
	}
	e.mu.Unlock()
	if first == end {
		return nil
	}
	count := end - first
	if err := e.img.f.PunchHole(place(first), int64(count)*chunk.BlockSize); err != nil {
		if !cannotPunch(err) {
			return s.outcome("punch", e.id, err)
		}
		for b := first; b < end; b += stageSize / chunk.BlockSize {
			n := min(end-b, stageSize/chunk.BlockSize)
			if err := s.put(e, b, zeros[:n*chunk.BlockSize], holes[:n]); err != nil {
				return err
			}
		}
		return nil
	}
	err := s.heal(e, first, int(count), nil)
	for b := first; b < end; b += uint32(len(holes)) {
		e.record(b, holes[:min(end-b, uint32(len(holes)))])
	}
	return err
}

// holes are the checksums of as many holes as fit a stage.
var holes [stageSize / chunk.BlockSize]uint32

// Read fills dst, n bytes long, and sums, n/4096 long, from off. off and n are multiples of 4096.
// Every block is verified: the error of a bad one (BadChecksum) names it. Blocks that are being
// written are waited for.
func (s *Store) Read(c id.ChunkID, epoch id.Epoch, off, n uint32, dst []byte, sums []uint32) error {
	if n == 0 || !chunk.Aligned(off, n) || uint64(off)+uint64(n) > maxChunkSize ||
		len(dst) != int(n) || len(sums) != int(n/chunk.BlockSize) {
		return fmt.Errorf("chunk %v: read of %d bytes at %d into %d bytes, %d checksums: %w", c, n, off, len(dst), len(sums), fserr.Invalid)
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	e, _, err := s.enter(c, repl.Input{Kind: repl.Read, Epoch: epoch})
	if err != nil {
		return err
	}
	defer e.gate.RUnlock()
	return s.read(e, off/chunk.BlockSize, dst, sums)
}

// read reads blocks under their lock and fills in their checksums.
func (s *Store) read(e *entry, block uint32, dst []byte, sums []uint32) error {
	t := e.lock(block, block+uint32(len(sums)), false)
	defer e.unlock(t)
	e.mu.Lock()
	copy(sums, e.img.sums[block:])
	e.mu.Unlock()
	if !s.direct || aligned(dst) {
		return s.get(e, block, dst, sums)
	}
	st := s.getStage()
	defer s.putStage(st)
	for len(sums) > 0 {
		n := min(len(sums), stageSize/chunk.BlockSize)
		if err := s.get(e, block, st.buf[:n*chunk.BlockSize], sums[:n]); err != nil {
			return err
		}
		copy(dst, st.buf[:n*chunk.BlockSize])
		dst, sums, block = dst[n*chunk.BlockSize:], sums[n:], block+uint32(n)
	}
	return nil
}

// Flush puts every write to the chunk that has returned on stable media. Flushes of one chunk that
// wait together share one sync.
func (s *Store) Flush(c id.ChunkID, epoch id.Epoch) error {
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	e, _, err := s.enter(c, repl.Input{Kind: repl.Flush, Epoch: epoch})
	if err != nil {
		return err
	}
	defer e.gate.RUnlock()
	return s.flush(e)
}

// flush needs to write no table: all that is dirty is active, and is made again after a crash.
func (s *Store) flush(e *entry) error {
	im := e.img
	want := im.written.Load()
	im.flushMu.Lock()
	defer im.flushMu.Unlock()
	for im.synced.Load() < want {
		if im.flushing {
			im.flushCond.Wait()
			continue
		}
		if err := s.failure(); err != nil {
			return err
		}
		im.flushing = true
		im.flushMu.Unlock()
		covered := im.written.Load()
		err := im.f.Sync()
		im.flushMu.Lock()
		im.flushing = false
		im.flushCond.Broadcast()
		if err != nil {
			return s.fail("sync", e.id, err)
		}
		im.synced.Store(max(im.synced.Load(), covered))
	}
	return nil
}

// Table returns a copy of the checksums of all blocks, in any state of the replica. That of a block in quarantine is one that the block
// does not have, so that a comparison finds it.
func (s *Store) Table(c id.ChunkID) (sums []uint32, epoch id.Epoch, st repl.State, err error) {
	if err := s.begin(); err != nil {
		return nil, 0, 0, err
	}
	defer s.end()
	e, err := s.hold(c)
	if err != nil {
		return nil, 0, 0, err
	}
	defer e.gate.RUnlock()
	sums = make([]uint32, chunk.Blocks)
	e.mu.Lock()
	copy(sums, e.img.sums[:])
	e.mu.Unlock()
	if e.bad.Load() > 0 {
		for b := range s.bad.of(e.id) {
			if sums[b] = ^sums[b]; sums[b] == chunk.Hole {
				sums[b] = 1
			}
		}
	}
	return sums, e.rep.Epoch, e.rep.State, nil
}

// Seek returns the first offset at or after off that lies in a hole, or in data if hole is false. The
// boolean is false if there is none in the chunk.
func (s *Store) Seek(c id.ChunkID, epoch id.Epoch, off uint32, hole bool) (uint32, bool, error) {
	if off >= chunk.Size {
		return 0, false, fmt.Errorf("chunk %v: seek at %d: %w", c, off, fserr.Invalid)
	}
	if err := s.begin(); err != nil {
		return 0, false, err
	}
	defer s.end()
	e, _, err := s.enter(c, repl.Input{Kind: repl.Read, Epoch: epoch})
	if err != nil {
		return 0, false, err
	}
	defer e.gate.RUnlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	for b := off / chunk.BlockSize; b < chunk.Blocks; b++ {
		if (e.img.sums[b] == chunk.Hole) == hole {
			return max(off, b*chunk.BlockSize), true, nil
		}
	}
	return 0, false, nil
}
