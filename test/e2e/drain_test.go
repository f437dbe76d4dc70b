package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/wire/msg"
)

// eventsOf returns the events of the kinds, as the journal of the cluster has them.
func (c *cluster) eventsOf(kinds ...string) []eventLine {
	c.t.Helper()
	args := []string{"-c", c.name(), "--json", "journal", "cat"}
	for _, k := range kinds {
		args = append(args, "--type", k)
	}
	var out []eventLine
	for line := range strings.Lines(c.must(30*time.Second, args...)) {
		var e eventLine
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			c.t.Fatalf("journal cat: %v: %s", err, line)
		}
		out = append(out, e)
	}
	return out
}

type eventLine struct {
	Index uint64
	Kind  string
	What  string
	Cause struct{ Reason string }
	Body  struct {
		Server, ID uint32
		Ino, Chunk uint64
		Mode       string
		Chunks     []struct {
			ID, Index uint64
			Servers   []uint32
		}
	}
}

// slowDrops notes replicas that were dropped because this machine let a server stand still for longer than a write may take: what joins after that
// replaces them, and says nothing of what is tested.
type slowDrops struct {
	c     *cluster
	place map[uint64][2]uint64 // of each chunk: inode and index
	at    map[[2]uint64]bool
}

func (c *cluster) slowDrops() *slowDrops {
	d := &slowDrops{c: c, place: map[uint64][2]uint64{}, at: map[[2]uint64]bool{}}
	for _, e := range c.eventsOf("chunk-alloc") {
		for _, k := range e.Body.Chunks {
			d.place[k.ID] = [2]uint64{e.Body.Ino, k.Index}
		}
	}
	return d
}

func (d *slowDrops) note(e eventLine) {
	d.c.t.Logf("%s (%s)", e.What, e.Cause.Reason)
	for _, k := range e.Body.Chunks {
		d.at[[2]uint64{e.Body.Ino, k.Index}] = true
	}
}

// explain reports whether a replica of the chunk was dropped so.
func (d *slowDrops) explain(chunk uint64) bool { return d.at[d.place[chunk]] }

// mustHold fails the test unless all writes went well and are there.
func (w *writer) mustHold() {
	w.t.Helper()
	if w.err != nil {
		w.t.Error(w.err)
	}
	if err := w.verify(w.path); err != nil {
		w.t.Error(err)
	}
	w.t.Logf("%s: %d writes, the longest took %v", w.path, w.writes, w.stall.Round(time.Millisecond))
}

