package lin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/client"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds"
	"varve/test/netns"
)

const (
	port        = ":2510"
	settle      = 1500 * time.Millisecond // between two troubles, so that operations succeed too
	enoughLimit = time.Minute             // after the troubles, for the history to say enough
	longest     = 7 * time.Second         // of a stop or a cut: longer than the cache lease
)

// real is a cluster of processes, each in a network namespace of its own.
type real struct {
	t       *testing.T
	dir     string
	cluster id.Cluster
	servers []*process
}

// process is a metadata server.
type process struct {
	space *netns.Space
	dir   string
	addr  string
	cmd   *exec.Cmd // nil: killed
}

func (c *real) varve(s *netns.Space, args ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), append([]string{"-c", filepath.Join(c.dir, "lin")}, args...)...)
	var out []byte
	var err error
	s.Do(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		c.t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func newReal(t *testing.T) *real {
	t.Helper()
	netns.Hub(t)
	c := &real{t: t, dir: t.TempDir()}
	t.Cleanup(c.keepLogs)
	for n := 1; n <= 3; n++ {
		s := netns.New(t, n)
		p := &process{space: s, dir: filepath.Join(c.dir, fmt.Sprint("mds", n)), addr: s.Host() + port}
		t.Cleanup(func() { c.kill(p) }) // before the namespace goes
		first := []string{"make-mds", "-a", p.addr, "-r", p.dir}
		if n == 1 {
			first = append(first, "-I", "--insecure")
		}
		c.varve(s, first...)
		c.servers = append(c.servers, p)
		c.start(p)
		if n == 1 {
			c.waitLeader(1)
		}
	}
	r, err := mds.ReadResident(c.servers[0].dir)
	if err != nil {
		t.Fatal(err)
	}
	c.cluster = r.Cluster
	c.waitLeader(len(c.servers))
	return c
}

func (c *real) start(p *process) {
	c.t.Helper()
	log, err := os.OpenFile(p.dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(os.Getenv(netns.Binary), "mds", "-r", p.dir)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // its parent is the thread that keeps the namespace
	p.space.Do(func() { err = p.cmd.Start() })
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *real) kill(p *process) {
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Kill(); err != nil { // it kills stopped ones as well
		c.t.Errorf("kill the server in %s: %v: it ended by itself, see its log", p.dir, err)
	}
	_ = p.cmd.Wait() // killed
	p.cmd = nil
}

// keepLogs puts the servers' logs beside the evidence.
func (c *real) keepLogs() {
	if !c.t.Failed() {
		return
	}
	dir := evidence(c.t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Error(err)
	}
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log")) // the pattern is sound
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o644)
		}
		if err != nil {
			c.t.Error(err)
		}
	}
	c.t.Logf("the servers' logs are in %s", dir)
}

// status is what a server says of itself and the others.
func (c *real) status(p *process) (*msg.StatusReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	conn, _, err := wire.Dial(ctx, p.addr, &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	st := new(msg.StatusReply)
	code, err := conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, st)
	return st, errors.Join(err, code.Err())
}

// leader returns who says that it leads, or nil, and how many voters it has.
func (c *real) leader() (*process, int) {
	for _, p := range c.servers {
		st, err := c.status(p)
		if err != nil {
			continue
		}
		voters, leads := 0, false
		for _, m := range st.Metas {
			if m.Voter {
				voters++
			}
			leads = leads || m.Server == st.Answering && m.State == "leader"
		}
		if leads {
			return p, voters
		}
	}
	return nil, 0
}

func (c *real) waitLeader(voters int) *process {
	c.t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if p, n := c.leader(); p != nil && n >= voters {
			return p
		}
	}
	c.t.Fatalf("no leader of %d voters in a minute", voters)
	return nil
}

// victim is the leader, or another server.
func (c *real) victim(leader bool) *process {
	p, _ := c.leader()
	if p != nil && leader {
		return p
	}
	for {
		if q := c.servers[rand.IntN(len(c.servers))]; q != p {
			return q
		}
	}
}

// trouble happens to one server and is over when do returns.
type trouble struct {
	name   string
	leader bool
	do     func(c *real, p *process)
}

func killed(c *real, p *process) {
	c.kill(p)
	time.Sleep(rand.N(500 * time.Millisecond))
	c.start(p)
}

