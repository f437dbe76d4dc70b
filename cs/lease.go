package cs

import (
	"context"
	"sync/atomic"
	"time"

	"varve/internal/boottime"
)

// bootTime returns nanoseconds on a clock that also runs while the host sleeps, so that a server that was
// stopped finds out that its lease is over.
func bootTime() int64 {
	return int64(boottime.Now())
}

// lease is the right to serve data. It is held from the last answer of the leader, counted from when the question was sent.
type lease struct {
	expiry   atomic.Int64 // on the boot-time clock
	inflight atomic.Int64 // requests admitted and not ended
}

// drainPoll is the pause between looks whether the requests of an old lease have ended.
const drainPoll = time.Millisecond

// enter admits a request, which must leave. It returns false, and there is nothing to leave, if the lease is over.
func (l *lease) enter() bool {
	// Counted first: renew, which makes an expired lease valid, sees every request that was admitted before.
	l.inflight.Add(1)
	if bootTime() < l.expiry.Load() {
		return true
	}
	l.inflight.Add(-1)
	return false
}

func (l *lease) leave() { l.inflight.Add(-1) }

// held reports whether the lease holds.
func (l *lease) held() bool { return bootTime() < l.expiry.Load() }

// renew extends the lease to until. If it had run out, renew first waits until all that was admitted under it has ended: a
// write that a sleeping host left half done must not come after writes that the leader allowed meanwhile.
func (l *lease) renew(ctx context.Context, until int64) error {
	if !l.held() {
		if err := l.drain(ctx); err != nil {
			return err
		}
	}
	if until > l.expiry.Load() {
		l.expiry.Store(until)
	}
	return nil
}

// drain waits until nothing is under way. Preconditions: nothing is admitted meanwhile.
func (l *lease) drain(ctx context.Context) error {
	for l.inflight.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
	}
	return nil
}
