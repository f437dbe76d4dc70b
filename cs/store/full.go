package store

import (
	"fmt"

	"varve/internal/chunk"
	"varve/internal/fserr"
)

// A write that finds no room changes nothing. Only holes need room, and what was a hole can be one again: so a write over holes alone is punched
// when it fails, and one over holes and data, or in several pieces, has the holes filled first. Otherwise replicas whose disks are full in
// different places would keep different parts of a write that nobody has answered.

// reserve gives room to the holes among n blocks, as blocks of zeros, or changes nothing. Preconditions: the blocks are locked and active.
func (s *Store) reserve(e *entry, block uint32, n int) error {
	need := e.holes(block, n)
	if need == 0 {
		return nil
	}
	if err := s.allot(need * chunk.BlockSize); err != nil {
		return fmt.Errorf("write: chunk %v: block %d: %w", e.id, block, err)
	}
	return e.eachHole(block, uint32(n), func(at, count uint32) error {
		_, err := e.img.f.WriteAt(zeros[:count*chunk.BlockSize], place(at))
		switch {
		case err == nil:
			e.img.written.Add(1)
			return nil
		case !full(err):
			return s.fail("write", e.id, err)
		}
		// Those that were filled before are holes again as well.
		if uerr := e.eachHole(block, at+count-block, s.empty(e)); uerr != nil {
			return uerr
		}
		return fmt.Errorf("write: chunk %v: block %d: %w: %w", e.id, at, fserr.NoSpace, err)
	})
}

// empty returns what makes holes again of blocks that the table has as holes. Where the filesystem cannot, zeros stay, which read the same.
func (s *Store) empty(e *entry) func(at, count uint32) error {
	return func(at, count uint32) error {
		if err := e.img.f.PunchHole(place(at), int64(count)*chunk.BlockSize); err != nil && !cannotPunch(err) {
			return s.outcome("punch", e.id, err)
		}
		e.img.written.Add(1)
		return nil
	}
}

// eachHole calls fn for the runs of blocks that the table has as holes, each of a stage's length at most.
func (e *entry) eachHole(block, n uint32, fn func(at, count uint32) error) error {
	hole := func(b uint32) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.img.sums[b] == chunk.Hole
	}
	for at := block; at < block+n; {
		if !hole(at) {
			at++
			continue
		}
		end := at + 1
		for end < block+n && end-at < stageSize/chunk.BlockSize && hole(end) {
			end++
		}
		if err := fn(at, end-at); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// full undoes a write that met a full disk. If all of its blocks were holes they are holes again. Else, which needs a filesystem that gives room to
// what is written over, nobody can know what was there.
func (s *Store) full(e *entry, block uint32, sums []uint32, cause error) error {
	if e.holes(block, len(sums)) == int64(len(sums)) {
		err := e.img.f.PunchHole(place(block), int64(len(sums))*chunk.BlockSize)
		if err == nil {
			e.img.written.Add(1)
			return fmt.Errorf("write: chunk %v: block %d: %w: %w", e.id, block, fserr.NoSpace, cause)
		}
		if !cannotPunch(err) {
			return s.outcome("punch", e.id, err)
		}
	}
	return s.reconcile(e, block, sums, cause)
}

// reconcile finds out what a write that met a full disk has done: each block is as it was, as it was
// to be, or takes the checksum of what is there.
func (s *Store) reconcile(e *entry, block uint32, sums []uint32, cause error) error {
	st := getPage()
	defer putPage(st)
	b := st[:chunk.BlockSize]
	for i := range sums {
		at := block + uint32(i)
		if _, err := e.img.f.ReadAt(b, place(at)); err != nil {
			return s.fail("read back", e.id, err)
		}
		e.mu.Lock()
		was := e.img.sums[at]
		e.mu.Unlock()
		got := chunk.Sum(b)
		if got == was || was == chunk.Hole && chunk.IsZero(b) {
			continue
		}
		e.record(at, []uint32{got})
	}
	return fmt.Errorf("write: chunk %v: block %d: %w: %w", e.id, block, fserr.NoSpace, cause)
}
