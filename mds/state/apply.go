package state

import (
	"slices"

	"varve/mds/event"
)

// Apply makes the state what it is after ev, the next event of the log, and sets ev.Index. It cannot
// fail: an event that does not fit is a bug, and panics with what differs.
func (s *State) Apply(ev *event.Event) {
	s.index++
	ev.Index = uint64(s.index)
}

func (r *results) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(r.list, seq, func(a Result, seq uint64) int {
		switch {
		case a.Seq < seq:
			return -1
		case a.Seq > seq:
			return 1
		}
		return 0
	})
}

// ResultOf returns the outcome that an applied event is for the request which caused it.
func ResultOf(ev *event.Event) Result { return Result{} }
