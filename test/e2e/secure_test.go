package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/nbd"
)

// TestSecureWhileItRuns: a cluster of real processes that was made without security gets it while a mount writes and reads back, and varve nbd has an image; nothing
// is restarted for it, no operation fails, and afterwards a node without a certificate is told what to do.
func TestSecureWhileItRuns(t *testing.T) {
	need(t)
	c := up(t, 3, 3, 1, "3:1", "--insecure")
	away := filepath.Join(t.TempDir(), "away") // a node that is off all the time: what it knows of the cluster
	if err := os.CopyFS(away, os.DirFS(c.name())); err != nil {
		t.Fatal(err)
	}
	written := make([]byte, 4<<20)
	_, _ = rand.Read(written) // never fails
	path := filepath.Join(c.mounts[0], "image")
	if err := os.WriteFile(path, written, 0o644); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(c.mounts[0], "a.img"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(c.dir, "nbd.sock")
	c.serve("nbd", "nbd", "--socket", socket, "a.img")
	disk := dialExport(t, socket)
	through := func(n byte) {
		t.Helper()
		want, got := bytes.Repeat([]byte{n}, blockSize), make([]byte, blockSize)
		if err := disk.Do(nbd.CmdWrite, 0, uint64(n)*blockSize, want, 0); err != nil {
			t.Fatalf("write by NBD: %v", err)
		}
		if err := disk.Do(nbd.CmdRead, 0, uint64(n)*blockSize, got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read by NBD: %v", err)
		}
	}
	through(1)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- rewrite(ctx, path, written) }()

	if out, err := c.varve(30*time.Second, "-c", c.name(), "cluster", "secure", "--finish"); err == nil {
		t.Errorf("finished before it was begun:\n%s", out)
	}
	cmd := exec.Command(varveBinary, "-c", c.name(), "cluster", "secure", "-r", filepath.Join(c.dir, "mds2"), "--node", "dev", "--password-fd", "0")
	cmd.Stdin = strings.NewReader("a password that nobody guesses\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "SHA256:") {
		t.Fatalf("%v\n%s", err, out)
	}
	var state struct {
		Secured, Opening bool
		Members          []struct{ Name, State string }
	}
	status := func() (plain []string) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.must(30*time.Second, "-c", c.name(), "cluster", "secure", "--status", "--json")), &state); err != nil {
			t.Fatal(err)
		}
		for _, m := range state.Members {
			if m.State != "certificate" {
				plain = append(plain, m.Name+" "+m.State)
			}
		}
		return plain
	}
	var plain []string
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		// Who connects anew, with a certificate, is no member for a moment.
		if plain = status(); len(plain) == 0 && len(state.Members) >= 8 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still without a certificate: %q, of %+v", plain, state)
		}
	}
	through(2)
	if !state.Secured || !state.Opening {
		t.Errorf("status: %+v", state)
	}
	if out := c.must(30*time.Second, "-c", away, "stat"); !strings.Contains(out, "cs") {
		t.Errorf("who has no certificate is not served before the end:\n%s", out)
	}
	c.must(30*time.Second, "-c", c.name(), "cluster", "secure", "--finish")
	if status(); !state.Secured || state.Opening {
		t.Errorf("status: %+v", state)
	}
	// It holds through deaths, and for those that come later.
	c.kill("cs1")
	c.kill("mds1")
	for deadline := time.Now().Add(60 * time.Second); c.pid("cs1") == 0 || c.pid("mds1") == 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the killed servers do not come back")
		}
	}
	through(3)
	time.Sleep(time.Second) // of writing
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-c", away, "stat"}, {"-c", away, "mount", "-f", "-o", "retry=1", t.TempDir()}} {
		for try := 1; ; try++ { // on a busy machine the second of the mount may be over before a server has refused it
			out, err := c.varve(60*time.Second, args...)
			if err != nil && strings.Contains(out, "auth-node") {
				break
			}
			if err == nil || try == 20 {
				t.Errorf("varve %q without a certificate: %v\n%s", args, err, out)
				break
			}
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, written) {
		t.Errorf("the image differs from what was written: %v", err)
	}
}

// rewrite changes a file block by block and reads back what it wrote, until ctx ends.
func rewrite(ctx context.Context, path string, want []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, 64<<10)
	for at := 0; ctx.Err() == nil; at = (at + len(got)) % len(want) {
		block := want[at : at+len(got)]
		_, _ = rand.Read(block) // never fails
		if _, err := f.WriteAt(block, int64(at)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if _, err := f.ReadAt(got, int64(at)); err != nil {
			return err
		}
		if !bytes.Equal(got, block) {
			return &os.PathError{Op: "compare", Path: path, Err: os.ErrInvalid}
		}
	}
	return nil
}
