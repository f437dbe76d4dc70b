package mds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planes"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/plan"
	"varve/mds/state"
)

// chunkServer is what the leader knows about a chunk server beyond the state. Fields are guarded by leadership.mu.
type chunkServer struct {
	id          id.ServerID
	conn        *wire.Conn    // nil: not connected
	registered  time.Duration // bootNow, on this connection
	heard       time.Duration // bootNow; after an answer was sent, so that its lease ends no later than heard + ServerLease
	ready       bool          // its report is complete: it serves
	down        time.Duration // bootNow, since when it is not live
	doubted     time.Duration // bootNow, when a client had a replica on it dropped; until it is heard from again nothing is put there
	incarnation uint64
	beat        *msg.Heartbeat           // the newest one, never nil
	net         *msg.NetReport           // the newest one, nil if none came
	stale       map[id.ChunkID]id.Epoch  // old copies
	reported    map[id.ChunkID]chunkCopy // while its report is coming in
	load        int                      // rebuilds to or from it
	told        bool                     // it has told of its load
	repaired    uint64                   // bytes that rebuilds had copied to it, as of its last heartbeat
	looked      time.Duration            // bootNow, of giveUpLast
}

// Bounds of a NetReport.
const (
	maxNetCounts = 512
	maxNetPeers  = 64
	maxNetLines  = 64 // of bonds, and of warnings
)

// stateFailed in a heartbeat says that the server's disk is out of service.
const stateFailed = "failed"

// chunkCopy is what a server said of one chunk.
type chunkCopy struct {
	epoch            id.Epoch
	unclean, joining bool
	power            bool // unclean since the machine lost power
}

// registerServer makes the server a member, or finds the one that has its UUID, and takes its connection.
func (l *leadership) registerServer(ctx context.Context, conn *wire.Conn, p *peer, req *msg.RegisterServer) (*msg.RegisterServerReply, error) {
	if len(req.Uuid) != 16 || req.Addr == "" {
		return nil, fmt.Errorf("registration of a chunk server without uuid or address: %w", fserr.Invalid)
	}
	if err := planes.Book(req.Addr).Check(); err != nil {
		return nil, fmt.Errorf("registration of a chunk server: %w: %w", err, fserr.Invalid)
	}
	latch := []decide.Latch{{Kind: latchServer, Name: string(req.Uuid), Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return nil, err
	}
	defer l.latches.release(latch)
	if err := l.mayBe(p, req); err != nil {
		return nil, err
	}
	server, err := l.member(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := l.bindServer(p, server); err != nil {
		return nil, err
	}
	now := bootNow()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, fmt.Errorf("leadership ended: %w", fserr.NotLeader)
	}
	c := l.servers[server]
	if c == nil {
		if len(l.servers) >= maxChunkServers {
			l.mu.Unlock()
			return nil, fmt.Errorf("%d chunk servers are registered already: %w", maxChunkServers, fserr.Unavailable)
		}
		c = &chunkServer{id: server, beat: &msg.Heartbeat{}}
		l.servers[server] = c
	}
	old := c.conn
	*c = chunkServer{
		id: server, conn: conn, registered: now, heard: now, down: c.down, incarnation: c.incarnation + 1, load: c.load, told: c.told, repaired: c.repaired,
		stale: make(map[id.ChunkID]id.Epoch), reported: make(map[id.ChunkID]chunkCopy),
		beat: &msg.Heartbeat{Total: req.Total, Free: req.Free},
	}
	if c.down == 0 {
		c.down = now
	}
	reply := &msg.RegisterServerReply{
		Server: uint32(server), HeartbeatMs: uint32(l.s.o.ServerTimeout.Milliseconds() / 6), LeaseMs: uint32(l.s.o.ServerLease.Milliseconds()),
		Incarnation: c.incarnation,
	}
	l.mu.Unlock()
	if old != nil && old != conn {
		old.Close()
	}
	p.server.Store(uint32(server))
	conn.Mark(wire.ClassHeartbeat)
	reply.Fenced = l.fencedSessions()
	reply.Peers, reply.DataTls, reply.Now = l.peerList(), l.dataTLS(), l.s.o.Wall().UnixNano()
	l.s.log.Info("chunk server registered", "cs", server, "addr", req.Addr, "host", req.Host)
	return reply, l.confirmRead(ctx)
}

// member returns the id of the chunk server with the UUID, after what changed of it is recorded.
func (l *leadership) member(ctx context.Context, req *msg.RegisterServer) (id.ServerID, error) {
	var known *state.Server
	l.s.fsm.view(func(st *state.State) {
		st.Servers(func(x *state.Server) bool {
			if x.UUID == string(req.Uuid) {
				known = x
			}
			return known == nil
		})
	})
	switch {
	case known == nil && req.Server != 0:
		return 0, fmt.Errorf("chunk server cs%d with an unknown uuid: %w", req.Server, fserr.Retired)
	case known == nil:
		server := id.ServerID(l.nextServer.Add(1) - 1)
		return server, l.propose(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{
			Id: uint32(server), Uuid: slices.Clone(req.Uuid), Addr: req.Addr, Host: req.Host, Rack: req.Rack, Tier: req.Tier}}}, "chunk server joins")
	case known.Retired || req.Server != 0 && known.ID != id.ServerID(req.Server):
		return 0, fmt.Errorf("chunk server %v: %w", known.ID, fserr.Retired)
	case known.Addr != req.Addr || known.Host != req.Host || known.Rack != req.Rack: // what its tier is, an administrator says
		return known.ID, l.propose(&event.Event{Body: &event.Event_ServerUpdate{ServerUpdate: &event.ServerUpdate{
			Id: uint32(known.ID), Addr: req.Addr, Host: req.Host, Rack: req.Rack, Tier: known.Tier}}}, "chunk server moved")
	}
	return known.ID, nil
}

