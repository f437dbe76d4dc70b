package nbdserver

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/nbd"
	"varve/iouring/reactor"
)

// phase is how far a connection has come.
type phase uint8

const (
	atFlags   phase = iota // the client's handshake flags are awaited
	atOptions              // options
	atWork                 // requests
	winding                // nothing is read any more; it is closed when all is answered
)

// conn is one connection. All of it is used on its thread alone.
type conn struct {
	l    *loop
	c    *reactor.Conn
	peer [1]unix.PollFd // its descriptor, until OnClose

	phase      phase
	late       reactor.Timer // for the negotiation, then for a payload
	zeroes     bool          // what follows the answer to OptExportName is wanted
	structured bool
	status     *export // whose block status was agreed on
	skip       int64   // bytes of an option that is not looked at
	busy       bool    // the client waits for an image to be opened
	options    int     // that came

	open     *opened // nil before the transmission
	offer    *nbd.Export
	cur      *request // whose memory or payload is awaited
	begging  bool     // in loop.waiting
	underWay int      // requests, until their answers have left
	held     int      // bytes of their memory
	ended    bool     // OnClose was called
	left     bool     // open knows that the client has gone
	logged   time.Time
}

var _ reactor.Handler = (*conn)(nil)

// statusContext is the number by which base:allocation goes in replies.
const statusContext = 1

// adopt begins to serve a connection.
func (l *loop) adopt(a arrival) {
	d := &conn{l: l}
	d.peer[0] = unix.PollFd{Fd: int32(a.fd), Events: unix.POLLRDHUP}
	c, err := l.Adopt(a.fd, d)
	if err != nil {
		_ = unix.Close(a.fd)
		l.s.left()
		return
	}
	d.c = c
	l.conns[d] = struct{}{}
	d.late.Fire = func() { d.close(errLate) }
	l.SetTimer(&d.late, l.s.o.Negotiation)
	if a.greeted {
		d.phase, d.zeroes = atOptions, a.zeroes
	} else {
		c.Need(4)
		d.say(nbd.AppendGreeting(nil))
	}
	if l.closing {
		d.wind()
	}
}

var errLate = errors.New("the client did not get on in time")

// say sends bytes of the negotiation.
func (d *conn) say(p []byte) {
	if err := d.c.Send(&reactor.Send{Head: p}); err != nil {
		d.close(err)
	}
}

func (d *conn) close(err error) {
	d.c.Close(err)
	d.leave()
}

// errGone is why what a client has sent, and was not begun before it went, is dropped: it may have sent it again by another connection, and then something else in its
// place.
var errGone = errors.New("the client has hung up")

// gone reports whether the client has hung up, though what it has sent before may still be to be read.
func (d *conn) gone() bool {
	if d.ended {
		return true
	}
	d.peer[0].Revents = 0
	n, err := unix.Poll(d.peer[:], 0)
	return err == nil && n > 0
}

// leave tells the open image that nothing more is read of the client.
func (d *conn) leave() {
	if d.open != nil && !d.left {
		d.left = true
		d.open.leave()
	}
}

// wind closes the connection as soon as all that is under way is answered.
func (d *conn) wind() {
	d.c.Pause()
	d.phase = winding
	d.leave()
	d.wound()
}

func (d *conn) wound() {
	n := d.underWay
	if d.cur != nil { // a write whose payload has not come, or a request without memory: it is never begun
		n--
	}
	if d.phase == winding && n == 0 && !d.busy {
		d.close(nil)
	}
}

// OnData implements reactor.Handler.
func (d *conn) OnData(c *reactor.Conn, p []byte) int {
	switch d.phase {
	case atFlags:
		return d.flags(p)
	case atOptions:
		return d.option(p)
	case atWork:
		return d.request(p)
	}
	return 0
}

// OnFilled implements reactor.Handler: the payload of a write is there.
func (d *conn) OnFilled(*reactor.Conn, []byte) {
	d.l.StopTimer(&d.late)
	q := d.cur
	d.cur = nil
	if d.underWay >= maxRequests {
		d.c.Pause()
	}
	d.start(q)
}

// OnDrain implements reactor.Handler.
func (d *conn) OnDrain(*reactor.Conn) {}

