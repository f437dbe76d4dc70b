package state

import (
	"bytes"
	"testing"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// evWriters is a grant that has writers noted.
func evWriters(session, ino uint64, want msg.Want) *event.Event {
	ev := evLease(session, ino, want)
	ev.GetLeaseSet().Writers = true
	return ev
}

// writerEvents is a history in which writers begin to be noted, by an event that lets nobody write.
func writerEvents() []*event.Event {
	return []*event.Event{
		evInit(), evSession(1), evSession(2), evCreate(1, 2, "a", msg.FileType_REGULAR), evCreate(1, 3, "b", msg.FileType_REGULAR),
		evLease(1, 2, msg.Want_WANT_WRITE), evWriters(1, 3, msg.Want_WANT_READ), evWriters(2, 3, msg.Want_WANT_WRITE),
		evWriters(2, 3, msg.Want_WANT_NONE), evLease(1, 3, msg.Want_WANT_WRITE), evCreate(1, 4, "c", msg.FileType_REGULAR),
		evWriters(1, 4, msg.Want_WANT_WRITE), evRemove(1, 4, "c"), evWriters(1, 4, msg.Want_WANT_NONE),
	}
}

func TestWriters(t *testing.T) {
	s := New()
	want := func(ino id.Ino, index id.Index) {
		t.Helper()
		if got := s.Writable(ino); got != index {
			t.Errorf("at %d: inode %v was let be written to at %d, want %d", s.Index(), ino, got, index)
		}
		if err := s.Check(); err != nil {
			t.Error(err)
		}
	}
	evs := writerEvents()
	play(t, s, evs[:6]...)
	want(2, 0) // an older version lets write, and nothing is known
	play(t, s, evs[6])
	want(2, 7)
	want(3, 7)
	play(t, s, evs[7])
	want(2, 7)
	want(3, 8)
	play(t, s, evs[8])
	want(3, 8) // that nobody writes any more does not undo it
	play(t, s, evs[9])
	want(3, 10) // said or not, once it began
	play(t, s, evs[10:]...)
	if n := s.writers.Len(); n != 1 {
		t.Errorf("%d writers are noted, want 1: a file that is gone is forgotten", n)
	}
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	s = again
	want(3, 10)
}

// TestWritersAreBounded: beyond maxWriters the oldest note goes, and what is then said of its file is later than what was noted.
func TestWritersAreBounded(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine, 140,000 events")
	}
	s := New()
	play(t, s, evInit(), evSession(1))
	const more = 10
	for i := range uint64(maxWriters + more) {
		s.Apply(&event.Event{Body: &event.Event_Create{Create: &event.Create{Parent: 1, Name: []byte{byte(i >> 16), byte(i >> 8), byte(i), 'x'}, Ino: i + 2,
			Type: uint32(msg.FileType_REGULAR)}}})
		s.Apply(evWriters(1, i+2, msg.Want_WANT_WRITE))
	}
	if n := s.writers.Len(); n != maxWriters {
		t.Fatalf("%d writers noted, want %d", n, maxWriters)
	}
	first, last := id.Index(4), id.Index(2+2*more) // grants have the even indexes from 4 on
	if got := s.Writable(2); got != last {
		t.Errorf("the first file: %d, want %d, the last that was forgotten (its own was %d)", got, last, first)
	}
	if got := s.Writable(more + 2); got != last+2 {
		t.Errorf("the oldest that is noted: %d, want %d", got, last+2)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}
