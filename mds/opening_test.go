package mds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// openCluster is a cluster without security, each of whose servers has a cluster directory.
type openCluster struct{ *safeCluster }

func newOpenCluster(t *testing.T, n int, more ...func(*Options)) *openCluster {
	t.Helper()
	c := &safeCluster{}
	root := t.TempDir()
	c.testCluster = newCluster(t, n, func(o *Options) {
		o.ElectionTimeout = 2 * time.Second // whom a busy machine has elected anew had not been asked to begin
		o.ClusterDir = filepath.Join(root, filepath.Base(o.Dir))
		if err := os.MkdirAll(o.ClusterDir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, tune := range more {
			tune(o)
		}
	})
	for _, dir := range c.dirs {
		c.nodes = append(c.nodes, filepath.Join(root, filepath.Base(dir)))
	}
	return &openCluster{c}
}

// testVerifier is that of testPassword, which takes long to make.
var testVerifier = sync.OnceValue(func() []byte {
	v, err := pki.NewPasswordVerifier([]byte(testPassword))
	if err != nil {
		panic(err)
	}
	b, err := v.Encode()
	if err != nil {
		panic(err)
	}
	return b
})

// begin asks a server to secure the cluster.
func (c *openCluster) begin(i int, request bool) error {
	c.t.Helper()
	if request {
		if err := (openRequest{Verifier: testVerifier(), Node: fmt.Sprint("host", i+1)}).write(c.dirs[i]); err != nil {
			c.t.Fatal(err)
		}
		defer func() {
			if err := DropOpenRequest(c.dirs[i]); err != nil {
				c.t.Error(err)
			}
		}()
	}
	conn, err := c.plain(i)
	if err != nil {
		return err
	}
	defer conn.Close()
	detail := new(msg.AdminReply)
	code, err := conn.CallMessage(c.context(), wire.ChangeSecurity, wire.ClassMeta, &msg.ChangeSecurity{What: msg.ChangeSecurity_OPEN}, detail)
	if err == nil && code != fserr.OK {
		err = fmt.Errorf("%s: %w", detail.Detail, code)
	}
	return err
}

// leads has a server lead: a busy machine may have elected another one.
func (c *testCluster) leads(i int) {
	c.t.Helper()
	c.eventually("a server to lead", func() bool {
		if c.leaderIndex() == i {
			return true
		}
		c.adminAsk(wire.TransferLeader, &msg.TransferLeader{Server: c.serverID(i)})
		return false
	})
}

// beginAt has a server lead, and begins there.
func (c *openCluster) beginAt(i int) {
	c.t.Helper()
	c.eventually("it to begin", func() bool {
		c.leads(i)
		return c.begin(i, true) == nil
	})
}

// plain connects without a certificate.
func (c *openCluster) plain(i int) (*wire.Conn, error) {
	ctx, cancel := context.WithTimeout(c.context(), 10*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, c.addrs[i], &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{Class: wire.ClassMeta})
	if err == nil {
		c.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// authNode does what the command does on the host of a server.
func (c *openCluster) authNode(i int, roles ...pki.Role) {
	c.t.Helper()
	for _, role := range roles {
		j, err := pki.Join(c.context(), pki.JoinRequest{Addrs: c.addrs, Password: []byte(testPassword), Role: role, Node: fmt.Sprint("host", i+1), Cluster: c.cluster})
		if err == nil && j.Opening {
			err = secure.MarkOpening(c.nodes[i])
		}
		if err == nil {
			err = j.Write(c.nodes[i])
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

// change asks the leader as an administrator of a server's host.
func (c *openCluster) change(i int, what msg.ChangeSecurity_What, force bool) fserr.Code {
	c.t.Helper()
	n := secure.New(secure.Options{Credentials: c.load(c.nodes[i], pki.RoleAdmin), Logger: testLogger()})
	var code fserr.Code
	c.eventually("the leader to answer an administrator", func() bool {
		conn, _, err := wire.Dial(c.context(), c.leader().Addr(), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{Network: n})
		if err != nil {
			return false
		}
		defer conn.Close()
		code, err = conn.CallMessage(c.context(), wire.ChangeSecurity, wire.ClassMeta, &msg.ChangeSecurity{What: what, Force: force}, nil)
		return err == nil && code != fserr.NotLeader && code != fserr.Unavailable
	})
	return code
}

func (c *openCluster) keyed(all ...int) {
	c.t.Helper()
	for _, i := range all {
		c.eventually(fmt.Sprintf("server %d to have the cluster key", i+1), func() bool { return c.at(i).keyed() })
	}
}

// propose has something go into the log.
func (c *openCluster) propose(value string) {
	c.t.Helper()
	c.eventually("an event", func() bool {
		l := c.leader().lead.Load()
		return l != nil && l.propose(&event.Event{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: "server.node.cs9", Value: value}}}, "test") == nil
	})
}

// agree waits until all servers have the same state.
func (c *openCluster) agree() {
	c.t.Helper()
	c.eventually("all states to be the same", func() bool {
		first := c.at(0).fsm.clone()
		for i := range c.servers {
			if st := c.at(i).fsm.clone(); st.Index() != first.Index() || st.Sum() != first.Sum() {
				return false
			}
		}
		return true
	})
}

// TestSecureRunningCluster: a cluster without security gets it while it runs; leaders change in between, servers are killed and come back, who has no
// certificate is served until the end and no longer.
func TestSecureRunningCluster(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 3)
	first := c.leaderIndex()
	var err error
	c.eventually("an answer to somebody who cannot write into the directory", func() bool {
		c.leads(first)
		err = c.begin(first, false)
		return !errors.Is(err, fserr.NotLeader) && !errors.Is(err, fserr.Unavailable)
	})
	if !errors.Is(err, fserr.Access) {
		t.Errorf("begun by somebody who cannot write into the directory: %v", err)
	}
	c.leads(first)
	if err := c.begin((first+1)%3, true); !errors.Is(err, fserr.NotLeader) {
		t.Errorf("begun at a server that does not lead: %v", err)
	}
	for range 2 {
		c.beginAt(first)
	}
	c.keyed(first)
	c.leads(first)
	if conn, err := c.plain(first); err != nil {
		t.Errorf("plain while it is being secured: %v", err)
	} else if code := call(t, conn, wire.ChangeSecurity, &msg.ChangeSecurity{What: msg.ChangeSecurity_ABORT}, nil); code != fserr.Denied {
		t.Errorf("given up by nobody: %v", code)
	}
	if code := c.change(first, msg.ChangeSecurity_CLOSE, true); code != fserr.Busy {
		t.Errorf("finished without a majority: %v", code)
	}

	// A leader without the key hands over to one that has it.
	c.kill(first)
	c.propose("without")
	if s := c.leader(); s.keyed() {
		t.Error("a server has the key that nobody gave it")
	}
	c.start(first)
	c.keyed(first)
	c.eventually("the server with the key to lead", func() bool { l := c.leading(); return l != nil && l == c.at(first) })

	second, third := (first+1)%3, (first+2)%3
	c.authNode(second, pki.RoleNode)
	c.authNode(second, pki.RoleAdmin)
	c.keyed(second)
	c.eventually("the first to lead", func() bool { l := c.leading(); return l != nil && l.keyed() })
	if code := c.change(second, msg.ChangeSecurity_CLOSE, false); code != fserr.Busy {
		t.Errorf("finished while a server would be shut out: %v", code)
	}
	c.authNode(third, pki.RoleNode, pki.RoleAdmin)
	c.keyed(third)
	c.kill(second)
	c.start(second)
	c.keyed(second)
	held, err := c.plain(c.leaderIndex())
	if err != nil {
		t.Fatal(err)
	}
	c.eventually("all to be safe", func() bool { return c.change(first, msg.ChangeSecurity_CLOSE, false) == fserr.OK })
	select {
	case <-held.Done():
	case <-time.After(20 * time.Second):
		t.Error("a plain connection is still there")
	}
	for i := range c.servers {
		c.eventually("plain connections to be refused", func() bool {
			_, err := c.plain(i)
			return errors.Is(err, wire.ErrNeedsCertificate)
		})
		c.eventually("the mark to go", func() bool { return !secure.IsOpening(c.nodes[i]) })
	}
	if nc, err := net.Dial("tcp", c.addrs[first]); err == nil { // a word of Raft
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = nc.Write(append([]byte(raftMagic), c.cluster[:]...))
		got := make([]byte, 16)
		if n, _ := nc.Read(got); n == 0 || got[0] != 21 {
			t.Errorf("Raft without a certificate is answered %x", got[:n])
		}
	}
	c.propose("secured")
	for i := range c.servers { // as they would come up on another day
		c.eventually("it to be noted", func() bool {
			d, err := readIdentity(c.options(i).withDefaults().FS, c.dirs[i])
			return err == nil && d.Secured && d.Key
		})
		c.kill(i)
		c.start(i)
		c.propose(fmt.Sprint("restarted", i))
	}
	c.agree()
	if code := c.change(first, msg.ChangeSecurity_ABORT, false); code != fserr.NotSupported {
		t.Errorf("given up when it is done: %v", code)
	}
}

// TestSecureWithoutOne: a metadata server that was off all the time gets its key when its host has got certificates.
func TestSecureWithoutOne(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 3)
	first := c.leaderIndex()
	off, other := (first+1)%3, (first+2)%3
	c.kill(off)
	c.beginAt(first)
	c.keyed(first)
	c.authNode(other, pki.RoleAdmin, pki.RoleNode)
	c.keyed(other)
	c.eventually("the cluster to be secured without it", func() bool { return c.change(first, msg.ChangeSecurity_CLOSE, false) == fserr.OK })
	c.start(off)
	c.propose("without")
	at := c.leader().fsm.index()
	if s := c.at(off); s.keyed() || s.fsm.index() >= at {
		t.Error("a server takes part without a certificate")
	}
	c.authNode(off, pki.RoleNode, pki.RoleAdmin)
	if secure.IsOpening(c.nodes[off]) {
		t.Error("a node that came later takes the cluster for one that is being secured")
	}
	c.keyed(off)
	c.eventually("it to catch up", func() bool { return c.at(off).fsm.index() >= at })
	c.kill(first)
	c.propose("it votes")
}

// TestSecureAborted: what was begun is given up; all go on without security, and it can be begun anew.
func TestSecureAborted(t *testing.T) {
	t.Parallel()
	c := newOpenCluster(t, 3)
	var first int
	for round := range 2 {
		c.eventually("a leader to begin", func() bool {
			first = c.leaderIndex()
			return c.begin(first, true) == nil
		})
		c.keyed(first)
		second := (first + 1) % 3
		c.authNode(second, pki.RoleAdmin, pki.RoleNode)
		c.keyed(second)
		c.eventually("a leader with the key", func() bool { l := c.leading(); return l != nil && l.keyed() })
		if round == 1 {
			break
		}
		off := (first + 2) % 3
		c.kill(off)
		if code := c.change(first, msg.ChangeSecurity_ABORT, false); code != fserr.OK {
			t.Fatal(code)
		}
		c.start(off)
		for i := range c.servers {
			c.eventually("no server to have a key", func() bool {
				d, err := readIdentity(c.options(i).withDefaults().FS, c.dirs[i])
				return err == nil && !d.Key && !d.Secured && c.at(i).creds() == nil && !secure.IsOpening(c.nodes[i]) && !pki.Secured(c.nodes[i])
			})
		}
		c.propose("insecure")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := pki.Join(ctx, pki.JoinRequest{Addrs: c.addrs, Password: []byte(testPassword), Role: pki.RoleNode, Node: "late", Cluster: c.cluster}); err == nil {
			t.Error("a node joins a cluster without security")
		}
		cancel()
		c.kill(first)
		c.start(first)
		c.propose("restarted")
	}
	c.agree()
}
