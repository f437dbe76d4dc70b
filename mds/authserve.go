package mds

import (
	"context"
	"errors"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// serveAuth answers what is asked about who may speak.
func (s *Server) serveAuth(ctx context.Context, c *wire.Conn, f *wire.Frame) {
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	peer, known := c.Peer()
	var run func(l *leadership) (wire.Message, error)
	var req interface{ UnmarshalVT([]byte) error }
	var refused func(detail string) wire.Message
	switch f.Type {
	case wire.Trust:
		m := new(msg.Trust)
		req, run = m, func(l *leadership) (wire.Message, error) {
			if _, err := c.Export(proofExport); m.Key && err != nil { // a connection for data, or one that nothing protects
				return nil, fmt.Errorf("the cluster key is given where it is encrypted: %w: %w", err, fserr.Access)
			}
			return l.tellTrust(ctx, m, peer, known)
		}
		refused = func(detail string) wire.Message { return &msg.TrustReply{Detail: detail, Leader: s.leaderAddr()} }
	case wire.SecureStatus:
		req, run = new(msg.SecureStatus), func(l *leadership) (wire.Message, error) { return l.secureStatus(ctx) }
	case wire.Revoke:
		m := new(msg.Revoke)
		req, run = m, func(l *leadership) (wire.Message, error) {
			serials, err := l.revoke(ctx, m.Who, peer.Serial, peer.String())
			return &msg.RevokeReply{Serials: serials}, err
		}
	case wire.ListCertificates:
		req, run = new(msg.ListCertificates), func(l *leadership) (wire.Message, error) { return l.listCertificates(ctx) }
	case wire.ChangeSecurity:
		m := new(msg.ChangeSecurity)
		req, run = m, func(l *leadership) (wire.Message, error) { return &msg.Empty{}, l.applyChange(ctx, m, peer) }
	}
	if refused == nil {
		refused = func(detail string) wire.Message { return &msg.AdminReply{Detail: detail, Leader: s.leaderAddr()} }
	}
	if err := req.UnmarshalVT(f.Body); err != nil {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	if code, why := s.mayChange(f.Type, req, peer, known); code != fserr.OK {
		s.answer(c, f, code, refused(why))
		return
	}
	err := fmt.Errorf("%v does not lead: %w", s.identity.server(), fserr.NotLeader)
	var reply wire.Message
	l := s.lead.Load()
	switch m, ok := req.(*msg.Trust); {
	case l != nil:
		reply, err = run(l)
	case ok && len(m.Csr) == 0: // what is signed, and told apart by its version, any server may say
		var st *pki.Statement
		var opening bool
		if st, opening, err = s.guard.said(); err == nil && st != nil {
			reply := trustReply(st, m.Known)
			reply.Opening = opening
			s.answer(c, f, fserr.OK, reply)
			return
		}
		err = fmt.Errorf("%v does not know who may speak yet: %w", s.identity.server(), errors.Join(fserr.NotLeader, err))
	}
	if err == nil {
		s.answer(c, f, fserr.OK, reply)
		return
	}
	s.log.Debug("request failed", "peer", c.RemoteAddr(), "type", f.Type, "err", err)
	s.answer(c, f, s.codeOf(err), refused(err.Error()))
}

// trustReply is what a statement says to who knows a version.
func trustReply(st *pki.Statement, known uint64) *msg.TrustReply {
	reply := &msg.TrustReply{Version: st.Version}
	if known < st.Version {
		reply.Bundle, reply.Revoked, reply.Cross, reply.Signature = st.Bundle, st.Revoked, st.Cross, st.Signature
		for _, k := range st.Keys {
			reply.Keys = append(reply.Keys, &msg.TrustKey{Generation: k.Generation, Public: k.Public})
		}
	}
	return reply
}

// tellTrust tells a member what is new of who may speak, and gives it a new certificate for who it is.
func (l *leadership) tellTrust(ctx context.Context, req *msg.Trust, peer pki.Identity, known bool) (*msg.TrustReply, error) {
	st, opening, err := l.s.guard.said()
	if err != nil {
		return nil, err
	}
	if st == nil {
		return new(msg.TrustReply), l.confirmRead(ctx)
	}
	reply := trustReply(st, req.Known)
	reply.Opening = opening // at the moment of which the rest is, or who asks takes what was given up meanwhile for secured
	if len(req.Csr) > 0 {
		if !known {
			return nil, fmt.Errorf("a certificate is renewed for who shows one: %w", fserr.Access)
		}
		pub, err := pki.ReadCSR(req.Csr)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, fserr.Invalid)
		}
		if reply.Chain, err = l.issue(ctx, pub, peer, "renewed, instead of "+peer.Serial); err != nil {
			return nil, err
		}
	} else if err := l.confirmRead(ctx); err != nil {
		return nil, err
	}
	if req.Key {
		if !known || peer.Role != pki.RoleAdmin {
			return nil, fmt.Errorf("the cluster key is an administrator's to take: %w", fserr.Access)
		}
		key := l.s.keys.key.Load()
		if key == nil {
			return nil, fmt.Errorf("this server has no cluster key any more: %w", fserr.Unavailable)
		}
		reply.ClusterKey = key[:]
	}
	return reply, nil
}

