package fsx

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

func pwriteAll(fd int, p []byte, off int64) error {
	n, err := unix.Pwrite(fd, p, off)
	if err == nil && n != len(p) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(p))
	}
	return err
}

func (r *runner) write(m int) error {
	off := r.offset()
	p := make([]byte, 1+r.rng.IntN(maxIO))
	r.fill(p)
	r.detail("[%d,+%d)", off, len(p))
	if err := pwriteAll(r.fds[m].plain, p, off); err != nil {
		return err
	}
	r.put(p, off)
	return nil
}

func (r *runner) writeDirect(m int) error {
	off := r.offset() / page * page
	p := disk.AlignedBuffer((1 + r.rng.IntN(maxIO/page)) * page)
	r.fill(p)
	r.detail("[%d,+%d)", off, len(p))
	if err := pwriteAll(r.fds[m].direct, p, off); err != nil {
		return err
	}
	r.put(p, off)
	return nil
}

func (r *runner) appendWrite(m int) error {
	p := make([]byte, 1+r.rng.IntN(8<<10))
	if len(r.data)+len(p) > maxSize {
		return nil
	}
	r.fill(p)
	r.detail("at %d, %d bytes", len(r.data), len(p))
	n, err := unix.Write(r.fds[m].app, p)
	if err == nil && n != len(p) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(p))
	}
	if err != nil {
		return err
	}
	r.put(p, int64(len(r.data)))
	return nil
}

func (r *runner) readAt(fd int, p []byte, off int64) error {
	n, err := unix.Pread(fd, p, off)
	if err != nil {
		return err
	}
	if want := max(0, min(len(p), len(r.data)-int(off))); n != want {
		return fmt.Errorf("read [%d,+%d) gave %d bytes, want %d (size %d)", off, len(p), n, want, len(r.data))
	}
	return r.compare(p[:n], min(off, int64(len(r.data))))
}

func (r *runner) read(m int) error {
	off, n := r.offset(), 1+r.rng.IntN(maxIO)
	r.detail("[%d,+%d)", off, n)
	return r.readAt(r.fds[m].plain, make([]byte, n), off)
}

func (r *runner) readDirect(m int) error {
	off := r.offset() / page * page
	n := (1 + r.rng.IntN(maxIO/page)) * page
	r.detail("[%d,+%d)", off, n)
	return r.readAt(r.fds[m].direct, disk.AlignedBuffer(n), off)
}

func (r *runner) mapped(m int, prot int, do func(p []byte, off int64) error) error {
	off, n, ok := r.inside()
	if !ok {
		return nil
	}
	r.detail("[%d,+%d)", off, n)
	// A program that maps a file asks for its size first, by which a kernel learns what another mount did to it.
	if err := r.stat(m); err != nil {
		return err
	}
	start := off / page * page
	p, err := unix.Mmap(r.fds[m].plain, start, int(off-start+n), prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap [%d,+%d): %w", start, off-start+n, err)
	}
	err = do(p[off-start:], off)
	if err == nil && prot&unix.PROT_WRITE != 0 {
		err = unix.Msync(p, unix.MS_SYNC)
	}
	return errors.Join(err, unix.Munmap(p))
}

func (r *runner) mmapRead(m int) error {
	return r.mapped(m, unix.PROT_READ, func(p []byte, off int64) error { return r.compare(p, off) })
}

func (r *runner) mmapWrite(m int) error {
	return r.mapped(m, unix.PROT_READ|unix.PROT_WRITE, func(p []byte, off int64) error {
		r.fill(p)
		r.put(p, off)
		return nil
	})
}

func (r *runner) truncate(m int) error {
	size := r.offset()
	if r.rng.IntN(8) == 0 {
		size = 0
	}
	r.detail("to %d", size)
	var err error
	if r.rng.IntN(2) == 0 {
		err = unix.Ftruncate(r.fds[m].plain, size)
	} else {
		err = unix.Truncate(r.path(m), size)
	}
	if err != nil {
		return err
	}
	r.resize(size)
	return nil
}

