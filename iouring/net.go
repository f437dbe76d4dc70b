package iouring

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Accept queues the acceptance of one connection. The completion's N is the new descriptor, close-on-exec and blocking, as io_uring
// wants it: an operation on a descriptor with O_NONBLOCK ends with EAGAIN instead of waiting.
func (r *Ring) Accept(fd FD, data uint64) (Op, error) {
	e, _, err := r.take(OpAccept, fd, data)
	if err != nil {
		return 0, err
	}
	e.OpFlags = unix.SOCK_CLOEXEC
	return Op(e.UserData), nil
}

// AcceptMulti queues the acceptance of connections until a completion without More: then queue it again. Without
// MultishotAccept every completion is of that kind.
func (r *Ring) AcceptMulti(fd FD, data uint64) (Op, error) {
	o, err := r.Accept(fd, data)
	if err == nil && r.has.Has(MultishotAccept) {
		r.last.Ioprio |= acceptMultishot
	}
	return o, err
}

// AcceptDirect queues the acceptance of one connection into place i of the table of files, whose file, if any, is closed.
func (r *Ring) AcceptDirect(fd FD, i int, data uint64) (Op, error) {
	if i < 0 || i >= r.files {
		return 0, fmt.Errorf("io_uring: accept into place %d of %d files: %w", i, r.files, unix.EINVAL)
	}
	o, err := r.Accept(fd, data)
	if err == nil {
		r.last.OpFlags, r.last.FileIndex = 0, uint32(i)+1
	}
	return o, err
}

// AcceptDirectMulti is AcceptMulti into the table of files: N is the place that the kernel chose (see FileRange). With
// ENFILE, when none is empty, it ends. It needs DirectAlloc and does not fall back: accept descriptors and register them with
// SetFile then.
func (r *Ring) AcceptDirectMulti(fd FD, data uint64) (Op, error) {
	if !r.has.Has(DirectAlloc) || r.files == 0 {
		return 0, fmt.Errorf("accept into the table of files: %w", ErrUnsupported)
	}
	o, err := r.AcceptMulti(fd, data)
	if err == nil {
		r.last.OpFlags, r.last.FileIndex = 0, fileIndexAlloc
	}
	return o, err
}

// Connect queues a connection to an IPv4, IPv6 or UNIX address.
func (r *Ring) Connect(fd FD, to unix.Sockaddr, data uint64) (Op, error) {
	var name [unix.SizeofSockaddrUnix]byte
	n, err := putSockaddr(&name, to)
	if err != nil {
		return 0, err
	}
	e, s, err := r.take(OpConnect, fd, data)
	if err != nil {
		return 0, err
	}
	a := s.arguments()
	a.name = name
	e.Addr, e.Off = address(a.name[:]), uint64(n)
	return Op(e.UserData), nil
}

// putSockaddr writes a struct sockaddr and returns its length.
func putSockaddr(p *[unix.SizeofSockaddrUnix]byte, to unix.Sockaddr) (int, error) {
	le, be := binary.NativeEndian, binary.BigEndian
	switch a := to.(type) {
	case *unix.SockaddrInet4:
		le.PutUint16(p[0:], unix.AF_INET)
		be.PutUint16(p[2:], uint16(a.Port))
		copy(p[4:8], a.Addr[:])
		return unix.SizeofSockaddrInet4, nil
	case *unix.SockaddrInet6:
		le.PutUint16(p[0:], unix.AF_INET6)
		be.PutUint16(p[2:], uint16(a.Port))
		copy(p[8:24], a.Addr[:])
		le.PutUint32(p[24:], a.ZoneId)
		return unix.SizeofSockaddrInet6, nil
	case *unix.SockaddrUnix:
		if len(a.Name) == 0 || len(a.Name) >= len(p)-2 {
			return 0, fmt.Errorf("io_uring: UNIX address of %d bytes: %w", len(a.Name), unix.EINVAL)
		}
		le.PutUint16(p[0:], unix.AF_UNIX)
		copy(p[2:], a.Name)
		n := 2 + len(a.Name) + 1
		if a.Name[0] == '@' { // an abstract name begins with a zero and has none at its end
			p[2], n = 0, n-1
		}
		return n, nil
	}
	return 0, fmt.Errorf("io_uring: address of type %T: %w", to, unix.EAFNOSUPPORT)
}

// Recv queues a reception into p with recv(2)'s flags. With MSG_WAITALL the kernel goes on until p is full or the stream ends.
func (r *Ring) Recv(fd FD, p []byte, flags int, data uint64) (Op, error) {
	o, err := r.transfer(OpRecv, fd, p, 0, data)
	if err == nil {
		r.last.OpFlags = uint32(flags)
	}
	return o, err
}

// RecvV is Recv into several buffers, in order. The slice itself may be reused at once.
func (r *Ring) RecvV(fd FD, bufs [][]byte, flags int, data uint64) (Op, error) {
	return r.message(OpRecvmsg, fd, bufs, flags, data)
}

