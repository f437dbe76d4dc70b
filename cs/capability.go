package cs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// capabilitySweep is how often capabilities that are over are looked for.
	capabilitySweep = time.Second
	// peerKnown bounds how long the hello of another chunk server waits until the leader has told who that is.
	peerKnown = 3 * time.Second
)

// rights are what a connection, or all those of a session, may do with data. Requests look at them without a lock.
type rights struct {
	bits atomic.Uint32 // pki.Rights, and live
}

// live is set in rights.bits while they are good.
const live = 1 << 16

// always returns rights that do not end.
func always(r pki.Rights) *rights {
	x := new(rights)
	x.bits.Store(uint32(r) | live)
	return x
}

// permit says whether a request for data may be made.
func (x *rights) permit(t wire.Type) fserr.Code {
	if x == nil {
		return fserr.OK // the cluster is insecure
	}
	have, need := x.bits.Load(), uint32(pki.Write)
	if t == wire.Read {
		need = uint32(pki.Read)
	}
	switch {
	case have&live == 0:
		return fserr.NoCapability
	case have&need == 0:
		return fserr.Denied
	}
	return fserr.OK
}

// capabilities are what sessions have shown. A session's connections share what the newest one says.
type capabilities struct {
	mu       sync.Mutex
	sessions map[id.SessionID]*capability
	clock    atomic.Int64 // what is to be added to the boot-time clock for the leader's; 0: not known
}

// capability is one session's.
type capability struct {
	rights
	session id.SessionID
	node    string
	until   time.Time // by the leader's clock
	users   int       // connections, local ones too
}

// told notes the leader's clock, as of an answer to what was sent at a moment of the boot-time clock.
func (t *capabilities) told(now, sent int64) {
	if now != 0 {
		t.clock.Store(now - sent)
	}
}

// now is the leader's clock, which is never behind it by this, or our own until we have heard of it.
func (t *capabilities) now() time.Time {
	if d := t.clock.Load(); d != 0 {
		return time.Unix(0, bootTime()+d)
	}
	return time.Now()
}

// show takes over a verified capability, and counts a user of it if use is set.
func (t *capabilities) show(c *pki.Capability, use bool) *capability {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.sessions[c.Session]
	if x == nil || x.node != c.Node {
		if t.sessions == nil {
			t.sessions = make(map[id.SessionID]*capability)
		}
		x = &capability{session: c.Session, node: c.Node}
		t.sessions[c.Session] = x
	}
	if use {
		x.users++
	}
	if !c.NotAfter.Before(x.until) {
		x.until = c.NotAfter
		x.bits.Store(uint32(c.Rights) | live)
	}
	return x
}

// local returns the capability of a session that a node has shown over the network, counted as used, nil if there is none.
func (t *capabilities) local(s id.SessionID, node string) *capability {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.sessions[s]
	if x == nil || x.node != node || x.permit(wire.Read) != fserr.OK {
		return nil
	}
	x.users++
	return x
}

// drop ends a use.
func (t *capabilities) drop(x *capability) {
	if x == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if x.users--; x.users == 0 && t.sessions[x.session] == x {
		delete(t.sessions, x.session)
	}
}

// over ends what is over and returns whose that was.
func (t *capabilities) over() (sessions []id.SessionID) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for s, x := range t.sessions {
		if x.bits.Load()&live != 0 && !now.Before(x.until) {
			x.bits.Store(0)
			sessions = append(sessions, s)
		}
	}
	return sessions
}

// sweepCapabilities ends capabilities in time, until the server ends. What their sessions read by themselves does not count any more.
func (s *Server) sweepCapabilities() {
	tick := time.NewTicker(capabilitySweep)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		for _, session := range s.capabilities.over() {
			s.log.Info("the capability of a session is over", "session", session)
			s.locals.fence(session)
		}
	}
}

