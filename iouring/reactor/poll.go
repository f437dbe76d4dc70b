package reactor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// poll is the backend without a ring: sockets do not block and epoll, edge-triggered, tells when to try again; file operations
// block, each on one of a few goroutines.
//
// An operation on a socket is tried in the wait after it was started and whenever epoll says so. Those to try are in a list.
type poll struct {
	l      *Loop
	ep     int
	socks  []*pollSock // by descriptor
	try    opList
	buf    []byte // into which small data is received
	events [128]unix.EpollEvent
	asked  [1]unix.PollFd

	jobs    chan *Op // has room for all that start admits
	inJobs  int
	done    atomic.Pointer[Op] // file operations that workers have done, the newest first
	workers sync.WaitGroup

	wakeMu sync.Mutex
	event  int     // eventfd, -1 when closed
	one    [8]byte // what is written to it
	count  [8]byte // what is read from it
}

// pollSock is what is under way on one socket, and what epoll has said since the last attempt that found nothing.
type pollSock struct {
	in, out            *Op
	readable, writable bool
	hung               bool // the peer's end, or an error, has been seen: a short read is not the last
}

const (
	pollEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&math.MaxUint32
	// pollQuota is how often one operation that goes on is tried in one turn, so that others come between.
	pollQuota = 8
	// inTry in Op.handle says that it is in the list of those to try.
	inTry = 1
)

var _ backend = (*poll)(nil)

func newPoll(l *Loop) (backend, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), unix.Close(ep))
	}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(event)}); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll_ctl: %w", err), unix.Close(ep), unix.Close(event))
	}
	p := &poll{l: l, ep: ep, event: event, buf: make([]byte, l.o.BufferSize), jobs: make(chan *Op, l.o.Operations)}
	binary.NativeEndian.PutUint64(p.one[:], 1)
	for range l.o.Workers {
		p.workers.Add(1)
		go p.work()
	}
	return p, nil
}

func (p *poll) adopt(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	return p.watch(fd)
}

func (p *poll) watch(fd int) error {
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: pollEvents, Fd: int32(fd)}); err != nil {
		return err
	}
	for len(p.socks) <= fd {
		p.socks = append(p.socks, make([]*pollSock, len(p.socks)+64)...)
	}
	p.socks[fd] = &pollSock{writable: true}
	return nil
}

func (p *poll) forget(fd int) {
	_ = unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil)
	p.socks[fd] = nil
}

func (p *poll) start(op *Op) bool {
	op.handle = 0
	switch op.code {
	case opRead, opWrite, opSync, opPunch, opAllocate:
		if p.inJobs == cap(p.jobs) {
			return false
		}
		p.inJobs++
		p.jobs <- op
		return true
	case opSend, opSendMsg:
		s := p.socks[op.fd]
		s.out = op
		if s.writable {
			p.again(op)
		}
	default:
		op.done = 0
		s := p.socks[op.fd]
		s.in = op
		if s.readable || op.code == opPoll {
			p.again(op)
		}
	}
	return true
}

// again has op tried soon.
func (p *poll) again(op *Op) {
	if op.handle != inTry {
		op.handle = inTry
		p.try.push(op)
	}
}

func (p *poll) cancel(op *Op) {
	switch op.code {
	case opRead, opWrite, opSync, opPunch, opAllocate: // nothing ends a system call that has begun
	default:
		p.again(op)
	}
}

func (p *poll) wake() {
	p.wakeMu.Lock()
	defer p.wakeMu.Unlock()
	if p.event >= 0 {
		_, _ = unix.Write(p.event, p.one[:]) // fails only if it is awake anyway
	}
}

