package bonds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/ebpf"
	"varve/ebpf/bondsim"
	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/netns"
)

const (
	linkMbit = 40
	look     = 100 * time.Millisecond // at what the links carry
	looks    = 5                      // in a row that must be good
)

// host is a namespace with two links to the other one, and what stands for a bond of them.
type host struct {
	*netns.Space
	addr string
	dir  string // what stands for /proc/net/bonding
	bond *bondsim.Bond
}

func run(t *testing.T, s *netns.Space, line string) {
	t.Helper()
	args := strings.Fields(line)
	var out []byte
	var err error
	s.Do(func() { out, err = exec.Command(args[0], args[1:]...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// join makes two hosts and their links.
func join(t *testing.T) (a, b *host) {
	t.Helper()
	hosts := []*host{{Space: netns.New(t, 1), addr: "10.77.0.1"}, {Space: netns.New(t, 2), addr: "10.77.0.2"}}
	a, b = hosts[0], hosts[1]
	for _, link := range []string{"s0", "s1"} {
		run(t, a.Space, fmt.Sprintf("ip link add %s type veth peer name %s netns %d", link, link, b.Thread()))
	}
	for i, h := range hosts {
		h.dir = t.TempDir()
		other := hosts[1-i]
		for _, line := range []string{
			"ip link set s0 up", "ip link set s1 up",
			fmt.Sprintf("ip link add bond0 address 02:00:00:00:00:0%d type veth peer name void", i+1),
			"ip link set void up", "ip link set bond0 up", // what stands for the bond needs a carrier
			fmt.Sprintf("ip addr add %s/24 dev bond0", h.addr),
			fmt.Sprintf("ip neigh replace %s lladdr 02:00:00:00:00:0%d dev bond0 nud permanent", other.addr, 2-i),
			fmt.Sprintf("tc qdisc add dev s0 root tbf rate %dmbit burst 32kb latency 50ms", linkMbit),
			fmt.Sprintf("tc qdisc add dev s1 root tbf rate %dmbit burst 32kb latency 50ms", linkMbit),
		} {
			run(t, h.Space, line)
		}
	}
	for _, h := range hosts { // when both ends of the links are up
		var err error
		h.Do(func() {
			h.bond, err = bondsim.New("bond0", []string{"s0", "s1"}, bondsim.Options{Policy: ebpf.Layer34, Dir: h.dir})
		})
		if err != nil {
			t.Skipf("no bond: %v", err)
		}
		t.Cleanup(func() {
			if err := h.bond.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return a, b
}

// command is the binary on a host.
func (h *host) command(ctx context.Context, ports string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), args...)
	cmd.Env = append(os.Environ(), "VARVE_BONDING="+h.dir, "VARVE_BOND_PORTS="+ports)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // its parent is the thread that keeps the namespace
	return cmd
}

func (h *host) varve(t *testing.T, args ...string) []byte {
	t.Helper()
	return h.varveWith(t, "", args...)
}

// varveWith is varve with something on its standard input.
func (h *host) varveWith(t *testing.T, stdin string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := h.command(ctx, "", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out []byte
	var err error
	h.Do(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// start starts a server, which dies with the namespace.
func (h *host) start(t *testing.T, dir, kind string) {
	t.Helper()
	log, err := os.Create(dir + ".log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.command(context.WithoutCancel(t.Context()), "", kind, "-r", dir)
	cmd.Stdout, cmd.Stderr = log, log
	h.Do(func() { err = cmd.Start() })
	log.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			text, _ := os.ReadFile(dir + ".log")
			t.Logf("%s:\n%s", kind, text[max(0, len(text)-6000):])
		}
	})
}

// cluster makes one metadata server and one chunk server on a host, and returns how clients name the cluster.
func (h *host) cluster(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "two")
	meta := h.addr + ":2510"
	h.varveWith(t, "a password for two hosts\n", "-c", name, "make-mds", "-I", "-a", meta, "-r", filepath.Join(dir, "mds"), "--node", "two", "--password-fd", "0")
	network, err := secure.FromDir(name)
	if err != nil {
		t.Fatal(err)
	}
	h.start(t, filepath.Join(dir, "mds"), "mds")
	wait := func(what string, ok func(*msg.StatusReply) bool) {
		t.Helper()
		for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			st, err := h.status(network, name, meta)
			if err == nil && ok(st) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v %v", what, st, err)
			}
		}
	}
	wait("no leader", func(st *msg.StatusReply) bool { return st.Leader != "" && st.LeadingMs > 0 })
	cs := filepath.Join(dir, "cs")
	h.varve(t, "-c", name, "make-cs", "-r", cs, "-t", "0", "-a", h.addr+":2511", "--memory", "128M")
	h.start(t, cs, "cs")
	wait("no chunk server", func(st *msg.StatusReply) bool { return len(st.Servers) == 1 && st.Servers[0].State == "live" })
	h.varve(t, "-c", name, "set-config", "replicas=1:1")
	return name
}

func (h *host) status(network wire.Network, dir, addr string) (st *msg.StatusReply, err error) {
	creds, err := pki.LoadCredentials(dir, pki.RoleAdmin)
	if err != nil {
		return nil, err
	}
	cluster := creds.Identity().Cluster
	h.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var conn *wire.Conn
		hello := &msg.Hello{Cluster: cluster[:], Role: msg.Hello_ADMIN}
		if conn, _, err = wire.Dial(ctx, addr, hello, nil, wire.Options{Network: network, Class: wire.ClassMeta}); err != nil {
			return
		}
		defer conn.Close()
		st = new(msg.StatusReply)
		var code fserr.Code
		if code, err = conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, st); err == nil && code != fserr.OK {
			err = code
		}
	})
	return st, err
}

