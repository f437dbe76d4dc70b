package reactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Task is something to do on the loop's thread. Its owner embeds it, sets Run once, and may post it again once Run was called.
type Task struct {
	Run  func()
	next *Task
}

// Loop is one reactor: a goroutine locked to its thread. But for Start, Post, Do, Close, Kind, Reason and Stats everything in this package
// is called on that thread only: in callbacks and in posted tasks.
type Loop struct {
	o      Options
	log    *slog.Logger
	kind   Kind
	reason string
	b      backend

	began   time.Time
	now     time.Duration // since began, as of the last look
	wheel   wheel
	active  int // operations started and not ended
	backlog opList
	dirty   *Conn // connections with something to send
	conns   *Conn
	listens *Listener

	tasks    atomic.Pointer[Task] // newest first; endTask: nothing is taken any more
	sleeping atomic.Bool
	closing  bool
	deaf     bool // no task is taken any more
	stats    counters

	closeOnce sync.Once
	closeTask Task
	ended     chan struct{}
	err       error // before ended is closed: why the loop could not go on
}

// backend is a way to talk to the kernel. All but wake is called on the loop's thread.
type backend interface {
	// start begins an operation, which ends in a later wait. It returns false, and has done nothing, if there is no room.
	start(op *Op) bool
	cancel(op *Op)
	// wait hands the kernel what was started, waits for something to end or for d (less than 0: for ever), and finishes what has.
	// An error means that the loop cannot go on.
	wait(d time.Duration) error
	// wake ends a wait, the present one or the next. Any goroutine may call it.
	wake()
	// adopt makes a socket fit, forget ends all that is kept of it, before it is closed and when nothing is under way.
	adopt(fd int) error
	forget(fd int)
	// watch makes a descriptor fit for opPoll.
	watch(fd int) error
	close() error
}

// endTask marks the task list of a loop that has ended.
var endTask = new(Task)

// counters are read by others.
type counters struct {
	waits, sleeps, wakes, operations, backlogged, posted, accepted atomic.Uint64
	active, conns, waiting                                         atomic.Int64
}

// Stats are a loop's counters since its start, and how much of what it has now.
type Stats struct {
	Waits      uint64 // turns of the loop
	Sleeps     uint64 // of these, with nothing else to do
	Wakes      uint64 // system calls that others made to wake it
	Operations uint64 // started
	Backlogged uint64 // of these, had to wait for room
	Posted     uint64 // tasks
	Accepted   uint64 // connections

	UnderWay, Waiting, Conns int // as of the last turn: operations, those of them that wait for room, connections
}

