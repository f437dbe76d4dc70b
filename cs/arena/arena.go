package arena

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"varve/internal/invariant"
)

const (
	// MinBuffer and MaxBuffer are the lengths of the smallest and the largest buffers.
	MinBuffer = 1 << minBits
	MaxBuffer = 1 << maxBits
	// SlabSize is the unit in which memory goes from one class to another; it is a huge page.
	SlabSize = MaxBuffer
	// Classes is the number of lengths.
	Classes = maxBits - minBits + 1

	minBits = 12
	maxBits = 21 // wire.MaxData

	words = SlabSize / MinBuffer / 64 // of the map of a slab's buffers
	none  = -1
)

// Options of New.
type Options struct {
	// Size is the length of the arena in bytes, rounded down to slabs. At least MinSize(Guarantee).
	Size int64
	// Guarantee is the number of slabs kept for each class. Default: 1.
	Guarantee int
	// Populate has the kernel give all the memory at once, so that there is no fault and no lack of it later.
	Populate bool
	// Freed, if set, is called after a Put if a Get was refused since it was called last. It must not wait, and must not call the arena.
	Freed func()
	// Trace keeps the stack of each Get, so that Close can tell who leaked. For tests: it is slow, and allocates.
	Trace bool
}

// MinSize returns the least Options.Size for a guarantee: what is kept for all classes.
func MinSize(guarantee int) int64 { return int64(max(guarantee, 1)) * Classes * SlabSize }

// Arena is memory for payload.
type Arena struct {
	mapping []byte // as the kernel gave it
	mem     []byte // of it, from a multiple of SlabSize on
	freed   func()

	mu      sync.Mutex
	slabs   []slab
	idle    int32 // first slab of nobody, in a list; none if there is none
	free    int   // slabs of nobody
	owed    int   // of these, kept for classes that have less than what they are guaranteed
	classes [Classes]class
	refused bool                // a Get since Freed was called last
	waiting chan struct{}       // closed at the next Put; nil if nobody waits
	trace   map[int64][]uintptr // by offset of the buffer; nil without Options.Trace
	keep    int                 // Options.Guarantee
}

// class is the slabs of one length of buffers. Those with a buffer to give are in a list.
type class struct {
	partial int32
	slabs   int
	used    int // buffers that are out
}

// slab is in one list at a time: of those of nobody, or of the ones of its class with a buffer left.
type slab struct {
	class      int8 // none if it is nobody's
	used       int16
	prev, next int32
	free       [words]uint64
}

// New maps an arena.
func New(o Options) (*Arena, error) {
	if o.Guarantee == 0 {
		o.Guarantee = 1
	}
	if o.Guarantee < 0 || o.Size < MinSize(o.Guarantee) {
		return nil, fmt.Errorf("arena of %d bytes with %d slabs for each class: want at least %d bytes", o.Size, o.Guarantee, MinSize(o.Guarantee))
	}
	n := int(o.Size / SlabSize)
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	mapping, err := unix.Mmap(-1, 0, (n+1)*SlabSize, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, fmt.Errorf("map an arena of %d bytes: %w", o.Size, err)
	}
	skip := toSlab(mapping)
	a := &Arena{
		mapping: mapping, mem: mapping[skip : skip+n*SlabSize : skip+n*SlabSize], freed: o.Freed,
		slabs: make([]slab, n), idle: none, owed: o.Guarantee * Classes, keep: o.Guarantee,
	}
	if o.Trace {
		a.trace = make(map[int64][]uintptr)
	}
	// Fewer faults, and fewer entries in the device's tables; without it all works.
	_ = unix.Madvise(a.mem, unix.MADV_HUGEPAGE)
	if o.Populate {
		if err := unix.Madvise(a.mem, unix.MADV_POPULATE_WRITE); err != nil && !errors.Is(err, unix.EINVAL) {
			return nil, errors.Join(fmt.Errorf("populate an arena of %d bytes: %w", o.Size, err), unix.Munmap(mapping))
		}
	}
	for i := range a.classes {
		a.classes[i].partial = none
	}
	for i := n - 1; i >= 0; i-- {
		a.slabs[i].class = none
		a.push(&a.idle, int32(i))
	}
	a.free = n
	return a, nil
}

// classOf returns the class of a length, or -1 if there is none.
func classOf(n int) int {
	if n <= 0 || n > MaxBuffer {
		return none
	}
	return max(bits.Len(uint(n-1)), minBits) - minBits
}

// Rounded returns how many bytes Get takes for n.
func Rounded(n int) int { return MinBuffer << classOf(n) }

// Get returns n bytes of undefined content, or nil if there are none now. Preconditions: 0 < n <= MaxBuffer.
func (a *Arena) Get(n int) []byte {
	k := classOf(n)
	if k < 0 {
		invariant.Failf("arena: buffer of %d bytes, limit %d", n, MaxBuffer)
	}
	a.mu.Lock()
	off, ok := a.take(k)
	if !ok {
		a.refused = true
	} else if a.trace != nil {
		stack := make([]uintptr, 16)
		a.trace[off] = stack[:runtime.Callers(2, stack)]
	}
	a.mu.Unlock()
	if !ok {
		return nil
	}
	return a.mem[off:][: n : MinBuffer<<k]
}

