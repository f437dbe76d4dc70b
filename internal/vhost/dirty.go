package vhost

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// dirtyLog is memory of the front end in which bit n%8 of byte n/8 is set when page n of the guest's memory has been written, which the front end clears when it
// has noted it (vhost-user.rst, "Migration"). A page is marked after it was written, so that who finds the mark and then reads the page reads what was written.
type dirtyLog struct {
	whole []byte // the mapping
	p     []byte // whole words of it, at least one
}

const (
	logPage = 4096
	// maxLog bounds the size of a log, in bytes: that of 2^55 bytes of memory.
	maxLog = 1 << 40
)

// mapLog maps a log of size bytes at offset in a file.
func mapLog(fd int, size, offset uint64) (*dirtyLog, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("log of written pages: %w", err)
	}
	if size < 4 || size > maxLog || offset > maxLog || offset%8 != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || uint64(st.Size) < offset+size {
		return nil, fmt.Errorf("%w: a log of written pages of %#x bytes at %#x of a file of %#x", ErrProtocol, size, offset, st.Size)
	}
	p, err := unix.Mmap(fd, 0, int(offset+size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map a log of written pages of %#x bytes: %w", size, err)
	}
	return &dirtyLog{p, p[offset:][:size&^3]}, nil
}

func (l *dirtyLog) unmap() error { return unix.Munmap(l.whole) }

// pages is how many pages it has a bit for.
func (l *dirtyLog) pages() uint64 { return uint64(len(l.p)) * 8 }

// covers says that it has a bit for each page of the guest's memory.
func (l *dirtyLog) covers(t *table) bool {
	for i := range t.regions {
		if r := &t.regions[i]; (r.guest+r.size-1)/logPage >= l.pages() {
			return false
		}
	}
	return true
}

// mark marks the pages of n bytes from an address of the guest on, those that it has a bit for.
func (l *dirtyLog) mark(addr, n uint64) {
	if n == 0 || addr+n-1 < addr {
		return
	}
	first, last := addr/logPage, min((addr+n-1)/logPage, l.pages()-1)
	for first <= last {
		end := min(last, first|31)
		or32(l.p, int(first/32)*4, ^uint32(0)>>(31-(end-first))<<(first%32))
		first = end + 1
	}
}

// mark marks the pages of a piece of the table's memory.
func (t *table) mark(l *dirtyLog, p []byte) {
	for len(p) > 0 {
		n := 0
		for i := range t.regions {
			r := &t.regions[i]
			if off := address(p) - address(r.mem); address(p) >= address(r.mem) && off < uintptr(len(r.mem)) {
				n = min(len(p), len(r.mem)-int(off))
				l.mark(r.guest+uint64(off), uint64(n))
				break
			}
		}
		if n == 0 {
			return // of no region
		}
		p = p[n:]
	}
}

// markAll marks all of the table's memory.
func (t *table) markAll(l *dirtyLog) {
	for i := range t.regions {
		l.mark(t.regions[i].guest, t.regions[i].size)
	}
}