// RecvSelect queues a reception into a buffer of g that the kernel chooses when there is something to receive. ENOBUFS means that
// g had none: Recycle and queue it again.
func (r *Ring) RecvSelect(fd FD, g *BufferGroup, data uint64) (Op, error) {
	if err := g.usable(r); err != nil {
		return 0, err
	}
	if len(g.back) > 0 && !r.linked() {
		g.provide() // before it, else it would find none
	}
	e, s, err := r.take(OpRecv, fd, data)
	if err != nil {
		return 0, err
	}
	s.group = g
	e.Flags, e.BufIndex = e.Flags|sqeBufferSelect, g.id
	e.Len = uint32(g.size) // before 6.0, 0 does not mean as much as fits
	return Op(e.UserData), nil
}

// RecvMulti queues receptions into buffers of g until a completion without More: then queue it again. It ends with ENOBUFS
// when g has none left, with 0 bytes when the stream ends, and on errors; kernels also end it for their own reasons. Without MultishotRecv
// every completion is of that kind.
func (r *Ring) RecvMulti(fd FD, g *BufferGroup, data uint64) (Op, error) {
	o, err := r.RecvSelect(fd, g, data)
	if err == nil && r.has.Has(MultishotRecv) {
		r.last.Ioprio |= recvMultishot
		r.last.Len = 0
	}
	return o, err
}

// Send queues a send of p with send(2)'s flags, MSG_NOSIGNAL added. N may be less than len(p), except with MSG_WAITALL where it is an
// error's doing. Sends to one socket must not overlap, or their bytes may mix.
func (r *Ring) Send(fd FD, p []byte, flags int, data uint64) (Op, error) {
	o, err := r.transfer(OpSend, fd, p, 0, data)
	if err == nil {
		r.last.OpFlags = uint32(flags | unix.MSG_NOSIGNAL)
	}
	return o, err
}

// SendV is Send of several buffers, in order. The slice itself may be reused at once.
func (r *Ring) SendV(fd FD, bufs [][]byte, flags int, data uint64) (Op, error) {
	return r.message(OpSendmsg, fd, bufs, flags|unix.MSG_NOSIGNAL, data)
}

// SendZC is Send from the caller's pages. The first completion says how much was sent, and has More if the network still
// uses p; then a second one, Notif, follows when it does not. Without the feature it is Send: the buffer is
// the caller's again at the completion without More, either way. That can take as long as the peer does not acknowledge what it got, and
// cannot be cancelled: shut such a socket down before Close. It pays from about 10 KiB on, not on loopback, where the
// kernel copies, and UNIX sockets answer EOPNOTSUPP.
func (r *Ring) SendZC(fd FD, p []byte, flags int, data uint64) (Op, error) {
	o, err := r.Send(fd, p, flags, data)
	if err == nil {
		r.zeroCopy(OpSendZC, SendZC)
	}
	return o, err
}

// SendZCFixed is SendZC of p, which lies within the registered buffer at place index.
func (r *Ring) SendZCFixed(fd FD, p []byte, flags int, index int, data uint64) (Op, error) {
	if err := r.within(p, index); err != nil {
		return 0, err
	}
	o, err := r.SendZC(fd, p, flags, data)
	if err == nil && r.has.Has(SendZC) {
		r.last.Ioprio |= recvsendFixedBuf
		r.last.BufIndex = uint16(index)
	}
	return o, err
}

// SendZCV is SendZC of several buffers.
func (r *Ring) SendZCV(fd FD, bufs [][]byte, flags int, data uint64) (Op, error) {
	o, err := r.SendV(fd, bufs, flags, data)
	if err == nil {
		r.zeroCopy(OpSendmsgZC, SendmsgZC)
	}
	return o, err
}

func (r *Ring) zeroCopy(op Opcode, f Feature) {
	if !r.has.Has(f) {
		return
	}
	r.last.Opcode = op
	if r.has.Has(ReportUsage) {
		r.last.Ioprio |= sendZCReport
	}
}

// message queues a SENDMSG or RECVMSG. The kernel reads the message's header when the entry is handed over, but the buffers later.
func (r *Ring) message(op Opcode, fd FD, bufs [][]byte, flags int, data uint64) (Op, error) {
	if len(bufs) == 0 || len(bufs) > maxVec {
		return 0, unix.EINVAL
	}
	e, s, err := r.take(op, fd, data)
	if err != nil {
		return 0, err
	}
	e.Addr, e.Len, e.OpFlags = s.header(bufs), 1, uint32(flags)
	return Op(e.UserData), nil
}

// Shutdown queues shutdown(2).
func (r *Ring) Shutdown(fd FD, how int, data uint64) (Op, error) {
	e, _, err := r.take(OpShutdown, fd, data)
	if err != nil {
		return 0, err
	}
	e.Len = uint32(how)
	return Op(e.UserData), nil
}

// Poll queues a wait for events of poll(2), EPOLL* or POLL*. The completion's N are those that came.
func (r *Ring) Poll(fd FD, events uint32, data uint64) (Op, error) {
	e, _, err := r.take(OpPollAdd, fd, data)
	if err != nil {
		return 0, err
	}
	e.OpFlags = events
	return Op(e.UserData), nil
}

// PollMulti is Poll that goes on until a completion without More: then queue it again.
func (r *Ring) PollMulti(fd FD, events uint32, data uint64) (Op, error) {
	o, err := r.Poll(fd, events, data)
	if err == nil {
		r.last.Len = pollAddMulti
	}
	return o, err
}
