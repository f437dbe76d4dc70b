package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// history is a journal that can be read: a directory (offline.go) or a running server (online.go).
type history interface {
	// bounds returns the first index whose record is there and the last one; last < first: none.
	bounds(ctx context.Context) (first, last id.Index, err error)
	// records calls fn for each record from index from on until fn returns errStop, the end, or an error.
	// The payload is valid until fn returns. A hole ends it with a *journal.GapError.
	records(ctx context.Context, from id.Index, fn func(journal.Record) error) error
	// checkpoint returns the newest checkpoint at or below index, nil if there is none.
	checkpoint(ctx context.Context, index id.Index) (*state.State, error)
	close()
}

// errStop ends a walk of records early; it is no error.
var errStop = errors.New("stop")

// offline is a journal in a directory, which is only read.
type offline struct{ j *journal.Journal }

var _ history = (*offline)(nil)

// journalDir returns the journal's directory, given it or that of a metadata server.
func journalDir(dir string) (string, error) {
	if segs, _ := filepath.Glob(filepath.Join(dir, "*.seg")); len(segs) > 0 {
		return dir, nil
	}
	sub := filepath.Join(dir, "journal")
	if _, err := os.Stat(sub); err == nil {
		return sub, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return "", fmt.Errorf("%s holds no journal; give -r the directory of a metadata server or a copy of its journal", dir)
}

func openOffline(dir string) (*offline, error) {
	dir, err := journalDir(dir)
	if err != nil {
		return nil, err
	}
	j, err := journal.Open(journal.Options{Dir: dir, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open the journal in %s: %w", dir, err)
	}
	return &offline{j}, nil
}

func (o *offline) close() { _ = o.j.Close() }

func (o *offline) bounds(context.Context) (first, last id.Index, err error) {
	return o.j.First(), o.j.Last().Index, nil
}

func (o *offline) records(ctx context.Context, from id.Index, fn func(journal.Record) error) error {
	r, err := o.j.Reader(from)
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
		if err == errStop {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (o *offline) checkpoint(_ context.Context, index id.Index) (*state.State, error) {
	for {
		at, r, err := o.j.OpenCheckpoint(index)
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
			err = fmt.Errorf("checkpoint at %d: %w", at.Index, rerr)
		}
		if at.Index == 0 || !errors.Is(err, journal.ErrCorrupt) && !errors.Is(err, state.ErrCorrupt) {
			return nil, err
		}
		index = at.Index - 1 // the one before it and more records do as well
	}
}

// decodeEvent decodes a record's event, with its index.
func decodeEvent(rec journal.Record) (*event.Event, error) {
	ev := new(event.Event)
	if err := ev.UnmarshalVT(rec.Payload); err != nil {
		return nil, fmt.Errorf("record %d is no event: %w", rec.Index, err)
	}
	ev.Index = uint64(rec.Index)
	return ev, nil
}

// applyEvent applies ev, the next event of s. An event that does not fit is an error here: the journal may be damaged.
func applyEvent(s *state.State, ev *event.Event) (err error) {
	index := ev.Index
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("event %d does not fit the state before it: %v", index, r)
		}
	}()
	s.Apply(ev)
	if ev.Index != index {
		return fmt.Errorf("event %d follows the state at %d", index, ev.Index-1)
	}
	return nil
}

// replay returns the state at index to, from the nearest checkpoint. each, if not nil, is
// called after every event applied.
func replay(ctx context.Context, h history, to id.Index, each func(*state.State, *event.Event) error) (*state.State, error) {
	s, err := h.checkpoint(ctx, to)
	if err != nil {
		return nil, err
	}
	return replayFrom(ctx, h, s, to, each)
}

// replayFrom is replay from s; nil is the empty state.
func replayFrom(ctx context.Context, h history, s *state.State, to id.Index, each func(*state.State, *event.Event) error) (*state.State, error) {
	if s == nil {
		s = state.New()
	}
	if s.Index() == to {
		return s, nil
	}
	first, last, err := h.bounds(ctx)
	if err != nil {
		return nil, err
	}
	if from := s.Index() + 1; from < first && from <= last {
		return nil, fmt.Errorf("the journal begins at index %d and no checkpoint is at or below %d; ask for an index from the oldest checkpoint on", first, to)
	}
	if s.Index() >= last {
		return s, nil
	}
	err = h.records(ctx, s.Index()+1, func(rec journal.Record) error {
		if rec.Index > to {
			return errStop
		}
		ev, err := decodeEvent(rec)
		if err != nil {
			return err
		}
		if err := applyEvent(s, ev); err != nil {
			return err
		}
		if each != nil {
			if err := each(s, ev); err != nil {
				return err
			}
		}
		if rec.Index == to {
			return errStop
		}
		return nil
	})
	return s, err
}

// indexAt returns the last index whose time is at most t, by bisection: times do not step back but for corrections of the
// clock, for which any such index is as good.
func indexAt(ctx context.Context, h history, t time.Time) (id.Index, error) {
	first, last, err := h.bounds(ctx)
	if err != nil {
		return 0, err
	}
	later := func(i id.Index) (bool, error) {
		found := false
		err := h.records(ctx, i, func(rec journal.Record) error {
			found = rec.Time > t.UnixNano()
			return errStop
		})
		return found, err
	}
	lo, hi := first, last+1 // the answer is one less than the first index that is later
	for lo < hi {
		mid := lo + (hi-lo)/2
		is, err := later(mid)
		if err != nil {
			return 0, err
		}
		if is {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == first {
		return 0, usagef("the journal's first event, %d, is later than %s", first, t.Format(time.RFC3339))
	}
	return lo - 1, nil
}
