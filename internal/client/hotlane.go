package client

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/records"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// hotLane is a lane of one seat to one server: a lane of its own to the server, above those of the goroutines. Where there is a bond a seat has several, so that
// they use all of its links. Goroutines dial and greet, the loop's thread uses what they made.
//
// Invariant: a connection is greeted only when the loop has none of this lane, so what was sent on one with number n has ended when
// greeted is above n.
type hotLane struct {
	srv *server
	n   int // of the seat
	sub int // among those of the seat

	conn *hotConn // of the loop's thread: nil while there is none

	greeted atomic.Uint64           // connections that the server has welcomed
	cur     atomic.Pointer[hotConn] // the last of them, until it has ended
	dialing atomic.Bool             // somebody makes one because of a Begin
	next    atomic.Int64            // ns of time.Now: when that may be tried again
	never   atomic.Bool             // the network has no sockets that a loop could use

	op opLock // one dial at a time

	// Guarded by op.
	failed time.Time // of the last dial, if it failed
	pause  time.Duration
	err    error

	held  atomic.Bool // its connection is being exchanged: nothing begins on it
	ready atomic.Bool // no move is under way
	mover mover       // of the loop's thread
}

// hotLane returns a lane of a seat.
func (srv *server) hotLane(n, sub int) *hotLane {
	p := &srv.hot[n*srv.width+sub]
	if h := p.Load(); h != nil {
		return h
	}
	lane := &hotLane{srv: srv, n: n, sub: sub, op: newOpLock()}
	lane.ready.Store(true)
	p.CompareAndSwap(nil, lane)
	return p.Load()
}

// ready returns a connection of the seat to a server that can take a request, the one with the fewest, and has those made that are missing. It is called on
// the loop's thread.
func (st *seat) ready(srv *server) *hotConn {
	var best *hotConn
	least := int32(0)
	for i := range srv.width {
		lane := srv.hotLane(st.n, (i+st.turn)%srv.width)
		h := lane.conn
		if h == nil || h.c.Closed() {
			lane.want()
			continue
		}
		if busy := h.busy.Load(); h.free >= 0 && !lane.held.Load() && (best == nil || busy < least) {
			best, least = h, busy
		}
	}
	if srv.width > 1 {
		st.turn = (st.turn + 1) % maxWidth
	}
	return best
}

// want has a connection made, unless there is one, or that was tried a moment ago.
func (h *hotLane) want() {
	now := time.Now().UnixNano()
	if h.never.Load() || h.cur.Load() != nil || now < h.next.Load() || !h.dialing.CompareAndSwap(false, true) {
		return
	}
	if !h.srv.s.c.background(h.fetch) {
		h.dialing.Store(false)
	}
}

// fetch makes the connection that want wants.
func (h *hotLane) fetch() {
	defer h.dialing.Store(false)
	if h.op.lock(h.srv.s.ctx) != nil {
		return
	}
	defer h.op.unlock()
	if h.cur.Load() == nil {
		_ = h.dial() // who needs the server now finds out by himself
	}
	h.next.Store(time.Now().Add(max(h.pause, breakerMin)).UnixNano())
}

// dial makes a connection and gives it to the loop. Preconditions: op is held, and cur is nil.
func (h *hotLane) dial() error {
	if h.err != nil && time.Since(h.failed) < h.pause {
		return h.err
	}
	if h.srv.silent() {
		h.srv.s.doubt()
		return fmt.Errorf("%s: %w", h.srv.id, errSilent)
	}
	ctx, cancel := context.WithTimeout(h.srv.s.ctx, h.srv.s.c.o.DialTimeout)
	defer cancel()
	nc, read, err := h.greet(ctx, nil)
	if err != nil {
		h.failed, h.err = time.Now(), err
		h.pause = min(max(2*h.pause, breakerMin), breakerMax)
		return err
	}
	h.welcome(nc, read)
	return nil
}

