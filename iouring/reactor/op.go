package reactor

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// ErrTimeout is how an operation ends that took longer than its Timeout and could be cancelled.
var ErrTimeout = errors.New("operation timed out")

// ErrClosed is how what is queued ends when a connection or the loop is closed.
var ErrClosed = errors.New("closed")

// opCode says what an operation does.
type opCode uint8

const (
	opAccept  opCode = iota + 1 // until cancelled: a descriptor each time
	opRecv                      // into a buffer of the loop's; if op.multi, until cancelled
	opFill                      // into op.buf, as much as fits if possible
	opSend                      // op.buf
	opSendMsg                   // op.vec
	opRead
	opWrite
	opSync
	opPunch    // op.off, op.n
	opAllocate // op.off, op.n
	opPoll     // op.n: the events
	opRaw      // op.raw
)

// Op is one operation on a File. Its owner embeds it where the operation belongs, sets Done once, and may use it again
// as soon as Done was called, also inside it: nothing is allocated for an operation. An Op that is under way must not be used for another.
type Op struct {
	// Done is called on the loop's thread when the kernel has finished with the operation and its buffer. n is the number of bytes; it
	// is less than what was asked for only if err is not nil (io.ErrUnexpectedEOF at the end of a file).
	Done func(n int, err error)
	// Timeout asks the kernel to cancel the operation after so long; it may not, and Done is called only when it has ended. 0: none.
	Timeout time.Duration

	code   opCode
	multi  bool
	state  opState
	late   bool // its timer has fired
	killed bool // it is being cancelled
	fd     int32
	handle uint64 // the backend's
	done   int    // bytes, of those before the present part
	n      int64
	off    int64
	buf    []byte
	vec    *vector
	raw    *iouring.Raw
	owner  completer
	timer  Timer
	next   *Op // of the list it is in
	res    result
}

type opState uint8

const (
	opIdle    opState = iota
	opWaiting         // for room in the kernel's queues
	opActive          // the backend has it
)

// result is how an operation, or one step of one that goes on, ended.
type result struct {
	n    int
	err  error  // a unix.Errno
	more bool   // the operation goes on
	data []byte // of opRecv: the loop's again when complete returns
}

// completer is told how operations ended. It runs on the loop's thread.
type completer interface {
	complete(op *Op, r result)
}

// UnderWay says whether the operation has been started and has not ended.
func (op *Op) UnderWay() bool { return op.state != opIdle }

// opList is a first-in first-out list.
type opList struct {
	first, last *Op
	n           int
}

func (q *opList) push(op *Op) {
	op.next = nil
	if q.last == nil {
		q.first = op
	} else {
		q.last.next = op
	}
	q.last = op
	q.n++
}

func (q *opList) pop() *Op {
	op := q.first
	if op == nil {
		return nil
	}
	q.first = op.next
	if q.first == nil {
		q.last = nil
	}
	op.next = nil
	q.n--
	return op
}

func (q *opList) pushFront(op *Op) {
	op.next = q.first
	q.first = op
	if q.last == nil {
		q.last = op
	}
	q.n++
}

// remove takes op out of the list, if it is in it.
func (q *opList) remove(op *Op) {
	var before *Op
	for o := q.first; o != nil; before, o = o, o.next {
		if o != op {
			continue
		}
		if before == nil {
			q.first = op.next
		} else {
			before.next = op.next
		}
		if q.last == op {
			q.last = before
		}
		op.next = nil
		q.n--
		return
	}
}

// start hands an operation, whose fields are set, to the kernel, or lets it wait for room.
func (l *Loop) start(op *Op, owner completer) {
	if op.state != opIdle {
		panic("reactor: operation started that is under way")
	}
	op.owner = owner
	op.late, op.killed = false, false
	l.active++
	l.stats.operations.Add(1)
	if op.Timeout > 0 {
		if op.timer.Fire == nil {
			op.timer.Fire = func() { op.late = true; l.cancel(op) }
		}
		l.SetTimer(&op.timer, op.Timeout)
	}
	if l.backlog.n > 0 || !l.b.start(op) {
		op.state = opWaiting
		l.backlog.push(op)
		l.stats.backlogged.Add(1)
		return
	}
	op.state = opActive
}

// cancel asks that an operation ends soon. It ends through complete, as always, and may have succeeded.
func (l *Loop) cancel(op *Op) {
	if op.state == opIdle || op.killed {
		return
	}
	op.killed = true
	if op.state == opActive {
		l.b.cancel(op)
	}
}

// feed starts what has waited for room.
func (l *Loop) feed() {
	for n := l.backlog.n; n > 0; n-- {
		op := l.backlog.pop()
		if op.killed {
			l.finish(op, result{err: unix.ECANCELED})
			continue
		}
		if !l.b.start(op) {
			l.backlog.pushFront(op)
			return
		}
		op.state = opActive
	}
}

// finish is called by the backend when an operation, or a step of it, has ended.
func (l *Loop) finish(op *Op, r result) {
	if r.more {
		op.owner.complete(op, r)
		return
	}
	op.state = opIdle
	l.active--
	if op.Timeout > 0 {
		l.wheel.stop(&op.timer)
		if op.late && r.err == unix.ECANCELED {
			r.err = ErrTimeout
		}
	}
	op.owner.complete(op, r)
}
