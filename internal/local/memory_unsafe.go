package local

import (
	"sync/atomic"
	"unsafe"
)

// words returns n words of mapped memory from an offset that is a multiple of 8. They are valid while the memory is mapped: each user
// keeps the owner of the mapping alive.
func words(mem []byte, offset, n int) []atomic.Uint64 {
	_ = mem[offset : offset+8*n]
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[offset])), n)
}
