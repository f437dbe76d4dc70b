package store

import (
	"fmt"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// Around is what is to be done while the blocks of a change are locked.
type Around struct {
	// Before is called before the change, which is not made if it returns an error.
	Before func(*Held) error
	// After is called with how the change ended. What it returns is how it ends for the caller.
	After func(*Held, error) error
}

// follow returns what calls then after a change that succeeds.
func follow(then func() error) Around {
	if then == nil {
		return Around{}
	}
	return Around{After: func(_ *Held, err error) error {
		if err != nil {
			return err
		}
		return then()
	}}
}

// Held is blocks that are locked, for as long as the call lasts that was given it.
type Held struct {
	s          *Store
	e          *entry
	first, end uint32
}

// Hold calls fn while the blocks of [from, to) are locked as for a change, if they can be read at the epoch.
func (s *Store) Hold(c id.ChunkID, epoch id.Epoch, from, to uint32, fn func(*Held) error) error {
	if from >= to || to > chunk.Size {
		return fmt.Errorf("chunk %v: hold from %d to %d: %w", c, from, to, fserr.Invalid)
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
	first, end := from/chunk.BlockSize, (to-1)/chunk.BlockSize+1
	t := e.lock(first, end, true)
	defer e.unlock(t)
	return fn(&Held{s: s, e: e, first: first, end: end})
}

// Run returns how many blocks from block on, limit at most, are all holes, or all not, and lie in what is held.
func (h *Held) Run(block, limit uint32) (n uint32, hole bool) {
	if block < h.first || block >= h.end {
		return 0, false
	}
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	sums := h.e.img.sums[block:min(h.end, block+limit)]
	hole = sums[0] == chunk.Hole
	for n < uint32(len(sums)) && (sums[n] == chunk.Hole) == hole {
		n++
	}
	return n, hole
}

// Read fills dst, which starts at a multiple of 4096, with blocks that are held, and sums with their checksums. All are verified.
func (h *Held) Read(block uint32, dst []byte, sums []uint32) error {
	n := uint32(len(sums))
	if block < h.first || block+n > h.end || len(dst) != len(sums)*chunk.BlockSize {
		return fmt.Errorf("chunk %v: read of %d blocks at %d, of which [%d, %d) are held: %w", h.e.id, n, block, h.first, h.end, fserr.Invalid)
	}
	h.e.mu.Lock()
	copy(sums, h.e.img.sums[block:])
	h.e.mu.Unlock()
	return h.s.get(h.e, block, dst, sums)
}
