package reactor

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// ErrFull means that a connection has as many sends queued as Options.Sends says.
var ErrFull = errors.New("too many sends are queued")

// Send is a message on its way: a header and a payload, either of which may be empty. Its owner embeds it where the message belongs, and may use
// it again once Done was called.
type Send struct {
	Head, Body []byte // not to be changed until Done
	// Done is called on the loop's thread when the kernel has copied all of it, or the connection has ended before that. nil: nobody
	// wants to know, and the bytes are left alone for good.
	Done func(err error)

	next *Send
	busy bool
}

// Busy says that the message is queued: Done was not called yet.
func (s *Send) Busy() bool { return s.busy }

const (
	// maxParts and maxBytes bound what leaves in one operation.
	maxParts = 64
	maxBytes = 1 << 20
)

// vector is what a vectored send needs in memory while it is under way.
type vector struct {
	parts [maxParts][]byte
	n     int
	hdr   unix.Msghdr // without a ring
	iov   [maxParts]unix.Iovec
}

// sendQueue is what a connection has yet to send, in order.
type sendQueue struct {
	c           *Conn
	op          Op
	first, last *Send
	count       int
	bytes       int // of all queued
	sent        int // of the first, already
	limit       int // bytes, see Conn.SendLimit
	congested   bool
	vec         *vector
}

func (q *sendQueue) init(c *Conn) {
	q.c, q.limit = c, c.l.o.SendBytes
	q.op.fd, q.op.Timeout = int32(c.fd), c.l.o.SendTimeout
}

// Send queues s. Sends of one turn of the loop leave together. An error means that s was not queued and Done will not be called.
// A connection with more than Options.SendBytes queued is congested: it is not read until it has drained, but takes more.
func (c *Conn) Send(s *Send) error {
	q := &c.sending
	switch {
	case c.err != nil:
		return c.err
	case s.busy:
		panic("reactor: Send of a message that is queued")
	case q.count >= c.l.o.Sends:
		return ErrFull
	}
	s.busy, s.next = true, nil
	if q.last == nil {
		q.first = s
	} else {
		q.last.next = s
	}
	q.last = s
	q.count++
	q.bytes += len(s.Head) + len(s.Body)
	if q.bytes > q.limit {
		q.congested = true
	}
	if !q.op.UnderWay() {
		c.queue()
	}
	return nil
}

// SendLimit takes the place of Options.SendBytes for this connection, whose owner bounds by other means what it queues: one that asks must
// read answers whatever it has yet to send, or both sides could wait for each other.
func (c *Conn) SendLimit(bytes int) { c.sending.limit = bytes }

// Congested says that more than Options.SendBytes are queued, and OnDrain will follow.
func (c *Conn) Congested() bool { return c.sending.congested }

// Queued is the number of bytes that wait to be sent.
func (c *Conn) Queued() int { return c.sending.bytes - c.sending.sent }

// send starts an operation with as much as fits, unless one is under way.
func (q *sendQueue) send() {
	if q.op.UnderWay() || q.first == nil {
		return
	}
	q.retire() // empty messages
	if q.first == nil {
		return
	}
	if s := q.first; s.next == nil && (len(s.Head) == 0 || len(s.Body) == 0 || q.sent >= len(s.Head)) {
		p := s.Head
		if q.sent >= len(p) {
			p = s.Body[q.sent-len(p):]
		} else {
			p = p[q.sent:]
		}
		q.op.code, q.op.buf = opSend, p[:min(len(p), maxBytes)]
	} else {
		q.gather()
	}
	q.c.l.start(&q.op, q.c)
}

// gather lists the parts of as many messages as one operation takes.
func (q *sendQueue) gather() {
	if q.vec == nil {
		q.vec = new(vector)
	}
	n, total, skip := 0, 0, q.sent
	for s := q.first; s != nil && n+2 <= maxParts && total < maxBytes; s = s.next {
		for _, p := range [2][]byte{s.Head, s.Body} {
			if skip >= len(p) {
				skip -= len(p)
				continue
			}
			p, skip = p[skip:], 0
			if p = p[:min(len(p), maxBytes-total)]; len(p) > 0 {
				q.vec.parts[n] = p
				n++
				total += len(p)
			}
		}
	}
	q.vec.n = n
	q.op.code, q.op.vec = opSendMsg, q.vec
}

// complete takes note of what has left.
func (q *sendQueue) complete(r result) {
	q.op.buf = nil
	switch {
	case r.err == unix.EINTR || r.err == unix.EAGAIN:
	case r.err == ErrTimeout:
		q.c.fail(fmt.Errorf("send: the peer takes nothing: %w", r.err))
		return
	case r.err != nil:
		q.c.fail(fmt.Errorf("send: %w", r.err))
		return
	case r.n == 0:
		q.c.fail(fmt.Errorf("send: %w", io.ErrShortWrite))
		return
	}
	q.sent += r.n
	q.retire()
	if q.c.err != nil {
		return
	}
	if q.congested && q.bytes-q.sent <= q.limit/2 {
		q.congested = false
		q.c.h.OnDrain(q.c)
		q.c.queue() // what is held, and reading
	}
	if q.first != nil {
		q.c.queue()
	}
}

// retire ends the messages that have left in full.
func (q *sendQueue) retire() {
	for s := q.first; s != nil; s = q.first {
		n := len(s.Head) + len(s.Body)
		if q.sent < n {
			return
		}
		q.sent -= n
		q.pop(nil)
	}
}

func (q *sendQueue) pop(err error) {
	s := q.first
	q.first = s.next
	if q.first == nil {
		q.last = nil
	}
	q.count--
	q.bytes -= len(s.Head) + len(s.Body)
	s.next, s.busy = nil, false
	if s.Done != nil {
		s.Done(err)
	}
}

// drop ends all messages of a connection that has ended.
func (q *sendQueue) drop(err error) {
	q.sent = 0
	for q.first != nil {
		q.pop(err)
	}
}
