package traffic

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/internal/client"
	"varve/test/netns"
	"varve/test/replicas"
)

// TestPlanes: replication and repair go by interfaces of their own, which the counters show to the byte but for headers; with that network cut between two
// servers writes go on, all heartbeats arrive, and the replicas are equal afterwards. Servers of block devices leave their host by the address that they are told.
func TestPlanes(t *testing.T) {
	if !begin(t, 10*time.Minute) {
		return
	}
	c := newCluster(t, 3, func(_ int, s *netns.Space) []string {
		at := s.Join(t, "r", 89)
		return []string{"--net", "replication=r,repair=" + at}
	})
	for i, s := range c.spaces {
		c.eventually(fmt.Sprintf("cs%d to tell its traffic apart", i+1), time.Minute, func() bool {
			h := c.host(s)
			return h.Classify == "on" && len(h.Interfaces) == 2 && len(h.Interfaces[0].ByPeer) > 0
		})
	}
	cl := c.dial(client.RelayAlways)
	f := c.create(cl, "image")
	const size = 24 << 20
	c.write(f, 0, size)
	var in, out, guest uint64
	c.eventually("all to be written down", time.Minute, func() bool {
		in, out, guest = 0, 0, 0
		for _, s := range c.spaces {
			h := c.host(s)
			in, out, guest = in+bytes(h, "r", "replication", false).Bytes, out+bytes(h, "r", "replication", true).Bytes, guest+bytes(h, "e", "guest", false).Bytes
		}
		return in >= 2*size && out >= 2*size && guest >= size
	})
	time.Sleep(2500 * time.Millisecond) // and what comes after it
	in, out, guest = 0, 0, 0
	for i, s := range c.spaces {
		h := c.host(s)
		for _, class := range []string{"guest", "heartbeat"} {
			if n := bytes(h, "r", class, true); n.Bytes > 0 {
				t.Errorf("cs%d: %d bytes of class %s went out by the interface of replication", i+1, n.Bytes, class)
			}
		}
		for _, class := range []string{"replication", "repair", "rebalance"} {
			if n := bytes(h, "e", class, true); n.Bytes > 0 {
				t.Errorf("cs%d: %d bytes of class %s went out by the interface of clients", i+1, n.Bytes, class)
			}
		}
		if n := bytes(h, "e", "heartbeat", true); n.Packets == 0 {
			t.Errorf("cs%d: no heartbeats went out", i+1)
		}
		in, out, guest = in+bytes(h, "r", "replication", false).Bytes, out+bytes(h, "r", "replication", true).Bytes, guest+bytes(h, "e", "guest", false).Bytes
	}
	// A MiB has 1 KiB of checksums; frames have 66 bytes of headers each, and there are acknowledgements and answers.
	check := func(what string, got uint64, copies int) {
		t.Helper()
		want := float64(copies * size)
		t.Logf("%s: %d bytes, %.3f of what was written", what, got, float64(got)/want)
		if r := float64(got) / want; r < 1 || r > 1.09 {
			t.Errorf("%s: %d bytes, %.3f of the %d copies that were written", what, got, r, copies)
		}
	}
	check("replication, received", in, 2)
	check("replication, sent", out, 2)
	check("guest, received", guest, 1)

	// The network of replication is cut at one server.
	stop := c.watch()
	second := c.spaces[1]
	second.IP(t, "link set r down")
	c.write(f, size, 8<<20)
	second.IP(t, "link set r up")
	second.IP(t, "route add 10.89.0.0/16 via 10.89.3.1 dev r")
	c.write(f, 0, 8<<20)
	if lost := stop(); lost != "" {
		t.Errorf("while the network of replication was cut: %s", lost)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.Release(ctx); err != nil {
		t.Error(err)
	}
	c.eventually("three replicas of all", 90*time.Second, func() bool {
		st, err := c.status()
		return err == nil && st.Degraded == 0 && st.Joining == 0
	})
	st, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	if chunks, blocks, err := replicas.Compare(st, 3, nil); err != nil {
		t.Error(err)
	} else {
		t.Logf("%d chunks, %d blocks are equal", chunks, blocks)
	}
	c.blockServers(t, "image")
}

// watch looks whether chunk servers are live, until its function is called, which says what was wrong.
func (c *cluster) watch() (stop func() string) {
	end, said := make(chan struct{}), make(chan string, 1)
	go func() {
		wrong, slow := "", time.Duration(0)
		for {
			at := time.Now()
			select {
			case <-end:
				if wrong != "" && slow > time.Second {
					c.t.Logf("the machine stood still for %v, which is no matter of networks: %s", slow.Round(time.Millisecond), wrong)
					wrong = ""
				}
				said <- wrong
				return
			case <-time.After(50 * time.Millisecond):
			}
			slow = max(slow, time.Since(at)-50*time.Millisecond)
			st, err := c.status()
			if err != nil {
				continue // who is asked is no chunk server
			}
			live := 0
			for _, s := range st.Servers {
				if s.State == "live" {
					live++
				}
			}
			if live != len(c.spaces) && wrong == "" {
				wrong = fmt.Sprintf("%d of %d chunk servers were live", live, len(c.spaces))
			}
		}
	}()
	return func() string { close(end); return <-said }
}

// TestGuard: strangers reach nothing, are counted, and members pass; what a killed server had on its interface is gone with it, or taken off.
func TestGuard(t *testing.T) {
	if !begin(t, 10*time.Minute) {
		return
	}
	c := newCluster(t, 1, nil)
	cs := c.spaces[0]
	stranger := netns.New(t, 9)
	knock := func() (err error) {
		stranger.Do(func() {
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp", cs.Host()+":2511", 700*time.Millisecond); err == nil {
				conn.Close()
			}
		})
		return err
	}
	c.eventually("the stranger to get through without a guard", time.Minute, func() bool { return knock() == nil })
	c.set("net.guard", "on")
	c.eventually("the reason why there is no guard", time.Minute, func() bool { return strings.Contains(c.host(cs).Guard, "names no network") })
	c.set("net.guard.allow", "10.88.0.0/21,127.0.0.0/8") // which 10.88.9.2 is not in
	c.set("net.shape", "on")
	c.set("net.shape.link", "1G")
	c.eventually("the guard", time.Minute, func() bool { h := c.host(cs); return h.Guard == "on" && h.Shape == "on" })
	if err := knock(); err == nil {
		t.Error("a stranger gets through")
	}
	c.eventually("the stranger to be counted", time.Minute, func() bool {
		h := c.host(cs)
		return h.Dropped.Packets > 0 && len(h.Strangers) == 1 && h.Strangers[0].Addr == stranger.Host()
	})
	if conn, err := net.DialTimeout("tcp", cs.Host()+":2511", 30*time.Second); err != nil {
		t.Errorf("who is allowed: %v", err)
	} else {
		conn.Close()
	}
	c.eventually("the chunk server to be live behind its guard", time.Minute, func() bool { return c.live() == 1 })
	c.eventually("the leader to know", time.Minute, func() bool {
		st, err := c.status()
		return err == nil && st.Servers[0].Net != nil && st.Servers[0].Net.DroppedPackets > 0 && st.Servers[0].Net.Shape == "on"
	})
	if out := c.varve(c.mds, "stat"); !strings.Contains(out, "NETWORK OF") || !strings.Contains(out, "REPLICATION") {
		t.Errorf("stat has no network:\n%s", out)
	}
	if out, err := c.try(cs, "net", "clean"); err == nil {
		t.Errorf("clean beside a server that lives: %s", out)
	}
	// Of two servers of a host one does it for both. When that is killed the other does it, and takes off what was left.
	c.varve(cs, "make-cs", "-r", filepath.Join(c.dir, "cs2"), "-t", "0", "-a", cs.Host()+":2512", "--host", "h1", "--memory", "192M")
	c.start(cs, "cs", 2)
	c.eventually("the second server", time.Minute, func() bool { return c.live() == 2 })
	first, second := "cs1", "cs2"
	c.eventually("one of the servers to do it", time.Minute, func() bool {
		owner := c.host(cs).PID
		if owner == c.procs["cs2"].Process.Pid {
			first, second = "cs2", "cs1"
			return true
		}
		return owner == c.procs["cs1"].Process.Pid
	})
	killed := time.Now()
	c.kill(first)
	c.eventually("the other server to do it", time.Minute, func() bool {
		h := c.host(cs)
		return h.PID == c.procs[second].Process.Pid && h.Guard == "on" && h.Shape == "on" && h.Classify == "on"
	})
	t.Logf("%s took over within %v of the death of %s", second, time.Since(killed).Round(time.Millisecond), first)
	if lines := c.log(second, "a daemon that died had left something"); len(lines) != 1 || !strings.Contains(lines[0], "queues=true") {
		t.Errorf("what was left was taken off: %q", lines)
	}
	// When none lives nobody is kept off any more, and the queues that stay are taken off.
	c.kill(second)
	c.eventually("the stranger to get through to where nobody listens", time.Minute, func() bool {
		err := knock()
		return err != nil && strings.Contains(err.Error(), "refused")
	})
	if out := c.varve(cs, "net"); !strings.Contains(out, "off: ") {
		t.Errorf("who does it after the server was killed? %s", out)
	}
	if out := c.varve(cs, "net", "clean"); !strings.Contains(out, "e: queues") {
		t.Errorf("clean: %s", out)
	}
	if out := c.varve(cs, "net", "clean"); !strings.Contains(out, "nothing was left") {
		t.Errorf("clean, again: %s", out)
	}
}

