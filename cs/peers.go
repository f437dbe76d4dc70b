package cs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// replicationLanes is the number of connections to a peer for forwarded writes. A chunk keeps to one of them.
	replicationLanes = 2
	// repairLane is the connection for rebuilds.
	repairLane = replicationLanes
	// maxPeers bounds the servers whose addresses are kept.
	maxPeers = 4096
)

// peers are the connections to other chunk servers, made when they are needed.
type peers struct {
	cluster id.Cluster
	self    id.ServerID
	version string
	network wire.Network

	mu     sync.Mutex
	addrs  map[id.ServerID]string
	links  map[linkKey]*link
	met    map[id.ServerID]*latency.Recorder // how long forwarded writes took
	closed bool
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
}

func newPeers(cluster id.Cluster, self id.ServerID, o *Options) *peers {
	return &peers{
		cluster: cluster, self: self, version: o.Version, network: o.Network,
		addrs: make(map[id.ServerID]string), links: make(map[linkKey]*link), met: make(map[id.ServerID]*latency.Recorder),
	}
}

// laneClass is what a lane between chunk servers carries.
func laneClass(lane uint32) wire.Class {
	if lane == repairLane {
		return wire.ClassRepair
	}
	return wire.ClassReplication
}

// learn takes addresses that the leader told.
func (p *peers) learn(list []*msg.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range list {
		if _, known := p.addrs[id.ServerID(m.Server)]; m.Server != 0 && (known || len(p.addrs) < maxPeers) {
			p.addrs[id.ServerID(m.Server)] = m.Addr
		}
	}
}

// conn returns a live connection to a peer. fresh says that it was made for this call. Errors wrap Unavailable or what
// the peer refused with.
func (p *peers) conn(ctx context.Context, server id.ServerID, lane uint32) (c *wire.Conn, fresh bool, err error) {
	p.mu.Lock()
	addr, closed := p.addrs[server], p.closed
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
	hello := &msg.Hello{Cluster: p.cluster[:], Role: msg.Hello_CHUNK_SERVER, Server: uint32(p.self), Version: p.version, Lane: lane}
	c, reply, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Network: p.network})
	if err != nil {
		return nil, false, fmt.Errorf("connect to %v: %w", server, err)
	}
	if id.ServerID(reply.Server) != server {
		c.Close()
		return nil, false, fmt.Errorf("%s answers as cs%d, want %v: %w", addr, reply.Server, server, fserr.Unavailable)
	}
	c.Mark(laneClass(lane))
	l.conn, l.addr = c, addr
	p.mu.Lock()
	closed = p.closed
	p.mu.Unlock()
	if closed {
		c.Close()
	}
	return c, true, nil
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
