package reactor

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// ring is the backend on io_uring.
type ring struct {
	l       *Loop
	r       *iouring.Ring
	group   *iouring.BufferGroup
	waker   *iouring.Waker
	ops     []*Op    // those that the ring has, by the number that comes back with their completions
	free    []uint32 // numbers that none has
	dying   opList
	arenas  [][]byte // registered, in their places
	err     error    // the ring is of no use any more
	done    []iouring.Completion
	behind  []iouring.Completion // with Options.Batch: what has ended and is to be finished, the oldest at place next
	next    int
	ringing iouring.Op    // the alarm
	alarm   time.Duration // on the loop's clock: when a time-out that the kernel has ends a wait; 0: it has none
}

const (
	// cancels is the room for cancellations under way, beside that for operations. More wait.
	cancels = 64
	// reapAtOnce is how many completions are taken before callbacks run.
	reapAtOnce = 256
	// maxRegistered is the kernel's limit of a registered buffer.
	maxRegistered = 1 << 30
	// cancelled is the number of all cancellations, alarmed that of the alarm.
	cancelled = 1 << 32
	alarmed   = 1<<32 + 1
	// alarmFrom is how far away an end of a wait must be for an alarm: nearer ones are over before an alarm pays.
	alarmFrom = 50 * time.Millisecond
)

var _ backend = (*ring)(nil)

func newRing(l *Loop) (backend, string, error) {
	o := l.o.Ring
	o.InFlight, o.HandOver = uint32(l.o.Operations+cancels), uint32(l.o.Batch)
	if o.Completions == 0 {
		o.Completions = 4 * o.Entries
	}
	o.Buffers = uint32(len(l.pieces()))
	r, err := iouring.New(o)
	if err != nil {
		return nil, "", err
	}
	// A number is free when its completion was dealt with, which is later than when the ring's own slot is.
	b := &ring{l: l, r: r, ops: make([]*Op, l.o.Operations), done: make([]iouring.Completion, 0, reapAtOnce)}
	for i := range b.ops {
		b.free = append(b.free, uint32(len(b.ops)-1-i))
	}
	if b.group, err = r.NewBufferGroup(0, l.o.Buffers, l.o.BufferSize); err == nil {
		b.waker, err = r.NewWaker(0)
	}
	if err != nil {
		return nil, "", errors.Join(err, r.Close())
	}
	how := r.Mode()
	if err := b.register(); err != nil {
		l.log.Warn("memory not registered with the ring, going on without", "err", err)
		how += ", memory not registered"
	}
	return b, how, nil
}

// register registers the arenas, in pieces as large as the kernel takes.
func (b *ring) register() error {
	for _, a := range b.l.pieces() {
		if err := b.r.SetBuffer(len(b.arenas), a); err != nil {
			return err
		}
		b.arenas = append(b.arenas, a)
	}
	return nil
}

// pieces are the arenas, cut where they are too large to be registered as one. What lies across a cut is used unregistered.
func (l *Loop) pieces() (all [][]byte) {
	for _, a := range l.o.Arenas {
		for len(a) > maxRegistered {
			all = append(all, a[:maxRegistered])
			a = a[maxRegistered:]
		}
		if len(a) > 0 {
			all = append(all, a)
		}
	}
	return all
}

// adopt makes a socket block: a ring's operation on one that does not ends with EAGAIN instead of waiting.
func (b *ring) adopt(fd int) error { return unix.SetNonblock(fd, false) }

func (b *ring) forget(int) {}

func (b *ring) watch(int) error { return nil }

func (b *ring) start(op *Op) bool {
	if len(b.free) == 0 || b.err != nil {
		return false
	}
	i := b.free[len(b.free)-1]
	h, err := b.queue(op, uint64(i))
	if err != nil {
		if !errors.Is(err, iouring.ErrFull) {
			b.err = fmt.Errorf("start an operation: %w", err)
		}
		return false
	}
	b.free = b.free[:len(b.free)-1]
	b.ops[i] = op
	op.handle = uint64(h)
	return true
}

// queue puts an operation into the submission queue.
func (b *ring) queue(op *Op, data uint64) (iouring.Op, error) {
	r, fd := b.r, iouring.FD(op.fd)
	switch op.code {
	case opAccept:
		return r.AcceptMulti(fd, data)
	case opRecv:
		if op.multi {
			return r.RecvMulti(fd, b.group, data)
		}
		return r.RecvSelect(fd, b.group, data)
	case opFill:
		return r.Recv(fd, op.buf, unix.MSG_WAITALL, data)
	case opSend:
		return r.Send(fd, op.buf, unix.MSG_WAITALL, data)
	case opSendMsg:
		return r.SendV(fd, op.vec.parts[:op.vec.n], unix.MSG_WAITALL, data)
	case opRead:
		if i := b.arena(op.buf); i >= 0 {
			return r.ReadFixed(fd, op.buf, op.off, i, data)
		}
		return r.Read(fd, op.buf, op.off, data)
	case opWrite:
		if i := b.arena(op.buf); i >= 0 {
			return r.WriteFixed(fd, op.buf, op.off, i, data)
		}
		return r.Write(fd, op.buf, op.off, data)
	case opSync:
		return r.Sync(fd, data)
	case opPunch:
		return r.Punch(fd, op.off, op.n, data)
	case opPoll:
		return r.Poll(fd, uint32(op.n), data)
	case opRaw:
		return r.Raw(op.raw, data)
	case opAllocate:
		return r.Fallocate(fd, 0, op.off, op.n, data)
	}
	return 0, fmt.Errorf("operation %d is unknown", op.code)
}