// identify says what a connection may do, by who is at its other end and what it says it is: nil in an insecure cluster. use is the capability that it counts as
// a user of.
func (s *Server) identify(c *wire.Conn, hello *msg.Hello) (who *pki.Identity, may *rights, use *capability, code fserr.Code) {
	if s.lacksTrust() {
		return nil, nil, nil, fserr.Unavailable
	}
	if s.enforces() == nil {
		return nil, nil, nil, fserr.OK
	}
	peer, ok := c.Peer()
	if !ok || peer.Cluster != s.cluster {
		return nil, nil, nil, fserr.WrongCluster
	}
	if !secure.MayGreet(hello.Role, peer.Role) {
		return nil, nil, nil, fserr.Denied
	}
	switch hello.Role {
	case msg.Hello_CLIENT:
		x, err := s.verify(&peer, id.SessionID(hello.Session), hello.Capability, true)
		if err != nil {
			s.log.Warn("session refused", "session", hello.Session, "node", peer.Node, "peer", c.RemoteAddr(), "err", err)
			return nil, nil, nil, fserr.NoCapability
		}
		return &peer, &x.rights, x, fserr.OK
	case msg.Hello_CHUNK_SERVER:
		if code := s.knowPeer(id.ServerID(hello.Server), peer.Node); code != fserr.OK {
			s.log.Warn("chunk server refused", "cs", id.ServerID(hello.Server), "node", peer.Node, "peer", c.RemoteAddr(), "err", code)
			return nil, nil, nil, code
		}
		return &peer, always(pki.Read | pki.Write), nil, fserr.OK
	case msg.Hello_ADMIN:
		if peer.Role == pki.RoleAdmin {
			return &peer, always(pki.Read | pki.Write), nil, fserr.OK
		}
	}
	return &peer, always(0), nil, fserr.OK
}

// verify takes over the capability of a session, if the leader signed it for that session on that node.
func (s *Server) verify(who *pki.Identity, session id.SessionID, token []byte, use bool) (*capability, error) {
	if session == 0 {
		return nil, fmt.Errorf("no session named: %w", fserr.NoCapability)
	}
	a := s.auth.Load()
	if a == nil {
		return nil, fserr.NoCapability
	}
	c, err := a.trust.Verifier().Verify(token, s.capabilities.now())
	if err != nil {
		return nil, err // if it is signed with a key that is newer than what is known, the next heartbeat says so
	}
	if c.Session != session || c.Node != who.Node {
		return nil, fmt.Errorf("the capability is that of session %v on node %s: %w", c.Session, c.Node, fserr.Foreign)
	}
	if c.Rights&^secure.Rights(who.Role) != 0 { // what the leader signed for another role is of another session's owner
		return nil, fmt.Errorf("the capability is more than a %s may have: %w", who.Role, fserr.Foreign)
	}
	return s.capabilities.show(c, use), nil
}

// knowPeer checks that a chunk server runs on a node. The leader may be about to tell of it.
func (s *Server) knowPeer(server id.ServerID, node string) fserr.Code {
	for until := time.Now().Add(peerKnown); ; {
		at, known := s.peers.node(server)
		switch {
		case known && at == node:
			return fserr.OK
		case time.Now().After(until) && known:
			return fserr.Foreign
		case time.Now().After(until):
			return fserr.Unavailable
		}
		select {
		case <-s.ctx.Done():
			return fserr.Unavailable
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serveShow takes over a newer capability of the connection's session.
func (s *Server) serveShow(p peer) func(*wire.Frame, *msg.ShowCapability) (wire.Message, []byte, error) {
	return func(_ *wire.Frame, m *msg.ShowCapability) (wire.Message, []byte, error) {
		if p.who == nil || p.role != msg.Hello_CLIENT {
			return nil, nil, fserr.Protocol
		}
		if _, err := s.verify(p.who, p.session, m.Capability, false); err != nil {
			s.log.Warn("capability refused", "session", p.session, "node", p.who.Node, "err", err)
			return nil, nil, fserr.NoCapability
		}
		return nil, nil, nil
	}
}

// prove takes the capability that a session on this host has shown over the network. Who it is on this host, the socket has looked at.
func (c *localConn) prove(s *Server, session id.SessionID) bool {
	creds := s.o.creds()
	if creds == nil {
		return false
	}
	c.capability = s.capabilities.local(session, creds.Identity().Node)
	return c.capability != nil
}
