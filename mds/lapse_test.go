package mds

import (
	"strings"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

// lapses has clients fall silent until their leases are over.
func (c *testCluster) lapses(clients ...*testClient) {
	c.t.Helper()
	for _, k := range clients {
		k.silent.Store(true)
	}
	for _, k := range clients {
		c.eventually("a session to lapse", func() bool {
			l := c.lead()
			l.mu.Lock()
			defer l.mu.Unlock()
			x := l.sessions[k.session]
			if x == nil {
				kind, reason := c.closed(k.session)
				c.t.Fatalf("session %v was closed as %v: %s", k.session, kind, reason)
			}
			return x.lapsed
		})
	}
}

// expired waits until the session is closed and checks why.
func (c *testCluster) expired(k *testClient, why string) {
	c.t.Helper()
	c.eventually("the session to be closed", func() bool { kind, _ := c.closed(k.session); return kind != 0 })
	if kind, reason := c.closed(k.session); kind != event.SessionClose_EXPIRED || !strings.Contains(reason, why) || !strings.Contains(reason, "last renewed") {
		t := c.t
		t.Errorf("session closed as %v, %q; want %q in it", kind, reason, why)
	}
}

// TestLapsedSessionGoesOn: a client that was silent for longer than its lease has what it had, if nobody else wanted it.
func TestLapsedSessionGoesOn(t *testing.T) {
	c := newCluster(t, 1, nil)
	for range 3 {
		newChunks(c)
	}
	a, b := newClient(c), newClient(c)
	f := a.create("f", true).Attr.Ino
	shared := a.create("shared", true).Attr.Ino
	lock := func(k *testClient, typ msg.LockType) fserr.Code {
		_, code := k.do(k.change(&msg.Lock{Ino: f, Owner: 1, Type: typ, End: state.LockEnd}))
		return code
	}
	if code := lock(a, msg.LockType_WRITE_LOCK); code != fserr.OK {
		t.Fatal(code)
	}
	if _, code := b.do(b.change(&msg.Open{Ino: shared, Want: msg.Want_WANT_WRITE})); code != fserr.OK {
		t.Fatal(code)
	}
	c.lapses(a)
	// Neither of these waits for it, nor is worth its end.
	if r, code := b.do(b.read(&msg.GetAttr{Ino: f})); code != fserr.OK || r.Attr.Ino != f {
		t.Errorf("attributes of a file that a lapsed session has: %v, %v", r, code)
	}
	if _, code := b.do(b.change(&msg.Release{Ino: shared})); code != fserr.OK {
		t.Errorf("release of a file that a lapsed session shares: %v", code)
	}
	if kind, reason := c.closed(a.session); kind != 0 {
		t.Fatalf("the session was closed as %v: %s", kind, reason)
	}
	before := a.calls(msg.Callback_UPGRADE)
	a.silent.Store(false)
	c.eventually("it to be told its modes anew", func() bool { return a.calls(msg.Callback_UPGRADE) >= before+2 })
	if code := lock(b, msg.LockType_WRITE_LOCK); code != fserr.Again {
		t.Errorf("lock of another client: %v, want that the first still has it", code)
	}
	if _, code := a.do(a.change(&msg.AllocChunk{Ino: f, Count: 1})); code != fserr.OK {
		t.Errorf("write of the client that is back: %v", code)
	}
}

// TestLapsedSessionGivesWay: a session that lapsed ends when another client wants what it has.
func TestLapsedSessionGivesWay(t *testing.T) {
	c := newCluster(t, 1, nil)
	for range 3 {
		newChunks(c)
	}
	opened, locked, punching, mounted := newClient(c), newClient(c), newClient(c), newMount(c, "/mnt")
	b := newClient(c)
	var ino [3]uint64
	for i, k := range []*testClient{opened, locked, punching} {
		ino[i] = k.create(string(rune('f'+i)), true).Attr.Ino
	}
	if _, code := locked.do(locked.change(&msg.Lock{Ino: ino[1], Owner: 1, Flock: true, Type: msg.LockType_WRITE_LOCK})); code != fserr.OK {
		t.Fatal(code)
	}
	if _, code := locked.do(locked.change(&msg.Release{Ino: ino[1]})); code != fserr.OK {
		t.Fatal(code)
	}
	size, cut := uint64(8192), uint64(100)
	punching.must(punching.change(&msg.AllocChunk{Ino: ino[2], Count: 1}))
	punching.must(punching.change(&msg.SetAttr{Ino: ino[2], Size: &size}))
	punching.must(punching.change(&msg.SetAttr{Ino: ino[2], Size: &cut})) // and does not say PunchDone
	c.lapses(opened, locked, punching, mounted)

	if _, code := b.do(b.change(&msg.Open{Ino: ino[0], Want: msg.Want_WANT_WRITE})); code != fserr.OK {
		t.Errorf("open of the file of a lapsed session: %v", code)
	}
	c.expired(opened, "another client waits for its answer")
	if _, code := b.do(b.change(&msg.Lock{Ino: ino[1], Owner: 1, Flock: true, Type: msg.LockType_WRITE_LOCK})); code != fserr.OK {
		t.Errorf("lock that a lapsed session has: %v", code)
	}
	c.expired(locked, "wants a lock")
	if _, code := b.do(b.change(&msg.Open{Ino: ino[2], Want: msg.Want_WANT_READ})); code != fserr.OK {
		t.Errorf("open of a file that a lapsed session owes a punch: %v", code)
	}
	c.expired(punching, "another client")
	other := newMount(c, "/other")
	if kind, reason := c.closed(mounted.session); kind != 0 {
		t.Errorf("another mount ended the session: %s", reason)
	}
	newMount(c, "/mnt")
	c.expired(mounted, "its mount was made anew")

	if code, detail := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: settings.SessionGrace, Value: "0"}); code != fserr.OK {
		t.Fatal(code, detail)
	}
	other.silent.Store(true)
	c.expired(other, "its lease has run out")
}
