package wire

import (
	"errors"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// passing are the failures of accept(2) that pass: want of descriptors or memory, and what became of a connection before it was accepted, which the kernel tells whoever
// accepts it.
var passing = []unix.Errno{
	unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR, unix.EPERM, // the last of a firewall
	unix.ENETDOWN, unix.EPROTO, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET, unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH,
}

// Passes reports whether a listener that failed to accept will go on, after a pause.
func Passes(err error) bool {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return true
	}
	number, ok := errors.AsType[unix.Errno](err)
	return ok && slices.Contains(passing, number)
}