// welcome gives a connection that was greeted to the loop. Preconditions: op is held, and cur is nil.
func (h *hotLane) welcome(nc net.Conn, read []byte) {
	h.err, h.pause = nil, 0
	n := h.greeted.Add(1)
	defer nc.Close() // the loop has a descriptor of its own
	if !wire.OnSocket(nc) {
		h.never.Store(true)
		return
	}
	st := h.srv.s.c.seats[h.n].Load()
	if st == nil {
		return
	}
	taken, err := records.Take(nc)
	if err != nil {
		return // there was a greeting all the same
	}
	c := newHotConn(h, st, n, taken, read, wire.KeysOf(nc))
	if who, ok := wire.PeerOf(nc); ok {
		c.peer = who.Serial
	}
	c.local, c.remote = endsOf(nc.LocalAddr().String(), nc.RemoteAddr().String())
	h.cur.Store(c)
	if !st.l.Post(&c.adopt) {
		unix.Close(taken.FD)
		h.cur.Store(nil)
		return
	}
	if h.srv.s.servers.over() { // it may have been stored too late for close to see it
		c.shut()
	}
}

// greet connects, calls connected unless that is nil, and says hello.
func (h *hotLane) greet(ctx context.Context, connected func() error) (net.Conn, []byte, error) {
	srv := h.srv
	o := &srv.s.c.o
	addr := srv.addr.Load()
	if addr == nil {
		return nil, nil, fmt.Errorf("%s has no address: %w", srv.id, fserr.Unavailable)
	}
	hello := &msg.Hello{Cluster: o.Cluster[:], Role: msg.Hello_CLIENT, Session: uint64(srv.s.id), Version: o.Version, Lane: uint32(len(srv.lanes) + h.n*srv.width + h.sub), Capability: srv.s.token()}
	nc, read, reply, err := wire.DialBare(ctx, *addr, hello, wire.Options{
		Class: wire.ClassGuest, Way: h.way(), Connected: connected, WriteTimeout: o.WriteTimeout, Network: o.Network,
	})
	if err != nil {
		if fserr.Of(err) == fserr.NoCapability {
			srv.s.wantCapability()
		}
		return nil, nil, fmt.Errorf("%s: %w", srv.id, err)
	}
	if got := id.ServerID(reply.Server); got != srv.id {
		nc.Close()
		return nil, nil, fmt.Errorf("%s at %s turned out to be %s: %w", srv.id, *addr, got, fserr.Unavailable)
	}
	srv.takes.Store(reply.Takes)
	wire.Mark(nc, wire.ClassGuest)
	return nc, append([]byte(nil), read...), nil
}

// hotDebt is owed to a server that may still be carrying out a request that came on the connection number n of a lane.
type hotDebt struct {
	lane *hotLane
	n    uint64
}

// pay returns nil when the server has ended what is owed for: it has greeted a later connection of the lane. It takes at most
// Options.DialTimeout.
func (d hotDebt) pay() error {
	h := d.lane
	if h.greeted.Load() > d.n {
		return nil
	}
	if err := h.op.lock(h.srv.s.ctx); err != nil {
		return fserr.Stale
	}
	defer h.op.unlock()
	if h.greeted.Load() > d.n {
		return nil
	}
	return h.dial()
}

// payHot pays what is owed to replicas of the chunk for having been asked on a reactor. If that fails it reports false, with the replica as
// the target that was unreachable. What a server does that is not in the replica set counts for nothing.
func (op *dataOp) payHot(loc *location) bool {
	for op.nDebts > 0 {
		d := op.debts[op.nDebts-1]
		for i := range loc.replicas {
			r := &loc.replicas[i]
			if r.server != d.lane.srv.id {
				continue
			}
			srv := op.in.s.servers.server(r) // with the address that it has now
			if err := d.pay(); err != nil {
				op.n = 1
				op.targets[0] = target{r: r, srv: srv, outcome: outcome{what: unreachable, err: err}}
				return false
			}
		}
		op.nDebts--
	}
	return true
}

// closeHot ends the server's connections to seats. Nothing waits for that.
func (srv *server) closeHot() {
	for i := range srv.hot {
		if h := srv.hot[i].Load(); h != nil {
			if c := h.cur.Load(); c != nil {
				c.shut()
			}
		}
	}
}

// over reports whether the connections were closed for good.
func (p *pool) over() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.closed
}
