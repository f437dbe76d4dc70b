package iouring

import "golang.org/x/sys/unix"

// Read queues a read of len(p) bytes at off. Of a socket or a pipe, off must be 0.
func (r *Ring) Read(fd FD, p []byte, off int64, data uint64) (Op, error) {
	return r.transfer(OpRead, fd, p, off, data)
}

// Write queues a write of p at off.
func (r *Ring) Write(fd FD, p []byte, off int64, data uint64) (Op, error) {
	return r.transfer(OpWrite, fd, p, off, data)
}

func (r *Ring) transfer(op Opcode, fd FD, p []byte, off int64, data uint64) (Op, error) {
	if len(p) == 0 || len(p) > maxLen || off < 0 {
		return 0, unix.EINVAL
	}
	e, s, err := r.take(op, fd, data)
	if err != nil {
		return 0, err
	}
	s.buf = p
	e.Off, e.Addr, e.Len = uint64(off), address(p), uint32(len(p))
	return Op(e.UserData), nil
}

// maxLen bounds the bytes of one operation: the kernel's MAX_RW_COUNT is a little less.
const maxLen = 1<<31 - 1

// maxVec is IOV_MAX of the kernel.
const maxVec = 1024

// ReadFixed is Read into p, which lies within the registered buffer at place index: the kernel need not map its pages.
func (r *Ring) ReadFixed(fd FD, p []byte, off int64, index int, data uint64) (Op, error) {
	return r.transferFixed(OpReadFixed, fd, p, off, index, data)
}

// WriteFixed is Write of p, which lies within the registered buffer at place index.
func (r *Ring) WriteFixed(fd FD, p []byte, off int64, index int, data uint64) (Op, error) {
	return r.transferFixed(OpWriteFixed, fd, p, off, index, data)
}

func (r *Ring) transferFixed(op Opcode, fd FD, p []byte, off int64, index int, data uint64) (Op, error) {
	if err := r.within(p, index); err != nil {
		return 0, err
	}
	o, err := r.transfer(op, fd, p, off, data)
	if err == nil {
		r.last.BufIndex = uint16(index)
	}
	return o, err
}

// ReadV queues a read into several buffers, in order. The slice itself may be reused at once.
func (r *Ring) ReadV(fd FD, bufs [][]byte, off int64, data uint64) (Op, error) {
	return r.transferV(OpReadv, fd, bufs, off, data)
}

// WriteV queues a write of several buffers, in order.
func (r *Ring) WriteV(fd FD, bufs [][]byte, off int64, data uint64) (Op, error) {
	return r.transferV(OpWritev, fd, bufs, off, data)
}

func (r *Ring) transferV(op Opcode, fd FD, bufs [][]byte, off int64, data uint64) (Op, error) {
	if len(bufs) == 0 || len(bufs) > maxVec || off < 0 {
		return 0, unix.EINVAL
	}
	e, s, err := r.take(op, fd, data)
	if err != nil {
		return 0, err
	}
	e.Off, e.Addr, e.Len = uint64(off), s.vector(bufs), uint32(len(bufs))
	return Op(e.UserData), nil
}

// Sync queues an fdatasync. It does not wait for writes queued before it: reap those first, or Link them.
func (r *Ring) Sync(fd FD, data uint64) (Op, error) {
	o, err := r.Fsync(fd, data)
	if err == nil {
		r.last.OpFlags = fsyncDatasync
	}
	return o, err
}

// Fsync queues an fsync.
func (r *Ring) Fsync(fd FD, data uint64) (Op, error) {
	e, _, err := r.take(OpFsync, fd, data)
	if err != nil {
		return 0, err
	}
	return Op(e.UserData), nil
}

// Fallocate queues fallocate(2) of [off, off+n).
func (r *Ring) Fallocate(fd FD, mode uint32, off, n int64, data uint64) (Op, error) {
	if off < 0 || n <= 0 {
		return 0, unix.EINVAL
	}
	e, _, err := r.take(OpFallocate, fd, data)
	if err != nil {
		return 0, err
	}
	e.Off, e.Addr, e.Len = uint64(off), uint64(n), mode
	return Op(e.UserData), nil
}

// Punch queues a hole punch of [off, off+n) that keeps the file's size.
func (r *Ring) Punch(fd FD, off, n int64, data uint64) (Op, error) {
	return r.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n, data)
}

// CloseFile queues the close of a descriptor, or of a registered file, whose place becomes empty.
func (r *Ring) CloseFile(fd FD, data uint64) (Op, error) {
	if fd == -1 {
		return 0, unix.EBADF
	}
	e, s, err := r.take(OpClose, 0, data)
	if err != nil {
		return 0, err
	}
	s.fd = -1 // a close cannot be cancelled by descriptor
	if i, ok := fd.index(); ok {
		e.FileIndex = i + 1
	} else {
		e.FD = int32(fd)
	}
	return Op(e.UserData), nil
}

// Nop queues nothing at all, which completes.
func (r *Ring) Nop(data uint64) (Op, error) {
	e, _, err := r.take(OpNop, -1, data)
	if err != nil {
		return 0, err
	}
	return Op(e.UserData), nil
}
