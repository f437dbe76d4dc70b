package decide

import (
	"cmp"
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// LatchKind says what space the rest of a Latch is in. Latches are sorted by it first, which is the lock order.
type LatchKind uint8

const (
	// LatchSession is a session (A). Every change holds its own shared; whoever closes a session takes it
	// exclusively, so that no event of a session comes after the one that ends it.
	LatchSession LatchKind = iota + 1
	// LatchRename is the shape of the directory tree, and the policies in it; A and Name unused. Take it
	// exclusively for ConfigSet of the default policy.
	LatchRename
	// LatchDentry is a name: A is the directory.
	LatchDentry
	// LatchInode is an inode (A): its attributes, leases, and whether a directory may get names.
	LatchInode
	// LatchLayout is the chunks of a file and their replica sets: A is the inode. Take it exclusively for repair.
	LatchLayout
	// LatchLocks is the locks on an inode (A).
	LatchLocks
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
func Latches(s *state.State, req *msg.MetaRequest) []Latch {
	if ReadOnly(req) {
		return nil
	}
	l := &latches{s: s}
	if req.Session != 0 {
		l.shared(LatchSession, req.Session)
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_SetAttr:
		l.exclusive(LatchInode, op.SetAttr.Ino)
		if op.SetAttr.Size != nil {
			l.exclusive(LatchLayout, op.SetAttr.Ino)
		}
	case *msg.MetaRequest_Create:
		l.name(op.Create.Parent, op.Create.Name)
	case *msg.MetaRequest_Link:
		l.name(op.Link.Parent, op.Link.Name)
		l.exclusive(LatchInode, op.Link.Ino)
	case *msg.MetaRequest_Remove:
		l.name(op.Remove.Parent, op.Remove.Name)
	case *msg.MetaRequest_Rename:
		l.rename(op.Rename)
	case *msg.MetaRequest_SetXattr:
		l.exclusive(LatchInode, op.SetXattr.Ino)
	case *msg.MetaRequest_RemoveXattr:
		l.exclusive(LatchInode, op.RemoveXattr.Ino)
	case *msg.MetaRequest_Open:
		l.exclusive(LatchInode, op.Open.Ino)
		if op.Open.Trunc {
			l.exclusive(LatchLayout, op.Open.Ino)
		}
	case *msg.MetaRequest_Release:
		l.freeing(op.Release.Ino)
	case *msg.MetaRequest_AllocChunk:
		l.shared(LatchRename, 0)
		l.shared(LatchInode, op.AllocChunk.Ino)
		l.exclusive(LatchLayout, op.AllocChunk.Ino)
	case *msg.MetaRequest_DropReplica:
		l.shared(LatchInode, op.DropReplica.Ino)
		l.exclusive(LatchLayout, op.DropReplica.Ino)
	case *msg.MetaRequest_WriteDone:
		l.exclusive(LatchInode, op.WriteDone.Ino)
	case *msg.MetaRequest_Append:
		l.exclusive(LatchInode, op.Append.Ino)
	case *msg.MetaRequest_PunchDone:
		l.exclusive(LatchInode, op.PunchDone.Ino)
		l.exclusive(LatchLayout, op.PunchDone.Ino)
	case *msg.MetaRequest_Lock:
		l.shared(LatchInode, op.Lock.Ino)
		l.exclusive(LatchLocks, op.Lock.Ino)
	case *msg.MetaRequest_SetPolicy:
		l.exclusive(LatchRename, 0)
		l.exclusive(LatchInode, op.SetPolicy.Ino)
	}
	return l.sorted()
}

type latches struct {
	s    *state.State
	list []Latch
}

func (l *latches) shared(k LatchKind, a uint64) { l.list = append(l.list, Latch{Kind: k, A: a}) }
func (l *latches) exclusive(k LatchKind, a uint64) {
	l.list = append(l.list, Latch{Kind: k, A: a, Exclusive: true})
}

// freeing latches an inode that may be deleted with its chunks.
func (l *latches) freeing(ino uint64) {
	l.exclusive(LatchInode, ino)
	l.exclusive(LatchLayout, ino)
}

// name latches a name that is made or removed, and what it names now. It returns the latter's dentry, if any.
func (l *latches) name(parent uint64, name []byte) (*state.Dentry, bool) {
	l.list = append(l.list, Latch{Kind: LatchDentry, A: parent, Name: string(name), Exclusive: true})
	l.shared(LatchInode, parent)
	d, ok := l.s.Dentry(id.Ino(parent), string(name))
	if ok {
		l.freeing(uint64(d.Ino))
	}
	return d, ok
}

func (l *latches) rename(op *msg.Rename) {
	a, okA := l.name(op.Parent, op.Name)
	b, okB := l.name(op.NewParent, op.NewName)
	dir := okA && a.Type == msg.FileType_DIRECTORY || okB && b.Type == msg.FileType_DIRECTORY
	if dir && op.Parent != op.NewParent {
		l.exclusive(LatchRename, 0)
	}
}

// sorted returns the latches in order, each key once, exclusive if it was asked for as that.
func (l *latches) sorted() []Latch {
	slices.SortFunc(l.list, func(a, b Latch) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.A, b.A), cmp.Compare(a.Name, b.Name), exclusiveFirst(a, b))
	})
	return slices.CompactFunc(l.list, func(a, b Latch) bool { return a.Kind == b.Kind && a.A == b.A && a.Name == b.Name })
}

func exclusiveFirst(a, b Latch) int {
	switch {
	case a.Exclusive == b.Exclusive:
		return 0
	case a.Exclusive:
		return -1
	}
	return 1
}

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
	now := s.Holders(ino)
	after := now
	if own, ok := s.Lease(ino, session); ok {
		after.Add(own.Want, -1)
	}
	after.Add(want, 1)
	var out []Conflict
	s.Leases(ino, func(l state.Lease) bool {
		c := Conflict{Session: l.Session, Lease: l.Index, Want: l.Want, Now: now.Mode(l.Want), After: after.Mode(l.Want)}
		if l.Session != session && c.Now != c.After {
			out = append(out, c)
		}
		return true
	})
	return out
}
