package fuse

import (
	"context"
	"errors"
	"syscall"

	"varve/internal/fserr"
)

// errnos is the only place where outcomes become numbers of the kernel. What is not here is EIO: the
// outcomes between varve's own parts that nobody handled, of which the application can know nothing better.
var errnos = map[fserr.Code]syscall.Errno{
	fserr.OK: 0, fserr.NotExist: syscall.ENOENT, fserr.Exist: syscall.EEXIST, fserr.NotDir: syscall.ENOTDIR,
	fserr.IsDir: syscall.EISDIR, fserr.NotEmpty: syscall.ENOTEMPTY, fserr.Access: syscall.EACCES, fserr.Perm: syscall.EPERM,
	fserr.NameTooLong: syscall.ENAMETOOLONG, fserr.TooManyLinks: syscall.EMLINK, fserr.Invalid: syscall.EINVAL,
	fserr.NoSpace: syscall.ENOSPC, fserr.ReadOnly: syscall.EROFS, fserr.Loop: syscall.ELOOP, fserr.CrossDevice: syscall.EXDEV,
	fserr.NoAttr: syscall.ENODATA, fserr.Range: syscall.ERANGE, fserr.FileTooBig: syscall.EFBIG, fserr.Again: syscall.EAGAIN,
	fserr.Deadlock: syscall.EDEADLK, fserr.Stale: syscall.ESTALE, fserr.IO: syscall.EIO, fserr.NotSupported: syscall.EOPNOTSUPP,
	fserr.BadHandle: syscall.EBADF, fserr.Busy: syscall.EBUSY, fserr.Interrupted: syscall.EINTR, fserr.TooLong: syscall.E2BIG,
	fserr.NoDevice: syscall.ENXIO,
	fserr.Fenced:   syscall.ESTALE, fserr.NoSession: syscall.ESTALE, fserr.Denied: syscall.EPERM,
}

// errnoOf returns what the application is told of err.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno // from this package itself, never from a Backend
	if errors.As(err, &e) && e != 0 {
		return e
	}
	code := fserr.Of(err)
	if code == fserr.IO && errors.Is(err, context.Canceled) {
		return syscall.EINTR // the request was interrupted, or the mount is going away
	}
	if e, ok := errnos[code]; ok {
		return e
	}
	return syscall.EIO
}
