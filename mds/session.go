package mds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/state"
)

// session is what the leader knows about a client beyond the state. Fields are guarded by leadership.mu.
type session struct {
	id       id.SessionID
	renewed  time.Duration   // bootNow; when the leader began, if it has not heard from the session yet
	heard    bool            // opened or renewed with this leader
	deadline time.Duration   // bootNow
	local    *msg.LocalReads // as it said last; nil: it did not
	ctx      context.Context // ends when the session is closing
	cancel   context.CancelFunc
	closing  bool
	revoked  bool          // its node is: whatever its client says is not believed
	dead     bool          // its process is no more
	forgot   bool          // and no kernel keeps what it was granted
	hung     time.Duration // bootNow, when its process closed the connection and made no other; 0: it did not
	lapsed   bool          // see lapse.go
	lapse    chan struct{} // closed while it is lapsed
	active   int           // changing requests under way
	idle     chan struct{} // closed when closing and active is 0
	gone     chan struct{} // closed when the event that closes it is applied
}

func (l *leadership) newSession(number id.SessionID) *session {
	now := bootNow()
	x := &session{id: number, renewed: now, deadline: now + l.s.o.SessionLease, idle: make(chan struct{}), gone: make(chan struct{}), lapse: make(chan struct{})}
	x.ctx, x.cancel = context.WithCancel(l.ctx)
	return x
}

// enter begins a changing request of the session, which is not closed until leave.
func (l *leadership) enter(session id.SessionID) (*session, fserr.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[session]
	switch {
	case x == nil:
		return nil, fserr.NoSession
	case x.closing: // it is over only when the event is committed
		return nil, fserr.Unavailable
	}
	x.active++
	return x, fserr.OK
}

func (l *leadership) leave(x *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.active--
	if x.closing && x.active == 0 {
		close(x.idle)
	}
}

// alive returns the session if it is open.
func (l *leadership) alive(session id.SessionID) (*session, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[session]
	return x, x != nil
}

// clients are the connections that sessions are reached at.
type clients struct {
	mu    sync.Mutex
	conns map[id.SessionID]*wire.Conn
}

// bind makes conn the connection of the session and ends an older one. Hellos of two connections may be handled in the wrong order; were
// the one that the client uses left open then, it would live on with nobody to call back, and with grants that this side takes for void.
// hungUp is called when the client has closed the connection and made no other.
func (c *clients) bind(session id.SessionID, conn *wire.Conn, hungUp func()) {
	c.mu.Lock()
	old := c.conns[session]
	c.conns[session] = conn
	c.mu.Unlock()
	if old != nil && old != conn {
		old.Close()
	}
	go func() {
		<-conn.Done()
		c.mu.Lock()
		last := c.conns[session] == conn
		if last {
			delete(c.conns, session)
		}
		c.mu.Unlock()
		if err := conn.Err(); last && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
			hungUp()
		}
	}()
}

// closeAll cuts the connections.
func (c *clients) closeAll() {
	c.mu.Lock()
	conns := make([]*wire.Conn, 0, len(c.conns))
	for _, conn := range c.conns {
		conns = append(conns, conn)
	}
	c.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
	}
}

// get returns the connection of a session, nil if it has none.
func (c *clients) get(session id.SessionID) *wire.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns[session]
}

// openSession makes a session, or finds the one that an earlier try with the same nonce made.
func (l *leadership) openSession(ctx context.Context, req *msg.OpenSession) (id.SessionID, error) {
	if len(req.Nonce) < nonceBytes || len(req.Nonce) > nonceBytes+maxOwner {
		return 0, fmt.Errorf("nonce of %d bytes, want %d: %w", len(req.Nonce), nonceBytes, fserr.Invalid)
	}
	latch := []decide.Latch{{Kind: latchNonce, Name: string(req.Nonce), Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return 0, err
	}
	defer l.latches.release(latch)
	var found id.SessionID
	l.s.fsm.view(func(st *state.State) {
		if x, ok := st.SessionByNonce(string(req.Nonce)); ok {
			found = x.ID
		}
	})
	if found != 0 {
		return found, l.confirmRead(ctx)
	}
	l.mu.Lock()
	n := len(l.sessions)
	if n >= maxSessions {
		l.oustAllLocked("there are as many sessions as there may be")
	}
	l.mu.Unlock()
	if n >= maxSessions {
		return 0, fmt.Errorf("%d sessions are open already: %w", n, fserr.Unavailable)
	}
	if err := l.mayOpen(string(req.Nonce[nonceBytes:])); err != nil {
		return 0, err
	}
	session := id.SessionID(l.nextSession.Add(1) - 1)
	err := l.propose(&event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{
		Id: uint64(session), Host: req.Host, Pid: req.Pid, Mount: req.Mount, Nonce: req.Nonce}}}, "client connects")
	if err != nil {
		return 0, err
	}
	x := l.newSession(session)
	x.heard = true
	l.mu.Lock()
	l.sessions[session] = x
	l.mu.Unlock()
	l.oustBefore(x.id, req)
	l.s.log.Info("session opened", "session", session, "host", req.Host, "mount", req.Mount)
	return session, nil
}

// renew extends the session's lease.
func (l *leadership) renew(session id.SessionID, local *msg.LocalReads) fserr.Code {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[session]
	switch {
	case x == nil:
		return fserr.NoSession
	case x.closing:
		return fserr.Unavailable
	}
	x.renewed, x.heard, x.local, x.hung = bootNow(), true, local, 0
	x.deadline = x.renewed + l.s.o.SessionLease
	if x.lapsed {
		l.returnedLocked(x)
	}
	return fserr.OK
}