// load is a client under way.
type load struct {
	t    *testing.T
	to   *host // where the data goes
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error
}

// begin starts a client on a host.
func (h *host) begin(t *testing.T, server *host, cluster, kind, ports string, more ...string) *load {
	t.Helper()
	l := &load{t: t, to: server, done: make(chan error, 1)}
	if kind == "read" {
		l.to = h
	}
	if len(more) == 0 {
		more = []string{"--target", "cluster:/"}
	}
	args := append([]string{"-c", cluster, "--json", "perf", "run", "--rw", kind, "--bs", "128k", "--jobs", "1", "--qd", "16", "--size", "8m", "--for", "15m"}, more...)
	l.cmd = h.command(context.WithoutCancel(t.Context()), ports, args...)
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	var err error
	h.Do(func() { err = l.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	go func() { l.done <- l.cmd.Wait() }()
	t.Cleanup(func() { _ = l.cmd.Process.Kill() })
	return l
}

// stop has the client end, as people end one, and waits: it must have had no error until then.
func (l *load) stop() {
	l.t.Helper()
	_ = l.cmd.Process.Signal(unix.SIGINT)
	select {
	case err := <-l.done:
		var res struct {
			Stopped string
			Errors  []json.RawMessage
		}
		at := bytes.IndexByte(l.out.Bytes(), '{')
		if at < 0 {
			l.t.Fatalf("the client: %v\n%s", err, l.out.Bytes())
		}
		if err := json.NewDecoder(bytes.NewReader(l.out.Bytes()[at:])).Decode(&res); err != nil {
			l.t.Fatalf("the client: %v\n%s", err, l.out.Bytes())
		}
		if len(res.Errors) > 0 || res.Stopped != "cancelled" {
			l.t.Errorf("the client: %v, stopped %q, errors %s", err, res.Stopped, res.Errors)
		}
	case <-time.After(60 * time.Second):
		l.t.Fatal("the client does not end")
	}
}

// carried returns what has come by each link so far where the data goes, in bytes.
func (l *load) carried() (out [2]uint64) {
	l.t.Helper()
	links, err := l.to.bond.Links()
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range out {
		out[i] = links[i].ReceivedBytes
	}
	return out
}

// rate measures how much each link carries, in Mbit/s.
func (l *load) rate(d time.Duration) (out [2]float64) {
	before, start := l.carried(), time.Now()
	time.Sleep(d)
	after, took := l.carried(), time.Since(start).Seconds()
	for i := range out {
		out[i] = float64(after[i]-before[i]) * 8 / 1e6 / took
	}
	return out
}

var errLate = errors.New("not in time")

// until waits until the links carry so much in five looks in a row, each of a tenth of a second, and returns how long it took until they did.
func (l *load) until(limit time.Duration, ok func([2]float64) bool) (time.Duration, error) {
	l.t.Helper()
	start := time.Now()
	first, inRow := time.Duration(0), 0
	for {
		at := time.Since(start)
		switch good := ok(l.rate(look)); {
		case !good:
			inRow = 0
		case inRow == 0:
			first, inRow = at, 1
		default:
			inRow++
		}
		if inRow == looks {
			return first, nil
		}
		select {
		case err := <-l.done:
			l.t.Fatalf("the client has ended: %v\n%s", err, l.out.Bytes())
		default:
		}
		if time.Since(start) > limit+looks*look {
			return at, errLate
		}
	}
}