func (l *leadership) listCertificates(ctx context.Context) (*msg.ListCertificatesReply, error) {
	r := new(msg.ListCertificatesReply)
	l.s.fsm.view(func(st *state.State) {
		if v, _ := inForce(st); v != nil {
			r.Secured, r.Authority, r.Oldest = true, v.Authority, v.Oldest
			for _, k := range v.Keys {
				r.Keys = append(r.Keys, &msg.TrustKey{Generation: k.Generation, Public: []byte(k.Public)})
			}
		}
		st.Certs(func(c *state.Cert) bool {
			r.Certificates = append(r.Certificates, &msg.Certificate{Serial: c.Serial, Node: c.Node, Role: c.Role, From: c.From, Until: c.Until,
				Authority: c.Authority, Revoked: c.Revoked})
			return len(r.Certificates) < maxListed
		})
	})
	return r, l.confirmRead(ctx)
}

// maxListed bounds the certificates of one answer.
const maxListed = 8192

func (l *leadership) applyChange(ctx context.Context, req *msg.ChangeSecurity, by pki.Identity) error {
	who := by.String()
	if by.Node == "" {
		who = "who may write into the directory of the leader"
	}
	switch req.What {
	case msg.ChangeSecurity_OPEN:
		return l.openSecurity(ctx)
	case msg.ChangeSecurity_CLOSE:
		return l.closeSecurity(ctx, req.Force, who)
	case msg.ChangeSecurity_ABORT:
		return l.abortSecurity(ctx, who)
	case msg.ChangeSecurity_PASSWORD:
		v, err := pki.DecodeVerifier(req.Verifier)
		if err != nil {
			return fmt.Errorf("%w: %w", err, fserr.Invalid)
		}
		return l.changeSecurity(ctx, "the password is changed by "+who, func(s *pki.Secrets) error { s.Password = v; return nil })
	case msg.ChangeSecurity_ROTATE_AUTHORITY:
		return l.changeSecurity(ctx, "the authority is rotated by "+who, func(s *pki.Secrets) error { return s.Authority.Rotate(l.s.o.Wall()) })
	case msg.ChangeSecurity_RETIRE_AUTHORITY:
		return l.changeSecurity(ctx, "old generations of the authority are retired by "+who, func(s *pki.Secrets) error {
			if l.isOlder(by.Serial, s.Authority.Generation()) {
				return fmt.Errorf("%s, which this command shows, would not be trusted any more; get one of generation %d first, with auth-node --role admin --force: %w",
					by.Serial, s.Authority.Generation(), fserr.Busy)
			}
			if !s.Authority.Retire(s.Authority.Generation()) {
				return errors.New("the authority has one generation, which is in use; rotate it first")
			}
			return nil
		})
	case msg.ChangeSecurity_ROTATE_KEYS:
		return l.changeSecurity(ctx, "the key of capabilities is rotated by "+who, func(s *pki.Secrets) error { return s.RotateSigner() })
	}
	return fmt.Errorf("change %v of security: %w", req.What, fserr.NotSupported)
}

// isOlder reports whether a certificate is of an older generation of the authority.
func (l *leadership) isOlder(serial string, generation uint32) (older bool) {
	l.s.fsm.view(func(st *state.State) {
		c, ok := st.Cert(serial)
		older = ok && c.Authority < generation
	})
	return older
}

// ask is what the server's own keeper asks: the leader, which may be itself. What the log says of others it knows already.
func (g *guard) ask(ctx context.Context, known uint64, csr []byte) (*pki.Statement, [][]byte, error) {
	if csr == nil {
		return nil, nil, nil
	}
	if l := g.s.lead.Load(); l != nil {
		pub, err := pki.ReadCSR(csr)
		if err != nil {
			return nil, nil, err
		}
		creds := g.s.creds()
		if creds == nil {
			return nil, nil, nil
		}
		own := creds.Identity()
		chain, err := l.issue(ctx, pub, own, "renewed, instead of "+own.Serial)
		return nil, chain, err
	}
	addr := g.s.leaderAddr()
	if addr == "" {
		chain, err := g.issueOwn(csr, fserr.NotLeader)
		return nil, chain, err
	}
	c, _, err := wire.Dial(ctx, addr, g.s.peerHello(), nil, wire.Options{Class: wire.ClassMeta, Network: g.s.o.Network})
	if err != nil {
		chain, err := g.issueOwn(csr, err)
		return nil, chain, err
	}
	defer c.Close()
	return wire.AskTrust(ctx, c, known, csr)
}

// keepOwn keeps the server's own certificate valid.
func (g *guard) keepOwn() {
	keeper := g.keeping()
	if keeper == nil {
		return
	}
	keeper.Every = ownEvery
	keeper.Run(g.s.ctx)
}

// ownEvery is how often the server looks at its own certificate, which costs nothing.
const ownEvery = 2 * time.Second
