package iouring

// What is unsafe in this package, and why it is right:
//
//   - The rings are memory that the kernel shares, mapped and not of Go's heap, valid from setup to release. Heads and tails are
//     read and written with the ordering that the kernel asks for (acquire, release): Go's atomics are at least that strong. An entry of the
//     submission ring is the owner's until publish, an entry of the completion ring from its tail's load until its head's store.
//   - An address in an entry is a number that the garbage collector does not see. It is that of memory which a slot, a group, the table of
//     buffers or the ring itself refers to until the kernel is done; the ring is held by the table of held rings until it is closed.
//     Go's collector does not move heap memory, and what is stored in a slot or a ring is not on a stack, which does move.
//   - System calls get pointers converted in the call itself, as unsafe.Pointer's rules want it.

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shared is what the kernel and the ring share.
type shared struct {
	ringMem, sqeMem []byte

	sqHead, sqTail, sqFlags *uint32
	sqMask, sqSize          uint32
	sqeShift                uint8  // log2 of an entry's bytes
	tail                    uint32 // of the submission queue, not yet published

	cqHead, cqTail *uint32
	cqMask         uint32
	cqeShift       uint8
	cqes           unsafe.Pointer
}

func setup(o Options, has Feature) (*Ring, error) {
	p := params{flags: setupFlags(o, has), cqEntries: o.Completions}
	fd, err := setupCall(o.Entries, &p)
	if err != nil {
		return nil, unavailable(err)
	}
	r := &Ring{o: o, has: has, fd: fd, enterFD: fd}
	if has.Has(NoIOWait) {
		r.enterFl = enterNoIOWait
	}
	if err := r.mapRings(&p); err != nil {
		return nil, errors.Join(err, r.release())
	}
	r.slots = newSlotTable(o.InFlight + forCancel)
	return r, nil
}

func setupCall(entries uint32, p *params) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func (r *Ring) mapRings(p *params) error {
	r.sqeShift, r.cqeShift = 6, 4
	if p.flags&setupSQE128 != 0 {
		r.sqeShift++
	}
	if p.flags&setupCQE32 != 0 {
		r.cqeShift++
	}
	size := p.cq.cqes + p.cqEntries<<r.cqeShift
	if p.flags&setupNoSQArray == 0 {
		size = max(size, p.sq.array+p.sqEntries*4)
	}
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	var err error
	if r.ringMem, err = unix.Mmap(r.fd, offSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("io_uring: map rings: %w", err)
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)<<r.sqeShift, prot, flags); err != nil {
		return fmt.Errorf("io_uring: map submission entries: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.ringMem[off])) }
	r.sqHead, r.sqTail, r.sqFlags = at(p.sq.head), at(p.sq.tail), at(p.sq.flags)
	r.sqMask, r.sqSize = *at(p.sq.ringMask), p.sqEntries
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.ringMask)
	r.cqes = unsafe.Pointer(&r.ringMem[p.cq.cqes])
	if p.flags&setupNoSQArray == 0 {
		for i := range p.sqEntries { // entry i always stands at place i
			*at(p.sq.array + 4*i) = i
		}
	}
	r.tail = *r.sqTail
	return nil
}

// release frees what New made. Nothing may be under way.
func (r *Ring) release() error {
	var err error
	if r.ringMem != nil {
		err = errors.Join(err, unix.Munmap(r.ringMem))
	}
	if r.sqeMem != nil {
		err = errors.Join(err, unix.Munmap(r.sqeMem))
	}
	return errors.Join(err, unix.Close(r.fd))
}

// room is the number of free entries in the submission queue.
func (r *Ring) room() int { return int(r.sqSize - (r.tail - atomic.LoadUint32(r.sqHead))) }

// sqe is the submission entry at a position of the queue.
func (r *Ring) sqe(pos uint32) *SQE {
	return (*SQE)(unsafe.Pointer(&r.sqeMem[uintptr(pos&r.sqMask)<<r.sqeShift]))
}

// nextSQE takes the next entry, cleared. There must be room.
func (r *Ring) nextSQE() *SQE {
	e := r.sqe(r.tail)
	*e = SQE{}
	if r.sqeShift == 7 {
		*(*SQE)(unsafe.Add(unsafe.Pointer(e), unsafe.Sizeof(*e))) = SQE{}
	}
	r.tail++
	return e
}

// command is the room for a command in an entry, behind its byte 48.
func (r *Ring) command(e *SQE) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&e.Addr3)), 1<<r.sqeShift-48)
}

// publish shows the kernel what was queued.
func (r *Ring) publish() {
	atomic.StoreUint32(r.sqTail, r.tail)
	r.queued, r.last = int(r.tail-atomic.LoadUint32(r.sqHead)), nil
}

// ready is the number of completions in the ring.
func (r *Ring) ready() int { return int(atomic.LoadUint32(r.cqTail) - *r.cqHead) }

func (r *Ring) cqe(pos uint32) *cqe {
	return (*cqe)(unsafe.Add(r.cqes, uintptr(pos&r.cqMask)<<r.cqeShift))
}

// cqeExtra is the second half of an entry of 32 bytes.
func (r *Ring) cqeExtra(pos uint32) [2]uint64 {
	return *(*[2]uint64)(unsafe.Add(unsafe.Pointer(r.cqe(pos)), unsafe.Sizeof(cqe{})))
}

// enter is io_uring_enter of what was published. It must be Syscall, not RawSyscall: a wait without telling the scheduler stalls other
// goroutines.
func (r *Ring) enter(wait int, flags uint32, d time.Duration) error {
	var arg unsafe.Pointer
	var size uintptr
	if flags&enterExtArg != 0 {
		r.ts.Sec, r.ts.Nsec = int64(d/time.Second), int64(d%time.Second)
		r.arg = eventsArg{ts: addressOf(&r.ts)}
		arg, size = unsafe.Pointer(&r.arg), unsafe.Sizeof(r.arg)
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.enterFD), uintptr(r.queued), uintptr(wait), uintptr(flags|r.enterFl), uintptr(arg), size)
	r.queued = int(r.tail - atomic.LoadUint32(r.sqHead))
	if errno != 0 {
		return errno
	}
	return nil
}

// address returns where p is for the kernel. See above for why p stays there.
func address(p []byte) uint64 {
	a := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	runtime.KeepAlive(p)
	return a
}

// addressOf is address of a variable that is not on a stack.
func addressOf[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// vector makes the kernel's form of bufs in the slot's memory, which refers to each of them.
func (s *slot) vector(bufs [][]byte) uint64 {
	a := s.arguments()
	for _, b := range bufs {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		a.iov = append(a.iov, v)
	}
	return addressOf(unsafe.SliceData(a.iov))
}

// header makes a message's header of bufs in the slot's memory.
func (s *slot) header(bufs [][]byte) uint64 {
	s.vector(bufs)
	a := s.args
	a.msg = unix.Msghdr{Iov: unsafe.SliceData(a.iov)}
	a.msg.SetIovlen(len(a.iov))
	return addressOf(&a.msg)
}

// within checks that p lies within the registered buffer at place index.
func (r *Ring) within(p []byte, index int) error {
	if index < 0 || index >= len(r.bufs) {
		return fmt.Errorf("io_uring: buffer %d of %d: %w", index, len(r.bufs), unix.EINVAL)
	}
	b := r.bufs[index]
	from, to := uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	if from < to || from+uintptr(len(p)) > to+uintptr(len(b)) {
		return fmt.Errorf("io_uring: %d bytes outside of registered buffer %d: %w", len(p), index, unix.EFAULT)
	}
	return nil
}
