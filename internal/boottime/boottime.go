// Package boottime is the clock that leases are counted on: it never goes back, and also runs while the host sleeps, so that a process that
// was stopped finds out that its time is over.
//
// Now reads it. A simulation puts another clock in its place with Replace.
package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

var source = clock.read

// Now returns the time since the host was started, suspended time included.
func Now() time.Duration { return source() }

// Replace has Now answer with now, and returns what undoes it. Preconditions, of both: nothing that reads the clock is running.
func Replace(now func() time.Duration) (undo func()) {
	old := source
	source = now
	return func() { source = old }
}

var (
	processStart = time.Now()
	clock        = &reader{look: look, call: call}
)

// look reads the clock of the day and the monotonic one.
func look() (day, mono time.Duration) {
	now := time.Now()
	return time.Duration(now.UnixNano()), now.Sub(processStart)
}

// call reads the boot-time clock.
func call() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Since(processStart) // only before Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}
