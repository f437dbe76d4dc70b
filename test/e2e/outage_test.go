package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sessionLease is that of a cluster as `varve dev` makes it.
const sessionLease = 10 * time.Second

// goesOn waits until the holder has written more, and fails if one of its writes has failed.
func (c *cluster) goesOn(h *holder) {
	c.t.Helper()
	before := h.writes.Load()
	c.wait(90*time.Second, "writes to go on", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.errs) > 0 {
			c.t.Fatalf("writes failed: %v", h.errs)
		}
		if n := h.writes.Load(); n < before+100 {
			return fmt.Errorf("%d since", n-before)
		}
		return nil
	})
}

// TestOutage has a mount with writes under way stand still for longer than its session's lease, and then kills every server and keeps them away for as
// long: the writes wait, and go on under the same session, on the same open file.
func TestOutage(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 3, 2, "3:2")
	path, other := filepath.Join(c.mounts[0], "vm"), filepath.Join(c.mounts[1], "vm")
	if err := os.WriteFile(path, make([]byte, fencedBlocks*blockSize), 0o644); err != nil {
		t.Fatal(err)
	}
	session := c.sessionOf(c.mounts[0])
	h := hold(t, path)
	c.goesOn(h)

	resume := c.pause("mount1")
	c.wait(6*sessionLease, "the lease to be over", func() error {
		st, err := c.status()
		if err != nil {
			return err
		}
		for _, s := range st.Sessions {
			if s.Session == session {
				if over := sessionLease + 2*time.Second; s.RenewedMs < over.Milliseconds() {
					return fmt.Errorf("renewed %d ms ago", s.RenewedMs)
				}
				return nil
			}
		}
		t.Fatal("the session was closed, though nobody wants what it holds")
		return nil
	})
	if st, err := statOf(other); err != nil || st.Size != fencedBlocks*blockSize {
		t.Errorf("the file of the mount that stands still, by another: %v, size %d", err, st.Size)
	}
	resume()
	c.goesOn(h)

	back := c.pause("supervisor") // so that it starts nothing
	for i := range c.cs {
		c.kill(fmt.Sprintf("cs%d", i+1))
	}
	c.kill("mds1")
	time.Sleep(sessionLease + 2*time.Second)
	begin := time.Now()
	back()
	c.goesOn(h)
	t.Logf("writes go on %v after the servers were let back", time.Since(begin).Round(100*time.Millisecond))
	if now := c.sessionOf(c.mounts[0]); now != session {
		t.Errorf("session %d, was %d", now, session)
	}

	h.cmd.Process.Signal(unix.SIGKILL)
	<-h.done
	c.wait(90*time.Second, "the cluster to be whole", c.healthy)
	got, err := os.ReadFile(other)
	if err != nil || len(got) != fencedBlocks*blockSize {
		t.Fatalf("read by another mount: %d bytes, %v", len(got), err)
	}
	want := make([]byte, blockSize)
	for i := range fencedBlocks {
		b := got[i*blockSize : (i+1)*blockSize]
		seq := binary.LittleEndian.Uint64(b[8:])
		if stamp(want, i, seq); seq != 0 && string(b) != string(want) {
			t.Fatalf("block %d is torn or changed", i)
		}
	}
}
