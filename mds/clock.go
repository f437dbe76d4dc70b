package mds

import (
	"context"
	"time"

	"varve/internal/boottime"
)

// bootNow returns the time since boot, suspended time included, so that a machine or process that was stopped finds out.
func bootNow() time.Duration {
	return boottime.Now()
}

// sleep waits for d or until ctx ends; it reports whether d has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
