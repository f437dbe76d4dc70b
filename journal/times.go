package journal

import (
	"fmt"
	"io"
	"slices"

	"varve/internal/id"
)

// Times are what the clock of the leader said, and clocks are set back at times. The answers below are exact all the
// same, since each segment, block and mark carries the lowest and the highest time in it: a part that may hold the
// answer is read, no other, and the first one read mostly does.

// FindTime returns the index of the last record whose time is at most t, that is the newest state that was current
// at t. Where the clock was set back, records before that one may be later than t, and none behind it is at most t. It may return the
// index just before First or before a hole, where a checkpoint holds the state but the record is gone. ErrNotFound: all are later.
func (j *Journal) FindTime(t int64) (id.Index, error) {
	segments, last, err := j.all()
	if err != nil {
		return 0, err
	}
	if last.Index > 0 && last.Time <= t {
		return last.Index, nil
	}
	r := &Reader{j: j}
	defer r.Close()
	for _, s := range slices.Backward(segments) {
		if s.seal == nil || s.seal.times.low <= t {
			parts, err := r.parts(s)
			if err != nil {
				return 0, err
			}
			for i, p := range slices.Backward(parts) {
				if p.times.low > t {
					continue
				}
				found := id.Index(0)
				err := r.scan(parts, i, func(rec Record) bool {
					if rec.Time <= t {
						found = rec.Index
					}
					return true
				})
				if err != nil || found != 0 {
					return found, err
				}
			}
		}
		if at := s.header.at; at.Index > 0 && at.Time <= t {
			return at.Index, nil
		}
	}
	return 0, fmt.Errorf("journal: time %d: the first record is later: %w", t, ErrNotFound)
}

// FindTimeFrom returns the index of the first record whose time is at least t. Where the clock was set back, records
// behind that one may be earlier than t, and none before it is at least t. ErrNotFound: all that are there are earlier.
func (j *Journal) FindTimeFrom(t int64) (id.Index, error) {
	segments, _, err := j.all()
	if err != nil {
		return 0, err
	}
	r := &Reader{j: j}
	defer r.Close()
	for _, s := range segments {
		if s.seal != nil && s.seal.times.high < t {
			continue
		}
		parts, err := r.parts(s)
		if err != nil {
			return 0, err
		}
		for i, p := range parts {
			if p.times.high < t {
				continue
			}
			found := id.Index(0)
			err := r.scan(parts, i, func(rec Record) bool {
				if rec.Time < t {
					return true
				}
				found = rec.Index
				return false
			})
			if err != nil || found != 0 {
				return found, err
			}
		}
	}
	return 0, fmt.Errorf("journal: time %d: the last record is earlier: %w", t, ErrNotFound)
}

// all returns the segments and the last position as they are now.
func (j *Journal) all() ([]*segment, Position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segments, j.last, j.err
}

// part is a run of records in a segment, which can be read without those before it.
type part struct {
	first id.Index
	times span
}

// parts opens segment s and returns the runs that it consists of.
func (r *Reader) parts(s *segment) ([]part, error) {
	if err := r.openSegment(s); err != nil {
		return nil, err
	}
	var all []part
	if s = r.seg; s.seal != nil {
		for i := range r.sealed.table {
			x := &r.sealed.table[i]
			all = append(all, part{x.at.Index + 1, x.times})
		}
		return all, nil
	}
	if err := r.j.index(s, r.file); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.marks {
		all = append(all, part{m.index, m.times})
	}
	return all, nil
}

// scan calls fn for the records of parts[i] of the segment that is open, until it returns false.
func (r *Reader) scan(parts []part, i int, fn func(Record) bool) error {
	if err := r.seek(parts[i].first); err != nil {
		return err
	}
	for i == len(parts)-1 || r.want < parts[i+1].first {
		rec, err := r.step()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !fn(rec) {
			return nil
		}
	}
	return nil
}
