package perf

import (
	"context"
	"errors"
	"io"
	"runtime"
	"time"

	"varve/iouring"

	"golang.org/x/sys/unix"
)

// timerData marks the completion of the timer; those of operations carry the number of their slot.
const timerData = ^uint64(0)

// ringWorker drives one job through one ring. It belongs to one locked goroutine. Each operation is handed to the kernel when it is
// started, so that the target works while the next one is made; the last that fits goes with the call that waits.
type ringWorker struct {
	l     *load
	j     *job
	r     *recorder
	ring  *iouring.Ring
	mem   *ringMemory
	fd    iouring.FD
	slots []ringSlot
	free  []int // slots without an operation
	done  []iouring.Completion

	filled  time.Duration // when it last looked for an operation to start
	yielded time.Duration

	// The timer, a timerfd that is read through the ring: in open loop it wakes the worker when the next operation is
	// due, and at the end of the run. -1 in closed loop, where every completion wakes the worker.
	timer   int
	ticking bool // a read of the timer is under way
	tick    []byte
	ahead   op // given out by the job, not due yet, if waiting
	waiting bool
}

// Go's runtime (1.26) takes a thread that stays in system calls without a turn of its scheduler for one that hangs: after 10 ms it looks after it every 20
// µs, and takes its processor away each time, which is a quarter of the CPU of a transfer of 1 MiB. So the worker gives its turn away every yieldEvery,
// where it waits for longWait anyway.
const (
	longWait   = 100 * time.Microsecond
	yieldEvery = 9 * time.Millisecond
)

// ringSlot is an operation under way.
type ringSlot struct {
	x    outcome
	p    []byte
	done int // bytes of p
}

func newRingWorker(l *load, j *job, r *recorder) (*ringWorker, error) {
	mem, err := newRingMemory(l.o)
	if err != nil {
		return nil, err
	}
	for i := range l.o.QD {
		j.ready(mem.slot(i), i)
	}
	ring, fixed, err := mem.ring(l.o, j.file.fd)
	if err != nil {
		return nil, errors.Join(err, mem.free())
	}
	w := &ringWorker{l: l, j: j, r: r, ring: ring, mem: mem, fd: iouring.FD(j.file.fd), timer: -1, tick: make([]byte, 8), slots: make([]ringSlot, l.o.QD)}
	if fixed {
		w.fd = iouring.Fixed(0)
	}
	for i := range w.slots {
		w.slots[i].p = mem.slot(i)
		w.free = append(w.free, i)
	}
	if j.arrive != nil {
		if w.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	return w, nil
}

func (w *ringWorker) close() error {
	err := w.ring.Close()
	if err == nil { // else the kernel may still use it
		err = w.mem.free()
	}
	if w.timer >= 0 {
		err = errors.Join(err, unix.Close(w.timer))
	}
	return err
}

// loop works until nothing is left to start and all that was started has ended.
func (w *ringWorker) loop() error {
	if w.timer >= 0 { // a cancelled run must not wait for an operation that is due in an hour
		fired := make(chan struct{})
		stop := context.AfterFunc(w.l.ctx, func() { defer close(fired); _ = setTimer(w.timer, 1) })
		defer func() {
			if !stop() {
				<-fired // the timer is not closed while it is being set
			}
		}()
	}
	more, yield := true, false
	for {
		for more && len(w.free) > 0 {
			var err error
			if more, err = w.startNext(); err != nil {
				return err
			}
			if w.waiting {
				break
			}
			if len(w.free) > 0 { // else the call below hands it over
				if err = w.ring.Submit(0); err != nil {
					return err
				}
			}
		}
		if w.ring.Pending() == 0 {
			return nil
		}
		if !more && w.ticking && w.ring.Pending() == 1 {
			if err := setTimer(w.timer, 1); err != nil { // only the timer is left
				return err
			}
		}
		if yield {
			if err := w.ring.Submit(0); err != nil {
				return err
			}
			runtime.Gosched()
			w.yielded = w.l.now()
		}
		if err := w.ring.Submit(1); err != nil {
			return err
		}
		w.done = w.ring.Reap(w.done[:0], len(w.slots)+1)
		ended := w.l.now()
		yield = ended-w.filled > longWait && ended-w.yielded > yieldEvery
		var err error
		if more, err = w.reaped(more, ended); err != nil {
			return err
		}
	}
}

// reaped ends the operations that have completed, and starts another in place of each but the last. It returns whether there are more.
func (w *ringWorker) reaped(more bool, ended time.Duration) (bool, error) {
	last := len(w.done) - 1
	for i := range w.done {
		c := &w.done[i]
		if c.Data == timerData {
			w.ticking = false
			continue
		}
		if i > 0 && !w.l.o.Verify { // an operation lasts until it is taken note of; but to look at blocks is not charged to the next
			ended = w.l.now()
		}
		if err := w.completed(int(c.Data), *c, ended); err != nil {
			return false, err
		}
		if !more || w.waiting || i == last { // that is left to the loop
			continue
		}
		var err error
		if more, err = w.startNext(); err == nil {
			err = w.ring.Submit(0)
		}
		if err != nil {
			return false, err
		}
	}
	return more, nil
}

// startNext starts the job's next operation, or arms the timer if it is not due. It returns false if there is none.
func (w *ringWorker) startNext() (bool, error) {
	o, ok := w.ahead, w.waiting
	w.waiting = false
	now := w.l.now()
	w.filled = now
	if !ok {
		if w.l.overAt(now) {
			return false, nil
		}
		if o, ok = w.j.next(); !ok {
			return false, nil
		}
	}
	if left := o.due - now; left > 0 {
		if w.l.overAt(now) {
			w.j.done(o, errTime)
			return false, nil
		}
		w.ahead, w.waiting = o, true
		return true, w.wait(left)
	}
	n := w.free[len(w.free)-1]
	w.free = w.free[:len(w.free)-1]
	s := &w.slots[n]
	if o.kind == opWrite {
		w.j.prepare(o, s.p)
		now = w.l.now() // what it is made of is not measured
	}
	s.done = 0
	s.x = outcome{op: o, slot: n, started: now}
	w.r.flights[n].begin(o, now)
	return true, w.queue(n)
}

// wait makes the ring wake the worker after d.
func (w *ringWorker) wait(d time.Duration) error {
	if err := setTimer(w.timer, d); err != nil {
		return err
	}
	if w.l.ctx.Err() != nil { // cancelled before the timer was set, so nobody will
		if err := setTimer(w.timer, 1); err != nil {
			return err
		}
	}
	if w.ticking {
		return nil
	}
	w.ticking = true
	_, err := w.ring.Read(iouring.FD(w.timer), w.tick, 0, timerData)
	return err
}

func setTimer(fd int, d time.Duration) error {
	return unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}, nil)
}

