package store

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"varve/cs/repl"
	"varve/internal/fserr"
	"varve/internal/id"
)

// change steps the replica durably, with every other operation on the chunk at an end.
func (s *Store) change(e *entry, in repl.Input) error {
	e.gate.Lock()
	defer e.gate.Unlock()
	if e.gone {
		return fmt.Errorf("chunk %v: %w", e.id, fserr.NoChunk)
	}
	if e.corrupt && in.Kind == repl.Join {
		if err := s.remake(e, in); err != nil {
			return err
		}
	}
	if e.stuck.Load() && e.known && !e.corrupt && in.Kind == repl.Join {
		return s.renew(e, in)
	}
	if err := s.load(e); err != nil {
		return err
	}
	next, v := e.rep.Step(in)
	if v != repl.Persist {
		return refuse(e, in, v)
	}
	e.unshare()
	if err := s.writeHeader(e, next.Record()); err != nil {
		return err
	}
	if err := e.img.f.Sync(); err != nil {
		return s.fail("sync", e.id, err)
	}
	if e.rep.State != next.State {
		s.o.Logger.Info("replica changes state", "chunk", e.id, "epoch", next.Epoch, "from", e.rep.State, "to", next.State)
	}
	e.rep = next
	return nil
}

// remake replaces a file without a valid header by an empty one that joins.
func (s *Store) remake(e *entry, in repl.Input) error {
	next, v := e.rep.Step(in)
	if v != repl.Persist {
		return refuse(e, in, v)
	}
	if err := s.index.made(e.id); err != nil {
		return s.fail("write index", e.id, err)
	}
	if err := s.make(e.id, next.Record()); err != nil {
		return err
	}
	e.rec = next.Record()
	if err := s.pardon(e); err != nil {
		return err
	}
	e.corrupt, e.rep = false, next
	s.headless.Delete(e.id)
	s.recount(e)
	return nil
}

// Adopt raises the epoch of a serving replica, durably.
func (s *Store) Adopt(c id.ChunkID, epoch id.Epoch) error {
	return s.transit(c, repl.Input{Kind: repl.Adopt, Epoch: epoch})
}

// Promote makes a joining replica of the same epoch serve, durably.
func (s *Store) Promote(c id.ChunkID, epoch id.Epoch) error {
	return s.transit(c, repl.Input{Kind: repl.Promote, Epoch: epoch})
}

// Accept makes an unclean replica serve with what is on its disk, durably.
func (s *Store) Accept(c id.ChunkID) error { return s.AcceptAt(c, 0) }

// AcceptAt is Accept at an epoch, which the replica has from then on; 0: the one that it has.
func (s *Store) AcceptAt(c id.ChunkID, epoch id.Epoch) error {
	return s.transit(c, repl.Input{Kind: repl.Accept, Epoch: epoch})
}

// Complete notes, durably, that the rebuild of a joining replica has copied and flushed all, so that it is not lost if the server dies before
// it hears of its promotion.
func (s *Store) Complete(c id.ChunkID, epoch id.Epoch) error {
	return s.transit(c, repl.Input{Kind: repl.Complete, Epoch: epoch})
}

// Join makes the replica joining at a higher epoch, durably. A chunk that is not there is made.
// Every block written from then on is noted as fresh.
func (s *Store) Join(c id.ChunkID, epoch id.Epoch) error {
	in := repl.Input{Kind: repl.Join, Epoch: epoch}
	if s.find(c) == nil {
		if err := s.begin(); err != nil {
			return err
		}
		next, v := repl.Replica{State: repl.Lost}.Step(in)
		err := refuse(&entry{id: c}, in, v)
		if err == nil {
			err = s.add(c, next)
		}
		s.end()
		if err == nil || fserr.Of(err) != fserr.Exist {
			return err
		}
	}
	return s.transit(c, in)
}

func (s *Store) transit(c id.ChunkID, in repl.Input) error {
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	e := s.find(c)
	if e == nil {
		return fmt.Errorf("chunk %v: %w", c, fserr.NoChunk)
	}
	if err := s.admit(c, in); err != nil && !(in.Kind == repl.Join && fserr.Of(err) == fserr.IO) {
		return err
	}
	return s.change(e, in)
}

