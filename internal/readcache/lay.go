package readcache

import (
	"varve/internal/disk"
)

const (
	// layAtOnce is how many bytes of the data file are written ahead of the slots in use. A filesystem needs ten times as long for a block that has no room
	// on the disk yet as for one that has, and what fills the cache would be dropped meanwhile.
	layAtOnce = 4 << 20
	// layPiece is how much of that goes in one write, in bytes.
	layPiece = 1 << 20
	// layJump is how far apart slots may be, in bytes, for what is between them to be written.
	layJump = 64 << 20
)

var zeros = disk.AlignedBuffer(layPiece)

// lay gives a slot room on the disk, before it is written to. Slots are taken into use in order, so the file is written a few MiB ahead of them.
func (s *store) lay(number int) error {
	end := int64(number+1) * slotBytes
	if s.laid.Load() >= end {
		return nil
	}
	s.laying.Lock()
	defer s.laying.Unlock()
	at := s.laid.Load()
	if at >= end {
		return nil
	}
	if end-at > layJump {
		s.laid.Store(end)
		return nil
	}
	size, err := s.data.Size()
	if err != nil {
		return err
	}
	// Nothing counts from at on: whoever writes there lays it first.
	for to := max(end, min(at+layAtOnce, size)); at < to; {
		n, err := s.data.WriteAt(zeros[:min(layPiece, to-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	s.laid.Store(at)
	return nil
}

// pass has what is before end be left as it is.
func (s *store) pass(end int64) {
	s.laying.Lock()
	s.laid.Store(max(s.laid.Load(), end))
	s.laying.Unlock()
}

// shorten says that the file is cut to n bytes.
func (s *store) shorten(n int64) {
	s.laying.Lock()
	s.laid.Store(min(s.laid.Load(), n))
	s.laying.Unlock()
}
