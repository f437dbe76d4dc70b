package iouring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BufferGroup is a set of buffers of one size, of which the kernel chooses one when something was received. It belongs to
// its ring and the ring's owner. The memory is outside of Go's heap and freed by the ring's Close.
//
// With BufferRing a buffer goes back to the kernel by a store to shared memory. Without, it goes back with the next Submit.
type BufferGroup struct {
	r           *Ring
	id          uint16
	count, size int
	ring        bool
	mem         []byte // the buffers
	out         []bool // which are the owner's
	owned       int    // how many

	ringMem []byte
	entries []bufEntry
	tail    uint16

	back []uint16 // to be given back with the next Submit; capacity for all
}

// NewBufferGroup makes count buffers of size bytes, count a power of two up to 32768. id is one that the ring has no group of.
func (r *Ring) NewBufferGroup(id uint16, count, size int) (*BufferGroup, error) {
	if r.closed {
		return nil, ErrClosed
	}
	if count <= 0 || count > 1<<15 || count&(count-1) != 0 || size <= 0 || size > 1<<30 || r.groups[id] != nil {
		return nil, fmt.Errorf("io_uring: group %d of %d buffers of %d bytes: want a new id and a power of two up to 32768: %w", id, count, size, unix.EINVAL)
	}
	mem, err := unix.Mmap(-1, 0, count*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("io_uring: memory of %d buffers of %d bytes: %w", count, size, err)
	}
	g := &BufferGroup{r: r, id: id, count: count, size: size, mem: mem, out: make([]bool, count), ring: r.has.Has(BufferRing)}
	if g.ring {
		if err := g.registerRing(); err != nil {
			_ = unix.Munmap(mem)
			return nil, fmt.Errorf("io_uring: register group %d of %d buffers: %w", id, count, err)
		}
		for i := range count {
			g.put(uint16(i))
		}
		g.publish()
	} else {
		g.back = make([]uint16, 0, count)
		g.giveBack(0, count)
	}
	if r.groups == nil {
		r.groups = make(map[uint16]*BufferGroup)
	}
	r.groups[id] = g
	return g, nil
}

// usable tells whether r can receive into g.
func (g *BufferGroup) usable(r *Ring) error {
	if g == nil || g.r != r {
		return fmt.Errorf("io_uring: a group of another ring: %w", unix.EINVAL)
	}
	return nil
}

// Buffer returns the buffer that a completion names; its N bytes are what was received. It is the owner's until Recycle.
func (g *BufferGroup) Buffer(id uint16) []byte {
	off := int(id) * g.size
	return g.mem[off : off+g.size : off+g.size]
}

// Free is the number of buffers that the owner does not hold.
func (g *BufferGroup) Free() int { return g.count - g.owned }

// Count is the number of buffers, Size what each holds.
func (g *BufferGroup) Count() int { return g.count }

// Size is the number of bytes of a buffer.
func (g *BufferGroup) Size() int { return g.size }

// Recycle gives a buffer back to the kernel. To give back one that is not the owner's is a bug and panics: two receptions
// would share it.
func (g *BufferGroup) Recycle(id uint16) {
	if int(id) >= g.count || !g.out[id] {
		panic(fmt.Sprintf("io_uring: buffer %d of group %d given back, but it was not taken", id, g.id))
	}
	g.out[id] = false
	g.owned--
	if g.ring {
		g.put(id)
		g.publish()
	} else {
		g.giveBack(id, 1)
	}
}

// taken notes that a completion gave a buffer to the owner.
func (g *BufferGroup) taken(id uint16) {
	if int(id) >= g.count || g.out[id] {
		panic(fmt.Sprintf("io_uring: the kernel chose buffer %d of group %d, which it was not given", id, g.id))
	}
	g.out[id] = true
	g.owned++
}

// giveBack notes n buffers that provide is to give to the kernel.
func (g *BufferGroup) giveBack(id uint16, n int) {
	for i := range n {
		g.back = append(g.back, id+uint16(i))
	}
	g.r.chores = true
}

// provide queues what was given back, runs of neighbours in one entry. It returns false if there was no room.
func (g *BufferGroup) provide() bool {
	n := 0
	for n < len(g.back) {
		first, run := g.back[n], 1
		for n+run < len(g.back) && g.back[n+run] == first+uint16(run) {
			run++
		}
		e, err := g.r.own(OpProvideBuffers, tagOwn|ownProvide|uint64(g.id)<<32|uint64(run-1)<<16|uint64(first))
		if err != nil {
			break
		}
		e.FD, e.Off, e.BufIndex = int32(run), uint64(first), g.id
		e.Addr, e.Len = address(g.Buffer(first)), uint32(g.size)
		n += run
	}
	g.back = g.back[:copy(g.back, g.back[n:])]
	return len(g.back) == 0
}
