package decide

import (
	"slices"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// maxLocks is the number of lock ranges on one inode, of each kind.
const maxLocks = 4096

// lock decides F_GETLK (test), F_SETLK and flock. Waiting is the caller's: it gets Again with who is in the way,
// and decides anew when a lock on the inode was given up.
func (d *decider) lock(op *msg.Lock) Outcome {
	n, code := d.inode(op.Ino)
	switch {
	case code != fserr.OK:
		return fail(code, "")
	case d.req.Session == 0:
		return fail(fserr.Protocol, "only a session can lock")
	case op.Type < msg.LockType_UNLOCK || op.Type > msg.LockType_WRITE_LOCK || !op.Flock && op.Start > op.End:
		return fail(fserr.Invalid, "")
	}
	l := state.Lock{
		Owner: state.Owner{Session: id.SessionID(d.req.Session), Number: op.Owner}, PID: op.Pid,
		Write: op.Type == msg.LockType_WRITE_LOCK, Start: op.Start, End: op.End,
	}
	if op.Flock {
		l.Start, l.End = 0, state.LockEnd
	}
	locks := d.s.Locks(n.Ino, op.Flock)
	other, conflict := state.Conflict(locks, l)
	conflict = conflict && op.Type != msg.LockType_UNLOCK
	if op.Test {
		r := &msg.LockReply{Type: msg.LockType_UNLOCK}
		if conflict {
			r = lockReply(other)
		}
		return d.answer(n, &msg.MetaReply{Result: &msg.MetaReply_Lock{Lock: r}})
	}
	if conflict {
		return Outcome{Code: fserr.Again, Reply: &msg.MetaReply{Result: &msg.MetaReply_Lock{Lock: lockReply(other)}}}
	}
	after := state.SetLock(locks, l, op.Type)
	switch {
	case slices.Equal(after, locks):
		return d.nothing(n.Ino)
	case len(after) > maxLocks && len(after) > len(locks):
		return fail(fserr.NoSpace, "too many locks on the file")
	}
	return d.changes(&event.Event{Body: &event.Event_LockSet{LockSet: &event.LockSet{
		Ino: op.Ino, Session: d.req.Session, Owner: op.Owner, Pid: op.Pid, Flock: op.Flock, Type: uint32(op.Type),
		Start: l.Start, End: l.End,
	}}})
}

func lockReply(l state.Lock) *msg.LockReply {
	r := &msg.LockReply{Type: msg.LockType_READ_LOCK, Start: l.Start, End: l.End, Pid: l.PID}
	if l.Write {
		r.Type = msg.LockType_WRITE_LOCK
	}
	return r
}
