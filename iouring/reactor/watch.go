package reactor

import (
	"fmt"

	"varve/iouring"
)

// Watch makes Poll possible on fd, which does not block and stays the caller's.
func (l *Loop) Watch(fd int) error {
	if err := l.b.watch(fd); err != nil {
		return fmt.Errorf("watch a descriptor: %w", err)
	}
	return nil
}

// Unwatch ends what Watch began: when no Poll of fd is under way, before it is closed.
func (l *Loop) Unwatch(fd int) { l.b.forget(fd) }

// Poll waits until fd has one of these events of poll(2), once. Done's n are those that it has, of which another thread may have had the use already. With
// EPOLLEXCLUSIVE among the events one of those who wait so is woken, where there is a ring, and not all.
func (l *Loop) Poll(op *Op, fd int, events uint32) {
	op.code, op.fd, op.buf, op.n = opPoll, int32(fd), nil, int64(events)
	l.start(op, l)
}

// Raw has the kernel do an operation as it is, such as a command of a device (iouring.OpUringCmd), where there is a ring: Kind is Ring. Commands of 80 bytes need
// Options.Ring.SQE128. Done's n is the kernel's result. o belongs to the operation until then, and so does the memory it names; a command that cannot be
// cancelled, as FUSE's, must be ended by other means before Close.
func (l *Loop) Raw(op *Op, o *iouring.Raw) {
	if l.kind != Ring {
		panic("reactor: Raw without a ring")
	}
	op.code, op.fd, op.buf, op.raw = opRaw, -1, nil, o
	l.start(op, l)
}

// Cancel asks the kernel to end an operation of the loop's own early, such as a Poll. Done is called as always, when it has ended.
func (l *Loop) Cancel(op *Op) { l.cancel(op) }

// complete implements completer.
func (l *Loop) complete(op *Op, r result) { op.Done(max(r.n, 0), r.err) }
