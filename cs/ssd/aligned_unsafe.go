package ssd

import "unsafe"

// aligned reports whether b may be used with a disk.Direct file.
func aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%pageSize == 0
}