// expireSessions returns what looks for sessions whose lease has run out: they lapse, or are ended. If the server itself was stopped,
// they get the time that it was away.
func (l *leadership) expireSessions() func() {
	period := l.s.o.SessionLease / 20
	last := bootNow()
	return func() {
		now := bootNow()
		away := now - last - period
		last = now
		grace := l.sessionGrace()
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, x := range l.sessions {
			if away > period {
				x.deadline += away
			}
			if x.closing || now <= x.deadline {
				continue
			}
			if l.mayLapseLocked(x, now, grace) {
				l.lapseLocked(x, now)
			} else {
				reason := "its lease has run out; " + l.lastHeard(x, now)
				l.spawnLocked(func() { l.endSession(x, event.SessionClose_EXPIRED, reason) })
			}
		}
	}
}

// lastHeard says when the session was last renewed, and with whom. The caller holds l.mu.
func (l *leadership) lastHeard(x *session, now time.Duration) string {
	ago := (now - x.renewed).Round(time.Millisecond)
	who := fmt.Sprintf("%v, leader of term %d", id.MetaID(l.s.identity.Server), l.term)
	if !x.heard {
		return fmt.Sprintf("not renewed with %s, in its %v", who, ago)
	}
	at := l.s.o.Wall().Add(-ago).UTC().Format("2006-01-02 15:04:05.000Z")
	return fmt.Sprintf("last renewed %v ago (%s) with %s", ago, at, who)
}

// endSession closes the session by an event once none of its requests is under way, and fences it unless it ends cleanly.
func (l *leadership) endSession(x *session, kind event.SessionClose_Kind, reason string) {
	l.mu.Lock()
	if x.closing || l.ctx.Err() != nil {
		l.mu.Unlock()
		return
	}
	x.closing = true
	revoked := x.revoked
	if x.active == 0 {
		close(x.idle)
	}
	l.mu.Unlock()
	x.cancel()
	if !l.waitIdle(x) {
		return
	}
	if kind == event.SessionClose_FENCED && !revoked {
		l.untilOver(x)
	}
	held, index, err := l.closeSession(x.id, kind, reason)
	if err != nil {
		l.s.log.Warn("session not closed", "session", x.id, "err", err)
		if l.ctx.Err() == nil { // the entry was not taken: try again at the next look
			l.mu.Lock()
			x.closing, x.idle = false, make(chan struct{})
			l.mu.Unlock()
		}
		return
	}
	l.mu.Lock()
	delete(l.sessions, x.id)
	forgot := x.forgot
	if kind != event.SessionClose_CLEAN {
		f := newFence(bootNow())
		f.index = index
		l.fences[x.id] = f
		l.goFence(x.id, f)
	}
	l.mu.Unlock()
	close(x.gone)
	l.forgetGrants(x.id, kind == event.SessionClose_CLEAN || forgot)
	l.s.log.Info("session closed", "session", x.id, "kind", kind.String(), "cause", reason, "files", len(held))
	for _, ino := range held {
		l.wakeLocks(ino)
		l.upgradeHolders(ino)
	}
	l.wakeAllLocks()
}

func (l *leadership) waitIdle(x *session) bool {
	start := time.Now()
	for {
		select {
		case <-x.idle:
			return true
		case <-l.ctx.Done():
			return false
		case <-time.After(2 * time.Second):
			l.s.log.Warn("session waits for its requests to end", "session", x.id, "waited", time.Since(start).Round(time.Second))
		}
	}
}

// closeSession proposes the event under latches of the session and of all inodes that it holds, and returns these and the
// event's index.
func (l *leadership) closeSession(session id.SessionID, kind event.SessionClose_Kind, reason string) ([]id.Ino, id.Index, error) {
	latches := func() []decide.Latch {
		out := []decide.Latch{{Kind: decide.LatchSession, A: uint64(session), Exclusive: true}}
		l.s.fsm.view(func(st *state.State) {
			for _, kind := range []decide.LatchKind{decide.LatchInode, decide.LatchLayout} {
				st.LeasesOf(session, func(h state.Lease) bool {
					out = append(out, decide.Latch{Kind: kind, A: uint64(h.Ino), Exclusive: true})
					return true
				})
			}
		})
		return withMembership(out)
	}
	for {
		want := latches()
		if err := l.latches.acquire(l.ctx, want); err != nil {
			return nil, 0, err
		}
		if !slices.Equal(want, latches()) {
			l.latches.release(want)
			continue
		}
		defer l.latches.release(want)
		var held []id.Ino
		for _, w := range want {
			if w.Kind == decide.LatchInode {
				held = append(held, id.Ino(w.A))
			}
		}
		ev := &event.Event{Body: &event.Event_SessionClose{SessionClose: &event.SessionClose{Id: uint64(session), Kind: kind}}}
		err := l.propose(ev, reason)
		return held, id.Index(ev.Index), err
	}
}

// endByRequest closes a session because its client, or an administrator, says so.
func (l *leadership) endByRequest(ctx context.Context, session id.SessionID, admin bool) error {
	x, ok := l.alive(session)
	if !ok {
		return nil
	}
	kind, reason := event.SessionClose_CLEAN, "the client left"
	if admin {
		kind, reason = event.SessionClose_FENCED, "an administrator ended it"
	}
	l.spawn(func() { l.endSession(x, kind, reason) })
	select {
	case <-x.gone:
		return nil
	case <-ctx.Done():
		return waitError(ctx, "session "+session.String()+" to be closed")
	case <-l.ctx.Done():
		return fserr.NotLeader
	}
}
