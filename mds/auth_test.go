package mds

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
	"varve/test/ports"
)

const testPassword = "open sesame, please"

// safeCluster is a testCluster with security: each server's node has a cluster directory of its own.
type safeCluster struct {
	*testCluster
	nodes       []string // cluster directories
	fingerprint string
	ahead       atomic.Int64 // ns that the servers' wall clock is ahead
}

func newSafeCluster(t *testing.T, n int) *safeCluster {
	t.Helper()
	root := t.TempDir()
	c := &safeCluster{}
	c.testCluster = &testCluster{t: t, tune: func(o *Options) {
		o.ElectionTimeout = 700 * time.Millisecond
		o.Wall = func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }
	}}
	t.Cleanup(func() {
		for i := range c.servers {
			c.kill(i)
		}
	})
	for i := range n {
		c.dirs = append(c.dirs, filepath.Join(root, fmt.Sprint("mds", i+1)))
		c.nodes = append(c.nodes, filepath.Join(root, fmt.Sprint("node", i+1)))
		c.addrs = append(c.addrs, ports.Hold(t))
		c.servers = append(c.servers, nil)
		if err := os.Mkdir(c.nodes[i], 0o755); err != nil {
			t.Fatal(err)
		}
		o := c.options(i)
		o.Addr, o.ClusterDir = c.addrs[i], c.nodes[i]
		if i == 0 {
			o.Name = "test"
			f, err := InitSecure(o, Founding{Password: []byte(testPassword), Node: "host1"})
			if err != nil {
				t.Fatal(err)
			}
			c.cluster, c.fingerprint = f.Cluster, f.Fingerprint
		} else {
			c.join(pki.RoleNode, fmt.Sprint("host", i+1), c.nodes[i])
			o.Credentials = c.load(c.nodes[0], pki.RoleAdmin)
			if _, err := Join(c.context(), o, c.addrs[:1]); err != nil {
				t.Fatal(err)
			}
		}
		c.start(i)
		c.leader()
	}
	c.eventually("all servers to be voters", func() bool { return c.leader().otherVoters() == n-1 })
	return c
}

func (c *safeCluster) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *safeCluster) load(dir string, role pki.Role) *pki.Credentials {
	c.t.Helper()
	creds, err := pki.LoadCredentials(dir, role)
	if err != nil {
		c.t.Fatal(err)
	}
	return creds
}

// join gives a node certificates without the password, which takes long, and returns the directory.
func (c *safeCluster) join(role pki.Role, node, dir string) string {
	c.t.Helper()
	c.eventually("a certificate", func() bool {
		l := c.lead()
		_, secrets, err := l.s.guard.security()
		if err != nil || secrets == nil {
			return false
		}
		key, csr, err := pki.NewKey()
		if err != nil {
			c.t.Fatal(err)
		}
		pub, err := pki.ReadCSR(csr)
		if err != nil {
			c.t.Fatal(err)
		}
		chain, err := l.issue(c.context(), pub, pki.Identity{Cluster: c.cluster, Role: role, Node: node}, "test")
		if err != nil {
			return false
		}
		if err := errors.Join(pki.WriteBundle(dir, secrets.Authority.Bundle()), pki.WriteCredentials(dir, pki.EncodeChain(chain), key)); err != nil {
			c.t.Fatal(err)
		}
		return true
	})
	return dir
}

