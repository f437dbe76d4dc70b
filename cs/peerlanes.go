package cs

import (
	"context"
	"errors"
	"sync"
	"time"

	"varve/internal/bond"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Lanes between chunk servers. The lowest two bits of a lane's number say what it is for: 0 and 1 are replication, 2 repair, 3 rebalance. There are two lanes for
// replication and one each for the others, and where a bond leads to the peer as many as it has slaves: those above the first four.
const (
	laneKinds     = 4
	replicaKinds  = 2 // of these
	repairKind    = 2
	rebalanceKind = 3
	// maxLanes bounds the lanes for replication to one peer, and half of it those for repair.
	maxLanes = 16
)

const (
	spreadEvery = 50 * time.Millisecond  // looks at the connections of bonds on which something is waited for
	allEvery    = 20                     // looks, of which one is at all of them
	idleEvery   = 5 * time.Second        // where there are none
	drainFor    = 300 * time.Millisecond // what is under way when a lane moves to a new connection has so long to end
	drainStep   = 500 * time.Microsecond
	moveFor     = time.Second // until the new connection is there
	movePause   = time.Second // between moves of a lane, doubling to the next
	moveLate    = 30 * time.Second
)

// errMovedOn says that a lane has another connection than the one that was to be moved.
var errMovedOn = errors.New("the lane was connected anew meanwhile")

// laneClass is what a lane between chunk servers carries.
func laneClass(lane uint32) wire.Class {
	switch lane % laneKinds {
	case repairKind:
		return wire.ClassRepair
	case rebalanceKind:
		return wire.ClassRebalance
	}
	return wire.ClassReplication
}

// laneWay is which of the peer's connections for the same a lane is: see wire.Options.Way.
func laneWay(lane uint32) int {
	if kind := lane % laneKinds; kind >= replicaKinds {
		return int(lane/laneKinds) + 1
	}
	return int(lane/laneKinds*replicaKinds+lane%laneKinds) + 1
}

// lane returns the lane to a peer of a chunk. It is always the same, as long as this server runs: what a request began on one is over when the next connection of that lane
// is greeted.
func (p *peers) lane(server id.ServerID, c id.ChunkID, class wire.Class) uint32 {
	n := p.width(server)
	switch class {
	case wire.ClassRepair:
		return repairKind + laneKinds*uint32(uint64(c)%uint64(n))
	case wire.ClassRebalance:
		return rebalanceKind + laneKinds*uint32(uint64(c)%uint64(n))
	}
	all := (replicaKinds + n - 1) / n * n
	i := uint32(uint64(c) % uint64(all))
	return i%replicaKinds + laneKinds*(i/replicaKinds)
}

// width returns how many links lead to a peer that its connections are to use: 1 without a bond.
func (p *peers) width(server id.ServerID) int {
	p.mu.Lock()
	n, known := p.widths[server]
	addr := p.addrs[server].replication
	p.mu.Unlock()
	if known || addr == "" {
		return max(n, 1)
	}
	n = min(p.bonds.Lanes(addr), maxLanes/2)
	p.mu.Lock()
	defer p.mu.Unlock()
	if was, known := p.widths[server]; known {
		return was
	}
	if len(p.widths) >= maxPeers {
		return 1
	}
	p.widths[server] = n
	return n
}

// keepSpread looks after the connections over bonds until ctx ends: one that takes another's link is moved, one whose link is dead dropped.
func (p *peers) keepSpread(ctx context.Context) {
	changed, end := p.bonds.Changed()
	defer end()
	var moves sync.WaitGroup
	defer moves.Wait()
	for n := 0; ; n++ {
		every := idleEvery
		if p.bonds.Any() {
			every = spreadEvery
		}
		idle := n%allEvery == 0
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-changed:
			idle = true
		case <-t.C:
		}
		t.Stop()
		if !p.bonds.Any() {
			continue
		}
		p.mu.Lock()
		all := make(map[linkKey]*link, len(p.links))
		for key, l := range p.links {
			all[key] = l
		}
		p.mu.Unlock()
		for key, l := range all {
			p.judge(ctx, key, l, idle, &moves)
		}
	}
}

// judge looks at one link, unless somebody is connecting it.
func (p *peers) judge(ctx context.Context, key linkKey, l *link, idle bool, moves *sync.WaitGroup) {
	select {
	case l.op <- struct{}{}:
	default:
		return
	}
	conn, addr := l.conn, l.addr
	<-l.op
	if conn == nil || conn.Err() != nil || !idle && conn.Waiting() == 0 {
		return
	}
	sign, ok := conn.Sign()
	if !ok {
		return
	}
	switch p.bonds.Judge(laneWay(key.lane), &sign) {
	case bond.Drop:
		conn.Close()
	case bond.Move:
		if key.lane%laneKinds >= replicaKinds && sign.Waiting > 0 {
			return // a rebuild would begin anew; it is moved when it has ended
		}
		now := time.Now()
		if l.moving.Load() || now.Before(l.next) {
			return
		}
		if now.Sub(l.next) > moveLate {
			l.pause = movePause
		}
		l.next, l.pause = now.Add(l.pause), min(2*l.pause, moveLate)
		l.moving.Store(true)
		moves.Go(func() {
			defer l.moving.Store(false)
			p.move(ctx, key, l, conn, addr)
		})
	}
}

// move gives a lane another connection: it is made first; then what comes waits until what is under way has been answered, and only then it is greeted.
func (p *peers) move(ctx context.Context, key linkKey, l *link, old *wire.Conn, addr string) {
	ctx, cancel := context.WithTimeout(ctx, moveFor)
	defer cancel()
	held := false
	c, err := p.dial(ctx, key.server, key.lane, addr, func() error {
		select {
		case l.op <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		held = true
		if l.conn != old {
			return errMovedOn
		}
		for end := time.Now().Add(drainFor); old.Waiting() > 0 && old.Err() == nil && time.Now().Before(end); {
			time.Sleep(drainStep)
		}
		return nil
	})
	if err == nil {
		l.conn = c
		p.closeIfOver(c)
	}
	if held {
		<-l.op
	}
	if err == nil {
		old.Close()
	}
}

// closeIfOver closes a connection that was stored too late for close to see it.
func (p *peers) closeIfOver(c *wire.Conn) {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		c.Close()
	}
}

// hello is what a lane begins with.
func (p *peers) hello(lane uint32) *msg.Hello {
	return &msg.Hello{Cluster: p.cluster[:], Role: msg.Hello_CHUNK_SERVER, Server: uint32(p.self), Version: p.version, Lane: lane}
}
