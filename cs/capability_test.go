package cs

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// securedServers is a leader and chunk servers of a secured cluster, which know the key that the signer has.
func securedServers(t *testing.T, n int) (*fakeLeader, []*testServer, *securetest.CA, *pki.Signer) {
	t.Helper()
	ca := securetest.New(t, testCluster)
	f := newFakeLeaderOf(t, ca)
	signer := f.signer
	var all []*testServer
	for range n {
		s := newTestServer(t, f)
		if err := s.auth.Load().trust.Learn(ca.State(1, []pki.CapabilityKey{signer.Key()})); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	for _, s := range all { // the leader tells each of the others with the next heartbeat
		waitPeers(t, s, all...)
	}
	return f, all, ca, signer
}

func token(s *pki.Signer, session id.SessionID, node string, r pki.Rights, life time.Duration) []byte {
	now := time.Now()
	return s.Sign(&pki.Capability{Session: session, Node: node, Rights: r, NotBefore: now, NotAfter: now.Add(life)})
}

// greetCS says hello to a chunk server.
func greetCS(t *testing.T, addr string, creds *pki.Credentials, hello *msg.Hello) (*client, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	hello.Cluster = testCluster[:]
	class := wire.ClassGuest
	if hello.Role == msg.Hello_ADMIN {
		class = wire.ClassMeta
	}
	c, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Class: class, Network: secure.New(secure.Options{Credentials: creds})})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, c: c, session: id.SessionID(hello.Session)}, nil
}

