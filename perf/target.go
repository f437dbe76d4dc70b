package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/nbd"
	"varve/internal/wire"

	"golang.org/x/sys/unix"
)

// A target is what the load goes to.
type target struct {
	kind string // mount, file, cs, mds, nbd, cluster, null
	path string // or address, or URI
	dir  string // of mds: below the root
}

func parseTarget(s string) (target, error) {
	kind, path, found := strings.Cut(s, ":")
	if uri, ok := nbdURI(kind, path, s); ok {
		_, err := nbd.ParseURI(uri)
		return target{kind: "nbd", path: uri}, err
	}
	switch {
	case s == "null":
		return target{kind: kind}, nil
	case found && path != "" && (kind == "mount" || kind == "file" || kind == "cs"):
		return target{kind: kind, path: path}, nil
	case found && path != "" && kind == "mds":
		addr, dir, _ := strings.Cut(path, "/")
		return target{kind: kind, path: addr, dir: dir}, nil
	case found && kind == "cluster" && strings.Contains(path, "/"):
		return target{kind: kind, path: path}, nil
	}
	return target{}, fmt.Errorf("target %q: want mount:DIR, file:PATH, cluster:NAME/PATH, cs:IP:PORT, mds:IP:PORT[,...][/PATH], nbd:URI or null", s)
}

// null reports whether operations end at once.
func (t target) null() bool { return t.kind == "null" }

// server reports whether the target is a chunk server.
func (t target) server() bool { return t.kind == "cs" }

// nbd reports whether the target is an export of an NBD server.
func (t target) nbd() bool { return t.kind == "nbd" }

// mds reports whether the target is the metadata servers.
func (t target) mds() bool { return t.kind == "mds" }

// hasNames reports whether there can be a load on names.
func (t target) hasNames() bool { return t.kind == "mount" || t.mds() || t.core() || t.null() }

// core reports whether the target is a directory of a cluster, reached without a mount.
func (t target) core() bool { return t.kind == "cluster" }

// file is what one job works on: an open descriptor from base on, or chunks of a server. It may be used by several goroutines at once.
type file struct {
	fd     int     // -1 if there is none
	chunks *chunks // of a chunk server, else nil
	core   *core   // of a cluster, else nil
	device *device // of an NBD server, else nil
	clone  *cloner // of a file to be cloned, which is all that is done here
	names  *names  // of a load on names, which uses nothing else here
	path   string
	base   int64
}

// open opens the file of a job; first is that of the job before it, nil if there is none.
func (t target) open(ctx context.Context, job int, o *Options, first *file) (*file, error) {
	job = o.job(job)
	switch {
	case o.Metadata != "":
		return t.openNames(ctx, job, o)
	case t.null():
		return &file{fd: -1}, nil
	case o.CloneOf != "":
		return openClone(t.path, job, o)
	case t.server():
		c, err := makeChunks(ctx, t.path, job, o)
		return &file{fd: -1, chunks: c, path: t.path}, err
	case t.core():
		_, dir, _ := strings.Cut(t.path, "/")
		c, err := openCore(ctx, o.Cluster, dir, o.fileName(job), func(c *client.Options) { c.NoLocal, c.Network, c.Bonds = o.NoLocal, o.Network, o.Bonds })
		return &file{fd: -1, core: c, path: "/" + filepath.Join(dir, o.fileName(job))}, err
	}
	if t.nbd() {
		return openDevice(ctx, t.path, job, o, first)
	}
	f := &file{path: t.path, base: int64(job) * o.Size}
	if t.kind == "mount" {
		if st, err := os.Stat(t.path); err != nil {
			return nil, err
		} else if !st.IsDir() {
			return nil, fmt.Errorf("%s is not a directory: for a file use file:%s", t.path, t.path)
		}
		f.path, f.base = filepath.Join(t.path, o.fileName(job)), 0
	}
	flags := unix.O_RDWR | unix.O_CREAT | unix.O_CLOEXEC
	if o.Direct {
		flags |= unix.O_DIRECT
	}
	err := again(func() (err error) { f.fd, err = unix.Open(f.path, flags, 0o600); return err })
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		err = again(func() (err error) { f.fd, err = unix.Open(f.path, flags&^unix.O_CREAT&^unix.O_RDWR, 0); return err })
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.path, Err: err}
	}
	return f, nil
}

