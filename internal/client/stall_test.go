package client

import (
	"context"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
)

// refuse makes a chunk server answer writes with what makes the client wait, or not.
func (s *fakeCS) refuse(yes bool) {
	s.set(func() {
		s.before = nil
		if yes {
			s.before = func(wire.Type, *wire.DataRequest) fserr.Code { return fserr.NotReady }
		}
	})
}

// TestErrorPolicy: an operation that waits for longer than it may fails, then others at once, until one succeeds; what was given up
// is carried out all the same.
func TestErrorPolicy(t *testing.T) {
	const timeout = 3 * time.Second // less may pass on a busy machine without anybody's fault
	w := newWorld(t, 1, 2, 2, 2)
	c := w.dial(t, func(o *Options) {
		o.Timeout, o.FailFast, o.StallAfter = timeout, true, 100*time.Millisecond
	})
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	w.cs[2].refuse(true)
	timed := func(off int64, meanwhile func()) time.Duration {
		t.Helper()
		start, done := time.Now(), make(chan error, 1)
		go func() {
			_, _, err := f.WriteAt(context.Background(), fill(4096, 2), off, false)
			done <- err
		}()
		meanwhile()
		if err := within(t, "the write", done); fserr.Of(err) != fserr.Timeout {
			t.Fatalf("write with a replica that does not answer: %v", err)
		}
		return time.Since(start)
	}
	took := timed(0, func() {
		eventually(t, "the stall to be told", func() bool {
			s := c.Stalls()
			return len(s) == 1 && s[0].Operations == 1 && s[0].What == "replicas inode="+f.Ino().String()
		})
	})
	if took < timeout {
		t.Errorf("the first write failed after %v, want %v at least", took, timeout)
	}
	if !c.patience.data.Load() {
		t.Error("the next would wait as long")
	}
	if took := timed(4096, func() {}); took < failFast { // the longest it may take cannot be told on a busy machine
		t.Errorf("the second write failed after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.ReadAt(ctx, make([]byte, 10), 0); err == nil {
		t.Error("read after its caller had gone")
	}
	if !c.patience.data.Load() {
		t.Error("an interrupted operation counts as one that succeeded")
	}
	w.cs[2].refuse(false)
	eventually(t, "what was given up to be carried out", func() bool { return c.patience.left.Load() == 0 })
	got := make([]byte, 8192)
	eventually(t, "a read to succeed", func() bool { // until one has, a busy machine can make it fail again
		n, err := f.ReadAt(t.Context(), got, 0)
		return n == len(got) && err == nil
	})
	if got[0] != fill(1, 2)[0] || got[4096] != fill(1, 2)[0] {
		t.Error("what was given up was not carried out")
	}
	if c.patience.data.Load() {
		t.Error("stuck after a read that succeeded")
	}
	eventually(t, "no stalls", func() bool { return len(c.Stalls()) == 0 }) // the size is being reported, on a busy machine for a while
}

// TestRoomToGiveUp: writes that nobody waits for any more do not take all memory.
func TestRoomToGiveUp(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, func(o *Options) { o.Timeout = 100 * time.Millisecond })
	f := create(t, c, "a")
	c.patience.left.Store(maxLeft)
	if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 0, false); fserr.Of(err) != fserr.Timeout {
		t.Errorf("write: %v", err)
	}
	c.patience.left.Store(0)
	write(t, f, fill(4096, 2), 0)
}
