package lin

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// space is a network namespace with one interface, e, whose other end is in the namespace of the test, which forwards between all of
// them. It lives as long as its thread, so that nothing is left of it when the test ends, however it ends.
type space struct {
	n    int // 1, 2 …
	work chan func()
	tid  int
}

// hub makes this process' namespace one that forwards.
func hub(t *testing.T) {
	t.Helper()
	for _, s := range []struct{ name, value string }{
		{"ip_forward", "1"}, {"conf/all/rp_filter", "0"}, {"conf/default/rp_filter", "0"}, // what comes from a server that nothing may reach is not dropped
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+s.name, []byte(s.value), 0); err != nil {
			t.Skipf("no forwarding between network namespaces: %v", err)
		}
	}
	ip(t, "link set lo up")
}

// newSpace makes namespace n and joins it to this one.
func newSpace(t *testing.T, n int) *space {
	t.Helper()
	s := &space{n: n, work: make(chan func())}
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
	ip(t, fmt.Sprintf("link add h%d type veth peer name e netns %d", n, s.tid))
	ip(t, fmt.Sprintf("addr add %s/24 dev h%d", s.gate(), n))
	ip(t, fmt.Sprintf("link set h%d up", n))
	s.ip(t, "link set lo up")
	s.ip(t, fmt.Sprintf("addr add %s/24 dev e", s.host()))
	s.ip(t, "link set e up")
	s.ip(t, "route add default via "+s.gate())
	return s
}

const everyone = "10.88.0.0/16"

func (s *space) host() string { return fmt.Sprintf("10.88.%d.2", s.n) }
func (s *space) gate() string { return fmt.Sprintf("10.88.%d.1", s.n) } // this end, where the clients are

// do runs f on the thread of the namespace, so that a process that f starts is in it.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

func (s *space) ip(t *testing.T, line string) {
	t.Helper()
	s.do(func() { ip(t, line) })
}

// ip runs a command of iproute2 in the namespace of the calling thread.
func ip(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", line, err, out)
	}
}

// cut is a way to part a server from the others.
type cut struct {
	name string
	down func(t *testing.T, s *space)
	up   func(t *testing.T, s *space)
}

var cuts = []cut{
	{"cut off from all", // both ways
		func(t *testing.T, s *space) { ip(t, fmt.Sprintf("link set h%d down", s.n)) },
		func(t *testing.T, s *space) { ip(t, fmt.Sprintf("link set h%d up", s.n)) }},
	{"deaf", // what it sends arrives, and nothing reaches it
		func(t *testing.T, s *space) { ip(t, "route add blackhole "+s.host()+"/32") },
		func(t *testing.T, s *space) { ip(t, "route del blackhole "+s.host()+"/32") }},
	{"mute", // it receives, and nothing that it sends arrives
		func(t *testing.T, s *space) {
			s.ip(t, "route add blackhole "+everyone)
			s.ip(t, "route add blackhole "+s.gate()+"/32")
		},
		func(t *testing.T, s *space) {
			s.ip(t, "route del blackhole "+everyone)
			s.ip(t, "route del blackhole "+s.gate()+"/32")
		}},
	{"mute to the other servers", // clients still talk with it
		func(t *testing.T, s *space) { s.ip(t, "route add blackhole "+everyone) },
		func(t *testing.T, s *space) { s.ip(t, "route del blackhole "+everyone) }},
}
