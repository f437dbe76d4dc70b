package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/state"
)

// Source is a journal that can be read.
type Source interface {
	// Bounds returns the first index whose record is there and the last one; last < first: none.
	Bounds(ctx context.Context) (first, last id.Index, err error)
	// Records calls fn for each record from index from on until fn returns ErrStop (which is no error), the end, or an
	// error. The payload is valid until fn returns. A hole ends it with a *journal.GapError.
	Records(ctx context.Context, from id.Index, fn func(journal.Record) error) error
	// Newest returns the index of the newest checkpoint at or below at, 0 if there is none.
	Newest(ctx context.Context, at id.Index) (id.Index, error)
	// Checkpoint returns the state of the newest checkpoint at or below at that can be read, nil if there is none.
	Checkpoint(ctx context.Context, at id.Index) (*state.State, error)
	// FindTime returns the last index whose time is at most t, in nanoseconds since 1970; 0: all are later.
	FindTime(ctx context.Context, t int64) (id.Index, error)
	Close()
}

// ErrStop ends a walk early; it is no error.
var ErrStop = errors.New("stop")

// Dir is the journal in a directory.
type Dir struct {
	path string
	j    *journal.Journal
}

var _ Source = (*Dir)(nil)

// Find returns the journal's directory, given it or that of a metadata server.
func Find(dir string) (string, error) {
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%s: %w; give -r the directory of a metadata server or a copy of its journal", dir, cause(err))
	}
	if holdsSegments(dir) {
		return dir, nil
	}
	if sub := filepath.Join(dir, "journal"); holdsSegments(sub) {
		return sub, nil
	}
	return "", fmt.Errorf("%s holds no journal; give -r the directory of a metadata server or a copy of its journal", dir)
}

// cause returns what an error of the file system is, without the path that says so again.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// holdsSegments reports whether the directory has files of a journal: they are named by 20 digits.
func holdsSegments(dir string) bool {
	list, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range list {
		name, _, ok := strings.Cut(e.Name(), ".")
		if ok && len(name) == 20 && strings.Trim(name, "0123456789") == "" && !strings.HasSuffix(e.Name(), ".ckpt") {
			return true
		}
	}
	return false
}

// OpenDir opens the journal in dir, or in that of a metadata server, for reading. The server may be running: what it appends later
// is not seen.
func OpenDir(dir string) (*Dir, error) {
	path, err := Find(dir)
	if err != nil {
		return nil, err
	}
	j, err := journal.Open(journal.Options{Dir: path, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open the journal in %s: %w", path, err)
	}
	return &Dir{path, j}, nil
}

// Path returns the directory that holds the segments.
func (d *Dir) Path() string { return d.path }

// Bytes returns the size of all segments.
func (d *Dir) Bytes() int64 { return d.j.Bytes() }

// Close implements Source.
func (d *Dir) Close() { _ = d.j.Close() }

// Bounds implements Source.
func (d *Dir) Bounds(context.Context) (first, last id.Index, err error) {
	return d.j.First(), d.j.Last().Index, nil
}

// Records implements Source.
func (d *Dir) Records(ctx context.Context, from id.Index, fn func(journal.Record) error) error {
	r, err := d.j.Reader(from)
	if err != nil {
		return err
	}
	defer r.Close()
	for ctx.Err() == nil {
		rec, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = fn(rec)
		}
		if err == ErrStop {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Checkpoints returns the indexes of all checkpoints, ascending.
func (d *Dir) Checkpoints(context.Context) ([]id.Index, error) {
	points, err := d.j.Checkpoints()
	var all []id.Index
	for _, p := range points {
		all = append(all, p.Index)
	}
	return all, err
}

// Newest implements Source.
func (d *Dir) Newest(ctx context.Context, at id.Index) (newest id.Index, err error) {
	all, err := d.Checkpoints(ctx)
	for _, i := range all {
		if i <= at {
			newest = i
		}
	}
	return newest, err
}

// Checkpoint implements Source. A damaged one costs time, not history: the one before it is taken.
func (d *Dir) Checkpoint(_ context.Context, at id.Index) (*state.State, error) {
	for {
		p, r, err := d.j.OpenCheckpoint(at)
		if errors.Is(err, journal.ErrNotFound) {
			return nil, nil
		}
		if err == nil {
			s, rerr := state.Read(r)
			if rerr == nil {
				_, rerr = io.Copy(io.Discard, r)
			}
			r.Close()
			if rerr == nil {
				return s, nil
			}
			err = fmt.Errorf("checkpoint at %d: %w", p.Index, rerr)
		}
		if p.Index == 0 || !errors.Is(err, journal.ErrCorrupt) && !errors.Is(err, state.ErrCorrupt) {
			return nil, err
		}
		at = p.Index - 1
	}
}

// FindTime implements Source.
func (d *Dir) FindTime(_ context.Context, t int64) (id.Index, error) {
	i, err := d.j.FindTime(t)
	if errors.Is(err, journal.ErrNotFound) {
		return 0, nil
	}
	return i, err
}

// TimeOf returns the time of the event at index, 0 if its record is not there.
func TimeOf(ctx context.Context, src Source, index id.Index) (at int64, err error) {
	first, last, err := src.Bounds(ctx)
	if err != nil || index < first || index > last {
		return 0, err
	}
	err = src.Records(ctx, index, func(rec journal.Record) error {
		if rec.Index == index {
			at = rec.Time
		}
		return ErrStop
	})
	var gap *journal.GapError
	if errors.As(err, &gap) {
		err = nil
	}
	return at, err
}
