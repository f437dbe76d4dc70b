package mds

import (
	"context"
	"strings"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/ledger"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// newLegator is newClient whose session can be ended by who has the secret.
func newLegator(c *testCluster) (*testClient, []byte) {
	secret := ledger.NewSecret()
	return newWith(c, "", ledger.Nonce(secret)), secret
}

// inherit ends a session by its secret, on the connection of another client.
func (k *testClient) inherit(req *msg.CloseSession) (*msg.CloseSessionReply, fserr.Code) {
	k.c.t.Helper()
	k.mu.Lock()
	conn := k.conn
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	reply := new(msg.CloseSessionReply)
	code, err := conn.CallMessage(ctx, wire.CloseSession, wire.ClassMeta, req, reply)
	if err != nil {
		k.c.t.Fatal(err)
	}
	return reply, code
}

// TestHeir: who has the secret of a session ends it at once, but what it had is given on only when every chunk server refuses it and its replicas are settled.
func TestHeir(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a, secret := newLegator(c)
	b := newClient(c)
	f := a.create("f", true).Attr.Ino
	a.must(a.change(&msg.AllocChunk{Ino: f, Count: 1}))
	if _, code := a.do(a.change(&msg.Lock{Ino: f, Owner: 1, Flock: true, Type: msg.LockType_WRITE_LOCK})); code != fserr.OK {
		t.Fatal(code)
	}
	a.silent.Store(true) // its process is dead
	cs[2].mu.Lock()
	cs[2].refuse[wire.Fence] = fserr.Unavailable
	cs[2].mu.Unlock()

	for _, wrong := range [][]byte{secret[1:], append(secret[:0:0], append(secret, 0)...)} {
		if _, code := b.inherit(&msg.CloseSession{Session: uint64(a.session), Secret: wrong}); code != fserr.Invalid {
			t.Errorf("a secret of %d bytes: %v", len(wrong), code)
		}
	}
	if r, code := b.inherit(&msg.CloseSession{Session: uint64(a.session), Secret: ledger.NewSecret()}); code != fserr.OK || r.Session != 0 {
		t.Errorf("somebody else's secret: session %d, %v", r.Session, code)
	}
	if kind, reason := c.closed(a.session); kind != 0 {
		t.Fatalf("the session was closed as %v: %s", kind, reason)
	}
	for range 2 { // the answer was lost, or the heir died before he had removed the entry
		if r, code := b.inherit(&msg.CloseSession{Secret: secret}); code != fserr.OK || r.Session != uint64(a.session) {
			t.Fatalf("session %d, %v, want %v", r.Session, code, a.session)
		}
	}
	if kind, reason := c.closed(a.session); kind != event.SessionClose_EXPIRED || !strings.Contains(reason, "on h has died") || !strings.Contains(reason, "last renewed") {
		t.Errorf("closed as %v, %q", kind, reason)
	}
	l := c.leader().lead.Load()
	if l.grants.cacher(a.session) != nil {
		t.Error("the dead are still granted something")
	}
	opened := make(chan fserr.Code, 1)
	go func() {
		_, code := b.do(b.change(&msg.Open{Ino: f, Want: msg.Want_WANT_WRITE}))
		opened <- code
	}()
	select {
	case code := <-opened:
		t.Errorf("opened while a chunk server may take writes of the dead: %v", code)
	case <-time.After(300 * time.Millisecond):
	}
	cs[2].mu.Lock()
	delete(cs[2].refuse, wire.Fence)
	cs[2].mu.Unlock()
	if code := <-opened; code != fserr.OK {
		t.Errorf("opened afterwards: %v", code)
	}
	for i, k := range cs {
		if !k.refuses(a.session) {
			t.Errorf("chunk server %d does not refuse the dead", i)
		}
	}
	l.s.fsm.view(func(st *state.State) {
		if n, ok := st.Inode(id.Ino(f)); !ok || n.Unsettled() {
			t.Error("the file is not settled")
		}
	})
	if _, code := b.do(b.change(&msg.Lock{Ino: f, Owner: 1, Flock: true, Type: msg.LockType_WRITE_LOCK})); code != fserr.OK {
		t.Errorf("the lock of the dead: %v", code)
	}
	if _, code := a.do(a.read(&msg.GetAttr{Ino: f})); code != fserr.NoSession {
		t.Errorf("a request that the dead had sent: %v", code)
	}
	if r, code := b.inherit(&msg.CloseSession{Secret: secret}); code != fserr.OK || r.Session != uint64(a.session) {
		t.Errorf("again, later: session %d, %v", r.Session, code)
	}
	if kind, _ := c.closed(b.session); kind != 0 {
		t.Error("the heir's own session was closed")
	}
}

// TestHeirByAdmin: an administrator is answered when the dead can change nothing any more. A kernel that goes on with what was granted to them has its time.
func TestHeirByAdmin(t *testing.T) {
	c := newCluster(t, 1, dying)
	cs := newChunks(c)
	a, secret := newLegator(c)
	a.silent.Store(true)
	r := new(msg.CloseSessionReply)
	if code := c.admin(wire.CloseSession, &msg.CloseSession{Secret: secret, Mounted: true}, r); code != fserr.OK || r.Session != uint64(a.session) {
		t.Fatalf("session %d, %v", r.Session, code)
	}
	if !cs.refuses(a.session) {
		t.Error("a chunk server does not refuse the dead")
	}
}

// TestHeirSecured: the secret of a node's session is worth nothing to another node.
func TestHeirSecured(t *testing.T) {
	c, ca := securedCluster(t, 1)
	addr := c.leader().Addr()
	hello := &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT}
	open := func() (session uint64, secret []byte) {
		t.Helper()
		conn, err := greet(t, addr, ca.Node(t, "n1"), hello)
		if err != nil {
			t.Fatal(err)
		}
		secret = ledger.NewSecret()
		r := new(msg.OpenSessionReply)
		if code := call(t, conn, wire.OpenSession, &msg.OpenSession{Host: "h", Nonce: ledger.Nonce(secret)}, r); code != fserr.OK {
			t.Fatal(code)
		}
		return r.Session, secret
	}
	session, secret := open()
	other, otherSecret := open()
	end := func(who string, conn *wire.Conn, err error, secret []byte) (uint64, fserr.Code) {
		t.Helper()
		if err != nil {
			t.Fatal(who, err)
		}
		r := new(msg.CloseSessionReply)
		code := call(t, conn, wire.CloseSession, &msg.CloseSession{Secret: secret}, r)
		return r.Session, code
	}
	conn, err := greet(t, addr, ca.Node(t, "n2"), hello)
	if _, code := end("n2", conn, err, secret); code != fserr.Foreign {
		t.Errorf("another node: %v", code)
	}
	conn, err = greet(t, addr, ca.Credentials(t, pki.RoleReader, "r1"), hello)
	if _, code := end("r1", conn, err, secret); code != fserr.Foreign {
		t.Errorf("a reader: %v", code)
	}
	if kind, reason := c.closed(id.SessionID(session)); kind != 0 {
		t.Fatalf("closed as %v: %s", kind, reason)
	}
	conn, err = greet(t, addr, ca.Node(t, "n1"), hello)
	if got, code := end("n1", conn, err, secret); code != fserr.OK || got != session {
		t.Errorf("the same node: session %d, %v, want %d", got, code, session)
	}
	conn, err = greet(t, addr, ca.Credentials(t, pki.RoleAdmin, "n3"), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN})
	if got, code := end("an administrator", conn, err, otherSecret); code != fserr.OK || got != other {
		t.Errorf("an administrator: session %d, %v, want %d", got, code, other)
	}
}
