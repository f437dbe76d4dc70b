package vhost

import (
	"sync/atomic"
	"unsafe"
)

// What another process changes meanwhile is read and written here. Offsets are multiples of four but where it says so, and in range: a slice panics else.

// load32 reads a word, before anything that is read later.
func load32(p []byte, off int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&p[off : off+4][0])))
}

// store32 writes a word, after everything that was written before, and before anything that is read later.
func store32(p []byte, off int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p[off : off+4][0])), v)
}

// or32 sets bits of a word, after everything that was written before.
func or32(p []byte, off int, bits uint32) {
	atomic.OrUint32((*uint32)(unsafe.Pointer(&p[off : off+4][0])), bits)
}

var fence uint32

// store16 writes half a word at an even offset, before anything that is read later.
func store16(p []byte, off int, v uint16) {
	*(*uint16)(unsafe.Pointer(&p[off : off+2][0])) = v
	atomic.AddUint32(&fence, 1)
}

// address is where a slice lies, to see whether two of them touch.
func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// join returns what two slices are that touch, a before b, of memory that is not Go's.
func join(a, b []byte) []byte { return unsafe.Slice(unsafe.SliceData(a), len(a)+len(b)) }
