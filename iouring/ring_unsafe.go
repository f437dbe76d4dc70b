package iouring

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ring is one io_uring. See the package comment for who may use it.
//
// The pointers below point into memory that the kernel shares (mapped, not of Go's heap), valid until release. head and
// tail are read and written with the ordering that the kernel asks for: Go's atomics are at least that strong.
type Ring struct {
	fd      int
	mode    Mode
	ringMem []byte
	sqeMem  []byte

	sqHead, sqTail *uint32
	sqMask         uint32
	sqes           []sqe
	tail           uint32 // of the submission queue, not yet published

	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []cqe

	slots   []slot
	free    int32
	pending int
	queued  int
	closed  bool
}

func setup(entries, flags uint32) (*Ring, error) {
	p := params{flags: flags | setupClamp | setupCQSize, cqEntries: 2 * entries}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errno
	}
	r := &Ring{fd: int(fd)}
	if p.features&featSingleMmap == 0 || p.features&featNoDrop == 0 {
		return nil, errors.Join(fmt.Errorf("kernel older than 5.5: %w", ErrUnavailable), unix.Close(r.fd))
	}
	if err := r.mapRings(&p); err != nil {
		return nil, errors.Join(err, r.release())
	}
	r.slots = make([]slot, p.cqEntries)
	for i := range r.slots {
		r.slots[i].next = int32(i) - 1
	}
	r.free = int32(len(r.slots)) - 1
	return r, nil
}

func (r *Ring) mapRings(p *params) error {
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	var err error
	if r.ringMem, err = unix.Mmap(r.fd, offSQRing, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("map rings: %w", err)
	}
	sqeSize := int(p.sqEntries) * int(unsafe.Sizeof(sqe{}))
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, sqeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("map submission entries: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.ringMem[off])) }
	r.sqHead, r.sqTail, r.sqMask = at(p.sq.head), at(p.sq.tail), *at(p.sq.ringMask)
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.ringMask)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.ringMem[p.cq.cqes])), p.cqEntries)
	for i := range p.sqEntries { // entry i always stands at place i
		*at(p.sq.array + 4*i) = i
	}
	r.tail = *r.sqTail
	return nil
}

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

// nextSQE returns the next free submission entry, or nil.
func (r *Ring) nextSQE() *sqe {
	if r.tail-atomic.LoadUint32(r.sqHead) >= uint32(len(r.sqes)) || r.free < 0 {
		return nil
	}
	e := &r.sqes[r.tail&r.sqMask]
	r.tail++
	return e
}

// publish shows the kernel what was queued.
func (r *Ring) publish() { atomic.StoreUint32(r.sqTail, r.tail) }

// ready is the number of completions to reap.
func (r *Ring) ready() int { return int(atomic.LoadUint32(r.cqTail) - *r.cqHead) }

func (r *Ring) nextCQE() (cqe, bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return cqe{}, false
	}
	c := r.cqes[head&r.cqMask]
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

// enter is io_uring_enter. It must be Syscall, not RawSyscall: a wait without telling the scheduler stalls other goroutines.
func (r *Ring) enter(submit, wait int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(wait), enterGetEvents, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// address returns where p is for the kernel. p stays reachable through its slot until the completion is reaped, and Go does
// not move heap memory; buffers on a goroutine's stack cannot get here, since the slot makes them escape.
func address(p []byte) uint64 {
	a := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	runtime.KeepAlive(p)
	return a
}
