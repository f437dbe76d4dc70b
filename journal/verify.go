package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"

	"varve/internal/disk"
	"varve/internal/id"
)

// verifyStep is how many records Verify reads between two calls of progress.
const verifyStep = 1 << 16

// Report is what Verify found.
type Report struct {
	Records     uint64
	First, Last id.Index // zero if there are no records
	Segments    int
	Checkpoints int
	Bytes       int64 // of segments
	Gaps        int   // holes that Reset left
	Torn        int64 // bytes at the end of the last segment that recovery would cut off
}

// Verify reads all segments and checkpoints of a journal that is not open for writing, and changes
// nothing. It checks every CRC, the chain of hashes, that indexes follow one another, and that
// checkpoints stand where the journal was. Progress, if not nil, is called now and then with the index
// reached. With an error the report says how far it came.
func Verify(o Options, progress func(id.Index)) (Report, error) {
	var rep Report
	o.ReadOnly = true
	o, err := o.withDefaults()
	if err != nil {
		return rep, err
	}
	l, err := list(&o)
	if err != nil {
		return rep, err
	}
	if len(l.segments) == 0 {
		return rep, fmt.Errorf("%s: no segments: %w", o.Dir, ErrNotFound)
	}
	v := &verifier{o: &o, rep: &rep, chain: newChainer(), progress: progress}
	for _, index := range l.checkpoints {
		at, err := verifyCheckpoint(&o, index)
		if err != nil {
			return rep, err
		}
		v.checkpoints = append(v.checkpoints, at)
		rep.Checkpoints++
	}
	for i, first := range l.segments {
		if err := v.segment(first, i == len(l.segments)-1); err != nil {
			return rep, err
		}
	}
	if progress != nil {
		progress(v.at.Index)
	}
	return rep, v.checkNewest()
}

type verifier struct {
	o           *Options
	rep         *Report
	chain       *chainer
	at          Position
	checkpoints []Position // ascending
	progress    func(id.Index)
	scanner     scanner
}

// segment verifies one segment, which begins after v.at.
func (v *verifier) segment(first id.Index, last bool) error {
	s, err := readSegment(v.o, first)
	if err != nil {
		return err
	}
	at := s.header.at
	switch {
	case v.rep.Segments == 0: // what was before it is gone
	case s.gap() && at.Index > v.at.Index:
		v.rep.Gaps++
	case at != v.at:
		return fmt.Errorf("%s: offset 32: position of the record before: want %+v, got %+v: %w", s.path, v.at, at, ErrCorrupt)
	}
	if v.rep.Segments == 0 && s.gap() && at.Index > 0 {
		v.rep.Gaps++
	}
	v.rep.Segments++
	v.rep.Bytes += s.size
	v.at = at
	if err := v.checkpoint(s.path); err != nil {
		return err
	}
	f, err := v.o.FS.Open(s.path, disk.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	end := s.size
	if last {
		var torn error
		if _, end, torn, err = scanLast(s, f, nil); err != nil {
			return err
		}
		if torn != nil {
			v.rep.Torn = s.size - end
		}
	}
	v.scanner.reset(s.path, f, headerSize, end)
	return v.records(s.path)
}

// records verifies what v.scanner reads.
func (v *verifier) records(name string) error {
	for {
		off := v.scanner.off
		raw, err := v.scanner.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if v.at, err = v.chain.follow(name, off, v.at, raw); err != nil {
			return err
		}
		if v.rep.Records == 0 {
			v.rep.First = v.at.Index
		}
		v.rep.Records++
		v.rep.Last = v.at.Index
		if err := v.checkpoint(name); err != nil {
			return err
		}
		if v.progress != nil && v.rep.Records%verifyStep == 0 {
			v.progress(v.at.Index)
		}
	}
}

// checkpoint compares the checkpoint at v.at, if there is one, with it.
func (v *verifier) checkpoint(name string) error {
	i, ok := slices.BinarySearchFunc(v.checkpoints, v.at.Index, func(p Position, x id.Index) int {
		return int(min(max(int64(p.Index)-int64(x), -1), 1))
	})
	if ok && v.checkpoints[i] != v.at {
		return fmt.Errorf("%s: position of %s: want %+v, got %+v: %w", name, checkpointName(v.at.Index), v.at, v.checkpoints[i], ErrCorrupt)
	}
	return nil
}

// checkNewest finds records that are missing at the end.
func (v *verifier) checkNewest() error {
	n := len(v.checkpoints)
	if n == 0 || v.checkpoints[n-1].Index <= v.at.Index {
		return nil
	}
	h, err := readCheckpointHeader(v.o, v.checkpoints[n-1].Index)
	if err != nil {
		return err
	}
	if h.flags&flagForeign == 0 {
		return fmt.Errorf("%s: journal ends early: want record %d, got %d as the last: %w",
			checkpointName(h.at.Index), h.at.Index, v.at.Index, ErrCorrupt)
	}
	return nil
}

func verifyCheckpoint(o *Options, index id.Index) (Position, error) {
	at, r, err := openCheckpoint(o, index)
	if err != nil {
		return at, err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return at, err
}

// Dump writes one line a record, made by format, from a journal that may be in use; a hole is a line
// that begins with "#".
func Dump(w io.Writer, o Options, format func(Record) string) error {
	o.ReadOnly = true
	j, err := Open(o)
	if err != nil {
		return err
	}
	defer j.Close()
	r, err := j.Reader(j.First())
	if err != nil {
		return err
	}
	defer r.Close()
	b := bufio.NewWriterSize(w, 64<<10)
	for {
		rec, err := r.Next()
		var gap *GapError
		switch {
		case err == io.EOF:
			return b.Flush()
		case errors.As(err, &gap):
			fmt.Fprintf(b, "# records %d to %d are not in this journal\n", gap.Last+1, gap.Next-1)
		case err != nil:
			return errors.Join(err, b.Flush())
		default:
			if _, err := b.WriteString(format(rec) + "\n"); err != nil {
				return err
			}
		}
	}
}
