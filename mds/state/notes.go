package state

import (
	"fmt"

	"varve/internal/id"
)

// note is what is known of few chunks or inodes, so that the records of all others need no room for it.
type note struct {
	what  uint8
	key   uint64
	value uint64
}

const (
	noteLost    uint8 = 1 // chunk -> epoch: what was written before it and not flushed may be gone
	notePuncher uint8 = 2 // inode with a pending punch -> the session that owes it
	lastNote          = notePuncher
)

func lessNote(a, b note) bool { return a.what < b.what || a.what == b.what && a.key < b.key }

// Lost returns the epoch before which writes to the chunk that were not flushed may be gone, since all who had them lost power; 0 if
// that never happened.
func (s *State) Lost(c id.ChunkID) id.Epoch { return id.Epoch(s.noted(noteLost, uint64(c))) }

// Puncher returns the session that is to punch the tail that a truncate left, 0 if it is not known or nothing is left.
func (s *State) Puncher(ino id.Ino) id.SessionID {
	return id.SessionID(s.noted(notePuncher, uint64(ino)))
}

func (s *State) noted(what uint8, key uint64) uint64 {
	if s.notes.Len() == 0 {
		return 0
	}
	n, _ := s.notes.Get(note{what: what, key: key})
	return n.value
}

func (s *State) putNote(n note) {
	s.dropNote(n.what, n.key)
	s.notes.ReplaceOrInsert(n)
	if s.counted() {
		s.plus(sumNote(s.scratch, n))
	}
}

func (s *State) dropNote(what uint8, key uint64) {
	if s.notes.Len() == 0 {
		return
	}
	if old, ok := s.notes.Delete(note{what: what, key: key}); ok && s.counted() {
		s.minus(sumNote(s.scratch, old))
	}
}

func sumNote(b []byte, n note) []byte {
	return words(b[:0], kindNote, uint64(n.what), n.key, n.value)
}

func (e *encoder) note(n note) bool {
	if e.w != nil {
		e.count(sumNote(e.rec, n))
	}
	e.kind(kindNote)
	e.u(uint64(n.what))
	e.u(n.key)
	e.u(n.value)
	return e.end()
}

func noteText(n note) (key, value string) {
	if n.what == noteLost {
		return "about chunk " + id.ChunkID(n.key).String(), fmt.Sprintf("writes before epoch %d may be lost", n.value)
	}
	return fmt.Sprintf("about inode %d", n.key), fmt.Sprintf("session %d punches its tail", n.value)
}
