package store

import (
	"errors"
	"fmt"
	"slices"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// BadBlocks returns how many blocks are in quarantine, and the first of them, at most limit, by chunk and block.
func (s *Store) BadBlocks(limit int) (n int, list []BadBlock) {
	n, _ = s.bad.counts()
	if limit > 0 {
		list = s.bad.list(limit)
	}
	return n, list
}

// MendedBlocks returns blocks that were in quarantine and were written anew in the last half a minute, at most 256 of them, oldest first.
func (s *Store) MendedBlocks() []BadBlock { return s.bad.lately() }

// BadChunks returns chunks that must be mended from another replica, at most limit: those without a readable header, and those
// with blocks in quarantine.
func (s *Store) BadChunks(limit int) (all []id.ChunkID) {
	s.headless.Range(func(c, _ any) bool {
		all = append(all, c.(id.ChunkID))
		return len(all) < limit
	})
	slices.Sort(all)
	for _, c := range s.bad.chunks(limit) {
		if len(all) < limit && !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}

// Headless reports whether no header of the chunk's file can be read.
func (s *Store) Headless(c id.ChunkID) bool {
	_, ok := s.headless.Load(c)
	return ok
}

// refuseBad fails if one of the blocks [first, first+n) is in quarantine.
func (s *Store) refuseBad(e *entry, first uint32, n int) error {
	if e.bad.Load() == 0 {
		return nil
	}
	b, ok := s.bad.first(e.id, first, first+uint32(n))
	if !ok {
		return nil
	}
	code := fserr.BadChecksum
	if b.Cause == Unreadable {
		code = fserr.IO
	}
	return fmt.Errorf("%s: chunk %v: block %d: bad since %s (%v): %w: %w", s.pathOf(e.id), e.id, b.Block,
		b.Since.UTC().Format("2006-01-02 15:04:05 UTC"), b.Cause, ErrBadBlock, code)
}

// condemn puts blocks in quarantine, durably. It returns the store's failure, if that is what came of it. Preconditions: the gate is held.
func (s *Store) condemn(e *entry, blocks []uint32, cause Cause) error {
	fresh, err := s.bad.add(e.id, blocks, cause)
	if fresh > 0 {
		e.mu.Lock() // under which Share looks
		e.bad.Add(int32(fresh))
		if e.img != nil && e.img.slot != nil { // readers of its own must not serve them either
			e.img.slot.Revoke()
			e.img.slot = nil
		}
		e.mu.Unlock()
		s.found.Add(uint64(fresh))
		s.o.Logger.Error("bad block put in quarantine", "chunk", e.id, "block", blocks[0], "blocks", fresh, "cause", cause, "path", s.pathOf(e.id))
	}
	switch {
	case errors.Is(err, errTooManyBad):
		return s.fail("read", e.id, fmt.Errorf("%w: %w", errDiskWorn, err))
	case err != nil:
		return s.fail("write quarantine", e.id, err)
	}
	if _, n := s.bad.counts(); cause == Unreadable && n > s.o.MaxUnreadable {
		return s.fail("read", e.id, fmt.Errorf("%w: %d blocks cannot be read, limit %d", errDiskWorn, n, s.o.MaxUnreadable))
	}
	return nil
}

// errDiskWorn is why a disk with many bad blocks is retired, though each write and sync succeeds.
var errDiskWorn = errors.New("the disk is worn out")

// misread follows a read of n blocks that failed with cause: it reads them one by one, and condemns those that the medium does
// not give. dst is n blocks long and is filled if all can be read after all.
func (s *Store) misread(e *entry, f disk.File, block uint32, dst []byte, cause error) error {
	if !disk.Medium(cause) {
		return fmt.Errorf("read: chunk %v: block %d: %w: %w", e.id, block, fserr.IO, cause)
	}
	var bad []uint32
	for i := 0; i < len(dst); i += chunk.BlockSize {
		at := block + uint32(i/chunk.BlockSize)
		if _, err := f.ReadAt(dst[i:i+chunk.BlockSize], place(at)); err != nil {
			if !disk.Medium(err) {
				return fmt.Errorf("read: chunk %v: block %d: %w: %w", e.id, at, fserr.IO, err)
			}
			bad = append(bad, at)
		}
	}
	if bad == nil {
		s.o.Logger.Warn("read failed once, and did not when it was done again", "chunk", e.id, "block", block, "cause", cause)
		return nil
	}
	if err := s.condemn(e, bad, Unreadable); err != nil {
		return err
	}
	return fmt.Errorf("read: chunk %v: block %d: %w: %w: %w", e.id, bad[0], ErrBadBlock, fserr.IO, cause)
}

// mismatch follows a read of blocks of which some do not match their checksums: it reads those again, and condemns them if they still
// do not. dst is filled if they do.
func (s *Store) mismatch(e *entry, f disk.File, block uint32, dst []byte, sums []uint32) error {
	var bad []uint32
	var want, got uint32
	for i, sum := range sums {
		b := dst[i*chunk.BlockSize:][:chunk.BlockSize]
		if sum == chunk.Hole || chunk.Sum(b) == sum {
			continue
		}
		p := getPage()
		again := p[:chunk.BlockSize]
		_, err := f.ReadAt(again, place(block+uint32(i)))
		ok := err == nil && chunk.Sum(again) == sum
		if ok {
			copy(b, again)
			s.o.Logger.Warn("block did not match its checksum once, and did when it was read again", "chunk", e.id, "block", block+uint32(i))
		} else if bad = append(bad, block+uint32(i)); len(bad) == 1 {
			want, got = sum, chunk.Sum(b)
		}
		putPage(p)
	}
	if bad == nil {
		return nil
	}
	if err := s.condemn(e, bad, Rotten); err != nil {
		return err
	}
	return fmt.Errorf("%s: chunk %v: block %d: checksum want %08x, got %08x: %w: %w",
		s.pathOf(e.id), e.id, bad[0], want, got, ErrBadBlock, fserr.BadChecksum)
}

// heal takes the blocks [first, first+n), which were just written whole or punched, off the list: when they are on stable media, so that
// a crash cannot leave the old bytes without the note that they are bad, and when they can be read. Preconditions: they are locked.
func (s *Store) heal(e *entry, first uint32, n int, sums []uint32) error {
	if e.bad.Load() == 0 {
		return nil
	}
	end := first + uint32(n)
	if _, ok := s.bad.first(e.id, first, end); !ok {
		return nil
	}
	if err := e.img.f.Sync(); err != nil {
		return s.fail("sync", e.id, err)
	}
	p := getPage()
	defer putPage(p)
	b := p[:chunk.BlockSize]
	listed := s.bad.of(e.id)
	for i, sum := range sums {
		at := first + uint32(i)
		if sum == chunk.Hole || !listed[at] {
			continue
		}
		if _, err := e.img.f.ReadAt(b, place(at)); err != nil || chunk.Sum(b) != sum {
			e.stuck.Store(true)
			s.o.Logger.Error("bad block stays bad when it is written", "chunk", e.id, "block", at, "err", err)
			return fmt.Errorf("write: chunk %v: block %d does not hold what is written to it: %w: %w", e.id, at, ErrBadBlock, fserr.IO)
		}
	}
	gone, err := s.bad.remove(e.id, first, end)
	e.bad.Add(-int32(gone))
	if err != nil {
		return s.fail("write quarantine", e.id, err)
	}
	s.o.Logger.Info("bad block was written anew", "chunk", e.id, "block", first, "blocks", gone)
	return nil
}

// pardon empties the list of a chunk whose file is gone or was made anew.
func (s *Store) pardon(e *entry) error {
	if e.bad.Load() == 0 {
		return nil
	}
	n, err := s.bad.remove(e.id, 0, chunk.Blocks)
	e.bad.Add(-int32(n))
	if err != nil {
		return s.fail("write quarantine", e.id, err)
	}
	return nil
}