func (c *client) show(token []byte) fserr.Code {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	code, err := c.c.CallMessage(ctx, wire.ShowCapability, wire.ClassGuest, &msg.ShowCapability{Capability: token}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return code
}

// TestCapabilities: what a session may do is what the leader signed for it, on the node that it signed it for, and for as long.
func TestCapabilities(t *testing.T) {
	f, servers, ca, signer := securedServers(t, 1)
	s := servers[0]
	f.create(7, 1, s)
	other, err := pki.NewSigner(testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := pki.NewSigner(id.Cluster{9}, 1)
	if err != nil {
		t.Fatal(err)
	}
	node := ca.Node(t, "n1")
	good := token(signer, 5, "n1", pki.Read|pki.Write, time.Hour)
	changed := bytes.Clone(good)
	changed[6] ^= 1
	for name, x := range map[string]struct {
		creds *pki.Credentials
		token []byte
		want  fserr.Code
	}{
		"good": {node, good, fserr.OK}, "none": {node, nil, fserr.NoCapability}, "another session's": {node, token(signer, 6, "n1", pki.Read, time.Hour), fserr.NoCapability},
		"another node's":  {ca.Node(t, "n2"), good, fserr.NoCapability},
		"over":            {node, token(signer, 5, "n1", pki.Read, -time.Second), fserr.NoCapability},
		"another key's":   {node, token(other, 5, "n1", pki.Read, time.Hour), fserr.NoCapability},
		"another cluster": {node, token(elsewhere, 5, "n1", pki.Read, time.Hour), fserr.NoCapability},
		"changed":         {node, changed, fserr.NoCapability}, "garbage": {node, []byte("VCAP"), fserr.NoCapability},
		"an administrator's": {ca.Credentials(t, pki.RoleAdmin, "n1"), good, fserr.Denied},
	} {
		if _, err := greetCS(t, s.Addr(), x.creds, &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: x.token}); fserr.Of(err) != x.want {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if _, err := greetCS(t, s.Addr(), node, &msg.Hello{Role: msg.Hello_CLIENT}); fserr.Of(err) != fserr.NoCapability {
		t.Errorf("without a session: %v", err)
	}

	c, err := greetCS(t, s.Addr(), node, &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Lane: 1, Capability: good})
	if err != nil {
		t.Fatal(err)
	}
	p := pattern(1, block)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")
	// A reader has no part in a session of the servers and mounts of its node.
	if _, err := greetCS(t, s.Addr(), ca.Credentials(t, pki.RoleReader, "n1"), &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Lane: 1, Capability: good}); fserr.Of(err) != fserr.NoCapability {
		t.Errorf("a reader with what was signed for its node: %v", err)
	}
	c.want(c.write(7, 1, 0, p), fserr.OK, "write after that, on the same lane")
	r, err := greetCS(t, s.Addr(), ca.Credentials(t, pki.RoleReader, "r1"), &msg.Hello{Role: msg.Hello_CLIENT, Session: 8,
		Capability: token(signer, 8, "r1", pki.Read, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if code, got := r.read(7, 1, 0, block); code != fserr.OK || !bytes.Equal(got, p) {
		t.Errorf("a reader reads: %v", code)
	}
	r.want(r.write(7, 1, 0, pattern(2, block)), fserr.Denied, "a reader writes")
	code, _, _ := r.do(wire.Punch, 1, wire.DataRequest{Chunk: 7, Offset: 0, Length: block}, nil)
	r.want(code, fserr.Denied, "a reader punches")
	code, _, _ = r.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
	r.want(code, fserr.Denied, "a reader flushes")
	if n := s.Stats().Flushes; n != 0 {
		t.Errorf("%d flushes for readers", n)
	}
	// What is signed for reading only.
	ro, err := greetCS(t, s.Addr(), node, &msg.Hello{Role: msg.Hello_CLIENT, Session: 9, Capability: token(signer, 9, "n1", pki.Read, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	ro.want(ro.write(7, 1, 0, pattern(2, block)), fserr.Denied, "write with the right to read")
	if code, got := c.read(7, 1, 0, block); code != fserr.OK || !bytes.Equal(got, p) {
		t.Errorf("what was refused was done: %v", code)
	}
}

// TestCapabilityEnds: it ends in time on connections that live, and another one, shown on any of the session's connections, makes all of them go on.
func TestCapabilityEnds(t *testing.T) {
	f, servers, ca, signer := securedServers(t, 1)
	s := servers[0]
	f.create(7, 1, s)
	hello := func(lane uint32) *msg.Hello {
		return &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Lane: lane, Capability: token(signer, 5, "n1", pki.Read|pki.Write, 40*time.Second)}
	}
	a, err := greetCS(t, s.Addr(), ca.Node(t, "n1"), hello(0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := greetCS(t, s.Addr(), ca.Node(t, "n1"), hello(1))
	if err != nil {
		t.Fatal(err)
	}
	p := pattern(1, block)
	f.set(func() { f.ahead = 39 * time.Second }) // most of it is over at once
	wait(t, "the capability to end", func() bool { return a.write(7, 1, 0, p) == fserr.NoCapability })
	b.want(b.write(7, 1, 0, p), fserr.NoCapability, "on the other connection")
	if code, _ := b.read(7, 1, 0, block); code != fserr.NoCapability {
		t.Errorf("read: %v", code)
	}
	a.want(a.show(token(signer, 6, "n1", pki.Write, time.Hour)), fserr.NoCapability, "another session's is shown")
	a.want(a.show(token(signer, 5, "n1", pki.Read|pki.Write, time.Hour)), fserr.OK, "a new one is shown")
	a.want(a.write(7, 1, 0, p), fserr.OK, "write")
	b.want(b.write(7, 1, 0, p), fserr.OK, "write on the other connection")
	a.want(a.show(token(signer, 5, "n1", pki.Read, 10*time.Minute)), fserr.OK, "an older one is shown")
	a.want(a.write(7, 1, 0, p), fserr.OK, "it takes nothing away")
	a.c.Close()
	b.c.Close()
	wait(t, "the session to be forgotten", func() bool {
		s.capabilities.mu.Lock()
		defer s.capabilities.mu.Unlock()
		return len(s.capabilities.sessions) == 0
	})
}

// TestLeadersClock: capabilities are dated by the leader's clock, not by that of the chunk server's host.
func TestLeadersClock(t *testing.T) {
	f, servers, ca, signer := securedServers(t, 1)
	s := servers[0]
	f.create(7, 1, s)
	f.set(func() { f.ahead = 48 * time.Hour })
	wait(t, "the leader's clock to be known", func() bool { return s.capabilities.now().After(time.Now().Add(47 * time.Hour)) })
	if _, err := greetCS(t, s.Addr(), ca.Node(t, "n1"), &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: token(signer, 5, "n1", pki.Read, time.Hour)}); fserr.Of(err) != fserr.NoCapability {
		t.Errorf("two days late: %v", err)
	}
	if _, err := greetCS(t, s.Addr(), ca.Node(t, "n1"), &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: token(signer, 5, "n1", pki.Read, 49*time.Hour)}); err != nil {
		t.Errorf("in time by the leader's clock: %v", err)
	}
}

// TestSecuredPeers: a chunk server is who the leader says runs on that node, administrators and metadata servers get no data but what is theirs, and forwarding works.
func TestSecuredPeers(t *testing.T) {
	f, servers, ca, signer := securedServers(t, 2)
	f.create(7, 1, servers...)
	addr := servers[0].Addr()
	if _, err := greetCS(t, addr, ca.Node(t, "n1"), &msg.Hello{Role: msg.Hello_CHUNK_SERVER, Server: uint32(servers[1].ID())}); fserr.Of(err) != fserr.Foreign {
		t.Errorf("another node says that it is a chunk server: %v", err)
	}
	if _, err := greetCS(t, addr, ca.Node(t, "host"), &msg.Hello{Role: msg.Hello_CHUNK_SERVER, Server: 77}); fserr.Of(err) != fserr.Unavailable {
		t.Errorf("an unknown chunk server: %v", err)
	}
	if _, err := greetCS(t, addr, ca.Credentials(t, pki.RoleReader, "host"), &msg.Hello{Role: msg.Hello_CHUNK_SERVER, Server: uint32(servers[1].ID())}); fserr.Of(err) != fserr.Denied {
		t.Errorf("a reader says that it is a chunk server: %v", err)
	}
	c, err := greetCS(t, addr, ca.Node(t, "n1"), &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: token(signer, 5, "n1", pki.Read|pki.Write, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	p := pattern(3, block)
	req := wire.DataRequest{Chunk: 7, Length: block, Sums: chunk.AppendSums(nil, 0, p), Flags: wire.Ordered, Seq: 1}
	req.Forward[0] = servers[1].ID()
	code, _, _ := c.do(wire.Write, 1, req, p)
	c.want(code, fserr.OK, "ordered write")
	admin, err := greetCS(t, servers[1].Addr(), ca.Credentials(t, pki.RoleAdmin, "n1"), &msg.Hello{Role: msg.Hello_ADMIN})
	if err != nil {
		t.Fatal(err)
	}
	if code, got := admin.read(7, 1, 0, block); code != fserr.OK || !bytes.Equal(got, p) {
		t.Errorf("an administrator reads the other replica: %v", code)
	}
	for role, creds := range map[msg.Hello_Role]*pki.Credentials{msg.Hello_ADMIN: ca.Node(t, "n1"), msg.Hello_METADATA_SERVER: ca.Node(t, "n1")} {
		x, err := greetCS(t, addr, creds, &msg.Hello{Role: role, Server: 1})
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := x.read(7, 1, 0, block); code == fserr.OK {
			t.Errorf("a node as %v reads without a session", role)
		}
		if code := x.write(7, 1, 0, p); code == fserr.OK {
			t.Errorf("a node as %v writes without a session", role)
		}
	}
	plain, _, err := wire.Dial(context.Background(), addr, &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
	if err == nil {
		plain.Close()
		t.Error("a plain hello was answered")
	}
	for _, typ := range []wire.Type{wire.ChunkCreate, wire.ChunkDelete} {
		if code, err := c.c.CallMessage(context.Background(), typ, wire.ClassMeta, &msg.ChunkCreate{Chunk: uint64(id.Scratch(1))}, nil); err != nil || code != fserr.Denied {
			t.Errorf("type %d by a node: %v, %v", typ, code, err)
		}
	}
}

// TestNoMetadataServer: a node that answers where a metadata server was, with a certificate of the cluster, is not obeyed. One that has the key is, also if the key
// is newer than what the chunk server knows.
func TestNoMetadataServer(t *testing.T) {
	f, servers, ca, _ := securedServers(t, 1)
	s := servers[0]
	f.create(7, 1, s)
	other, err := pki.NewSigner(testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := pki.NewSigner(testCluster, 2)
	if err != nil {
		t.Fatal(err)
	}
	hang := func() *wire.Conn {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.conns[uint32(s.ID())]
	}
	before := hang()
	f.set(func() { f.signer, f.hellos = other, 0 })
	before.Close()
	wait(t, "the chunk server to look for a leader", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.hellos > 3 })
	if hang() != before || s.leading.Load() != nil {
		t.Fatal("it has registered with a node that is no metadata server")
	}
	if err := s.auth.Load().trust.Learn(ca.State(2, nil)); err != nil { // nothing is known of any key
		t.Fatal(err)
	}
	f.set(func() { f.signer, f.version = newer, 3 })
	wait(t, "the chunk server to register with a metadata server", func() bool { return hang() != before && s.leading.Load() != nil })
}

// TestPeerOfAnotherNode: what answers as another chunk server, with a certificate of a node on which that does not run, is told nothing.
func TestPeerOfAnotherNode(t *testing.T) {
	_, servers, _, _ := securedServers(t, 2)
	p := newPeers(testCluster, servers[0].ID(), &servers[0].o)
	p.network = servers[0].Server.o.Network
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for node, good := range map[string]bool{"host": true, "elsewhere": false} {
		p.learn([]*msg.Peer{{Server: uint32(servers[1].ID()), Addr: servers[1].Addr(), Node: node}})
		var c *wire.Conn
		var err error
		wait(t, "the other server to know of this one", func() bool {
			c, err = p.dial(ctx, servers[1].ID(), 0, servers[1].Addr(), nil)
			return err == nil || !errors.Is(err, fserr.Foreign) && strings.Contains(err.Error(), "want elsewhere")
		})
		if (err == nil) != good {
			t.Errorf("as on node %s: %v", node, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// TestRevokedPeer: what a chunk server has made to another whose certificate is revoked ends, and it is not forwarded to any more.
func TestRevokedPeer(t *testing.T) {
	f, servers, ca, signer := securedServers(t, 2)
	f.create(7, 1, servers...)
	c, err := greetCS(t, servers[0].Addr(), ca.Node(t, "n1"), &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: token(signer, 5, "n1", pki.Read|pki.Write, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	p := pattern(3, block)
	send := func(seq uint64) fserr.Code {
		req := wire.DataRequest{Chunk: 7, Length: block, Sums: chunk.AppendSums(nil, 0, p), Flags: wire.Ordered, Seq: seq}
		req.Forward[0] = servers[1].ID()
		code, _, _ := c.do(wire.Write, 1, req, p)
		return code
	}
	seq := uint64(0)
	wait(t, "each to know of the other, and an ordered write", func() bool { seq++; return send(seq) == fserr.OK })
	var links []*wire.Conn
	peers := servers[0].peers
	peers.mu.Lock()
	all := slices.Collect(maps.Values(peers.links))
	peers.mu.Unlock() // who connects takes it with op held
	for _, l := range all {
		l.op <- struct{}{}
		if l.conn != nil {
			links = append(links, l.conn)
		}
		<-l.op
	}
	if len(links) == 0 {
		t.Fatal("no connection to the other server")
	}
	bad := servers[1].o.Credentials.Identity().Serial
	if bad == servers[0].o.Credentials.Identity().Serial {
		t.Fatal("both servers show the same certificate")
	}
	if err := servers[0].auth.Load().trust.Learn(ca.State(2, []pki.CapabilityKey{signer.Key()}, bad)); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		wait(t, "the connection to the revoked server to end", func() bool { return l.Err() != nil })
	}
	c.want(send(seq+1), fserr.ReplicaFailed, "ordered write after that")
}

// TestRevokedConnections: connections of a node whose certificate is revoked end, those that reactors carry too.
func TestRevokedConnections(t *testing.T) {
	f, servers, ca, signer := securedServers(t, 1)
	s := servers[0]
	f.create(7, 1, s)
	bad, good := ca.Node(t, "bad"), ca.Node(t, "good")
	a, err := greetCS(t, s.Addr(), bad, &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: token(signer, 5, "bad", pki.Read|pki.Write, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := greetCS(t, s.Addr(), good, &msg.Hello{Role: msg.Hello_CLIENT, Session: 6, Capability: token(signer, 6, "good", pki.Read|pki.Write, time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.auth.Load().trust.Learn(ca.State(2, []pki.CapabilityKey{signer.Key()}, bad.Identity().Serial)); err != nil {
		t.Fatal(err)
	}
	wait(t, "the connection to end", func() bool { return a.c.Err() != nil })
	b.want(b.write(7, 1, 0, pattern(1, block)), fserr.OK, "the other node writes")
	if _, err := greetCS(t, s.Addr(), bad, &msg.Hello{Role: msg.Hello_CLIENT, Session: 5, Capability: token(signer, 5, "bad", pki.Read|pki.Write, time.Hour)}); err == nil {
		t.Error("it comes again")
	}
}
