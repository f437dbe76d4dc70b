package mds

import (
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// TestFenceWaitsForTheClient: nobody else is given the leases of a session that is fenced before its client has said that it serves nothing any more from
// what it keeps, or its lease is over.
func TestFenceWaitsForTheClient(t *testing.T) {
	c := newCluster(t, 1, nil)
	newChunks(c)
	a, b := newClient(c), newClient(c)
	ino := a.create("f", true).Attr.Ino
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: uint64(a.session)}, nil); code != fserr.OK {
		t.Fatal(code)
	}
	if n := a.calls(msg.Callback_OVER); n == 0 {
		t.Error("the client was not told")
	}
	if _, code := b.do(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})); code != fserr.OK {
		t.Fatal(code)
	}

	// One that does not say it, and is not renewed: it may serve until its lease is over.
	d := newClient(c)
	if _, code := d.do(d.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ})); code != fserr.OK {
		t.Fatal(code)
	}
	d.silent.Store(true)
	l := c.leader().lead.Load()
	x, ok := l.alive(d.session)
	if !ok {
		t.Fatal("the session is gone")
	}
	l.mu.Lock()
	until := x.deadline
	l.mu.Unlock()
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: uint64(d.session)}, nil); code != fserr.OK {
		t.Fatal(code)
	}
	if now := bootNow(); now < until {
		t.Errorf("the session was fenced %v before its lease was over", until-now)
	}
	d.silent.Store(false)
}

// TestRevokedWhileItsClientIsAwaited: the client of a session that is being fenced is not waited for once its node is revoked.
func TestRevokedWhileItsClientIsAwaited(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.SessionLease = time.Hour })
	a := newClient(c)
	a.silent.Store(true)
	l := c.leader().lead.Load()
	x, ok := l.alive(a.session)
	if !ok {
		t.Fatal("the session is gone")
	}
	l.spawn(func() { l.endSession(x, event.SessionClose_FENCED, "test") })
	c.eventually("the client to be told", func() bool { return a.calls(msg.Callback_OVER) > 0 })
	l.endSessions(map[id.SessionID]string{a.session: "its node"})
	select {
	case <-x.gone:
	case <-time.After(30 * time.Second):
		t.Error("the session of a revoked node is still there")
	}
}
