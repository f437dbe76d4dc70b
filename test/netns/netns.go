package netns

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a network namespace with one interface, e, whose other end is in the namespace of the test, which forwards between all of
// them. It lives as long as its thread, so that nothing is left of it when the test ends, however it ends.
type Space struct {
	n    int // 1, 2 …
	work chan func()
	tid  int
}

// Hub makes this process' namespace one that forwards.
func Hub(t *testing.T) {
	t.Helper()
	for _, s := range []struct{ name, value string }{
		{"ip_forward", "1"}, {"conf/all/rp_filter", "0"}, {"conf/default/rp_filter", "0"}, // what comes from a server that nothing may reach is not dropped
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+s.name, []byte(s.value), 0); err != nil {
			t.Skipf("no forwarding between network namespaces: %v", err)
		}
	}
	IP(t, "link set lo up")
}

// New makes namespace n and joins it to this one.
func New(t *testing.T, n int) *Space {
	t.Helper()
	s := &Space{n: n, work: make(chan func())}
	ready, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.tid = unix.Gettid()
		ready <- err
		for f := range s.work {
			f()
		}
	}()
	t.Cleanup(func() { close(s.work); <-done })
	if err := <-ready; err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	IP(t, fmt.Sprintf("link add h%d type veth peer name e netns %d", n, s.tid))
	IP(t, fmt.Sprintf("addr add %s/24 dev h%d", s.Gate(), n))
	IP(t, fmt.Sprintf("link set h%d up", n))
	s.IP(t, "link set lo up")
	s.IP(t, fmt.Sprintf("addr add %s/24 dev e", s.Host()))
	s.IP(t, "link set e up")
	s.IP(t, "route add default via "+s.Gate())
	return s
}

// Join gives the namespace another interface, dev, in a network of its own, 10.NET.n.0/24, by which it reaches the others' of that network. It returns its
// address there. The hub's end is named dev and n.
func (s *Space) Join(t *testing.T, dev string, net int) string {
	t.Helper()
	host, gate := fmt.Sprintf("10.%d.%d.2", net, s.n), fmt.Sprintf("10.%d.%d.1", net, s.n)
	IP(t, fmt.Sprintf("link add %s%d type veth peer name %s netns %d", dev, s.n, dev, s.tid))
	IP(t, fmt.Sprintf("addr add %s/24 dev %s%d", gate, dev, s.n))
	IP(t, fmt.Sprintf("link set %s%d up", dev, s.n))
	s.IP(t, fmt.Sprintf("addr add %s/24 dev %s", host, dev))
	s.IP(t, "link set "+dev+" up")
	s.IP(t, fmt.Sprintf("route add 10.%d.0.0/16 via %s dev %s", net, gate, dev))
	return host
}

// Everyone is the network that all namespaces are in.
const Everyone = "10.88.0.0/16"

// Host is the address of what is in the namespace.
func (s *Space) Host() string { return fmt.Sprintf("10.88.%d.2", s.n) }

// Gate is the address of this end, where the clients are.
func (s *Space) Gate() string { return fmt.Sprintf("10.88.%d.1", s.n) }

// Do runs f on the thread of the namespace, so that a process that f starts is in it.
func (s *Space) Do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

// IP runs a command of iproute2 in the namespace.
func (s *Space) IP(t *testing.T, line string) {
	t.Helper()
	s.Do(func() { IP(t, line) })
}

// IP runs a command of iproute2 in the namespace of the calling thread.
func IP(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", line, err, out)
	}
}

// Cut is a way to part a server from the others.
type Cut struct {
	Name string
	Down func(t *testing.T, s *Space)
	Up   func(t *testing.T, s *Space)
}

// Cuts are all of them. The last leaves clients with the server.
var Cuts = []Cut{
	{"cut off from all", // both ways
		func(t *testing.T, s *Space) { IP(t, fmt.Sprintf("link set h%d down", s.n)) },
		func(t *testing.T, s *Space) { IP(t, fmt.Sprintf("link set h%d up", s.n)) }},
	{"deaf", // what it sends arrives, and nothing reaches it
		func(t *testing.T, s *Space) { IP(t, "route add blackhole "+s.Host()+"/32") },
		func(t *testing.T, s *Space) { IP(t, "route del blackhole "+s.Host()+"/32") }},
	{"mute", // it receives, and nothing that it sends arrives
		func(t *testing.T, s *Space) {
			s.IP(t, "route add blackhole "+Everyone)
			s.IP(t, "route add blackhole "+s.Gate()+"/32")
		},
		func(t *testing.T, s *Space) {
			s.IP(t, "route del blackhole "+Everyone)
			s.IP(t, "route del blackhole "+s.Gate()+"/32")
		}},
	{"mute to the other servers", // clients still talk with it
		func(t *testing.T, s *Space) { s.IP(t, "route add blackhole "+Everyone) },
		func(t *testing.T, s *Space) { s.IP(t, "route del blackhole "+Everyone) }},
}

// Binary is set in the process that Again starts: the binary under test.
const Binary = "VARVE_HUB_BINARY"

// Again runs this test again in a process with a network namespace of its own, for limit at most. There Binary is set.
func Again(t *testing.T, limit time.Duration) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "varve")
	if out, err := exec.Command("go", "build", "-o", binary, "varve/cmd/varve").CombinedOutput(); err != nil {
		t.Fatalf("build varve: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout="+limit.String())
	cmd.Env = append(os.Environ(), Binary+"="+binary)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGQUIT) } // says where it hangs; its servers die with it
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	runtime.LockOSThread() // the process would die with the thread that started it, which may end with something else that was locked to it
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	skipped := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		t.Log(lines.Text())
		if strings.Contains(lines.Text(), "--- SKIP") {
			skipped = lines.Text()
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("in the hub's namespace: %v", err)
	} else if skipped != "" {
		t.Skip(skipped)
	}
}

// Thread is the thread that keeps the namespace, as commands name it.
func (s *Space) Thread() int { return s.tid }