// joinByPassword does what auth-node does, and returns the directory.
func (c *safeCluster) joinByPassword(role pki.Role, node, dir string) string {
	c.t.Helper()
	j, err := pki.Join(c.context(), pki.JoinRequest{Addrs: c.addrs, Password: []byte(testPassword), Role: role, Node: node, Cluster: c.cluster, Fingerprint: c.fingerprint})
	if err == nil {
		err = j.Write(dir)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// dial connects to the leader with the credentials of a directory.
func (c *safeCluster) dial(dir string, role pki.Role, as msg.Hello_Role) (*wire.Conn, error) {
	n := secure.New(secure.Options{Credentials: c.load(dir, role), Logger: testLogger()})
	conn, _, err := wire.Dial(c.context(), c.leader().Addr(), &msg.Hello{Cluster: c.cluster[:], Role: as}, nil, wire.Options{Network: n})
	if err == nil {
		c.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// ask asks the leader as the administrator on the first node, until somebody leads.
func (c *safeCluster) ask(t wire.Type, req, reply wire.Message) fserr.Code {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := c.dial(c.nodes[0], pki.RoleAdmin, msg.Hello_ADMIN)
		code := fserr.NotLeader
		if err == nil {
			code, err = conn.CallMessage(c.context(), t, wire.ClassMeta, req, reply)
			conn.Close()
		}
		if err == nil && code != fserr.NotLeader {
			return code
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("request %d: %v, %v", t, code, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *safeCluster) list() *msg.ListCertificatesReply {
	c.t.Helper()
	r := new(msg.ListCertificatesReply)
	if code := c.ask(wire.ListCertificates, &msg.ListCertificates{}, r); code != fserr.OK {
		c.t.Fatal(code)
	}
	return r
}

// TestSecureCluster: servers join with an administrator's certificate, get the cluster key, and any of them gives certificates when it leads. Nothing
// secret is in what they keep, but for the key's own file.
func TestSecureCluster(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 3)
	first, err := os.ReadFile(filepath.Join(c.dirs[0], keyFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range c.dirs {
		b, err := os.ReadFile(filepath.Join(dir, keyFile))
		info, serr := os.Stat(filepath.Join(dir, keyFile))
		if err != nil || serr != nil || !bytes.Equal(b, first) || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", dir, err, info)
		}
	}
	if _, err := os.Stat(filepath.Join(c.dirs[0], foundingFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the founding file is still there: %v", err)
	}
	c.kill(c.leaderIndex())
	c.joinByPassword(pki.RoleReader, "later", t.TempDir()) // at whoever leads now
	secrets, err := c.secrets()
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.servers {
		c.kill(i)
	}
	key, err := pki.DecodeClusterKey(first)
	if err != nil {
		t.Fatal(err)
	}
	hidden := [][]byte{[]byte(testPassword), key[:], secrets.Password.Stored, secrets.Password.Server, secrets.Password.Salt}
	private, err := secrets.Authority.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	hidden = append(hidden, private[:60])
	for _, dir := range append(c.dirs, c.nodes...) {
		for _, dirKey := range []string{"node.key", "admin.key"} {
			if b, err := os.ReadFile(filepath.Join(dir, dirKey)); err == nil {
				hidden = append(hidden, bytes.Split(b, []byte("\n"))[1])
			}
		}
	}
	looked := 0
	for _, dir := range append(c.dirs, c.nodes...) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == keyFile || strings.HasSuffix(path, ".key") {
				return err
			}
			b, err := os.ReadFile(path)
			looked++
			for n, secret := range hidden {
				if bytes.Contains(b, secret) || bytes.Contains(b, []byte(hex.EncodeToString(secret))) {
					t.Errorf("%s shows secret %d", path, n)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if looked < 10 {
		t.Errorf("%d files looked at", looked)
	}
	if err := os.Remove(filepath.Join(c.dirs[1], keyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c.options(1)); err == nil || !strings.Contains(err.Error(), "copy it from the directory of another metadata server") {
		t.Errorf("a server without %s: %v", keyFile, err)
	}
}

// secrets are those that the leader has.
func (c *safeCluster) secrets() (s *pki.Secrets, err error) {
	_, s, err = c.leader().guard.security()
	return s, err
}

// TestOnlyAdministratorsAddServers: the cluster key is for administrators.
func TestOnlyAdministratorsAddServers(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	o := c.options(0)
	o.Dir, o.Addr, o.ClusterDir = filepath.Join(t.TempDir(), "mds9"), ports.Hold(t), c.nodes[0]
	o.Credentials = c.load(c.nodes[0], pki.RoleNode)
	if _, err := Join(c.context(), o, c.addrs); !errors.Is(err, fserr.Access) || !strings.Contains(err.Error(), "administrator") {
		t.Errorf("a node: %v", err)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, keyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has the key: %v", err)
	}
	if n := len(c.leader().raftMembers()); n != 1 {
		t.Errorf("%d members", n)
	}
}

// TestFoundingBreaksOff: what was not in the log when the first server was killed is there after its next start, once.
func TestFoundingBreaksOff(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	node := filepath.Join(root, "node")
	if err := os.Mkdir(node, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &testCluster{t: t, dirs: []string{filepath.Join(root, "mds")}, addrs: []string{ports.Hold(t)}, servers: []*Server{nil}}
	t.Cleanup(func() { c.kill(0) })
	o := c.options(0)
	o.Addr, o.Name, o.ClusterDir = c.addrs[0], "test", node
	if _, err := InitSecure(o, Founding{Password: []byte("short"), Node: "h"}); err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("a short password: %v", err)
	}
	if _, err := InitSecure(o, Founding{Password: []byte(testPassword), Node: "h"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.dirs[0], foundingFile)
	founding, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	batch := new(event.Batch)
	if err := batch.UnmarshalVT(founding); err != nil {
		t.Fatal(err)
	}
	part, err := (&event.Batch{Events: batch.Events[:2]}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{part, founding, founding} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c.start(0)
		c.leader()
		c.kill(0)
	}
	c.start(0)
	c.leader().fsm.view(func(st *state.State) {
		if v := st.Security(); v == nil || v.Version != 1 || st.CertCount() != 2 {
			t.Errorf("security %+v, %d certificates", v, st.CertCount())
		}
	})
}

// TestRevokedAtServers: what a revoked node has under way ends within seconds, its session is fenced, and it is not let in again; others go on.
func TestRevokedAtServers(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	bad := c.join(pki.RoleNode, "bad", t.TempDir())
	good := c.join(pki.RoleNode, "good", t.TempDir())
	var conns []*wire.Conn
	var sessions []id.SessionID
	for n, dir := range []string{bad, good, bad} {
		conn, err := c.dial(dir, pki.RoleNode, msg.Hello_CLIENT)
		if err != nil {
			t.Fatal(err)
		}
		reply := new(msg.OpenSessionReply)
		code, err := conn.CallMessage(c.context(), wire.OpenSession, wire.ClassMeta, &msg.OpenSession{Host: "h", Nonce: append([]byte(dir)[len(dir)-15:], byte(n))}, reply)
		if err != nil || code != fserr.OK {
			t.Fatal(code, err)
		}
		conns, sessions = append(conns, conn), append(sessions, id.SessionID(reply.Session))
	}
	conns[2].Close() // a client that is cut off: its session lapses
	reply := new(msg.AdminReply)
	if code := c.ask(wire.Revoke, &msg.Revoke{Who: "nobody"}, reply); code != fserr.NotExist || !strings.Contains(reply.Detail, "list-nodes") {
		t.Errorf("an unknown node: %v, %s", code, reply.Detail)
	}
	own := c.load(c.nodes[0], pki.RoleAdmin).Identity().Serial
	if code := c.ask(wire.Revoke, &msg.Revoke{Who: own}, reply); code != fserr.Busy {
		t.Errorf("the own certificate: %v, %s", code, reply.Detail)
	}
	for range 2 { // a repeat is no fault
		if code := c.ask(wire.Revoke, &msg.Revoke{Who: "bad"}, new(msg.RevokeReply)); code != fserr.OK {
			t.Fatal(code)
		}
	}
	start := time.Now()
	select {
	case <-conns[0].Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the connection goes on")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the connection ended after %v", took)
	}
	for _, session := range []id.SessionID{sessions[0], sessions[2]} {
		c.eventually("the session to be fenced", func() (fenced bool) {
			c.leader().fsm.view(func(st *state.State) {
				x, ok := st.Session(session)
				fenced = ok && x.Fenced
			})
			return fenced
		})
	}
	if conn, err := c.dial(bad, pki.RoleNode, msg.Hello_CLIENT); err == nil {
		conn.Close()
		t.Error("it was let in again")
	}
	code, err := conns[1].CallMessage(c.context(), wire.RenewSession, wire.ClassMeta, &msg.RenewSession{Session: uint64(sessions[1])}, nil)
	if err != nil || code != fserr.OK {
		t.Errorf("the other node's session: %v, %v", code, err)
	}
	for _, x := range c.list().Certificates {
		if (x.Node == "bad") != (x.Revoked != 0) {
			t.Errorf("%s revoked at %d", x.Node, x.Revoked)
		}
	}
	// Still so after a restart, before anybody has said anything.
	c.kill(0)
	c.start(0)
	if conn, err := c.dial(bad, pki.RoleNode, msg.Hello_CLIENT); err == nil {
		conn.Close()
		t.Error("it was let in after a restart")
	}
	if again := c.joinByPassword(pki.RoleNode, "bad", bad); again != bad { // with the password it may come back, with a new key
		t.Fatal(again)
	}
	if conn, err := c.dial(bad, pki.RoleNode, msg.Hello_CLIENT); err != nil {
		t.Errorf("after auth-node: %v", err)
	} else {
		conn.Close()
	}
}

// TestRotateAuthority: servers get certificates of the new generation by themselves, nobody is cut off, and the old generation goes when nobody has any
// of it.
func TestRotateAuthority(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 3)
	old := c.join(pki.RoleNode, "old", t.TempDir())
	if code := c.ask(wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_ROTATE_AUTHORITY}, nil); code != fserr.OK {
		t.Fatal(code)
	}
	fresh := c.join(pki.RoleNode, "fresh", t.TempDir())
	for _, dir := range []string{old, fresh} {
		conn, err := c.dial(dir, pki.RoleNode, msg.Hello_CLIENT)
		if err != nil {
			t.Fatalf("right after the rotation: %v", err)
		}
		conn.Close()
	}
	c.eventually("the servers to have certificates of the new generation", func() bool {
		have := map[string]bool{}
		for _, x := range c.list().Certificates {
			if x.Authority == 2 && x.Role == uint32(pki.RoleNode) {
				have[x.Node] = true
			}
		}
		return have["host1"] && have["host2"] && have["host3"]
	})
	for _, dir := range []string{c.nodes[0], c.nodes[1], c.nodes[2]} {
		c.eventually("the bundle of "+dir+" to have both generations", func() bool {
			b, err := os.ReadFile(filepath.Join(dir, pki.BundleFile))
			if err != nil {
				return false
			}
			cas, err := pki.ParseBundle(b)
			return err == nil && len(cas) == 2
		})
	}
	l := c.lead()
	c.ahead.Store(int64(supersededAfter + time.Minute))
	l.tendSecurity()
	if r := c.list(); r.Oldest != 1 || r.Authority != 2 {
		t.Errorf("a generation went that the administrator and a node have certificates of: %d to %d", r.Oldest, r.Authority)
	}
	if code := c.ask(wire.Revoke, &msg.Revoke{Who: "old"}, new(msg.RevokeReply)); code != fserr.OK {
		t.Fatal(code)
	}
	c.join(pki.RoleAdmin, "host1", c.nodes[0]) // the administrator's
	c.ahead.Store(int64(2*supersededAfter + 2*time.Minute))
	c.eventually("the old generation to go", func() bool {
		c.lead().tendSecurity()
		return c.list().Oldest == 2
	})
	conn, err := c.dial(fresh, pki.RoleNode, msg.Hello_CLIENT)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if code := c.ask(wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_RETIRE_AUTHORITY}, new(msg.AdminReply)); code != fserr.Invalid {
		t.Errorf("the only generation retired: %v", code)
	}
}

// TestChangePasswordAndKeys: the old password is of no use, and the key of capabilities before the newest one stays valid.
func TestChangePasswordAndKeys(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	other := []byte("another one, please")
	v, err := pki.NewPasswordVerifier(other)
	if err != nil {
		t.Fatal(err)
	}
	b, err := v.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if code := c.ask(wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_PASSWORD, Verifier: b}, nil); code != fserr.OK {
		t.Fatal(code)
	}
	if code := c.ask(wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_PASSWORD, Verifier: b[:20]}, new(msg.AdminReply)); code != fserr.Invalid {
		t.Errorf("half a verifier: %v", code)
	}
	request := pki.JoinRequest{Addrs: c.addrs, Role: pki.RoleNode, Node: "n"}
	request.Password = []byte(testPassword)
	if _, err := pki.Join(c.context(), request); !errors.Is(err, pki.ErrPassword) {
		t.Errorf("the old password: %v", err)
	}
	request.Password = other
	if _, err := pki.Join(c.context(), request); err != nil {
		t.Errorf("the new password: %v", err)
	}
	signer := c.leader().guard.Signer()
	token := signer.Sign(&pki.Capability{Session: 1, Node: "n", Rights: pki.Read, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)})
	for n := range 2 {
		if code := c.ask(wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_ROTATE_KEYS}, nil); code != fserr.OK {
			t.Fatal(code)
		}
		conn, err := c.dial(c.nodes[0], pki.RoleNode, msg.Hello_CHUNK_SERVER)
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := wire.AskTrust(c.context(), conn, 0, nil)
		if err != nil || s == nil {
			t.Fatal(s, err)
		}
		if _, err := pki.NewVerifier(c.cluster, s.Keys...).Verify(token, time.Now()); (err == nil) != (n == 0) {
			t.Errorf("after %d rotations: %v", n+1, err)
		}
		conn.Close()
	}
}

// TestIssue: the same key gets the same certificate, in one event; others that are long over are forgotten; a revoked key gets none.
func TestIssue(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	l := c.lead()
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := pki.ReadCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	who := pki.Identity{Role: pki.RoleNode, Node: "n1"}
	one, err1 := l.issue(c.context(), pub, who, "test")
	index := c.leader().fsm.index()
	time.Sleep(1100 * time.Millisecond) // certificates count seconds
	two, err2 := l.issue(c.context(), pub, who, "test")
	if err1 != nil || err2 != nil || !bytes.Equal(one[0], two[0]) {
		t.Fatalf("another certificate for the same key: %v, %v", err1, err2)
	}
	c.leader().fsm.view(func(st *state.State) {
		if n := st.CertCount(); n != 3 {
			t.Errorf("%d certificates at index %d, then %d", n, index, st.Index())
		}
	})
	if _, err := l.issue(c.context(), pub, pki.Identity{Role: pki.RoleAdmin, Node: "n1"}, "test"); !errors.Is(err, pki.ErrRefused) {
		t.Errorf("the same key in another role: %v", err)
	}
	// A renewal on the wire.
	dir := t.TempDir()
	secrets, err := c.secrets()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pki.WriteBundle(dir, secrets.Authority.Bundle()), pki.WriteCredentials(dir, pki.EncodeChain(one), key)); err != nil {
		t.Fatal(err)
	}
	conn, err := c.dial(dir, pki.RoleNode, msg.Hello_CLIENT)
	if err != nil {
		t.Fatal(err)
	}
	key2, csr2, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := wire.AskTrust(c.context(), conn, 0, csr2)
	if err != nil {
		t.Fatal(err)
	}
	cas, err := pki.ParseBundle(secrets.Authority.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.CheckChain(chain, key2, cas); err != nil || got.Node != "n1" || got.Role != pki.RoleNode {
		t.Errorf("renewed: %+v, %v", got, err)
	}
	conn.Close()
	if code := c.ask(wire.Revoke, &msg.Revoke{Who: "n1"}, new(msg.RevokeReply)); code != fserr.OK {
		t.Fatal(code)
	}
	if _, err := l.issue(c.context(), pub, who, "test"); !errors.Is(err, pki.ErrRefused) {
		t.Errorf("a revoked key: %v", err)
	}
	c.ahead.Store(int64(pki.ValidFor + certsForgotten + time.Hour))
	_, csr3, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub3, err := pki.ReadCSR(csr3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.issue(c.context(), pub3, pki.Identity{Role: pki.RoleNode, Node: "n3"}, "test"); err != nil {
		t.Fatal(err)
	}
	c.leader().fsm.view(func(st *state.State) {
		if n := st.CertCount(); n != 1 {
			t.Errorf("%d certificates are remembered, want the newest", n)
		}
	})
}

// TestJoinOnly: who has no certificate gets nothing but the four messages of joining.
func TestJoinOnly(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 1)
	nc, err := net.Dial("tcp", c.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	tc := tls.Client(nc, pki.JoinConfig())
	if err := tc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	preface := wire.Preface()
	if _, err := tc.Write(append(preface[:], make([]byte, 200)...)); err != nil {
		t.Fatal(err)
	}
	if n, err := tc.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes for a frame on a connection that joins", n)
	}
}
