package reactor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendmsg sends parts with sendmsg(2), without waiting. What h points to stays alive during the call.
func sendmsg(fd int, v *vector) (int, error) {
	for i, p := range v.parts[:v.n] {
		v.iov[i].Base = unsafe.SliceData(p)
		v.iov[i].SetLen(len(p))
	}
	v.hdr.Iov = &v.iov[0]
	v.hdr.SetIovlen(v.n)
	n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&v.hdr)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// within reports whether p lies in a.
func within(p, a []byte) bool {
	begin, at := uintptr(unsafe.Pointer(unsafe.SliceData(a))), uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return at >= begin && at+uintptr(len(p)) <= begin+uintptr(len(a))
}
