package cs

import (
	"fmt"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/records"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// dataConn is a connection on a reactor. Everything but the methods of wire.Link is done on the reactor's thread.
//
// Frames are taken from what the reactor has received. A request with data waits for the gate and for memory before the data is
// received, into that memory; the connection is not read meanwhile, as when goroutines serve it.
type dataConn struct {
	s    *Server
	w    *wire.Conn
	loop *dataLoop
	peer peer
	keys wire.Keys
	conn records.Conn // nil before start

	taken                *records.Taken
	read                 []byte // came with the hello
	startTask, closeTask reactor.Task
	closing              atomic.Bool

	cur      *request // whose rest is awaited, or which waits for the gate or for memory
	underWay int      // requests that are handled
	held     int64    // what these are counted with at the gate, in bytes
	late     reactor.Timer
	ended    bool
}

const (
	// maxInline bounds the body, in bytes, that is taken from the reactor's buffers.
	maxInline = 32 << 10
	// frameTimeout bounds how long the rest of a frame may take, as in package wire.
	frameTimeout = 15 * time.Second
	// heldShare is the part of the memory, 1 in so many, that the requests of one connection may hold before it is read on: a
	// peer that does not read its answers must not keep the others from theirs.
	heldShare = 4
)

var (
	_ wire.Link       = (*dataConn)(nil)
	_ reactor.Handler = (*dataConn)(nil)
)

// OnData implements reactor.Handler: it takes one frame up to its data.
func (d *dataConn) OnData(_ *reactor.Conn, p []byte) int {
	c := d.conn
	if len(p) < wire.HeaderSize {
		c.Need(wire.HeaderSize)
		return 0
	}
	q := d.loop.take(d)
	body, size, err := q.frame.DecodeHeader(p, d.keys)
	if err != nil {
		d.loop.put(q)
		c.Close(err)
		return 0
	}
	q.size = size
	n := wire.HeaderSize + body
	switch {
	case len(p) >= n:
		d.begin(q, p[wire.HeaderSize:n])
		return n
	case body <= maxInline:
		d.loop.put(q)
		d.expect()
		c.Need(n)
		return 0
	}
	d.cur, q.stage = q, atBody
	d.expect()
	q.frame.Body = wire.Buffer(body)
	c.Fill(q.frame.Body)
	return wire.HeaderSize
}

// OnFilled implements reactor.Handler.
func (d *dataConn) OnFilled(*reactor.Conn, []byte) {
	q := d.cur
	if q.stage == atBody {
		d.begin(q, q.frame.Body)
		return
	}
	d.loop.StopTimer(&d.late)
	d.run(q)
}

// OnDrain implements reactor.Handler.
func (d *dataConn) OnDrain(*reactor.Conn) {}

// expect bounds the wait for the rest of a frame.
func (d *dataConn) expect() {
	if !d.late.Set() {
		d.loop.SetTimer(&d.late, frameTimeout)
	}
}

func (d *dataConn) tooLate() {
	d.conn.Close(fmt.Errorf("rest of a frame: %w", fserr.Timeout))
}

// begin goes on with a frame whose body is there. Body is q.frame.Body, or memory of the reactor's.
func (d *dataConn) begin(q *request, body []byte) {
	d.loop.StopTimer(&d.late)
	d.cur = nil
	if err := q.frame.CheckBody(body); err != nil {
		q.drop()
		d.conn.Close(err)
		return
	}
	if q.frame.Body == nil {
		q.keep(body)
	}
	d.w.Begin()
	q.s, q.memory = d.s, d.peer.memory
	var gated bool
	if q.Bytes, gated = cost(&q.frame, q.size); !gated {
		d.run(q)
		return
	}
	q.Class, q.Owner = d.peer.class(q.frame.Class), &q.grant
	now, err := d.s.gate.ask(&q.Request, d.peer.flow)
	switch {
	case err != nil:
		q.end()
		d.conn.Close(err)
	case now:
		q.gated = true
		d.admitted(q)
	default:
		d.cur, q.stage = q, atGate
		d.conn.Pause()
	}
}

// admitted goes on with a request that the gate lets pass.
func (d *dataConn) admitted(q *request) {
	if q.size == 0 {
		d.run(q)
		return
	}
	d.cur = q
	if q.data = q.memory.Get(q.size); q.data != nil {
		d.receive(q)
		return
	}
	q.stage = atMemory
	d.conn.Pause()
	go func() {
		q.data, _ = q.memory.Wait(d.w.Context(), q.size)
		d.loop.Post(&q.task)
	}()
}

// receive receives a request's data.
func (d *dataConn) receive(q *request) {
	q.stage = atData
	if !d.conn.Paused() {
		d.expect()
	}
	d.conn.Fill(q.data)
}

// woken is called when a request need not wait for the gate, or for memory, any more.
func (d *dataConn) woken(q *request) {
	if q.stage == atGate {
		q.gated = true
	}
	if d.ended || d.conn.Closed() && q.data == nil {
		if d.cur == q {
			d.cur = nil
		}
		q.end()
		return
	}
	switch q.stage {
	case atGate:
		d.resume()
		d.admitted(q)
	case atMemory:
		if q.data == nil { // the connection ends
			d.cur = nil
			q.end()
			d.conn.Close(nil)
			return
		}
		d.resume()
		d.receive(q)
	}
}

// run handles a request that is there in full.
func (d *dataConn) run(q *request) {
	d.cur = nil
	d.underWay++
	d.held += q.Bytes
	if d.full() {
		d.conn.Pause()
	}
	if !q.try() {
		q.delegate()
	}
}

// full says that as much is under way as one connection may have.
func (d *dataConn) full() bool {
	return d.underWay >= d.w.InFlight() || d.held >= max(2*wire.MaxData, d.peer.memory.Size()/heldShare)
}

// resume has the connection be read again, if nothing speaks against it.
func (d *dataConn) resume() {
	if d.conn.Paused() && !d.full() {
		if d.cur != nil && d.cur.stage == atData {
			d.expect()
		}
		d.conn.Resume()
	}
}

// done is called when a request that was run has ended.
func (d *dataConn) done(q *request) {
	d.underWay--
	d.held -= q.Bytes
	q.end()
	if !d.ended && (d.cur == nil || d.cur.stage == atData || d.cur.stage == atBody) {
		d.resume()
	}
}

// OnClose implements reactor.Handler.
func (d *dataConn) OnClose(_ *reactor.Conn, err error) {
	d.ended = true
	d.loop.StopTimer(&d.late)
	if q := d.cur; q != nil {
		switch q.stage {
		case atBody:
			d.cur = nil
			q.drop()
		case atGate:
			// If the gate let it pass meanwhile, its task ends it.
			if d.s.gate.cancel(&q.Request) {
				d.cur = nil
				q.end()
			}
		case atMemory: // its task ends it
		case atData:
			d.cur = nil
			q.end()
		}
	}
	d.w.Ended(err)
}
