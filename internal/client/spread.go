package client

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"varve/internal/bond"
	"varve/internal/wire"
)

// The connections to a server are spread over the links of a bond (package bond), and are looked at many times a second: one that takes another's link
// is moved, one whose link is dead dropped. A move makes the new connection first, then keeps what comes next waiting until what is under way has been
// answered, and greets: so it is one lane all the time, and no request is lost by it, nor sent twice. What takes longer than drainFor is sent again,
// as after any lost connection.

const (
	lookEvery = 50 * time.Millisecond // at the connections on which something is waited for
	allEvery  = 20                    // looks, of which one is at all connections
	idleEvery = 5 * time.Second       // where there are no bonds
	drainFor  = 300 * time.Millisecond
	drainStep = 500 * time.Microsecond
	moveFor   = time.Second // until the new connection is there
	movePause = time.Second // between moves of a lane, doubling to the next
	moveLate  = 30 * time.Second
	// maxWidth bounds the connections of a seat to one server.
	maxWidth = 8
)

// errMovedOn says that a lane has another connection than the one that was to be moved.
var errMovedOn = errors.New("the lane was connected anew meanwhile")

// mover is of a lane whose connection may be moved.
type mover struct {
	next  time.Time
	pause time.Duration
}

// ask reports whether a move may begin now.
func (m *mover) ask(now time.Time) bool {
	if now.Before(m.next) {
		return false
	}
	if now.Sub(m.next) > moveLate {
		m.pause = movePause
	}
	m.next = now.Add(m.pause)
	m.pause = min(2*m.pause, moveLate)
	return true
}

// lanesTo returns how many lanes a server at an address gets, and how many connections of each seat.
func (o *Options) lanesTo(addr string) (lanes, width int) {
	links := min(o.Bonds.Lanes(addr), maxLanes)
	return min((o.Lanes+links-1)/links*links, maxLanes/links*links), min(links, maxWidth)
}

// keepSpread looks after the connections of bonds until the client is closed.
func (c *Client) keepSpread() {
	changed, end := c.o.Bonds.Changed()
	defer end()
	for n := 0; ; n++ {
		every := idleEvery
		if c.o.Bonds.Any() {
			every = lookEvery
		}
		all := n%allEvery == 0
		t := time.NewTimer(every)
		select {
		case <-c.ctx.Done():
			t.Stop()
			return
		case <-changed:
			all = true
		case <-t.C:
		}
		t.Stop()
		if s := c.sess.Load(); s != nil && s.ctx.Err() == nil && c.o.Bonds.Any() {
			s.servers.judge(all)
			for i := range c.seats {
				if st := c.seats[i].Load(); st != nil && st.looking.CompareAndSwap(false, true) {
					if all {
						st.lookAll.Store(true)
					}
					if !st.l.Post(&st.lookTask) {
						st.looking.Store(false)
					}
				}
			}
		}
	}
}

// judge looks at the lanes of all servers, or at those of them on which something is waited for.
func (p *pool) judge(idle bool) {
	p.mu.RLock()
	all := make([]*server, 0, len(p.all))
	for _, srv := range p.all {
		if !srv.near.Load() {
			all = append(all, srv)
		}
	}
	p.mu.RUnlock()
	for _, srv := range all {
		for n := range srv.lanes {
			srv.judge(n, idle)
		}
	}
}

// judge looks at one lane. One goroutine does.
func (srv *server) judge(n int, idle bool) {
	l := &srv.lanes[n]
	conn := l.usable()
	if conn == nil || !idle && conn.Waiting() == 0 {
		return
	}
	sign, ok := conn.Sign()
	if !ok {
		return
	}
	switch srv.s.c.o.Bonds.Judge(n+1, &sign) {
	case bond.Drop:
		conn.Close()
	case bond.Move:
		if l.ready.Load() && l.mover.ask(time.Now()) && l.ready.CompareAndSwap(true, false) {
			if !srv.s.c.background(func() { srv.move(n, conn) }) {
				l.ready.Store(true)
			}
		}
	}
}

// move gives a lane another connection.
func (srv *server) move(n int, old *wire.Conn) {
	l := &srv.lanes[n]
	defer l.ready.Store(true)
	ctx, cancel := context.WithTimeout(srv.s.ctx, moveFor)
	defer cancel()
	held := false
	c, err := srv.dial(ctx, n, func() error {
		if err := l.op.lock(ctx); err != nil {
			return err
		}
		held = true
		if l.conn.Load() != old {
			return errMovedOn
		}
		l.held.Store(true) // who comes now waits for op
		for end := time.Now().Add(drainFor); old.Waiting() > 0 && old.Err() == nil && time.Now().Before(end); {
			time.Sleep(drainStep)
		}
		return nil
	})
	if held {
		if err == nil {
			l.conn.Store(c)
		}
		l.held.Store(false)
		l.op.unlock()
	}
	if err != nil {
		return // the lane is as it was, or without a connection, which whoever needs one makes
	}
	old.Close()
	if srv.s.servers.over() {
		c.Close()
	}
}

// look is judge for the connections of a seat, on its loop's thread.
func (st *seat) look() {
	defer st.looking.Store(false)
	all := st.lookAll.Swap(false)
	for h := st.conns; h != nil; {
		next := h.next
		if all || h.busy.Load() > 0 {
			h.judge()
		}
		h = next
	}
}

func (h *hotConn) judge() {
	srv, c := h.lane.srv, h.st.c
	if srv.near.Load() || h.closing.Load() || h.c == nil || h.c.Closed() {
		return
	}
	sign, ok := wire.SignOf(h.fd)
	if !ok {
		return
	}
	sign.Local, sign.Remote, sign.Waiting = h.local, h.remote, int(h.busy.Load())
	lane := h.lane
	switch c.o.Bonds.Judge(lane.way(), &sign) {
	case bond.Drop:
		h.shut()
	case bond.Move:
		if lane.ready.Load() && lane.mover.ask(time.Now()) && lane.ready.CompareAndSwap(true, false) {
			if !c.background(func() { lane.move(h) }) {
				lane.ready.Store(true)
			}
		}
	}
}

// way is which of the server's connections for the same it is.
func (h *hotLane) way() int { return h.n + h.sub + 1 }

// move gives the lane another connection. Operations are not begun on it meanwhile.
func (h *hotLane) move(old *hotConn) {
	defer h.ready.Store(true)
	ctx, cancel := context.WithTimeout(h.srv.s.ctx, moveFor)
	defer cancel()
	held := false
	nc, read, err := h.greet(ctx, func() error {
		if err := h.op.lock(ctx); err != nil {
			return err
		}
		held = true
		if h.cur.Load() != old {
			return errMovedOn
		}
		h.held.Store(true)
		for end := time.Now().Add(drainFor); old.busy.Load() > 0 && time.Now().Before(end); {
			time.Sleep(drainStep)
		}
		old.shut()
		for h.cur.Load() == old { // invariant of greeted
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(drainStep):
			}
		}
		return nil
	})
	if !held {
		if err == nil {
			nc.Close() // not reached: the hook runs before every greeting
		}
		return
	}
	defer h.op.unlock()
	defer h.held.Store(false)
	if err == nil {
		h.welcome(nc, read)
	}
}

// endsOf returns the addresses of a connection, zero values where it has none.
func endsOf(local, remote string) (l, r netip.AddrPort) {
	l, _ = netip.ParseAddrPort(local)
	r, _ = netip.ParseAddrPort(remote)
	return l, r
}
