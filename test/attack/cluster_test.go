package attack

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"io"
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
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/test/netns"
)

const (
	password  = "a password for attackers to guess"
	ownNode   = "host" // the node of all servers and of the mount
	metaPort  = ":2510"
	chunkPort = ":2511"
)

// process is one server, or the mount.
type process struct {
	name, addr string // addr: none of a mount
	log        string
	cmd        *exec.Cmd
	space      *netns.Space // nil: the hub
}

// cluster is the victim.
type cluster struct {
	t       *testing.T
	dir     string // the cluster directory
	uuid    id.Cluster
	secrets *pki.Secrets // of its metadata servers, from which what an attacker might have got hold of is made
	meta    *process
	servers []*process // metadata servers and chunk servers
	mounted *process
	others  []*process   // what else of varve listens
	quiet   *netns.Space // where a machine is that is to join
	mnt     string
	admin   wire.Network
}

// varve runs a command in a namespace, nil: the hub's.
func varve(t *testing.T, s *netns.Space, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out []byte
	var err error
	do(s, func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func do(s *netns.Space, f func()) {
	if s == nil {
		f()
		return
	}
	s.Do(f)
}

// start starts a process that dies with its namespace, or with the test.
func start(t *testing.T, s *netns.Space, name, addr, log string, args ...string) *process {
	t.Helper()
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &process{name: name, addr: addr, log: log, space: s, cmd: exec.Command(os.Getenv(netns.Binary), args...)}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if s != nil {
		p.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // its parent is the thread that keeps the namespace
	}
	do(s, func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // killed
		if t.Failed() {
			if b, err := os.ReadFile(log); err == nil {
				t.Logf("end of the log of %s:\n%s", name, b[max(0, len(b)-3000):])
			}
		}
	})
	return p
}

// up starts a cluster: a metadata server in namespace 1, chunk servers in those that follow, and a mount in the hub.
func up(t *testing.T, chunkServers int) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{t: t, dir: filepath.Join(dir, "prey"), mnt: filepath.Join(dir, "mnt")}
	s := netns.New(t, 1)
	at := filepath.Join(dir, "mds1")
	found(t, s, c.dir, at, s.Host()+metaPort)
	c.open(at)
	c.meta = start(t, s, "mds1", s.Host()+metaPort, at+".log", "-c", c.dir, "mds", "-r", at)
	c.servers = append(c.servers, c.meta)
	creds, err := pki.LoadCredentials(c.dir, pki.RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	c.admin = secure.New(secure.Options{Credentials: creds})
	c.await("a leader", func(st *msg.StatusReply) bool { return st.LeadingMs > 0 })
	for n := range chunkServers {
		s := netns.New(t, n+2)
		name := fmt.Sprint("cs", n+1)
		at := filepath.Join(dir, name)
		varve(t, s, "", "-c", c.dir, "make-cs", "-r", at, "-t", "0", "-a", s.Host()+chunkPort, "--memory", "128M")
		c.servers = append(c.servers, start(t, s, name, s.Host()+chunkPort, at+".log", "-c", c.dir, "cs", "-r", at))
	}
	c.await("chunk servers", func(st *msg.StatusReply) bool { return live(st) == chunkServers })
	if err := os.Mkdir(c.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := []string{"-c", c.dir, "mount", "-f", c.mnt}
	if os.Getenv("VARVE_ATTACK_DATA_TLS") != "" {
		mount = append(mount, "-o", "local=off,data-tls=on")
	}
	c.mounted = start(t, nil, "mount", "", c.mnt+".log", mount...)
	t.Cleanup(func() { _ = unix.Unmount(c.mnt, unix.MNT_DETACH) }) // before the process is killed, or it is none any more
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var st unix.Statfs_t
		if err := unix.Statfs(c.mnt, &st); err == nil && st.Type == unix.FUSE_SUPER_MAGIC {
			break
		}
		if time.Now().After(end) {
			t.Fatal("not mounted")
		}
	}
	return c
}

// found makes the first metadata server of a cluster with security.
func found(t *testing.T, s *netns.Space, cluster, dir, addr string) {
	t.Helper()
	varve(t, s, password+"\n", "-c", cluster, "make-mds", "-I", "-a", addr, "-r", dir, "--node", ownNode, "--password-fd", "0")
}

// open opens the secrets of a metadata server that has not run yet.
func (c *cluster) open(dir string) {
	c.t.Helper()
	var batch event.Batch
	b, err := os.ReadFile(filepath.Join(dir, "founding"))
	if err == nil {
		err = batch.UnmarshalVT(b)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	if b, err = os.ReadFile(filepath.Join(dir, "cluster.key")); err != nil {
		c.t.Fatal(err)
	}
	key, err := pki.DecodeClusterKey(b)
	if err != nil {
		c.t.Fatal(err)
	}
	creds, err := pki.LoadCredentials(c.dir, pki.RoleNode)
	if err != nil {
		c.t.Fatal(err)
	}
	c.uuid = creds.Identity().Cluster
	for _, ev := range batch.Events {
		if set := ev.GetSecuritySet(); set != nil {
			if c.secrets, err = pki.Unseal(set.Sealed, key, c.uuid, set.Version); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	if c.secrets == nil {
		c.t.Fatal("a cluster without secrets")
	}
}

// status asks the metadata server as an administrator.
func (c *cluster) status() (*msg.StatusReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, c.meta.addr, &msg.Hello{Cluster: c.uuid[:], Role: msg.Hello_ADMIN}, nil, wire.Options{Network: c.admin, Class: wire.ClassMeta})
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

func live(st *msg.StatusReply) (n int) {
	for _, s := range st.Servers {
		if s.State == "live" {
			n++
		}
	}
	return n
}

func (c *cluster) await(what string, there func(*msg.StatusReply) bool) {
	c.t.Helper()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		st, err := c.status()
		if err == nil && there(st) {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("no %s: %v %v", what, st, err)
		}
	}
}

// issue makes a certificate as an authority does, for who and from when to when.
func issue(t *testing.T, a *pki.Authority, who pki.Identity, from, until time.Time) tls.Certificate {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := a.Issue(pub, who, from, until)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// use is what a process takes up.
type use struct {
	resident int64 // bytes
	files    int
	threads  int
	log      int64 // bytes
}

func (p *process) use() (u use, err error) {
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	b, err := os.ReadFile(dir + "status")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		n, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		switch name {
		case "RssAnon": // without the arena's and files' pages, which guests fill
			kib, err := strconv.ParseInt(n, 10, 64)
			if err != nil {
				return u, err
			}
			u.resident = kib << 10
		case "Threads":
			if u.threads, err = strconv.Atoi(n); err != nil {
				return u, err
			}
		}
	}
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		return u, err
	}
	u.files = len(files)
	st, err := os.Stat(p.log)
	if err != nil {
		return u, err
	}
	u.log = st.Size()
	return u, nil
}

// logged reports whether the log has one of the words, from a position on.
func (p *process) logged(from int64, words ...string) bool {
	f, err := os.Open(p.log)
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, from, 1<<20))
	if err != nil {
		return false
	}
	for _, w := range words {
		if strings.Contains(string(b), w) {
			return true
		}
	}
	return false
}
