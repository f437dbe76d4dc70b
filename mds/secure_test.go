package mds

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/settings"
)

// securedCluster is a cluster whose servers have credentials. The UUID is not known before the first has been made, so certificates come after that.
func securedCluster(t *testing.T, n int) (*testCluster, *securetest.CA) {
	t.Helper()
	var ca *securetest.CA
	c := newCluster(t, n, func(o *Options) {
		if n > 1 {
			o.ElectionTimeout = 2 * time.Second // tests ask who led before, and a busy machine is no reason to elect another
		}
		if _, err := os.Stat(filepath.Join(o.Dir, identityFile)); err != nil && ca == nil {
			return // Init of the first
		}
		if ca == nil {
			d, err := readIdentity(o.withDefaults().FS, o.Dir)
			if err != nil {
				t.Fatal(err)
			}
			ca = securetest.New(t, d.cluster())
		}
		o.Credentials, o.Cluster = ca.Node(t, "host"), ca.Cluster()
	})
	return c, ca
}

// greet says hello. A handshake that a busy machine does not end in time is begun again, as by everybody.
func greet(t *testing.T, addr string, creds *pki.Credentials, hello *msg.Hello) (*wire.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n := secure.New(secure.Options{Credentials: creds})
	c, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Class: wire.ClassMeta, Network: n})
	for ; fserr.Of(err) == fserr.Unavailable && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		c, _, err = wire.Dial(ctx, addr, hello, nil, wire.Options{Class: wire.ClassMeta, Network: n})
	}
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func call(t *testing.T, c *wire.Conn, typ wire.Type, req, reply wire.Message) fserr.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code, err := c.CallMessage(ctx, typ, wire.ClassMeta, req, reply)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// TestSecured: metadata servers find each other over authenticated connections and a leader falls and is replaced; who speaks plainly gets nothing; roles are
// kept apart; sessions and chunk servers are their node's.
func TestSecured(t *testing.T) {
	c, ca := securedCluster(t, 3)
	addr := c.leader().Addr()
	hello := &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, h := range []*msg.Hello{hello, {Role: msg.Hello_ADMIN}, {Cluster: c.cluster[:], Role: msg.Hello_ADMIN}} {
		if conn, _, err := wire.Dial(ctx, addr, h, nil, wire.Options{}); err == nil {
			conn.Close()
			t.Error("a plain hello was answered")
		}
	}
	node, admin, reader := ca.Node(t, "n1"), ca.Credentials(t, pki.RoleAdmin, "n1"), ca.Credentials(t, pki.RoleReader, "r1")
	if _, err := greet(t, addr, node, &msg.Hello{Role: msg.Hello_ADMIN}); fserr.Of(err) != fserr.WrongCluster {
		t.Errorf("hello without a cluster: %v", err)
	}
	for _, x := range []struct {
		creds *pki.Credentials
		role  msg.Hello_Role
		want  fserr.Code
	}{
		{node, msg.Hello_CLIENT, fserr.OK}, {node, msg.Hello_CHUNK_SERVER, fserr.OK}, {node, msg.Hello_ADMIN, fserr.OK},
		{reader, msg.Hello_CLIENT, fserr.OK}, {reader, msg.Hello_CHUNK_SERVER, fserr.Denied}, {reader, msg.Hello_METADATA_SERVER, fserr.Denied},
		{admin, msg.Hello_CLIENT, fserr.Denied}, {admin, msg.Hello_CHUNK_SERVER, fserr.Denied}, {admin, msg.Hello_ADMIN, fserr.OK},
	} {
		if _, err := greet(t, addr, x.creds, &msg.Hello{Cluster: c.cluster[:], Role: x.role}); fserr.Of(err) != x.want {
			t.Errorf("%v as %v: %v, want %v", x.creds.Identity(), x.role, err, x.want)
		}
	}
	byAdmin, err := greet(t, addr, admin, &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN})
	if err != nil {
		t.Fatal(err)
	}
	set := &msg.SetConfig{Key: settings.FillMargin, Value: "2"}
	for _, creds := range []*pki.Credentials{node, reader} {
		conn, err := greet(t, addr, creds, &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN})
		if err != nil {
			t.Fatal(err)
		}
		if code := call(t, conn, wire.SetConfig, set, nil); code != fserr.Denied || !strings.Contains(code.Error(), "auth-node --role admin") {
			t.Errorf("%v may set: %v", creds.Identity(), code)
		}
		if code := call(t, conn, wire.Status, &msg.Status{}, nil); code != fserr.OK {
			t.Errorf("%v may not look: %v", creds.Identity(), code)
		}
	}
	if code := call(t, byAdmin, wire.SetConfig, set, nil); code != fserr.OK {
		t.Errorf("an administrator may not set: %v", code)
	}

	// Sessions.
	open := func(creds *pki.Credentials, nonce byte) (*wire.Conn, uint64) {
		t.Helper()
		conn, err := greet(t, addr, creds, hello)
		if err != nil {
			t.Fatal(err)
		}
		r := new(msg.OpenSessionReply)
		if code := call(t, conn, wire.OpenSession, &msg.OpenSession{Host: "h", Mount: creds.Identity().Node, Nonce: append(make([]byte, 15), nonce)}, r); code != fserr.OK {
			t.Fatalf("%v: no session: %v", creds.Identity(), code)
		}
		return conn, r.Session
	}
	_, session := open(node, 1)
	mine, again := open(ca.Node(t, "n1"), 1) // the answer was lost
	if again != session {
		t.Errorf("the same nonce gives session %d, and then %d", session, again)
	}
	if _, other := open(ca.Node(t, "n2"), 1); other == session {
		t.Error("the nonce of another node gives its session")
	}
	create := func(session uint64, name string) *msg.MetaRequest {
		return &msg.MetaRequest{Session: session, Seq: 1, Cred: &msg.Cred{}, Op: &msg.MetaRequest_Create{
			Create: &msg.Create{Parent: uint64(id.Root), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o644}}}
	}
	if code := call(t, mine, wire.Meta, create(session, "f"), nil); code != fserr.OK {
		t.Errorf("own session: %v", code)
	}
	if _, err := greet(t, addr, ca.Node(t, "n2"), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT, Session: session}); fserr.Of(err) != fserr.Foreign {
		t.Errorf("another node's session: %v", err)
	}
	ro, looks := open(reader, 2)
	if code := call(t, ro, wire.Meta, create(looks, "g"), nil); code != fserr.ReadOnly {
		t.Errorf("a reader makes a file: %v", code)
	}
	look := &msg.MetaRequest{Session: looks, Cred: &msg.Cred{}, Op: &msg.MetaRequest_Lookup{Lookup: &msg.Lookup{Parent: uint64(id.Root), Name: []byte("f")}}}
	if code := call(t, ro, wire.Meta, look, nil); code != fserr.OK {
		t.Errorf("a reader looks: %v", code)
	}
	asAdmin := create(0, "h")
	nodeAsAdmin, err := greet(t, addr, node, &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN})
	if err != nil {
		t.Fatal(err)
	}
	if code := call(t, nodeAsAdmin, wire.Meta, asAdmin, nil); code != fserr.Denied {
		t.Errorf("a node without a session: %v", code)
	}
	if code := call(t, nodeAsAdmin, wire.CloseSession, &msg.CloseSession{Session: looks}, nil); code == fserr.OK {
		t.Error("a node ends another's session")
	}

	// Chunk servers.
	register := func(node string, server uint32) (fserr.Code, uint32) {
		t.Helper()
		conn, err := greet(t, c.leader().Addr(), ca.Node(t, node), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CHUNK_SERVER, Server: server})
		if err != nil {
			t.Fatal(err)
		}
		r := new(msg.RegisterServerReply)
		code := call(t, conn, wire.RegisterServer, &msg.RegisterServer{Server: server, Uuid: make([]byte, 16), Addr: "127.0.0.1:9", Host: "h"}, r)
		for _, p := range r.Peers {
			if p.Node != node {
				t.Errorf("peer %d is told to be of %q", p.Server, p.Node)
			}
		}
		return code, r.Server
	}
	code, server := register("s1", 0)
	if code != fserr.OK {
		t.Fatal(code)
	}
	if code, _ := register("s2", server); code != fserr.Foreign {
		t.Errorf("a chunk server comes from another node: %v", code)
	}
	if code, _ := register("s1", server); code != fserr.OK {
		t.Errorf("it comes again: %v", code)
	}
	if code := call(t, byAdmin, wire.SetConfig, &msg.SetConfig{Key: settings.NodeOf(id.ServerID(server)), Value: "s2"}, nil); code != fserr.OK {
		t.Error(code)
	}
	if code, _ := register("s2", server); code != fserr.OK {
		t.Errorf("it was moved: %v", code)
	}

	// The next leader.
	c.kill(c.leaderIndex())
	c.eventually("another leader that knows the session", func() bool {
		s := c.leading()
		if s == nil {
			return false
		}
		conn, err := greet(t, s.Addr(), node, &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT, Session: session})
		if err != nil {
			return false
		}
		return call(t, conn, wire.RenewSession, &msg.RenewSession{Session: session}, nil) == fserr.OK
	})
}

// TestSecuredStaysSecured: a server that has run with credentials never runs without them again, nor with those of another cluster.
func TestSecuredStaysSecured(t *testing.T) {
	c, ca := securedCluster(t, 1)
	c.kill(0)
	c.tune = nil
	if s, err := Open(c.options(0)); !errors.Is(err, pki.ErrNoCredentials) {
		if err == nil {
			s.Kill()
		}
		t.Errorf("started without credentials: %v", err)
	}
	o := c.options(0)
	o.Credentials = securetest.New(t, id.Cluster{7}).Node(t, "host")
	if s, err := Open(o); err == nil {
		s.Kill()
		t.Error("started with the credentials of another cluster")
	}
	o.Credentials = ca.Node(t, "host")
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := s.Run(); err != nil {
		t.Error(err)
	}
}
