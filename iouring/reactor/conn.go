package reactor

import (
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Handler is told what happens on a connection, on the loop's thread. It may call all methods of the connection.
type Handler interface {
	// OnData gets bytes in the order in which they came, and returns how many of them it has used. The others come again
	// with what follows them, when there is more than this time. p is the loop's: it must not be kept. After Fill, Pause or Close the rest waits.
	OnData(c *Conn, p []byte) int
	// OnFilled gives back the buffer that was handed to Fill, full.
	OnFilled(c *Conn, p []byte)
	// OnDrain says that a connection that was congested is so no more.
	OnDrain(c *Conn)
	// OnClose is the last call, when the kernel uses no buffer of the connection's any more: neither the one of Fill nor those of
	// Sends, whose Done was called before. err is io.EOF if the peer closed it between messages: all that came was consumed.
	OnClose(c *Conn, err error)
}

// Conn is one connection of a stream socket.
type Conn struct {
	// Value is the handler's own.
	Value any

	l       *Loop
	h       Handler
	layer   Layer // h, if it is one
	fd      int
	err     error // why it is closed; nil while it lives
	gone    bool  // OnClose was called
	paused  bool
	feeding bool

	// Receiving. At most one of recv and fill is under way, but for a recv that is being cancelled.
	recv   Op
	fill   Op
	want   []byte // what Fill has yet to get
	target []byte // all of it
	filled bool   // want is empty now, OnFilled is to be called
	held   []byte // received and not consumed; in store, if that has room
	store  []byte
	need   int // OnData wants at least so much; 0: anything
	exact  int // receives of one buffer until many are asked for in one operation again

	sending sendQueue

	queued     bool // in the loop's list of what has something to do
	dirtyNext  *Conn
	prev, next *Conn
}

const (
	// minFill is the smallest rest of a Fill, in bytes, for which a receive of its own costs less than copying.
	minFill = 8 << 10
	// exactAfterFill is how many receives are asked for one by one after a Fill, in case another follows: what is received
	// by an operation that goes on by itself has to be copied.
	exactAfterFill = 64
)

// Adopt makes fd, a connected stream socket, a connection of the loop, which closes fd from then on. An error leaves fd to the caller. Bytes
// that were read from it before can be given back with Unread.
func (l *Loop) Adopt(fd int, h Handler) (*Conn, error) {
	if l.closing {
		return nil, ErrClosed
	}
	if err := l.b.adopt(fd); err != nil {
		return nil, fmt.Errorf("adopt a socket: %w", err)
	}
	c := &Conn{l: l, h: h, fd: fd, next: l.conns}
	if c.next != nil {
		c.next.prev = c
	}
	l.conns = c
	c.layer, _ = h.(Layer)
	l.stats.conns.Add(1)
	c.recv.code, c.recv.fd = opRecv, int32(fd)
	c.fill.code, c.fill.fd, c.fill.Timeout = opFill, int32(fd), l.o.FillTimeout
	c.sending.init(c)
	c.arm()
	return c, nil
}

// Loop returns the loop that the connection belongs to.
func (c *Conn) Loop() *Loop { return c.l }

// Closed says that Close was called, or the connection has failed.
func (c *Conn) Closed() bool { return c.err != nil }

// Unread gives bytes to the handler as if they had just been received, before all others. It must not be called in OnData.
func (c *Conn) Unread(p []byte) {
	store := make([]byte, 0, len(p)+len(c.held))
	c.held, c.store = append(append(store, p...), c.held...), store
	c.kick()
}

// Need has OnData called only when at least n bytes are there. It holds for the next call only, and is limited to Options.Held.
func (c *Conn) Need(n int) { c.need = min(n, c.l.o.Held) }

// Fill has the next len(p) bytes put into p, which belongs to the connection until OnFilled or OnClose. What was received
// already is copied, the rest is received in place. There may be one Fill at a time; OnData is not called before it is done.
func (c *Conn) Fill(p []byte) {
	if c.target != nil || len(p) == 0 {
		panic("reactor: Fill of nothing, or while another is under way")
	}
	c.want, c.target = p, p
	c.kick()
}

// Pause stops OnData and OnFilled, and soon reading, until Resume.
func (c *Conn) Pause() { c.paused = true }

// Paused says that Pause was called, and Resume was not since.
func (c *Conn) Paused() bool { return c.paused }

// Resume ends a pause.
func (c *Conn) Resume() {
	c.paused = false
	c.kick()
}

// kick has the loop look at the connection in this turn, unless it is doing so already.
func (c *Conn) kick() {
	if !c.feeding {
		c.queue()
	}
}

// queue puts the connection into the loop's list of what has something to do.
func (c *Conn) queue() {
	if !c.queued && !c.gone {
		c.queued = true
		c.dirtyNext, c.l.dirty = c.l.dirty, c
	}
}

// flush does what connections have to do: send, deliver what they hold, end.
func (l *Loop) flush() {
	c := l.dirty
	l.dirty = nil
	for c != nil {
		next := c.dirtyNext
		c.dirtyNext, c.queued = nil, false
		c.turn()
		c = next
	}
}

func (c *Conn) turn() {
	if c.err != nil {
		c.finish()
		return
	}
	if c.layer != nil && !c.ownTurn() {
		return
	}
	c.sending.send()
	if len(c.held) > 0 || c.filled {
		c.deliver(nil)
	}
	c.arm()
}

// stopped says that nothing may be delivered now.
func (c *Conn) stopped() bool { return c.paused || c.err != nil || c.sending.congested }

// deliver gives the handler what is held and then p, and keeps what it does not consume.
func (c *Conn) deliver(p []byte) {
	if c.feeding {
		panic("reactor: delivery inside a delivery")
	}
	c.feeding = true
	defer func() { c.feeding = false }()
	for len(c.held) > 0 {
		if !c.stopped() && c.need > len(c.held) && c.want == nil {
			// Only as much as the handler waits for is copied.
			n := min(c.need-len(c.held), len(p))
			c.hold(p[:n])
			p = p[n:]
		}
		rest := c.consume(c.held)
		stuck := len(rest) == len(c.held)
		c.held = rest
		if len(rest) > 0 && (stuck || c.stopped()) {
			if len(p) == 0 || !c.hold(p) || c.stopped() {
				return
			}
			p = nil
		}
	}
	c.held = nil
	if cap(c.store) > c.l.o.Held {
		c.store = nil
	}
	if rest := c.consume(p); len(rest) > 0 {
		c.hold(rest)
	}
}

// consume gives p to the handler and returns what is left of it.
func (c *Conn) consume(p []byte) []byte {
	for {
		switch {
		case c.stopped():
			return p
		case c.filled:
			b := c.target
			c.target, c.want, c.filled = nil, nil, false
			c.h.OnFilled(c, b)
		case len(p) == 0:
			return p
		case c.want != nil:
			n := copy(c.want, p)
			p, c.want = p[n:], c.want[n:]
			c.filled = len(c.want) == 0
		case len(p) < c.need:
			return p
		default:
			c.need = 0
			n := c.h.OnData(c, p)
			p = p[n:]
			if n == 0 && c.target == nil {
				return p
			}
		}
	}
}

// hold keeps p behind what is held already. It returns false if that is too much.
func (c *Conn) hold(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if !c.stopped() && len(c.held)+len(p) > c.l.o.Held+c.l.o.BufferSize {
		c.fail(fmt.Errorf("%d bytes were received and the handler consumes none of them", len(c.held)+len(p)))
		return false
	}
	switch n := len(c.held) + len(p); {
	case cap(c.held)-len(c.held) >= len(p):
		c.held = append(c.held, p...)
	case cap(c.store) >= n:
		c.held = append(append(c.store[:0], c.held...), p...)
	default:
		c.store = make([]byte, 0, max(n, 2*cap(c.store)))
		c.held = append(append(c.store, c.held...), p...)
	}
	return true
}

// arm asks for what the connection can take next.
func (c *Conn) arm() {
	if c.err != nil || c.fill.UnderWay() {
		return
	}
	direct := len(c.want) >= minFill && len(c.held) == 0 && !c.paused && !c.sending.congested
	if c.recv.UnderWay() {
		if c.recv.multi && (direct || c.stopped()) {
			c.exact = exactAfterFill
			c.l.cancel(&c.recv) // it ends first; what it brings until then is copied or held
		}
		return
	}
	switch {
	case c.paused || c.sending.congested || c.filled:
	case direct:
		c.exact = exactAfterFill
		c.fill.buf = c.want
		c.l.start(&c.fill, c)
	default:
		c.recv.multi = c.exact == 0
		if c.exact > 0 {
			c.exact--
		}
		c.l.start(&c.recv, c)
	}
}

// complete implements completer.
func (c *Conn) complete(op *Op, r result) {
	switch {
	case op == &c.sending.op:
		c.sending.complete(r)
	case r.err == unix.EINTR || r.err == unix.ENOBUFS:
		// No buffer was free: those of this turn are by now.
	case r.err != nil:
		if !op.killed || c.err != nil || r.err != unix.ECANCELED {
			c.fail(fmt.Errorf("receive: %w", r.err))
		}
	case r.n == 0:
		c.eof()
	case c.err != nil:
	case op == &c.fill && op.late && r.n < len(c.want): // what had come by then does not buy it more time
		c.fail(fmt.Errorf("receive: %w", ErrTimeout))
	case op == &c.fill:
		c.want = c.want[r.n:]
		c.filled = len(c.want) == 0
		c.deliver(nil)
	default:
		c.deliver(r.data)
	}
	if c.err != nil {
		c.queue()
		return
	}
	if !r.more {
		c.arm()
	} else if c.recv.multi && (c.stopped() || len(c.want) >= minFill) {
		c.arm()
	}
}

// eof notes that the peer has closed its side, which ends the connection.
func (c *Conn) eof() {
	if len(c.held) > 0 || c.want != nil {
		c.fail(io.ErrUnexpectedEOF)
		return
	}
	c.fail(io.EOF)
}

func (c *Conn) fail(err error) { c.Close(err) }

// Close ends the connection: what is queued and not sent is dropped, OnClose follows when the kernel has let go of all buffers.
// err, or ErrClosed if that is nil, is what OnClose gets. Only the first call counts.
func (c *Conn) Close(err error) {
	if c.err != nil {
		return
	}
	if err == nil {
		err = ErrClosed
	}
	c.err = err
	// This ends whatever waits for the socket, in every kernel and mode.
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	c.l.cancel(&c.recv)
	c.l.cancel(&c.fill)
	c.l.cancel(&c.sending.op)
	c.queue()
}

// finish ends a closed connection if nothing of it is under way any more.
func (c *Conn) finish() {
	if c.gone || c.recv.UnderWay() || c.fill.UnderWay() || c.sending.op.UnderWay() {
		return
	}
	c.sending.drop(c.err)
	c.gone = true
	c.l.b.forget(c.fd)
	_ = unix.Close(c.fd)
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		c.l.conns = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.l.stats.conns.Add(-1)
	c.held, c.store, c.want = nil, nil, nil
	c.h.OnClose(c, c.err)
}

// Reset closes the connection so that the peer sees an error (RST), not an end.
func (c *Conn) Reset(err error) {
	if c.err == nil {
		_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	c.Close(err)
}

// RemoteAddr returns the peer's address, nil if it has none.
func (c *Conn) RemoteAddr() net.Addr {
	sa, err := unix.Getpeername(c.fd)
	if err != nil {
		return nil
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: a.Name, Net: "unix"}
	}
	return nil
}
