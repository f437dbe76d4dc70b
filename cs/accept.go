package cs

import (
	"context"
	"sync"

	"varve/cs/arena"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// peer is what a connection's hello said, kept in wire.Conn.Value.
type peer struct {
	role    msg.Hello_Role
	who     *pki.Identity // nil: the cluster is insecure
	may     *rights       // what it may do with data; nil: what its role says
	session id.SessionID  // of a client
	flow    *flow         // its place in the gate
	memory  *arena.Arena  // for its data
}

// laneKey names a connection that a new hello replaces.
type laneKey struct {
	role msg.Hello_Role
	who  uint64 // session or server
	lane uint32
}

// lanes are the connections that can be replaced. An entry stays until every request of its connection has ended.
type lanes struct {
	waits *waits.Table
	mu    sync.Mutex
	conns map[laneKey]*wire.Conn
}

// take makes c the connection of a lane when all requests of the older one have ended.
func (l *lanes) take(key laneKey, c *wire.Conn) {
	l.mu.Lock()
	old := l.conns[key]
	l.conns[key] = c
	l.mu.Unlock()
	go func() {
		<-c.Done()
		c.Quiesce()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.conns[key] == c {
			delete(l.conns, key)
		}
	}()
	if old != nil {
		w := l.waits.For("what came on an older connection to end", "role", key.role, "from", key.who, "lane", key.lane)
		old.Quiesce()
		w.End()
	}
}

// accept decides about a connection. It is a wire.Acceptor.
func (s *Server) accept(c *wire.Conn, hello *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
	reply := &msg.HelloReply{Cluster: s.cluster[:], Version: s.o.Version, Server: uint32(s.id), Name: s.name, Takes: wire.Takes}
	who, may, capability, code := s.identify(c, hello)
	if code != fserr.OK {
		return nil, nil, code
	}
	if capability != nil {
		go func() {
			<-c.Done()
			c.Quiesce()
			s.capabilities.drop(capability)
		}()
	}
	asking := hello.Role == msg.Hello_ADMIN && len(hello.Cluster) == 0 && who == nil
	if !asking && string(hello.Cluster) != string(s.cluster[:]) {
		return nil, nil, fserr.WrongCluster
	}
	if s.closing.Load() || s.tooLate(c) {
		return nil, nil, fserr.Unavailable
	}
	p := peer{role: hello.Role, who: who, may: may, memory: s.payload.clients}
	key := flowKey{role: hello.Role, conn: c}
	switch hello.Role {
	case msg.Hello_CLIENT:
		p.session = id.SessionID(hello.Session)
		if p.session != 0 {
			key = flowKey{role: hello.Role, who: hello.Session}
			s.lanes.take(laneKey{hello.Role, hello.Session, hello.Lane}, c)
		}
		c.Mark(wire.ClassGuest)
	case msg.Hello_CHUNK_SERVER:
		if hello.Server == 0 {
			return nil, nil, fserr.Protocol
		}
		p.memory = s.payload.peers
		key = flowKey{role: hello.Role, who: uint64(hello.Server)}
		s.lanes.take(laneKey{hello.Role, uint64(hello.Server), hello.Lane}, c)
		c.Mark(laneClass(hello.Lane))
	case msg.Hello_METADATA_SERVER, msg.Hello_ADMIN:
	default:
		return nil, nil, fserr.Protocol
	}
	if asking {
		return nil, reply, fserr.OK // it gets its answer and nothing more
	}
	p.flow = s.gate.join(key)
	go func() {
		<-c.Done()
		c.Quiesce()
		s.gate.leave(p.flow)
	}()
	c.Value, c.Admission = p, (*data)(s)
	if s.reactors != nil && c.OnSocket() {
		c.Carrier = s.reactors
	}
	return (*data)(s), reply, fserr.OK
}

// data answers what clients, peers and administrators ask.
type data Server

var (
	_ wire.Handler   = (*data)(nil)
	_ wire.Admission = (*data)(nil)
)

// Serve implements wire.Handler.
func (h *data) Serve(ctx context.Context, c *wire.Conn, req *wire.Frame) {
	s := (*Server)(h)
	p := c.Value.(peer)
	if p.who != nil && !secure.May(req.Type, p.who.Role) {
		s.log.Warn("request refused", "type", req.Type, "peer", c.RemoteAddr(), "node", p.who.Node, "role", p.who.Role.String())
		_ = c.Reply(req, fserr.Denied, nil, nil)
		return
	}
	switch req.Type {
	case wire.Read, wire.Write, wire.Punch, wire.Flush:
		s.serveData(ctx, c, p, req)
	case wire.ChunkCreate, wire.ChunkDelete:
		s.serveScratch(c, p, req)
	case wire.ShowCapability:
		answer(s, c, req, new(msg.ShowCapability), s.serveShow(p))
	case wire.ChunkTable:
		answer(s, c, req, new(msg.ChunkTable), s.serveTable)
	case wire.ChunkSeek:
		answer(s, c, req, new(msg.ChunkSeek), s.serveSeek)
	case wire.ChunkList:
		answer(s, c, req, new(msg.ChunkList), s.serveList)
	case wire.ChunkVerify:
		answer(s, c, req, new(msg.ChunkVerify), func(req *wire.Frame, m *msg.ChunkVerify) (wire.Message, []byte, error) {
			return s.serveVerify(ctx, m)
		})
	case wire.StoreStat:
		answer(s, c, req, new(msg.StoreStat), s.serveStoreStat)
	case wire.Scrub:
		answer(s, c, req, new(msg.Scrub), s.serveScrub(p))
	case wire.NetInfo, wire.NetEcho, wire.NetProbe, wire.NetTest:
		s.member.Serve(ctx, c, req, p.role)
	default:
		s.log.Warn("request refused", "type", req.Type, "peer", c.RemoteAddr())
		_ = c.Reply(req, fserr.Protocol, nil, nil)
	}
}
