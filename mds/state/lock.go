package state

import (
	"cmp"
	"math"
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// The algebra of byte-range locks, as POSIX fcntl has it and Linux does it (fs/locks.c, posix_lock_inode):
// an owner's locks on a file never overlap, adjoining ones of one type are one, a new one replaces what it
// covers, and owners conflict where they overlap and one of them writes. flock is the same with one range.

// LockEnd is the end of a lock that reaches to the end of the file, wherever that is.
const LockEnd = math.MaxUint64

// Owner is who holds a lock: an owner number of a session.
type Owner struct {
	Session id.SessionID
	Number  uint64
}

// Lock is a lock on [Start, End], both inclusive.
type Lock struct {
	Owner Owner
	PID   uint32
	Write bool
	Start uint64
	End   uint64
}

func (l Lock) overlaps(start, end uint64) bool { return l.Start <= end && start <= l.End }

// Conflict returns the first lock of another owner that stands in the way of l, in the order of locks.
func Conflict(locks []Lock, l Lock) (Lock, bool) {
	for _, o := range locks {
		if o.Owner != l.Owner && o.overlaps(l.Start, l.End) && (o.Write || l.Write) {
			return o, true
		}
	}
	return Lock{}, false
}

// SetLock returns locks after l.Owner locked or unlocked (typ) the range of l. The argument is not changed.
func SetLock(locks []Lock, l Lock, typ msg.LockType) []Lock {
	l.Write = typ == msg.LockType_WRITE_LOCK
	set := typ != msg.LockType_UNLOCK
	out := make([]Lock, 0, len(locks)+2)
	for _, o := range locks {
		switch {
		case o.Owner != l.Owner:
			out = append(out, o)
		case set && o.Write == l.Write && touches(o, l):
			l.Start, l.End = min(l.Start, o.Start), max(l.End, o.End)
		case !o.overlaps(l.Start, l.End):
			out = append(out, o)
		default:
			if o.Start < l.Start {
				left := o
				left.End = l.Start - 1
				out = append(out, left)
			}
			if o.End > l.End {
				right := o
				right.Start = l.End + 1
				out = append(out, right)
			}
		}
	}
	if set {
		out = append(out, l)
	}
	slices.SortFunc(out, compareLocks)
	return out
}

// touches reports whether a and b overlap or adjoin.
func touches(a, b Lock) bool {
	return a.overlaps(b.Start, b.End) ||
		a.End != LockEnd && a.End+1 == b.Start || b.End != LockEnd && b.End+1 == a.Start
}

// dropSession returns locks without those of the session.
func dropSession(locks []Lock, session id.SessionID) []Lock {
	return slices.DeleteFunc(slices.Clone(locks), func(l Lock) bool { return l.Owner.Session == session })
}

func compareLocks(a, b Lock) int {
	return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Owner.Session, b.Owner.Session),
		cmp.Compare(a.Owner.Number, b.Owner.Number), cmp.Compare(a.End, b.End))
}
