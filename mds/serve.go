package mds

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const version = "varve"

// peer is who is at the other end of a connection: wire.Conn.Value.
type peer struct {
	role    msg.Hello_Role
	who     *pki.Identity              // nil: the cluster is insecure
	owns    atomic.Uint64              // the session that is known to be of its node
	signed  atomic.Int64               // bootNow of the last capability that went out on this connection
	session atomic.Uint64              // of a client, once it has one
	server  atomic.Uint32              // of a chunk server, once it is registered
	bound   atomic.Bool                // a chunk server whose end somebody waits for
	leader  atomic.Pointer[leadership] // of a client: the one that knows of its connection
	binding sync.Mutex                 // held while leader is being set
}

// accept implements wire.Acceptor.
func (s *Server) accept(c *wire.Conn, hello *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
	cluster, name := s.Cluster()
	reply := &msg.HelloReply{Cluster: cluster[:], Version: version, Server: s.identity.Server, Name: name}
	who, code := s.identify(c, hello)
	if code != fserr.OK {
		return nil, reply, code
	}
	asks := len(hello.Cluster) == 0 && hello.Role == msg.Hello_ADMIN && who == nil
	if !asks && string(hello.Cluster) != string(cluster[:]) {
		return nil, reply, fserr.WrongCluster
	}
	if hello.Role == msg.Hello_METADATA_SERVER && s.isRetired(id.MetaID(hello.Server)) {
		return nil, reply, fserr.Retired
	}
	if hello.Role == msg.Hello_CLIENT {
		c.Mark(wire.ClassMeta)
	}
	if who != nil {
		reply.Proof = wire.MetaProof(c, s.guard.Signer())
	}
	p := &peer{role: hello.Role, who: who}
	p.session.Store(hello.Session)
	if hello.Session != 0 && s.ownSession(p, id.SessionID(hello.Session)) == fserr.Foreign {
		return nil, reply, fserr.Foreign
	}
	c.Value = p
	return s, reply, fserr.OK
}

// started binds the connection to the session of its hello: from now on callbacks go there.
func (s *Server) started(c *wire.Conn) {
	if p := c.Value.(*peer); p.role == msg.Hello_CLIENT && p.session.Load() != 0 {
		session := id.SessionID(p.session.Load())
		s.clients.bind(session, c, func() { s.hungUp(session) })
		if l := s.lead.Load(); l != nil {
			l.bindGrants(p, id.SessionID(p.session.Load()))
		}
	}
}

// Serve implements wire.Handler.
func (s *Server) Serve(ctx context.Context, c *wire.Conn, f *wire.Frame) {
	p := c.Value.(*peer)
	if p.who != nil && !secure.May(f.Type, p.who.Role) {
		s.log.Warn("request refused", "peer", c.RemoteAddr(), "node", p.who.Node, "role", p.who.Role.String(), "type", f.Type)
		s.answer(c, f, fserr.Denied, nil)
		return
	}
	switch f.Type {
	case wire.Meta:
		s.serveMeta(ctx, c, p, f)
	case wire.OpenSession, wire.RenewSession, wire.CloseSession:
		s.serveSession(ctx, c, p, f)
	case wire.RegisterServer, wire.ChunkReport, wire.Heartbeat:
		s.serveChunkServer(ctx, c, p, f)
	case wire.Status, wire.StateDigest, wire.Members, wire.JournalRead, wire.JoinMeta, wire.RemoveMeta, wire.TransferLeader,
		wire.SetConfig, wire.GetConfig, wire.SetServerMode, wire.RemoveServer, wire.SetTier:
		s.serveAdmin(ctx, c, f)
	case wire.FenceSession, wire.LeaseShow, wire.LeaseTake:
		s.serveLeases(ctx, c, p, f)
	case wire.Trust, wire.Revoke, wire.ListCertificates, wire.ChangeSecurity, wire.SecureStatus:
		s.serveAuth(ctx, c, f)
	case wire.WhatIf:
		s.serveWhatIf(ctx, c, p, f)
	case wire.NetRelay:
		s.serveRelay(ctx, c, p, f)
	case wire.NetInfo, wire.NetEcho, wire.NetProbe, wire.NetTest:
		s.member.Serve(ctx, c, f, p.role)
	default:
		s.answer(c, f, fserr.NotSupported, nil)
	}
}

