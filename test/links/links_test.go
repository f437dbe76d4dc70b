package links

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/netns"
)

const (
	linkMbit = 40
	flows    = 6 // of the neighbour, in each direction of each link
	servers  = 3 // chunk servers
)

// tc runs a command of iproute2's tc in the namespace of the calling thread.
func tc(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("tc", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Skipf("no token bucket: tc %s: %v: %s", line, err, out)
	}
}

// start starts a server in a namespace, which dies with it.
func start(t *testing.T, s *netns.Space, dir, kind string) {
	t.Helper()
	log, err := os.Create(dir + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(os.Getenv(netns.Binary), kind, "-r", dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // its parent is the thread that keeps the namespace
	s.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
}

func varve(t *testing.T, s *netns.Space, cluster string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), append([]string{"-c", cluster}, args...)...)
	var out []byte
	var err error
	s.Do(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		t.Fatalf("varve %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func status(addr string) (*msg.StatusReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, addr, &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
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

// neighbour fills the link of a namespace in both directions until stop, and counts what came through each way.
func neighbour(t *testing.T, s *netns.Space, stop <-chan struct{}, wg *sync.WaitGroup, in, out *atomic.Int64) {
	t.Helper()
	var l net.Listener
	var err error
	s.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(s.Host(), "7")) })
	if err != nil {
		t.Fatal(err)
	}
	pump := func(c net.Conn, n *atomic.Int64) {
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for {
				k, err := c.Read(b)
				if err != nil {
					return
				}
				n.Add(int64(k))
			}
		})
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		})
	}
	for range flows {
		c, err := net.DialTimeout("tcp", l.Addr().String(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		pump(c, out)
		pump(d, in)
		wg.Go(func() {
			<-stop
			_ = c.Close()
			_ = d.Close()
		})
	}
	_ = l.Close()
}

// TestFullLinks: chunk servers whose links a neighbour keeps full in both directions are not taken for dead, however long that lasts.
func TestFullLinks(t *testing.T) {
	if os.Getenv(netns.Binary) == "" {
		if os.Getenv("VARVE_E2E") == "" {
			t.Skip("end-to-end tests run with VARVE_E2E=1 (make test)")
		}
		if os.Getuid() != 0 {
			t.Skip("needs root: it makes network namespaces")
		}
		if _, err := exec.LookPath("tc"); err != nil {
			t.Skip("needs tc: ", err)
		}
		netns.Again(t, 15*time.Minute)
		return
	}
	limit := 5 * time.Second
	if s := os.Getenv("VARVE_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		limit = min(d, 3*time.Minute)
	}
	netns.Hub(t)
	dir := t.TempDir()
	cluster := filepath.Join(dir, "links")
	m := netns.New(t, 1)
	meta := m.Host() + ":2510"
	varve(t, m, cluster, "make-mds", "-I", "--insecure", "-a", meta, "-r", filepath.Join(dir, "mds1"))
	start(t, m, filepath.Join(dir, "mds1"), "mds")
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		st, err := status(meta)
		if err == nil && st.Leader != "" && st.LeadingMs > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no leader: %v", err)
		}
	}
	var spaces []*netns.Space
	for n := range servers {
		s := netns.New(t, n+2)
		spaces = append(spaces, s)
		at := filepath.Join(dir, fmt.Sprint("cs", n+1))
		varve(t, s, cluster, "make-cs", "-r", at, "-t", "0", "-a", s.Host()+":2511", "--memory", "128M")
		start(t, s, at, "cs")
	}
	live := func() (n int, slowest int64, err error) {
		st, err := status(meta)
		if err != nil {
			return 0, 0, err
		}
		for _, s := range st.Servers {
			if s.State == "live" {
				n++
			}
			slowest = max(slowest, s.HeardMs)
		}
		return n, slowest, nil
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		n, _, err := live()
		if n == servers {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d chunk servers are live: %v", n, err)
		}
	}
	for n, s := range spaces {
		bucket := fmt.Sprintf("root tbf rate %dmbit burst 32kb latency 200ms", linkMbit)
		tc(t, fmt.Sprintf("qdisc add dev h%d %s", n+2, bucket))
		s.Do(func() { tc(t, "qdisc add dev e "+bucket) })
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	in, out := make([]atomic.Int64, servers), make([]atomic.Int64, servers)
	for i, s := range spaces {
		neighbour(t, s, stop, &wg, &in[i], &out[i])
	}
	// A machine that stands still says nothing of links: its servers are not heard of either.
	var still atomic.Int64 // longest time that it did, in nanoseconds
	wg.Go(func() {
		const tick = 20 * time.Millisecond
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-time.After(tick):
			}
			now := time.Now()
			still.Store(max(still.Load(), int64(now.Sub(last)-tick)))
			last = now
		}
	})
	log := func() []byte {
		b, err := os.ReadFile(filepath.Join(dir, "mds1.log"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var took time.Duration
	var silent int64
	for try := 1; ; try++ {
		still.Store(0)
		before := len(log())
		for i := range spaces {
			in[i].Store(0)
			out[i].Store(0)
		}
		silent = 0
		var bad []string
		begin := time.Now()
		for time.Since(begin) < limit {
			n, slowest, err := live()
			if err != nil || n != servers {
				bad = append(bad, fmt.Sprintf("%v after the links were full %d of %d chunk servers are live: %v", time.Since(begin).Round(time.Millisecond), n, servers, err))
				break
			}
			silent = max(silent, slowest)
			time.Sleep(100 * time.Millisecond)
		}
		took = time.Since(begin)
		time.Sleep(100 * time.Millisecond) // whether it stood still is told by then
		for i := range spaces {
			mbit := func(n *atomic.Int64) float64 { return float64(n.Load()) * 8 / 1e6 / time.Since(begin).Seconds() }
			t.Logf("cs%d: the neighbour had %.1f Mbit/s in, %.1f out of %d", i+1, mbit(&in[i]), mbit(&out[i]), linkMbit)
			if took >= limit && (mbit(&in[i]) < linkMbit/2 || mbit(&out[i]) < linkMbit/2) {
				bad = append(bad, fmt.Sprintf("the link of cs%d was not full", i+1))
			}
		}
		for line := range bytes.Lines(log()[before:]) {
			if bytes.Contains(line, []byte("chunk server down")) && bytes.Contains(line, []byte("not heard from")) || bytes.Contains(line, []byte("given up")) {
				bad = append(bad, string(line))
			}
		}
		if len(bad) == 0 {
			break
		}
		if s := time.Duration(still.Load()); s < time.Second || try == 10 {
			t.Errorf("%s", strings.Join(bad, "\n"))
			break
		} else {
			t.Logf("the machine stood still for %v, so that it says nothing: %s", s.Round(time.Millisecond), strings.Join(bad, "; "))
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if n, _, err := live(); n == servers {
				break
			} else if time.Now().After(end) {
				t.Fatalf("%d chunk servers are live again: %v", n, err)
			}
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("in %v no chunk server was silent for more than %d ms", took.Round(time.Millisecond), silent)
}
