package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"varve/internal/disk"
	"varve/internal/id"
)

// scanner reads the records of one segment in order, with large reads.
type scanner struct {
	name string // for errors
	file disk.File
	off  int64 // in the file, of the record that next returns
	end  int64 // nothing at or after it is read
	buf  []byte
	pos  int // of the record in buf
	n    int // bytes in buf
}

// reset starts at offset off of file, reusing the buffer.
func (s *scanner) reset(name string, file disk.File, off, end int64) {
	s.name, s.file, s.off, s.end, s.pos, s.n = name, file, off, end, 0, 0
}

// next returns the next record, checked by itself but not against the one before. It is valid until
// the next call. At end it returns io.EOF; after an error the scanner stays where it is.
func (s *scanner) next() ([]byte, error) {
	if s.off == s.end {
		return nil, io.EOF
	}
	if s.n-s.pos < recHeader {
		if err := s.fill(recHeader); err != nil {
			return nil, err
		}
	}
	size, err := frameSize(s.name, s.off, s.buf[s.pos:s.n])
	if err != nil {
		return nil, err
	}
	if s.n-s.pos < size {
		if err := s.fill(size); err != nil {
			return nil, err
		}
	}
	raw := s.buf[s.pos : s.pos+size : s.pos+size]
	if err := checkFrame(s.name, s.off, raw); err != nil {
		return nil, err
	}
	s.pos += size
	s.off += int64(size)
	return raw, nil
}

// back makes next return raw, which it just returned, again.
func (s *scanner) back(raw []byte) {
	s.pos -= len(raw)
	s.off -= int64(len(raw))
}

// fill reads until the buffer holds want bytes of the record at off. Want is at most maxRecord.
func (s *scanner) fill(want int) error {
	if left := s.end - s.off; left < int64(want) {
		return fmt.Errorf("%s: offset %d: record: want %d bytes, got %d: %w", s.name, s.off, want, left, ErrCorrupt)
	}
	// A reader that follows the end of the journal needs no large buffer.
	size := int(min(int64(max(want, readBuffer)), s.end-s.off))
	to := s.buf
	if len(to) < size {
		to = make([]byte, size)
	}
	have := copy(to, s.buf[s.pos:s.n])
	s.buf, s.pos, s.n = to, 0, have
	limit := int(min(int64(len(s.buf)), s.end-s.off))
	n, err := s.file.ReadAt(s.buf[have:limit], s.off+int64(have))
	s.n += n
	if s.n >= want {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: offset %d: file ends: want %d bytes, got %d: %w", s.name, s.off, want, s.n, ErrCorrupt)
	}
	return fmt.Errorf("%s: read at offset %d: %w", s.name, s.off, err)
}

// follow checks that raw is the record after at and returns the position behind it.
func (c *chainer) follow(name string, off int64, at Position, raw []byte) (Position, error) {
	if got := frameIndex(raw); got != at.Index+1 {
		return at, fmt.Errorf("%s: offset %d: index: want %d, got %d: %w", name, off, at.Index+1, got, ErrCorrupt)
	}
	if want, got := c.next(at.Chain, frameBody(raw)), frameChain(raw); want != got {
		return at, fmt.Errorf("%s: offset %d: chain hash of record %d: want %x, got %x: %w", name, off, at.Index+1, want, got, ErrCorrupt)
	}
	return framePosition(raw), nil
}

// stableWindow is how much of a segment wasStable reads at once.
const stableWindow = 1 << 20

// wasStable looks behind the damaged record at off, whose index should be index, for a record that
// says that it was on stable media. It reads the rest of the segment, and what looks like a record but is none so often that its
// checksums would cost more than a few readings of the rest, it takes for damage.
func wasStable(name string, f disk.File, off, end int64, index id.Index) (bool, error) {
	most := uint64(index) + uint64(end-off)/recOverhead // no later record can have a higher index
	budget := 8 * (end - off + stableWindow)
	var b, raw []byte
	for at := off + 1; at+recOverhead <= end; at += stableWindow {
		n := int(min(stableWindow+recHeader, end-at))
		if len(b) < n {
			b = make([]byte, n)
		}
		if err := readFull(name, f, b[:n], at); err != nil {
			return false, err
		}
		for i := 0; i+recHeader <= n && i < stableWindow; i++ {
			got := binary.LittleEndian.Uint64(b[i+8:])
			if got <= uint64(index) || got > most {
				continue
			}
			size, err := frameSize(name, 0, b[i:])
			if err != nil || at+int64(i+size) > end {
				continue
			}
			if budget -= int64(size); budget < 0 {
				return true, nil
			}
			if cap(raw) < size {
				raw = make([]byte, size)
			}
			raw = raw[:size]
			if err := readFull(name, f, raw, at+int64(i)); err != nil {
				return false, err
			}
			if checkFrame(name, 0, raw) == nil && frameStable(raw) > off {
				return true, nil
			}
		}
	}
	return false, nil
}

// readFull reads len(b) bytes at off, which are there.
func readFull(name string, f disk.File, b []byte, off int64) error {
	if n, err := f.ReadAt(b, off); n < len(b) {
		return fmt.Errorf("%s: read at offset %d: %w", name, off, err)
	}
	return nil
}