// arena returns the place of the registered buffer in which p lies, -1 if it lies in none.
func (b *ring) arena(p []byte) int {
	for i, a := range b.arenas {
		if within(p, a) {
			return i
		}
	}
	return -1
}

func (b *ring) cancel(op *Op) { b.dying.push(op) }

// kill asks the kernel to cancel what is to be, as far as there is room. What has ended meanwhile has left the list.
func (b *ring) kill() {
	for b.dying.first != nil {
		if _, err := b.r.Cancel(iouring.Op(b.dying.first.handle), cancelled); err != nil {
			return // the next turn
		}
		b.dying.pop()
	}
}

func (b *ring) wake() {
	if err := b.waker.Wake(); err != nil && !errors.Is(err, iouring.ErrClosed) {
		b.l.log.Error("reactor not woken", "err", err)
	}
}

func (b *ring) wait(d time.Duration) error {
	if b.dying.first != nil {
		b.kill()
	}
	if b.err != nil {
		return b.err
	}
	n := 1
	if d == 0 || b.dying.first != nil || b.late() {
		n = 0
	}
	if n > 0 && d > 0 && b.alarms(d) {
		d = -1
	}
	if err := b.r.SubmitWait(n, d); err != nil {
		return err
	}
	b.l.woke()
	for more := true; more; {
		b.done = b.r.Reap(b.done[:0], reapAtOnce)
		more = len(b.done) == reapAtOnce
		for i := range b.done {
			if c := &b.done[i]; b.l.o.Batch == 0 || b.first(c) {
				b.complete(c)
			} else {
				b.behind = append(b.behind, *c)
			}
		}
	}
	for i := 0; i < b.l.o.Batch && b.late(); i++ {
		b.next++
		b.complete(&b.behind[b.next-1])
	}
	if b.next > len(b.behind)/2 { // there are no more of them than operations
		b.behind, b.next = b.behind[:copy(b.behind, b.behind[b.next:])], 0
	}
	return nil
}

// alarms reports whether the alarm ends a wait of d soon enough; the loop then sees that nothing is due, or what is. Most timers are seconds away and
// stopped long before: a limit for each wait would have the kernel set and stop a timer of its own each time, one that stays costs nothing.
func (b *ring) alarms(d time.Duration) bool {
	end := b.l.now + d
	switch {
	case d < alarmFrom || b.alarm != 0 && b.alarm <= end+tick:
	case b.alarm == 0:
		if op, err := b.r.Timeout(d, 0, alarmed); err == nil {
			b.alarm, b.ringing = end, op
		}
	default: // if it has fired meanwhile, its completion is there
		if _, err := b.r.TimeoutUpdate(b.ringing, d, cancelled); err == nil {
			b.alarm = end
		}
	}
	return b.alarm != 0 && b.alarm <= end+tick
}

// first reports whether a completion goes before others: all but those that end work. Those of one operation, and of one direction of a connection, stay in
// order.
func (b *ring) first(c *iouring.Completion) bool {
	if c.Flags&iouring.Woken != 0 || c.Data >= cancelled {
		return true
	}
	switch b.ops[c.Data].code {
	case opRead, opWrite, opSync, opPunch, opAllocate, opSend, opSendMsg:
		return false
	}
	return true
}

// late reports whether something has ended that is to be finished yet.
func (b *ring) late() bool { return b.next < len(b.behind) }

func (b *ring) complete(c *iouring.Completion) {
	if c.Flags&iouring.Woken != 0 || c.Data >= cancelled {
		if c.Data == alarmed {
			b.alarm = 0
		}
		return // whatever a cancellation found, the operation ends by itself
	}
	op := b.ops[c.Data]
	res := result{n: c.N, err: c.Err, more: c.More()}
	if !res.more {
		b.ops[c.Data] = nil
		b.free = append(b.free, uint32(c.Data))
		if op.killed {
			b.dying.remove(op)
		}
	}
	if c.Flags&iouring.HasBuffer != 0 {
		res.data = b.group.Buffer(c.Buffer)[:max(c.N, 0)]
		b.l.finish(op, res)
		b.group.Recycle(c.Buffer)
		return
	}
	b.l.finish(op, res)
}

func (b *ring) close() error { return b.r.Close() }
