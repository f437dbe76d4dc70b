package iouring_test

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// refuse makes the kernel answer system call nr of this process with errno, as a container's seccomp profile does. The pointers are those of
// one system call, which ends before anything they point to goes away.
func refuse(nr, errno uint32) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x00050000 | errno}, // SECCOMP_RET_ERRNO
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000},         // SECCOMP_RET_ALLOW
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const setModeFilter, threadSync = 1, 1
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, threadSync, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

// TestRefused runs itself in a process that may not use io_uring, in one way or another.
func TestRefused(t *testing.T) {
	const env = "VARVE_RING_REFUSE" // "call errno" for the process that is refused
	if how := os.Getenv(env); how != "" {
		nr, errno, _ := strings.Cut(how, " ")
		n, err1 := strconv.ParseUint(nr, 10, 32)
		e, err2 := strconv.ParseUint(errno, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if err := refuse(uint32(n), uint32(e)); err != nil {
			t.Skip("no seccomp here: ", err)
		}
		for range 2 {
			r, err := iouring.New(iouring.Options{})
			if !errors.Is(err, iouring.ErrUnavailable) || !errors.Is(err, unix.Errno(e)) || r != nil {
				t.Errorf("New: %v, want ErrUnavailable and %v", err, unix.Errno(e))
			}
		}
		return
	}
	for _, how := range [][2]int{
		{unix.SYS_IO_URING_SETUP, int(unix.EPERM)},
		{unix.SYS_IO_URING_SETUP, int(unix.EACCES)},
		{unix.SYS_IO_URING_SETUP, int(unix.ENOSYS)},
		{unix.SYS_IO_URING_REGISTER, int(unix.EPERM)},
		{unix.SYS_IO_URING_ENTER, int(unix.EPERM)},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRefused$")
		cmd.Env = append(os.Environ(), env+"="+strconv.Itoa(how[0])+" "+strconv.Itoa(how[1]), "GORACE=atexit_sleep_ms=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("call %d refused with %v: %v\n%s", how[0], unix.Errno(how[1]), err, out)
		}
	}
}
