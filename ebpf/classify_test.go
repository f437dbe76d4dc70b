package ebpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace of its own: a thread that left the others'. It is gone, and its interfaces with it, when the
// thread has ended, whatever happened to the test.
type space struct {
	tid  int
	work chan func()
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{work: make(chan func())}
	ready := make(chan error)
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.tid = unix.Gettid()
		ready <- err
		if err != nil {
			return
		}
		for f := range s.work {
			f()
		}
	})
	if err := <-ready; err != nil {
		done.Wait()
		t.Skipf("no network namespace: %v", err)
	}
	t.Cleanup(func() { close(s.work); done.Wait() })
	return s
}

// do runs f on the thread of the namespace and waits for it.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

// run runs a command in the namespace.
func (s *space) run(t *testing.T, line string) string {
	t.Helper()
	var out []byte
	var err error
	args := strings.Fields(line)
	s.do(func() { out, err = exec.Command(args[0], args[1:]...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// pair is two namespaces joined by a pair of interfaces, v0 and v1, with 10.99.0.1 and .2, fd99::1 and ::2.
func pair(t *testing.T) (a, b *space) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: no network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("the command ip is missing (iproute2)")
	}
	a, b = newSpace(t), newSpace(t)
	a.run(t, fmt.Sprintf("ip link add v0 type veth peer name v1 netns %d", b.tid))
	for i, s := range []*space{a, b} {
		s.run(t, fmt.Sprintf("ip addr add 10.99.0.%d/24 dev v%d", i+1, i))
		s.run(t, fmt.Sprintf("ip addr add fd99::%d/64 dev v%d nodad", i+1, i))
		s.run(t, fmt.Sprintf("ip link set v%d up", i))
	}
	return a, b
}

// send sends n bytes from a to a server in b, and the server answers with its own half.
func send(t *testing.T, a, b *space, addr string, n int) {
	t.Helper()
	var l net.Listener
	var err error
	b.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var server sync.WaitGroup
	server.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if got, err := io.Copy(io.Discard, c); err != nil || got != int64(n) {
			t.Errorf("server: %d bytes, %v", got, err)
		}
		if _, err := c.Write(make([]byte, n/2)); err != nil {
			t.Error(err)
		}
	})
	var c net.Conn
	a.do(func() { c, err = net.Dial("tcp", addr) })
	if err != nil {
		l.Close()
		server.Wait()
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Error(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.Copy(io.Discard, c); err != nil || got != int64(n/2) {
		t.Errorf("client: %d bytes, %v", got, err)
	}
	server.Wait()
}

func attach(t *testing.T, s *space, dev string, o Options) *Classifier {
	t.Helper()
	var c *Classifier
	var err error
	s.do(func() { c, err = Attach(dev, o) })
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestClassifierCounts(t *testing.T) {
	a, b := pair(t)
	o := Options{Ports: map[uint16]Class{2510: 1, 2511: 11}}
	client, server := attach(t, a, "v0", o), attach(t, b, "v1", o)

	const mib = 1 << 20
	send(t, a, b, "10.99.0.2:2510", 4*mib)
	send(t, a, b, "[fd99::2]:2511", 2*mib)
	send(t, a, b, "10.99.0.2:2600", mib)

	var at, peer map[Key]Count
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the last acknowledgements may be on their way between the two
		var err error
		if at, err = client.Counters(); err != nil {
			t.Fatal(err)
		}
		if peer, err = server.Counters(); err != nil {
			t.Fatal(err)
		}
		same := true
		for _, class := range []Class{1, 11} {
			same = same && at[Key{class, Egress}] == peer[Key{class, Ingress}] && at[Key{class, Ingress}] == peer[Key{class, Egress}]
		}
		if same || time.Now().After(end) {
			break
		}
	}
	for class, sent := range map[Class]uint64{1: 4 * mib, 11: 2 * mib, 0: mib} {
		for key, payload := range map[Key]uint64{{class, Egress}: sent, {class, Ingress}: sent / 2} {
			got := at[key]
			// Headers of 66 or 86 bytes on 1448 or 1428 bytes of payload are 4.6 % and 6 %; acknowledgements come on top.
			if got.Bytes < payload || got.Bytes > payload*5/4+64<<10 {
				t.Errorf("class %d %s: %d bytes for a payload of %d", class, key.Direction, got.Bytes, payload)
			}
			if got.Packets < payload/1448 || got.Bytes/got.Packets > 1514 {
				t.Errorf("class %d %s: %d packets of %d bytes on an MTU of 1500", class, key.Direction, got.Packets, got.Bytes)
			}
			if class == 0 {
				continue // the kernel's own packets are of this class, and come at any time
			}
			if p := peer[Key{class, 1 - key.Direction}]; p != got {
				t.Errorf("class %d %s: %+v here, %+v at the peer", class, key.Direction, got, p)
			}
		}
	}
}

func TestClassifierSetsPriority(t *testing.T) {
	if _, err := exec.LookPath("tc"); err != nil {
		t.Skip("the command tc is missing (iproute2)")
	}
	a, b := pair(t)
	a.run(t, "tc qdisc add dev v0 root handle 1: htb default 1")
	for _, class := range []string{"1", "a", "b"} {
		a.run(t, "tc class add dev v0 parent 1: classid 1:"+class+" htb rate 1gbit quantum 60000")
	}
	attach(t, a, "v0", Options{
		Ports:    map[uint16]Class{2510: 1, 2511: 2, 2512: 3},
		Priority: map[Class]uint32{1: 1<<16 | 0xa, 2: 1<<16 | 0xb},
	})
	send(t, a, b, "10.99.0.2:2510", 1<<20)
	send(t, a, b, "10.99.0.2:2511", 2<<20)
	send(t, a, b, "10.99.0.2:2512", 4<<20) // has no priority: the default class

	out := a.run(t, "tc -s class show dev v0")
	classes := regexp.MustCompile(`class htb (\S+) .*\n\s*Sent (\d+) bytes`).FindAllStringSubmatch(out, -1)
	want := map[string]uint64{"1:a": 1 << 20, "1:b": 2 << 20, "1:1": 4 << 20}
	for _, c := range classes {
		got, err := strconv.ParseUint(c[2], 10, 64)
		if n, ok := want[c[1]]; err != nil || !ok || got < n || got > n*5/4+64<<10 {
			t.Errorf("class %s: %d bytes, want %d and headers", c[1], got, n)
		}
		delete(want, c[1])
	}
	if len(want) > 0 {
		t.Errorf("classes %v are missing in %s", want, out)
	}
}

func TestCloseTakesOff(t *testing.T) {
	a, b := pair(t)
	o := Options{Ports: map[uint16]Class{2510: 1}}
	first := attach(t, a, "v0", o)
	second := attach(t, a, "v0", o) // both count
	send(t, a, b, "10.99.0.2:2510", 1<<20)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Counters(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("counters of a closed classifier: %v", err)
	}
	send(t, a, b, "10.99.0.2:2510", 1<<20)
	got, err := second.Counters()
	if err != nil || got[Key{1, Egress}].Bytes < 2<<20 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAttachRefuses(t *testing.T) {
	for _, o := range []Options{
		{Ports: map[uint16]Class{1: MaxClasses}},
		{Priority: map[Class]uint32{MaxClasses: 1}},
		{Ports: func() map[uint16]Class {
			m := map[uint16]Class{}
			for p := range uint16(MaxPorts + 1) {
				m[p] = 1
			}
			return m
		}()},
	} {
		if _, err := Attach("lo", o); err == nil || errors.Is(err, ErrNotSupported) {
			t.Errorf("%v", err)
		}
	}
	if _, err := Attach("varve-none", Options{}); err == nil {
		t.Error("attached to an interface that is not there")
	}
}

// TestAttachWithoutPrivilege runs itself as a user who may nothing.
func TestAttachWithoutPrivilege(t *testing.T) {
	const child, nobody = "VARVE_EBPF_CHILD", 65534
	if os.Getenv(child) != "" {
		_, err := Attach("lo", Options{})
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("got %v, want %v", err, ErrNotSupported)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: cannot become another user")
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "varve-ebpf-") // t.TempDir is not open to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/test", exe, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dir+"/test", "-test.run=^TestAttachWithoutPrivilege$")
	cmd.Dir, cmd.Env = "/", append(os.Environ(), child+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
