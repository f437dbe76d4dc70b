package mds

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// TestReaderOfTheSameNode: a reader is somebody else than the servers and mounts of the node whose name it has, which may be in the hands of another user.
func TestReaderOfTheSameNode(t *testing.T) {
	c, ca := securedCluster(t, 1)
	addr := c.leader().Addr()
	hello := &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT}
	open := func(role pki.Role) (*wire.Conn, uint64) {
		t.Helper()
		conn, err := greet(t, addr, ca.Credentials(t, role, "n1"), hello)
		if err != nil {
			t.Fatal(err)
		}
		r := new(msg.OpenSessionReply)
		if code := call(t, conn, wire.OpenSession, &msg.OpenSession{Host: "h", Nonce: make([]byte, 16)}, r); code != fserr.OK {
			t.Fatal(code)
		}
		return conn, r.Session
	}
	node, session := open(pki.RoleNode)
	reader, other := open(pki.RoleReader)
	if other == session {
		t.Fatal("with the same nonce a reader gets the session of its node")
	}
	with := &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT, Session: session}
	if _, err := greet(t, addr, ca.Credentials(t, pki.RoleReader, "n1"), with); fserr.Of(err) != fserr.Foreign {
		t.Errorf("a reader takes the session of its node: %v", err)
	}
	for typ, req := range map[wire.Type]wire.Message{wire.RenewSession: &msg.RenewSession{Session: session, Capability: true}, wire.CloseSession: &msg.CloseSession{Session: session}} {
		if code := call(t, reader, typ, req, nil); code == fserr.OK {
			t.Errorf("request %d of a reader for the session of its node is done", typ)
		}
	}
	if code := call(t, node, wire.RenewSession, &msg.RenewSession{Session: session}, nil); code != fserr.OK {
		t.Errorf("the node's session: %v", code)
	}
	if code := call(t, reader, wire.RenewSession, &msg.RenewSession{Session: other}, nil); code != fserr.OK {
		t.Errorf("the reader's session: %v", code)
	}
}

// TestSessionsOfOneOwner: a reader that opens sessions without end leaves room for those of others.
func TestSessionsOfOneOwner(t *testing.T) {
	c := newSafeCluster(t, 1)
	l := c.leader().lead.Load()
	open := func(n int, own string) error {
		_, err := l.openSession(c.context(), &msg.OpenSession{Host: "h", Nonce: fmt.Appendf(nil, "%016d%s", n, own)})
		return err
	}
	var wg sync.WaitGroup
	for k := range 16 {
		wg.Go(func() {
			for n := range maxSessions / readersShare / 16 {
				if err := open(k*1000+n, readers+"r1"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := open(99999, readers+"r1"); fserr.Of(err) != fserr.Unavailable {
		t.Errorf("one more: %v", err)
	}
	if err := open(0, readers+"r1"); err != nil {
		t.Errorf("one whose answer was lost: %v", err)
	}
	for _, own := range []string{"r1", readers + "r2"} {
		if err := open(99999, own); err != nil {
			t.Errorf("of %s: %v", own, err)
		}
	}
}

// TestRevokedMeanwhile: what a revoked node had under way gives it neither a certificate nor a session, also where the leader is killed right after.
func TestRevokedMeanwhile(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	bad := c.load(c.join(pki.RoleNode, "bad", t.TempDir()), pki.RoleNode).Identity()
	l := c.leader().lead.Load()
	if _, err := l.revoke(c.context(), "bad", "", "test"); err != nil {
		t.Fatal(err)
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.issue(c.context(), pub, bad, "renewed"); !errors.Is(err, pki.ErrRefused) {
		t.Errorf("a revoked certificate is renewed: %v", err)
	}
	fenced := func(session id.SessionID) func() bool {
		return func() (fenced bool) {
			c.leader().fsm.view(func(st *state.State) {
				x, ok := st.Session(session)
				fenced = ok && x.Fenced
			})
			return fenced
		}
	}
	one, err := l.openSession(c.context(), &msg.OpenSession{Host: "h", Nonce: []byte("0000000000000000bad")})
	if err != nil {
		t.Fatal(err)
	}
	l.tendSecurity()
	c.eventually("the session to be fenced", fenced(one))
	two, err := l.openSession(c.context(), &msg.OpenSession{Host: "h", Nonce: []byte("0000000000000001bad")})
	if err != nil {
		t.Fatal(err)
	}
	good, err := l.openSession(c.context(), &msg.OpenSession{Host: "h", Nonce: []byte("0000000000000001host1")})
	if err != nil {
		t.Fatal(err)
	}
	c.kill(0)
	c.start(0)
	c.eventually("the session to be fenced by the next leader", fenced(two))
	if fenced(good)() {
		t.Error("the session of another node is fenced")
	}
}

// TestRenewalsAreBounded: a node that renews its certificate without end does not use up the room for those of others. With the password it joins.
func TestRenewalsAreBounded(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	who := c.load(c.join(pki.RoleReader, "r1", t.TempDir()), pki.RoleReader).Identity()
	l := c.leader().lead.Load()
	var last error
	given := 0
	for range 2 * maxRenewed {
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, last = l.issue(c.context(), pub, who, "renewed"); last == nil {
			given++
		}
	}
	if given != maxRenewed-1 || !errors.Is(last, pki.ErrRefused) {
		t.Errorf("%d certificates are given, then: %v", given, last)
	}
	c.joinByPassword(pki.RoleReader, "r1", t.TempDir())
	c.joinByPassword(pki.RoleReader, "r2", t.TempDir())
}

// TestAllCertificatesAreOver: metadata servers that were off for longer than their certificates are valid find each other again, and have proper
// certificates after that; others join anew.
func TestAllCertificatesAreOver(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 3)
	secrets, err := c.secrets()
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.servers {
		c.kill(i)
	}
	over := time.Now().Add(-time.Minute)
	for i, dir := range c.nodes {
		key, csr, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := pki.ReadCSR(csr)
		if err != nil {
			t.Fatal(err)
		}
		chain, _, err := secrets.Authority.Issue(pub, pki.Identity{Role: pki.RoleNode, Node: fmt.Sprint("host", i+1)}, over.Add(-24*time.Hour), over)
		if err == nil {
			err = pki.WriteCredentials(dir, pki.EncodeChain(chain), key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.servers {
		c.start(i)
	}
	c.leader()
	for _, dir := range c.nodes {
		c.eventually("a certificate that is valid in "+dir, func() bool {
			creds, err := pki.LoadCredentials(dir, pki.RoleNode) // which may be being replaced
			return err == nil && time.Now().Before(creds.Identity().NotAfter)
		})
	}
	c.joinByPassword(pki.RoleNode, "later", t.TempDir())
}