// answer replies; if that fails the connection has ended, and there is nobody to tell.
func (s *Server) answer(c *wire.Conn, f *wire.Frame, code fserr.Code, m wire.Message) {
	if err := c.ReplyMessage(f, code, m); err != nil {
		s.log.Debug("answer not sent", "peer", c.RemoteAddr(), "err", err)
	}
}

// failure answers with the code of err, as NotLeader if the leadership is over.
func (s *Server) failure(c *wire.Conn, f *wire.Frame, err error) {
	s.log.Debug("request failed", "peer", c.RemoteAddr(), "type", f.Type, "err", err)
	s.answer(c, f, s.codeOf(err), nil)
}

func (s *Server) codeOf(err error) fserr.Code {
	var code fserr.Code
	switch {
	case s.lead.Load() == nil:
		return fserr.NotLeader
	case errors.As(err, &code):
		return code
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNotConnected):
		return fserr.Unavailable
	}
	return fserr.IO
}

func (s *Server) serveMeta(ctx context.Context, c *wire.Conn, p *peer, f *wire.Frame) {
	req := new(msg.MetaRequest)
	if err := req.UnmarshalVT(f.Body); err != nil || req.Op == nil {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	l := s.lead.Load()
	if l == nil {
		s.answer(c, f, fserr.NotLeader, &msg.MetaReply{Leader: s.leaderFor(p.role)})
		return
	}
	if req.Session != p.session.Load() && req.Session != 0 {
		s.answer(c, f, fserr.NoSession, &msg.MetaReply{Detail: "the connection belongs to another session"})
		return
	}
	if p.who != nil && !secure.MayDo(req, p.who.Role) {
		code := fserr.Denied
		if p.who.Role == pki.RoleReader {
			code = fserr.ReadOnly
		}
		s.answer(c, f, code, &msg.MetaReply{Detail: "the certificate of " + p.who.String() + " does not allow it"})
		return
	}
	if req.Session != 0 {
		if code := s.ownSession(p, id.SessionID(req.Session)); code != fserr.OK {
			s.answer(c, f, code, &msg.MetaReply{Detail: "the session belongs to another node"})
			return
		}
		l.bindGrants(p, id.SessionID(req.Session)) // started may not have come so far yet
	}
	if r := req.GetReadDir(); r != nil {
		r.Max = min(r.Max, maxReadDirEntries)
	}
	out, err := l.request(ctx, req, p.role == msg.Hello_ADMIN)
	if err != nil {
		code := s.codeOf(err)
		reply := &msg.MetaReply{Detail: err.Error()}
		if code == fserr.NotLeader {
			reply.Leader = s.leaderFor(p.role)
		}
		s.log.Debug("request failed", "session", req.Session, "seq", req.Seq, "err", err)
		s.answer(c, f, code, reply)
		return
	}
	s.answer(c, f, out.Code, out.Reply)
}

func (s *Server) serveSession(ctx context.Context, c *wire.Conn, p *peer, f *wire.Frame) {
	l := s.lead.Load()
	if l == nil {
		s.answer(c, f, fserr.NotLeader, nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	switch f.Type {
	case wire.OpenSession:
		req := new(msg.OpenSession)
		if err := req.UnmarshalVT(f.Body); err != nil {
			s.answer(c, f, fserr.Protocol, nil)
			return
		}
		if len(req.Nonce) != nonceBytes {
			s.answer(c, f, fserr.Invalid, nil)
			return
		}
		if p.who != nil { // so that only its owner finds it again
			req.Nonce = append(req.Nonce, owner(p.who)...)
		}
		session, err := l.openSession(ctx, req)
		if err != nil {
			s.failure(c, f, err)
			return
		}
		if p.session.Swap(uint64(session)) != uint64(session) {
			p.leader.Store(nil) // what was bound was the session before it
		}
		s.clients.bind(session, c, func() { s.hungUp(session) })
		l.bindGrants(p, session)
		lease := s.o.SessionLease.Milliseconds()
		s.answer(c, f, fserr.OK, &msg.OpenSessionReply{Session: uint64(session), LeaseMs: uint32(lease), RenewMs: uint32(lease / 5),
			Capability: l.capability(p, session, true)})
	case wire.RenewSession:
		req := new(msg.RenewSession)
		if err := req.UnmarshalVT(f.Body); err != nil {
			s.answer(c, f, fserr.Protocol, nil)
			return
		}
		if req.Session != p.session.Load() {
			s.answer(c, f, fserr.NoSession, nil)
			return
		}
		if code := s.ownSession(p, id.SessionID(req.Session)); code != fserr.OK {
			s.answer(c, f, code, nil)
			return
		}
		code := l.renew(id.SessionID(req.Session), req.Local)
		if err := l.confirmRead(ctx); err != nil { // a client must not live on the word of a leader that was replaced
			s.failure(c, f, err)
			return
		}
		reply := &msg.RenewSessionReply{LeaseMs: uint32(s.o.SessionLease.Milliseconds())}
		reply.Trust, reply.Opening = s.tellOpening(c)
		if code == fserr.OK {
			l.bindGrants(p, id.SessionID(req.Session)) // if this server was not the leader when the client connected
			if p.leader.Load() != l {                  // grants of an earlier leadership must not be prolonged
				c.Close()
				return
			}
			reply.Slow, reply.Silent = l.noteClientLoad(req.Load), l.silent()
			reply.Capability = l.capability(p, id.SessionID(req.Session), req.Capability)
			reply.CacheMs = uint32(l.grants.renewed(id.SessionID(req.Session)).Milliseconds())
			reply.Index = uint64(s.fsm.openAsOf(id.SessionID(req.Session)))
		}
		s.answer(c, f, code, reply)
	case wire.CloseSession:
		req := new(msg.CloseSession)
		if err := req.UnmarshalVT(f.Body); err != nil {
			s.answer(c, f, fserr.Protocol, nil)
			return
		}
		if len(req.Secret) > 0 {
			s.endDead(ctx, l, c, p, f, req)
			return
		}
		byHand := p.role == msg.Hello_ADMIN && (p.who == nil || p.who.Role == pki.RoleAdmin)
		if !byHand && req.Session != p.session.Load() {
			s.answer(c, f, fserr.NoSession, nil)
			return
		}
		if code := s.ownSession(p, id.SessionID(req.Session)); !byHand && code != fserr.OK {
			s.answer(c, f, code, nil)
			return
		}
		if err := l.endByRequest(ctx, id.SessionID(req.Session), byHand); err != nil {
			s.failure(c, f, err)
			return
		}
		s.answer(c, f, fserr.OK, &msg.Empty{})
	}
}

func (s *Server) serveChunkServer(ctx context.Context, c *wire.Conn, p *peer, f *wire.Frame) {
	l := s.lead.Load()
	if l == nil {
		s.answer(c, f, fserr.NotLeader, nil)
		return
	}
	if p.role != msg.Hello_CHUNK_SERVER {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	var req interface{ UnmarshalVT([]byte) error }
	var handle func() (wire.Message, error)
	switch f.Type {
	case wire.RegisterServer:
		r := new(msg.RegisterServer)
		req, handle = r, func() (wire.Message, error) { return l.registerServer(ctx, c, p, r) }
	case wire.ChunkReport:
		r := new(msg.ChunkReport)
		req, handle = r, func() (wire.Message, error) { return l.chunkReport(ctx, c, p, r) }
	case wire.Heartbeat:
		r := new(msg.Heartbeat)
		req, handle = r, func() (wire.Message, error) { return l.heartbeat(ctx, c, p, r) }
	}
	if err := req.UnmarshalVT(f.Body); err != nil {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	reply, err := handle()
	if err != nil {
		s.failure(c, f, err)
		return
	}
	s.answer(c, f, fserr.OK, reply)
	l.heardAgain(c, p)
	if p.bound.CompareAndSwap(false, true) {
		s.spawn(func() {
			<-c.Done()
			if l := s.lead.Load(); l != nil {
				l.serverGone(c, p)
			}
		})
	}
}
