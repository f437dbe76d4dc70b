package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

const (
	fencedBlocks  = 256 // blocks of the file that changes hands
	fencedWriters = 4
)

// holdFile in the environment makes the test binary write to that file, see runHolder.
const holdFile = "VARVE_E2E_HOLD"

// holder is a process that has a file of one mount open and writes to it. It is a process of its own, because one that has such a
// file open cannot start others while the mount stands still: closing the file in the child asks the mount.
type holder struct {
	cmd    *exec.Cmd
	writes atomic.Int64
	as     atomic.Int64 // when there were so many, by the clock of the day
	mu     sync.Mutex
	errs   []string // of writers, in the end one each, and of one more write
	done   chan struct{}
}

// runHolder is that process: it writes without pause, each write direct, until every writer has failed, and says so.
func runHolder(path string) int {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var writes atomic.Int64
	var wg sync.WaitGroup
	for w := range fencedWriters {
		wg.Go(func() {
			buf := disk.AlignedBuffer(blockSize)
			for seq := uint64(1); ; seq++ {
				block := w + fencedWriters*int(seq%(fencedBlocks/fencedWriters))
				stamp(buf, block, 1<<32+seq)
				if _, err := f.WriteAt(buf, int64(block)*blockSize); err != nil {
					fmt.Println("error", err)
					return
				}
				writes.Add(1)
			}
		})
	}
	stop := make(chan struct{})
	var said sync.WaitGroup
	said.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				at := time.Now().UnixNano()
				fmt.Println("writes", writes.Load(), at)
			}
		}
	})
	wg.Wait()
	close(stop)
	said.Wait()
	fmt.Println("writes", writes.Load(), time.Now().UnixNano())
	if _, err := f.WriteAt(disk.AlignedBuffer(blockSize), 0); err != nil {
		fmt.Println("error", err)
	}
	f.Close() // it may say that something was lost
	return 0
}

// hold starts a holder of the file.
func hold(t *testing.T, path string) *holder {
	t.Helper()
	h := &holder{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	h.cmd.Env = append(os.Environ(), holdFile+"="+path)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err == nil {
		err = h.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(h.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var n, at int64
			if k, _ := fmt.Sscanf(lines.Text(), "writes %d %d", &n, &at); k == 2 {
				h.writes.Store(n)
				h.as.Store(at)
				continue
			}
			h.mu.Lock()
			h.errs = append(h.errs, lines.Text())
			h.mu.Unlock()
		}
		h.cmd.Wait() // what it had to say it has said
	}()
	t.Cleanup(func() { h.cmd.Process.Kill(); <-h.done })
	return h
}

// end waits until every writer has failed, and checks with what.
func (h *holder) end(t *testing.T) {
	t.Helper()
	select {
	case <-h.done:
	case <-time.After(2 * time.Minute):
		t.Fatal("a writer of the fenced mount still writes")
	}
	if len(h.errs) != fencedWriters+1 {
		t.Errorf("%d writers and one write afterwards failed, want all %d", len(h.errs), fencedWriters+1)
	}
	for _, err := range h.errs {
		if !strings.HasSuffix(err, unix.EIO.Error()) && !strings.HasSuffix(err, unix.ESTALE.Error()) {
			t.Errorf("a write of the fenced mount failed with %q, want EIO or ESTALE", err)
		}
	}
}

// pause stops a process of the cluster until the returned function is called, or the test ends.
func (c *cluster) pause(name string) (resume func()) {
	c.t.Helper()
	pid := c.pid(name)
	if pid == 0 {
		c.t.Fatalf("%s is not running", name)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		c.t.Fatalf("stop %s (pid %d): %v", name, pid, err)
	}
	resume = sync.OnceFunc(func() {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			c.t.Errorf("continue %s (pid %d): %v", name, pid, err)
		}
	})
	c.t.Cleanup(resume)
	return resume
}

// sessionOf returns the open session of a mount.
func (c *cluster) sessionOf(mount string) uint64 {
	c.t.Helper()
	var session uint64
	c.wait(30*time.Second, "a session of "+mount, func() error {
		st, err := c.status()
		if err != nil {
			return err
		}
		for _, s := range st.Sessions {
			if s.Mount == mount {
				session = s.Session
				return nil
			}
		}
		return errors.New("none is open")
	})
	return session
}

// closing returns the line of the journal that says how the session ended.
func (c *cluster) closing(session uint64) string {
	c.t.Helper()
	return c.must(30*time.Second, "-c", c.name(), "journal", "cat", "--type", "session-close", "--session", strconv.FormatUint(session, 10))
}

// newcomer writes the whole file through a mount and returns what it wrote.
func newcomer(t *testing.T, path string, tag uint64) []byte {
	t.Helper()
	want := disk.AlignedBuffer(fencedBlocks * blockSize)
	for i := range fencedBlocks {
		stamp(want[i*blockSize:(i+1)*blockSize], i, tag)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("open by the next mount: %v", err)
	}
	defer f.Close()
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatalf("write by the next mount: %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Fatalf("fsync by the next mount: %v", err)
	}
	return want
}

