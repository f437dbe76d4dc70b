package discover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/id"
	"varve/test/netns"
)

// roleEnv says what a process that a test started is to be, in its network namespace.
const roleEnv = "VARVE_DISCOVER_ROLE"

func TestMain(m *testing.M) {
	role, arg, _ := strings.Cut(os.Getenv(roleEnv), " ")
	switch role {
	case "announce", "hostile":
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		var err error
		if role == "announce" {
			err = announceRole(ctx, arg)
		} else {
			err = hostileRole(ctx)
		}
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// announceRole announces a server: NAME UUID ADDR.
func announceRole(ctx context.Context, arg string) error {
	f := strings.Fields(arg)
	cluster, err := id.ParseCluster(f[1])
	if err != nil {
		return err
	}
	return Announce(ctx, Server{Cluster: cluster, Name: f[0], Server: "mds1", Addr: f[2], Logger: slog.Default()})
}

// hostileRole answers each question with packets of all kinds, and with addresses that are of no use.
func hostileRole(ctx context.Context) error {
	all, err := links()
	if err != nil {
		return err
	}
	s, err := openAnswerer(ctx, &all[0], mdnsPort)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, s.close)()
	s.receive(func(p packet) {
		if len(p.data) != len(question()) {
			return
		}
		to := net.UDPAddrFromAddrPort(p.from)
		send := func(b []byte) {
			if p.from.Addr().Unmap().Is4() {
				_, _ = s.v4.WriteTo(b, nil, to)
			} else {
				_, _ = s.v6.WriteTo(b, nil, to)
			}
		}
		for i := range 300 {
			b := make([]byte, 100+i)
			copy(b, p.data)
			b[2] = 0x84 // an answer
			send(b)
		}
		m := fakeServers(40)
		for _, b := range m {
			send(b)
		}
	})
	return nil
}

// fakeServers are those of other clusters, and one of this that is at loopback.
func fakeServers(n int) (out [][]byte) {
	for i := range n {
		name, uuid, at := fmt.Sprint("pond", i), elsewhere, fmt.Sprintf("10.88.2.%d:2510", i+3)
		if i == 0 {
			name, uuid, at = "lake", lake.String(), "127.0.0.1:2510"
		}
		a, err := newAdvert(name, uuid, fmt.Sprint("mds", i+1), netip.MustParseAddrPort(at))
		if err != nil {
			panic(err)
		}
		b, err := a.announcement(timeToLive)
		if err != nil {
			panic(err)
		}
		out = append(out, b)
	}
	return out
}

// start starts a process of a role in a namespace. It ends with the test.
func start(t *testing.T, s *netns.Space, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var err error
	s.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestMDNS runs itself again in a network namespace, with servers in others.
func TestMDNS(t *testing.T) {
	t.Parallel() // in a process of its own
	if os.Getenv(roleEnv) == "" {
		if os.Getuid() != 0 {
			t.Skip("needs root: it makes network namespaces")
		}
		if _, err := exec.LookPath("ip"); err != nil {
			t.Skip("needs ip: ", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMDNS$", "-test.v", "-test.count=1", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), roleEnv+"=hub")
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if errors.Is(err, unix.EPERM) {
			t.Skip("no network namespace: ", err)
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
	o := Options{Name: "lake", UUID: lake, Resolver: (&zone{}).resolver(t), head: time.Nanosecond, Limit: 30 * time.Second}
	find := func() (*Result, Attempt, error) {
		t.Helper()
		begun := time.Now()
		r, err := Find(t.Context(), o)
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("took %v", took)
		}
		return r, r.Tried[2], err
	}
	netns.IP(t, "link set lo up")
	if _, a, err := find(); err == nil || !strings.Contains(a.Why(), "no interface with multicast is up") {
		t.Errorf("without any interface: %v, %s", err, a.Why())
	}
	near, other := netns.New(t, 1), netns.New(t, 2)
	if _, a, err := find(); err == nil || !strings.Contains(a.Why(), "nobody of the cluster answered on h") {
		t.Errorf("without a server: %v, %s", err, a.Why())
	}
	// until repeats a search until it has found just these, or a minute has passed: a process has to start first.
	until := func(what string, want ...string) Attempt {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			r, a, err := find()
			if err == nil && slices.Equal(r.Addrs, want) && r.Way == ByMDNS {
				return a
			}
			if time.Now().After(end) {
				t.Fatalf("%s: found %q, %v; %s", what, r.Addrs, err, a.Why())
			}
		}
	}
	server := start(t, near, "announce lake "+lake.String()+" "+near.Host()+":2510")
	until("one server", near.Host()+":2510")
	o.UUID = id.Cluster{}
	until("with the name alone", near.Host()+":2510")
	o.UUID, o.Name = lake, ""
	until("with the UUID alone", near.Host()+":2510")
	o.Name = "lake"

	start(t, other, "hostile")
	for end := time.Now().Add(time.Minute); ; {
		a := until("beside a hostile one", near.Host()+":2510")
		notes := strings.Join(a.Notes, "; ")
		if strings.Contains(notes, "of another cluster refused") && strings.Contains(notes, "malformed refused") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the hostile server is not noticed: %q", notes)
		}
	}
	if err := server.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("the announcing process: %v", err)
	}
	if r, a, err := find(); err == nil || !strings.Contains(a.Why(), "nobody of the cluster answered") || len(r.Addrs) != 0 {
		t.Errorf("only the hostile server is left: found %q, %v", r.Addrs, err)
	}
}

func TestLink(t *testing.T) {
	l := link{nets: []netip.Prefix{netip.MustParsePrefix("10.88.1.1/24"), netip.MustParsePrefix("fd00::1/64")}}
	for addr, want := range map[string]bool{"10.88.1.77": true, "::ffff:10.88.1.77": true, "10.88.2.1": false, "8.8.8.8": false, "fe80::1%h1": true,
		"fd00::9": true, "fd00:1::9": false, "2001:db8::1": false} {
		if got := l.has(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}
