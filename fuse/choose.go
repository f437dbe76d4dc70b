package fuse

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"varve/internal/fserr"
	"varve/iouring"
)

const possibleCPUs = "/sys/devices/system/cpu/possible"

// uringSwitch is the kernel's; a variable for tests.
var uringSwitch = "/sys/module/fuse/parameters/enable_uring"

var errNotOffered = errors.New("the kernel does not offer it")

// checkUring says why there is no FUSE over io_uring, with a nil error that there is, and for how many processors.
func checkUring() (cpus int, err error) {
	on, err := os.ReadFile(uringSwitch)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, fmt.Errorf("the kernel has no FUSE over io_uring, which came with Linux 6.14 (CONFIG_FUSE_IO_URING): %w", fserr.NotSupported)
	case err != nil:
		return 0, fmt.Errorf("FUSE over io_uring: %w", err)
	case strings.TrimSpace(string(on)) != "Y":
		return 0, fmt.Errorf("FUSE over io_uring is switched off in the kernel; root switches it on with: echo Y > %s: %w", uringSwitch, fserr.NotSupported)
	}
	has, err := iouring.Probe()
	if err != nil {
		return 0, fmt.Errorf("FUSE over io_uring: %w", err)
	}
	if want := iouring.SQE128 | iouring.UringCmd; !has.Has(want) {
		return 0, fmt.Errorf("FUSE over io_uring: the kernel's io_uring has not all of: %v: %w", want, fserr.NotSupported)
	}
	list, err := os.ReadFile(possibleCPUs)
	if err != nil {
		return 0, fmt.Errorf("FUSE over io_uring: %w", err)
	}
	return parseCPUs(string(list))
}

// parseCPUs counts the processors of a list such as 0-3,8. The kernel numbers its queues by processor and has as many as there are, so a list with a gap
// is refused.
func parseCPUs(list string) (int, error) {
	list = strings.TrimSpace(list)
	first, last, ok := strings.Cut(list, "-")
	if !ok {
		last = first
	}
	n, err := strconv.Atoi(last)
	if err != nil || first != "0" || n < 0 || n >= 1<<15 {
		return 0, fmt.Errorf("FUSE over io_uring: possible processors %q: want 0, or from 0 to some number: %w", list, fserr.NotSupported)
	}
	return n + 1, nil
}

// check says whether the transport can be had, before anything is mounted.
func (t Transport) check() error {
	if t == Uring {
		_, err := checkUring()
		return err
	}
	return nil
}

// choose makes the transport, which takes over fd, the mounted /dev/fuse.
func (s *Session) choose(fd int) error {
	s.why = "as asked for"
	switch s.opts.Transport {
	case Readers:
		return s.useReaders(fd)
	case Dev:
		return s.useLoops(fd, Dev, 0)
	case Uring:
		cpus, err := checkUring()
		if err != nil {
			return err
		}
		return s.useLoops(fd, Uring, cpus)
	}
	if s.host == nil {
		s.why = "nothing is begun on reactors"
		return s.useReaders(fd)
	}
	cpus, err := checkUring()
	if err == nil {
		s.why = "it takes the least CPU for an operation"
		if err = s.useLoops(fd, Uring, cpus); !errors.Is(err, errNoReactor) {
			return err
		}
	}
	s.why = err.Error()
	if err = s.useLoops(fd, Dev, 0); !errors.Is(err, errNoReactor) {
		return err
	}
	s.why = err.Error()
	return s.useReaders(fd)
}

func (s *Session) useReaders(fd int) error {
	d, err := newDevice(fd, s.opts.Readers, polled, s.log)
	if err != nil {
		return err
	}
	s.via, s.transport, s.threads = d, Readers, len(d.readers)
	return nil
}

func (s *Session) useLoops(fd int, as Transport, rings int) error {
	t, err := newLoops(s, fd, rings)
	if err != nil {
		return err
	}
	s.via, s.transport, s.threads = t, as, len(t.all)
	return nil
}