func (p *poll) wait(d time.Duration) error {
	ms := -1
	if p.try.n > 0 || p.done.Load() != nil {
		ms = 0
	} else if d >= 0 {
		ms = int(min((d+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
	}
	n, err := unix.EpollWait(p.ep, p.events[:], ms)
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("epoll_wait: %w", err)
	}
	for _, e := range p.events[:max(n, 0)] {
		if int(e.Fd) == p.event {
			_, _ = unix.Read(p.event, p.count[:])
			continue
		}
		p.note(p.socks[e.Fd], e.Events)
	}
	p.l.woke()
	for n := p.try.n; n > 0; n-- {
		op := p.try.pop()
		op.handle = 0
		p.attempt(op)
	}
	for op := p.done.Swap(nil); op != nil; {
		next := op.next
		op.next = nil
		p.inJobs--
		p.l.finish(op, op.res)
		op = next
	}
	return nil
}

// note takes note of what epoll has said of a socket.
func (p *poll) note(s *pollSock, events uint32) {
	const end = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if s == nil {
		return
	}
	s.hung = s.hung || events&end != 0
	if events&(unix.EPOLLIN|end) != 0 {
		s.readable = true
		if s.in != nil {
			p.again(s.in)
		}
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.writable = true
		if s.out != nil {
			p.again(s.out)
		}
	}
}

// attempt goes on with an operation on a socket.
func (p *poll) attempt(op *Op) {
	s := p.socks[op.fd]
	switch {
	case op.killed:
		p.end(s, op, result{err: unix.ECANCELED})
	case op.code == opAccept:
		p.accept(s, op)
	case op.code == opRecv:
		p.recv(s, op)
	case op.code == opFill:
		p.fill(s, op)
	case op.code == opPoll:
		p.poll(s, op)
	default:
		p.send(s, op)
	}
}

// end finishes an operation that does not go on.
func (p *poll) end(s *pollSock, op *Op, r result) {
	if s.in == op {
		s.in = nil
	} else {
		s.out = nil
	}
	p.l.finish(op, r)
}

// live reports whether an operation goes on after it was told of a step.
func (p *poll) live(s *pollSock, op *Op) bool { return s.in == op && op.handle != inTry }

func (p *poll) accept(s *pollSock, op *Op) {
	for range pollQuota {
		fd, _, err := unix.Accept4(int(op.fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case nil:
			p.l.finish(op, result{n: fd, more: true})
			if !p.live(s, op) {
				return
			}
		case unix.EAGAIN:
			s.readable = false
			return
		default:
			p.end(s, op, result{err: err})
			return
		}
	}
	p.again(op)
}

func (p *poll) recv(s *pollSock, op *Op) {
	for range pollQuota {
		n, err := unix.Read(int(op.fd), p.buf)
		switch {
		case err == unix.EAGAIN:
			s.readable = false
			return
		case err == unix.EINTR:
			continue
		case err != nil || n == 0 || !op.multi:
			p.end(s, op, result{n: max(n, 0), err: err, data: p.buf[:max(n, 0)]})
			return
		}
		if n < len(p.buf) && !s.hung {
			s.readable = false // epoll tells of what comes from now on
		}
		p.l.finish(op, result{n: n, data: p.buf[:n], more: true})
		if !p.live(s, op) || !s.readable {
			return
		}
	}
	p.again(op)
}

// fill receives until the buffer is full, as MSG_WAITALL would.
func (p *poll) fill(s *pollSock, op *Op) {
	for range pollQuota {
		n, err := unix.Read(int(op.fd), op.buf[op.done:])
		switch {
		case err == unix.EAGAIN:
			s.readable = false
			return
		case err == unix.EINTR:
			continue
		case err != nil:
			p.end(s, op, result{err: err})
			return
		}
		op.done += n
		if n == 0 || op.done == len(op.buf) {
			p.end(s, op, result{n: op.done})
			return
		}
	}
	p.again(op)
}

// poll asks for events, since epoll has told only of changes. Until the next one there are none if there are none now.
func (p *poll) poll(s *pollSock, op *Op) {
	p.asked[0] = unix.PollFd{Fd: op.fd, Events: int16(op.n)}
	n, err := unix.Poll(p.asked[:], 0)
	switch {
	case err == unix.EINTR:
		p.again(op)
	case err != nil:
		p.end(s, op, result{err: err})
	case n == 0:
		s.readable = false
	default:
		p.end(s, op, result{n: int(p.asked[0].Revents)})
	}
}

func (p *poll) send(s *pollSock, op *Op) {
	for {
		var n int
		var err error
		if op.code == opSend {
			n, err = unix.Write(int(op.fd), op.buf)
		} else {
			n, err = sendmsg(int(op.fd), op.vec)
		}
		switch err {
		case unix.EINTR:
		case unix.EAGAIN:
			s.writable = false
			return
		default:
			p.end(s, op, result{n: max(n, 0), err: err})
			return
		}
	}
}

// work does file operations.
func (p *poll) work() {
	defer p.workers.Done()
	for op := range p.jobs {
		op.res = fileCall(op)
		for {
			op.next = p.done.Load()
			if p.done.CompareAndSwap(op.next, op) {
				break
			}
		}
		p.l.rouse()
	}
}

// fileCall does a file operation, or as much of it as the kernel does at once.
func fileCall(op *Op) (r result) {
	switch op.code {
	case opRead:
		r.n, r.err = unix.Pread(int(op.fd), op.buf, op.off)
	case opWrite:
		r.n, r.err = unix.Pwrite(int(op.fd), op.buf, op.off)
	case opSync:
		r.err = unix.Fdatasync(int(op.fd))
	case opPunch:
		r.err = unix.Fallocate(int(op.fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.n)
	case opAllocate:
		r.err = unix.Fallocate(int(op.fd), 0, op.off, op.n)
	default:
		r.err = io.ErrNoProgress
	}
	r.n = max(r.n, 0)
	return r
}

func (p *poll) close() error {
	close(p.jobs)
	p.workers.Wait()
	p.wakeMu.Lock()
	defer p.wakeMu.Unlock()
	err := errors.Join(unix.Close(p.event), unix.Close(p.ep))
	p.event = -1
	return err
}
