package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func relayAlways(o *Options) { o.Relay = RelayAlways }

func (w *world) relayedBy(s id.ServerID) (n int) {
	w.cs[s].set(func() { n = w.cs[s].ordered })
	return n
}

// unequal reports which of the servers do not have want at the beginning of the file.
func (w *world) unequal(f *File, want []byte, servers ...id.ServerID) (bad []id.ServerID) {
	for _, s := range servers {
		if !bytes.Equal(w.cs[s].content(f.Ino(), 0, len(want)), want) {
			bad = append(bad, s)
		}
	}
	return bad
}

// TestRelayedWrite: a large write goes through the first replica, a small one to all; replicas end up equal. A replica that the relay
// cannot reach is the one that is dropped, and a relay that fails is dropped itself.
func TestRelayedWrite(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, relayAlways)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	first := w.replicas(f.Ino(), 0)[0]
	if n := w.relayedBy(first); n != 0 {
		t.Fatalf("%d small writes were relayed", n)
	}
	want := fill(300<<10, 2)
	write(t, f, want, 0)
	if n := w.relayedBy(first); n != 1 {
		t.Fatalf("%d of one large write were relayed", n)
	}
	if bad := w.unequal(f, want, 1, 2, 3); bad != nil {
		t.Fatalf("%v differ", bad)
	}
	if err := f.Fsync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	// One that the relay cannot reach.
	lost := w.replicas(f.Ino(), 0)[2]
	w.cs[lost].set(func() {
		w.cs[lost].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				return fserr.Unavailable
			}
			return fserr.OK
		}
	})
	want = fill(300<<10, 3)
	write(t, f, want, 0)
	if r := w.replicas(f.Ino(), 0); len(r) != 2 || slices.Contains(r, lost) {
		t.Fatalf("replicas %v, want all but %v", r, lost)
	}
	if bad := w.unequal(f, want, w.replicas(f.Ino(), 0)...); bad != nil {
		t.Fatalf("%v differ", bad)
	}
	// The relay itself.
	w.cs[first].stop()
	want = fill(300<<10, 4)
	write(t, f, want, 0)
	if r := w.replicas(f.Ino(), 0); len(r) != 1 || r[0] == first || w.unequal(f, want, r...) != nil {
		t.Fatalf("replicas %v: the relay %v is gone", r, first)
	}
}

// TestRelayWithoutRoom: a relay without room has sent nothing on, so the write goes to all, as it would have without a relay.
func TestRelayWithoutRoom(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, relayAlways)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	first := w.replicas(f.Ino(), 0)[0]
	w.cs[first].set(func() {
		w.cs[first].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				return fserr.NoSpace
			}
			return fserr.OK
		}
	})
	want := fill(300<<10, 2)
	write(t, f, want, 0)
	if r := w.replicas(f.Ino(), 0); len(r) != 2 || slices.Contains(r, first) || w.unequal(f, want, r...) != nil {
		t.Fatalf("replicas %v, without room is %v", r, first)
	}
}

// TestAbandonedAppendEnds: an append that has to move elsewhere, since another mount opened the file, does not move before the server that
// did not answer has ended what it was asked, or was dropped.
func TestAbandonedAppendEnds(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 3) // nobody may be dropped
	c := w.dial(t, func(o *Options) { o.WriteTimeout, o.DialTimeout = 150*time.Millisecond, 300*time.Millisecond })
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	stuck, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.cs[3].set(func() {
		w.cs[3].before = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
			if typ == wire.Write && r.Offset == 4096 {
				once.Do(func() { close(stuck); <-release })
			}
			return fserr.OK
		}
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := f.WriteAt(context.Background(), fill(100, 2), 0, true)
		done <- err
	}()
	<-stuck
	other := w.dial(t, nil)
	open(t, other, f, true)
	eventually(t, "the lease to be shared", func() bool { m, _ := f.in.state(); return m == msg.Mode_SHARED_WRITE })
	select {
	case err := <-done:
		t.Fatalf("the append ended with %v while a server may still carry it out", err)
	case <-time.After(500 * time.Millisecond):
	}
	if n := w.count("append"); n != 0 {
		t.Fatal("the append moved while a server may still carry it out at the old place")
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := w.count("append"); n != 1 {
		t.Fatalf("%d appends at the metadata server", n)
	}
}

const (
	// In the environment of the client in a namespace of its own: where the metadata server is.
	relayClient = "VARVE_TEST_RELAY_CLIENT"
	// relayLong has the client find out by itself as well, which takes until it has measured both ways.
	relayLong = "VARVE_RELAY_LONG"
)

