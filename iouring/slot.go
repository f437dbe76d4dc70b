package iouring

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Op is the handle of an operation under way, for Cancel and the like. It is never reused before 2^30 other operations had its slot.
// The zero value is no operation.
type Op uint64

// Slot is the operation's index in the table of operations, below Ring.Slots. No other operation under way has it.
func (o Op) Slot() int { return int(uint32(o)) }

// The user data of an entry says in its upper two bits what the completion is.
const (
	tagMask    = 3 << 62
	tagSlot    = 0 << 62 // bits 32 to 61 are the slot's generation, the rest its index
	tagOwn     = 1 << 62 // of the ring itself: bits 32 to 47 and 0 to 15 are a group and one of its buffers, if bit 61 is set
	tagMessage = 2 << 62 // from another ring, with a value in the rest
	tagWaker   = 3 << 62 // the rest is the index of a waker

	ownProvide = 1 << 61

	genMask = 1<<30 - 1
)

// slot holds what an operation under way uses. Invariant: from when its entry is queued until its final completion, the slot refers
// to every byte of Go's memory that the kernel may touch for it.
type slot struct {
	data  uint64
	gen   uint32
	next  int32 // of the free list; busy while in use
	fd    FD
	group *BufferGroup // that a buffer is chosen from
	buf   []byte
	keep  any
	args  *args
}

const busy = -2

// args is memory that an operation's entry points to. A slot keeps it for its next operation.
type args struct {
	msg  unix.Msghdr
	iov  []unix.Iovec
	ts   unix.Timespec
	name [unix.SizeofSockaddrUnix]byte
}

type slotTable struct {
	all  []slot
	free int32
	used int
}

func newSlotTable(n uint32) slotTable {
	t := slotTable{all: make([]slot, n), free: -1}
	for i := range t.all {
		i = len(t.all) - 1 - i
		t.all[i].next, t.free = t.free, int32(i)
	}
	return t
}

func (t *slotTable) left() int { return len(t.all) - t.used }

// get takes a slot. There must be one left.
func (t *slotTable) get() (uint32, *slot) {
	n := t.free
	s := &t.all[n]
	t.free, s.next = s.next, busy
	t.used++
	if s.gen = (s.gen + 1) & genMask; s.gen == 0 {
		s.gen = 1
	}
	return uint32(n), s
}

// put gives a slot back and lets go of what it held.
func (t *slotTable) put(n uint32) {
	s := &t.all[n]
	s.buf, s.keep, s.group = nil, nil, nil
	if a := s.args; a != nil {
		clear(a.iov[:cap(a.iov)])
		a.iov, a.msg = a.iov[:0], unix.Msghdr{}
	}
	s.next, t.free = t.free, int32(n)
	t.used--
}

// find returns the slot that a completion or a cancellation speaks of, nil if that operation has ended.
func (t *slotTable) find(o Op) *slot {
	if n := uint32(o); n < uint32(len(t.all)) {
		if s := &t.all[n]; s.next == busy && s.gen == uint32(o>>32)&genMask {
			return s
		}
	}
	return nil
}

func (t *slotTable) op(n uint32) Op { return Op(t.all[n].gen)<<32 | Op(n) }

// arguments returns the slot's memory for arguments, and makes it at the first use.
func (s *slot) arguments() *args {
	if s.args == nil {
		s.args = &args{iov: make([]unix.Iovec, 0, 4)}
	}
	return s.args
}

// held has every ring that was not closed, so that a ring that its owner forgot, and all that its slots refer to, is not collected while
// the kernel may write there.
var held struct {
	sync.Mutex
	rings map[*Ring]bool
}

func hold(r *Ring) {
	held.Lock()
	defer held.Unlock()
	if held.rings == nil {
		held.rings = make(map[*Ring]bool)
	}
	held.rings[r] = true
}

func release(r *Ring) {
	held.Lock()
	defer held.Unlock()
	delete(held.rings, r)
}
