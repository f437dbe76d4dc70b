package trace

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"varve/internal/capture"
)

// Count is what a trace has of one kind, or of one file.
type Count struct {
	Name   string        `json:"name"`
	Ops    int64         `json:"operations"`
	Bytes  int64         `json:"bytes,omitempty"`
	Errors int64         `json:"errors,omitempty"`
	Mean   time.Duration `json:"mean_ns,omitempty"`
	Max    time.Duration `json:"max_ns,omitempty"`

	took time.Duration
}

func (c *Count) add(x *capture.Record) {
	c.Ops++
	if x.Kind == capture.Read || x.Kind == capture.Write {
		c.Bytes += int64(x.Done)
	}
	if x.Errno != 0 {
		c.Errors++
	}
	c.took += x.Took
	c.Mean, c.Max = c.took/time.Duration(c.Ops), max(c.Max, x.Took)
}

// Summary is a trace in a few numbers.
type Summary struct {
	Format  string        `json:"format"`
	Started time.Time     `json:"started"`
	Length  time.Duration `json:"length_ns"`
	Timed   bool          `json:"timed"`
	Ops     int           `json:"operations"`
	Dropped uint64        `json:"dropped"`
	LeftOut uint64        `json:"left_out"`
	Cut     bool          `json:"cut_off,omitempty"`
	Torn    int64         `json:"torn_bytes,omitempty"`
	Damaged int           `json:"damaged_blocks,omitempty"`
	Kinds   []Count       `json:"kinds"`
	Files   []Count       `json:"files"` // the most used first
}

// Summary sums the trace up.
func (t *Trace) Summary() Summary {
	s := Summary{
		Format: t.Format, Started: t.Started, Length: t.Length(), Timed: t.Timed, Ops: len(t.Ops), Dropped: t.Stats.Dropped, LeftOut: t.Stats.LeftOut,
		Cut: !t.Ended, Torn: t.Torn, Damaged: t.Damaged,
	}
	kinds, files := map[capture.Kind]*Count{}, map[uint64]*Count{}
	for _, f := range t.Files {
		files[f.Inode] = &Count{Name: f.Path}
	}
	for i := range t.Ops {
		x := &t.Ops[i]
		if kinds[x.Kind] == nil {
			kinds[x.Kind] = &Count{Name: x.Kind.String()}
		}
		kinds[x.Kind].add(x)
		if x.Handle == 0 {
			continue
		}
		if files[x.Inode] == nil {
			files[x.Inode] = &Count{Name: fmt.Sprintf("inode %d", x.Inode)}
		}
		files[x.Inode].add(x)
	}
	busiest := func(a, b Count) int { return cmp.Or(cmp.Compare(b.Ops, a.Ops), cmp.Compare(a.Name, b.Name)) }
	for _, c := range kinds {
		s.Kinds = append(s.Kinds, *c)
	}
	for _, c := range files {
		if c.Ops > 0 {
			s.Files = append(s.Files, *c)
		}
	}
	slices.SortFunc(s.Kinds, busiest)
	slices.SortFunc(s.Files, busiest)
	return s
}

// filesShown is the number of lines of a table for people.
const filesShown = 32

// WriteText prints the summary for people.
func (s Summary) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s operations in %v", s.Format, humanize.Comma(int64(s.Ops)), s.Length.Round(time.Millisecond))
	if !s.Timed {
		b.WriteString("; how long they took is not known")
	}
	if s.LeftOut > 0 {
		fmt.Fprintf(&b, "; %s left out", humanize.Comma(int64(s.LeftOut)))
	}
	if s.Dropped > 0 {
		fmt.Fprintf(&b, "; %s dropped while it was made", humanize.Comma(int64(s.Dropped)))
	}
	if s.Cut || s.Torn > 0 {
		fmt.Fprintf(&b, "; it was cut off, and its last %s tell nothing", humanize.IBytes(uint64(s.Torn)))
	}
	if s.Damaged > 0 {
		fmt.Fprintf(&b, "; DAMAGED: %d blocks of it are missing", s.Damaged)
	}
	b.WriteString("\n\n")
	b.WriteString(table("operation", s.Kinds) + "\n" + table("file", s.Files))
	_, err := io.WriteString(w, b.String())
	return err
}

func table(title string, counts []Count) string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "%s\toperations\tbytes\terrors\tmean\tmax\t\n", title)
	for i, c := range counts {
		if i == filesShown {
			fmt.Fprintf(t, "%d more\t\t\t\t\t\t\n", len(counts)-i)
			break
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%v\t%v\t\n", c.Name, humanize.Comma(c.Ops), humanize.IBytes(uint64(c.Bytes)), c.Errors,
			c.Mean.Round(100*time.Nanosecond), c.Max.Round(time.Microsecond))
	}
	_ = t.Flush() // to a Builder
	return b.String()
}

// Dump prints a line an operation: when it began, how long it took, process, handle, what, where, how much was asked for and done, outcome, file.
func (t *Trace) Dump(w io.Writer) error {
	names := map[uint64]string{}
	for _, f := range t.Files {
		names[f.Inode] = path.Clean("/" + f.Path)
	}
	for i := range t.Ops {
		x := &t.Ops[i]
		outcome := "ok"
		if x.Errno != 0 {
			outcome = x.Errno.Error()
		}
		_, err := fmt.Fprintf(w, "%14.6f %12.6f %7d %5d %-10s %14d %9d %9d  %-4s inode %d %s\n", x.Begin.Seconds(), x.Took.Seconds(), x.PID, x.Handle, x.Kind, x.Offset,
			x.Size, x.Done, outcome, x.Inode, names[x.Inode])
		if err != nil {
			return err
		}
	}
	return nil
}