// TestUnprivileged: a server without any capability serves, and says what is off and why.
func TestUnprivileged(t *testing.T) {
	if !begin(t, 10*time.Minute) {
		return
	}
	c := newCluster(t, 1, nil)
	cs := c.spaces[0]
	c.eventually("a server with the privilege to do it", time.Minute, func() bool { return c.host(cs).Classify == "on" })
	c.kill("cs1")
	const nobody = 65534
	for at := c.dir; at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := os.Getenv(netns.Binary)
	for _, at := range []string{filepath.Dir(binary), filepath.Dir(filepath.Dir(binary))} {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.Walk(filepath.Join(c.dir, "cs1"), func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nobody, nobody)
	}); err != nil {
		t.Fatal(err)
	}
	c.credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	c.start(cs, "cs", 1)
	c.eventually("the server without the privilege, and why", time.Minute, func() bool {
		st, err := c.status()
		return err == nil && st.Servers[0].State == "live" && st.Servers[0].Net != nil && strings.Contains(st.Servers[0].Net.Classify, "without CAP_NET_ADMIN")
	})
	if out := c.varve(c.mds, "stat"); !strings.Contains(out, "not told apart on the hosts of 1 chunk server: the daemons of this host run without CAP_NET_ADMIN and CAP_BPF") {
		t.Errorf("stat does not say why:\n%s", out)
	}
	f := c.create(c.dialOne(), "image")
	c.write(f, 0, 2<<20)
}

