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
// The states. All but serving have no reads, and are no source of a rebuild.
//
//	serving          in sync as far as it knows; a message of a higher epoch says that the set has changed without it
//	joining          takes writes, notes what they write, and has the rest copied from another replica
//	joining-copied   has all, on stable media; only its promotion is missing
//	joining-lost     was joining when the server stopped: what was fresh is forgotten
//	unclean          was written to, or copied, when the server died: others may hold something else
//
// What a message of epoch e does to a replica of epoch c: at e < c, e = c, e > c. "serving" and "joining" say what it is
// from then on, durably and at epoch e, before the message is done. An accept without an epoch has c.
//
//	state            message   e < c      e = c      e > c
//	serving          read      stale      do         serving
//	                 write     stale      do         serving
//	                 punch     stale      do         serving
//	                 flush     stale      do         serving
//	                 repair    stale      stale      stale
//	                 adopt     stale      do         serving
//	                 join      stale      stale      joining
//	                 copied    stale      do         not ready
//	                 promote   stale      do         not ready
//	                 accept    stale      do         serving
//	joining          read      stale      not ready  not ready
//	                 write     stale      do, note   not ready
//	                 punch     stale      do, note   not ready
//	                 flush     stale      do         not ready
//	                 repair    stale      do         not ready
//	                 adopt     stale      not ready  not ready
//	                 join      stale      do         joining
//	                 copied    stale      joining-copied  not ready
//	                 promote   stale      serving    not ready
//	                 accept    not ready  not ready  not ready
//	joining-copied   read      stale      not ready  not ready
//	                 write     stale      do         not ready
//	                 punch     stale      do         not ready
//	                 flush     stale      do         not ready
//	                 repair    stale      stale      not ready
//	                 adopt     stale      not ready  not ready
//	                 join      stale      do         joining
//	                 copied    stale      do         not ready
//	                 promote   stale      serving    not ready
//	                 accept    not ready  not ready  not ready
//	joining-lost     read      not ready  not ready  not ready
//	                 write     not ready  not ready  not ready
//	                 punch     not ready  not ready  not ready
//	                 flush     not ready  not ready  not ready
//	                 repair    not ready  not ready  not ready
//	                 adopt     not ready  not ready  not ready
//	                 join      stale      stale      joining
//	                 copied    not ready  not ready  not ready
//	                 promote   not ready  not ready  not ready
//	                 accept    not ready  not ready  not ready
//	unclean          read      not ready  not ready  not ready
//	                 write     not ready  not ready  not ready
//	                 punch     not ready  not ready  not ready
//	                 flush     not ready  not ready  not ready
//	                 repair    not ready  not ready  not ready
//	                 adopt     not ready  not ready  not ready
//	                 join      stale      stale      joining
//	                 copied    not ready  not ready  not ready
//	                 promote   not ready  not ready  not ready
//	                 accept    stale      serving    serving
//
// A restart makes joining-lost of joining, unclean of joining-copied, and unclean of serving if the chunk had an active
// extent. A replica that is copied was in sync for the metadata server as soon as that heard of it: so it may be the last one
// that has what was acknowledged, and is treated like one that served when the server died.
//
// A partial block that is written while joining is merged with whatever old block the replica has,
// which may have missed writes. So Fresh notes bytes, not blocks only: the repair of such a block
// takes the noted bytes from here and the others from the source.
package repl

import (
	"fmt"

	"varve/internal/id"
	"varve/internal/invariant"
	"varve/internal/planted"
)

// State is what a replica is.
type State uint8

// The states. Zero is none, so that a forgotten state is not one that serves.
const (
	Serving  State = 1
	Tracking State = 2 // joining; notes which blocks are fresh
	Lost     State = 3 // joining, but what was fresh is forgotten
	Unclean  State = 4 // was active, or copied, when the server died
	Copied   State = 5 // joining; has all, and waits for its promotion
	states         = 5
)

// Joining reports whether the replica is not in sync yet.
func (s State) Joining() bool { return s == Tracking || s == Lost || s == Copied }

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
	case Copied:
		return "joining-copied"
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
	Accept   // epoch 0: the replica's own
	Complete // the rebuild has copied and flushed all
	lastKind = Complete
)

var kinds = [...]string{Read: "read", Write: "write", Punch: "punch", Flush: "flush", Repair: "repair",
	Adopt: "adopt", Join: "join", Promote: "promote", Accept: "accept", Complete: "copied"}

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
	case rec.State == Copied:
		r.State = Unclean
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
	if in.Kind == Accept && in.Epoch == 0 {
		in.Epoch = r.Epoch
	}
	m := lookup(r.State, in, r.Epoch)
	switch data := in.Kind == Read || in.Kind == Write || in.Kind == Punch || in.Kind == Flush; {
	case planted.Is(planted.ServeUnclean) && data && r.State == Unclean,
		planted.Is(planted.SkipAdoption) && (data || in.Kind == Adopt) && r.State == Serving && in.Epoch > r.Epoch,
		planted.Is(planted.ReadJoining) && in.Kind == Read && (r.State == Tracking || r.State == Copied):
		m = do
	}
	if m.next == 0 {
		return r, m.verdict
	}
	next := Replica{Epoch: in.Epoch, State: m.next}
	if m.next == Tracking {
		next.Fresh = new(Fresh)
	}
	return next, Persist
}
