package client

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// A server that could not be reached is not dialed again for a while, so that a dead one does not cost a dial a
	// request.
	breakerMin = 100 * time.Millisecond
	breakerMax = time.Second
	// avoidFor is how long reads prefer other replicas after one has let us down.
	avoidFor = 5 * time.Second
)

// pool holds the connections of one session to chunk servers.
type pool struct {
	s      *session
	mu     sync.RWMutex
	all    map[id.ServerID]*server
	closed bool
}

// server is one chunk server as this session knows it.
type server struct {
	s          *session
	id         id.ServerID
	addr       atomic.Pointer[string]
	near       atomic.Bool // its address is one of this host
	local      atomic.Bool // on this host
	bypass     atomic.Pointer[bypass]
	seeking    atomic.Bool   // for a bypass, or has one
	seekAt     atomic.Int64  // ns of time.Now: when to do that again
	refused    atomic.Bool   // a bypass, and that was logged
	inFlight   atomic.Int32  // reads
	avoidUntil atomic.Int64  // ns of time.Now
	slow       atomic.Bool   // the leader says so: it answers late
	silentAt   atomic.Int64  // boot time, ns: when the leader was asked that said last that the server answers nobody; 0: it did not
	answered   atomic.Int64  // boot time, ns: when it was reported last that it had answered something
	takes      atomic.Uint32 // wire.Takes of the server
	met        latency.Recorder
	lanes      []lane
	width      int                       // connections of each seat
	hot        []atomic.Pointer[hotLane] // those of seat n from n*width on
}

// lane is one of the connections to a server. A request that is tried again uses the lane that it used before: the new
// connection's Hello makes the server end what came on the old one, so that no straggler can overtake the retry.
type lane struct {
	conn atomic.Pointer[wire.Conn]
	op   opLock // one dial at a time

	// Guarded by op.
	failed time.Time // of the last dial, if it failed
	pause  time.Duration
	err    error

	held  atomic.Bool // its connection is being exchanged: requests wait for op
	ready atomic.Bool // no move is under way
	mover mover       // of who judges
}

func (p *pool) init(s *session) { p.s, p.all = s, make(map[id.ServerID]*server) }

// server returns the server of a replica.
func (p *pool) server(r *replica) *server {
	p.mu.RLock()
	srv := p.all[r.server]
	p.mu.RUnlock()
	if srv == nil {
		p.mu.Lock()
		if srv = p.all[r.server]; srv == nil {
			n, width := p.s.c.o.lanesTo(r.addr)
			srv = &server{s: p.s, id: r.server, lanes: make([]lane, n), width: width, hot: make([]atomic.Pointer[hotLane], maxSeats*width)}
			for i := range srv.lanes {
				srv.lanes[i].op = newOpLock()
				srv.lanes[i].ready.Store(true)
			}
			p.all[r.server] = srv
		}
		p.mu.Unlock()
	}
	if a := srv.addr.Load(); (a == nil || *a != r.addr) && r.addr != "" {
		srv.addr.Store(&r.addr)
		host, _, err := net.SplitHostPort(r.addr)
		_, local := p.s.c.local[host]
		srv.near.Store(err == nil && local)
		srv.local.Store(srv.near.Load() || srv.bypass.Load() != nil)
	}
	return srv
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, srv := range p.all {
		for i := range srv.lanes {
			if c := srv.lanes[i].conn.Load(); c != nil {
				c.Close()
			}
		}
		srv.closeHot()
	}
}

// conn returns the connection of a lane, making it if need be. It takes at most Options.DialTimeout.
func (srv *server) conn(n int) (*wire.Conn, error) {
	l := &srv.lanes[n%len(srv.lanes)]
	if c := l.usable(); c != nil {
		return c, nil
	}
	if err := l.op.lock(srv.s.ctx); err != nil {
		return nil, fserr.Stale
	}
	defer l.op.unlock()
	if c := l.usable(); c != nil {
		return c, nil
	}
	if l.err != nil && time.Since(l.failed) < l.pause {
		return nil, l.err
	}
	if srv.silent() {
		srv.s.doubt()
		return nil, fmt.Errorf("%s: %w", srv.id, errSilent)
	}
	ctx, cancel := context.WithTimeout(srv.s.ctx, srv.s.c.o.DialTimeout)
	defer cancel()
	c, err := srv.dial(ctx, n%len(srv.lanes), nil)
	if err != nil {
		l.failed, l.err = time.Now(), err
		l.pause = min(max(2*l.pause, breakerMin), breakerMax)
		return nil, err
	}
	l.err, l.pause = nil, 0
	l.conn.Store(c)
	srv.s.servers.mu.RLock()
	closed := srv.s.servers.closed
	srv.s.servers.mu.RUnlock()
	if closed { // it may have been stored too late for close to see it
		c.Close()
		return nil, fserr.Stale
	}
	return c, nil
}

func (l *lane) usable() *wire.Conn {
	c := l.conn.Load()
	if c == nil || l.held.Load() {
		return nil
	}
	select {
	case <-c.Done():
		return nil
	default:
		return c
	}
}

// dial makes a connection of lane n. connected, if not nil, is called before it is greeted.
func (srv *server) dial(ctx context.Context, n int, connected func() error) (*wire.Conn, error) {
	o := &srv.s.c.o
	addr := srv.addr.Load()
	if addr == nil {
		return nil, fmt.Errorf("%s has no address: %w", srv.id, fserr.Unavailable)
	}
	hello := &msg.Hello{Cluster: o.Cluster[:], Role: msg.Hello_CLIENT, Session: uint64(srv.s.id), Version: o.Version, Lane: uint32(n), Capability: srv.s.token()}
	c, reply, err := wire.Dial(ctx, *addr, hello, nil, wire.Options{
		Class: wire.ClassGuest, Way: n + 1, Connected: connected, WriteTimeout: o.WriteTimeout, Network: o.Network,
	})
	if err != nil {
		if fserr.Of(err) == fserr.NoCapability {
			srv.s.wantCapability()
		}
		return nil, fmt.Errorf("%s: %w", srv.id, err)
	}
	c.Mark(wire.ClassGuest)
	if got := id.ServerID(reply.Server); got != srv.id {
		c.Close()
		return nil, fmt.Errorf("%s at %s turned out to be %s: %w", srv.id, *addr, got, fserr.Unavailable)
	}
	return c, nil
}

// avoid makes reads prefer other replicas for a while.
func (srv *server) avoid() { srv.avoidUntil.Store(time.Now().Add(avoidFor).UnixNano()) }
