package storm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/netns"
)

const port = ":2510"

// cluster is one of real processes, each in a network namespace of its own, mounted in the hub.
type cluster struct {
	t       *testing.T
	dir     string
	mount   string
	servers []*server
	chunk   int // of servers, the last ones are chunk servers
}

// server is a metadata server or a chunk server.
type server struct {
	name  string
	verb  string
	dir   string
	space *netns.Space
	cmd   *exec.Cmd // nil: killed
}

func newCluster(t *testing.T, meta, chunk int) *cluster {
	t.Helper()
	netns.Hub(t)
	c := &cluster{t: t, dir: t.TempDir(), chunk: chunk}
	t.Cleanup(c.showLogs)
	for n := range meta + chunk {
		s := &server{name: fmt.Sprint("mds", n+1), verb: "mds", space: netns.New(t, n+1)}
		args := []string{"make-mds", "-a", s.space.Host() + port}
		switch {
		case n == 0:
			args = append(args, "-I", "--insecure")
		case n >= meta:
			s.name, s.verb = fmt.Sprint("cs", n-meta+1), "cs"
			args = []string{"make-cs", "-a", s.space.Host() + port, "-t", "1", "--host", s.name, "--memory", "256MiB"}
		}
		s.dir = filepath.Join(c.dir, s.name)
		t.Cleanup(func() { c.kill(s) }) // before the namespace goes
		c.must(s.space, append(args, "-r", s.dir)...)
		c.start(s)
		c.servers = append(c.servers, s)
		if n == 0 {
			c.wait(60*time.Second, "the first metadata server", func() error { _, err := c.status(); return err })
		}
	}
	c.wait(60*time.Second, "the cluster to be whole", c.healthy)
	c.mount = filepath.Join(c.dir, "mnt")
	if err := os.Mkdir(c.mount, 0o755); err != nil {
		t.Fatal(err)
	}
	c.must(nil, "mount", "-l", filepath.Join(c.dir, "mount.log"), c.mount)
	t.Cleanup(func() {
		if _, err := c.varve(nil, "umount", c.mount); err != nil {
			c.varve(nil, "umount", "--lazy", c.mount)
		}
	})
	c.must(nil, "set-attr", c.mount, "replicas=3:2")
	return c
}

// varve runs the binary under test in a namespace, nil: the hub.
func (c *cluster) varve(s *netns.Space, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), append([]string{"-c", filepath.Join(c.dir, "storm")}, args...)...)
	cmd.WaitDelay = time.Second
	var out []byte
	var err error
	run := func() { out, err = cmd.CombinedOutput() }
	if s == nil {
		run()
	} else {
		s.Do(run)
	}
	return string(out), err
}

func (c *cluster) must(s *netns.Space, args ...string) {
	c.t.Helper()
	if out, err := c.varve(s, args...); err != nil {
		c.t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (c *cluster) start(s *server) {
	c.t.Helper()
	log, err := os.OpenFile(s.dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(os.Getenv(netns.Binary), "-c", filepath.Join(c.dir, "storm"), s.verb, "-r", s.dir)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // its parent is the thread that keeps the namespace
	s.space.Do(func() { err = s.cmd.Start() })
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) kill(s *server) {
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Kill(); err != nil { // it kills stopped ones as well
		c.t.Errorf("kill %s: %v: it ended by itself, see its log", s.name, err)
	}
	_ = s.cmd.Wait() // killed
	s.cmd = nil
}

func (c *cluster) showLogs() {
	if !c.t.Failed() {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log")) // the pattern is sound
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			c.t.Error(err)
			continue
		}
		c.t.Logf("end of %s:\n%s", filepath.Base(path), b[max(0, len(b)-4000):])
	}
}

// wait polls until ok returns nil.
func (c *cluster) wait(limit time.Duration, what string, ok func() error) {
	c.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
	}
}

// status asks the leader.
func (c *cluster) status() (*msg.StatusReply, error) {
	last := errors.New("no metadata server runs")
	for _, s := range c.servers {
		if s.verb != "mds" || s.cmd == nil {
			continue
		}
		var st *msg.StatusReply
		if st, last = statusOf(s.space.Host() + port); last != nil {
			continue
		}
		for _, m := range st.Metas {
			if m.Server == st.Answering && m.State == "leader" {
				return st, nil
			}
		}
		last = fmt.Errorf("%s is not the leader", s.name)
	}
	return nil, last
}

func statusOf(addr string) (*msg.StatusReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, addr, &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	st := new(msg.StatusReply)
	code, err := conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, st)
	if err == nil && code != fserr.OK {
		err = code
	}
	return st, err
}

// healthy reports why the cluster is not whole, or nil.
func (c *cluster) healthy() error {
	st, err := c.status()
	if err != nil {
		return err
	}
	voters, live := 0, 0
	for _, m := range st.Metas {
		if m.State == "leader" || m.State == "follower" {
			voters++
		}
	}
	for _, s := range st.Servers {
		if s.State == "live" {
			live++
		}
	}
	meta := len(c.servers) - c.chunk
	if voters != meta || live != c.chunk || st.Degraded > 0 || st.Joining > 0 || st.Garbage > 0 {
		return fmt.Errorf("%d of %d metadata servers vote, %d of %d chunk servers live, of %d chunks %d degraded and %d joining, %d to be deleted",
			voters, meta, live, c.chunk, st.Chunks, st.Degraded, st.Joining, st.Garbage)
	}
	return nil
}