// TestFence stops the process of a mount that has a file open and writes under way, has the file taken from it in each of the ways
// there are, writes the file through another mount, and lets the old one go on: nothing that it still sends may change a byte.
func TestFence(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 4, 2, "3:2")
	const cause = "the host hangs"
	for _, v := range []struct {
		name   string
		take   func(t *testing.T, path string, session uint64)
		reason string   // in the event
		stop   string   // a chunk server that is stopped as well
		resume []string // in this order
	}{
		{name: "expiry", reason: ") expired, ", resume: []string{"mount1"},
			take: func(*testing.T, string, uint64) {}}, // the next open waits for it
		{name: "take", reason: "taken by force: ", resume: []string{"mount1"},
			take: func(t *testing.T, path string, session uint64) {
				in := "/" + filepath.Base(path)
				refused, code := c.exit("-c", c.name(), "lease", "take", in, "--wait", "500ms")
				if code != 4 || !strings.Contains(refused, c.mounts[0]) {
					t.Errorf("take without --force: exit code %d, %s", code, refused)
				}
				var out struct{ Fenced []uint64 }
				taken := c.must(90*time.Second, "-c", c.name(), "lease", "take", in, "--force", "--wait", "500ms", "--reason", cause, "--json")
				if err := json.Unmarshal([]byte(taken), &out); err != nil || len(out.Fenced) != 1 || out.Fenced[0] != session {
					t.Errorf("take --force: %v\n%s", err, taken)
				}
			}},
		{name: "fence", reason: "fenced by hand: ", resume: []string{"mount1"}, take: c.fenceIt(cause, "")},
		{name: "fence, requests stuck, chunk server first", reason: "fenced by hand: ", stop: "cs", resume: []string{"cs", "mount1"}, take: c.fenceIt(cause, "silent: cs")},
		{name: "fence, requests stuck, mount first", reason: "fenced by hand: ", stop: "cs", resume: []string{"mount1", "cs"}, take: c.fenceIt(cause, "silent: cs")},
	} {
		t.Run(v.name, func(t *testing.T) {
			sub := *c
			sub.t = t
			sub.fence(strings.ReplaceAll(v.name, " ", "-"), v.take, v.reason, v.stop, v.resume)
		})
	}
}

// fenceIt fences the session by its number, and expects the answer to say what says.
func (c *cluster) fenceIt(cause, says string) func(*testing.T, string, uint64) {
	return func(t *testing.T, _ string, session uint64) {
		out := c.must(90*time.Second, "-c", c.name(), "fence", fmt.Sprint(session), "--reason", cause)
		if !strings.Contains(out, "is fenced") || !strings.Contains(out, says) {
			t.Errorf("fence said %q, want %q in it", out, says)
		}
		c.must(90*time.Second, "-c", c.name(), "fence", fmt.Sprint(session)) // a second time
	}
}

// exit runs the binary under test and returns what it printed, both streams, and its exit code.
func (c *cluster) exit(args ...string) (string, int) {
	c.t.Helper()
	out, err := c.varve(60*time.Second, args...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out, 0
	case errors.As(err, &exit):
		return out, exit.ExitCode()
	}
	c.t.Fatalf("varve %s: %v", strings.Join(args, " "), err)
	return "", 0
}

func (c *cluster) fence(name string, take func(*testing.T, string, uint64), reason, stop string, order []string) {
	t := c.t
	c.wait(3*time.Minute, "the cluster to be whole", c.healthy)
	old, next := filepath.Join(c.mounts[0], name), filepath.Join(c.mounts[1], name)
	if err := os.WriteFile(old, make([]byte, fencedBlocks*blockSize), 0o644); err != nil {
		t.Fatal(err)
	}
	session := c.sessionOf(c.mounts[0])
	h := hold(t, old)
	c.wait(time.Minute, "writes", func() error {
		if h.writes.Load() < 100 {
			return fmt.Errorf("%d so far", h.writes.Load())
		}
		return nil
	})
	resume := make(map[string]func())
	if stop != "" {
		var at struct {
			Chunks []struct{ Replicas []struct{ Server string } }
		}
		if err := json.Unmarshal([]byte(c.must(30*time.Second, "get-attr", "--json", old)), &at); err != nil || len(at.Chunks) != 1 {
			t.Fatalf("get-attr: %v, %v", err, at)
		}
		// Its socket fills with requests that it has not seen; the mount is stopped before it gives the server up.
		resume[stop] = c.pause(at.Chunks[0].Replicas[0].Server)
		time.Sleep(300 * time.Millisecond)
	}
	resume["mount1"] = c.pause("mount1")
	paused := time.Now().UnixNano()
	take(t, old, session)
	want := newcomer(t, next, uint64(len(name)))
	if line := c.closing(session); !strings.Contains(line, reason) || !strings.Contains(line, "last renewed") {
		t.Errorf("the event that ended session %d: %q, want %q in it", session, line, reason)
	}
	c.wait(time.Minute, "the holder to say how much was written before the stop", func() error {
		if h.as.Load() <= paused {
			return errors.New("not yet")
		}
		return nil
	})
	before := h.writes.Load()
	for _, who := range order {
		resume[who]()
		time.Sleep(500 * time.Millisecond)
	}
	h.end(t)
	// What every replica had answered before the stop may still be reported as done; a new write may not.
	if late := h.writes.Load() - before; late > fencedWriters {
		t.Errorf("%d writes of the fenced mount were done after it had been fenced", late)
	}
	c.checkReplicas(3)
	for i, path := range []string{next, old} {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("read through mount %d: %v", i, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("through mount %d: the file is not what the new holder wrote, from byte %d on", i, firstDifference(got, want))
		}
	}
	if now := c.sessionOf(c.mounts[0]); now == session {
		t.Errorf("mount1 still has session %d", now)
	}
	// The old mount works again, under its new session.
	f, err := os.OpenFile(old, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("again"), 0); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	g, err := os.Open(next)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	b := make([]byte, 5)
	if _, err := io.ReadFull(g, b); err != nil || string(b) != "again" {
		t.Errorf("the other mount reads %q, %v", b, err)
	}
	t.Logf("%d writes by the old holder, %d errors", h.writes.Load(), len(h.errs))
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