// server returns what the leader says of a chunk server.
func (c *cluster) server(n uint32) (*msg.ChunkServer, error) {
	st, err := c.status()
	if err != nil {
		return nil, err
	}
	for _, s := range st.Servers {
		if s.Server == n {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no cs%d", n)
}

// TestDrainAndRemoveUnderWrites: a chunk server is drained, put on standby and restarted, and removed, while guests write: nothing is lost, replicas are
// equal, nothing is copied because of the restart, and the directory of the removed server never starts again.
func TestDrainAndRemoveUnderWrites(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 5, 1, "3:2")
	var stop atomic.Bool
	var wg sync.WaitGroup
	writers := make([]*writer, 3)
	for i := range writers {
		writers[i] = newWriter(t, filepath.Join(c.mounts[0], fmt.Sprintf("w%d", i)), 1024)
		wg.Add(1)
		go writers[i].run(&stop, &wg)
	}
	defer wg.Wait()
	defer stop.Store(true)
	for i := range 4 { // more to move
		if err := os.WriteFile(filepath.Join(c.mounts[0], fmt.Sprint("f", i)), []byte(strings.Repeat("varve", 200_000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := c.name()
	c.wait(time.Minute, "all chunk servers to be live", c.allLive)
	if out := c.must(3*time.Minute, "-c", name, "drain", "host1"); !strings.Contains(out, "drained: nothing is left on cs1") {
		t.Errorf("drain says %q", out)
	}
	if s, err := c.server(1); err != nil || s.Mode != "drained" || s.Left != 0 {
		t.Errorf("after the drain: %+v, %v", s, err)
	}
	c.must(20*time.Second, "-c", name, "active", "ALL")

	// A restart on standby copies nothing to others.
	c.must(20*time.Second, "-c", name, "standby", "cs2")
	before := len(c.eventsOf("replica-join", "replica-drop"))
	old := c.kill("cs2")
	c.waitRestart("cs2", old)
	c.wait(3*time.Minute, "cs2 to be whole again", func() error {
		st, err := c.status()
		if err == nil && (st.Degraded > 0 || st.Joining > 0) {
			err = fmt.Errorf("%d degraded, %d joining", st.Degraded, st.Joining)
		}
		s, serr := c.server(2)
		if err == nil && serr == nil && s.State != "live" {
			err = errors.New(s.State)
		}
		return errors.Join(err, serr)
	})
	slow := c.slowDrops()
	for _, e := range c.eventsOf("replica-join", "replica-drop")[before:] {
		switch {
		case e.Kind == "replica-drop" && e.Body.Server != 2:
			slow.note(e)
		case e.Kind == "replica-join" && e.Body.Server != 2 && !slow.explain(e.Body.Chunk):
			t.Errorf("because of a restart on standby: %s (%s)", e.What, e.Cause.Reason)
		}
	}
	c.must(20*time.Second, "-c", name, "active", "cs2")

	c.wait(time.Minute, "all chunk servers to be live", c.allLive)
	if out := c.must(3*time.Minute, "-c", name, "rm-cs", "3"); !strings.Contains(out, "cs3 is removed") {
		t.Errorf("rm-cs says %q", out)
	}
	c.cs = 4
	c.wait(time.Minute, "cs3 to stop", func() error {
		if pid := c.pid("cs3"); pid != 0 {
			return fmt.Errorf("pid %d", pid)
		}
		return nil
	})
	if out, err := c.varve(20*time.Second, "cs", "-r", filepath.Join(c.dir, "cs3")); exitOf(err) != 4 || !strings.Contains(out, "removed from cluster") {
		t.Errorf("the removed server's directory starts: %v, %s", err, out)
	}
	c.wait(time.Minute, "all chunk servers to be live", c.allLive)
	c.must(3*time.Minute, "-c", name, "rm-cs", "1")
	c.cs = 3
	c.wait(time.Minute, "the others to be live", c.allLive)
	if out, err := c.varve(20*time.Second, "-c", name, "rm-cs", "2"); exitOf(err) != 4 || !strings.Contains(out, "only 2 chunk servers would take data") {
		t.Errorf("removal of one of three: %v, %s", err, out)
	}
	stop.Store(true)
	wg.Wait()
	for _, w := range writers {
		w.mustHold()
	}
	c.checkReplicas(3)
	var modes []string
	for _, e := range c.eventsOf("server-mode", "server-retire") {
		if e.Cause.Reason == "" {
			t.Errorf("%s has no cause", e.What)
		}
		modes = append(modes, e.What)
	}
	if len(modes) < 8 {
		t.Errorf("events: %s", strings.Join(modes, "; "))
	}
}

// ranFor returns for how long the threads of a process have run.
func ranFor(pid int) (d time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, task := range tasks {
		var ns int64
		if b, err := os.ReadFile(task); err == nil {
			_, _ = fmt.Sscan(string(b), &ns)
		}
		d += time.Duration(ns)
	}
	return d
}

// TestSlowIsNotDead: while what a lost server had is rebuilt, another one becomes slow: it is not given up, and nothing is
// rebuilt because of it.
func TestSlowIsNotDead(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 5, 1, "3:2")
	name := c.name()
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	for i := range 6 {
		if err := os.WriteFile(filepath.Join(c.mounts[0], fmt.Sprint("f", i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	var writers []*writer
	for i := range 4 { // so that every server is asked for something
		w := newWriter(t, filepath.Join(c.mounts[0], fmt.Sprint("w", i)), 256)
		writers = append(writers, w)
		wg.Add(1)
		go w.run(&stop, &wg)
	}
	time.Sleep(time.Second)
	c.must(20*time.Second, "-c", name, "set-config", "repair.grace=1s", "repair.grace.last=1s", "repair.rate=2M")
	// The slow one is to be one that the writers need, wherever their chunks are.
	needed := map[int]int{}
	allocs := c.eventsOf("chunk-alloc")
	for _, e := range allocs[max(0, len(allocs)-len(writers)):] {
		for _, k := range e.Body.Chunks {
			for _, server := range k.Servers {
				needed[int(server)]++
			}
		}
	}
	late := 2
	for n := 3; n <= 5; n++ {
		if needed[n] > needed[late] {
			late = n
		}
	}
	if needed[late] == 0 {
		t.Fatalf("no server but cs1 has a chunk of the writers: %v", needed)
	}
	lost, slow := c.pid("cs1"), c.pid(fmt.Sprint("cs", late))
	if err := unix.Kill(lost, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(lost, unix.SIGCONT)
	// Slow: it stands still for most of the time, though never for long; where the machine is busy it goes on until it has had its turn.
	slowed := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer unix.Kill(slow, unix.SIGCONT)
		for n := 0; !stop.Load(); n++ {
			_ = unix.Kill(slow, unix.SIGSTOP)
			time.Sleep(250 * time.Millisecond)
			before := ranFor(slow)
			_ = unix.Kill(slow, unix.SIGCONT)
			time.Sleep(3 * time.Millisecond)
			for end := time.Now().Add(100 * time.Millisecond); ranFor(slow) < before+500*time.Microsecond && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if n == 0 {
				close(slowed)
			}
		}
	}()
	<-slowed
	c.wait(2*time.Minute, "the lost server to be given up", func() error {
		if len(c.eventsOf("server-lost")) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	// On a quiet machine it answers so much in the moments in which it runs that most requests are not slow, and it is rightly not called so;
	// mds/throttle has the tests of who is.
	shown := false
	for end := time.Now().Add(15 * time.Second); !shown && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		s, err := c.server(uint32(late))
		shown = err == nil && s.Slow != ""
	}
	t.Logf("cs%d stands still for most of the time, and is shown as slow: %v", late, shown)
	c.must(20*time.Second, "-c", name, "set-config", "repair.rate=64M")
	c.wait(3*time.Minute, "the repair to end", func() error {
		st, err := c.status()
		if err == nil && (st.Degraded > 0 || st.Joining > 0) {
			err = fmt.Errorf("%d degraded, %d joining, repair %v", st.Degraded, st.Joining, st.Repair)
		}
		return err
	})
	if s, err := c.server(uint32(late)); err != nil || s.State == "retired" {
		t.Errorf("cs%d: %v, %v", late, s, err)
	}
	stop.Store(true)
	wg.Wait()
	had := map[uint64]bool{} // chunks that the lost server had
	for _, e := range c.eventsOf("chunk-alloc") {
		for _, k := range e.Body.Chunks {
			had[k.ID] = slices.Contains(k.Servers, 1)
		}
	}
	drops := c.slowDrops()
	for _, e := range c.eventsOf("server-lost", "replica-drop", "replica-join") {
		switch {
		case e.Kind == "server-lost" && e.Body.Server != 1:
			t.Errorf("%s (%s)", e.What, e.Cause.Reason)
		case e.Kind == "replica-drop" && e.Body.Server != 1:
			drops.note(e)
		case e.Kind == "replica-join" && !had[e.Body.Chunk] && !drops.explain(e.Body.Chunk):
			t.Errorf("nothing was missing: %s (%s)", e.What, e.Cause.Reason)
		}
	}
	if err := unix.Kill(lost, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, w := range writers {
		w.mustHold()
	}
	c.checkReplicas(3)
}
