package decide

import (
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// LatchKind says what space the rest of a Latch is in. Latches are sorted by it first, which is the lock order.
type LatchKind uint8

const (
	LatchRename LatchKind = iota + 1 // the shape of the directory tree; A and Name unused
	LatchDentry                      // a name: A is the directory
	LatchInode                       // an inode: A
	LatchLayout                      // the chunks of a file: A is the inode
)

// Latch is a key that a request reads (shared) or writes (exclusive).
type Latch struct {
	Kind      LatchKind
	A         uint64
	Name      string
	Exclusive bool
}

// Latches returns what the request must hold from decide until its event is applied, sorted in the order in
// which to acquire, each key once. A read-only request needs none: it is answered from one applied state.
func Latches(s *state.State, req *msg.MetaRequest) []Latch { return nil }

// Conflict is a change of the mode in which another session holds an inode.
type Conflict struct {
	Session id.SessionID
	Lease   id.Index // its number
	Want    msg.Want // what it holds the inode for
	Now     msg.Mode
	After   msg.Mode
}

// Conflicts returns the other sessions whose mode changes if session holds ino for want from now on
// (WANT_NONE: if it drops it), by session. A change to a mode that allows less (After is SHARED_WRITE) must be called
// back before the grant; one that allows more is told after it.
func Conflicts(s *state.State, ino id.Ino, session id.SessionID, want msg.Want) []Conflict {
	return nil
}
