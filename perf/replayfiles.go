package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"varve/internal/client"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"

	"golang.org/x/sys/unix"
)

// replayTarget is what a replay goes to. Files are made one after the other, handles are opened by many at once.
type replayTarget interface {
	// make makes file i, at least as large as it has to be.
	make(ctx context.Context, i int, f *replayFile) error
	open(i int, f *replayFile, write bool, flags int) (replayHandle, error)
	// truncate changes the size of a file that has no handle.
	truncate(i int, f *replayFile, size int64) error
	close() error
}

// replayHandle is one open file. Its methods but close may be called by many at once.
type replayHandle interface {
	// read and write do all of p, unless the file ends.
	read(p []byte, off int64) (int, error)
	write(p []byte, off int64) error
	sync(data bool) error
	allocate(mode uint32, off, n int64) error
	truncate(size int64) error
	close() error
}

// mountFiles are files below a directory. os.Root keeps a trace from naming one elsewhere, be it by a link.
type mountFiles struct {
	root   *os.Root
	direct bool
}

func (m *mountFiles) make(_ context.Context, _ int, f *replayFile) error {
	if dir := path.Dir(f.name); dir != "." {
		if err := m.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	file, err := m.root.OpenFile(f.name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", f.name)
	}
	if info.Size() < f.size {
		return file.Truncate(f.size)
	}
	return nil
}

func (m *mountFiles) open(_ int, f *replayFile, write bool, flags int) (replayHandle, error) {
	flags &= unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC
	if write {
		flags |= os.O_RDWR
	}
	file, err := m.root.OpenFile(f.name, flags, 0)
	if err != nil || !m.direct {
		return &mountHandle{plain: file}, err
	}
	direct, err := m.root.OpenFile(f.name, flags&^unix.O_TRUNC|unix.O_DIRECT, 0)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &mountHandle{plain: file, direct: direct}, nil
}

func (m *mountFiles) truncate(_ int, f *replayFile, size int64) error {
	h, err := m.open(0, f, true, 0)
	if err != nil {
		return err
	}
	return errors.Join(h.truncate(size), h.close())
}

func (m *mountFiles) close() error { return m.root.Close() }

type mountHandle struct {
	plain  *os.File
	direct *os.File // nil without O_DIRECT
}

// at returns the descriptor for an operation: the direct one only for what the kernel takes there.
func (h *mountHandle) at(p []byte, off int64) *os.File {
	if h.direct != nil && off%sectorSize == 0 && len(p)%sectorSize == 0 {
		return h.direct
	}
	return h.plain
}

func (h *mountHandle) read(p []byte, off int64) (int, error) {
	n, err := h.at(p, off).ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (h *mountHandle) write(p []byte, off int64) error {
	_, err := h.at(p, off).WriteAt(p, off)
	return err
}

func (h *mountHandle) sync(data bool) error {
	fd := int(h.plain.Fd())
	if data {
		return again(func() error { return unix.Fdatasync(fd) })
	}
	return again(func() error { return unix.Fsync(fd) })
}

func (h *mountHandle) allocate(mode uint32, off, n int64) error {
	return again(func() error { return unix.Fallocate(int(h.plain.Fd()), mode, off, n) })
}

func (h *mountHandle) truncate(size int64) error { return h.plain.Truncate(size) }

func (h *mountHandle) close() error {
	err := h.plain.Close()
	if h.direct != nil {
		err = errors.Join(err, h.direct.Close())
	}
	return err
}

// coreFiles are files in a directory of a cluster, without a mount: directories of their paths become part of their names.
type coreFiles struct {
	client *client.Client
	dir    id.Ino
	mu     sync.Mutex
	inodes map[int]id.Ino
}

func openCoreFiles(ctx context.Context, where, dir string) (*coreFiles, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := dialCluster(ctx, where)
	if err != nil {
		return nil, err
	}
	parent, err := walk(ctx, c, dir)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &coreFiles{client: c, dir: parent, inodes: map[int]id.Ino{}}, nil
}

func (c *coreFiles) make(ctx context.Context, i int, f *replayFile) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name := strings.ReplaceAll(f.name, "/", "-")
	_, file, err := c.client.Create(ctx, new(msg.Cred), &msg.Create{Parent: uint64(c.dir), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.mu.Lock()
	c.inodes[i] = file.Ino()
	c.mu.Unlock()
	a, err := c.client.GetAttr(ctx, file.Ino())
	if err == nil && int64(a.Size) < f.size {
		err = file.Truncate(ctx, f.size)
	}
	return errors.Join(err, file.Release(ctx))
}

func (c *coreFiles) inode(i int) id.Ino {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inodes[i]
}

func (c *coreFiles) open(i int, _ *replayFile, write bool, flags int) (replayHandle, error) {
	f, err := c.client.Open(context.Background(), new(msg.Cred), c.inode(i), write, flags&unix.O_TRUNC != 0)
	if err != nil {
		return nil, err
	}
	return &coreHandle{f}, nil
}

func (c *coreFiles) truncate(i int, _ *replayFile, size int64) error {
	n := uint64(size)
	_, err := c.client.SetAttr(context.Background(), new(msg.Cred), &msg.SetAttr{Ino: uint64(c.inode(i)), Size: &n})
	return err
}

func (c *coreFiles) close() error { return c.client.Close() }

// coreHandle has no contexts that end: the client has a time-out of its own.
type coreHandle struct{ f *client.File }

func (h *coreHandle) read(p []byte, off int64) (int, error) {
	return h.f.ReadAt(context.Background(), p, off)
}

func (h *coreHandle) write(p []byte, off int64) error {
	_, _, err := h.f.WriteAt(context.Background(), p, off, false)
	return err
}

func (h *coreHandle) sync(data bool) error { return h.f.Fsync(context.Background(), data) }

func (h *coreHandle) allocate(mode uint32, off, n int64) error {
	return h.f.Fallocate(context.Background(), mode, off, n)
}

func (h *coreHandle) truncate(size int64) error { return h.f.Truncate(context.Background(), size) }
func (h *coreHandle) close() error              { return h.f.Release(context.Background()) }

// rangeFiles are files one after the other on one range of bytes, as of a block device. It has no sizes and no handles.
type rangeFiles struct {
	f    *file
	base []int64
}

// rangeAlign is to what a file's place on a range is aligned.
const rangeAlign = 1 << 20

func openRange(ctx context.Context, t target, o *Options, files []replayFile) (*rangeFiles, error) {
	r := &rangeFiles{}
	end := int64(0)
	for i := range files {
		base := (end + rangeAlign - 1) / rangeAlign * rangeAlign
		r.base = append(r.base, base)
		end = base + files[i].end
	}
	o.Size = max(end, 1)
	f, err := t.open(ctx, 0, o, nil)
	if err != nil {
		return nil, err
	}
	r.f = f
	if short, err := f.short(o.Size); err != nil || short && f.fd >= 0 {
		if err == nil {
			err = unix.Ftruncate(f.fd, o.Size)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s cannot be made %d bytes long: %w", f.path, o.Size, err), f.close())
		}
	}
	return r, nil
}

func (r *rangeFiles) make(context.Context, int, *replayFile) error { return nil }

func (r *rangeFiles) open(i int, f *replayFile, _ bool, _ int) (replayHandle, error) {
	return &rangeHandle{r, r.base[i]}, nil
}

func (r *rangeFiles) truncate(int, *replayFile, int64) error { return fserr.NotSupported }
func (r *rangeFiles) close() error                           { return r.f.close() }

type rangeHandle struct {
	r    *rangeFiles
	base int64
}

func (h *rangeHandle) read(p []byte, off int64) (int, error) {
	return len(p), h.r.f.transfer(opRead, p, h.base+off)
}

func (h *rangeHandle) write(p []byte, off int64) error {
	return h.r.f.transfer(opWrite, p, h.base+off)
}
func (h *rangeHandle) sync(bool) error                     { return h.r.f.sync() }
func (h *rangeHandle) allocate(uint32, int64, int64) error { return fserr.NotSupported }
func (h *rangeHandle) truncate(int64) error                { return fserr.NotSupported }
func (h *rangeHandle) close() error                        { return nil }

// bufferPool has buffers of a power of two bytes.
type bufferPool struct{ pools [maxBufferBits + 1]sync.Pool }

const (
	minBufferBits = 12
	maxBufferBits = 26
)

// get returns an aligned buffer of n bytes, and gives it back when put is called.
func (b *bufferPool) get(n int) (p []byte, put func()) {
	bits := minBufferBits
	for n > 1<<bits {
		bits++
	}
	pool := &b.pools[bits]
	whole, ok := pool.Get().(*[]byte)
	if !ok {
		made := disk.AlignedBuffer(1 << bits)
		whole = &made
	}
	return (*whole)[:n], func() { pool.Put(whole) }
}
