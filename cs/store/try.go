package store

import (
	"errors"
	"syscall"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/id"
)

// This file is for callers that must not wait and let a ring do the I/O. TryRead, TryWrite and TryFlush do all that comes before
// the I/O; the caller then does the I/O on the descriptor and calls Finish, or Abort if it did none. In between the operation holds what the
// blocking one holds, so blocking callers wait for it, and so does Close.
//
// A Try that returns false has done nothing and holds nothing. It says only that the operation cannot begin without waiting, or
// will be refused: the blocking method does it, or tells why not. The Try methods do not wait for I/O, nor for anybody who does,
// and neither they nor Finish allocate.
//
// The op is the caller's memory and may be used again when it was finished or aborted. It is used by one goroutine at a
// time; Finish may come from another one than Try.

// ReadOp is a read that has begun. To-From bytes at Offset of the file FD are to be read into dst[From:To], where dst is what
// Finish gets; with direct I/O dst starts at a multiple of 4096. If From = To there is nothing to read.
type ReadOp struct {
	FD       int
	Offset   int64
	From, To uint32

	held
	sums []uint32
}

// WriteOp is a write that has begun: the p that TryWrite got is to be written at Offset of the file FD.
type WriteOp struct {
	FD     int
	Offset int64

	held
	p    []byte
	sums []uint32
	note bool
}

// FlushOp is a flush that has begun: the file FD is to be synced (fdatasync).
type FlushOp struct {
	FD int

	held
	covered uint64
}

// held is what an operation that has begun holds: the store, the gate of the chunk, and a range of blocks if ticket is not zero.
type held struct {
	s      *Store
	e      *entry
	ticket uint64
	block  uint32
}

// leave gives back what is held.
func (h *held) leave() {
	if h.ticket != 0 {
		h.e.unlock(h.ticket)
	}
	h.e.gate.RUnlock()
	h.s.end()
	h.s, h.e, h.ticket = nil, nil, 0
}

// tryEnter is begin and enter for who cannot wait. It wants a file with a descriptor.
func (s *Store) tryEnter(h *held, c id.ChunkID, in repl.Input) (repl.Verdict, bool) {
	// Not RLock: that would wait for Close, which waits for what the caller itself has begun.
	if !s.life.TryRLock() {
		return 0, false
	}
	if e := s.find(c); e != nil && !s.closed && s.failed.Load() == nil && e.gate.TryRLock() {
		if e.img != nil && e.img.fd >= 0 && e.bad.Load() == 0 {
			if _, v := e.rep.Step(in); v == repl.Do || v == repl.DoNote {
				if !e.used.Load() {
					e.used.Store(true)
				}
				h.s, h.e, h.ticket = s, e, 0
				return v, true
			}
		}
		e.gate.RUnlock()
	}
	s.end()
	return 0, false
}

// TryRead begins what Read does. sums is filled at once, and used until Finish.
func (s *Store) TryRead(op *ReadOp, c id.ChunkID, epoch id.Epoch, off, n uint32, sums []uint32) bool {
	if n == 0 || !chunk.Aligned(off, n) || uint64(off)+uint64(n) > maxChunkSize || len(sums) != int(n/chunk.BlockSize) {
		return false
	}
	if _, ok := s.tryEnter(&op.held, c, repl.Input{Kind: repl.Read, Epoch: epoch}); !ok {
		return false
	}
	e, im := op.e, op.e.img
	op.block, op.sums = off/chunk.BlockSize, sums
	e.mu.Lock()
	ticket, ok := im.tryHold(op.block, op.block+uint32(len(sums)), false)
	if ok {
		copy(sums, im.sums[op.block:])
	}
	e.mu.Unlock()
	if !ok {
		op.leave()
		return false
	}
	op.ticket = ticket
	// Holes in between are read as well, and cleared by Finish: one operation of the ring costs more than they do.
	first, end := 0, len(sums)
	for first < end && sums[first] == chunk.Hole {
		first++
	}
	for first < end && sums[end-1] == chunk.Hole {
		end--
	}
	op.FD, op.Offset = im.fd, place(op.block+uint32(first))
	op.From, op.To = uint32(first)*chunk.BlockSize, uint32(end)*chunk.BlockSize
	return true
}

// Finish ends a read after dst[From:To] was filled: it clears the holes and verifies the rest, as Read does. Only what does not match has
// it wait for the disk. If the I/O failed or came short, Abort, and leave it to Read.
func (op *ReadOp) Finish(dst []byte) error {
	defer op.leave()
	for i, sum := range op.sums {
		if sum == chunk.Hole {
			clear(dst[i*chunk.BlockSize:][:chunk.BlockSize])
		}
	}
	return op.s.match(op.e, op.block, dst, op.sums)
}

// Abort ends a read whose data is of no use.
func (op *ReadOp) Abort() { op.leave() }

