package perf

import (
	"fmt"
	"math/bits"

	"varve/iouring"

	"golang.org/x/sys/unix"
)

const (
	pageSize = 4096
	// maxRegistered bounds the memory of one ring that is registered, and so pinned: a registered buffer has at most so much.
	maxRegistered = 1 << 30
)

// ringMemory is the buffers of one ring's operations, in one piece, registered with the ring so that an operation costs the kernel no look-up
// of its pages. Large pages, or pages beside one another, make transfers of 1 MiB faster: so it asks for neither, and takes pages in fio's order.
type ringMemory struct {
	all    []byte
	stride int
	block  int
	fixed  bool // registered, as buffer 0
}

func newRingMemory(o *Options) (*ringMemory, error) {
	m := &ringMemory{block: int(o.BlockSize), stride: (int(o.BlockSize) + pageSize - 1) &^ (pageSize - 1)}
	var err error
	if m.all, err = unix.Mmap(-1, 0, o.QD*m.stride, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE); err != nil {
		return nil, fmt.Errorf("%d buffers of %d bytes: %w", o.QD, m.stride, err)
	}
	return m, nil
}

func (m *ringMemory) slot(i int) []byte { return m.all[i*m.stride:][:m.block:m.block] }

// free unmaps the buffers. No operation may be under way on them.
func (m *ringMemory) free() error { return unix.Munmap(m.all) }

// ring makes the ring, after the buffers have been filled where they are to be, with these buffers and the file of a descriptor registered as far as the kernel lets it, and returns whether the file is.
func (m *ringMemory) ring(o *Options, fd int) (*iouring.Ring, bool, error) {
	io := iouring.Options{Entries: uint32(1) << bits.Len(uint(o.QD))} // at least QD+1: one for the timer
	if fd >= 0 {
		io.Files, io.Buffers = 1, 1
	}
	ring, err := iouring.New(io)
	if err != nil && fd >= 0 { // no room for tables
		io.Files, io.Buffers = 0, 0
		ring, err = iouring.New(io)
	}
	if err != nil {
		return nil, false, err
	}
	m.fixed = io.Buffers > 0 && len(m.all) <= maxRegistered && ring.SetBuffer(0, m.all) == nil
	file := io.Files > 0 && ring.SetFile(0, fd) == nil
	return ring, file, nil
}
