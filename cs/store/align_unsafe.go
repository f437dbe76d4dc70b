package store

import (
	"unsafe"

	"varve/internal/chunk"
)

// aligned reports whether direct I/O can use b as it is.
func aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%chunk.BlockSize == 0 && len(b)%chunk.BlockSize == 0
}
