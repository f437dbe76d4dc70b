package iouring

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrFull means that as many operations are under way as Options.InFlight allows: Submit and Reap first.
	ErrFull = errors.New("io_uring: queue is full")
	// ErrUnavailable means that the kernel has no io_uring, an older one than 5.15 has, or does not let this process use it.
	ErrUnavailable = errors.New("io_uring is not available")
	// ErrUnsupported means that this kernel, or this ring as it was set up, lacks the feature that an operation needs.
	ErrUnsupported = errors.New("io_uring: not supported by the kernel or switched off")
	// ErrClosed means that the ring was closed.
	ErrClosed = errors.New("io_uring: ring is closed")
	// ErrLost means that the kernel had no memory to keep a completion. The ring is of no use any more: Close it.
	ErrLost = errors.New("io_uring: the kernel lost a completion for want of memory")
	// ErrStuck means that operations would not end within Options.CloseWithin. Their buffers stay allocated for ever.
	ErrStuck = errors.New("io_uring: operations did not end")
)

const (
	maxEntries     = 1 << 12
	maxCompletions = 1 << 16
	maxInFlight    = 1 << 20
	maxTable       = 1 << 15 // files; buffers up to half of that
	maxBuffers     = 1 << 14
)

// Options of a ring. The zero value works.
type Options struct {
	Entries     uint32 // submissions that are queued before they are handed over, a power of two up to 4096; default 128
	Completions uint32 // completions that wait in the ring, a power of two up to 65536; default 2 x Entries. More wait in the kernel.
	InFlight    uint32 // operations queued or under way, up to 1 Mi; default Completions
	Files       uint32 // places in the table of registered files, up to 32768, all empty at first; default none
	Buffers     uint32 // places in the table of registered buffers, up to 16384, all empty at first; default none
	SQE128      bool   // submissions of 128 bytes: commands (Raw) have 80 bytes instead of 16
	CQE32       bool   // completions of 32 bytes: Completion.Extra

	// HandOver is how many operations gather before the next one has the ring hand them over without waiting for Submit, so that
	// a fast disk gets its work while the rest of a batch is made; default, 0: never, unless the queue is full.
	HandOver uint32

	// FileWorkers and OtherWorkers bound the kernel's threads that do for the owner what would block it: operations on
	// files, and those without an end, as on pipes. Default, 0: the kernel's own, 4 for each CPU and RLIMIT_NPROC.
	FileWorkers, OtherWorkers uint32

	// Disabled makes a ring that another thread will own: register with it what is to be registered, then let the owner
	// call Enable, before which nothing can be submitted.
	Disabled bool
	// Without makes the ring behave as if the kernel lacked these features. NewerThan gives those of an old kernel.
	Without Feature
	// CloseWithin bounds how long Close waits for operations that it cancelled; default 30 s.
	CloseWithin time.Duration
}

func (o *Options) check() error {
	if o.Entries == 0 {
		o.Entries = 128
	}
	if o.Completions == 0 {
		o.Completions = 2 * o.Entries
	}
	if o.InFlight == 0 {
		o.InFlight = o.Completions
	}
	if o.CloseWithin == 0 {
		o.CloseWithin = 30 * time.Second
	}
	var faults []error
	power := func(name string, n, limit uint32) {
		if n > limit || n&(n-1) != 0 {
			faults = append(faults, fmt.Errorf("io_uring: %s %d: want a power of two up to %d", name, n, limit))
		}
	}
	most := func(name string, n, limit uint32) {
		if n > limit {
			faults = append(faults, fmt.Errorf("io_uring: %s %d: want %d at most", name, n, limit))
		}
	}
	power("Entries", o.Entries, maxEntries)
	power("Completions", o.Completions, maxCompletions)
	most("InFlight", o.InFlight, maxInFlight)
	most("Files", o.Files, maxTable)
	most("Buffers", o.Buffers, maxBuffers)
	if o.Completions < o.Entries {
		faults = append(faults, fmt.Errorf("io_uring: Completions %d: want at least Entries, %d", o.Completions, o.Entries))
	}
	if o.CloseWithin < 0 {
		faults = append(faults, fmt.Errorf("io_uring: CloseWithin %v: want a positive duration", o.CloseWithin))
	}
	return errors.Join(faults...)
}

// unavailable says of an error of io_uring's system calls what to do about it.
func unavailable(err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%w: nothing was done", ErrUnavailable)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: the kernel has none: %w", ErrUnavailable, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: refused; see sysctl kernel.io_uring_disabled and the container's seccomp profile: %w", ErrUnavailable, err)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("io_uring: set up: %w; see ulimit -l", err)
	}
	return fmt.Errorf("io_uring: set up: %w", err)
}
