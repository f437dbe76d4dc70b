package iouring

import "golang.org/x/sys/unix"

// Cancel queues the cancellation of an operation. Its own completion says ENOENT if that has ended, and EALREADY if it is
// being done and may end either way. The cancelled operation ends with ECANCELED, or as it would have; a
// file's read or write that has begun is not interrupted.
func (r *Ring) Cancel(o Op, data uint64) (Op, error) {
	e, _, err := r.take(OpAsyncCancel, -1, data)
	if err != nil {
		return 0, err
	}
	e.Addr = uint64(o)
	return Op(e.UserData), nil
}

// CancelFD queues the cancellation of all operations on fd. Name it as they did: the kernel looks for the same file, and would find it
// under another descriptor or place too, but the ring's own way (below) does not. The completion's N is how many
// were found; for none that is 0 or the error ENOENT. Without CancelMany, or CancelFixed if fd is registered, the ring cancels each by itself: then
// the completion is that of the last one.
func (r *Ring) CancelFD(fd FD, data uint64) (Op, error) {
	i, fixed := fd.index()
	if !r.has.Has(CancelMany) || fixed && !r.has.Has(CancelFixed) {
		return r.cancelEach(fd, data)
	}
	e, _, err := r.take(OpAsyncCancel, -1, data)
	if err != nil {
		return 0, err
	}
	e.OpFlags = cancelAll | cancelFD
	if e.FD = int32(fd); fixed {
		e.FD, e.OpFlags = int32(i), e.OpFlags|cancelFDFixed
	}
	return Op(e.UserData), nil
}

// cancelEach cancels the operations on fd one by one.
func (r *Ring) cancelEach(fd FD, data uint64) (Op, error) {
	if r.closed {
		return 0, ErrClosed
	}
	if r.slots.left() == 0 {
		return 0, ErrFull
	}
	var last Op
	for n := range r.slots.all {
		s := &r.slots.all[n]
		if s.next != busy || s.fd != fd || fd == -1 {
			continue
		}
		if last != 0 {
			if err := r.cancelOwn(last); err != nil {
				return 0, err
			}
		}
		last = r.slots.op(uint32(n))
	}
	return r.Cancel(last, data) // of no operation: ENOENT
}

// CancelAll queues the cancellation of everything under way, itself excepted. The completion is as that of CancelFD.
func (r *Ring) CancelAll(data uint64) (Op, error) {
	if r.closed {
		return 0, ErrClosed
	}
	if r.slots.left() == 0 {
		return 0, ErrFull
	}
	if r.has.Has(CancelMany) {
		e, _, err := r.take(OpAsyncCancel, -1, data)
		if err != nil {
			return 0, err
		}
		e.OpFlags = cancelAll | cancelAny
		return Op(e.UserData), nil
	}
	var last Op
	for n := range r.slots.all {
		if r.slots.all[n].next != busy {
			continue
		}
		if last != 0 {
			if err := r.cancelOwn(last); err != nil {
				return 0, err
			}
		}
		last = r.slots.op(uint32(n))
	}
	return r.Cancel(last, data)
}

// cancelOwn cancels an operation; the completion of that is the ring's.
func (r *Ring) cancelOwn(o Op) error {
	e, err := r.own(OpAsyncCancel, tagOwn)
	if err == nil {
		e.FD, e.Addr = -1, uint64(o)
	}
	return err
}

// cancelEverything is for Close: nothing of the caller's is told.
func (r *Ring) cancelEverything() error {
	if r.has.Has(CancelMany) {
		e, err := r.own(OpAsyncCancel, tagOwn)
		if err == nil {
			e.FD, e.OpFlags = -1, cancelAll|cancelAny
		}
		return err
	}
	for n := range r.slots.all {
		if r.slots.all[n].next != busy {
			continue
		}
		if err := r.cancelOwn(r.slots.op(uint32(n))); err != nil {
			return err
		}
	}
	for i, w := range r.wakers {
		if w.armed {
			if err := r.cancelOwn(Op(tagWaker | uint64(i))); err != nil {
				return err
			}
		}
	}
	return nil
}

// ownCompleted takes the completion of an operation of the ring's own.
func (r *Ring) ownCompleted(e *cqe) {
	if e.userData&ownProvide == 0 {
		return // a cancellation: whatever it found, the operation completes by itself
	}
	if g := r.groups[uint16(e.userData>>32)]; g != nil && e.res < 0 && unix.Errno(-e.res) != unix.ECANCELED {
		g.giveBack(uint16(e.userData), int(uint16(e.userData>>16))+1)
	}
}
