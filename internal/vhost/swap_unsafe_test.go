package vhost

import (
	"sync/atomic"
	"unsafe"
)

// swap32 exchanges a word that another thread changes.
func swap32(p []byte, off int, v uint32) uint32 {
	return atomic.SwapUint32((*uint32)(unsafe.Pointer(&p[off : off+4][0])), v)
}
