package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

var varveBinary string // the binary under test

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if path := os.Getenv(holdFile); path != "" {
		return runHolder(path)
	}
	if what := os.Getenv(lockFile); what != "" {
		return runLocker(what)
	}
	if os.Getenv("VARVE_E2E") == "" {
		return m.Run() // every test skips and says why
	}
	dir, err := os.MkdirTemp("", "varve-e2e-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	varveBinary = filepath.Join(dir, "varve")
	build := exec.Command("go", "build", "-o", varveBinary, "varve/cmd/varve")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build varve: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// need skips the test unless it can run here.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("VARVE_E2E") == "" {
		t.Skip("end-to-end tests run with VARVE_E2E=1 (make test)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts filesystems")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse: ", err)
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
}

// soak returns how long kill loops run.
func soak(t *testing.T, usual time.Duration) time.Duration {
	s := os.Getenv("VARVE_SOAK")
	if s == "" {
		return usual
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("VARVE_SOAK=%s: %v", s, err)
	}
	return d
}

// cluster is a `varve dev up --procs` cluster.
type cluster struct {
	t      *testing.T
	dir    string
	mounts []string
	args   []string
	mds    int
	cs     int
}

// up starts a cluster and stops it when the test ends.
func up(t *testing.T, mds, cs, mounts int, replicas string, more ...string) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{t: t, dir: filepath.Join(dir, "data"), mds: mds, cs: cs}
	for i := range mounts {
		c.mounts = append(c.mounts, filepath.Join(dir, fmt.Sprintf("mnt%d", i+1)))
	}
	c.args = []string{"dev", "up", "-d", "--procs", "--dir", c.dir, "--mount", strings.Join(c.mounts, ","),
		"--mds", strconv.Itoa(mds), "--cs", strconv.Itoa(cs), "--replicas", replicas}
	c.args = append(c.args, more...)
	w := wayOf(t)
	c.args = append(c.args, "--transport", w.transport)
	if w.cache {
		c.args = append(c.args, "--cache", filepath.Join(dir, "cache"), "--cachesize", "256")
	}
	t.Logf("transport %s, read cache %t", w.transport, w.cache)
	t.Cleanup(func() {
		c.varve(3*time.Minute, "dev", "down", "--dir", c.dir) // each kind of process may take its time
		if t.Failed() {
			c.keepLogs()
		}
	})
	c.start()
	return c
}

func (c *cluster) start() {
	c.t.Helper()
	begin := time.Now()
	if out, err := c.varve(90*time.Second, c.args...); err != nil {
		c.t.Fatalf("varve %s: %v\n%s", strings.Join(c.args, " "), err, out)
	}
	c.t.Logf("cluster of %d MDS and %d CS mounted in %v", c.mds, c.cs, time.Since(begin).Round(time.Millisecond))
}

// keepLogs shows the end of each process's log.
func (c *cluster) keepLogs() {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "run", "*.log"))
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if keep := os.Getenv("VARVE_KEEP_LOGS"); keep != "" {
			if err := os.MkdirAll(keep, 0o755); err == nil {
				os.WriteFile(filepath.Join(keep, c.t.Name()+"-"+filepath.Base(path)), b, 0o644)
			}
		}
		if len(b) > 3000 {
			b = b[len(b)-3000:]
		}
		c.t.Logf("end of %s:\n%s", filepath.Base(path), b)
	}
}

// varve runs the binary under test and returns what it printed.
func (c *cluster) varve(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, varveBinary, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil {
		return out.String() + stderr.String(), err
	}
	return out.String(), nil
}

