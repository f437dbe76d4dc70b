package lin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/client"
	"varve/internal/id"
	"varve/mds"
	"varve/test/ports"
)

// local is a cluster of metadata servers in this process.
type local struct {
	t       *testing.T
	cluster id.Cluster
	dirs    []string
	addrs   []string
	wall    [3]atomic.Int64 // how far each server's wall clock is off, ns
	mu      sync.Mutex
	servers [3]*mds.Server // nil: killed
}

func newLocal(t *testing.T) *local {
	t.Helper()
	root := t.TempDir()
	c := &local{t: t}
	t.Cleanup(func() {
		for i := range c.servers {
			c.kill(i)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range c.servers {
		c.addrs = append(c.addrs, ports.Hold(t))
		c.dirs = append(c.dirs, filepath.Join(root, fmt.Sprint("mds", i+1)))
		o := c.options(i)
		o.Addr = c.addrs[i]
		var err error
		if i == 0 {
			o.Name = "lin"
			c.cluster, err = mds.Init(o)
		} else {
			_, err = mds.Join(ctx, o, c.addrs[:1])
		}
		if err != nil {
			t.Fatal(err)
		}
		c.start(i)
	}
	return c
}

func (c *local) options(i int) mds.Options {
	return mds.Options{
		Dir: c.dirs[i], Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), ElectionTimeout: 300 * time.Millisecond,
		SessionLease: 3 * time.Second, RequestTimeout: 8 * time.Second,
		Wall: func() time.Time { return time.Now().Add(time.Duration(c.wall[i].Load())) },
	}
}

func (c *local) start(i int) {
	c.t.Helper()
	s, err := mds.Open(c.options(i))
	if err != nil {
		c.t.Fatalf("server %d: %v", i+1, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[i] = s
}

func (c *local) kill(i int) {
	c.mu.Lock()
	s := c.servers[i]
	c.servers[i] = nil
	c.mu.Unlock()
	if s != nil {
		s.Kill()
		if err := s.Run(); err != nil {
			c.t.Errorf("server %d ended with %v", i+1, err)
		}
	}
}

// victim is the leader, half of the time.
func (c *local) victim() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.servers {
		if s != nil && s.Leads() && rand.IntN(2) == 0 {
			return i
		}
	}
	return rand.IntN(len(c.servers))
}

// dial returns n clients of the servers.
func dial(t *testing.T, cluster id.Cluster, addrs []string, n int, tune func(int, *client.Options)) []*client.Client {
	t.Helper()
	var all []*client.Client
	for i := range n {
		o := client.Options{Cluster: cluster, Addrs: addrs, Host: fmt.Sprint("client", i), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Timeout: 5 * time.Second, CloseTimeout: 2 * time.Second}
		if tune != nil {
			tune(i, &o)
		}
		k, err := client.Dial(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() }) // a session that was lost meanwhile is no concern
		all = append(all, k)
	}
	return all
}

// soak returns how long a workload lasts.
func soak(t *testing.T, usual time.Duration) time.Duration {
	s := os.Getenv("VARVE_SOAK")
	if s == "" {
		return usual
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("VARVE_SOAK=%s: %v", s, err)
	}
	return d
}

// evidence is where a history that cannot be explained goes; it stays after the test.
func evidence(t *testing.T) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("varve-%s-%d", t.Name(), os.Getpid()))
}

// TestLinearizable kills servers in this process, the leader every other time, and steps their wall clocks by hours.
func TestLinearizable(t *testing.T) {
	c := newLocal(t)
	clients := dial(t, c.cluster, c.addrs, 4, nil)
	r := &Run{Setup: clients[0], Clients: clients[1:], Workers: 3, Servers: c.addrs, Cluster: c.cluster, Pause: 2 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.Do(ctx, 24*time.Hour) }()
	end := time.Now().Add(soak(t, 7*time.Second))
	kills, steps := 0, 0
	for running := true; running; {
		if now := time.Now(); now.After(end) && r.Says(200, 0) || now.After(end.Add(enoughLimit)) {
			cancel()
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
			continue
		case <-time.After(time.Duration(300+rand.IntN(700)) * time.Millisecond):
		}
		hours := time.Duration(rand.IntN(11)-5) * time.Hour
		c.wall[rand.IntN(len(c.wall))].Store(int64(hours))
		steps++
		if rand.IntN(2) == 0 {
			i := c.victim()
			c.kill(i)
			time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
			c.start(i)
			kills++
		}
	}
	t.Logf("%s; %d kills, %d steps of a clock", r.Summary(), kills, steps)
	if err := r.Check(evidence(t)); err != nil {
		t.Error(err)
	}
	if !r.Says(200, 0) {
		t.Errorf("a history of %s says little", r.Summary())
	}
	// The check that has passed would not have passed this.
	changed, ok := stale(r.history)
	if !ok {
		t.Fatal("no read in this history can be made a stale one")
	}
	if err := check(changed, t.TempDir()); err == nil {
		t.Error("a history with a read that nothing explains was accepted")
	}
}
