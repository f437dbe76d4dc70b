package readcache

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Keeper keeps words beyond a process, but not beyond the machine, nor in copies of a disk.
type Keeper interface {
	// Find returns a copy of what is kept under a name, or nil.
	Find(name string) []uint64
	// Make makes n zero words that are kept under the name once keep was called, in the place of what is. end ends this process's use of them.
	Make(name string, n int) (words []atomic.Uint64, keep, end func() error, err error)
	// Forget forgets the name.
	Forget(name string)
}

// shm keeps words in /dev/shm.
type shm struct{}

var _ Keeper = shm{}

const shmDir = "/dev/shm/"

func (shm) Find(name string) []uint64 {
	fd, err := unix.Open(shmDir+name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Nlink != 1 || st.Size%8 != 0 || st.Size == 0 || onTmpfs(fd) != nil {
		return nil
	}
	mem, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	defer unix.Munmap(mem)
	out := make([]uint64, st.Size/8)
	words := atomicWords(mem)
	for i := range words {
		out[i] = words[i].Load()
	}
	return out
}

// onTmpfs refuses a filesystem that a machine's crash leaves in some older state.
func onTmpfs(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is no tmpfs", shmDir)
	}
	return nil
}

func (shm) Make(name string, n int) ([]atomic.Uint64, func() error, func() error, error) {
	temp := fmt.Sprintf("%s%s.%d", shmDir, name, os.Getpid())
	_ = unix.Unlink(temp) // of a process with our number that is no more
	fd, err := unix.Open(temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, nil, &os.PathError{Op: "open", Path: temp, Err: err}
	}
	defer unix.Close(fd)
	var mem []byte
	if err = onTmpfs(fd); err == nil {
		if err = unix.Fallocate(fd, 0, 0, int64(n)*8); err == nil { // so that no store can fail for want of memory
			mem, err = unix.Mmap(fd, 0, n*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		}
	}
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("memory of %d bytes in %s: %w", n*8, temp, err), unix.Unlink(temp))
	}
	keep := func() error { return os.Rename(temp, shmDir+name) }
	end := func() error {
		_ = unix.Unlink(temp) // if it was not kept
		return unix.Munmap(mem)
	}
	return atomicWords(mem), keep, end, nil
}

func (shm) Forget(name string) { _ = unix.Unlink(shmDir + name) }
