package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// maxStall bounds how long one write+fsync may take while a server is killed.
const maxStall = time.Minute

// TestKillServers kills any one chunk server and any one metadata server, the leader too, again and again
// while writers write and fsync: the mount never fails, nothing acknowledged is lost or changed, stalls are bounded, and
// afterwards all replicas are equal.
func TestKillServers(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 3, 4, 1, "3:2")
	writers := make([]*writer, 3)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range writers {
		// The last file spans two chunks.
		blocks := 2048
		if i == 2 {
			blocks = 64<<20/blockSize + 512
		}
		writers[i] = newWriter(t, filepath.Join(c.mounts[0], fmt.Sprintf("writer%d", i)), blocks)
		wg.Add(1)
		go writers[i].run(&stop, &wg)
	}
	defer wg.Wait()
	defer stop.Store(true)

	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	kills, leaders := 0, 0
	for end := time.Now().Add(soak(t, 45*time.Second)); time.Now().Before(end); {
		var victims []string
		if rng.IntN(3) > 0 {
			victims = append(victims, fmt.Sprintf("cs%d", 1+rng.IntN(c.cs)))
		}
		if rng.IntN(2) == 0 || len(victims) == 0 {
			victim := fmt.Sprintf("mds%d", 1+rng.IntN(c.mds))
			if l, err := c.leader(); err == nil && rng.IntN(2) == 0 {
				victim = l
				leaders++
			}
			victims = append(victims, victim)
		}
		pids := make([]int, len(victims))
		for i, v := range victims {
			pids[i] = c.kill(v)
			kills++
		}
		for i, v := range victims {
			c.waitRestart(v, pids[i])
		}
		c.wait(3*time.Minute, "the cluster to be whole again after killing "+fmt.Sprint(victims), c.healthy)
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
	}
	stop.Store(true)
	wg.Wait()
	total, stall := 0, time.Duration(0)
	for _, w := range writers {
		if w.err != nil {
			t.Errorf("the mount failed: %v", w.err)
		}
		total += w.writes
		stall = max(stall, w.stall)
		if err := w.verify(w.path); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d kills (%d of the leader), %d write+fsync acknowledged, longest stall %v", kills, leaders, total, stall.Round(time.Millisecond))
	if stall > maxStall {
		t.Errorf("longest stall %v, want at most %v", stall, maxStall)
	}
	if total < kills {
		t.Errorf("only %d writes in the whole run", total)
	}
	c.checkReplicas(3)
}

// TestKillEverything kills every process at once, starts the cluster again, and expects every acknowledged byte, the same
// state on all metadata servers, and equal replicas.
func TestKillEverything(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 3, 4, 1, "3:2")
	for round := range 2 {
		var stop atomic.Bool
		var wg sync.WaitGroup
		writers := make([]*writer, 3)
		for i := range writers {
			writers[i] = newWriter(t, filepath.Join(c.mounts[0], fmt.Sprintf("round%d-writer%d", round, i)), 3000)
			wg.Add(1)
			go writers[i].run(&stop, &wg)
		}
		// After the kill before, a change in a directory waits until the dead mount's leases on it are over.
		c.wait(time.Minute, "the writers to write", func() error {
			for _, w := range writers {
				if st, err := os.Stat(w.path); err != nil || st.Size() == 0 {
					return fmt.Errorf("%s: nothing yet (%v)", w.path, err)
				}
			}
			return nil
		})
		time.Sleep(3 * time.Second)
		// The supervisor first, so that it starts nothing again.
		names := []string{"supervisor"}
		for i := range c.mds {
			names = append(names, fmt.Sprintf("mds%d", i+1))
		}
		for i := range c.cs {
			names = append(names, fmt.Sprintf("cs%d", i+1))
		}
		names = append(names, "mount1")
		var pids []int
		for _, n := range names {
			if pid := c.pid(n); pid != 0 {
				pids = append(pids, pid)
			} else {
				t.Fatalf("%s is not running", n)
			}
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		stop.Store(true)
		wg.Wait()
		writes := 0
		for _, w := range writers {
			if w.err == nil && w.writes == 0 {
				t.Errorf("%s: nothing was written before the kill", w.path)
			}
			writes += w.writes
		}
		c.must(3*time.Minute, "dev", "down", "--dir", c.dir)
		c.start()
		for _, w := range writers {
			if err := w.verify(w.path); err != nil {
				t.Error(err)
			}
		}
		t.Logf("round %d: %d write+fsync acknowledged before everything was killed", round, writes)
		c.checkReplicas(3)
		c.sameDigests()
	}
	if _, err := os.ReadDir(c.mounts[0]); err != nil {
		t.Error(err)
	}
}
