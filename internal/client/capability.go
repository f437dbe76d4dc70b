package client

import (
	"context"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// In a secured cluster the leader signs what a session may do with chunks, for a while, and chunk servers believe that without asking anybody. A connection
// shows it in its hello; what the session's connections to a server may do is what was shown there last, on any of them. So a newer one is shown once to
// each server, before the older is over. A server that says NoCapability has the session renewed at once, and what it was asked for is asked again.

// token returns the newest capability, nil if the cluster is insecure.
func (s *session) token() []byte {
	if t := s.capability.Load(); t != nil {
		return *t
	}
	return nil
}

// granted takes over what an answer of the leader brought, and shows it to the servers that have connections of this session.
func (s *session) granted(token []byte) {
	if len(token) == 0 {
		return
	}
	s.capability.Store(&token)
	s.servers.mu.RLock()
	defer s.servers.mu.RUnlock()
	for _, srv := range s.servers.all {
		if srv.connected() {
			s.c.background(srv.show)
		}
	}
}

// wantCapability has the leader asked for another one.
func (s *session) wantCapability() {
	s.refused.Store(true)
	s.doubt()
}

// connected reports whether the session has connections to the server.
func (srv *server) connected() bool {
	for i := range srv.lanes {
		if srv.lanes[i].usable() != nil {
			return true
		}
	}
	for i := range srv.hot {
		if h := srv.hot[i].Load(); h != nil && h.cur.Load() != nil {
			return true
		}
	}
	return srv.bypass.Load() != nil
}

// show shows the newest capability on a connection of a goroutine. Seats' connections to the server, and its local one, need none of their own.
func (srv *server) show() {
	for i := range srv.lanes {
		c := srv.lanes[i].usable()
		if c == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(srv.s.ctx, srv.s.c.o.DialTimeout)
		code, err := c.CallMessage(ctx, wire.ShowCapability, wire.ClassGuest, &msg.ShowCapability{Capability: srv.s.token()}, nil)
		cancel()
		if err == nil && code == fserr.OK {
			return
		}
		srv.s.c.log.Info("capability not shown", "cs", srv.id, "err", err, "code", code.Error())
	}
	_, _ = srv.conn(0) // its hello shows it; who needs the server finds out by himself what is wrong
}
