package e2e

import (
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

// unmountLimit is how long any way of ending a mount may take, whatever hangs: systemd waits for 90 s.
const unmountLimit = 60 * time.Second

// ended waits until a process is gone.
func ended(t *testing.T, what string, pid int) {
	t.Helper()
	begin := time.Now()
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") { // a zombie: its parent stands still
			break
		}
		if time.Since(begin) > unmountLimit {
			t.Fatalf("%s: process %d is still there after %v", what, pid, unmountLimit)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%s: the process was gone after %v", what, time.Since(begin).Round(100*time.Millisecond))
}

// TestUnmountWhateverHangs ends mounts with writes under way in each way there is, while the chunk servers stand still, as on disks that hang, and
// when the whole cluster is gone.
func TestUnmountWhateverHangs(t *testing.T) {
	need(t, "umount")
	t.Parallel() // it waits more than it works
	c := up(t, 1, 3, 4, "3:2")
	write := func(m int) *holder {
		path := filepath.Join(c.mounts[m], fmt.Sprint("vm", m))
		if err := os.WriteFile(path, make([]byte, fencedBlocks*blockSize), 0o644); err != nil {
			t.Fatal(err)
		}
		h := hold(t, path)
		c.goesOn(h)
		return h
	}
	failing := filepath.Join(filepath.Dir(c.mounts[0]), "failing")
	if err := os.Mkdir(failing, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.varve(unmountLimit, "umount", "--lazy", failing) })
	c.must(30*time.Second, "-c", c.name(), "mount", "-o", "errors=fail:2", "-l", filepath.Join(c.dir, "failing.log"), failing)
	lazy, told, killed := write(0), write(1), write(3)
	if err := os.WriteFile(filepath.Join(c.mounts[2], "closed"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	pids := make([]int, 4)
	for i := range pids {
		pids[i] = c.pid(fmt.Sprintf("mount%d", i+1))
	}
	c.pause("supervisor") // so that it mounts nothing again
	var thaw []func()
	for i := range c.cs {
		thaw = append(thaw, c.pause(fmt.Sprintf("cs%d", i+1)))
	}
	out, code := c.exit("umount", c.mounts[0])
	if want := fmt.Sprintf("(pid %d): %s", lazy.cmd.Process.Pid, c.mounts[0]); code != 4 || !strings.Contains(out, want) {
		t.Errorf("umount of what is in use: exit code %d, %q; want %q", code, out, want)
	}
	begin := time.Now()
	out, code = c.exit("umount", "--lazy", c.mounts[0])
	if took := time.Since(begin); code != 0 || took > 40*time.Second || !strings.Contains(out, "still used by") {
		t.Errorf("lazy umount: exit code %d after %v, %q", code, took, out)
	}
	lazy.cmd.Process.Kill()
	begin = time.Now()
	if b, err := os.ReadFile(filepath.Join(failing, "vm0")); !errors.Is(err, unix.EIO) {
		t.Errorf("read with errors=fail:2 while the chunk servers stand still: %d bytes, %v", len(b), err)
	}
	t.Logf("errors=fail:2 failed after %v", time.Since(begin).Round(100*time.Millisecond))
	for i := range c.cs {
		c.kill(fmt.Sprintf("cs%d", i+1))
	}
	c.kill("mds1")
	for _, f := range thaw {
		f()
	}
	ended(t, "detached, and its writer killed", pids[0])

	begin = time.Now()
	cmd := exec.Command("umount", c.mounts[2])
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	granted(t, "umount(8) of an idle mount without a cluster", done, unmountLimit)
	t.Logf("umount(8) took %v", time.Since(begin).Round(100*time.Millisecond))
	ended(t, "unmounted by umount(8)", pids[2])
	begin = time.Now()
	killed.cmd.Process.Kill()
	select {
	case <-killed.done:
	case <-time.After(unmountLimit):
		t.Errorf("a killed process with writes that wait is still there after %v", unmountLimit)
	}
	t.Logf("a killed process with writes that wait was gone after %v", time.Since(begin).Round(100*time.Millisecond))
	for _, m := range []int{1, 3} {
		if err := unix.Kill(pids[m], unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	ended(t, "told to stop, with writes under way", pids[1])
	ended(t, "told to stop, its writer killed", pids[3])
	select {
	case <-told.done: // with errors, as nobody serves its file any more
	case <-time.After(unmountLimit):
		t.Errorf("the writer of a mount that was told to stop is still there after %v", unmountLimit)
	}
}
