package client

import (
	"context"
	"testing"
	"time"

	"varve/internal/fserr"
)

// TestClosedClientLeavesNoLocks: what was to go on in the background when the client was closed gives its blocks back, so that
// what waits for them ends.
func TestClosedClientLeavesNoLocks(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	if err := f.Flush(t.Context()); err != nil { // nothing is left to report
		t.Fatal(err)
	}
	in := f.in
	all, err := in.ranges.lock(t.Context(), 0, lastBlock, true)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Truncate(context.Background(), 4096) }()
	eventually(t, "a truncate that waits for the blocks", func() bool {
		in.ranges.mu.Lock()
		defer in.ranges.mu.Unlock()
		return len(in.ranges.all) == 2
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	in.ranges.unlock(all)
	if err := <-done; fserr.Of(err) != fserr.Stale {
		t.Errorf("truncate of a client that was closed: %v", err)
	}
	hold, err := in.ranges.lock(t.Context(), 0, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	in.settle(hold, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if hold, err = in.ranges.lock(ctx, 0, lastBlock, true); err != nil {
		t.Fatalf("blocks stay locked: %v", err)
	}
	in.ranges.unlock(hold)
}
