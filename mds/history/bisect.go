package history

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/id"
	"varve/mds/state"
)

// Verdict is what a test says of a state.
type Verdict int

// Verdicts.
const (
	Good Verdict = iota
	Bad
	Skip // it cannot be tested
)

// SkippedError says that the first bad index is one of several, since those between could not be tested.
type SkippedError struct{ After, To id.Index }

func (e *SkippedError) Error() string {
	return fmt.Sprintf("the first bad index is one of %d to %d: those before %d could not be tested", e.After+1, e.To, e.To)
}

// Bisect returns the first index in (good, bad] at which test says Bad, given that it does at bad and not at good, which is tested
// too. It replays from the nearest checkpoint, or on from the last good state if that is nearer. step is told of each test before it is
// done, with the number of indexes left.
func Bisect(ctx context.Context, src Source, good, bad id.Index, test func(*state.State) (Verdict, error), step func(at id.Index, left uint64)) (id.Index, error) {
	if good >= bad {
		return 0, fmt.Errorf("good index %d is not before bad index %d", good, bad)
	}
	b := &bisection{ctx: ctx, src: src, test: test, step: step}
	for _, end := range []struct {
		at   id.Index
		want Verdict
		name string
	}{{good, Good, "good"}, {bad, Bad, "bad"}} {
		v, err := b.try(end.at, uint64(bad-good))
		if err != nil {
			return 0, err
		}
		if v != end.want {
			return 0, fmt.Errorf("index %d was given as %s, but the test says otherwise; choose another", end.at, end.name)
		}
	}
	skipped := map[id.Index]bool{}
	for good+1 < bad {
		at, ok := middle(good, bad, skipped)
		if !ok {
			return bad, &SkippedError{good, bad}
		}
		v, err := b.try(at, uint64(bad-good-1))
		if err != nil {
			return 0, err
		}
		switch v {
		case Good:
			good = at
		case Bad:
			bad = at
		default:
			skipped[at] = true
		}
	}
	return bad, nil
}

// middle returns the index nearest to the middle that was not skipped.
func middle(good, bad id.Index, skipped map[id.Index]bool) (id.Index, bool) {
	mid := good + (bad-good)/2
	for d := id.Index(0); d < bad-good; d++ {
		if mid+d < bad && !skipped[mid+d] {
			return mid + d, true
		}
		if mid > good+d && !skipped[mid-d] {
			return mid - d, true
		}
	}
	return 0, false
}

type bisection struct {
	ctx  context.Context
	src  Source
	test func(*state.State) (Verdict, error)
	step func(id.Index, uint64)
	last *state.State // the latest good one
}

func (b *bisection) try(at id.Index, left uint64) (Verdict, error) {
	b.step(at, left)
	s, err := b.state(at)
	if err != nil {
		return Skip, err
	}
	keep := s.Clone()
	v, err := b.test(s)
	if err == nil && v == Good {
		b.last = keep
	}
	return v, err
}

func (b *bisection) state(at id.Index) (*state.State, error) {
	near, err := b.src.Newest(b.ctx, at)
	if err != nil {
		return nil, err
	}
	var s *state.State
	if b.last != nil && b.last.Index() >= near && b.last.Index() <= at {
		s, err = Advance(b.ctx, b.src, b.last.Clone(), at, Hooks{})
	} else {
		s, err = At(b.ctx, b.src, at, Hooks{})
	}
	if err == nil && s.Index() != at {
		err = errors.New("the journal ends before index " + at.String())
	}
	return s, err
}