// openNames opens the directory of a job.
func (t target) openNames(ctx context.Context, job int, o *Options) (*file, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var (
		d    directory = nullDir{}
		name           = o.dirName(job)
		path           = name
		err  error
	)
	switch t.kind {
	case "mount":
		path = filepath.Join(t.path, name)
		d, err = openMountDir(path)
	case "mds", "cluster":
		dir := t.dir
		var c *client.Client
		if t.core() {
			_, dir, _ = strings.Cut(t.path, "/")
			c, err = dialCluster(ctx, o.Cluster)
		} else {
			c, err = dialMDS(ctx, t.path, o.Cluster)
		}
		if err != nil {
			return nil, err
		}
		path = filepath.Join("/", dir, name)
		if d, err = openClientDir(ctx, c, dir, name); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if err != nil {
		return nil, err
	}
	n, err := newNames(o, d, path)
	return &file{fd: -1, names: n, path: path}, err
}

func (f *file) close() error {
	if f.names != nil {
		return f.names.dir.close()
	}
	if f.clone != nil {
		return f.clone.close()
	}
	if f.chunks != nil {
		return f.chunks.remove()
	}
	if f.core != nil {
		return f.core.close()
	}
	if f.device != nil {
		return f.device.close()
	}
	if f.fd < 0 {
		return nil
	}
	return unix.Close(f.fd)
}

// transfer reads or writes all of p at off of the job's range.
func (f *file) transfer(kind opKind, p []byte, off int64) error {
	if f.chunks != nil {
		return f.chunks.transfer(kind, p, off)
	}
	if f.core != nil {
		return f.core.transfer(kind, p, off)
	}
	if f.device != nil {
		return f.device.transfer(kind, p, f.base+off)
	}
	if f.fd < 0 {
		return nil
	}
	for len(p) > 0 {
		n := 0
		err := again(func() (err error) {
			if kind == opWrite {
				n, err = unix.Pwrite(f.fd, p, f.base+off)
			} else {
				n, err = unix.Pread(f.fd, p, f.base+off)
			}
			return err
		})
		if err != nil {
			return err
		}
		if n <= 0 {
			return io.ErrUnexpectedEOF
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (f *file) sync() error {
	if f.names != nil {
		return f.names.dir.sync()
	}
	if f.chunks != nil {
		return f.chunks.sync()
	}
	if f.core != nil {
		return f.core.sync()
	}
	if f.device != nil {
		return f.device.sync()
	}
	if f.fd < 0 {
		return nil
	}
	return again(func() error { return unix.Fdatasync(f.fd) })
}

// forget asks the kernel to drop what it caches of the job's range, so that reads come from the target. It is advice.
func (f *file) forget(size int64) {
	if f.fd >= 0 {
		_ = unix.Fadvise(f.fd, f.base, size, unix.FADV_DONTNEED)
	}
}

// short reports whether the file is regular and ends inside the job's range, or has never been written.
func (f *file) short(size int64) (bool, error) {
	if f.chunks != nil {
		return true, nil
	}
	if f.core != nil {
		have, err := f.core.size()
		return have < size, err
	}
	if f.fd < 0 {
		return false, nil
	}
	var st unix.Stat_t
	if err := again(func() error { return unix.Fstat(f.fd, &st) }); err != nil {
		return false, &os.PathError{Op: "stat", Path: f.path, Err: err}
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size < f.base+size, nil
}

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// endsRun reports whether an operation's error means that the operations after it cannot fare better.
func endsRun(err error) bool {
	if errors.Is(err, wire.ErrClosed) || errors.Is(err, nbd.ErrClosed) || errors.Is(err, nbd.ErrProtocol) {
		return true
	}
	for _, c := range []fserr.Code{fserr.NoChunk, fserr.NoSpace, fserr.Protocol, fserr.Invalid} {
		if errors.Is(err, c) {
			return true
		}
	}
	for _, e := range []error{
		unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.ENODEV, unix.ENXIO, unix.ENOTCONN, unix.ECONNABORTED, unix.ESTALE,
		unix.EROFS, unix.EBADF, unix.EINVAL, unix.ENOENT,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// isGone reports whether an error means that the target is not there any more.
func isGone(err error) bool {
	for _, e := range []error{unix.ENODEV, unix.ENXIO, unix.ENOTCONN, unix.ECONNABORTED, unix.ESTALE, wire.ErrClosed, nbd.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reason says in words why the run ended.
func reason(op opKind, err error) string {
	words := ""
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, fserr.NoSpace):
		words = "disk full"
	case errors.Is(err, unix.EDQUOT):
		words = "quota used up"
	case isGone(err):
		words = "target gone"
	case errors.Is(err, nbd.ErrProtocol):
		words = "target breaks the protocol"
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EBADF):
		words = "target is read-only"
	case errors.Is(err, unix.EINVAL):
		words = "target refuses such operations (direct I/O wants larger blocks?)"
	default:
		words = "target fails"
	}
	return fmt.Sprintf("%s: %s: %v", words, op, err)
}
