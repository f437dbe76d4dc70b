package iouring

import "time"

// FD names a file: a descriptor, or with Fixed a place in the ring's table of registered files.
type FD int32

// Fixed is the file at place i of the table of registered files.
func Fixed(i int) FD { return FD(-2 - i) }

// index returns the place in the table of files.
func (f FD) index() (uint32, bool) {
	if f > -2 {
		return 0, false
	}
	return uint32(-2 - int64(f)), true
}

// place puts f into an entry.
func (e *SQE) place(f FD) {
	if i, ok := f.index(); ok {
		e.FD, e.Flags = int32(i), e.Flags|sqeFixedFile
	} else {
		e.FD = int32(f)
	}
}

// take reserves a slot and an entry for an operation. Whatever can be wrong with its arguments must have been checked.
func (r *Ring) take(op Opcode, fd FD, data uint64) (*SQE, *slot, error) {
	if r.closed {
		return nil, nil, ErrClosed
	}
	if r.Room() == 0 && (r.slots.left() == 0 || op != OpAsyncCancel && op != OpTimeoutRemove) {
		return nil, nil, ErrFull
	}
	e, err := r.entry()
	if err != nil {
		return nil, nil, err
	}
	n, s := r.slots.get()
	s.data, s.fd = data, fd
	e.Opcode, e.UserData = op, tagSlot|uint64(s.gen)<<32|uint64(n)
	e.place(fd)
	return e, s, nil
}

// own reserves an entry for an operation of the ring's own.
func (r *Ring) own(op Opcode, userData uint64) (*SQE, error) {
	e, err := r.entry()
	if err != nil {
		return nil, err
	}
	r.internal++
	e.Opcode, e.UserData = op, userData
	return e, nil
}

// entry returns the next entry of the queue, cleared. If the queue is full, or has what Options.HandOver says, it is handed over, except
// within a chain of linked operations, which would end there.
func (r *Ring) entry() (*SQE, error) {
	if n := r.o.HandOver; n > 0 && r.Queued() >= int(n) && !r.linked() && !r.disabled {
		if err := r.flush(); err != nil {
			return nil, err
		}
	}
	if r.room() == 0 {
		if r.linked() {
			return nil, ErrFull
		}
		if err := r.flush(); err != nil {
			return nil, err
		}
		if r.room() == 0 {
			return nil, ErrFull
		}
	}
	e := r.nextSQE()
	r.last = e
	return e, nil
}

// linked tells whether the next entry continues a chain.
func (r *Ring) linked() bool { return r.last != nil && r.last.Flags&(sqeLink|sqeHardLink) != 0 }

// mark sets a flag of the operation queued last, if it was not handed over yet.
func (r *Ring) mark(flag uint8) {
	if r.last != nil {
		r.last.Flags |= flag
	}
}

// Link makes the next operation begin only after the one queued last has ended. If that fails, or a read or write is
// short, the rest of the chain ends with ECANCELED. Reserve the length of a chain before its first operation.
func (r *Ring) Link() { r.mark(sqeLink) }

// HardLink is Link that goes on after a failure as well.
func (r *Ring) HardLink() { r.mark(sqeHardLink) }

// Drain makes the operation queued last begin only after all that were submitted before it have ended. It is slow.
func (r *Ring) Drain() { r.mark(sqeDrain) }

// Async makes a thread of the kernel do the operation queued last, rather than the owner during Submit: for what would block there.
func (r *Ring) Async() { r.mark(sqeAsync) }

// Last is the handle of the operation queued last, zero if that is none of the caller's.
func (r *Ring) Last() Op {
	if r.last == nil || r.last.UserData&tagMask != tagSlot {
		return 0
	}
	return Op(r.last.UserData)
}

// timespec puts a duration into memory that stays with the slot.
func (s *slot) timespec(d time.Duration) uint64 {
	a := s.arguments()
	a.ts.Sec, a.ts.Nsec = int64(d/time.Second), int64(d%time.Second)
	return addressOf(&a.ts)
}
