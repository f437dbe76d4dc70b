package journal

import (
	"fmt"
	"io"

	"varve/internal/disk"
	"varve/internal/id"
)

// Reader walks the records of a journal in order. It belongs to one goroutine.
type Reader struct {
	j   *Journal
	seg *segment
	scanner
	want   id.Index // of the record that Next returns
	markAt int64    // the offset from which a mark is due
	last   []byte   // the record that Next returned; valid as long as its payload
}

// Reader returns a reader whose Next returns the record from. From may be one more than the last
// index. Errors: ErrNotFound, and a *GapError if Reset skipped that record.
func (j *Journal) Reader(from id.Index) (*Reader, error) {
	s, err := j.find(from)
	if err != nil {
		return nil, err
	}
	r := &Reader{j: j}
	if err := r.open(s, s.lastMark(func(m mark) bool { return m.index <= from })); err != nil {
		return nil, err
	}
	if err := r.skip(func(raw []byte) bool { return frameIndex(raw) >= from }); err != nil {
		r.Close()
		return nil, err
	}
	if r.off < r.end {
		return r, nil
	}
	// The segment ends here: from is the next one's first, in a hole, or missing.
	_, next, err := j.extent(s)
	switch {
	case err == nil && next != nil && next.gap():
		err = &GapError{Last: r.want - 1, Next: next.first()}
	case err == nil && r.want != from:
		err = fmt.Errorf("%s: offset %d: segment ends: want record %d, got %d as the last: %w", s.path, r.off, from, r.want-1, ErrCorrupt)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// open goes to the record at m in segment s.
func (r *Reader) open(s *segment, m mark) error {
	size, _, err := r.j.extent(s)
	if err != nil {
		return err
	}
	f, err := r.j.o.FS.Open(s.path, disk.ReadOnly)
	if err != nil {
		return err
	}
	if r.file != nil {
		r.file.Close()
	}
	r.seg, r.want, r.markAt = s, m.index, 0
	r.reset(s.path, f, m.offset, size)
	return nil
}

// skip goes on in this segment until the next record is one for which stop is true, or to its end.
func (r *Reader) skip(stop func(raw []byte) bool) error {
	for {
		raw, err := r.step()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if stop(raw) {
			r.back(raw)
			r.want--
			return nil
		}
	}
}

// step returns the next record of this segment.
func (r *Reader) step() ([]byte, error) {
	off := r.off
	raw, err := r.scanner.next()
	if err != nil {
		return nil, err
	}
	if got := frameIndex(raw); got != r.want {
		r.back(raw)
		return nil, fmt.Errorf("%s: offset %d: index: want %d, got %d: %w", r.name, off, r.want, got, ErrCorrupt)
	}
	if off >= r.markAt {
		r.markAt = r.seg.note(mark{index: r.want, offset: off, time: frameTime(raw)})
	}
	r.want++
	return raw, nil
}

// next returns the next record, from the segment that follows if it must.
func (r *Reader) next() ([]byte, error) {
	for {
		raw, err := r.step()
		if err != io.EOF {
			return raw, err
		}
		size, next, err := r.j.extent(r.seg)
		if err != nil {
			return nil, err
		}
		if size > r.end {
			r.end = size
			continue
		}
		if next == nil {
			return nil, io.EOF
		}
		last := r.want - 1
		if next.first() != r.want && !(next.gap() && next.first() > r.want) {
			return nil, fmt.Errorf("%s: first index: want %d, got %d: %w", next.path, r.want, next.first(), ErrCorrupt)
		}
		if err := r.open(next, mark{index: next.first(), offset: headerSize}); err != nil {
			return nil, err
		}
		if r.want != last+1 {
			return nil, &GapError{Last: last, Next: r.want}
		}
	}
}

// Next returns the next record; its payload is valid until the following Next. At the end it returns
// io.EOF, and a later Next succeeds if more was appended by then. At a hole it returns a *GapError
// once and then goes on behind it. Any other error stays.
func (r *Reader) Next() (Record, error) {
	raw, err := r.next()
	if err != nil {
		return Record{}, err
	}
	r.last = raw
	return frameRecord(raw), nil
}

// Position returns the position of the record that the last Next returned, which must have succeeded.
func (r *Reader) Position() Position { return framePosition(r.last) }

// Close gives back the file.
func (r *Reader) Close() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	return f.Close()
}

// FindTime returns the last index whose time is at most t. Where times step back, it returns one
// whose time is at most t while that of the next is not. It may return the index just before First or
// before a hole, where a checkpoint holds the state but the record is gone. ErrNotFound: all are later.
func (j *Journal) FindTime(t int64) (id.Index, error) {
	if err := j.failed(); err != nil {
		return 0, err
	}
	j.mu.Lock()
	segments, last := j.segments, j.last
	j.mu.Unlock()
	if last.Index > 0 && last.Time <= t {
		return last.Index, nil
	}
	for i := len(segments) - 1; i >= 0; i-- {
		if before := segments[i].header.at; before.Index == 0 || before.Time <= t {
			return j.findTimeIn(segments[i], t)
		}
	}
	return 0, fmt.Errorf("journal: time %d: %w", t, ErrNotFound)
}

// findTimeIn looks in s, before which there is nothing or a record whose time is at most t.
func (j *Journal) findTimeIn(s *segment, t int64) (id.Index, error) {
	r := &Reader{j: j}
	if err := r.open(s, s.lastMark(func(m mark) bool { return m.time <= t })); err != nil {
		return 0, err
	}
	defer r.Close()
	if err := r.skip(func(raw []byte) bool { return frameTime(raw) > t }); err != nil {
		return 0, err
	}
	found := r.want - 1
	if found == 0 {
		return 0, fmt.Errorf("journal: time %d: the first record is later: %w", t, ErrNotFound)
	}
	return found, nil
}