// queue gives the rest of a slot's operation to the ring.
func (w *ringWorker) queue(n int) error {
	s, f := &w.slots[n], w.j.file
	off := f.base + s.x.op.block*w.l.o.BlockSize + int64(s.done)
	p, data := s.p[s.done:], uint64(n)
	var err error
	switch write := s.x.op.kind == opWrite; {
	case f.fd < 0:
		_, err = w.ring.Nop(data)
	case s.x.op.kind == opSync:
		_, err = w.ring.Sync(w.fd, data)
	case write && w.mem.fixed:
		_, err = w.ring.WriteFixed(w.fd, p, off, 0, data)
	case write:
		_, err = w.ring.Write(w.fd, p, off, data)
	case w.mem.fixed:
		_, err = w.ring.ReadFixed(w.fd, p, off, 0, data)
	default:
		_, err = w.ring.Read(w.fd, p, off, data)
	}
	return err
}

// completed takes what the ring says of a slot's operation, which goes on if it was done in part.
func (w *ringWorker) completed(n int, c iouring.Completion, ended time.Duration) error {
	s := &w.slots[n]
	transfer := s.x.op.kind != opSync && w.j.file.fd >= 0
	switch {
	case errors.Is(c.Err, unix.EINTR) || errors.Is(c.Err, unix.EAGAIN):
		return w.queue(n)
	case c.Err != nil:
		s.x.err = c.Err
	case transfer && c.N <= 0:
		s.x.err = io.ErrUnexpectedEOF
	case transfer && s.done+c.N < len(s.p):
		s.done += c.N
		return w.queue(n)
	}
	s.x.ended = ended
	w.l.finish(w.j, w.r, s.x, s.p)
	w.free = append(w.free, n)
	return nil
}
