package mds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/ports"
)

// beginAny begins at whoever leads, and returns his index.
func (c *openCluster) beginAny() (first int) {
	c.t.Helper()
	c.eventually("a leader to begin", func() bool {
		first = c.leaderIndex()
		return c.begin(first, true) == nil
	})
	c.keyed(first)
	return first
}

// give does what authNode does for both roles, without the password, which takes long.
func (c *openCluster) give(all ...int) {
	c.t.Helper()
	for _, i := range all {
		c.eventually("certificates", func() bool {
			l := c.lead()
			_, secrets, err := l.s.guard.security()
			if err != nil || secrets == nil {
				return false
			}
			err = errors.Join(secure.MarkOpening(c.nodes[i]), pki.WriteBundle(c.nodes[i], secrets.Authority.Bundle()))
			for _, role := range []pki.Role{pki.RoleAdmin, pki.RoleNode} {
				key, csr, kerr := pki.NewKey()
				pub, cerr := pki.ReadCSR(csr)
				if err = errors.Join(err, kerr, cerr); err != nil {
					c.t.Fatal(err)
				}
				chain, err := l.issue(c.context(), pub, pki.Identity{Cluster: c.cluster, Role: role, Node: fmt.Sprint("host", i+1)}, "test")
				if err != nil {
					return false
				}
				if err := pki.WriteCredentials(c.nodes[i], pki.EncodeChain(chain), key); err != nil {
					c.t.Fatal(err)
				}
			}
			return true
		})
	}
}

// finish closes, and waits until the servers know it.
func (c *openCluster) finish(as int) {
	c.t.Helper()
	c.eventually("all to be safe", func() bool { return c.change(as, msg.ChangeSecurity_CLOSE, false) == fserr.OK })
	for i := range c.servers {
		c.eventually("plain connections to be refused", func() bool {
			_, err := c.plain(i)
			return errors.Is(err, wire.ErrNeedsCertificate)
		})
	}
}

// sound looks whether all servers have what they need of the security that is in force, as one of them has it.
func (c *openCluster) sound(as int) {
	c.t.Helper()
	v := c.at(as).fsm.clone().Security()
	for i := range c.servers {
		c.eventually(fmt.Sprintf("server %d to follow who may speak", i+1), func() bool {
			s := c.at(i)
			if creds := s.creds(); creds == nil || !creds.SignedBy([]byte(v.Bundle)) || !s.guard.adopted() {
				return false
			}
			_, err := s.guard.open(v)
			return err == nil
		})
	}
}

// TestSecureAgainAtOnce: securing a cluster is given up and begun again before anybody has let go of the first attempt. Nothing of that is mistaken for something of the
// second one, so nobody is shut out when that is finished.
func TestSecureAgainAtOnce(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 3)
	first := c.beginAny()
	second, third := (first+1)%3, (first+2)%3
	c.give(second, third)
	c.keyed(second, third)
	n := secure.New(secure.Options{Credentials: c.load(c.nodes[second], pki.RoleAdmin), Logger: testLogger()})
	held, _, err := wire.Dial(c.context(), c.leader().Addr(), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{Network: n})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if code := c.change(first, msg.ChangeSecurity_ABORT, false); code != fserr.OK {
		t.Fatal(code)
	}
	first = c.beginAny()
	second, third = (first+1)%3, (first+2)%3
	select { // nobody counts as known by a certificate of the authority before
	case <-held.Done():
	case <-time.After(20 * time.Second):
		t.Error("a connection by the authority that was given up is still there")
	}
	c.authNode(second, pki.RoleNode)
	c.give(second, third)
	c.keyed(second, third)
	c.finish(second)
	c.sound(first)
	c.kill(third)
	c.start(third)
	c.propose("restarted")
	c.agree()
}

