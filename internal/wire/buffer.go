package wire

import (
	"math/bits"
	"sync"

	"varve/internal/disk"
)

// Buffers of frame bodies and data come from pools by power of two. Data buffers start at a multiple of
// 4096, so that a chunk server can write what it received with direct I/O, without a copy.
const (
	minBufferBits = 12
	maxBufferBits = 22 // MaxBody and MaxData fit
)

var pools [maxBufferBits - minBufferBits + 1]sync.Pool

// Buffer returns n bytes, aligned to 4096, of undefined content. Give it back with Recycle.
func Buffer(n int) []byte {
	if n == 0 {
		return nil
	}
	class := max(bits.Len(uint(n-1)), minBufferBits) - minBufferBits
	if class >= len(pools) {
		return disk.AlignedBuffer(n)
	}
	if p, ok := pools[class].Get().(*byte); ok {
		return bufferAt(p, 1<<(class+minBufferBits))[:n]
	}
	return disk.AlignedBuffer(1 << (class + minBufferBits))[:n]
}

// Recycle gives back a buffer that Buffer returned. The caller must not use it any more. Slices of other
// origin, and nil, are ignored.
func Recycle(b []byte) {
	c := cap(b)
	if c < 1<<minBufferBits || c&(c-1) != 0 {
		return
	}
	class := bits.Len(uint(c)) - 1 - minBufferBits
	if class >= len(pools) {
		return
	}
	pools[class].Put(&b[:c][0]) // a pointer, which takes no memory of its own in the pool
}
