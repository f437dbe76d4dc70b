package mds

import (
	"context"
	"fmt"
	"strings"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/mds/event"
	"varve/mds/state"
)

// revoke takes certificates back: that with a serial number, or all that a node has. own is the certificate of who asks.
func (l *leadership) revoke(ctx context.Context, who, own, by string) ([]string, error) {
	release, err := l.latchSecurityAll(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	serial, serr := pki.ParseSerial(who)
	now := l.s.o.Wall().UnixNano()
	var serials []string
	known, secured := false, false
	l.s.fsm.view(func(st *state.State) {
		v, _ := inForce(st)
		secured = v != nil
		st.Certs(func(c *state.Cert) bool {
			if c.Node != who && (serr != nil || c.Serial != serial) {
				return true
			}
			known = true
			if c.Revoked == 0 && c.Until > now-int64(pki.Skew) {
				serials = append(serials, c.Serial)
			}
			return true
		})
	})
	switch {
	case !secured:
		return nil, fmt.Errorf("the cluster has no security, so there are no certificates: %w", fserr.NotSupported)
	case !known:
		return nil, fmt.Errorf("%.80q is neither a node nor the serial number of a certificate; list-nodes lists them: %w", who, fserr.NotExist)
	case len(serials) == 0: // they are revoked, or over
		return nil, nil
	}
	for _, x := range serials {
		if x == own {
			return nil, fmt.Errorf("%s is the certificate that this command shows; revoke it with another administrator's: %w", x, fserr.Busy)
		}
	}
	ev := &event.Event{Body: &event.Event_CertRevoke{CertRevoke: &event.CertRevoke{Serials: serials, At: now}}}
	if err := l.propose(ev, "revoked by "+by); err != nil {
		return nil, err
	}
	l.s.log.Warn("certificates revoked", "who", who, "serials", strings.Join(serials, " "), "by", by)
	if err := l.s.guard.learn(); err != nil { // here they are refused from the answer on, elsewhere within seconds
		l.s.log.Warn("who may speak is not known anew", "err", err)
	}
	return serials, nil
}

// endRevoked ends connections and sessions of revoked certificates. It does not wait.
func (g *guard) endRevoked(revoked func(serial string) bool) {
	s := g.s
	if l := s.lead.Load(); l != nil {
		l.endSessions(s.clients.revoked(revoked))
		l.endOrphans()
	}
	if n, ok := s.o.Network.(*secure.Network); ok {
		for _, who := range n.EndIf(func(i pki.Identity) bool { return revoked(i.Serial) }) {
			s.log.Warn("connection ended: its certificate is revoked", "node", who.Node, "role", who.Role.String(), "serial", who.Serial)
		}
	}
}

// endOrphans ends the sessions of who has nothing but revoked certificates. A leader does so from time to time: one before it may have been killed between a
// revocation and this, and a session may have been under way that was opened just before.
func (l *leadership) endOrphans() { l.endSessions(l.s.orphaned()) }

// endSessions ends sessions of who is revoked. It does not wait.
func (l *leadership) endSessions(of map[id.SessionID]string) {
	for session, who := range of {
		if x, ok := l.alive(session); ok {
			l.mu.Lock()
			x.revoked = true
			l.mu.Unlock()
			l.spawn(func() { l.endSession(x, event.SessionClose_FENCED, "the certificate of "+who+" is revoked") })
		}
	}
}

// revoked returns the sessions whose clients show a revoked certificate, and the names of their nodes.
func (c *clients) revoked(revoked func(serial string) bool) map[id.SessionID]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[id.SessionID]string)
	for session, conn := range c.conns {
		if p, ok := conn.Peer(); ok && revoked(p.Serial) {
			out[session] = p.Node
		}
	}
	return out
}

// orphaned returns the sessions of owners that had their certificates revoked and have no other, also those whose clients are cut off, and who that
// was.
func (s *Server) orphaned() map[id.SessionID]string {
	now := s.o.Wall().UnixNano()
	out := make(map[id.SessionID]string)
	s.fsm.view(func(st *state.State) {
		revoked, live := make(map[string]bool), make(map[string]bool)
		st.Certs(func(c *state.Cert) bool {
			switch own := owner(&pki.Identity{Role: pki.Role(c.Role), Node: c.Node}); {
			case pki.Role(c.Role) == pki.RoleAdmin: // which opens no session
			case c.Revoked != 0:
				revoked[own] = true
			case c.Until > now-int64(pki.Skew):
				live[own] = true
			}
			return true
		})
		if len(revoked) == 0 {
			return
		}
		st.Sessions(func(x *state.Session) bool {
			if own := ownerOf(x); !x.Fenced && revoked[own] && !live[own] {
				out[x.ID] = own
			}
			return true
		})
	})
	return out
}
