// Package repl decides what one replica of a chunk may do with a message: do it, refuse it, or change
// its own epoch or state durably first.
//
// Use: keep a Replica for each chunk; give each message to Step; obey the Verdict. On Persist write
// the returned Replica's Record to stable media, then put it in place of the old one and step again.
// Note what was written while the state is Tracking, before the blocks are unlocked.
//
// It is pure. A Replica is a value; the set of fresh blocks that it points to is shared by its copies
// and needs the caller's lock. Epochs of a replica never decrease.
//
//	state              message of epoch e (own epoch c)                       leaves it by
//	serving            e = c: do. e < c: stale. e > c: persist e, do.         Join
//	tracking (joining) write, punch, flush, repair at e = c: do, note what    Promote -> serving
//	                   was written. Reads, and e > c: not ready. e < c: stale restart -> lost
//	lost (joining)     not ready                                              Join with a higher epoch
//	unclean            not ready                                              Accept -> serving, Join
//
// A partial block that is written while tracking is merged with whatever old block the replica has,
// which may have missed writes. So Fresh notes bytes, not blocks only: the repair of such a block
// takes the noted bytes from here and the others from the source.
package repl

import (
	"fmt"

	"varve/internal/id"
	"varve/internal/invariant"
)

// State is what a replica is.
type State uint8

// The states. Zero is none, so that a forgotten state is not one that serves.
const (
	Serving  State = 1
	Tracking State = 2 // joining; notes which blocks are fresh
	Lost     State = 3 // joining, but what was fresh is forgotten
	Unclean  State = 4 // was active when the server died
)

// Joining reports whether the replica is not in sync yet.
func (s State) Joining() bool { return s == Tracking || s == Lost }

func (s State) String() string {
	switch s {
	case Serving:
		return "serving"
	case Tracking:
		return "joining"
	case Lost:
		return "joining-lost"
	case Unclean:
		return "unclean"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Kind is the kind of a message.
type Kind uint8

// The kinds of messages.
const (
	Read Kind = iota + 1
	Write
	Punch
	Flush
	Repair // a block copied from the source of a rebuild
	Adopt
	Join
	Promote
	Accept // carries no epoch
)

var kinds = [...]string{Read: "read", Write: "write", Punch: "punch", Flush: "flush", Repair: "repair",
	Adopt: "adopt", Join: "join", Promote: "promote", Accept: "accept"}

func (k Kind) String() string {
	if int(k) < len(kinds) && kinds[k] != "" {
		return kinds[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Input is one message to a replica.
type Input struct {
	Kind  Kind
	Epoch id.Epoch
}

// Verdict is what to do with a message.
type Verdict uint8

// The verdicts.
const (
	Do       Verdict = iota + 1 // do it; for a change of state: it is so already
	DoNote                      // do it and note the bytes as fresh before unlocking the blocks
	Persist                     // write the returned Replica's Record durably, put it in place, step again
	Stale                       // answer StaleEpoch
	NotReady                    // answer NotReady
)

func (v Verdict) String() string {
	switch v {
	case Do:
		return "do"
	case DoNote:
		return "do, note"
	case Persist:
		return "persist"
	case Stale:
		return "stale"
	case NotReady:
		return "not ready"
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// Record is the part of a Replica that is kept on disk.
type Record struct {
	Epoch id.Epoch
	// State is never Lost in a record that Replica.Record made: Tracking is what is written, and
	// Restart makes it Lost.
	State State
}

// Replica is one copy of a chunk.
type Replica struct {
	Epoch id.Epoch
	State State
	// Fresh is what was written since Join; it is set while the state is Tracking and only then.
	Fresh *Fresh
}

// New returns the replica of a chunk that was just created.
func New(e id.Epoch) Replica { return Replica{Epoch: e, State: Serving} }

// Restart returns the replica that the server finds when it starts. active says that the chunk had an
// active extent, so the server was not stopped cleanly.
func Restart(rec Record, active bool) Replica {
	r := Replica{Epoch: rec.Epoch, State: rec.State}
	switch {
	case rec.State.Joining():
		r.State = Lost
	case active:
		r.State = Unclean
	}
	return r
}

// Record returns what must be on disk for Restart.
func (r Replica) Record() Record {
	if r.State == Lost {
		return Record{Epoch: r.Epoch, State: Tracking}
	}
	return Record{Epoch: r.Epoch, State: r.State}
}

// Step returns what to do with in and, if that is Persist, the replica as it is to become. With any
// other verdict the replica is returned as it was.
func (r Replica) Step(in Input) (Replica, Verdict) {
	next, v := r.step(in)
	if next.Epoch < r.Epoch {
		invariant.Failf("replica: %v at epoch %d lowers epoch %d", in.Kind, in.Epoch, r.Epoch)
	}
	if (next.State == Tracking) != (next.Fresh != nil) {
		invariant.Failf("replica: %v leaves state %v with fresh set %t", in.Kind, next.State, next.Fresh != nil)
	}
	return next, v
}

func (r Replica) step(in Input) (Replica, Verdict) {
	switch in.Kind {
	case Join:
		return r.join(in.Epoch)
	case Accept:
		switch r.State {
		case Serving:
			return r, Do
		case Unclean:
			return New(r.Epoch), Persist
		}
		return r, NotReady
	}
	switch r.State {
	case Serving:
		return r.serving(in)
	case Tracking:
		return r.tracking(in)
	}
	return r, NotReady
}

// join starts a rebuild. The same message again finds the rebuild under way and changes nothing;
// a replica that restarted since then has lost what was fresh and needs a join of its own.
func (r Replica) join(e id.Epoch) (Replica, Verdict) {
	switch {
	case e > r.Epoch:
		return Replica{Epoch: e, State: Tracking, Fresh: new(Fresh)}, Persist
	case e == r.Epoch && r.State == Tracking:
		return r, Do
	}
	return r, Stale
}

func (r Replica) serving(in Input) (Replica, Verdict) {
	switch {
	case in.Epoch < r.Epoch:
		return r, Stale
	case in.Kind == Repair:
		// The rebuild that sent it is over, or was never ours.
		return r, Stale
	case in.Epoch == r.Epoch:
		return r, Do
	case in.Kind == Promote:
		// A promotion to an epoch that was never joined.
		return r, NotReady
	}
	return New(in.Epoch), Persist
}

func (r Replica) tracking(in Input) (Replica, Verdict) {
	switch {
	case in.Epoch < r.Epoch:
		return r, Stale
	case in.Epoch > r.Epoch || in.Kind == Read || in.Kind == Adopt:
		return r, NotReady
	}
	switch in.Kind {
	case Write, Punch:
		return r, DoNote
	case Promote:
		return New(r.Epoch), Persist
	}
	return r, Do
}
