package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"varve/internal/id"
)

// DumpOptions say what Dump writes.
type DumpOptions struct {
	// From and To bound the indexes; 0 means from the first one on, and to the last one.
	From, To id.Index
	// Raw writes records as DecodeRaw reads them, without holes, instead of lines.
	Raw bool
	// Format makes a record's line; nil means Line.
	Format func(Record) string
	// Progress, if not nil, is called now and then with the number of records written and to be written.
	Progress func(done, total uint64)
}

// Line is a record as a line: index, time, Raft index, length of the payload, and the payload in hexadecimal.
func Line(r Record) string {
	return fmt.Sprintf("%d %d %d %d %x", r.Index, r.Time, r.Raft, len(r.Payload), r.Payload)
}

// Dump writes the records of a journal that may be in use, one a line or encoded; a hole is a line that begins with "#".
func Dump(w io.Writer, o Options, d DumpOptions) error {
	o.ReadOnly = true
	j, err := Open(o)
	if err != nil {
		return err
	}
	defer j.Close()
	if d.Format == nil {
		d.Format = Line
	}
	d.From = max(d.From, j.First())
	if last := j.Last().Index; d.To == 0 || d.To > last {
		d.To = last
	}
	r, err := j.Reader(d.From)
	var gap *GapError
	b := bufio.NewWriterSize(w, 64<<10)
	for errors.As(err, &gap) { // From is in a hole
		r, err = j.Reader(gap.Next)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	for r.want <= d.To {
		rec, err := r.Next()
		switch {
		case err == io.EOF:
			return b.Flush()
		case errors.As(err, &gap) && d.Raw:
		case errors.As(err, &gap):
			fmt.Fprintf(b, "# records %d to %d are not in this journal\n", gap.Last+1, gap.Next-1)
		case err != nil:
			return errors.Join(err, b.Flush())
		case d.Raw:
			if _, err := b.Write(r.encoded()); err != nil {
				return err
			}
		default:
			if _, err := b.WriteString(d.Format(rec) + "\n"); err != nil {
				return err
			}
		}
		if done := uint64(r.want - d.From); d.Progress != nil && done%(1<<14) == 0 {
			d.Progress(done, uint64(d.To-d.From)+1)
		}
	}
	if d.Progress != nil && d.To >= d.From {
		d.Progress(uint64(d.To-d.From)+1, uint64(d.To-d.From)+1)
	}
	return b.Flush()
}
