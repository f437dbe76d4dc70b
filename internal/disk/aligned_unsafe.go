package disk

import "unsafe"

// AlignedBuffer returns n bytes whose address is a multiple of 4096, as Direct files want them.
func AlignedBuffer(n int) []byte {
	const align = 4096
	b := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (align - 1))
	return b[skip : skip+n : skip+n]
}
