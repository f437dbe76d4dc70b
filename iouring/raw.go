package iouring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Raw is an operation that has no method: a command of a file's own (OpUringCmd), or what a newer kernel brought.
type Raw struct {
	SQE // as the kernel's header says; UserData is the ring's

	// File is put into the entry unless it is 0: use it rather than SQE.FD, and Fixed places work.
	File FD
	// Buf, if not nil, is memory for the kernel: its address goes to SQE.Addr and, if that is 0, its length to SQE.Len.
	Buf []byte
	// Vec, if not nil, are buffers for the kernel: the address of a vector of them goes to SQE.Addr and their number to SQE.Len.
	Vec [][]byte
	// Cmd is copied behind byte 48 of the entry: 16 bytes at most, 80 with Options.SQE128.
	Cmd []byte
	// Keep stays reachable until the operation's final completion.
	Keep any
}

// Raw queues an operation as it is. The ring keeps Buf, the buffers of Vec, and Keep until the final completion, which is the one
// without More. A command that goes on using memory after that, as FUSE does with the buffers of a registered
// queue entry, is the caller's to keep in mind. Addresses that the caller puts into the SQE itself are not looked at.
func (r *Ring) Raw(o *Raw, data uint64) (Op, error) {
	room := 16
	if r.o.SQE128 {
		room = 80
	}
	switch {
	case o.Opcode == OpUringCmd && !r.has.Has(UringCmd):
		return 0, fmt.Errorf("command of a file: %w", ErrUnsupported)
	case len(o.Cmd) > room:
		return 0, fmt.Errorf("io_uring: command of %d bytes, %d fit: %w", len(o.Cmd), room, unix.EINVAL)
	case o.Flags&sqeSkipSuccess != 0:
		return 0, fmt.Errorf("io_uring: an operation without a completion would keep its slot for ever: %w", unix.EINVAL)
	case o.Buf != nil && o.Vec != nil, o.Buf != nil && len(o.Buf) == 0, len(o.Buf) > maxLen, o.Vec != nil && len(o.Vec) == 0, len(o.Vec) > maxVec:
		return 0, fmt.Errorf("io_uring: Buf or Vec, one of them and not empty: %w", unix.EINVAL)
	}
	fd := o.File
	if fd == 0 {
		fd = FD(o.SQE.FD)
	}
	e, s, err := r.take(o.Opcode, fd, data)
	if err != nil {
		return 0, err
	}
	placed := *e
	*e = o.SQE
	e.UserData = placed.UserData
	if o.File != 0 {
		e.FD, e.Flags = placed.FD, e.Flags|placed.Flags
	}
	s.keep = o.Keep
	switch {
	case o.Buf != nil:
		s.buf = o.Buf
		if e.Addr = address(o.Buf); e.Len == 0 {
			e.Len = uint32(len(o.Buf))
		}
	case o.Vec != nil:
		e.Addr, e.Len = s.vector(o.Vec), uint32(len(o.Vec))
	}
	if len(o.Cmd) > 0 {
		copy(r.command(e), o.Cmd)
	}
	return Op(e.UserData), nil
}
