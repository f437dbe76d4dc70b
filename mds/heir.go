package mds

import (
	"context"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/ledger"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// A client's process that dies leaves a secret to the next one on its host (internal/ledger), which thereby ends the session before its lease is over. The kernel
// vouches that the process is no more. What it had sent may still be on its way, so its session ends as one that expired does: it is fenced, what it may have
// written to some replicas and not to others is settled, and both before anybody else is given its leases.

// endDead answers a CloseSession that shows a secret.
func (s *Server) endDead(ctx context.Context, l *leadership, c *wire.Conn, p *peer, f *wire.Frame, req *msg.CloseSession) {
	session, err := l.inherited(ctx, p, req)
	if err != nil {
		s.failure(c, f, err)
		return
	}
	s.answer(c, f, fserr.OK, &msg.CloseSessionReply{Session: uint64(session)})
}

// inherited ends the session whose secret the peer has, and returns it; 0 if there is none, any more.
func (l *leadership) inherited(ctx context.Context, p *peer, req *msg.CloseSession) (id.SessionID, error) {
	nonce := ledger.Nonce(req.Secret)
	if nonce == nil {
		return 0, fmt.Errorf("a session's secret of %d bytes: %w", len(req.Secret), fserr.Invalid)
	}
	var found *state.Session
	l.s.fsm.view(func(st *state.State) {
		st.Sessions(func(x *state.Session) bool {
			if len(x.Nonce) >= nonceBytes && x.Nonce[:nonceBytes] == string(nonce) {
				found = x
			}
			return found == nil
		})
	})
	if found == nil {
		return 0, l.confirmRead(ctx)
	}
	// One that was opened before the cluster was secured has no owner.
	if own := ownerOf(found); p.who != nil && own != "" && own != owner(p.who) && p.who.Role != pki.RoleAdmin {
		l.s.log.Warn("request refused: the session of a dead process belongs to another node", "session", found.ID, "node", p.who.Node)
		return 0, fmt.Errorf("session %v: %w", found.ID, fserr.Foreign)
	}
	fence, err := l.endUnclean(ctx, found.ID, event.SessionClose_EXPIRED,
		fmt.Sprintf("its process %d on %s has died, as the next one there found", found.PID, found.Host), true, !req.Mounted)
	if fserr.Of(err) == fserr.NotExist && ctx.Err() == nil { // closed meanwhile
		return found.ID, nil
	}
	if err == nil && p.role == msg.Hello_ADMIN {
		_, err = l.fenced(ctx, found.ID, fence)
	}
	return found.ID, err
}
