package client

import "varve/internal/chunk"

// streams finds the sequential reads among those of a file and says how far ahead of each to read. It holds no lock: its owner does.
type streams struct {
	all  [maxStreams]stream
	tick uint64
}

// stream is one sequence of reads.
type stream struct {
	next   int64 // where the next read of it should begin
	run    int64 // bytes that it has read in sequence
	reads  int   // requests that were
	ahead  int64 // up to where was read ahead
	window int64 // how far to read ahead; 0: not yet
	used   uint64
}

const (
	maxStreams = 4 // sequences in one file that are told apart
	// A sequence is one from so many bytes, or requests, on.
	streamBytes = 256 << 10
	streamReads = 8
	// aheadPiece is how much is read ahead at once, and where pieces begin.
	aheadPiece = maxPiece
	// The window doubles from one piece each time that a piece was used.
	maxWindow = 8 * aheadPiece
	// overtake is how far requests of one sequence may overtake one another, if they are no smaller than overtakeMin.
	overtake    = 4 << 20
	overtakeMin = 64 << 10
)

// read notes a read and returns what to read ahead: [from, to), empty if nothing. Both are multiples of aheadPiece, and never given out twice for
// one sequence.
func (s *streams) read(off, n int64) (from, to int64) {
	s.tick++
	end := off + n
	st := s.find(off, n)
	if st == nil {
		st = s.oldest()
		*st = stream{}
	}
	st.used = s.tick
	st.run += n
	st.reads++
	st.next = max(st.next, end)
	if st.run < streamBytes && st.reads < streamReads {
		return 0, 0
	}
	if st.window == 0 {
		st.window = aheadPiece
		st.ahead = (st.next + aheadPiece - 1) &^ (aheadPiece - 1)
	}
	from = max(st.ahead, st.next&^(aheadPiece-1))
	to = (st.next + st.window) &^ (aheadPiece - 1)
	to = min(max(to, from), chunk.MaxFileSize)
	if from >= to {
		return 0, 0
	}
	st.ahead = to
	return from, to
}

// grow notes that what was read ahead was used: up to end.
func (s *streams) grow(end int64) {
	for i := range s.all {
		st := &s.all[i]
		if st.window > 0 && st.next <= end && end <= st.ahead {
			st.window = min(2*st.window, maxWindow)
		}
	}
}

// find returns the sequence that a read belongs to, nil if to none.
func (s *streams) find(off, n int64) *stream {
	for i := range s.all {
		st := &s.all[i]
		if st.used == 0 {
			continue
		}
		if off == st.next || n >= overtakeMin && off > st.next-overtake && off < st.next+overtake {
			return st
		}
	}
	return nil
}

func (s *streams) oldest() *stream {
	old := &s.all[0]
	for i := range s.all {
		if s.all[i].used < old.used {
			old = &s.all[i]
		}
	}
	return old
}
