package trace

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"varve/internal/capture"
)

// maxOps bounds the operations of a trace: they take 640 MiB of memory, and their replay as much again.
const maxOps = 1 << 23

// errTooMany says so.
var errTooMany = fmt.Errorf("more than %d operations: capture a shorter time, or fewer files (--path)", maxOps)

// Trace is operations on files.
type Trace struct {
	Format  string // of the file that it was read from
	Started time.Time
	Timed   bool // how long operations took is known
	Ops     []capture.Record
	Files   []capture.File // by inode; those without operations left out
	// Of a capture:
	Stats   capture.Stats
	Ended   bool // false: it was cut off
	Torn    int64
	Damaged int
}

// Formats.
const (
	Capture  = "varve capture"
	Fio2     = "fio iolog version 2"
	Fio3     = "fio iolog version 3"
	Blktrace = "blktrace"
	Blkparse = "blkparse text"
)

// Load reads a trace of any format that is known.
func Load(path string) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	head, err := in.Peek(64)
	if len(head) == 0 {
		return nil, fmt.Errorf("%s is empty (%v): want a capture, an iolog of fio, or what blktrace or blkparse make", path, err)
	}
	t := &Trace{Ended: true}
	switch {
	case bytes.HasPrefix(head, []byte("varvCAPT")):
		err = t.readCapture(in)
	case bytes.HasPrefix(head, []byte("fio version ")):
		err = t.readFio(in)
	case isBlktrace(head):
		err = t.readBlktrace(path)
	case isBlkparse(head):
		err = t.readBlkparse(in)
	default:
		err = errors.New("of no format that is known: want a capture, an iolog of fio, or what blktrace or blkparse make")
	}
	if err == nil {
		err = t.order()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func (t *Trace) readCapture(in io.Reader) error {
	r, err := capture.NewReader(in)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		x, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = t.add(x)
		}
		if err != nil {
			return err
		}
	}
	t.Format, t.Timed, t.Started = Capture, !r.Untimed, r.Started
	t.Stats, t.Ended, t.Torn, t.Damaged, t.Files = r.Stats, r.Ended, r.Torn, r.Damaged, r.Files()
	return nil
}

func (t *Trace) add(x capture.Record) error {
	if len(t.Ops) >= maxOps {
		return errTooMany
	}
	t.Ops = append(t.Ops, x)
	return nil
}

// order puts operations in order, and keeps one entry for each file that has some.
func (t *Trace) order() error {
	if len(t.Ops) == 0 {
		return errors.New("it has no operations")
	}
	slices.SortStableFunc(t.Ops, func(a, b capture.Record) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.Took, b.Took))
	})
	used := map[uint64]bool{}
	for i := range t.Ops {
		used[t.Ops[i].Inode] = true
	}
	t.Files = slices.DeleteFunc(t.Files, func(f capture.File) bool {
		first := used[f.Inode]
		used[f.Inode] = false
		return !first
	})
	slices.SortFunc(t.Files, func(a, b capture.File) int { return cmp.Compare(a.Inode, b.Inode) })
	return nil
}

// Length is the time from when the first operation began to when the last one ended.
func (t *Trace) Length() (d time.Duration) {
	for i := range t.Ops {
		d = max(d, t.Ops[i].End())
	}
	return d - t.Ops[0].Begin
}

// Write writes the trace as a capture.
func (t *Trace) Write(to io.Writer) error {
	w, err := capture.NewWriter(to, capture.Header{Started: t.Started, Untimed: !t.Timed})
	if err != nil {
		return err
	}
	for _, f := range t.Files {
		if err := w.AddFile(f); err != nil {
			return err
		}
	}
	for i := range t.Ops {
		if err := w.Add(&t.Ops[i]); err != nil {
			return err
		}
	}
	st := t.Stats
	if st.Length == 0 {
		st.Length = t.Ops[len(t.Ops)-1].Begin
	}
	_, err = w.Close(st)
	return err
}