// heartbeat takes a server's soft state. What it answers extends the server's lease.
func (l *leadership) heartbeat(ctx context.Context, conn *wire.Conn, p *peer, req *msg.Heartbeat) (*msg.HeartbeatReply, error) {
	if err := l.confirmRead(ctx); err != nil { // a server's lease is never extended by a leader that may not be one
		return nil, err
	}
	l.mu.Lock()
	c := l.servers[id.ServerID(p.server.Load())]
	if c == nil || c.conn != conn {
		l.mu.Unlock()
		return nil, fmt.Errorf("heartbeat of a chunk server that is not registered: %w", fserr.NotReady)
	}
	c.heard = bootNow()
	c.beat = &msg.Heartbeat{Total: req.Total, Free: req.Free, Chunks: req.Chunks, Ops: req.Ops, LatencyUs: req.LatencyUs, State: req.State,
		Memory: req.Memory, Resident: req.Resident, DataPath: req.DataPath, Allocated: req.Allocated, Reserved: req.Reserved,
		BadBlocks: req.BadBlocks, BadChunks: slices.Clone(req.BadChunks), Scrubbed: req.Scrubbed, ScrubPermille: req.ScrubPermille, Reason: req.Reason,
		Journal: req.Journal, Load: req.Load, Bad: cloneBad(req.Bad)}
	if n := req.Net; n != nil && len(n.Counts) <= maxNetCounts && len(n.Peers) <= maxNetPeers && len(n.Bonds) <= maxNetLines && len(n.Warnings) <= maxNetLines {
		c.net = n
	}
	l.noteServerLoad(c, req.Load)
	server, rate := c.id, l.rateFor(c.id)
	l.mu.Unlock()
	trust, opening := l.s.tellOpening(conn)
	return &msg.HeartbeatReply{Fenced: l.fencedSessions(), Peers: l.peerList(), LeaseMs: uint32(l.s.o.ServerLease.Milliseconds()),
		RepairRate: rate, Tier: l.tierOf(server) + 1, DataTls: l.dataTLS(), Trust: trust, Opening: opening, Now: l.s.o.Wall().UnixNano()}, nil
}

// heardAgain is called after an answer that extends a lease was sent.
func (l *leadership) heardAgain(conn *wire.Conn, p *peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.servers[id.ServerID(p.server.Load())]; c != nil && c.conn == conn {
		c.heard = bootNow()
	}
}

