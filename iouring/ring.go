// Package iouring is a thin binding to the kernel's io_uring for files: a Ring owned by one goroutine, to which
// reads, writes, syncs and hole punches are submitted in batches and from which completions are reaped.
//
// Use: New, then Read, Write, Sync, Punch or Nop to queue operations, Submit to hand them to the kernel, Reap to take
// completions, Close. Every operation carries a value of the caller's that comes back in its Completion.
//
// A Ring belongs to one goroutine, which must be locked to its thread (runtime.LockOSThread) from New to Close: the best modes
// of the kernel (SINGLE_ISSUER, DEFER_TASKRUN) allow one submitting thread only. New chooses the best mode that the kernel has
// and Mode says which. The package knows nothing of varve.
//
// Buffers. The kernel uses a buffer from Submit until its completion was reaped. The ring keeps each buffer
// reachable until then, so a caller may forget it; it must not change or reuse it. Close waits for what is under way.
//
// Source: the kernel's include/uapi/linux/io_uring.h and the manual pages of liburing.
package iouring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrFull means that the submission queue, or the table of operations under way, has no room: Submit and Reap first.
var ErrFull = errors.New("io_uring: queue is full")

// ErrUnavailable means that the kernel has no io_uring or does not let this process use it.
var ErrUnavailable = errors.New("io_uring is not available")

// Options of a ring. The zero value works.
type Options struct {
	Entries uint32 // submissions that fit between two Submits, a power of two; default 128. Twice as many may be under way.
	// Plain asks for the ring without newer modes, as on kernels before 5.19.
	Plain bool
}

// Mode is how a ring was set up, best first.
type Mode int

// Modes.
const (
	DeferTaskrun Mode = iota // SINGLE_ISSUER and DEFER_TASKRUN, kernel 6.1
	CoopTaskrun              // COOP_TASKRUN, kernel 5.19
	Plain
)

func (m Mode) String() string {
	return [...]string{"single issuer, deferred task work", "cooperative task work", "plain"}[m]
}

var modeFlags = [...]uint32{
	DeferTaskrun: setupSingleIssuer | setupDeferTaskrun,
	CoopTaskrun:  setupCoopTaskrun | setupTaskrunFlag,
	Plain:        0,
}

// Completion is the end of one operation.
type Completion struct {
	Data uint64 // the caller's value
	N    int    // bytes, if Err is nil
	Err  error  // a unix.Errno
}

// slot keeps what an operation under way uses.
type slot struct {
	data uint64
	buf  []byte
	next int32 // of the free list
}

// New sets a ring up in the best mode that the kernel has. Errors wrap ErrUnavailable where io_uring cannot be used at all.
func New(o Options) (*Ring, error) {
	if o.Entries == 0 {
		o.Entries = 128
	}
	if o.Entries > 4096 || o.Entries&(o.Entries-1) != 0 {
		return nil, fmt.Errorf("io_uring: %d entries: want a power of two up to 4096", o.Entries)
	}
	first := DeferTaskrun
	if o.Plain {
		first = Plain
	}
	var last error
	for mode := first; mode <= Plain; mode++ {
		r, err := setup(o.Entries, modeFlags[mode])
		if err == nil {
			r.mode = mode
			return r, nil
		}
		last = err
		if !errors.Is(err, unix.EINVAL) {
			break // not a question of flags
		}
	}
	if errors.Is(last, unix.ENOSYS) || errors.Is(last, unix.EPERM) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, last)
	}
	return nil, fmt.Errorf("io_uring: set up %d entries: %w", o.Entries, last)
}

// Mode tells how the ring was set up.
func (r *Ring) Mode() Mode { return r.mode }

// Pending is the number of operations queued or under way.
func (r *Ring) Pending() int { return r.pending }

// take reserves a slot and an entry of the submission queue.
func (r *Ring) take(data uint64, buf []byte) (*sqe, error) {
	if r.closed {
		return nil, unix.EBADF
	}
	e := r.nextSQE()
	if e == nil || r.free < 0 {
		return nil, ErrFull
	}
	n := r.free
	s := &r.slots[n]
	r.free = s.next
	s.data, s.buf = data, buf
	*e = sqe{userData: uint64(n)}
	r.pending++
	r.queued++
	return e, nil
}

// Read queues a read of len(p) bytes at off.
func (r *Ring) Read(fd int, p []byte, off int64, data uint64) error {
	return r.transfer(opRead, fd, p, off, data)
}

// Write queues a write of p at off.
func (r *Ring) Write(fd int, p []byte, off int64, data uint64) error {
	return r.transfer(opWrite, fd, p, off, data)
}

func (r *Ring) transfer(op Opcode, fd int, p []byte, off int64, data uint64) error {
	if len(p) == 0 || off < 0 {
		return unix.EINVAL
	}
	e, err := r.take(data, p)
	if err != nil {
		return err
	}
	e.opcode, e.fd, e.off, e.len = op, int32(fd), uint64(off), uint32(len(p))
	e.addr = address(p)
	return nil
}

// Sync queues an fdatasync. It does not wait for writes queued before it: reap those first.
func (r *Ring) Sync(fd int, data uint64) error {
	e, err := r.take(data, nil)
	if err != nil {
		return err
	}
	e.opcode, e.fd, e.opFlags = opFsync, int32(fd), fsyncDatasync
	return nil
}

// Punch queues a hole punch of [off, off+n) that keeps the file's size.
func (r *Ring) Punch(fd int, off, n int64, data uint64) error {
	e, err := r.take(data, nil)
	if err != nil {
		return err
	}
	e.opcode, e.fd, e.off = opFallocate, int32(fd), uint64(off)
	e.addr, e.len = uint64(n), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE
	return nil
}

// Nop queues nothing at all, which completes.
func (r *Ring) Nop(data uint64) error {
	e, err := r.take(data, nil)
	if err == nil {
		e.opcode = opNop
	}
	return err
}

// Submit hands what is queued to the kernel and waits until at least wait operations have completed (0: does not wait).
func (r *Ring) Submit(wait int) error {
	if r.closed {
		return unix.EBADF
	}
	if wait > r.pending {
		return fmt.Errorf("io_uring: wait for %d of %d operations: %w", wait, r.pending, unix.EINVAL)
	}
	r.publish()
	for r.queued > 0 || r.ready() < wait {
		n, err := r.enter(r.queued, wait)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil:
			return fmt.Errorf("io_uring: enter: %w", err)
		}
		r.queued -= n
	}
	return nil
}

// Reap appends the completions that are there to dst, at most max, without waiting. The deferred mode delivers completions
// only inside Submit.
func (r *Ring) Reap(dst []Completion, max int) []Completion {
	for ; max > 0; max-- {
		c, ok := r.nextCQE()
		if !ok {
			break
		}
		s := &r.slots[c.userData]
		done := Completion{Data: s.data, N: int(c.res)}
		if c.res < 0 {
			done.N, done.Err = 0, unix.Errno(-c.res)
		}
		s.buf = nil
		s.next, r.free = r.free, int32(c.userData)
		r.pending--
		dst = append(dst, done)
	}
	return dst
}

// Close waits for what is under way and frees the ring. Completions that were not reaped are lost.
func (r *Ring) Close() error {
	if r.closed {
		return nil
	}
	var err error
	for r.pending > 0 && err == nil {
		if err = r.Submit(1); err == nil {
			r.Reap(nil, r.pending)
		}
	}
	r.closed = true
	return errors.Join(err, r.release())
}