// TestRelayOverSlowUplink: a client whose uplink is slower than those of the servers writes nearly as many times faster as there are replicas
// when its writes are relayed, and finds that out by itself. It needs root, for network namespaces.
func TestRelayOverSlowUplink(t *testing.T) {
	if addr := os.Getenv(relayClient); addr != "" {
		relayMeasure(t, addr)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	for _, tool := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	// This thread and that of the client are in namespaces of their own, and end with the test.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skipf("no network namespace: %v", err)
	}
	work, ready := make(chan func()), make(chan int)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			ready <- 0
			return
		}
		ready <- unix.Gettid()
		for f := range work {
			f()
		}
	}()
	tid := <-ready
	if tid == 0 {
		t.Skip("no second network namespace")
	}
	defer func() { close(work); <-ended }()
	inClient := func(f func()) {
		done := make(chan struct{})
		work <- func() { defer close(done); f() }
		<-done
	}
	run := func(line string) {
		t.Helper()
		args := strings.Fields(line)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v: %s", line, err, out)
		}
	}
	run("ip link set lo up")
	run(fmt.Sprintf("ip link add s0 type veth peer name c0 netns %d", tid))
	run("ip addr add 10.89.0.1/24 dev s0")
	run("ip link set s0 up")
	inClient(func() {
		run("ip link set lo up")
		run("ip addr add 10.89.0.2/24 dev c0")
		run("ip link set c0 up")
		run("tc qdisc add dev c0 root tbf rate 100mbit burst 128kb latency 200ms") // 12 MiB/s
	})
	w := newWorldAt(t, "10.89.0.1", 1, 3, 3, 2)
	for _, s := range w.cs {
		s.set(func() { s.null = true })
	}
	// The race detector knows that one process reads after another has written by what they write and read only.
	if err := os.WriteFile(t.TempDir()+"/ready", []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	var out []byte
	var rates struct{ Parallel, Relayed, Auto float64 }
	for range 4 { // on a busy machine the uplink is not what holds writes up: then it is measured again
		var err error
		inClient(func() {
			cmd := exec.Command(os.Args[0], "-test.run", "^TestRelayOverSlowUplink$", "-test.v")
			cmd.Env = append(os.Environ(), relayClient+"="+w.servers[0].addr)
			out, err = cmd.CombinedOutput()
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "rates "); ok {
				if err := json.Unmarshal([]byte(text), &rates); err != nil {
					t.Fatal(err)
				}
			}
		}
		if rates.Relayed >= 1.5*rates.Parallel {
			break
		}
	}
	t.Logf("1 MiB writes to 3 replicas over an uplink of 12 MiB/s: in parallel %.1f MiB/s, relayed %.1f (%.2f times), by measurement %.1f",
		rates.Parallel, rates.Relayed, rates.Relayed/rates.Parallel, rates.Auto)
	if rates.Parallel == 0 || rates.Relayed < 1.5*rates.Parallel {
		t.Errorf("%+v: relaying gains too little\n%s", rates, out)
	}
	if os.Getenv(relayLong) != "" && rates.Auto < 1.4*rates.Parallel {
		t.Errorf("%+v: relaying was not found to be better", rates)
	}
}

// relayMeasure is the client.
func relayMeasure(t *testing.T, addr string) {
	rate := func(relay Relay, name string, warm, size int) float64 {
		c, err := Dial(t.Context(), Options{Cluster: testCluster, Addrs: []string{addr}, Logger: quiet(), Relay: relay, WriteTimeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f := create(t, c, fmt.Sprint(name, os.Getpid())) // it may be measured again
		stream := func(from, size int) {
			var work sync.WaitGroup
			next := make(chan int)
			for range 4 {
				work.Go(func() {
					p := fill(1<<20, 3)
					for i := range next {
						if _, _, err := f.WriteAt(context.Background(), p, int64(i)<<20, false); err != nil && !errors.Is(err, context.Canceled) {
							t.Error(err)
							return
						}
					}
				})
			}
			for i := range size {
				next <- from + i
			}
			close(next)
			work.Wait()
		}
		stream(0, warm)
		start := time.Now()
		stream(warm, size)
		if n, on := c.uplink.count(); relay == RelayAuto {
			t.Logf("%d writes relayed, preferred now %t", n, on)
		}
		return float64(size) / time.Since(start).Seconds()
	}
	rates := map[string]float64{"Parallel": rate(RelayNever, "p", 1, 5), "Relayed": rate(RelayAlways, "r", 1, 12)}
	if os.Getenv(relayLong) != "" {
		rates["Auto"] = rate(RelayAuto, "m", 60, 32)
	}
	b, err := json.Marshal(rates)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("rates %s\n", b)
}
