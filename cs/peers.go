package cs

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/bond"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// maxPeers bounds the servers whose addresses are kept.
const maxPeers = 4096

// peers are the connections to other chunk servers, made when they are needed.
type peers struct {
	cluster id.Cluster
	self    id.ServerID
	version string
	network wire.Network
	bonds   *bond.Bonds

	mu     sync.Mutex
	widths map[id.ServerID]int // see width
	addrs  map[id.ServerID]peerAddr
	links  map[linkKey]*link
	met    map[id.ServerID]*latency.Recorder // how long forwarded writes took
	closed bool
}

// peerAddr is where a peer is reached for replication, and for all else.
type peerAddr struct {
	replication, repair string
	node                string // on which it runs
}

func (a peerAddr) of(lane uint32) string {
	if lane%laneKinds < replicaKinds {
		return a.replication
	}
	return a.repair
}

type linkKey struct {
	server id.ServerID
	lane   uint32
}

// link is one lane to a peer.
type link struct {
	op   chan struct{} // of one place: held while it is dialled, so that there is one attempt at a time, and guards what follows
	conn *wire.Conn
	addr string

	next   time.Time // of keepSpread: when it may be moved
	pause  time.Duration
	moving atomic.Bool
}

func newPeers(cluster id.Cluster, self id.ServerID, o *Options) *peers {
	return &peers{
		cluster: cluster, self: self, version: o.Version, network: o.Network, bonds: o.Bonds, widths: make(map[id.ServerID]int),
		addrs: make(map[id.ServerID]peerAddr), links: make(map[linkKey]*link), met: make(map[id.ServerID]*latency.Recorder),
	}
}

// learn takes addresses that the leader told.
func (p *peers) learn(list []*msg.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range list {
		if _, known := p.addrs[id.ServerID(m.Server)]; m.Server != 0 && (known || len(p.addrs) < maxPeers) {
			p.addrs[id.ServerID(m.Server)] = peerAddr{m.Addr, cmp.Or(m.RepairAddr, m.Addr), m.Node}
		}
	}
}

// node returns the node that a peer runs on, as the leader said.
func (p *peers) node(server id.ServerID) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, known := p.addrs[server]
	return a.node, known && a.node != ""
}

// learnRepair takes the address by which a rebuild is to reach its source.
func (p *peers) learnRepair(server id.ServerID, addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, known := p.addrs[server]
	if known || len(p.addrs) < maxPeers {
		a.replication, a.repair = cmp.Or(a.replication, addr), addr
		p.addrs[server] = a
	}
}

// conn returns a live connection to a peer. fresh says that it was made for this call. Errors wrap Unavailable or what
// the peer refused with.
func (p *peers) conn(ctx context.Context, server id.ServerID, lane uint32) (c *wire.Conn, fresh bool, err error) {
	p.mu.Lock()
	addr, closed := p.addrs[server].of(lane), p.closed
	l := p.links[linkKey{server, lane}]
	if l == nil && addr != "" && !closed {
		l = &link{op: make(chan struct{}, 1)}
		p.links[linkKey{server, lane}] = l
	}
	p.mu.Unlock()
	if closed || addr == "" {
		return nil, false, fmt.Errorf("no address of %v: %w", server, fserr.Unavailable)
	}
	select {
	case l.op <- struct{}{}:
		defer func() { <-l.op }()
	case <-ctx.Done():
		return nil, false, fmt.Errorf("wait for another attempt to connect to %v: %w: %w", server, fserr.Unavailable, ctx.Err())
	}
	if l.conn != nil && l.conn.Err() == nil && l.addr == addr {
		return l.conn, false, nil
	}
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	if c, err = p.dial(ctx, server, lane, addr, nil); err != nil {
		return nil, false, err
	}
	l.conn, l.addr = c, addr
	p.closeIfOver(c)
	return c, true, nil
}

// dial makes a connection of a lane. connected, unless nil, is called before it is greeted.
func (p *peers) dial(ctx context.Context, server id.ServerID, lane uint32, addr string, connected func() error) (*wire.Conn, error) {
	c, reply, err := wire.Dial(ctx, addr, p.hello(lane), nil, wire.Options{Class: laneClass(lane), Way: laneWay(lane), Connected: connected, Network: p.network})
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", server, err)
	}
	if id.ServerID(reply.Server) != server {
		c.Close()
		return nil, fmt.Errorf("%s answers as cs%d, want %v: %w", addr, reply.Server, server, fserr.Unavailable)
	}
	if who, ok := c.Peer(); ok {
		if node, known := p.node(server); known && node != who.Node {
			c.Close()
			return nil, fmt.Errorf("%s answers as %v and is node %s, want %s: %w", addr, server, who.Node, node, fserr.Unavailable)
		}
	}
	c.Mark(laneClass(lane))
	return c, nil
}

// waited notes how long a peer took to answer.
func (p *peers) waited(server id.ServerID, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.met[server]
	if r == nil {
		if len(p.met) >= maxPeers {
			return
		}
		r = new(latency.Recorder)
		p.met[server] = r
	}
	r.Add(d)
}

// report returns how long peers took to answer since the last call.
func (p *peers) report() (out []*msg.PeerLatency) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for server, r := range p.met {
		if counts := r.Take(); counts != nil {
			out = append(out, &msg.PeerLatency{Server: uint32(server), Requests: uint32(latency.Count(counts)),
				P90Us: uint32(latency.Quantile(counts, 0.9).Microseconds())})
		}
	}
	return out
}

func (p *peers) close() {
	p.mu.Lock()
	p.closed = true
	links := p.links
	p.links = make(map[linkKey]*link)
	p.mu.Unlock()
	for _, l := range links {
		l.op <- struct{}{}
		if l.conn != nil {
			l.conn.Close()
		}
		<-l.op
	}
}