func (r *runner) allocate(m int) error {
	off, n := r.offset(), 1+r.rng.Int64N(maxIO)
	mode := uint32(0)
	if r.rng.IntN(2) == 0 {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	r.detail("[%d,+%d) mode %d", off, n, mode)
	if err := unix.Fallocate(r.fds[m].plain, mode, off, n); err != nil {
		return err
	}
	if mode == 0 {
		r.grow(off + n)
	}
	return nil
}

func (r *runner) punch(m int) error {
	off, n := r.offset(), 1+r.rng.Int64N(maxIO)
	r.detail("[%d,+%d)", off, n)
	if err := unix.Fallocate(r.fds[m].plain, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return err
	}
	r.zeroModel(off, n)
	return nil
}

func (r *runner) zero(m int) error {
	off, n := r.offset(), 1+r.rng.Int64N(maxIO)
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if r.rng.IntN(2) == 0 {
		mode |= unix.FALLOC_FL_KEEP_SIZE
	}
	r.detail("[%d,+%d) mode %d", off, n, mode)
	if err := unix.Fallocate(r.fds[m].plain, mode, off, n); err != nil {
		return err
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		r.grow(off + n)
	}
	r.zeroModel(off, n)
	return nil
}

func (r *runner) zeroModel(off, n int64) {
	size := int64(len(r.data))
	if off < size {
		clear(r.data[off:min(off+n, size)])
	}
}

// seek checks that what is called a hole holds zeros, and that the kinds alternate.
func (r *runner) seek(m int) error {
	fd, off := r.fds[m].plain, r.offset()
	size := int64(len(r.data))
	r.detail("from %d", off)
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		data = max(size, off)
	case err != nil:
		return fmt.Errorf("SEEK_DATA: %w", err)
	case data < off || data >= size:
		return fmt.Errorf("SEEK_DATA from %d gave %d, size %d", off, data, size)
	}
	for i := off; i < min(data, size); i++ {
		if r.data[i] != 0 {
			return fmt.Errorf("SEEK_DATA from %d gave %d, but there is data at %d", off, data, i)
		}
	}
	hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO):
		if off < size {
			return fmt.Errorf("SEEK_HOLE from %d gave ENXIO, size %d", off, size)
		}
	case err != nil:
		return fmt.Errorf("SEEK_HOLE: %w", err)
	case hole < off || hole > size:
		return fmt.Errorf("SEEK_HOLE from %d gave %d, size %d", off, hole, size)
	case data == off && hole == off && off < size:
		return fmt.Errorf("%d is data and a hole at once", off)
	}
	return nil
}

func (r *runner) sync(m int) error {
	if r.rng.IntN(2) == 0 {
		return unix.Fsync(r.fds[m].plain)
	}
	return unix.Fdatasync(r.fds[m].direct)
}

func (r *runner) stat(m int) error {
	var byPath, byFD unix.Stat_t
	if err := errors.Join(unix.Stat(r.path(m), &byPath), unix.Fstat(r.fds[m].plain, &byFD)); err != nil {
		return err
	}
	if byPath.Size != int64(len(r.data)) || byFD.Size != int64(len(r.data)) {
		return fmt.Errorf("size %d by path, %d by descriptor, want %d", byPath.Size, byFD.Size, len(r.data))
	}
	if byPath.Ino != byFD.Ino || byPath.Nlink != 1 {
		return fmt.Errorf("inode %d by path with %d links, %d by descriptor", byPath.Ino, byPath.Nlink, byFD.Ino)
	}
	return nil
}

func (r *runner) reopen(m int) error {
	h := r.fds[m]
	if err := errors.Join(unix.Close(h.plain), unix.Close(h.direct), unix.Close(h.app)); err != nil {
		return err
	}
	r.fds[m] = handles{-1, -1, -1}
	return r.open(m)
}

func (r *runner) rename(m int) error {
	old := r.path(m)
	next := r.o.Name
	if r.name == next {
		next += ".renamed"
	}
	r.detail("%s to %s", r.name, next)
	r.name = next
	switch r.rng.IntN(3) {
	case 0:
		return os.Rename(old, r.path(m))
	case 1: // onto a file that is there
		if err := os.WriteFile(r.path(m), []byte("replaced"), 0o600); err != nil {
			return err
		}
		return os.Rename(old, r.path(m))
	default:
		if err := os.Link(old, r.path(m)); err != nil {
			return err
		}
		return os.Remove(old)
	}
}

// lock takes a lock through one mount and expects every other to see it.
func (r *runner) lock(m int) error {
	fd := r.fds[m].plain
	whole := r.rng.IntN(2) == 0
	take := func(fd int, typ int16) error {
		if whole {
			how := map[int16]int{unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[typ]
			return unix.Flock(fd, how|unix.LOCK_NB)
		}
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: 100, Len: 50})
	}
	if err := take(fd, unix.F_WRLCK); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	other := r.fds[r.rng.IntN(len(r.fds))].direct
	if err := take(other, unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("a second write lock gave %v, want EAGAIN", err)
	}
	if err := take(fd, unix.F_UNLCK); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	if err := take(other, unix.F_WRLCK); err != nil {
		return fmt.Errorf("lock after unlock: %w", err)
	}
	return take(other, unix.F_UNLCK)
}

func (r *runner) compareAll(m int) error {
	p := make([]byte, 1<<20)
	for off := int64(0); off < int64(len(r.data)); off += int64(len(p)) {
		if err := r.readAt(r.fds[m].plain, p, off); err != nil {
			return err
		}
	}
	return r.stat(m)
}
