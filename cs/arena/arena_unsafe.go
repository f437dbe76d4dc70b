package arena

import "unsafe"

// toSlab returns how far into a mapping the first multiple of SlabSize is.
func toSlab(mapping []byte) int {
	return int(-uintptr(unsafe.Pointer(unsafe.SliceData(mapping))) & (SlabSize - 1))
}

// Offset returns where in Memory b starts, or -1 if it is not of the arena.
func (a *Arena) Offset(b []byte) int64 {
	// Addresses are compared, not pointers made of them; the mapping does not move.
	off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(a.mem)))
	if cap(b) == 0 || off >= uintptr(len(a.mem)) {
		return -1
	}
	return int64(off)
}