// Start makes a loop and starts its thread.
func Start(o Options) (*Loop, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Loop{o: o, log: o.Logger, began: time.Now(), ended: make(chan struct{})}
	l.wheel.init()
	l.closeTask.Run = l.shut
	ready := make(chan error)
	go l.run(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return l, nil
}

// Kind tells how the loop talks to the kernel.
func (l *Loop) Kind() Kind { return l.kind }

// Reason says why it is that kind, for people.
func (l *Loop) Reason() string { return l.reason }

// Done is closed when the loop has ended: after Close, or when it could not go on, which Err tells. Then what was under way stays so, and nothing
// is called any more: the process is best ended.
func (l *Loop) Done() <-chan struct{} { return l.ended }

// Err returns why the loop could not go on, nil if that is not why it ended. Call it after Done.
func (l *Loop) Err() error { return l.err }

// Stats returns the loop's counters.
func (l *Loop) Stats() Stats {
	c := &l.stats
	return Stats{
		Waits: c.waits.Load(), Sleeps: c.sleeps.Load(), Wakes: c.wakes.Load(), Operations: c.operations.Load(),
		Backlogged: c.backlogged.Load(), Posted: c.posted.Load(), Accepted: c.accepted.Load(),
		UnderWay: int(c.active.Load()), Waiting: int(c.waiting.Load()), Conns: int(c.conns.Load()),
	}
}

// choose makes the backend.
func (l *Loop) choose() error {
	if l.o.Kind != Poll {
		b, how, err := newRing(l)
		if err == nil {
			l.b, l.kind, l.reason = b, Ring, how
			return nil
		}
		if l.o.Kind == Ring {
			return err
		}
		l.reason = err.Error()
	} else {
		l.reason = "as asked for"
	}
	b, err := newPoll(l)
	if err != nil {
		return err
	}
	l.b, l.kind = b, Poll
	return nil
}

func (l *Loop) run(ready chan<- error) {
	runtime.LockOSThread()
	defer close(l.ended)
	defer runtime.UnlockOSThread()
	if err := l.choose(); err != nil {
		ready <- err
		return
	}
	close(ready)
	for !l.over() && l.err == nil {
		l.turn()
	}
	l.end()
}

// turn is one round: posted tasks, timers, sends that have gathered, then the kernel.
func (l *Loop) turn() {
	l.look()
	if !l.deaf {
		l.work(l.tasks.Swap(nil))
	}
	l.wheel.advance(uint64(l.now / tick))
	l.feed()
	l.flush()
	if l.over() {
		return
	}
	c := &l.stats
	c.waits.Add(1)
	c.active.Store(int64(l.active))
	c.waiting.Store(int64(l.backlog.n))
	d := l.pause()
	if d != 0 {
		// Who posts after this store wakes the loop; who posted before it is seen by the load.
		l.sleeping.Store(true)
		if !l.deaf && l.tasks.Load() != nil {
			d = 0
		} else {
			c.sleeps.Add(1)
		}
	}
	err := l.b.wait(d)
	l.sleeping.Store(false)
	if err != nil {
		l.err = err
		l.log.Error("reactor cannot go on", "kind", l.kind, "err", err)
	}
}

// pause is how long the kernel may let the loop wait.
func (l *Loop) pause() time.Duration {
	if l.dirty != nil {
		return 0
	}
	next, any := l.wheel.next()
	if !any {
		return -1
	}
	return max(0, time.Duration(next)*tick-l.now)
}

// woke is called after a wait, before what has ended is finished: what that posts is dealt with in the next turn, and need not wake anybody.
func (l *Loop) woke() {
	l.sleeping.Store(false)
	l.look()
}

// look reads the clock.
func (l *Loop) look() { l.now = time.Since(l.began) }

// SetTimer has t fire in d, counted from when the present turn of the loop began, or up to a millisecond later.
func (l *Loop) SetTimer(t *Timer, d time.Duration) {
	l.wheel.set(t, max(l.wheel.now+1, uint64((l.now+max(d, 0)+tick-1)/tick)))
}

// StopTimer stops t, if it is set: it does not fire any more.
func (l *Loop) StopTimer(t *Timer) { l.wheel.stop(t) }

// work runs tasks, the oldest first.
func (l *Loop) work(newest *Task) {
	var oldest *Task
	for t := newest; t != nil; {
		next := t.next
		t.next = oldest
		oldest, t = t, next
	}
	for t := oldest; t != nil; {
		next := t.next
		t.next = nil
		t.Run() // may post t again
		t = next
	}
}

// Post has the loop run t, after those that were posted before. Any goroutine may call it; it costs a system call only
// if the loop sleeps. It returns false, and t is never run, if the loop has ended.
func (l *Loop) Post(t *Task) bool {
	for {
		head := l.tasks.Load()
		if head == endTask {
			return false
		}
		t.next = head
		if l.tasks.CompareAndSwap(head, t) {
			break
		}
	}
	l.stats.posted.Add(1)
	l.rouse()
	return true
}

// rouse wakes the loop if it sleeps.
func (l *Loop) rouse() {
	if l.sleeping.Load() && l.sleeping.CompareAndSwap(true, false) {
		l.stats.wakes.Add(1)
		l.b.wake()
	}
}

// Do has the loop run fn. It allocates: where that matters, embed a Task.
func (l *Loop) Do(fn func()) bool { return l.Post(&Task{Run: fn}) }

// Close ends the loop: listeners and connections are closed, file operations under way are waited for. If ctx ends first, Close
// returns an error and the loop ends as soon as the kernel has given back its last buffer.
func (l *Loop) Close(ctx context.Context) error {
	l.closeOnce.Do(func() { l.Post(&l.closeTask) })
	select {
	case <-l.ended:
		return l.err
	case <-ctx.Done():
		return fmt.Errorf("reactor: %d operations are still under way: %w", l.Stats().UnderWay, ctx.Err())
	}
}

// shut begins the end.
func (l *Loop) shut() {
	l.closing = true
	for n := l.listens; n != nil; n = n.next {
		n.Close()
	}
	for c := l.conns; c != nil; c = c.next {
		c.Close(ErrClosed)
	}
}

// over reports whether there is nothing left to wait for.
func (l *Loop) over() bool {
	return l.closing && l.active == 0 && l.conns == nil && l.listens == nil && l.dirty == nil
}

// end refuses tasks from now on, runs those that were taken, and lets what they have started end.
func (l *Loop) end() {
	last := l.tasks.Swap(endTask)
	l.deaf = true
	l.work(last)
	for !l.over() && l.err == nil {
		l.turn()
	}
	l.err = errors.Join(l.err, l.b.close())
	l.stats.active.Store(int64(l.active))
}
