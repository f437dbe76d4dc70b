package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/id"
)

var testCluster = id.Cluster{1, 2, 3, 4, 15: 9}

func authority(t *testing.T, cluster id.Cluster) *Authority {
	t.Helper()
	a, err := NewAuthority(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func credentials(t *testing.T, a *Authority, r Role, node string) *Credentials {
	t.Helper()
	c, err := a.Credentials(Identity{Role: r, Node: node}, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake connects a client to a server, and returns what each says of it. A server's refusal reaches a TLS 1.3 client with its
// first read only, so both exchange a byte.
func shake(t *testing.T, client, server *tls.Config) (who Identity, cerr, serr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		who Identity
		err error
	}
	done := make(chan result, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		c := tls.Server(nc, server)
		if err := c.HandshakeContext(t.Context()); err != nil {
			done <- result{err: err}
			return
		}
		_, err = c.Write([]byte{1})
		var r result
		if r.err = err; err == nil && !Joining(c.ConnectionState()) {
			r.who, r.err = PeerIdentity(c.ConnectionState())
		}
		done <- r
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := tls.Client(nc, client)
	if cerr = c.HandshakeContext(t.Context()); cerr == nil {
		_, cerr = c.Read(make([]byte, 1))
	}
	nc.Close()
	r := <-done
	return r.who, cerr, r.err
}

func TestHandshake(t *testing.T) {
	a, foreign := authority(t, testCluster), authority(t, id.Cluster{7})
	twin := authority(t, testCluster) // another authority that says it is of this cluster
	server := credentials(t, a, RoleNode, "s1")
	for _, tc := range []struct {
		name           string
		client, server *Credentials
		want           string // in either error; "" for a connection
	}{
		{"node", credentials(t, a, RoleNode, "n1"), server, ""},
		{"admin", credentials(t, a, RoleAdmin, "n1"), server, ""},
		{"reader", credentials(t, a, RoleReader, "n1"), server, ""},
		{"foreign client", credentials(t, foreign, RoleNode, "n1"), server, "signed by no authority"},
		{"twin", credentials(t, twin, RoleAdmin, "n1"), server, "signed by no authority"},
		{"server that is an admin", credentials(t, a, RoleNode, "n1"), credentials(t, a, RoleAdmin, "s1"), "which no server has"},
		{"server that is a reader", credentials(t, a, RoleNode, "n1"), credentials(t, a, RoleReader, "s1"), "which no server has"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			who, cerr, serr := shake(t, tc.client.ClientConfig(), tc.server.ServerConfig())
			if tc.want == "" {
				if cerr != nil || serr != nil || who.Node != "n1" || who != tc.client.Identity() {
					t.Fatalf("client: %v; server: %v, peer %+v, want %+v", cerr, serr, who, tc.client.Identity())
				}
				return
			}
			if err := errors.Join(cerr, serr); cerr == nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("client: %v; server: %v; want %q", cerr, serr, tc.want)
			}
		})
	}
}

func TestHandshakeNeedsCertificate(t *testing.T) {
	a := authority(t, testCluster)
	server := credentials(t, a, RoleNode, "s1")
	bare := JoinConfig()
	bare.NextProtos = []string{ALPN}
	for _, cfg := range []*tls.Config{server.ServerConfig(), server.JoinableConfig()} {
		if _, cerr, serr := shake(t, bare, cfg); cerr == nil || serr == nil {
			t.Errorf("a client without a certificate was let in: %v, %v", cerr, serr)
		}
		both := JoinConfig()
		both.NextProtos = []string{ALPN, ALPNJoin}
		if _, cerr, serr := shake(t, both, cfg); cerr == nil || serr == nil {
			t.Errorf("a client that offers both protocols was let in without a certificate: %v, %v", cerr, serr)
		}
	}
	if _, cerr, serr := shake(t, JoinConfig(), server.ServerConfig()); cerr == nil || serr == nil {
		t.Errorf("a joining client was let in where none joins: %v, %v", cerr, serr)
	}
	if _, cerr, serr := shake(t, JoinConfig(), server.JoinableConfig()); cerr != nil || serr != nil {
		t.Errorf("a joining client was refused: %v, %v", cerr, serr)
	}
}

func TestHandshakeTimesAndRevocation(t *testing.T) {
	a := authority(t, testCluster)
	server := credentials(t, a, RoleNode, "s1")
	old, err := a.Credentials(Identity{Role: RoleNode, Node: "n1"}, time.Now().Add(-2*time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, serr := shake(t, old.ClientConfig(), server.ServerConfig()); serr == nil || !strings.Contains(serr.Error(), "run auth-node on n1") {
		t.Errorf("expired: %v", serr)
	}
	early, err := a.Credentials(Identity{Role: RoleNode, Node: "n1"}, time.Now().Add(2*Skew), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, serr := shake(t, early.ClientConfig(), server.ServerConfig()); serr == nil || !strings.Contains(serr.Error(), "clocks") {
		t.Errorf("not yet valid: %v", serr)
	}
	within, err := a.Credentials(Identity{Role: RoleNode, Node: "n1"}, time.Now().Add(Skew/2), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, cerr, serr := shake(t, within.ClientConfig(), server.ServerConfig()); cerr != nil || serr != nil {
		t.Errorf("made half an hour ahead: %v, %v", cerr, serr)
	}
	server.CheckPeers(func(i Identity) error { return RevokedError(i) })
	if _, cerr, serr := shake(t, within.ClientConfig(), server.ServerConfig()); cerr == nil || !errors.Is(serr, ErrRevoked) {
		t.Errorf("revoked: %v, %v", cerr, serr)
	}
}

// A generation that is added is trusted at once by those who know only the older one, and certificates of the older one by all,
// until it is retired.
func TestRotation(t *testing.T) {
	a := authority(t, testCluster)
	old := credentials(t, a, RoleNode, "old")
	for range 3 {
		if err := a.Rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	fresh := credentials(t, a, RoleNode, "fresh")
	for _, p := range [][2]*Credentials{{old, fresh}, {fresh, old}} {
		if _, cerr, serr := shake(t, p[0].ClientConfig(), p[1].ServerConfig()); cerr != nil || serr != nil {
			t.Errorf("%s to %s: %v, %v", p[0].Identity(), p[1].Identity(), cerr, serr)
		}
	}
	b, err := a.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	a, err = UnmarshalAuthority(testCluster, b)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Retire(a.Generation()) || a.Retire(a.Generation()) || a.Oldest() != 4 {
		t.Fatalf("oldest generation is %d", a.Oldest())
	}
	last := credentials(t, a, RoleNode, "last")
	if _, cerr, serr := shake(t, old.ClientConfig(), last.ServerConfig()); cerr == nil || serr == nil {
		t.Errorf("a certificate of a retired generation was taken: %v, %v", cerr, serr)
	}
	if _, cerr, serr := shake(t, fresh.ClientConfig(), last.ServerConfig()); cerr != nil || serr != nil {
		t.Errorf("a certificate of the newest generation was refused: %v, %v", cerr, serr)
	}
}

func TestSameKeySameCertificate(t *testing.T) {
	a := authority(t, testCluster)
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	who := Identity{Role: RoleNode, Node: "n1"}
	one, i1, err1 := a.IssueNow(pub, who, now, time.Hour)
	two, i2, err2 := a.IssueNow(pub, who, now, time.Hour)
	if err1 != nil || err2 != nil || i1 != i2 || string(one[0]) != string(two[0]) {
		t.Fatalf("%v %v: %+v, %+v", err1, err2, i1, i2)
	}
	if len(i1.Serial) != 32 {
		t.Errorf("serial number %q", i1.Serial)
	}
}

func TestFiles(t *testing.T) {
	a := authority(t, testCluster)
	dir := t.TempDir()
	if _, err := LoadCredentials(dir, RoleAdmin, RoleNode); !errors.Is(err, ErrNoCredentials) || !strings.Contains(err.Error(), "auth-node") {
		t.Fatalf("an empty directory: %v", err)
	}
	write := func(node string) ([]byte, ed25519.PrivateKey) {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		chain, _, err := a.IssueNow(pub, Identity{Role: RoleNode, Node: node}, time.Now(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return EncodeChain(chain), key
	}
	chain, key := write("one")
	if err := errors.Join(WriteBundle(dir, a.Bundle()), WriteCredentials(dir, chain, key)); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"node.key": 0o600, "node.crt": 0o644, "ca.crt": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	c, err := LoadCredentials(dir, RoleAdmin, RoleNode)
	if err != nil || c.Identity().Node != "one" {
		t.Fatalf("%+v, %v", c, err)
	}
	chain, key = write("two")
	if err := WriteCredentials(dir, chain, key); err != nil {
		t.Fatal(err)
	}
	if c.Reload(); c.Identity().Node != "two" {
		t.Errorf("after a renewal: %+v", c.Identity())
	}
	if _, err := os.Stat(filepath.Join(dir, "node.key.new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pending key is still there: %v", err)
	}
}

// Whoever writes credentials may be killed at any step.
func TestFilesKilled(t *testing.T) {
	a := authority(t, testCluster)
	make1 := func(node string) ([]byte, ed25519.PrivateKey, []byte) {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		chain, _, err := a.IssueNow(pub, Identity{Role: RoleNode, Node: node}, time.Now(), 0)
		if err != nil {
			t.Fatal(err)
		}
		keyPEM, err := EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return EncodeChain(chain), key, keyPEM
	}
	for _, step := range []string{"key", "certificate"} {
		dir := t.TempDir()
		chain, key, _ := make1("one")
		if err := errors.Join(WriteBundle(dir, a.Bundle()), WriteCredentials(dir, chain, key)); err != nil {
			t.Fatal(err)
		}
		chain2, _, keyPEM2 := make1("two")
		want := "one"
		if err := WriteFile(filepath.Join(dir, "node.key.new"), keyPEM2, 0o600); err != nil {
			t.Fatal(err)
		}
		if step == "certificate" {
			want = "two"
			if err := WriteFile(filepath.Join(dir, "node.crt"), chain2, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c, err := LoadCredentials(dir)
		if err != nil || c.Identity().Node != want {
			t.Fatalf("killed after the %s: %v", step, err)
		}
		chain3, key3, _ := make1("three")
		if err := WriteCredentials(dir, chain3, key3); err != nil {
			t.Fatal(err)
		}
		if c.Reload(); c.Identity().Node != "three" {
			t.Errorf("killed after the %s, then written again: %+v", step, c.Identity())
		}
	}
}

func TestCapability(t *testing.T) {
	s, err := NewSigner(testCluster, 3)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	c := &Capability{Session: 7, Node: "n1", Rights: Read | Write, NotBefore: now, NotAfter: now.Add(time.Hour)}
	token := s.Sign(c)
	v := NewVerifier(testCluster, s.Key())
	got, err := v.Verify(token, now)
	if err != nil || len(token) != CapabilitySize || got.Session != 7 || got.Node != "n1" || got.Rights != Read|Write || got.Generation != 3 || got.Cluster != testCluster {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, verify := range map[string]func() error{
		"too late":  func() error { _, err := v.Verify(token, now.Add(time.Hour)); return err },
		"too early": func() error { _, err := v.Verify(token, now.Add(-Skew-time.Second)); return err },
		"other cluster": func() error {
			_, err := NewVerifier(id.Cluster{9}, s.Key()).Verify(token, now)
			return err
		},
		"retired key": func() error { _, err := NewVerifier(testCluster).Verify(token, now); return err },
		"other key of the generation": func() error {
			o, _ := NewSigner(testCluster, 3)
			_, err := NewVerifier(testCluster, o.Key()).Verify(token, now)
			return err
		},
		"short": func() error { _, err := v.Verify(token[:CapabilitySize-1], now); return err },
		"empty": func() error { _, err := v.Verify(nil, now); return err },
	} {
		if err := verify(); !errors.Is(err, ErrCapability) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range token {
		bad := append([]byte(nil), token...)
		bad[n] ^= 1
		if _, err := v.Verify(bad, now); !errors.Is(err, ErrCapability) {
			t.Errorf("byte %d changed: %v", n, err)
		}
	}
	next, err := NewSigner(testCluster, 4)
	if err != nil {
		t.Fatal(err)
	}
	v.SetKeys([]CapabilityKey{s.Key(), next.Key()})
	if _, err := v.Verify(token, now); err != nil {
		t.Errorf("the older of two keys: %v", err)
	}
	if _, err := v.Verify(next.Sign(c), now); err != nil {
		t.Errorf("the newer of two keys: %v", err)
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("varve://01020304-0000-0000-0000-000000000009/node/n1")
	f.Add("varve://x/admin/")
	f.Fuzz(func(t *testing.T, s string) {
		i, err := ParseURI(s)
		if err == nil && i.uri().String() != s {
			t.Fatalf("%q read as %+v", s, i)
		}
	})
}

func FuzzCapability(f *testing.F) {
	s := SignerOf(testCluster, 1, ed25519.NewKeyFromSeed(make([]byte, 32)))
	good := s.Sign(&Capability{Session: 1, Node: "n", Rights: Read, NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0)})
	f.Add(good)
	f.Add(good[:100])
	v := NewVerifier(testCluster, s.Key())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCapability(b)
		if err != nil {
			if !errors.Is(err, ErrCapability) || c != nil {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		c.NotBefore = c.NotBefore.Add(Skew)
		if again := s.Sign(c); string(again[:8])+string(again[12:16])+string(again[32:capBody]) != string(b[:8])+string(b[12:16])+string(b[32:capBody]) {
			t.Fatalf("does not round-trip: %x", b)
		}
		if _, err := v.Verify(b, time.Unix(15e8, 0)); err == nil && string(b) != string(good) {
			t.Fatalf("verified: %x", b)
		}
	})
}

func FuzzBundle(f *testing.F) {
	a, err := NewAuthority(testCluster, time.Unix(1e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Bundle())
	f.Fuzz(func(t *testing.T, b []byte) {
		if certs, err := ParseBundle(b); err == nil && len(certs) == 0 {
			t.Fatal("no certificate, and no error")
		}
		_, _ = UnmarshalAuthority(testCluster, b)
	})
}

var _ JoinServer = joinFunc(nil)

type joinFunc func(context.Context, *tls.Conn)

func (f joinFunc) ServeJoin(ctx context.Context, c *tls.Conn) { f(ctx, c) }
