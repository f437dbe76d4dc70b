package state

import (
	"fmt"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// note is what is known of few chunks, inodes or chunk servers, so that the records of all others need no room for it.
type note struct {
	what  uint8
	key   uint64
	value uint64
}

const (
	noteLost    uint8 = 1 // chunk -> epoch: what was written before it and not flushed may be gone
	notePuncher uint8 = 2 // inode with a pending punch -> the session that owes it
	noteWriter  uint8 = 3 // inode -> the event that let a session write to it last
	noteSince   uint8 = 4 // 0 -> for inodes without such a note, an event after which no session was let
	noteMode    uint8 = 5 // chunk server -> ns, since when it is used as it is
	noteUntil   uint8 = 6 // chunk server on standby -> ns, until when
	lastNote          = noteUntil
)

// maxWriters bounds the notes of writers. Beyond it the oldest goes, and counts for all that have none.
const maxWriters = 1 << 16

// granted is a note of a writer by its age.
type granted struct {
	index id.Index
	ino   id.Ino
}

func lessGranted(a, b granted) bool {
	return a.index < b.index || a.index == b.index && a.ino < b.ino
}

// Writable returns the index of an event after which no session was given the right to write to the file. It is that of the last that
// was, or a later one if that is not known any more; 0: nothing is known. That a file was made for writing does not count, since there is
// nothing of it to remember.
func (s *State) Writable(ino id.Ino) id.Index {
	if v := s.noted(noteWriter, uint64(ino)); v != 0 {
		return id.Index(v)
	}
	return id.Index(s.noted(noteSince, 0))
}

// noteWriters notes who was let write by ev. Before the first event that says so, nobody is noted, as when there were no such notes.
func (s *State) noteWriters(b *event.LeaseSet) {
	if s.noted(noteSince, 0) == 0 {
		if !b.Writers {
			return
		}
		s.putNote(note{what: noteSince, value: uint64(s.index)})
	}
	for _, e := range b.Entries {
		if msg.Want(e.Want) == msg.Want_WANT_WRITE {
			s.putNote(note{what: noteWriter, key: e.Ino, value: uint64(s.index)})
		}
	}
	for s.writers.Len() > maxWriters {
		oldest := s.oldestWriter()
		s.dropNote(noteWriter, uint64(oldest.ino))
		s.putNote(note{what: noteSince, value: uint64(oldest.index)})
	}
}

func lessNote(a, b note) bool { return a.what < b.what || a.what == b.what && a.key < b.key }

// Lost returns the epoch before which writes to the chunk that were not flushed may be gone, since all who had them lost power; 0 if
// that never happened.
func (s *State) Lost(c id.ChunkID) id.Epoch { return id.Epoch(s.noted(noteLost, uint64(c))) }

// Puncher returns the session that is to punch the tail that a truncate left, 0 if it is not known or nothing is left.
func (s *State) Puncher(ino id.Ino) id.SessionID {
	return id.SessionID(s.noted(notePuncher, uint64(ino)))
}

// ModeSince returns since when, by the clock of the leader that decided it, a chunk server is used as its mode says, in ns; 0 if that is not known,
// or it was never used otherwise.
func (s *State) ModeSince(server id.ServerID) int64 { return int64(s.noted(noteMode, uint64(server))) }

// StandbyUntil returns when, by that clock, the server's time on standby ends; 0 if it has no end.
func (s *State) StandbyUntil(server id.ServerID) int64 {
	return int64(s.noted(noteUntil, uint64(server)))
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
	s.indexNote(n)
	if s.counted() {
		s.plus(sumNote(s.scratch, n))
	}
}

func (s *State) dropNote(what uint8, key uint64) {
	if s.notes.Len() == 0 {
		return
	}
	old, ok := s.notes.Delete(note{what: what, key: key})
	if !ok {
		return
	}
	if what == noteWriter {
		s.writers.Delete(granted{id.Index(old.value), id.Ino(key)})
	}
	if s.counted() {
		s.minus(sumNote(s.scratch, old))
	}
}

func (s *State) oldestWriter() (g granted) {
	s.writers.Ascend(func(v granted) bool {
		g = v
		return false
	})
	return g
}

// indexNote keeps the writers by age.
func (s *State) indexNote(n note) {
	if n.what == noteWriter {
		s.writers.ReplaceOrInsert(granted{id.Index(n.value), id.Ino(n.key)})
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
	switch n.what {
	case noteLost:
		return "about chunk " + id.ChunkID(n.key).String(), fmt.Sprintf("writes before epoch %d may be lost", n.value)
	case noteWriter:
		return fmt.Sprintf("about inode %d", n.key), fmt.Sprintf("a session was let write at index %d", n.value)
	case noteSince:
		return "about writers", fmt.Sprintf("those up to index %d are not known", n.value)
	case noteMode:
		return "about " + id.ServerID(n.key).String(), fmt.Sprintf("used as it is since %d", n.value)
	case noteUntil:
		return "about " + id.ServerID(n.key).String(), fmt.Sprintf("on standby until %d", n.value)
	}
	return fmt.Sprintf("about inode %d", n.key), fmt.Sprintf("session %d punches its tail", n.value)
}
