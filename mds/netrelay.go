package mds

import (
	"context"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/netcheck"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// maxRelays bounds the questions to clients that the leader hands on at once. Each test has another one beside it, whether its client still answers.
	maxRelays = 256
	// relayTimeout bounds one: a test, and what goes before and after it.
	relayTimeout = netcheck.MaxTest + 20*time.Second
)

// serveRelay has a session's client asked about the network, for an administrator. A client listens nowhere, so the leader asks on the connection that it has
// made; what it may do then, and how much, the client bounds (netcheck.Member).
func (s *Server) serveRelay(ctx context.Context, c *wire.Conn, p *peer, f *wire.Frame) {
	req := new(msg.NetRelay)
	refuse := func(code fserr.Code, detail string) {
		s.answer(c, f, code, &msg.NetRelayReply{Detail: detail, Leader: s.leaderAddr()})
	}
	l := s.lead.Load()
	switch {
	case l == nil:
		refuse(fserr.NotLeader, "")
		return
	case p.role != msg.Hello_ADMIN:
		refuse(fserr.Perm, "")
		return
	case req.UnmarshalVT(f.Body) != nil:
		refuse(fserr.Protocol, "")
		return
	}
	switch t := wire.Type(req.Type); t {
	case wire.NetInfo, wire.NetEcho, wire.NetTest:
		if t == wire.NetTest {
			s.log.Info("a client measures the network on an administrator's order", "session", req.Session, "by", c.RemoteAddr())
		}
	default:
		refuse(fserr.Invalid, fmt.Sprintf("request type %d is not handed on", req.Type))
		return
	}
	select {
	case s.relays <- struct{}{}:
		defer func() { <-s.relays }()
	default:
		refuse(fserr.Busy, fmt.Sprintf("%d clients are asked at once already", maxRelays))
		return
	}
	conn := s.clients.get(id.SessionID(req.Session))
	if conn == nil {
		refuse(fserr.NoSession, "the client is not connected")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	stop := context.AfterFunc(l.ctx, cancel)
	defer stop()
	answer, err := conn.Call(ctx, &wire.Frame{Type: wire.Type(req.Type), Class: wire.ClassMeta, Body: req.Body})
	if err != nil {
		refuse(fserr.Unavailable, "the client does not answer: "+err.Error())
		return
	}
	defer answer.Release()
	if answer.Code == fserr.NotLeader { // which would be said of this server
		refuse(fserr.Protocol, "the client answers as no client does")
		return
	}
	s.answer(c, f, answer.Code, &msg.NetRelayReply{Body: answer.Body})
}
