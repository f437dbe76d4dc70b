package posix

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// become changes the identity of the calling thread alone, which package syscall does for the whole process. unsafe: the list of
// groups is alive until the call has returned.
func become(u user) error {
	list := make([]uint32, 0, len(u.groups)+1)
	for _, g := range append([]int{u.gid}, u.groups...) {
		list = append(list, uint32(g))
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(list)), uintptr(unsafe.Pointer(&list[0])), 0)
	runtime.KeepAlive(list)
	if e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)); e != 0 {
		return e
	}
	return nil
}