// must runs the binary under test and fails the test if that fails.
func (c *cluster) must(limit time.Duration, args ...string) string {
	c.t.Helper()
	out, err := c.varve(limit, args...)
	if err != nil {
		c.t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cluster) name() string { return filepath.Join(c.dir, "cluster") }

// pid of a process such as mds1, cs2, mount1; 0 if it is not running.
func (c *cluster) pid(name string) int {
	b, err := os.ReadFile(filepath.Join(c.dir, "run", name+".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || unix.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

// kill sends SIGKILL to a process of the cluster and returns the pid it had.
func (c *cluster) kill(name string) int {
	c.t.Helper()
	pid := c.pid(name)
	if pid == 0 {
		c.t.Fatalf("%s is not running", name)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		c.t.Fatalf("kill %s (pid %d): %v", name, pid, err)
	}
	return pid
}

// waitRestart waits until a killed process runs again under another pid.
func (c *cluster) waitRestart(name string, old int) {
	c.t.Helper()
	c.wait(time.Minute, name+" to run again", func() error {
		if pid := c.pid(name); pid == 0 || pid == old {
			return errors.New("not running")
		}
		return nil
	})
}

// wait polls until ok returns nil.
func (c *cluster) wait(limit time.Duration, what string, ok func() error) {
	c.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *cluster) metaAddrs() []string {
	b, err := os.ReadFile(filepath.Join(c.name(), "bs.list"))
	if err != nil {
		c.t.Fatal(err)
	}
	var addrs []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			addrs = append(addrs, line)
		}
	}
	return addrs
}

// network is what an administrator's connections to the cluster are made with.
func (c *cluster) network() wire.Network {
	c.t.Helper()
	n, err := secure.FromDir(c.name())
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// uuid returns the cluster's.
func (c *cluster) uuid() id.Cluster {
	c.t.Helper()
	var is struct{ UUID string }
	b, err := os.ReadFile(filepath.Join(c.name(), "cluster.json"))
	if err := errors.Join(err, json.Unmarshal(b, &is)); err != nil {
		c.t.Fatal(err)
	}
	u, err := id.ParseCluster(is.UUID)
	if err != nil {
		c.t.Fatal(err)
	}
	return u
}

// ask sends one administration message to a server.
func (c *cluster) ask(addr string, hello *msg.Hello, t wire.Type, req, reply wire.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	own := c.uuid()
	hello.Cluster = own[:]
	conn, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Class: wire.ClassMeta, Network: c.network()})
	if err != nil {
		return err
	}
	defer conn.Close()
	code, err := conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
	if err == nil && code != fserr.OK {
		err = code
	}
	return err
}

// status asks the leader.
func (c *cluster) status() (*msg.StatusReply, error) {
	var last error = errors.New("no metadata server listed")
	for _, addr := range c.metaAddrs() {
		st := new(msg.StatusReply)
		if last = c.ask(addr, &msg.Hello{Role: msg.Hello_ADMIN}, wire.Status, &msg.Status{}, st); last != nil {
			continue
		}
		if len(st.Servers) > 0 && st.Leader != "" {
			for _, m := range st.Metas {
				if m.Server == st.Answering && m.State == "leader" {
					return st, nil
				}
			}
		}
		last = fmt.Errorf("%s is not the leader", addr)
	}
	return nil, last
}

// healthy reports why the cluster is not whole, or nil.
func (c *cluster) healthy() error {
	st, err := c.status()
	if err != nil {
		return err
	}
	if st.Degraded > 0 || st.Joining > 0 || st.Garbage > 0 {
		return fmt.Errorf("%d of %d chunks degraded, %d joining, %d to be deleted", st.Degraded, st.Chunks, st.Joining, st.Garbage)
	}
	return c.allIn(st)
}

// allLive reports that not all chunk servers are live, or nil. One that a busy machine kept from its heartbeats is not, for a moment.
func (c *cluster) allLive() error {
	st, err := c.status()
	if err != nil {
		return err
	}
	return c.allIn(st)
}

func (c *cluster) allIn(st *msg.StatusReply) error {
	live := 0
	for _, s := range st.Servers {
		if s.State == "live" {
			live++
		}
	}
	if live != c.cs {
		return fmt.Errorf("%d of %d chunk servers live", live, c.cs)
	}
	return nil
}

// leader returns the name (mds1 …) of the leader's process.
func (c *cluster) leader() (string, error) {
	st, err := c.status()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("mds%d", st.Answering), nil
}

// mustLead waits until there is a leader and returns the name of its process.
func (c *cluster) mustLead() (name string) {
	c.t.Helper()
	c.wait(time.Minute, "a leader", func() (err error) {
		name, err = c.leader()
		return err
	})
	return name
}