// TryWrite begins what Write does, for whole blocks in extents that are active. p and sums are used until Finish; with direct I/O
// p starts at a multiple of 4096.
func (s *Store) TryWrite(op *WriteOp, c id.ChunkID, epoch id.Epoch, off uint32, p []byte, sums []uint32) bool {
	if len(p) == 0 || uint64(off)+uint64(len(p)) > maxChunkSize || !chunk.Aligned(off, uint32(len(p))) ||
		len(sums) != len(p)/chunk.BlockSize || s.direct && !aligned(p) || chunk.VerifySums(sums, off, p) >= 0 {
		return false
	}
	v, ok := s.tryEnter(&op.held, c, repl.Input{Kind: repl.Write, Epoch: epoch})
	if !ok {
		return false
	}
	op.block, op.p, op.sums, op.note = off/chunk.BlockSize, p, sums, v == repl.DoNote
	if !op.take(off) {
		op.leave()
		return false
	}
	op.FD, op.Offset = op.e.img.fd, place(op.block)
	return true
}

// take locks the blocks, allots their space and keeps their extents active, or does nothing.
func (op *WriteOp) take(off uint32) bool {
	e, im := op.e, op.e.img
	first, end := op.block, op.block+uint32(len(op.sums))
	lo, hi := first/pageSums, (end-1)/pageSums
	need := span(lo, hi)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.marked&need != need || im.settling&need != 0 || op.note && !e.rep.Fresh.Room(off, off+uint32(len(op.p))) {
		return false
	}
	ticket, ok := im.tryHold(first, end, true)
	if !ok {
		return false
	}
	op.ticket = ticket
	var holes int64
	for _, sum := range im.sums[first:end] {
		if sum == chunk.Hole {
			holes++
		}
	}
	// What was locked is unlocked by leave.
	// With holes and data the holes are filled first, should there be no room for all (see reserve).
	if holes > 0 && (holes < int64(len(op.sums)) || !op.s.tryAllot(holes*chunk.BlockSize)) {
		return false
	}
	for i := lo; i <= hi; i++ {
		im.writers[i]++
	}
	return true
}

// Finish ends a write of which n bytes were written before err. With n = len(p) it does not wait; else it may read and write the
// disk, so call it where that is allowed. A write that came short, was interrupted or cancelled is done again here. Any other failure is
// one of the disk, as in Write.
func (op *WriteOp) Finish(n int, err error) error { return op.FinishThen(n, err, nil) }

// FinishThen is Finish; if the write succeeds it calls then, unless nil, while the blocks are still locked, and returns what then returns.
func (op *WriteOp) FinishThen(n int, err error, then func() error) error {
	s, e := op.s, op.e
	switch {
	case n == len(op.p):
		err = s.wrote(e, op.block, op.sums, nil)
	case err == nil || again(err):
		err = s.put(e, op.block, op.p, op.sums)
	default:
		err = s.wrote(e, op.block, op.sums, err)
	}
	done := err == nil
	if done && then != nil {
		err = then()
	}
	op.release(done)
	return err
}

// Abort ends a write that nobody has begun to write.
func (op *WriteOp) Abort() { op.release(false) }

func (op *WriteOp) release(done bool) {
	off := op.block * chunk.BlockSize
	op.s.release(op.e, op.block, op.block+uint32(len(op.sums)), done && op.note, off, off+uint32(len(op.p)))
	op.p, op.sums = nil, nil
	op.leave()
}

// again reports whether an operation of a ring that ended with err can just be done again.
func again(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ECANCELED)
}

// TryFlush begins what Flush does. If begun is false nothing is to be synced, and the flush is done. While another flush of the
// chunk is under way ok is false: Flush waits for it and shares the next.
func (s *Store) TryFlush(op *FlushOp, c id.ChunkID, epoch id.Epoch) (begun, ok bool) {
	if _, ok := s.tryEnter(&op.held, c, repl.Input{Kind: repl.Flush, Epoch: epoch}); !ok {
		return false, false
	}
	im := op.e.img
	covered := im.written.Load()
	if im.synced.Load() >= covered {
		op.leave()
		return false, true
	}
	im.flushMu.Lock()
	busy := im.flushing || s.failed.Load() != nil // the sync that has just ended failed: what the next one says is no use
	im.flushing = im.flushing || !busy
	im.flushMu.Unlock()
	if busy {
		op.leave()
		return false, false
	}
	op.FD, op.covered = im.fd, covered
	return true, true
}

// Finish ends a flush whose sync ended with err. A sync that was interrupted or cancelled is done again here, so call Finish with an
// error only where the disk may be waited for.
func (op *FlushOp) Finish(err error) error {
	im := op.e.img
	if err != nil && again(err) {
		err = im.f.Sync()
	}
	im.flushMu.Lock()
	im.flushing = false
	if err == nil {
		im.synced.Store(max(im.synced.Load(), op.covered))
	} else {
		err = op.s.fail("sync", op.e.id, err)
	}
	im.flushCond.Broadcast()
	im.flushMu.Unlock()
	op.leave()
	return err
}

// Abort ends a flush that nobody has begun to sync.
func (op *FlushOp) Abort() {
	im := op.e.img
	im.flushMu.Lock()
	im.flushing = false
	im.flushCond.Broadcast()
	im.flushMu.Unlock()
	op.leave()
}