// TestHeartbeatPlane: when a chunk server's network for heartbeats is dead and that for clients is not, it stops serving, and the cluster goes on without it.
func TestHeartbeatPlane(t *testing.T) {
	if soak(t) == 0 {
		t.Skip("runs with VARVE_TRAFFIC=1m (make soak)")
	}
	if !begin(t, 5*time.Minute) {
		return
	}
	c := newClusterAt(t, 4, func(s *netns.Space) []string {
		return []string{"--net", "heartbeat=" + s.Join(t, "r", 89)}
	}, func(_ int, s *netns.Space) []string {
		s.Join(t, "r", 89)
		return []string{"--net", "heartbeat=r"}
	})
	cl := c.dial(client.RelayAuto)
	f := c.create(cl, "image")
	c.write(f, 0, 16<<20)
	second := c.spaces[1]
	second.IP(t, "link set r down")
	c.write(f, 0, 16<<20)
	c.eventually("the server without heartbeats to be missed", 30*time.Second, func() bool { return c.live() == 3 })
	c.write(f, 8<<20, 16<<20)
	second.IP(t, "link set r up")
	second.IP(t, "route add 10.89.0.0/16 via 10.89.3.1 dev r")
	c.eventually("it to be back", 60*time.Second, func() bool { return c.live() == 4 })
	c.write(f, 0, 16<<20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.Release(ctx); err != nil {
		t.Error(err)
	}
	c.eventually("three replicas of all", 90*time.Second, func() bool {
		st, err := c.status()
		return err == nil && st.Degraded == 0 && st.Joining == 0 && st.Garbage == 0
	})
	st, err := c.status()
	if err != nil {
		t.Fatal(err)
	}
	if _, blocks, err := replicas.Compare(st, 3, nil); err != nil {
		t.Error(err)
	} else {
		t.Logf("%d blocks are equal", blocks)
	}
	for i, s := range c.spaces {
		h := c.host(s)
		if n := bytes(h, "e", "heartbeat", true); n.Bytes > 0 {
			t.Errorf("cs%d: %d bytes of heartbeats went out by the interface of clients", i+1, n.Bytes)
		}
	}
}
