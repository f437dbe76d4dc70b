package journal

import (
	"errors"
	"fmt"
	"io"

	"varve/internal/id"
)

// ReadRaw returns encoded records from index from on, for DecodeRaw elsewhere, and the index to ask for
// next. It returns at most maxBytes, but a whole record if there is any; none at the end of the
// journal. It stops before a hole; asked for a record in one, it returns a *GapError.
func (j *Journal) ReadRaw(from id.Index, maxBytes int) (data []byte, next id.Index, err error) {
	r, err := j.Reader(from)
	if err != nil {
		return nil, from, err
	}
	defer r.Close()
	for next = from; ; next++ {
		_, err := r.Next()
		var gap *GapError
		if err == io.EOF || (next > from && errors.As(err, &gap)) {
			return data, next, nil
		}
		if err != nil {
			return nil, from, err
		}
		raw := r.encoded()
		if len(data) > 0 && len(data)+len(raw) > maxBytes {
			return data, next, nil
		}
		data = append(data, raw...)
	}
}

// DecodeRaw calls fn for each record that ReadRaw put into data, in order, and returns fn's error if
// it has one. A payload is part of data. It checks each record, and that each follows the one before in
// index and chain hash. Fn has seen the records before the one that is wrong.
func DecodeRaw(data []byte, fn func(Record) error) error {
	const name = "encoded records"
	c := newChainer()
	var at Position
	for off := 0; off < len(data); {
		if left := len(data) - off; left < recOverhead {
			return fmt.Errorf("%s: offset %d: record: want %d bytes, got %d: %w", name, off, recOverhead, left, ErrCorrupt)
		}
		size, err := frameSize(name, int64(off), data[off:])
		if err != nil {
			return err
		}
		if left := len(data) - off; left < size {
			return fmt.Errorf("%s: offset %d: record: want %d bytes, got %d: %w", name, off, size, left, ErrCorrupt)
		}
		raw := data[off : off+size : off+size]
		if err := checkFrame(name, int64(off), raw); err != nil {
			return err
		}
		if off == 0 {
			at = framePosition(raw)
		} else if at, err = c.follow(name, int64(off), at, raw); err != nil {
			return err
		}
		if err := fn(frameRecord(raw)); err != nil {
			return err
		}
		off += size
	}
	return nil
}
