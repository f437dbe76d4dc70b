package perf

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/disk"
	"varve/iouring"

	"golang.org/x/sys/unix"
)

// maxErrors is how many failed operations end a run, unless it is told.
const maxErrors = 1000

// load is a run under way: what the workers share.
type load struct {
	o     *Options
	setUp sync.WaitGroup // workers that are not ready to begin
	begun chan struct{}  // closed when start is set and the load begins
	start time.Time
	ctx   context.Context // ends the run; its cause is why. It lives as long as the run.
	stop  context.CancelCauseFunc
	grace time.Duration // how long to wait for operations that do not end, after stop
	fails atomic.Int64
}

// begin waits for the start of the load. Each worker calls it once, when it has all that it needs or cannot work.
func (l *load) begin() {
	l.setUp.Done()
	<-l.begun
}

// errTime ends a run whose time is over.
var errTime = errors.New("time is over")

// now is the time since the start of the run.
func (l *load) now() time.Duration { return time.Since(l.start) }

// over reports whether no further operation may start.
func (l *load) over() bool { return l.overAt(l.now()) }

// overAt is over at a moment that the caller knows.
func (l *load) overAt(now time.Duration) bool {
	return l.o.Duration > 0 && now >= l.o.total() || l.ctx.Err() != nil
}

// endError is the error of an operation after which no other can fare better.
type endError struct {
	kind opKind
	err  error
}

func (e endError) Error() string { return reason(e.kind, e.err) }

// failed counts an error and ends the run where it must.
func (l *load) failed(kind opKind, err error) {
	if endsRun(err) {
		l.stop(endError{kind, err})
	} else if l.fails.Add(1) >= int64(l.o.MaxErrors) {
		l.stop(fmt.Errorf("%d operations failed, the last: %s", l.o.MaxErrors, reason(kind, err)))
	}
}

// finish checks and records an operation that has ended, and gives it back to its job.
func (l *load) finish(j *job, r *recorder, x outcome, p []byte) {
	r.flights[x.slot].end()
	if x.err == nil && x.op.kind != opSync {
		x.bytes = int64(len(p))
		if j.file.clone != nil {
			x.bytes = j.file.clone.size
		}
		x.checked = j.state != nil && x.op.kind == opRead
		x.fault = j.inspect(x.op, p)
	}
	j.done(x.op, x.err)
	if x.err != nil {
		l.failed(x.op.kind, x.err)
	}
	r.add(x)
}

// syncWorker does operations of j one after the other with plain system calls.
func (l *load) syncWorker(j *job, r *recorder) {
	var p []byte
	if j.o.data() {
		p = disk.AlignedBuffer(int(l.o.BlockSize))
		j.ready(p, 0)
	}
	l.begin()
	for !l.over() {
		o, ok := j.next()
		if !ok {
			return
		}
		j.prepare(o, p)
		if !l.await(o.due) {
			j.done(o, errTime)
			return
		}
		x := outcome{op: o, started: l.now()}
		r.flights[0].begin(o, x.started)
		switch {
		case o.kind == opSync:
			x.err = j.file.sync()
		case j.names != nil:
			x.err = j.names.do(&x.op)
		case o.kind == opClone && j.file.clone != nil: // null has none
			x.err = j.file.clone.do()
		case o.kind == opClone:
		default:
			x.err = j.file.transfer(o.kind, p, o.block*l.o.BlockSize)
		}
		x.ended = l.now()
		l.finish(j, r, x, p)
	}
}

// maxNap bounds a nap, so that the end of the run is noticed.
const maxNap = 10 * time.Millisecond

// await waits until an operation is due, false if the run is over before. It sleeps in the kernel: Go's own timers may be a
// millisecond late.
func (l *load) await(due time.Duration) bool {
	for {
		left := due - l.now()
		if left <= 0 {
			return true
		}
		if l.over() {
			return false
		}
		ts := unix.NsecToTimespec(int64(min(left, maxNap)))
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil) // interrupted: the loop looks again
	}
}

// ringWorker does the operations of j through a ring, up to QD at once. The goroutine's thread is given up at the end.
func (l *load) ringWorker(j *job, r *recorder) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w, err := newRingWorker(l, j, r)
	l.begin()
	if err != nil {
		l.stop(err)
		return
	}
	if err := errors.Join(w.loop(), w.close()); err != nil {
		l.stop(fmt.Errorf("job %d: %w", j.n, err))
	}
}

// chooseEngine returns the engine that runs. Rings are tried on a thread of their own.
func chooseEngine(t target, e Engine) (Engine, error) {
	switch {
	case t.server():
		return Wire, nil
	case e == Sync, t.core(), t.mds(), t.nbd():
		return Sync, nil
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ring, err := iouring.New(iouring.Options{Entries: 8})
		if err == nil {
			err = ring.Close()
		}
		result <- err
	}()
	err := <-result
	switch {
	case err == nil:
		return URing, nil
	case e == Auto:
		return Sync, nil
	}
	return "", err
}
