package store

import (
	"fmt"

	"varve/cs/repl"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
)

// Shared is a chunk that a reader on this host may read by itself, while the slot lives.
type Shared struct {
	File disk.Descriptor // opened for reading only; the caller closes it
	Slot *local.Slot
	Base int64 // where the data begins in the file
}

// Share shows a chunk on the board, to whoever could read it at the epoch. NotSupported if there is no board, or the file can not be read
// by its descriptor alone; NoSpace if the board is full.
//
// The slot ends before the replica changes its epoch or state, is deleted, or is put out of memory; and with the store. Blocks
// that are locked for writing are marked on it from before they change until all that is done under the lock has ended, so a
// reader on the board never sees what a Read would have waited for.
func (s *Store) Share(c id.ChunkID, epoch id.Epoch) (Shared, error) {
	if s.o.Board == nil {
		return Shared{}, fmt.Errorf("chunk %v: local readers are not served: %w", c, fserr.NotSupported)
	}
	if err := s.begin(); err != nil {
		return Shared{}, err
	}
	defer s.end()
	e, _, err := s.enter(c, repl.Input{Kind: repl.Read, Epoch: epoch})
	if err != nil {
		return Shared{}, err
	}
	defer e.gate.RUnlock()
	if e.bad.Load() > 0 {
		return Shared{}, fmt.Errorf("chunk %v: it has bad blocks: %w", c, fserr.NotSupported)
	}
	// The file under this name is the image's: it is only replaced with the gate held exclusively.
	f, err := s.openFile(s.pathOf(c), disk.ReadOnly)
	if err != nil {
		return Shared{}, fmt.Errorf("share: chunk %v: %w: %w", c, fserr.IO, err)
	}
	d, ok := f.(disk.Descriptor)
	if !ok {
		f.Close()
		return Shared{}, fmt.Errorf("chunk %v: its file has no descriptor to pass: %w", c, fserr.NotSupported)
	}
	slot, err := e.share(s.o.Board)
	if err != nil {
		f.Close()
		return Shared{}, fmt.Errorf("share: chunk %v: %w", c, err)
	}
	return Shared{File: d, Slot: slot, Base: dataOffset}, nil
}

// share returns the slot of a chunk. Preconditions: the gate is held.
func (e *entry) share(b *local.Board) (*local.Slot, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	im := e.img
	if im.slot != nil && im.slot.Live() {
		return im.slot, nil
	}
	if e.bad.Load() > 0 {
		return nil, fserr.NotSupported
	}
	slot, err := b.Take(im.sums[:], func(mark func(first, end uint32)) {
		for _, h := range im.held {
			if h.exclusive && !im.blocked(h.ticket) {
				mark(h.first, h.end)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	im.slot = slot
	return slot, nil
}

// announce follows the taking of a lock. Preconditions: entry.mu is held.
func (im *image) announce(first, end uint32, exclusive bool) {
	if exclusive && im.slot != nil {
		im.slot.Begin(first, end)
	}
}

// conclude precedes the end of a lock. Preconditions: entry.mu is held.
func (im *image) conclude(h hold) {
	if h.exclusive && im.slot != nil {
		im.slot.End(h.first, im.sums[h.first:h.end])
	}
}

// unshare ends the slot of a chunk. Preconditions: the gate is held exclusively.
func (e *entry) unshare() {
	if e.img == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.img.slot != nil {
		e.img.slot.Revoke()
		e.img.slot = nil
	}
}

// stopSharing ends everything on the board, for good.
func (s *Store) stopSharing() {
	if s.o.Board != nil {
		s.o.Board.Stop()
	}
}