func (l *leadership) peerList() []*msg.Peer {
	var out []*msg.Peer
	l.s.fsm.view(func(st *state.State) {
		st.Servers(func(x *state.Server) bool {
			if !x.Retired {
				b := planes.Book(x.Addr)
				p := &msg.Peer{Server: uint32(x.ID), Addr: b.Addr(planes.Replication), Node: nodeOf(st, x.ID)}
				if repair := b.Addr(planes.Repair); repair != p.Addr {
					p.RepairAddr = repair
				}
				out = append(out, p)
			}
			return true
		})
	})
	return out
}

// serverGone is called when the connection of a chunk server has ended.
func (l *leadership) serverGone(conn *wire.Conn, p *peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.servers[id.ServerID(p.server.Load())]; c != nil && c.conn == conn {
		l.setDown(c, "its connection ended")
		c.conn, c.ready = nil, false
		c.stale, c.reported = nil, nil
	}
}

// setDown notes since when c is not live. The caller holds l.mu.
func (l *leadership) setDown(c *chunkServer, cause string) {
	if c.down == 0 {
		c.down = bootNow()
		l.unsited.Add(1)
		l.s.log.Info("chunk server down", "cs", c.id, "cause", cause)
	}
}

// watchServers finds the servers that have fallen silent, and those that are back.
func (l *leadership) watchServers() {
	now := bootNow()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.servers {
		silent := now-c.heard > l.s.o.ServerTimeout
		switch {
		case c.conn != nil && silent:
			l.setDown(c, "it was not heard from")
		case c.failed():
			l.setDown(c, "its disk failed: "+c.beat.Reason)
		case c.down != 0 && c.conn != nil && c.ready:
			c.down = 0
			l.unsited.Add(1)
			l.forgetFailures(c.id)
			l.planSoonLocked()
			l.s.log.Info("chunk server up", "cs", c.id)
		}
	}
}

// live reports whether c is to be used. The caller holds l.mu.
func (l *leadership) live(c *chunkServer) bool {
	return c != nil && c.conn != nil && c.ready && c.beat.State != stateFailed && bootNow()-c.heard <= l.s.o.ServerTimeout
}

// silent returns the chunk servers that have missed three heartbeats, while most others have just sent one: who waits for one of them need not wait
// on. Where most are late it is the leader, the network or the load.
func (l *leadership) silent() (out []uint32) {
	now := bootNow()
	limit := l.s.o.ServerTimeout / 2
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh := 0
	for _, c := range l.servers {
		switch age := now - c.heard; {
		case age > limit:
			out = append(out, uint32(c.id))
		case age <= limit/2:
			fresh++
		}
	}
	if 2*fresh <= len(l.servers) || now-l.since < l.s.o.ServerTimeout {
		return nil
	}
	return out
}

func (l *leadership) isLive(server id.ServerID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live(l.servers[server])
}

// settling reports whether chunk servers may not have found the new leader yet.
func (l *leadership) settling() bool { return bootNow()-l.since < l.s.o.ServerTimeout }

