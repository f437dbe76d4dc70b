package block

import (
	"slices"
	"sync"
	"sync/atomic"
)

// late are the changes that goroutines carry out, in the order in which they were started. A change that overlaps an earlier one of them begins when that has
// ended: a server that lost a connection may get the same request again by another one, and whoever sent it may then write there anew, before the first, which
// waited for a goroutine or for the cluster, was done. Changes that begin on a loop need no place here: they have their blocks when Start returns.
type late struct {
	n   atomic.Int32 // of all
	mu  sync.Mutex
	all []*Op
}

func (op *Op) changes() bool { return op.Kind == Write || op.Kind == Trim || op.Kind == Zero }

func (op *Op) overlaps(o *Op) bool {
	return op.Off < o.Off+o.length() && o.Off < op.Off+op.length()
}

func (op *Op) length() int64 {
	if op.Kind == Write {
		return int64(len(op.P))
	}
	return op.N
}

// follows reports whether op overlaps one of the first n. Preconditions: mu is held.
func (t *late) follows(op *Op, n int) bool {
	return slices.ContainsFunc(t.all[:n], op.overlaps)
}

// meets reports whether a change is not to begin on a loop.
func (t *late) meets(op *Op) bool {
	if t.n.Load() == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.follows(op, len(t.all))
}

// add takes a change, and reports whether it may begin.
func (t *late) add(op *Op) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	op.parked = t.follows(op, len(t.all))
	t.all = append(t.all, op)
	t.n.Add(1)
	return !op.parked
}

// ended forgets a change that was made, or has failed, and calls begin for those that waited for it.
func (t *late) ended(op *Op, begin func(*Op)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.Index(t.all, op)
	t.all = slices.Delete(t.all, at, at+1)
	t.n.Add(-1)
	for i, o := range t.all[at:] {
		if o.parked && o.overlaps(op) && !t.follows(o, at+i) {
			o.parked = false
			begin(o)
		}
	}
}
