package readcache

import (
	"sync/atomic"
	"unsafe"
)

// atomicWords is mapped memory as words.
func atomicWords(mem []byte) []atomic.Uint64 {
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
}
