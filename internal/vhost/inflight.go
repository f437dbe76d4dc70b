package vhost

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// inflight is what a queue keeps, in memory that outlives this process, of its requests under way (vhost-user.rst, "Inflight I/O tracking", split virtqueue).
//
//	0 8 features   8 2 version   10 2 descriptors   12 2 head of the last one ended   14 2 used index then   16 each: 0 1 under way  1 5 -  6 2 next  8 8 counter
//
// A request is marked before it is begun. One that ends is named as the last, then the guest sees it in the used ring, then its mark goes and the used index is kept. So
// after a kill at any step the marks, without that of the last if the guest's used index is another one, are the requests that the guest still waits for.
type inflight struct {
	p       []byte
	counter uint64
}

const (
	inflightHead    = 16
	inflightDescr   = 16
	inflightVersion = 1
)

// inflightSize is how much a queue of num descriptors takes, in bytes.
func inflightSize(num uint16) int { return (inflightHead + inflightDescr*int(num) + 63) &^ 63 }

// adopt makes sense of what is there when a queue begins whose used index is used, and returns the heads that are under way, the oldest first; old says that
// somebody has used the memory before.
func (f *inflight) adopt(num, used uint16) (all []uint16, old bool) {
	word := load32(f.p, 8)
	if uint16(word) != inflightVersion || uint16(word>>16) != num {
		clear(f.p)
		store32(f.p, 12, uint32(used)<<16)
		store32(f.p, 8, inflightVersion|uint32(num)<<16)
		return nil, false
	}
	last := load32(f.p, 12)
	if uint16(last>>16) != used {
		if head := uint16(last); head < num {
			store32(f.p, f.at(head), 0)
		}
		store32(f.p, 12, last&0xffff|uint32(used)<<16)
	}
	for head := range num {
		if load32(f.p, f.at(head))&0xff != 0 {
			all = append(all, head)
		}
	}
	slices.SortFunc(all, func(a, b uint16) int { return cmp.Compare(f.count(a), f.count(b)) })
	if len(all) > 0 {
		f.counter = f.count(all[len(all)-1])
	}
	return all, true
}

func (f *inflight) at(head uint16) int { return inflightHead + inflightDescr*int(head) }

func (f *inflight) count(head uint16) uint64 { return le.Uint64(f.p[f.at(head)+8:]) }

// begin marks a request.
func (f *inflight) begin(head uint16) {
	if f.p == nil {
		return
	}
	f.counter++
	le.PutUint64(f.p[f.at(head)+8:], f.counter)
	store32(f.p, f.at(head), 1)
}

// ending is called before the guest sees that a request has ended, ended after it; used is the used index then.
func (f *inflight) ending(head uint16) {
	if f.p != nil {
		store32(f.p, 12, load32(f.p, 12)&^0xffff|uint32(head))
	}
}

func (f *inflight) ended(head, used uint16) {
	if f.p != nil {
		store32(f.p, f.at(head), 0)
		store32(f.p, 12, uint32(head)|uint32(used)<<16)
	}
}

// newInflight makes the memory for queues of a size. The caller closes the descriptor.
func newInflight(queues, size uint16) (fd int, d inflightDesc, err error) {
	if queues == 0 || queues > maxQueues || size == 0 || size > maxQueueSize {
		return -1, d, fmt.Errorf("%w: memory for %d queues of %d requests under way", ErrProtocol, queues, size)
	}
	d = inflightDesc{uint64(inflightSize(size)) * uint64(queues), 0, queues, size}
	if fd, err = unix.MemfdCreate("varve-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return -1, d, fmt.Errorf("memory for requests under way: %w", err)
	}
	if err = unix.Ftruncate(fd, int64(d.size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		return -1, d, errors.Join(fmt.Errorf("memory for requests under way: %w", err), unix.Close(fd))
	}
	return fd, d, nil
}

// mapInflight maps what newInflight once made.
func mapInflight(fd int, d inflightDesc) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("memory for requests under way: %w", err)
	}
	need := uint64(inflightSize(d.queueSize)) * uint64(d.queues)
	if d.queues == 0 || d.queues > maxQueues || d.queueSize == 0 || d.queueSize > maxQueueSize || d.offset != 0 || d.size < need || uint64(st.Size) < d.size {
		return nil, fmt.Errorf("%w: memory for requests under way: %d bytes at %d of a file of %d, for %d queues of %d", ErrProtocol, d.size, d.offset, st.Size, d.queues, d.queueSize)
	}
	p, err := unix.Mmap(fd, 0, int(need), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("memory for requests under way: %w", err)
	}
	return p, nil
}