// take marks a buffer of a class used and returns where it starts.
func (a *Arena) take(k int) (off int64, ok bool) {
	c := &a.classes[k]
	if c.partial == none && !a.grow(k) {
		return 0, false
	}
	i := c.partial
	s := &a.slabs[i]
	w := 0
	for s.free[w] == 0 {
		w++
	}
	b := bits.TrailingZeros64(s.free[w])
	s.free[w] &^= 1 << b
	s.used++
	c.used++
	if int(s.used) == SlabSize/MinBuffer>>k {
		a.unlink(&c.partial, i)
	}
	return int64(i)*SlabSize + int64(w*64+b)<<(k+minBits), true
}

// grow gives a class a slab of nobody, if one is left that is not kept for others.
func (a *Arena) grow(k int) bool {
	c := &a.classes[k]
	mine := c.slabs < a.keep
	if a.free == 0 || !mine && a.free <= a.owed {
		return false
	}
	if mine {
		a.owed--
	}
	i := a.idle
	a.unlink(&a.idle, i)
	a.free--
	c.slabs++
	s := &a.slabs[i]
	s.class, s.used = int8(k), 0
	for n, w := SlabSize/MinBuffer>>k, 0; n > 0; n, w = n-64, w+1 {
		s.free[w] = ^uint64(0) >> (64 - min(n, 64))
	}
	a.push(&c.partial, i)
	return true
}

// Put gives back what Get returned, or a slice of it that starts where it did.
func (a *Arena) Put(b []byte) {
	off := a.Offset(b)
	if off < 0 {
		invariant.Failf("arena: %d bytes put back that are not of it", cap(b))
	}
	a.mu.Lock()
	a.give(off)
	tell := a.refused && a.freed != nil
	a.refused = a.refused && !tell
	if a.waiting != nil {
		close(a.waiting)
		a.waiting = nil
	}
	a.mu.Unlock()
	if tell {
		a.freed()
	}
}

// give marks the buffer that starts at off free.
func (a *Arena) give(off int64) {
	i := int32(off / SlabSize)
	s := &a.slabs[i]
	if s.class == none {
		invariant.Failf("arena: buffer at %d put back, but all of its slab is free", off)
	}
	k := int(s.class)
	c := &a.classes[k]
	n := off % SlabSize >> (k + minBits)
	if n<<(k+minBits) != off%SlabSize || s.free[n/64]>>(n%64)&1 != 0 {
		invariant.Failf("arena: buffer at %d of class %d put back, but it is free or starts elsewhere", off, k)
	}
	if a.trace != nil {
		delete(a.trace, off)
	}
	if int(s.used) == SlabSize/MinBuffer>>k {
		a.push(&c.partial, i)
	}
	s.free[n/64] |= 1 << (n % 64)
	s.used--
	c.used--
	if s.used > 0 {
		return
	}
	a.unlink(&c.partial, i)
	s.class = none
	s.free = [words]uint64{}
	a.push(&a.idle, i)
	a.free++
	if c.slabs--; c.slabs < a.keep {
		a.owed++
	}
}

// push puts a slab at the head of a list.
func (a *Arena) push(head *int32, i int32) {
	a.slabs[i].prev, a.slabs[i].next = none, *head
	if *head != none {
		a.slabs[*head].prev = i
	}
	*head = i
}

func (a *Arena) unlink(head *int32, i int32) {
	s := &a.slabs[i]
	if s.prev != none {
		a.slabs[s.prev].next = s.next
	} else {
		*head = s.next
	}
	if s.next != none {
		a.slabs[s.next].prev = s.prev
	}
}

// Wait is Get that waits until there is a buffer, or ctx ends.
func (a *Arena) Wait(ctx context.Context, n int) ([]byte, error) {
	if b := a.Get(n); b != nil {
		return b, nil
	}
	for {
		a.mu.Lock()
		if a.waiting == nil {
			a.waiting = make(chan struct{})
		}
		ch := a.waiting
		a.mu.Unlock()
		if b := a.Get(n); b != nil {
			return b, nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %d bytes of payload memory: %w", n, ctx.Err())
		}
	}
}

// Memory is all of the arena, for registering it. Who uses it must have got it from Get.
func (a *Arena) Memory() []byte { return a.mem }

// Size returns the length of the arena in bytes.
func (a *Arena) Size() int64 { return int64(len(a.mem)) }

// Used returns the bytes that are out, rounded to classes.
func (a *Arena) Used() (bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, c := range a.classes {
		bytes += int64(c.used) << (k + minBits)
	}
	return bytes
}

// Close unmaps the arena. It refuses while buffers are out, and says how many: the kernel, or somebody, may still write to them.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var leaks []error
	for k, c := range a.classes {
		if c.used > 0 {
			leaks = append(leaks, fmt.Errorf("arena: %d buffers of %d bytes are still out", c.used, MinBuffer<<k))
		}
	}
	for off, stack := range a.trace {
		frame, _ := runtime.CallersFrames(stack).Next()
		leaks = append(leaks, fmt.Errorf("arena: buffer at %d was got by %s (%s:%d)", off, frame.Function, frame.File, frame.Line))
	}
	if len(leaks) > 0 {
		return errors.Join(leaks...)
	}
	err := unix.Munmap(a.mapping)
	a.mapping, a.mem = nil, nil
	return err
}
