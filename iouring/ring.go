package iouring

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ring is one io_uring. See the package comment for who may use it.
type Ring struct {
	shared // what is mapped together with the kernel
	slots  slotTable

	o       Options
	has     Feature
	fd      int
	enterFD int    // fd, or its place among the thread's registered rings
	enterFl uint32 // flags of every enter

	queued   int // entries that the kernel did not take yet
	internal int // operations of the ring's own that have not completed
	last     *SQE
	thread   int // that owns the ring
	disabled bool
	closed   bool
	chores   bool // a waker is to be armed, or buffers are to be given back

	wakers []*Waker
	groups map[uint16]*BufferGroup
	bufs   [][]byte // the table of registered buffers
	files  int      // places in the table of files

	// Arguments of system calls: they are here since what a call points to must not be on a stack.
	arg    eventsArg
	ts     unix.Timespec
	fdArg  [1]int32
	iovArg [1]unix.Iovec
	update rsrcUpdate2
}

// New sets a ring up in the best way that the kernel has. Errors wrap ErrUnavailable where io_uring cannot be used at all.
func New(o Options) (*Ring, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	has, err := Probe()
	if err != nil {
		return nil, err
	}
	has &^= o.Without
	if !has.Has(SingleIssuer) {
		has &^= DeferTaskrun // the kernel wants both
	}
	if o.SQE128 && !has.Has(SQE128) || o.CQE32 && !has.Has(CQE32) {
		return nil, fmt.Errorf("SQE128 or CQE32: %w", ErrUnsupported)
	}
	r, err := setup(o, has)
	if err != nil {
		return nil, err
	}
	if err := r.tables(); err != nil {
		return nil, errors.Join(err, r.release())
	}
	hold(r)
	if o.Disabled {
		r.disabled = true
		return r, nil
	}
	if err := r.begin(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// begin does what only the owner can do first.
func (r *Ring) begin() error {
	r.registerSelf()
	if err := r.registerWorkers(); err != nil {
		return fmt.Errorf("io_uring: limit the kernel's threads to %d and %d: %w", r.o.FileWorkers, r.o.OtherWorkers, err)
	}
	return nil
}

// setupFlags are the flags of io_uring_setup for a ring with these features.
func setupFlags(o Options, has Feature) uint32 {
	f := uint32(setupClamp | setupCQSize)
	for _, t := range []struct {
		on   bool
		flag uint32
	}{
		{has.Has(SubmitAll), setupSubmitAll},
		{has.Has(NoSQArray), setupNoSQArray},
		{has.Has(SingleIssuer), setupSingleIssuer},
		{has.Has(DeferTaskrun), setupDeferTaskrun},
		{has.Has(CoopTaskrun) && !has.Has(DeferTaskrun), setupCoopTaskrun | setupTaskrunFlag},
		{o.SQE128, setupSQE128},
		{o.CQE32, setupCQE32},
		{o.Disabled, setupDisabled},
	} {
		if t.on {
			f |= t.flag
		}
	}
	return f
}

// Enable lets a ring that was made with Options.Disabled work. The calling thread owns it from now on.
func (r *Ring) Enable() error {
	if !r.disabled {
		return nil
	}
	if err := r.register(regEnableRings, nil, 0); err != nil {
		return fmt.Errorf("io_uring: enable: %w", err)
	}
	r.disabled = false
	if err := r.begin(); err != nil {
		return err
	}
	for _, w := range r.wakers {
		if w.direct && w.set.Load() {
			if err := syncMessage(&w.sqe); err != nil {
				return fmt.Errorf("io_uring: enable: wake-up that came before: %w", err)
			}
		}
	}
	return nil
}

// Mode tells in words how completions reach the owner, for people.
func (r *Ring) Mode() string {
	switch {
	case r.has.Has(DeferTaskrun):
		return "single issuer, deferred task work"
	case r.has.Has(SingleIssuer | CoopTaskrun):
		return "single issuer, cooperative task work"
	case r.has.Has(CoopTaskrun):
		return "cooperative task work"
	}
	return "plain"
}

// Features are those that the kernel has and Options.Without did not take away.
func (r *Ring) Features() Feature { return r.has }

// Has tells whether the ring has all of these features.
func (r *Ring) Has(f Feature) bool { return r.has.Has(f) }

// FD is the ring's descriptor, for Message of another process's ring or for poll. It stays the ring's.
func (r *Ring) FD() int { return r.fd }

// Pending is the number of operations queued or under way.
func (r *Ring) Pending() int { return r.slots.used }

// Queued is the number of entries that Submit would hand over.
func (r *Ring) Queued() int { return int(r.tail - atomic.LoadUint32(r.sqHead)) }

// Room is the number of operations that fit into the table of operations now: Options.InFlight less those pending. A few
// cancellations fit in addition, so that operations that wait for each other can always be ended.
func (r *Ring) Room() int { return max(0, r.slots.left()-forCancel) }

// forCancel is the number of slots that only cancellations get.
const forCancel = 16

// Slots is one more than the greatest Op.Slot.
func (r *Ring) Slots() int { return len(r.slots.all) }

// Reserve makes room for n operations in the queue, handing over what stands in it if need be. A chain of linked operations
// must be handed over at once, so reserve its length before its first. ErrFull says that there is no room.
func (r *Ring) Reserve(n int) error {
	if r.closed {
		return ErrClosed
	}
	if n > r.Room() {
		return ErrFull
	}
	if r.room() < n {
		if err := r.flush(); err != nil {
			return err
		}
		if r.room() < n {
			return ErrFull
		}
	}
	return nil
}

// flush hands over what is queued without waiting.
func (r *Ring) flush() error {
	r.publish()
	for tries := 0; r.queued > 0; {
		if err := r.enter(0, 0, 0); err != nil {
			if again, err := r.retry(err, &tries); err != nil || !again {
				return err
			}
		}
	}
	return nil
}

// retries bounds how often the kernel may say that it has no memory just now before the owner is told.
const retries = 1000

// retry sorts the errors of io_uring_enter. It returns true if the call is to be made again, false without an error if the
// owner has to reap first.
func (r *Ring) retry(err error, tries *int) (bool, error) {
	switch err {
	case unix.EINTR:
		return true, nil
	case unix.EAGAIN, unix.EBUSY, unix.ENOMEM:
		if r.ready() > 0 || r.overflown() {
			return false, nil
		}
		if *tries++; *tries < retries {
			runtime.Gosched()
			return true, nil
		}
	case unix.EBADR:
		return false, ErrLost
	case unix.EEXIST, unix.EBADF, unix.EINVAL: // the last two of a place among another thread's registered rings
		return false, fmt.Errorf("io_uring: enter: %w: called by thread %d, but %d owns the ring", err, unix.Gettid(), r.thread)
	case unix.EBADFD:
		return false, fmt.Errorf("io_uring: enter: %w: the ring was not enabled", err)
	}
	return false, fmt.Errorf("io_uring: enter: %w", err)
}

// Submit hands what is queued to the kernel and waits until at least wait completions are there (0: does not wait). It also makes
// the kernel deliver what is ready, which the deferred mode does in here only. If it returns with an entry still queued, the kernel was
// short of memory or of room for completions: reap and call again.
func (r *Ring) Submit(wait int) error { return r.SubmitWait(wait, -1) }

// SubmitWait is Submit that waits for d at most, if d is not negative. That the time is over is not an error.
func (r *Ring) SubmitWait(wait int, d time.Duration) error {
	if r.closed {
		return ErrClosed
	}
	if r.chores {
		r.doChores()
	}
	r.publish()
	if r.queued == 0 {
		if ready := r.ready(); wait > 0 && ready >= wait || wait <= 0 && ready == 0 && !r.kernelHasWork() {
			return nil
		}
	}
	limit := uint32(0)
	var end time.Time
	if d >= 0 && wait > 0 {
		limit, end = enterExtArg, time.Now().Add(d)
	}
	for tries := 0; ; {
		err := r.enter(wait, enterGetEvents|limit, d)
		if err == unix.ETIME {
			return nil
		}
		if err != nil {
			if again, err := r.retry(err, &tries); err != nil || !again {
				return err
			}
		}
		if r.queued == 0 && r.ready() >= wait {
			return nil
		}
		if limit != 0 {
			if d = time.Until(end); d <= 0 {
				wait, limit, d = 0, 0, -1 // only what is still queued
				if r.queued == 0 {
					return nil
				}
			}
		}
	}
}

// kernelHasWork tells whether a call without anything to submit can make completions appear.
func (r *Ring) kernelHasWork() bool {
	return r.has.Has(DeferTaskrun) || atomic.LoadUint32(r.sqFlags)&(sqOverflow|sqTaskrun) != 0
}

func (r *Ring) overflown() bool { return atomic.LoadUint32(r.sqFlags)&sqOverflow != 0 }

// Close ends all operations: what was not handed to the kernel is dropped, what is under way is cancelled and waited for, then
// everything is freed. Completions that were not reaped are lost. Only the owner may call it.
//
// If operations do not end within Options.CloseWithin, Close returns an error that wraps ErrStuck, and all that the kernel may still
// write to stays allocated for the rest of the process.
func (r *Ring) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	for _, w := range r.wakers {
		w.close()
	}
	if r.disabled {
		release(r)
		return r.release()
	}
	if unix.Gettid() != r.thread { // the kernel decides whether that may be
		r.unregisterSelf()
	}
	r.drop()
	if err := r.drain(); err != nil {
		r.unregisterSelf()
		return errors.Join(err, unix.Close(r.fd)) // and stays held
	}
	err := r.unregister()
	release(r)
	return errors.Join(err, r.release())
}

// drop takes back what the kernel was not shown yet, or did not take.
func (r *Ring) drop() {
	head := atomic.LoadUint32(r.sqHead)
	for t := head; t != r.tail; t++ {
		if e := r.sqe(t); e.UserData&tagMask == tagSlot {
			r.slots.put(uint32(e.UserData))
		} else {
			r.internal--
		}
	}
	r.tail, r.queued, r.last = head, 0, nil
	atomic.StoreUint32(r.sqTail, head)
}

// drain cancels what is under way until nothing is.
func (r *Ring) drain() error {
	end := time.Now().Add(r.o.CloseWithin)
	var done [64]Completion
	for step := 10 * time.Millisecond; r.slots.used > 0 || r.internal > 0; step = min(2*step, time.Second) {
		if err := r.cancelEverything(); err != nil {
			return err
		}
		for next := time.Now().Add(step); r.slots.used > 0 || r.internal > 0; {
			left := time.Until(next)
			if left <= 0 {
				break
			}
			r.closed = false // for this one call
			err := r.SubmitWait(1, left)
			r.closed = true
			if err != nil {
				return fmt.Errorf("close: %w", err)
			}
			r.Reap(done[:0], len(done))
		}
		if time.Now().After(end) && (r.slots.used > 0 || r.internal > 0) {
			return fmt.Errorf("close: %d after %v: %w", r.slots.used, r.o.CloseWithin, ErrStuck)
		}
	}
	return nil
}
