package bonds

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/test/netns"
)

// TestMount: a mount, whose reads and writes go on on reactors by connections of their own, uses both links too, and goes on over one when the other leads
// nowhere.
func TestMount(t *testing.T) {
	if !soak() && os.Getenv(netns.Binary) == "" {
		t.Skip("TestTwoLinks has the short form: VARVE_SOAK=1")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE: ", err)
	}
	if !again(t, 4*time.Minute) {
		return
	}
	a, b := join(t)
	name := b.cluster(t)
	dir := t.TempDir()
	cmd := a.command(context.WithoutCancel(t.Context()), "", "-c", name, "mount", "-f", "-o", "readahead=0", dir)
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	a.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = exec.Command("umount", "-l", dir).Run() // it may have ended
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("mount:\n%s", text)
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type == 0x65735546 { // FUSE_SUPER_MAGIC
			break
		}
		if time.Now().After(end) {
			t.Fatal("no mount")
		}
	}
	for _, kind := range []string{"read", "write"} {
		two(t, a, b, name, kind, cuts["write"], "--target", "mount:"+dir, "--direct", "--engine", "sync")
	}
}