// awaitServers waits until as many chunk servers are live as a chunk of the inode needs, or, in the first seconds of a leadership, for those
// that may just not have registered yet. Placed at once, a chunk would begin with fewer replicas than it should have.
func (l *leadership) awaitServers(ctx context.Context, ino id.Ino) {
	var w *waits.Wait
	defer func() { w.End() }()
	for l.settling() {
		want, members := 0, 0
		l.s.fsm.view(func(st *state.State) {
			want = int(st.Policy(ino).Norm)
			st.Servers(func(x *state.Server) bool {
				if !x.Retired {
					members++
				}
				return true
			})
		})
		live := 0
		l.mu.Lock()
		for _, c := range l.servers {
			if l.live(c) {
				live++
			}
		}
		l.mu.Unlock()
		if w == nil && live < min(want, members) {
			w = l.s.waits.For("chunk servers to find the new leader", "live", live, "want", min(want, members))
		}
		if live >= min(want, members) || !sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}

// server is decide.Env.Servers; it runs inside fsm.view, of which it needs the address.
func (l *leadership) server(st *state.State, server id.ServerID) (string, bool) {
	x, ok := st.Server(server)
	if !ok {
		return "", false
	}
	return planes.Book(x.Addr).Addr(planes.Client), l.isLive(server)
}

// views is what the planners see of the members.
func (l *leadership) views(st *state.State) []plan.ServerView {
	now := bootNow()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]plan.ServerView, 0, len(l.servers))
	coming := l.coming()
	st.Servers(func(x *state.Server) bool {
		c := l.servers[x.ID]
		if x.Retired || c == nil {
			return true
		}
		v := plan.ServerView{
			ID: x.ID, Host: x.Host, Rack: x.Rack, Tier: x.Tier, Free: c.beat.Free, Total: c.beat.Total, Load: c.load,
			Slow: l.pacing.watch.Slow(x.ID) != "", Standby: x.Mode == event.ServerMode_STANDBY, Draining: x.Leaving(), Coming: coming[x.ID], Going: c.going(st),
			Live: l.live(c) && c.heard >= c.doubted, Lost: c.failed() || c.down != 0 && now-c.down > l.s.o.RepairGrace,
		}
		if len(c.stale) > 0 {
			v.Stale = func(k id.ChunkID) bool { return l.hasStale(c, k) }
		}
		out = append(out, v)
		return true
	})
	return out
}

const (
	// sitesFor is how long what was prepared to place new chunks is used, where there are more than fewSites chunk servers; for fewer it is prepared each time.
	sitesFor = 200 * time.Millisecond
	fewSites = 32
)

// sites is what was prepared to place new chunks.
type sites struct {
	*plan.Sites
	at    time.Duration // bootNow
	count uint64        // leadership.unsited
}

// sitesNow returns what new chunks are placed by. What servers have free is as they told last, so it may be a moment old in any case.
func (l *leadership) sitesNow(st *state.State) *plan.Sites {
	now, count := bootNow(), l.unsited.Load()
	if x := l.sites.Load(); x != nil && x.count == count && now-x.at < sitesFor {
		return x.Sites
	}
	views := withMargin(st, l.views(st))
	x := &sites{plan.NewSites(st, views), now, count}
	if len(views) > fewSites {
		l.sites.Store(x)
	}
	return x.Sites
}

// going returns about how many bytes the server will get back when it has deleted what it is to delete. The caller holds leadership.mu.
func (c *chunkServer) going(st *state.State) uint64 {
	if c.beat.Chunks == 0 {
		return 0
	}
	n := min(uint64(st.GarbageOf(c.id)), c.beat.Chunks)
	return n * (c.beat.Allocated / c.beat.Chunks)
}

// noteStale remembers the copies that a server was left with, to rebuild from or to delete.
func (l *leadership) noteStale(server id.ServerID, chunks ...*state.Chunk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.servers[server]
	if c == nil || c.stale == nil { // when it registers it says what it has
		return
	}
	for _, k := range chunks {
		if len(c.stale) < maxServerStale {
			c.stale[k.ID] = k.Epoch()
		}
	}
}

func (l *leadership) hasStale(c *chunkServer, k id.ChunkID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := c.stale[k]
	return ok
}

var errNotConnected = errors.New("chunk server is not connected")

// askServer sends a request to a chunk server on the connection that it made.
func (l *leadership) askServer(ctx context.Context, server id.ServerID, timeout time.Duration, t wire.Type, req, reply wire.Message) error {
	l.mu.Lock()
	var conn *wire.Conn
	if c := l.servers[server]; c != nil {
		conn = c.conn
	}
	l.mu.Unlock()
	if conn == nil {
		return fmt.Errorf("%v: %w", server, errNotConnected)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, err := conn.CallMessage(ctx, t, wire.ClassRepair, req, reply)
	if err == nil {
		err = code.Err()
	}
	if err != nil {
		return fmt.Errorf("%v, request type %d: %w", server, t, err)
	}
	return nil
}
