package iouring

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Flags of a completion.
type Flags uint32

// The first five are the kernel's IORING_CQE_F_.
const (
	HasBuffer    Flags = 1 << 0 // Buffer is the number of a provided buffer, the owner's until Recycle
	More         Flags = 1 << 1 // the operation goes on: more completions follow
	SockNonEmpty Flags = 1 << 2 // the socket had more to receive
	Notif        Flags = 1 << 3 // the network is done with the buffers of a zero-copy send

	Message Flags = 1 << 30 // sent by Message of another ring: Data is its value
	Woken   Flags = 1 << 31 // a Waker woke the ring: Data is the waker's

	bufferShift = 16
)

// Completion is the end of one operation or, if More is set, something that happened to one that goes on.
type Completion struct {
	Data   uint64 // the caller's value
	Op     Op     // the operation's handle; of another operation later, unless More is set
	N      int    // the kernel's result, bytes mostly, if Err is nil
	Err    error  // a unix.Errno
	Flags  Flags
	Buffer uint16    // number of the provided buffer, with HasBuffer
	Extra  [2]uint64 // with Options.CQE32
}

// More tells whether more completions of the operation follow.
func (c *Completion) More() bool { return c.Flags&More != 0 }

// Copied tells of the notification of a zero-copy send (Notif) that the kernel copied after all, as it does on loopback.
// Kernels before 6.2 do not say.
func (c *Completion) Copied() bool { return c.Flags&Notif != 0 && uint32(c.N)&notifCopied != 0 }

// Reap appends the completions that are there to dst, at most max, without waiting. Those that did not fit into the ring are fetched
// from the kernel. The deferred mode delivers completions only inside Submit.
func (r *Ring) Reap(dst []Completion, max int) []Completion {
	head := *r.cqHead
	for max > 0 {
		tail := atomic.LoadUint32(r.cqTail)
		if head == tail {
			if !r.overflown() || !r.refill() {
				break
			}
			continue
		}
		for ; head != tail && max > 0; head++ {
			dst = append(dst, Completion{})
			if r.complete(head, &dst[len(dst)-1]) {
				max--
			} else {
				dst = dst[:len(dst)-1]
			}
		}
		atomic.StoreUint32(r.cqHead, head)
	}
	return dst
}

// refill makes the kernel move completions that did not fit into the ring. It tells whether there are some now.
func (r *Ring) refill() bool {
	err := r.enter(0, enterGetEvents, 0)
	return r.ready() > 0 && (err == nil || err == unix.EINTR || err == unix.EBUSY || err == unix.EAGAIN)
}

// complete makes c from an entry of the completion ring. It returns false if it is the ring's own affair.
func (r *Ring) complete(head uint32, c *Completion) bool {
	e := r.cqe(head)
	switch e.userData & tagMask {
	case tagMessage:
		c.Data, c.N, c.Flags = e.userData&^tagMask, int(e.res), Message
		return true
	case tagWaker:
		return r.woken(r.wakers[e.userData&^tagMask], e.res, c)
	case tagOwn:
		r.internal--
		r.ownCompleted(e)
		return false
	}
	o := Op(e.userData)
	s := r.slots.find(o)
	if s == nil {
		// Going on would mean to free what the kernel uses.
		panic(fmt.Sprintf("io_uring: completion of operation %#x, which is not under way", e.userData))
	}
	c.Data, c.Op, c.Flags = s.data, o, Flags(e.flags)&(1<<bufferShift-1)
	if r.o.CQE32 {
		c.Extra = r.cqeExtra(head)
	}
	switch {
	case e.res >= 0:
		c.N = int(e.res)
	case c.Flags&Notif != 0:
		c.N = int(uint32(e.res)) // not an error: a flag in bit 31
	default:
		c.Err = unix.Errno(-e.res)
	}
	if c.Flags&HasBuffer != 0 {
		c.Buffer = uint16(e.flags >> bufferShift)
		if s.group != nil {
			s.group.taken(c.Buffer)
		}
	}
	if c.Flags&More == 0 {
		r.slots.put(uint32(o))
	}
	return true
}