func stopped(d time.Duration) func(c *real, p *process) {
	return func(c *real, p *process) {
		for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
			if err := p.cmd.Process.Signal(sig); err != nil {
				c.t.Errorf("%v to the server in %s: %v", sig, p.dir, err)
			}
			if sig == unix.SIGSTOP {
				time.Sleep(d)
			}
		}
	}
}

func parted(x netns.Cut, d time.Duration) func(c *real, p *process) {
	return func(c *real, p *process) {
		x.Down(c.t, p.space)
		time.Sleep(d)
		x.Up(c.t, p.space)
	}
}

// short is longer than an election takes and a read lease lasts.
func short() time.Duration { return time.Second + rand.N(time.Second) }

// plan is every trouble once, in random order.
func plan() []trouble {
	all := []trouble{
		{"leader killed", true, killed}, {"another killed", false, killed},
		{"leader stopped", true, stopped(short())}, {"leader stopped for long", true, stopped(longest)}, {"another stopped", false, stopped(short())},
	}
	for i, x := range netns.Cuts {
		all = append(all, trouble{"leader " + x.Name, true, parted(x, short())})
		if i == rand.IntN(len(netns.Cuts)) {
			all = append(all, trouble{"another " + x.Name, false, parted(x, short())})
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// plague runs the workload while all troubles of a plan happen, and again until d has passed, and checks the history.
func (c *real) plague(t *testing.T, clients []*client.Client, first []trouble, d time.Duration) {
	t.Helper()
	c.t = t
	var addrs []string
	for _, p := range c.servers {
		addrs = append(addrs, p.addr)
	}
	r := &Run{Setup: clients[0], Clients: clients[1:], Workers: 3, Servers: addrs, Cluster: c.cluster, Pause: 6 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- r.Do(ctx, 24*time.Hour) })
	defer func() { cancel(); wg.Wait() }()
	counts := make(map[string]int)
	for end, due := time.Now().Add(d), first; len(due) > 0; {
		time.Sleep(settle)
		if len(done) > 0 || t.Failed() {
			break
		}
		x := due[0]
		p := c.victim(x.leader)
		began := time.Now()
		x.do(c, p)
		counts[x.name]++
		t.Logf("%s (%s) for %v", x.name, filepath.Base(p.dir), time.Since(began).Round(10*time.Millisecond))
		if due = due[1:]; len(due) == 0 && time.Now().Before(end) {
			due = plan()
		}
	}
	time.Sleep(settle)
	c.waitLeader(len(c.servers))
	for end := time.Now().Add(enoughLimit); len(done) == 0 && !r.Says(1000, 100) && time.Now().Before(end); {
		time.Sleep(settle)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("%s; %v", r.Summary(), counts)
	if err := r.Check(evidence(t)); err != nil {
		t.Error(err)
	}
	if !r.Says(1000, 100) {
		t.Errorf("a history of %s says little", r.Summary())
	}
	if changed, ok := stale(r.history); !ok {
		t.Error("no read in this history can be made a stale one")
	} else if err := check(changed, t.TempDir()); err == nil {
		t.Error("a history with a read that nothing explains was accepted")
	}
}

// TestProcesses kills, stops and cuts off real servers, the leader most often.
func TestProcesses(t *testing.T) {
	if os.Getenv("VARVE_E2E") == "" {
		t.Skip("end-to-end tests run with VARVE_E2E=1 (make e2e)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("the command ip is missing (iproute2)")
	}
	if os.Getenv(netns.Binary) == "" {
		netns.Again(t, soak(t, 0)+15*time.Minute)
		return
	}
	c := newReal(t)
	var addrs []string
	for _, p := range c.servers {
		addrs = append(addrs, p.addr)
	}
	t.Run("cached", func(t *testing.T) {
		c.plague(t, dial(t, c.cluster, addrs, 4, nil), plan(), soak(t, 0))
	})
	t.Run("uncached", func(t *testing.T) {
		apart := netns.Cuts[len(netns.Cuts)-1]
		c.plague(t, dial(t, c.cluster, addrs, 4, func(_ int, o *client.Options) { o.NoCache = true }), []trouble{
			{"leader killed", true, killed}, {"leader stopped", true, stopped(short())}, {"leader " + apart.Name, true, parted(apart, short())}}, 0)
	})
	c.t = t
}
