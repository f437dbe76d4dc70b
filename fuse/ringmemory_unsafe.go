package fuse

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringRegion is memory of ring entries: shared memory with a descriptor, so that the program that goes on with the mount can have it at the same place.
type ringRegion struct {
	mem     []byte
	fd      int
	entries int
}

// regionsFrom is where these are: far from where the Go runtime has its heap (0xc000000000), and the kernel programs and libraries (0x55..., 0x7f...).
const regionsFrom = 0x6800_0000_0000

var nextRegion atomic.Uintptr

// newRegion makes memory that takes up room only where it was used.
func newRegion(n int) (ringRegion, error) {
	fd, err := unix.MemfdCreate("varve-ring", unix.MFD_CLOEXEC)
	if err != nil {
		return ringRegion{}, fmt.Errorf("memory of ring entries: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		unix.Close(fd)
		return ringRegion{}, fmt.Errorf("memory of ring entries: %d bytes: %w", n, err)
	}
	const align = 2 << 20
	step := uintptr(n+align-1) &^ (align - 1)
	for range 1024 {
		r, err := mapRegion(fd, n, regionsFrom+nextRegion.Add(step)-step)
		if err == unix.EEXIST { // what another session of this process took over
			continue
		}
		if err != nil {
			unix.Close(fd)
			return ringRegion{}, fmt.Errorf("map %d bytes: %w", n, err)
		}
		return r, nil
	}
	unix.Close(fd)
	return ringRegion{}, fmt.Errorf("map %d bytes: no free addresses from %#x on: %w", n, uintptr(regionsFrom), unix.ENOMEM)
}

// mapRegion maps the shared memory of fd at an address, where nothing may be.
func mapRegion(fd, n int, addr uintptr) (ringRegion, error) {
	at, err := unix.MmapPtr(fd, 0, unsafe.Add(unsafe.Pointer(nil), addr), uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE)
	if err != nil {
		return ringRegion{}, err
	}
	mem := unsafe.Slice((*byte)(at), n)
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // a huge page would hold the first bytes of two payloads
	return ringRegion{mem: mem, fd: fd}, nil
}

func (r *ringRegion) addr() uintptr { return uintptr(unsafe.Pointer(&r.mem[0])) }

// free unmaps the memory.
func (r *ringRegion) free() {
	_ = unix.MunmapPtr(unsafe.Pointer(&r.mem[0]), uintptr(len(r.mem)))
	_ = unix.Close(r.fd)
	r.mem = nil
}