// OnClose implements reactor.Handler.
func (d *conn) OnClose(_ *reactor.Conn, err error) {
	d.l.StopTimer(&d.late)
	d.ended = true
	d.leave()
	if q := d.cur; q != nil {
		d.cur = nil
		q.drop()
	}
	if errors.Is(err, nbd.ErrProtocol) || errors.Is(err, errLate) {
		d.l.s.log.Warn("an NBD client was hung up on", "err", err)
	} else if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, reactor.ErrClosed) {
		d.l.s.log.Info("an NBD client has gone", "cause", err)
	}
	d.finish()
}

// finish forgets a connection that has ended and has nothing under way.
func (d *conn) finish() {
	if !d.ended || d.underWay > 0 || d.busy {
		return
	}
	delete(d.l.conns, d)
	s, o := d.l.s, d.open
	d.open = nil
	if o == nil {
		s.left()
		return
	}
	s.wg.Add(1) // before left, which lets Shutdown wait for it
	go func() {
		defer s.wg.Done()
		o.release()
	}()
	s.left()
}

// request takes the head of one request.
func (d *conn) request(p []byte) int {
	if len(p) < nbd.RequestSize {
		d.c.Need(nbd.RequestSize)
		return 0
	}
	r, err := nbd.DecodeRequest(p)
	if err != nil {
		d.close(err)
		return 0
	}
	if r.Command == nbd.CmdDisconnect {
		d.wind()
		return nbd.RequestSize
	}
	if r.Command == nbd.CmdWrite && r.Length > nbd.MaxPayload {
		d.close(fmt.Errorf("%w: a write of %d bytes, at most %d are taken", nbd.ErrProtocol, r.Length, nbd.MaxPayload))
		return 0
	}
	q := d.l.take(d)
	q.r = r
	d.underWay++
	q.size = 0
	if r.Command == nbd.CmdWrite || r.Command == nbd.CmdRead && r.Length <= nbd.MaxPayload {
		q.size = int(r.Length)
	}
	if d.underWay >= maxRequests && (r.Command != nbd.CmdWrite || q.size == 0) {
		d.c.Pause() // else when its payload is there, which is not to be late since others are under way
	}
	if q.size > 0 && !d.room(q) {
		d.cur = q
		d.c.Pause()
		return nbd.RequestSize
	}
	d.begin(q)
	return nbd.RequestSize
}

// room gets a request its memory. If it returns false the connection is told when there is some.
func (d *conn) room(q *request) bool {
	// Half of the memory is for the others; a request alone may always have what it needs.
	if d.held == 0 || d.held+q.size <= d.l.Limit()/2 {
		if len(d.l.waiting) == 0 || d.begging { // those who came before go first
			if q.buf = d.l.Get(q.size); q.buf != nil {
				d.held += cap(q.buf)
				return true
			}
		}
	}
	if !d.begging {
		d.begging = true
		d.l.waiting = append(d.l.waiting, d)
	}
	return false
}

// begin goes on with a request that has its memory.
func (d *conn) begin(q *request) {
	if q.r.Command == nbd.CmdWrite && q.size > 0 {
		d.cur = q
		d.l.SetTimer(&d.late, d.l.s.o.Payload)
		d.c.Fill(q.buf)
		return
	}
	d.start(q)
}

// resume reads on, if nothing stands against it.
func (d *conn) resume() {
	if d.phase == atWork && !d.begging && (d.underWay < maxRequests || d.cur != nil) && d.c.Paused() {
		d.c.Resume()
	}
}

// feed gives memory that has become free to those who wait, in turn. One that waits for its own requests lets the others pass.
func (l *loop) feed() {
	if len(l.waiting) == 0 || l.feeding {
		return
	}
	l.feeding = true
	defer func() { l.feeding = false }()
	for i := 0; i < len(l.waiting); {
		d := l.waiting[i]
		q := d.cur
		if q == nil || d.ended || d.phase != atWork { // never begun
			l.waiting = slices.Delete(l.waiting, i, i+1)
			d.begging = false
			continue
		}
		if d.held > 0 && d.held+q.size > l.Limit()/2 {
			i++
			continue
		}
		if q.buf = l.Get(q.size); q.buf == nil {
			return
		}
		d.held += cap(q.buf)
		l.waiting = slices.Delete(l.waiting, i, i+1)
		d.begging, d.cur = false, nil
		d.begin(q) // may give memory back, which the next turn of this loop sees
		d.resume()
	}
}
