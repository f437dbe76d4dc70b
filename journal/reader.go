package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"varve/internal/disk"
	"varve/internal/id"
)

// Reader walks the records of a journal in order. It belongs to one goroutine.
//
// It checks the CRCs of what it reads and that indexes follow one another, but not the chain of hashes: the CRCs
// find damage, the chain finds what somebody put there, and costs several times as much. Verify checks it.
type Reader struct {
	j    *Journal
	seg  *segment
	file disk.File
	want id.Index // of the record that Next returns

	open   scanner // of a segment that is not sealed
	sealed blocks  // of one that is
	raw    []byte  // the record that open returned last
	rec    Record  // the record that Next returned last
}

// Reader returns a reader whose Next returns the record from. From may be one more than the last
// index. Errors: ErrNotFound, and a *GapError if Reset skipped that record.
func (j *Journal) Reader(from id.Index) (*Reader, error) {
	s, err := j.find(from)
	if err != nil {
		return nil, err
	}
	r := &Reader{j: j}
	if err := r.enter(s, from); err != nil {
		r.Close()
		return nil, err
	}
	found, err := r.skip(func(rec Record) bool { return rec.Index < from })
	if err != nil {
		r.Close()
		return nil, err
	}
	if found {
		return r, nil
	}
	// The segment ends here: from is the next one's first, in a hole, or missing.
	_, next, err := j.extent(r.seg)
	switch {
	case err == nil && next != nil && next.gap():
		err = &GapError{Last: r.want - 1, Next: next.first()}
	case err == nil && r.want != from:
		err = fmt.Errorf("%s: segment ends: want record %d, got %d as the last: %w", r.seg.path, from, r.want-1, ErrCorrupt)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// enter goes to a record in segment s at or before index, near it if index is in s.
func (r *Reader) enter(s *segment, index id.Index) error {
	if err := r.openSegment(s); err != nil {
		return err
	}
	return r.seek(index)
}

// openSegment opens the file of s, in which seek then goes to a record.
func (r *Reader) openSegment(s *segment) error {
	s, f, err := r.j.openFile(s)
	if err != nil {
		return err
	}
	if r.file != nil {
		r.file.Close()
	}
	r.seg, r.file = s, f
	if s.seal != nil {
		r.sealed.table, err = readTable(s, f)
	}
	return err
}

// seek goes to a record of this segment at or before index, near it if index is in it.
func (r *Reader) seek(index id.Index) error {
	s := r.seg
	if s.seal != nil {
		if err := r.sealed.reset(s.path, r.file, s.seal, index); err != nil {
			return err
		}
		r.want = r.sealed.at.Index + 1
		return nil
	}
	size, _, err := r.j.extent(s)
	if err != nil {
		return err
	}
	m := mark{index: s.first(), offset: headerSize}
	if index > m.index {
		if err := r.j.index(s, r.file); err != nil {
			return err
		}
		m = s.markOf(index)
	}
	r.want = m.index
	r.open.reset(s.path, r.file, m.offset, size)
	return nil
}

// openFile opens the file of s, or of the sealed segment that took its place meanwhile.
func (j *Journal) openFile(s *segment) (*segment, disk.File, error) {
	for {
		f, err := j.o.FS.Open(s.path, disk.ReadOnly)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return s, f, err
		}
		now, err := j.instead(s)
		if err != nil {
			return nil, nil, err
		}
		s = now
	}
}

// skip goes on in this segment while pass is true for the next record. Found says that there is one left.
func (r *Reader) skip(pass func(Record) bool) (found bool, err error) {
	for {
		rec, err := r.step()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !pass(rec) {
			if r.seg.seal != nil {
				r.sealed.back()
			} else {
				r.open.back(r.raw)
			}
			r.want--
			return true, nil
		}
	}
}

// step returns the next record of this segment.
func (r *Reader) step() (Record, error) {
	if r.seg.seal != nil {
		rec, err := r.sealed.record()
		if err == nil {
			r.want++
		}
		return rec, err
	}
	off := r.open.off
	raw, err := r.open.next()
	if err != nil {
		return Record{}, err
	}
	if got := frameIndex(raw); got != r.want {
		r.open.back(raw)
		return Record{}, fmt.Errorf("%s: offset %d: index: want %d, got %d: %w", r.open.name, off, r.want, got, ErrCorrupt)
	}
	r.raw = raw
	r.want++
	return frameRecord(raw), nil
}

// Next returns the next record; its payload is valid until the following Next. At the end it returns
// io.EOF, and a later Next succeeds if more was appended by then. At a hole it returns a *GapError
// once and then goes on behind it. ErrNotFound: Retain has dropped it meanwhile. Any other error stays.
func (r *Reader) Next() (Record, error) {
	for {
		rec, err := r.step()
		if err == nil {
			r.rec = rec
			return rec, nil
		}
		if err != io.EOF {
			return Record{}, err
		}
		if err := r.leave(); err != nil {
			return Record{}, err
		}
	}
}

// leave goes on where this segment ended: further in it if it has grown, else to the one that follows.
func (r *Reader) leave() error {
	size, next, err := r.j.extent(r.seg)
	if err != nil {
		return err
	}
	if r.seg.seal == nil && size > r.open.end {
		r.open.end = size
		return nil
	}
	if next == nil {
		return io.EOF
	}
	last := r.want - 1
	if first := r.j.First(); first > r.want && !next.gap() {
		return fmt.Errorf("journal: record %d was dropped meanwhile, the first one left is %d: %w", r.want, first, ErrNotFound)
	}
	if next.first() != r.want && !(next.gap() && next.first() > r.want) {
		return fmt.Errorf("%s: first index: want %d, got %d: %w", next.path, r.want, next.first(), ErrCorrupt)
	}
	if err := r.enter(next, next.first()); err != nil {
		return err
	}
	if r.want != last+1 {
		return &GapError{Last: last, Next: r.want}
	}
	return nil
}

// Position returns the position of the record that the last Next returned, which must have succeeded. In a sealed
// segment it computes the chain hashes of all records since the last call, from the start of the block at most.
func (r *Reader) Position() Position {
	if r.seg.seal != nil {
		return r.sealed.position()
	}
	return framePosition(r.raw)
}

// encoded returns the record that the last Next returned as ReadRaw gives it.
func (r *Reader) encoded() []byte {
	if r.seg.seal != nil {
		return r.sealed.encoded(&r.rec)
	}
	return r.raw
}

// Close gives back the file.
func (r *Reader) Close() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	return f.Close()
}
