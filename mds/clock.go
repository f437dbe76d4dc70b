package mds

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// bootNow returns the time since boot, suspended time included, so that a machine or process that was stopped finds out.
func bootNow() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Duration(time.Now().UnixNano()) // kernels before 2.6.39
	}
	return time.Duration(ts.Nano())
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
