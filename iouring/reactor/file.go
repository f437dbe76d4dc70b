package reactor

import (
	"io"

	"golang.org/x/sys/unix"
)

// File is an open file on which operations run. It does not own the descriptor: who closes that waits for the operations first. It is
// kept where it does not move until they have ended, beside the Op for instance.
type File struct {
	l  *Loop
	fd int32
}

// File makes fd, opened for direct or buffered I/O, a file of the loop.
func (l *Loop) File(fd int) File { return File{l: l, fd: int32(fd)} }

// Read fills p from off. For direct I/O p, its length and off are aligned as the file wants it. p is the kernel's until op.Done.
func (f *File) Read(op *Op, p []byte, off int64) { f.transfer(op, opRead, p, off) }

// Write writes p at off. p is the kernel's until op.Done.
func (f *File) Write(op *Op, p []byte, off int64) { f.transfer(op, opWrite, p, off) }

func (f *File) transfer(op *Op, code opCode, p []byte, off int64) {
	if len(p) == 0 {
		panic("reactor: file operation with no bytes")
	}
	op.code, op.fd, op.buf, op.off, op.done = code, f.fd, p, off, 0
	f.l.start(op, f)
}

// Sync puts the file's data and size on stable media (fdatasync): all writes whose Done was called before.
func (f *File) Sync(op *Op) {
	op.code, op.fd, op.buf, op.done = opSync, f.fd, nil, 0
	f.l.start(op, f)
}

// Punch frees [off, off+n), which then reads as zeros; the file keeps its size.
func (f *File) Punch(op *Op, off, n int64) { f.space(op, opPunch, off, n) }

// Allocate gives [off, off+n) room on the disk and makes the file that long at least.
func (f *File) Allocate(op *Op, off, n int64) { f.space(op, opAllocate, off, n) }

func (f *File) space(op *Op, code opCode, off, n int64) {
	op.code, op.fd, op.buf, op.done, op.off, op.n = code, f.fd, nil, 0, off, n
	f.l.start(op, f)
}

// complete implements completer.
func (f *File) complete(op *Op, r result) {
	if op.code == opRead || op.code == opWrite {
		switch {
		case r.err == unix.EINTR || r.err == unix.EAGAIN:
		case r.err == nil && r.n == 0 && op.code == opRead:
			r.err = io.ErrUnexpectedEOF
		case r.err == nil && r.n == 0:
			r.err = io.ErrShortWrite
		}
		if r.err == nil || r.err == unix.EINTR || r.err == unix.EAGAIN {
			op.done += r.n
			op.buf, op.off = op.buf[r.n:], op.off+int64(r.n)
			if len(op.buf) > 0 && !op.killed {
				f.l.start(op, f)
				return
			}
			if len(op.buf) > 0 {
				r.err = unix.ECANCELED
			} else {
				r.err = nil
			}
		}
	} else if r.err == unix.EINTR && !op.killed {
		f.l.start(op, f)
		return
	}
	op.buf = nil
	op.Done(op.done, r.err)
}

// Cancel asks the kernel to end an operation early. Done is called as always, when it has ended.
func (f *File) Cancel(op *Op) { f.l.cancel(op) }
