package mds

import (
	"context"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

// A session whose lease has run out is not ended at once: it *lapses*. Its client, which counts the same lease from an earlier moment, does
// nothing under it until it is renewed, and may be cut off from the cluster with guests that wait. So what it holds is kept for it as
// long as nobody else wants that, for the setting session.grace at most. It is ended when
//   - another client's request waits for its answer to a callback, for a lock that it holds, or for a punch that it owes;
//   - its process has closed the connection before the lease was over and made no other: it is gone;
//   - the same mount of the same host has a new session, or there are as many sessions as there may be.
//
// A client that renews a lapsed session goes on as if nothing had happened, but forgets where chunks are, and is told its modes anew.
// So what only concerns these is not worth its end: it counts as answered (needless). What another client sees of size and mtime is
// then what was last reported.

// needless reports whether a lapsed session can do without the callback. Where several clients write to a file, a write of the lapsed one may
// still be under way at a server that leaves the replica set, which has sent it on to one replica and not to another: the layout is its to give.
func (l *leadership) needless(session id.SessionID, cb *msg.Callback) bool {
	switch cb.Kind {
	case msg.Callback_ATTR, msg.Callback_UPGRADE:
		return true
	case msg.Callback_LAYOUT:
		var mode msg.Mode
		l.s.fsm.view(func(st *state.State) { mode = st.Mode(id.Ino(cb.Ino), session) })
		return cb.Members && mode != msg.Mode_SHARED_WRITE
	}
	return false
}

// sessionGrace is how long after its lease a session is kept.
func (l *leadership) sessionGrace() time.Duration {
	var set string
	l.s.fsm.view(func(st *state.State) { set = st.Config(settings.SessionGrace) })
	if set == "" {
		s, _ := settings.Find(settings.SessionGrace)
		set = s.Default
	}
	d, err := settings.Age(set)
	if err != nil {
		return 0
	}
	return d
}

// mayLapseLocked reports whether a session whose lease is over is kept.
func (l *leadership) mayLapseLocked(x *session, now, grace time.Duration) bool {
	return now <= x.deadline+grace && (x.hung == 0 || now <= x.hung+l.s.o.SessionLease/2) && len(l.sessions) < maxSessions
}

// lapseLocked notes that the lease of x is over. Clocks may drift, so it counts a little later.
func (l *leadership) lapseLocked(x *session, now time.Duration) {
	if x.lapsed || now <= x.deadline+min(leaseSlack, l.s.o.SessionLease/4) {
		return
	}
	x.lapsed = true
	close(x.lapse)
	l.s.log.Warn("a session's lease is over; what it holds is kept for it while nobody else wants that", "session", x.id, "cause", l.lastHeard(x, now))
}

// returnedLocked ends the lapse of x, whose client is back. It was told no mode meanwhile.
func (l *leadership) returnedLocked(x *session) {
	x.lapsed, x.lapse = false, make(chan struct{})
	l.s.log.Info("the client of a session whose lease was over is back", "session", x.id)
	l.spawnLocked(func() {
		var held []id.Ino
		l.s.fsm.view(func(st *state.State) {
			st.LeasesOf(x.id, func(h state.Lease) bool {
				held = append(held, h.Ino)
				return true
			})
		})
		for _, ino := range held {
			l.upgrade(ino, x.id)
		}
	})
}

// lapseOf returns a channel that is closed when x lapses.
func (l *leadership) lapseOf(x *session) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return x.lapse
}

// oust ends a session if it has lapsed, and reports whether it is about to end.
func (l *leadership) oust(x *session, why string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.oustLocked(x, why)
}

func (l *leadership) oustLocked(x *session, why string) bool {
	if !x.lapsed || x.closing {
		return x.closing
	}
	reason := fmt.Sprintf("its lease has run out, and %s; %s", why, l.lastHeard(x, bootNow()))
	l.spawnLocked(func() { l.endSession(x, event.SessionClose_EXPIRED, reason) })
	return true
}

// oustAllLocked ends every session that has lapsed.
func (l *leadership) oustAllLocked(why string) {
	for _, x := range l.sessions {
		l.oustLocked(x, why)
	}
}

// oustHolders ends the sessions that hold the inode and have lapsed.
func (l *leadership) oustHolders(ino id.Ino, why string) {
	for _, session := range l.holders(l.ctx, ino, 0) {
		if x, ok := l.alive(id.SessionID(session)); ok {
			l.oust(x, why)
		}
	}
}

// oustBefore ends lapsed sessions of the same mount, whose place the session has taken. Hosts and mounts have the names that clients say: where these are
// known, they are of the same one.
func (l *leadership) oustBefore(session id.SessionID, req *msg.OpenSession) {
	var old []id.SessionID
	l.s.fsm.view(func(st *state.State) {
		st.Sessions(func(x *state.Session) bool {
			if x.ID != session && !x.Fenced && x.Host == req.Host && x.Mount == req.Mount && req.Mount != "" && ownerOf(x) == string(req.Nonce[nonceBytes:]) {
				old = append(old, x.ID)
			}
			return true
		})
	})
	for _, s := range old {
		if x, ok := l.alive(s); ok {
			l.oust(x, "its mount was made anew")
		}
	}
}

// oustLockers ends the lapsed sessions whose locks are in the way of a request, and reports whether there were any, when they are gone.
func (l *leadership) oustLockers(ctx context.Context, req *msg.MetaRequest, out decide.Outcome) bool {
	if out.Code != fserr.Again {
		return false
	}
	any := false
	for _, s := range l.lockers(req) {
		x, ok := l.alive(s)
		if !ok || s == id.SessionID(req.Session) || !l.oust(x, "another client wants a lock that it has") {
			continue
		}
		select {
		case <-x.gone:
			any = true
		case <-ctx.Done():
			return false
		}
	}
	return any
}

// hungUp notes that the process of a session closed its connection and made no other. From one whose lease is over that is no news: what
// a client that was cut off sent long ago arrives when the network is back, and before it does itself.
func (s *Server) hungUp(session id.SessionID) {
	l := s.lead.Load()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.sessions[session]; x != nil && bootNow() <= x.deadline {
		x.hung = bootNow()
	}
}
