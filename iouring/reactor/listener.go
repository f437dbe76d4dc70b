package reactor

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listener accepts connections.
type Listener struct {
	l      *Loop
	op     Op
	accept func(fd int)
	again  Timer
	closed bool
	prev   *Listener
	next   *Listener
}

// acceptPause is how long a listener waits that could not accept for want of descriptors or memory.
const acceptPause = 50 * time.Millisecond

// Listen accepts connections on fd, a listening stream socket, which the loop closes from then on. accept gets each new descriptor
// and owns it; it usually calls Adopt, of this loop or, posted, of another. An error leaves fd to the caller.
func (l *Loop) Listen(fd int, accept func(fd int)) (*Listener, error) {
	if l.closing {
		return nil, ErrClosed
	}
	if err := l.b.adopt(fd); err != nil {
		return nil, fmt.Errorf("adopt a listening socket: %w", err)
	}
	n := &Listener{l: l, accept: accept, next: l.listens}
	n.op = Op{code: opAccept, fd: int32(fd), multi: true}
	n.again.Fire = n.arm
	if n.next != nil {
		n.next.prev = n
	}
	l.listens = n
	n.arm()
	return n, nil
}

func (n *Listener) arm() { n.l.start(&n.op, n) }

// Close stops accepting. The descriptor is closed when the kernel has let go of it.
func (n *Listener) Close() {
	if n.closed {
		return
	}
	n.closed = true
	n.l.StopTimer(&n.again)
	if n.op.UnderWay() {
		_ = unix.Shutdown(int(n.op.fd), unix.SHUT_RDWR) // ends an accept in every kernel and mode
		n.l.cancel(&n.op)
		return
	}
	n.again.Fire = n.end
	n.l.SetTimer(&n.again, 0)
}

func (n *Listener) end() {
	n.l.b.forget(int(n.op.fd))
	_ = unix.Close(int(n.op.fd))
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		n.l.listens = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	}
}

// complete implements completer.
func (n *Listener) complete(_ *Op, r result) {
	if r.err == nil {
		if n.closed {
			_ = unix.Close(r.n)
		} else {
			n.l.stats.accepted.Add(1)
			n.accept(r.n)
		}
	}
	switch {
	case r.more:
	case n.closed:
		n.end()
	case r.err == nil || r.err == unix.EINTR || r.err == unix.ECONNABORTED || r.err == unix.EAGAIN:
		n.arm()
	default:
		n.l.log.Warn("accept failed, going on", "err", r.err)
		n.l.SetTimer(&n.again, acceptPause)
	}
}

// Descriptor returns a descriptor of its own for the socket of a connection or listener of package net, to be given to a loop. The caller closes
// c, which does not end the connection, and must not use it otherwise.
func Descriptor(c syscall.Conn) (int, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dup error
	err = rc.Control(func(p uintptr) { fd, dup = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, dup)
}
