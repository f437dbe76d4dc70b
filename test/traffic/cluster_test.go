package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	hosttraffic "varve/internal/traffic"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/netns"
)

// cluster is one metadata server, in the first namespace, and chunk servers, in one each.
type cluster struct {
	t      *testing.T
	dir    string
	path   string // what -c names
	meta   string
	spaces []*netns.Space // of chunk servers
	mds    *netns.Space
	procs  map[string]*exec.Cmd

	credential *syscall.Credential // of servers that are started from now on
}

// begin runs the test again in a hub's namespace, and returns false here; there it returns true.
func begin(t *testing.T, limit time.Duration) bool {
	t.Helper()
	if os.Getenv(netns.Binary) != "" {
		netns.Hub(t)
		return true
	}
	if os.Getenv("VARVE_E2E") == "" {
		t.Skip("end-to-end tests run with VARVE_E2E=1 (make test)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if _, err := exec.LookPath("tc"); err != nil {
		t.Skip("needs tc: ", err)
	}
	t.Parallel() // here it only waits for the other process
	netns.Again(t, limit)
	return false
}

// soak is how long the long form of a test is to take, 0 for the short form.
func soak(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("VARVE_TRAFFIC")
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("VARVE_TRAFFIC: %v", err)
	}
	return d
}

// newCluster makes one with n chunk servers. each may give a chunk server's namespace more interfaces; what it returns is added to make-cs.
func newCluster(t *testing.T, n int, each func(n int, s *netns.Space) []string) *cluster {
	t.Helper()
	return newClusterAt(t, n, nil, each)
}

// newClusterAt is newCluster with more for the metadata server's namespace and make-mds too.
func newClusterAt(t *testing.T, n int, meta func(s *netns.Space) []string, each func(n int, s *netns.Space) []string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), procs: map[string]*exec.Cmd{}}
	c.path = filepath.Join(c.dir, "traffic")
	c.mds = netns.New(t, 1)
	c.meta = c.mds.Host() + ":2510"
	args := []string{"make-mds", "-I", "--insecure", "-a", c.meta, "-r", filepath.Join(c.dir, "mds1")}
	if meta != nil {
		args = append(args, meta(c.mds)...)
	}
	c.varve(c.mds, args...)
	c.start(c.mds, "mds", 1)
	c.eventually("a leader", time.Minute, func() bool {
		st, err := c.status()
		return err == nil && st.Leader != "" && st.LeadingMs > 0
	})
	for i := range n {
		s := netns.New(t, i+2)
		c.spaces = append(c.spaces, s)
		args := []string{"make-cs", "-r", filepath.Join(c.dir, fmt.Sprint("cs", i+1)), "-t", "0", "-a", s.Host() + ":2511", "--host", fmt.Sprint("h", i+1), "--memory", "192M"}
		if each != nil {
			args = append(args, each(i+1, s)...)
		}
		c.varve(s, args...)
		c.start(s, "cs", i+1)
	}
	c.eventually("live chunk servers", 90*time.Second, func() bool { return c.live() == n })
	return c
}

// varve runs the command in a namespace and returns what it prints.
func (c *cluster) varve(s *netns.Space, args ...string) string {
	c.t.Helper()
	out, err := c.try(s, args...)
	if err != nil {
		c.t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cluster) try(s *netns.Space, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), append([]string{"-c", c.path}, args...)...)
	var out []byte
	var err error
	s.Do(func() { out, err = cmd.CombinedOutput() })
	return string(out), err
}

// start starts a server in its namespace; it dies with that.
func (c *cluster) start(s *netns.Space, kind string, n int) {
	c.t.Helper()
	name := fmt.Sprint(kind, n)
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(os.Getenv(netns.Binary), kind, "-r", filepath.Join(c.dir, name))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Credential: c.credential} // its parent is the thread that keeps the namespace
	s.Do(func() { err = cmd.Start() })
	if err != nil {
		c.t.Fatal(err)
	}
	if c.procs[name] == nil {
		c.t.Cleanup(func() { c.kill(name) })
	}
	c.procs[name] = cmd
}

func (c *cluster) kill(name string) {
	if p := c.procs[name]; p.ProcessState == nil {
		_ = p.Process.Kill()
		_ = p.Wait() // killed
	}
}

// log returns the lines of a server's log with a text.
func (c *cluster) log(name, text string) (out []string) {
	b, err := os.ReadFile(filepath.Join(c.dir, name+".log"))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, text) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

func (c *cluster) status() (*msg.StatusReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, c.meta, &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
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

// live returns how many chunk servers are.
func (c *cluster) live() (n int) {
	st, err := c.status()
	if err != nil {
		return 0
	}
	for _, s := range st.Servers {
		if s.State == "live" {
			n++
		}
	}
	return n
}

func (c *cluster) eventually(what string, limit time.Duration, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("waited %v in vain for %s", limit, what)
		}
	}
}

// set changes a setting.
func (c *cluster) set(key, value string) {
	c.t.Helper()
	c.varve(c.mds, "set-config", key+"="+value)
}

// dial makes a client in the hub.
func (c *cluster) dial(relay client.Relay) *client.Client {
	c.t.Helper()
	st, err := c.status()
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	cl, err := client.Dial(ctx, client.Options{
		Cluster: id.Cluster(st.Cluster), Addrs: []string{c.meta}, Relay: relay, NoLocal: true, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// dialOne is dial after the default of replicas was set to one.
func (c *cluster) dialOne() *client.Client {
	c.t.Helper()
	c.set("replicas", "1:1")
	return c.dial(client.RelayNever)
}

// create makes a file.
func (c *cluster) create(cl *client.Client, name string) *client.File {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	_, f, err := cl.Create(ctx, &msg.Cred{}, &msg.Create{Parent: uint64(id.Root), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

// write writes n bytes in sequence, 1 MiB at a time.
func (c *cluster) write(f *client.File, off int64, n int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i*7 + i>>9)
	}
	for n > 0 {
		k := min(n, len(b))
		if _, _, err := f.WriteAt(ctx, b[:k], off, false); err != nil {
			c.t.Fatalf("write at %d: %v", off, err)
		}
		off, n = off+int64(k), n-k
	}
	if err := f.Fsync(ctx, false); err != nil {
		c.t.Fatal(err)
	}
}

// host returns what was seen in a namespace.
func (c *cluster) host(s *netns.Space) *hosttraffic.Snapshot {
	c.t.Helper()
	out := new(hosttraffic.Snapshot)
	text := c.varve(s, "net", "--json")
	if err := json.Unmarshal([]byte(text), out); err != nil {
		c.t.Fatalf("%v: %s", err, text)
	}
	return out
}

// bytes returns what a class has sent or received through an interface.
func bytes(s *hosttraffic.Snapshot, dev, class string, out bool) (n hosttraffic.Traffic) {
	for _, i := range s.Interfaces {
		for _, k := range i.Counts {
			if i.Name == dev && k.Class == class && k.Out == out {
				n = k.Traffic
			}
		}
	}
	return n
}

// tc runs a command of iproute2's tc in the namespace of the calling thread.
func tc(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("tc", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Skipf("tc %s: %v: %s", line, err, out)
	}
}
