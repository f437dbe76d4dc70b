package iouring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Files is the number of places in the table of registered files.
func (r *Ring) Files() int { return r.files }

// SetFile registers a descriptor at place i, or makes the place empty with -1. The file stays open in the table when the descriptor is
// closed. Operations under way keep the file that the place had.
func (r *Ring) SetFile(i, fd int) error {
	r.fdArg[0] = int32(fd)
	return r.setFiles(i, r.fdArg[:])
}

// SetFiles registers descriptors at places from i on.
func (r *Ring) SetFiles(i int, fds []int32) error { return r.setFiles(i, fds) }

func (r *Ring) setFiles(i int, fds []int32) error {
	if r.closed {
		return ErrClosed
	}
	if i < 0 || len(fds) == 0 || i+len(fds) > r.files {
		return fmt.Errorf("io_uring: register %d files at %d of %d: %w", len(fds), i, r.files, unix.EINVAL)
	}
	if err := r.updateFiles(i, fds); err != nil {
		return fmt.Errorf("io_uring: register %d files at %d: %w", len(fds), i, err)
	}
	return nil
}

// FileRange keeps the kernel's own choices (AcceptDirectMulti) to n places from i on. The rest is the caller's.
func (r *Ring) FileRange(i, n int) error {
	if !r.has.Has(SingleIssuer) { // both are of 6.0
		return fmt.Errorf("range of registered files: %w", ErrUnsupported)
	}
	if i < 0 || n < 0 || i+n > r.files {
		return fmt.Errorf("io_uring: range %d+%d of %d files: %w", i, n, r.files, unix.EINVAL)
	}
	if err := r.registerFileRange(uint32(i), uint32(n)); err != nil {
		return fmt.Errorf("io_uring: range %d+%d of files: %w", i, n, err)
	}
	return nil
}

// Buffers is the number of places in the table of registered buffers.
func (r *Ring) Buffers() int { return len(r.bufs) }

// SetBuffer registers p at place i, or makes the place empty with nil. Its pages are pinned, and count against RLIMIT_MEMLOCK. Operations
// under way keep the buffer that the place had.
func (r *Ring) SetBuffer(i int, p []byte) error {
	if r.closed {
		return ErrClosed
	}
	if i < 0 || i >= len(r.bufs) || len(p) > 1<<30 {
		return fmt.Errorf("io_uring: register a buffer of %d bytes at %d of %d: %w", len(p), i, len(r.bufs), unix.EINVAL)
	}
	if err := r.updateBuffer(i, p); err != nil {
		hint := ""
		if errors.Is(err, unix.ENOMEM) {
			hint = "; see ulimit -l"
		}
		return fmt.Errorf("io_uring: register a buffer of %d bytes at %d: %w%s", len(p), i, err, hint)
	}
	r.bufs[i] = p
	return nil
}

// tables makes the tables that the options ask for, all places empty.
func (r *Ring) tables() error {
	if n := r.o.Files; n > 0 {
		if err := r.registerFiles(n); err != nil {
			return fmt.Errorf("io_uring: table of %d files: %w; see ulimit -n", n, err)
		}
		r.files = int(n)
	}
	if n := r.o.Buffers; n > 0 {
		if err := r.registerBuffers(n); err != nil {
			return fmt.Errorf("io_uring: table of %d buffers: %w", n, err)
		}
		r.bufs = make([][]byte, n)
	}
	return nil
}

// unregister undoes what New and the owner registered, so that files are closed and pages let go of now, not when the
// kernel takes the ring apart.
func (r *Ring) unregister() error {
	var err error
	for _, g := range r.groups {
		err = errors.Join(err, g.free())
	}
	err = errors.Join(err, r.closeWakers())
	if r.files > 0 {
		err = errors.Join(err, r.register(unregFiles, nil, 0))
		r.files = 0
	}
	if r.bufs != nil {
		err = errors.Join(err, r.register(unregBuffers, nil, 0))
		r.bufs = nil
	}
	r.unregisterSelf()
	return err
}