// TestKeyOutlivesOldState: a server whose state has not come as far as its cluster key, since the log is just being applied, keeps that.
func TestKeyOutlivesOldState(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 1)
	first := c.beginAny()
	s := c.at(first)
	if code := c.change(first, msg.ChangeSecurity_ABORT, false); code != fserr.OK {
		t.Fatal(code)
	}
	c.eventually("it to be let go", func() bool {
		d, err := readIdentity(s.o.FS, s.o.Dir)
		return err == nil && !d.Key && s.keys.key.Load() == nil && !secure.IsOpening(c.nodes[first])
	})
	for _, stage := range []string{stageOff, stageOpen} {
		if l := s.lead.Load(); l == nil || l.propose(stageEvent(stage), "test") != nil {
			t.Fatal("no leader")
		}
		key, err := pki.NewClusterKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(writeKey(s.o.FS, s.o.Dir, key), s.guard.keepKey(uint64(s.fsm.index())+1<<20)); err != nil {
			t.Fatal(err)
		}
		s.keys.key.Store(&key)
		sleep(t.Context(), 2*tendOpeningEach+tendOpeningEach/2)
		if k := s.keys.key.Load(); k == nil || *k != key {
			t.Errorf("stage %s: the key is gone", stage)
		}
		if d, err := readIdentity(s.o.FS, s.o.Dir); err != nil || !d.Key {
			t.Errorf("stage %s: %v, %+v", stage, err, d)
		}
	}
}

// TestSecureNotFinishedTooEarly: who runs without a certificate, and is connecting anew as after a change of leader, is not shut out.
func TestSecureNotFinishedTooEarly(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 1, func(o *Options) { o.SessionLease = 5 * time.Minute })
	first := c.beginAny()
	a := newClient(c.testCluster)
	l := c.lead()
	if err := l.closeSecurity(c.context(), false, "test"); !errors.Is(err, fserr.Busy) {
		t.Errorf("finished while a session would be shut out: %v", err)
	}
	a.silent.Store(true)
	a.mu.Lock()
	a.conn.Close()
	a.mu.Unlock()
	c.eventually("the client to be away", func() bool { return c.at(first).clients.get(a.session) == nil })
	if err := l.closeSecurity(c.context(), false, "test"); !errors.Is(err, fserr.Unavailable) {
		t.Errorf("finished while a session that may be back any moment would be shut out: %v", err)
	}
	if err := l.closeSecurity(c.context(), true, "test"); err != nil {
		t.Error(err)
	}
}

// TestSecureKeyLost: the only server with the cluster key is gone for good. Who may write into the directory of the leader gives it up, and begins again.
func TestSecureKeyLost(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 3)
	lost := c.beginAny()
	c.kill(lost)
	abort := func(request bool) (code fserr.Code) {
		c.eventually("an answer of a leader", func() bool {
			i := c.leaderIndex()
			if request {
				if err := WriteAbortRequest(c.dirs[i]); err != nil {
					t.Fatal(err)
				}
				defer DropOpenRequest(c.dirs[i])
			}
			conn, err := c.plain(i)
			if err != nil {
				return false
			}
			defer conn.Close()
			code, err = conn.CallMessage(c.context(), wire.ChangeSecurity, wire.ClassMeta, &msg.ChangeSecurity{What: msg.ChangeSecurity_ABORT}, nil)
			return err == nil && code != fserr.NotLeader && code != fserr.Unavailable
		})
		return code
	}
	if code := abort(false); code != fserr.Denied {
		t.Errorf("given up by anybody: %v", code)
	}
	if code := abort(true); code != fserr.OK {
		t.Fatalf("not given up: %v", code)
	}
	again := c.beginAny()
	for i := range 3 {
		if i != again {
			c.give(i)
		}
	}
	c.start(lost) // with the key of the first attempt, and certificates of the second one
	c.keyed(0, 1, 2)
	c.finish(again)
	c.sound(again)
	c.propose("secured")
	c.agree()
}

