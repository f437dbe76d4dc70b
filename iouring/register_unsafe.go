package iouring

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// register is io_uring_register. What arg points to must not be on a stack if the kernel reads pointers from it.
func (r *Ring) register(op uint32, arg unsafe.Pointer, n int) error {
	return registerCall(r.fd, op, arg, n)
}

func registerCall(fd int, op uint32, arg unsafe.Pointer, n int) error {
	for tries := 0; ; tries++ {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), uintptr(op), uintptr(arg), uintptr(n), 0, 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR || tries >= retries {
			return errno
		}
	}
}

// registerWorkers sets the limits of the kernel's threads.
func (r *Ring) registerWorkers() error {
	n := [2]uint32{r.o.FileWorkers, r.o.OtherWorkers}
	if n == [2]uint32{} {
		return nil
	}
	return r.register(regWorkers, unsafe.Pointer(&n), len(n))
}

// registerSelf registers the ring's own descriptor with the calling thread. That is only for speed: the kernel allows 16 for a
// thread, and without it the descriptor serves.
func (r *Ring) registerSelf() {
	r.thread = unix.Gettid()
	if !r.has.Has(RingFD) {
		return
	}
	u := rsrcUpdate{offset: ^uint32(0), data: uint64(r.fd)} // any place
	if r.register(regRingFDs, unsafe.Pointer(&u), 1) == nil {
		r.enterFD, r.enterFl = int(u.offset), r.enterFl|enterRegistered
	}
}

func (r *Ring) unregisterSelf() {
	if r.enterFl&enterRegistered == 0 {
		return
	}
	u := rsrcUpdate{offset: uint32(r.enterFD)}
	r.enterFD, r.enterFl = r.fd, r.enterFl&^enterRegistered
	if unix.Gettid() == r.thread { // another thread may have another ring at this place
		_ = r.register(unregRingFDs, unsafe.Pointer(&u), 1) // else the thread's exit does it
	}
}

func (r *Ring) registerFiles(n uint32) error {
	if r.has.Has(SparseTables) {
		reg := rsrcRegister{nr: n, flags: rsrcRegisterSparse}
		return r.register(regFiles2, unsafe.Pointer(&reg), int(unsafe.Sizeof(reg)))
	}
	none := make([]int32, n)
	for i := range none {
		none[i] = -1
	}
	return r.register(regFiles, unsafe.Pointer(&none[0]), int(n))
}

func (r *Ring) updateFiles(i int, fds []int32) error {
	r.update = rsrcUpdate2{offset: uint32(i), data: addressOf(unsafe.SliceData(fds))}
	r.iovArg[0].Base = (*byte)(unsafe.Pointer(unsafe.SliceData(fds))) // so that fds is not on a stack
	return r.register(regFilesUpdate, unsafe.Pointer(&r.update), len(fds))
}

func (r *Ring) registerFileRange(i, n uint32) error {
	f := fileRange{off: i, len: n}
	return r.register(regFileAllocRange, unsafe.Pointer(&f), 0)
}

func (r *Ring) registerBuffers(n uint32) error {
	if r.has.Has(SparseTables) {
		reg := rsrcRegister{nr: n, flags: rsrcRegisterSparse}
		return r.register(regBuffers2, unsafe.Pointer(&reg), int(unsafe.Sizeof(reg)))
	}
	none := make([]unix.Iovec, n) // a vector without an address is an empty place, since 5.13
	return r.register(regBuffers, unsafe.Pointer(&none[0]), int(n))
}

func (r *Ring) updateBuffer(i int, p []byte) error {
	r.iovArg[0] = unix.Iovec{}
	if len(p) > 0 {
		r.iovArg[0].Base = unsafe.SliceData(p)
		r.iovArg[0].SetLen(len(p))
	}
	r.update = rsrcUpdate2{offset: uint32(i), nr: 1, data: addressOf(&r.iovArg[0])}
	err := r.register(regBuffersUpdate, unsafe.Pointer(&r.update), int(unsafe.Sizeof(r.update)))
	r.iovArg[0] = unix.Iovec{}
	return err
}

// syncMessage posts a message to a ring from a thread that has none.
func syncMessage(e *SQE) error { return registerCall(-1, regSendMsgRing, unsafe.Pointer(e), 1) }

// registerRing maps the ring of a group's buffers and shows it to the kernel.
func (g *BufferGroup) registerRing() error {
	size := g.count * int(unsafe.Sizeof(bufEntry{}))
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	reg := bufReg{ringAddr: address(mem), ringEntries: uint32(g.count), bgid: g.id}
	if err := g.r.register(regPbufRing, unsafe.Pointer(&reg), 1); err != nil {
		_ = unix.Munmap(mem)
		return err
	}
	g.ringMem = mem
	g.entries = unsafe.Slice((*bufEntry)(unsafe.Pointer(&mem[0])), g.count)
	return nil
}

// put writes a buffer to the next place of the ring of buffers, which publish shows.
func (g *BufferGroup) put(id uint16) {
	e := &g.entries[int(g.tail)&(g.count-1)]
	e.addr, e.len = address(g.Buffer(id)), uint32(g.size)
	if e == &g.entries[0] {
		g.word(id)
	} else {
		e.bid = id
	}
	g.tail++
}

// publish shows the tail, with the order of a release. The tail has 16 bits, Go's atomics 32: they are stored together with the number of
// the buffer in the first place, which is not changed.
func (g *BufferGroup) publish() { g.word(g.entries[0].bid) }

// word writes the last four bytes of the first place: the number of its buffer and the tail.
func (g *BufferGroup) word(bid uint16) {
	p := (*uint32)(unsafe.Pointer(&g.entries[0].bid))
	if bigEndian {
		atomic.StoreUint32(p, uint32(bid)<<16|uint32(g.tail))
	} else {
		atomic.StoreUint32(p, uint32(g.tail)<<16|uint32(bid))
	}
}

var bigEndian = func() bool {
	x := uint16(1)
	return *(*byte)(unsafe.Pointer(&x)) == 0
}()

// free lets go of a group. Nothing may be under way.
func (g *BufferGroup) free() error {
	var err error
	if g.ring {
		reg := bufReg{bgid: g.id}
		if err = g.r.register(unregPbufRing, unsafe.Pointer(&reg), 1); err != nil {
			return err // and its memory stays
		}
		err = unix.Munmap(g.ringMem)
	}
	if e := unix.Munmap(g.mem); err == nil {
		err = e
	}
	g.mem, g.ringMem, g.entries = nil, nil, nil
	return err
}

func registerProbe(fd int, p *probe) error {
	return registerCall(fd, regProbe, unsafe.Pointer(p), len(p.ops))
}
