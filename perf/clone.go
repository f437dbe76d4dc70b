package perf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"varve/internal/disk"

	"golang.org/x/sys/unix"
)

// Ways to clone a file, the best first.
const (
	byReflink = "FICLONE"         // the copy shares the original's extents
	byRange   = "copy_file_range" // the kernel or the server copies
	byCopy    = "read and write"
)

// cloneTime is how long one clone may take, as long as nobody says otherwise: it is one operation.
const cloneTime = 30 * time.Minute

// cloner makes one file below mount:DIR the clone of another, by the best way that the filesystem offers.
type cloner struct {
	from, to string
	source   int // descriptor
	size     int64
	method   string // by which it was made; empty: it was not
}

// openClone opens the original, and takes away an older clone. The original is the first job's file of another group.
func openClone(dir string, job int, o *Options) (*file, error) {
	original := Options{Label: o.CloneOf}
	c := &cloner{from: filepath.Join(dir, original.fileName(0)), to: filepath.Join(dir, o.fileName(job)), source: -1}
	if err := os.Remove(c.to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err := again(func() (err error) { c.source, err = unix.Open(c.from, unix.O_RDONLY|unix.O_CLOEXEC, 0); return err })
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: c.from, Err: err}
	}
	var st unix.Stat_t
	if err := again(func() error { return unix.Fstat(c.source, &st) }); err != nil {
		return nil, errors.Join(&os.PathError{Op: "stat", Path: c.from, Err: err}, unix.Close(c.source))
	}
	c.size = st.Size
	return &file{fd: -1, clone: c, path: c.to}, nil
}

func (c *cloner) close() error { return unix.Close(c.source) }

// do makes the clone, which is on stable media when it returns. What was made of one that failed is taken away.
func (c *cloner) do() (err error) {
	to := -1
	if err := again(func() (err error) {
		to, err = unix.Open(c.to, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		return err
	}); err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, unix.Close(to)); err != nil {
			c.method = ""
			_ = os.Remove(c.to)
		}
	}()
	for _, way := range []struct {
		name string
		do   func(to int) error
	}{{byReflink, c.reflink}, {byRange, c.copyRange}, {byCopy, c.copy}} {
		if err = way.do(to); err == nil {
			c.method = way.name
			return again(func() error { return unix.Fsync(to) })
		}
		if !unsupported(err) {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	return err
}

// unsupported reports whether the error says that a filesystem, or its kernel, does not clone so.
func unsupported(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EXDEV, unix.ENOSYS, unix.EPERM},
		func(e error) bool { return errors.Is(err, e) })
}

func (c *cloner) reflink(to int) error {
	return again(func() error { return unix.IoctlFileClone(to, c.source) })
}

// copyAtOnce is how much is copied by one call.
const copyAtOnce = 64 << 20

func (c *cloner) copyRange(to int) error {
	for from, at := int64(0), int64(0); at < c.size; {
		n := 0
		if err := again(func() (err error) {
			n, err = unix.CopyFileRange(c.source, &from, to, &at, int(min(c.size-at, copyAtOnce)), 0)
			return err
		}); err != nil {
			return err
		}
		if n <= 0 {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func (c *cloner) copy(to int) error {
	p := disk.AlignedBuffer(layoutChunk)
	return c.blocks(p, func(p []byte, off int64) error { return (&file{fd: to}).transfer(opWrite, p, off) })
}

// blocks calls f with all of the original.
func (c *cloner) blocks(p []byte, f func(p []byte, off int64) error) error {
	for off := int64(0); off < c.size; off += int64(len(p)) {
		p = p[:min(int64(len(p)), c.size-off)]
		if err := (&file{fd: c.source}).transfer(opRead, p, off); err != nil {
			return err
		}
		if err := f(p, off); err != nil {
			return err
		}
	}
	return nil
}

// verify compares the clone with its original, 4 KiB a block. step is told how far it is.
func (c *cloner) verify(job int, r *recorder, step func(off int64)) error {
	if c.method == "" {
		return nil // that it was not made is an error already
	}
	to := -1
	if err := again(func() (err error) { to, err = unix.Open(c.to, unix.O_RDONLY|unix.O_CLOEXEC, 0); return err }); err != nil {
		return err
	}
	defer unix.Close(to)
	clone := &file{fd: to}
	clone.forget(c.size)
	const block = 4096
	q := disk.AlignedBuffer(layoutChunk)
	return c.blocks(disk.AlignedBuffer(layoutChunk), func(p []byte, off int64) error {
		step(off)
		if err := clone.transfer(opRead, q[:len(p)], off); err != nil {
			return err
		}
		for at := 0; at < len(p); at += block {
			end := min(at+block, len(p))
			var f *Fault
			if !bytes.Equal(p[at:end], q[at:end]) {
				f = &Fault{Kind: Corrupt, Job: job, Block: (off + int64(at)) / block, Path: c.to, Offset: off + int64(at), Detail: "not what the original has there"}
			}
			r.checked(f)
		}
		return nil
	})
}

// clonedBy says in words by which means the clones were made.
func clonedBy(jobs []*job) string {
	counts := map[string]int{}
	for _, j := range jobs {
		if j.file.clone != nil && j.file.clone.method != "" {
			counts[j.file.clone.method]++
		}
	}
	var words []string
	for _, way := range []string{byReflink, byRange, byCopy} {
		switch n := counts[way]; {
		case n > 0 && len(counts) == 1:
			words = append(words, way)
		case n > 0:
			words = append(words, fmt.Sprintf("%s (%d files)", way, n))
		}
	}
	return strings.Join(words, ", ")
}