// Create makes an empty chunk that serves, durably. It does nothing if the chunk is there and serves
// at the same epoch; else the answer is Exist.
func (s *Store) Create(c id.ChunkID, epoch id.Epoch) error {
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	if c == 0 {
		return fmt.Errorf("chunk %v: %w", c, fserr.Invalid)
	}
	for {
		e := s.find(c)
		if e == nil {
			if err := s.add(c, repl.New(epoch)); err == nil || fserr.Of(err) != fserr.Exist {
				return err
			}
			continue
		}
		e.gate.RLock()
		known, gone, rep := e.known, e.gone, e.rep
		e.gate.RUnlock()
		switch {
		case gone:
		case !known:
			if err := s.peek(e); err != nil {
				return err
			}
		case rep.Epoch == epoch && rep.State == repl.Serving:
			return nil
		default:
			return fmt.Errorf("chunk %v is %v at epoch %v, not %v: %w", c, rep.State, rep.Epoch, epoch, fserr.Exist)
		}
	}
}

// add makes the file and the entry of a chunk. Exist if there is one by now, NoSpace if the disk is full but for the reserve.
func (s *Store) add(c id.ChunkID, rep repl.Replica) error {
	if err := s.allot(dataOffset); err != nil {
		return fmt.Errorf("create: chunk %v: %w", c, err)
	}
	e := &entry{id: c, known: true, rep: rep}
	e.gate.Lock()
	defer e.gate.Unlock()
	s.mu.Lock()
	if s.chunks[c] != nil {
		s.mu.Unlock()
		return fmt.Errorf("chunk %v: %w", c, fserr.Exist)
	}
	s.chunks[c] = e
	i, _ := slices.BinarySearch(s.ids, c)
	s.ids = slices.Insert(s.ids, i, c)
	s.mu.Unlock()
	if err := s.index.made(c); err != nil {
		s.drop(e)
		return s.fail("write index", c, err)
	}
	e.rec = rep.Record()
	if err := s.make(c, e.rec); err != nil {
		s.drop(e)
		return err
	}
	s.recount(e)
	return nil
}

// drop takes an entry out of the store. Preconditions: its gate is held exclusively.
func (s *Store) drop(e *entry) {
	e.gone = true
	s.uncount(e)
	s.index.changed()
	s.headless.Delete(e.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.chunks, e.id)
	if i, ok := slices.BinarySearch(s.ids, e.id); ok {
		s.ids = slices.Delete(s.ids, i, i+1)
	}
}

// Delete removes a chunk, durably. It is not an error if the chunk is not there.
func (s *Store) Delete(c id.ChunkID) error {
	_, err := s.DeleteUpTo(c, 0)
	return err
}

// DeleteUpTo is Delete, unless upTo is above 0 and the chunk has a higher epoch: then it stays. One whose header cannot be read, and which is of no use
// therefore, goes. stays reports whether it may still be there.
func (s *Store) DeleteUpTo(c id.ChunkID, upTo id.Epoch) (stays bool, err error) {
	if err := s.begin(); err != nil {
		return true, err
	}
	defer s.end()
	e := s.find(c)
	if e == nil {
		return false, nil
	}
	if upTo > 0 {
		if err := s.peek(e); err != nil && !e.unreadable() {
			return true, err
		}
	}
	e.gate.Lock()
	defer e.gate.Unlock()
	switch {
	case e.gone:
		return false, nil
	case upTo > 0 && !e.corrupt && e.rep.Epoch > upTo:
		return true, nil
	}
	e.unshare()
	if err := s.o.FS.Remove(s.pathOf(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true, s.fail("remove", c, err)
	}
	if err := s.o.FS.SyncDir(s.dirOf(c)); err != nil {
		return true, s.fail("sync directory", c, err)
	}
	if err := s.pardon(e); err != nil {
		return true, err
	}
	if e.img != nil {
		s.forget(e)
		s.closeImage(e)
	}
	if e.marked != 0 {
		s.log.unmark(c, e.marked)
		s.quieted(e)
	}
	s.drop(e)
	return false, s.failure()
}

// unreadable reports whether the chunk has no valid header.
func (e *entry) unreadable() bool {
	e.gate.RLock()
	defer e.gate.RUnlock()
	return e.corrupt
}
