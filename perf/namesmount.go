package perf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountDir is a job's directory on a mounted filesystem, reached by system calls as applications make them: create is an open with O_CREAT and
// O_EXCL and a close, lookup an open with O_PATH and a close, which walks the name and nothing else.
type mountDir struct {
	fd   int
	path string
}

var _ directory = (*mountDir)(nil)

func openMountDir(path string) (*mountDir, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	d := &mountDir{path: path}
	err := again(func() (err error) {
		d.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return d, nil
}

// openAt opens a name and closes it.
func (d *mountDir) openAt(name string, flags int) error {
	fd := -1
	err := again(func() (err error) { fd, err = unix.Openat(d.fd, name, flags|unix.O_CLOEXEC, 0o600); return err })
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (d *mountDir) create(name string) (uint64, error) {
	return 0, d.openAt(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
}

func (d *mountDir) stat(e entry) error {
	var st unix.Stat_t
	return again(func() error { return unix.Fstatat(d.fd, e.name(), &st, unix.AT_SYMLINK_NOFOLLOW) })
}

func (d *mountDir) lookup(name string) error { return d.openAt(name, unix.O_PATH|unix.O_NOFOLLOW) }

func (d *mountDir) rename(from, to string) error {
	return again(func() error { return unix.Renameat(d.fd, from, d.fd, to) })
}

func (d *mountDir) remove(name string) error {
	return again(func() error { return unix.Unlinkat(d.fd, name, 0) })
}

func (d *mountDir) sync() error { return again(func() error { return unix.Fsync(d.fd) }) }

// close leaves a directory that has something in it.
func (d *mountDir) close() error {
	_ = unix.Rmdir(d.path)
	return unix.Close(d.fd)
}

// Layout of struct linux_dirent64: inode 8, offset 8, length 2, type 1, name up to a zero.
const (
	direntLength = 16
	direntName   = 19
	listBuffer   = 64 << 10
)

func (d *mountDir) list(each func(name string, handle uint64)) (n int, err error) {
	fd := -1
	if err := again(func() (err error) {
		fd, err = unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	b := make([]byte, listBuffer)
	for {
		got := 0
		if err := again(func() (err error) { got, err = unix.Getdents(fd, b); return err }); err != nil || got <= 0 {
			return n, err
		}
		for p := b[:got]; len(p) > 0; {
			size := 0
			if len(p) > direntName {
				size = int(binary.NativeEndian.Uint16(p[direntLength:]))
			}
			if size <= direntName || size > len(p) {
				return n, fmt.Errorf("%s: a directory entry of %d bytes in %d: %w", d.path, size, len(p), unix.EIO)
			}
			name := unix.ByteSliceToString(p[direntName:size])
			p = p[size:]
			if name == "." || name == ".." {
				continue
			}
			n++
			if each != nil {
				each(name, 0)
			}
		}
	}
}

// nullDir does nothing.
type nullDir struct{}

var _ directory = nullDir{}

func (nullDir) create(string) (uint64, error)          { return 0, nil }
func (nullDir) stat(entry) error                       { return nil }
func (nullDir) lookup(string) error                    { return nil }
func (nullDir) list(func(string, uint64)) (int, error) { return 0, nil }
func (nullDir) rename(_, _ string) error               { return nil }
func (nullDir) remove(string) error                    { return nil }
func (nullDir) sync() error                            { return nil }
func (nullDir) close() error                           { return nil }
