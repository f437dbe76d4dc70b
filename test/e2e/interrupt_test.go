package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// interrupt starts a command, interrupts it as often as said when ready says that it is under way, and returns what it printed.
func (c *cluster) interrupt(times int, ready func() error, args ...string) (string, error) {
	c.t.Helper()
	cmd := exec.Command(varveBinary, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill() // it has ended, or must
	c.wait(time.Minute, strings.Join(args, " ")+" to begin", ready)
	for i := range times {
		err := cmd.Process.Signal(unix.SIGINT)
		if i > 0 && errors.Is(err, os.ErrProcessDone) {
			break // the first one has ended it already
		}
		if err != nil {
			c.t.Errorf("interrupt varve %s: %v", strings.Join(args, " "), err)
		}
	}
	select {
	case err := <-ended:
		return out.String(), err
	case <-time.After(time.Minute):
		c.t.Fatalf("varve %s does not end when it is interrupted", strings.Join(args, " "))
		return "", nil
	}
}

// TestInterrupted: who interrupts a drain or a removal ends the command alone, and is told how it goes on and is taken back; and a server that
// alone has data is only removed by who says that it may be lost, and never starts again.
func TestInterrupted(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 4, 1, "3:2")
	name := c.name()
	// All of it has a replica on cs1, so much that moving it takes longer than the test.
	c.must(20*time.Second, "set-attr", c.mounts[0], "prefer=host1")
	data := bytes.Repeat([]byte("varve"), 1_600_000)
	for i := range 8 {
		if err := os.WriteFile(filepath.Join(c.mounts[0], fmt.Sprint("f", i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.must(20*time.Second, "set-attr", c.mounts[0], "prefer=inherit")
	c.must(20*time.Second, "-c", name, "set-config", "repair.rate=1M", "repair.rate.server=1M")
	mode := func(want string) func() error {
		return func() error {
			s, err := c.server(1)
			if err == nil && s.Mode != want {
				err = fmt.Errorf("mode %q", s.Mode)
			}
			return err
		}
	}
	for _, x := range []struct {
		times      int
		mode, verb string
	}{{1, "draining", "drain"}, {1, "removing", "rm-cs"}, {2, "removing", "rm-cs"}} {
		var out string
		var err error
		for again := true; again; {
			c.wait(time.Minute, "all chunk servers to be live", c.allLive) // else it is refused
			out, err = c.interrupt(x.times, mode(x.mode), "-c", name, "--json", x.verb, "cs1")
			// The mode is seen a moment before who asked for it has the answer, and is told how it goes on.
			if again = strings.Contains(out, "interrupted; whether it was done shows"); again {
				c.must(20*time.Second, "-c", name, "active", "cs1")
				c.wait(time.Minute, "cs1 to be active", mode(""))
			}
		}
		if code := exitOf(err); x.times == 1 && code != 1 || code == 0 {
			t.Errorf("%s, interrupted, ends with %d: %s", x.verb, code, out)
		}
		if x.times == 1 {
			for _, want := range []string{"interrupted: the cluster goes on " + x.mode + " cs1", "varve -c " + name + " active cs1 takes it back", `"done": false`} {
				if !strings.Contains(out, want) {
					t.Errorf("%s, interrupted, says %q, want %q", x.verb, out, want)
				}
			}
		}
		if err := mode(x.mode)(); err != nil {
			t.Errorf("%s did not go on: %v", x.verb, err)
		}
		if out := c.must(20*time.Second, "-c", name, "stat"); !strings.Contains(out, "NOT ACTIVE") || !strings.Contains(out, x.mode) {
			t.Errorf("stat does not show it:\n%s", out)
		}
		c.must(20*time.Second, "-c", name, "active", "cs1")
		c.wait(time.Minute, "cs1 to be active", mode(""))
	}
	c.must(20*time.Second, "-c", name, "set-config", "repair.rate=", "repair.rate.server=")

	// Standby that ends by itself; said again, it counts from then on.
	c.must(20*time.Second, "-c", name, "standby", "--for", "10m", "cs1")
	if out := c.must(20*time.Second, "-c", name, "--json", "stat"); !strings.Contains(out, `"mode_until"`) {
		t.Errorf("stat does not say until when:\n%s", out)
	}
	if out := c.must(20*time.Second, "-c", name, "standby", "--for", "2s", "cs1"); !strings.Contains(out, "on standby: cs1, for 2s") {
		t.Errorf("standby says %q", out)
	}
	c.wait(time.Minute, "cs1 to be active again", mode(""))
	if evs := c.eventsOf("server-mode"); evs[len(evs)-1].Cause.Reason != "its time on standby is over" {
		t.Errorf("the last change of mode: %+v", evs[len(evs)-1])
	}
	if out, err := c.varve(20*time.Second, "-c", name, "standby", "--for", "soon", "cs1"); exitOf(err) != 2 {
		t.Errorf("standby --for soon: %v, %s", err, out)
	}

	// A file of which one server has all there is.
	path := filepath.Join(c.mounts[0], "single")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(20*time.Second, "set-attr", path, "replicas=1:1")
	if err := os.WriteFile(path, []byte("once"), 0o644); err != nil {
		t.Fatal(err)
	}
	var victim uint32
	for _, e := range c.eventsOf("chunk-alloc") {
		for _, k := range e.Body.Chunks {
			if len(k.Servers) == 1 {
				victim = k.Servers[0]
			}
		}
	}
	if victim == 0 {
		t.Fatal("no chunk has one replica")
	}
	cs := fmt.Sprint("cs", victim)
	c.wait(time.Minute, "all chunk servers to be live", c.allLive)
	out, err := c.varve(20*time.Second, "-c", name, "rm-cs", "--force", cs)
	if exitOf(err) != 4 || !strings.Contains(out, "/single") || !strings.Contains(out, "lives") {
		t.Errorf("removal of a server that lives: %v, %s", err, out)
	}
	if out, err := c.varve(20*time.Second, "-c", name, "rm-cs", "--lose-data", cs); exitOf(err) != 2 {
		t.Errorf("--lose-data alone: %v, %s", err, out)
	}
	pid := c.pid(cs)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGCONT) // if the test ends before
	c.wait(time.Minute, cs+" to be away", func() error {
		s, err := c.server(victim)
		if err == nil && s.State == "live" {
			err = fmt.Errorf("state %s", s.State)
		}
		return err
	})
	if out, err = c.varve(20*time.Second, "-c", name, "rm-cs", "--force", cs); exitOf(err) != 4 || !strings.Contains(out, "/single") || !strings.Contains(out, "--lose-data") {
		t.Errorf("removal without a word about what is lost: %v, %s", err, out)
	}
	if out = c.must(20*time.Second, "-c", name, "rm-cs", "--force", "--lose-data", cs); !strings.Contains(out, "lost: 1 chunk") || !strings.Contains(out, "/single") {
		t.Errorf("rm-cs says %q", out)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.wait(time.Minute, cs+" to stop by itself", func() error {
		if unix.Kill(pid, 0) == nil && c.pid(cs) != 0 {
			return fmt.Errorf("pid %d", pid)
		}
		return nil
	})
	if out, err := c.varve(20*time.Second, "cs", "-r", filepath.Join(c.dir, cs)); exitOf(err) != 4 || !strings.Contains(out, "removed from cluster") {
		t.Errorf("the removed server's directory starts: %v, %s", err, out)
	}
}
