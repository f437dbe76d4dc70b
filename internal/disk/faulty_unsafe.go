package disk

import "unsafe"

// alignedAddress reports whether b may be used with a Direct file.
func alignedAddress(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%pageSize == 0
}
