package iouring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Waker ends a ring's wait from any goroutine.
type Waker struct {
	data  uint64
	index int

	set    atomic.Bool  // the ring was woken and has not seen it
	mu     sync.RWMutex // held by a wake-up against close: a descriptor may become another file's
	closed bool
	sqe    SQE // the message, if the kernel takes one from a thread without a ring
	direct bool

	eventFD int  // or else the owner reads this
	armed   bool // a read is under way; of the owner
	count   [8]byte
}

// eventOne is what a wake-up adds to an eventfd.
var eventOne = binary.NativeEndian.AppendUint64(nil, 1)

// NewWaker makes a waker whose completions carry data and Woken. Wake may be called from any goroutine, also before Enable.
func (r *Ring) NewWaker(data uint64) (*Waker, error) {
	if r.closed {
		return nil, ErrClosed
	}
	w := &Waker{data: data, index: len(r.wakers), eventFD: -1}
	if w.direct = r.has.Has(SyncMsgRing); w.direct {
		w.sqe = SQE{Opcode: OpMsgRing, FD: int32(r.fd), Off: tagWaker | uint64(w.index)}
	} else {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("io_uring: eventfd of a waker: %w", err)
		}
		w.eventFD, r.chores = fd, true
	}
	r.wakers = append(r.wakers, w)
	return w, nil
}

// Wake makes the ring's owner reap a completion with Woken. Between that and the next Wake others do nothing: an
// owner that looks for work after it has reaped the completion misses none that was there before the Wake.
func (w *Waker) Wake() error {
	if w.set.Swap(true) {
		return nil
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	err := ErrClosed
	for tries := 0; !w.closed && tries < retries; tries++ {
		if w.direct {
			err = syncMessage(&w.sqe)
		} else {
			_, err = unix.Write(w.eventFD, eventOne)
		}
		if err == nil || err == unix.EBADFD { // not enabled yet: Enable looks for it
			return nil
		}
		if err != unix.EINTR && err != unix.EAGAIN && err != unix.ENOMEM {
			break
		}
	}
	w.set.Store(false)
	return fmt.Errorf("io_uring: wake a ring: %w", err)
}

// close makes later calls of Wake fail.
func (w *Waker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// arm queues the read that a wake-up completes.
func (r *Ring) arm(w *Waker) error {
	e, err := r.own(OpRead, tagWaker|uint64(w.index))
	if err != nil {
		return err
	}
	e.FD, e.Addr, e.Len = int32(w.eventFD), address(w.count[:]), uint32(len(w.count))
	w.armed = true
	return nil
}

// woken makes the owner's completion of a wake-up.
func (r *Ring) woken(w *Waker, res int32, c *Completion) bool {
	if !w.direct {
		w.armed = false
		r.internal--
		if r.chores = true; res < 0 {
			return false
		}
	}
	w.set.Store(false)
	c.Data, c.Flags = w.data, Woken
	return true
}

// doChores does what the ring owes to itself before it submits.
func (r *Ring) doChores() {
	if r.last != nil {
		r.last.Flags &^= sqeLink | sqeHardLink // a chain ends with its submission
	}
	r.chores = false
	for _, w := range r.wakers {
		if !w.direct && !w.armed && !w.closed {
			r.chores = r.arm(w) != nil || r.chores
		}
	}
	for _, g := range r.groups {
		r.chores = !g.provide() || r.chores
	}
}

// Message queues a completion for another ring, of this process, which gets value, below 2^62, n and the flag Message. The completion here says
// whether it arrived. The target must not be closed before that.
func (r *Ring) Message(target *Ring, value uint64, n int32, data uint64) (Op, error) {
	if !r.has.Has(MsgRing) {
		return 0, fmt.Errorf("message to a ring: %w", ErrUnsupported)
	}
	if value&tagMask != 0 || n < 0 {
		return 0, fmt.Errorf("io_uring: message %#x, %d: want less than 2^62 and not negative: %w", value, n, unix.EINVAL)
	}
	e, _, err := r.take(OpMsgRing, FD(target.fd), data)
	if err != nil {
		return 0, err
	}
	e.Off, e.Len = tagMessage|value, uint32(n)
	return Op(e.UserData), nil
}

// closeWakers frees what wakers have.
func (r *Ring) closeWakers() error {
	var err error
	for _, w := range r.wakers {
		if w.eventFD >= 0 {
			err = errors.Join(err, unix.Close(w.eventFD))
		}
	}
	r.wakers = nil
	return err
}
