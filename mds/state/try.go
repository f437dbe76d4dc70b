package state

import (
	"errors"

	"varve/internal/invariant"
	"varve/mds/event"
)

var (
	// ErrMisfit is that an event does not fit the state: this state is not the one for which it was decided.
	ErrMisfit = errors.New("event does not fit the state")
	// ErrUnknown is that a newer version wrote the event.
	ErrUnknown = errors.New("event of a kind that this version does not know")
)

// Try applies ev as Apply does, but returns an error that wraps ErrMisfit where that panics, or ErrUnknown. After an error
// the state is of no use.
func (s *State) Try(ev *event.Event) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case invariant.Violation:
			err = misfitError{v.Message, ErrMisfit}
			if ev.Body == nil {
				err = misfitError{v.Message, ErrUnknown}
			}
		default:
			panic(v)
		}
	}()
	s.Apply(ev)
	return nil
}

type misfitError struct {
	message string
	is      error
}

func (e misfitError) Error() string { return e.is.Error() + ": " + e.message }
func (e misfitError) Unwrap() error { return e.is }