// TestSecurePasswordGivenLast: who begins a second time, or is the second one to begin, is told that it is done: so it is his password by which nodes join. A request that
// was left behind by a command that was killed counts for nothing.
func TestSecurePasswordGivenLast(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 1)
	c.beginAny()
	const second = "another password"
	if err := WriteOpenRequest(c.dirs[0], []byte(second), "host1"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.dirs[0], openRequestFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.begin(0, false); err != nil {
		t.Fatal(err)
	}
	version := c.at(0).fsm.clone().Security().Version
	if err := c.begin(0, false); err != nil {
		t.Fatal(err)
	}
	if now := c.at(0).fsm.clone().Security().Version; now != version {
		t.Errorf("a repeated request changes something: version %d, then %d", version, now)
	}
	join := func(password string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := pki.Join(ctx, pki.JoinRequest{Addrs: c.addrs, Password: []byte(password), Role: pki.RoleNode, Node: "n", Cluster: c.cluster})
		return err
	}
	if err := join(second); err != nil {
		t.Errorf("the password that was given last: %v", err)
	}
	if err := join(testPassword); !errors.Is(err, pki.ErrPassword) {
		t.Errorf("the one before it: %v", err)
	}
	var r openRequest
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	r.Until = time.Now().Add(-time.Second).UnixNano()
	if b, err = json.Marshal(r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.begin(0, false); !errors.Is(err, fserr.Access) {
		t.Errorf("by a request that is over: %v", err)
	}
}

// TestKeyBeforeTheLog: a server that cannot tell whether what it has sealed came into the log has the key for it all the same.
func TestKeyBeforeTheLog(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 3)
	l := c.lead()
	first := c.leaderIndex()
	for i := range 3 {
		if i != first {
			c.kill(i)
		}
	}
	c.eventually("nobody to lead", func() bool { return c.at(first).lead.Load() == nil })
	verifier, err := pki.DecodeVerifier(testVerifier())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.makeSecurity(c.context(), verifier); err == nil {
		t.Fatal("begun by who does not lead any more")
	}
	if s := c.at(first); s.keys.key.Load() == nil {
		t.Error("the server does not know the key that it has sealed with")
	} else if s.keyed() {
		t.Error("it counts as one of a secured cluster")
	}
	for i := range 3 {
		if i != first {
			c.start(i)
		}
	}
	o := c.options(first) // as in any cluster without security
	o.Dir, o.Addr, o.ClusterDir = filepath.Join(t.TempDir(), "mds9"), ports.Hold(t), ""
	if _, err := Join(c.context(), o, c.addrs); err != nil {
		t.Errorf("a server is not taken in: %v", err)
	}
	c.beginAny()
}

// TestJoinWhileOpening: a server that is added while the cluster is being secured keeps its key, whatever of earlier attempts is in the log that it gets.
func TestJoinWhileOpening(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 1)
	for range 2 {
		c.beginAny()
		if c.at(0).fsm.clone().Security().Version > 1 {
			break
		}
		if code := c.change(0, msg.ChangeSecurity_ABORT, false); code != fserr.OK {
			t.Fatal(code)
		}
	}
	o := c.options(0)
	o.Dir, o.Addr, o.ClusterDir = filepath.Join(t.TempDir(), "mds9"), ports.Hold(t), t.TempDir()
	c.nodes = append(c.nodes, o.ClusterDir)
	c.authNode(1, pki.RoleAdmin, pki.RoleNode)
	o.Credentials = c.load(o.ClusterDir, pki.RoleAdmin)
	before := c.at(0).fsm.clone().Security().Changed
	if _, err := Join(c.context(), o, c.addrs); err != nil {
		t.Fatal(err)
	}
	d, err := readIdentity(o.withDefaults().FS, o.Dir)
	if err != nil || !d.Key || d.Secured || d.Opening+1 < before {
		t.Errorf("%+v, %v: want a key that nothing before %d takes back", d, err, before)
	}
}
