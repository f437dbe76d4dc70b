package history

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// Hooks are called while events are replayed; each may be nil. The event and its Index are valid during the call.
type Hooks struct {
	// Before gets each event with the state before it.
	Before func(*state.State, *event.Event) error
	// After gets each event with the state after it.
	After func(*state.State, *event.Event) error
	// Gap is called when records are missing and a checkpoint takes their place.
	Gap func(missing journal.GapError)
	// Progress gets the index reached, now and then.
	Progress func(id.Index)
}

// progressEvery is the number of events between two calls of Progress.
const progressEvery = 1 << 14

// At returns the state at an index, from the nearest checkpoint.
func At(ctx context.Context, src Source, to id.Index, h Hooks) (*state.State, error) {
	if to == 0 {
		return state.New(), nil
	}
	s, err := src.Checkpoint(ctx, to)
	if err != nil {
		return nil, err
	}
	return Advance(ctx, src, s, to, h)
}

// Advance applies the events after s up to index to; nil is the empty state. Where records are missing it goes on from the
// checkpoint that took their place. It changes s, and returns the state at to, or where the journal ends before it.
func Advance(ctx context.Context, src Source, s *state.State, to id.Index, h Hooks) (*state.State, error) {
	if s == nil {
		s = state.New()
	}
	first, last, err := src.Bounds(ctx)
	if err != nil {
		return nil, err
	}
	// Nobody sees the states between, and to count all records once costs less than to count every change.
	n := s.Counts()
	plain := h.Before == nil && h.After == nil && uint64(min(to, last)-s.Index()) > uint64(n.Inodes+n.Dentries+n.Chunks+n.Garbage)
	for s.Index() < min(to, last) {
		if plain {
			s.Suspend()
		}
		if s.Index()+1 < first {
			return nil, &RetentionError{Want: to, First: first}
		}
		err := stream(ctx, src, s.Index()+1, to, func(ev *event.Event) error { return step(s, ev, h) })
		var gap *journal.GapError
		if err == nil {
			break
		}
		if !errors.As(err, &gap) {
			return nil, err
		}
		if to < gap.Next-1 {
			return nil, fmt.Errorf("index %d is not in this journal: %d to %d are missing; ask another metadata server's: %w", to, gap.Last+1, gap.Next-1, gap)
		}
		if s, err = afterGap(ctx, src, gap); err != nil {
			return nil, err
		}
		if h.Gap != nil {
			h.Gap(*gap)
		}
	}
	s.Resume()
	if h.Progress != nil {
		h.Progress(s.Index())
	}
	return s, nil
}

// afterGap returns the state from which the records behind a hole go on.
func afterGap(ctx context.Context, src Source, gap *journal.GapError) (*state.State, error) {
	s, err := src.Checkpoint(ctx, gap.Next-1)
	if err != nil {
		return nil, err
	}
	if s == nil || s.Index() != gap.Next-1 {
		return nil, fmt.Errorf("records %d to %d are missing, and no checkpoint at %d is there to go on from; replay another metadata server's journal: %w",
			gap.Last+1, gap.Next-1, gap.Next-1, gap)
	}
	return s, nil
}

// RetentionError says that the records needed are no longer kept.
type RetentionError struct {
	Want  id.Index // what was asked for
	First id.Index // the first record that is there
}

func (e *RetentionError) Error() string {
	return fmt.Sprintf("index %d is older than what this journal keeps: it begins at index %d, and no checkpoint is at or below %d; ask for a later index, or another copy",
		e.Want, e.First, e.Want)
}

// step applies one event.
func step(s *state.State, ev *event.Event, h Hooks) error {
	if h.Before != nil {
		if err := h.Before(s, ev); err != nil {
			return err
		}
	}
	if err := apply(s, ev); err != nil {
		return err
	}
	if h.After != nil {
		if err := h.After(s, ev); err != nil {
			return err
		}
	}
	if h.Progress != nil && s.Index()%progressEvery == 0 {
		h.Progress(s.Index())
	}
	return nil
}

// apply applies ev, the next event of s. An event that does not fit is an error here: the journal may be damaged.
func apply(s *state.State, ev *event.Event) error {
	if index := ev.Index; uint64(s.Index())+1 != index {
		return fmt.Errorf("event %d follows the state at %d", index, s.Index())
	}
	return s.Try(ev)
}

// Earliest returns the first index from which every later event can be replayed, and the state before it; nil is the empty state.
// Events below it, if records of them are there, have no state to be seen with.
func Earliest(ctx context.Context, src Source) (from id.Index, s *state.State, err error) {
	first, last, err := src.Bounds(ctx)
	if err != nil || first <= 1 {
		return first, nil, err
	}
	if s, err = src.Checkpoint(ctx, first-1); s != nil && s.Index() == first-1 || err != nil {
		return first, s, err
	}
	// The oldest checkpoint: the newest at or below some index, each time with less.
	oldest := id.Index(0)
	for at := last; at >= first; at = oldest - 1 {
		i, err := src.Newest(ctx, at)
		if err != nil {
			return 0, nil, err
		}
		if i < first {
			break
		}
		oldest = i
	}
	if oldest == 0 {
		return 0, nil, &RetentionError{Want: last, First: first}
	}
	s, err = src.Checkpoint(ctx, oldest)
	if err == nil && (s == nil || s.Index() != oldest) {
		err = fmt.Errorf("checkpoint at %d cannot be read: %w", oldest, journal.ErrCorrupt)
	}
	return oldest + 1, s, err
}

// Watch calls fn for each event in [from, to], in order, with the state before it, which is nil where the journal does not have
// it. With raw it is always nil and nothing is replayed. missing is called for holes.
func Watch(ctx context.Context, src Source, r Range, fn func(*state.State, *event.Event) error, missing func(journal.GapError)) error {
	from := r.From
	var s *state.State
	var err error
	if !r.Raw {
		if s, err = before(ctx, src, from); err != nil {
			return err
		}
	}
	for from <= r.To {
		err := stream(ctx, src, from, r.To, func(ev *event.Event) error {
			from = id.Index(ev.Index) + 1
			if s == nil {
				return fn(nil, ev)
			}
			return step(s, ev, Hooks{Before: fn, Progress: r.Progress})
		})
		var gap *journal.GapError
		if !errors.As(err, &gap) {
			return err
		}
		if gap.Next <= r.To && missing != nil {
			missing(*gap)
		}
		from = gap.Next
		if !r.Raw {
			if s, err = src.Checkpoint(ctx, from-1); err != nil {
				return err
			}
			if s != nil && s.Index() != from-1 {
				s = nil
			}
		}
	}
	return nil
}

// Range says which events Watch walks.
type Range struct {
	From, To id.Index
	Raw      bool // without the states
	Progress func(id.Index)
}

// before returns the state before index from, nil if the journal does not have it.
func before(ctx context.Context, src Source, from id.Index) (*state.State, error) {
	s, err := At(ctx, src, from-1, Hooks{})
	var old *RetentionError
	var gap *journal.GapError
	if errors.As(err, &old) || errors.As(err, &gap) {
		return nil, nil
	}
	if s != nil && s.Index() != from-1 {
		s = nil
	}
	return s, err
}
