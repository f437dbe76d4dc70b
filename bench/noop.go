package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"varve/fuse"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// noop is a filesystem of one file, whose bytes are in memory: what is left of a mount when nothing is behind it.
type noop struct {
	name string
	attr *msg.Attr // of the file
	root *msg.Attr
	mem  []byte // the file, again and again
}

const noopFile = id.Root + 1

// noopMemory is how many bytes are really there.
const noopMemory = 64 << 20

var _ fuse.Backend = (*noop)(nil)

func newNoop(name string, size uint64) *noop {
	return &noop{
		name: name, mem: make([]byte, noopMemory),
		attr: &msg.Attr{Ino: uint64(noopFile), Type: msg.FileType_REGULAR, Perm: 0o600, Nlink: 1, Size: size, Blocks: size / 512},
		root: &msg.Attr{Ino: uint64(id.Root), Type: msg.FileType_DIRECTORY, Perm: 0o755, Nlink: 2},
	}
}

// Lookup and what follows implement fuse.Backend.
func (n *noop) Lookup(_ context.Context, _ *msg.Cred, parent id.Ino, name []byte) (*msg.Attr, error) {
	if parent != id.Root || string(name) != n.name {
		return nil, fserr.NotExist
	}
	return n.attr, nil
}

func (n *noop) GetAttr(_ context.Context, ino id.Ino) (*msg.Attr, error) {
	if ino == id.Root {
		return n.root, nil
	}
	return n.attr, nil
}

func (n *noop) SetAttr(ctx context.Context, _ *msg.Cred, req *msg.SetAttr) (*msg.Attr, error) {
	return n.GetAttr(ctx, id.Ino(req.Ino))
}

func (n *noop) StatFS(context.Context) (*msg.StatFSReply, error) { return &msg.StatFSReply{}, nil }

func (n *noop) Open(context.Context, *msg.Cred, id.Ino, bool, bool) (fuse.Handle, error) {
	return n, nil
}

func (n *noop) ReadDir(context.Context, *msg.Cred, id.Ino, uint64, int, bool) (*msg.ReadDirReply, error) {
	return &msg.ReadDirReply{}, nil
}

func (n *noop) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	for left := p; len(left) > 0; {
		done := copy(left, n.mem[off%noopMemory:])
		left, off = left[done:], off+int64(done)
	}
	return len(p), nil
}

func (n *noop) WriteAt(_ context.Context, p []byte, off int64, _ bool) (int, int64, error) {
	end := off + int64(len(p))
	for left := p; len(left) > 0; {
		done := copy(n.mem[off%noopMemory:], left)
		left, off = left[done:], off+int64(done)
	}
	return len(p), end, nil
}

func (n *noop) Fsync(context.Context, bool) error { return nil }
func (n *noop) Flush(context.Context) error       { return nil }
func (n *noop) Release(context.Context) error     { return nil }
func (n *noop) Fallocate(context.Context, uint32, int64, int64) error {
	return fserr.NotSupported
}

func (n *noop) Seek(context.Context, int64, int) (int64, error) { return 0, fserr.NotSupported }
func (n *noop) Create(context.Context, *msg.Cred, *msg.Create) (*msg.Attr, fuse.Handle, error) {
	return nil, nil, fserr.Access
}

func (n *noop) Link(context.Context, *msg.Cred, id.Ino, id.Ino, []byte) (*msg.Attr, error) {
	return nil, fserr.NotSupported
}

func (n *noop) Remove(context.Context, *msg.Cred, id.Ino, []byte, bool) error {
	return fserr.NotSupported
}
func (n *noop) Rename(context.Context, *msg.Cred, *msg.Rename) error { return fserr.NotSupported }
func (n *noop) ReadLink(context.Context, id.Ino) ([]byte, error)     { return nil, fserr.NotSupported }
func (n *noop) GetXattr(context.Context, *msg.Cred, id.Ino, []byte) ([]byte, error) {
	return nil, fserr.NotSupported
}
func (n *noop) SetXattr(context.Context, *msg.Cred, *msg.SetXattr) error { return fserr.NotSupported }
func (n *noop) ListXattr(context.Context, *msg.Cred, id.Ino) ([][]byte, error) {
	return nil, fserr.NotSupported
}

func (n *noop) RemoveXattr(context.Context, *msg.Cred, id.Ino, []byte) error {
	return fserr.NotSupported
}
func (n *noop) Access(context.Context, *msg.Cred, id.Ino, uint32) error { return nil }
func (n *noop) Lock(context.Context, *msg.Lock) (*msg.LockReply, error) {
	return nil, fserr.NotSupported
}

// noopVerb makes this program serve such a mount: what serves a mount must not open files of it.
const noopVerb = "serve-noop"

// serveNoop mounts noop at a directory until ctx is done or the standard input ends.
func serveNoop(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%s wants DIR NAME SIZE; it is for bench itself", noopVerb)
	}
	size, err := strconv.ParseUint(args[2], 10, 62)
	if err != nil {
		return err
	}
	s, err := fuse.Mount(ctx, fuse.Options{MountPoint: args[0], FSName: "varve-noop", Logger: slog.New(slog.DiscardHandler)}, newNoop(args[1], size))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	go func() {
		defer stop()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	<-ctx.Done()
	return s.Unmount(10 * time.Second)
}

// mountNoop has another process serve noop at a directory.
func mountNoop(ctx context.Context, dir, name string, size int64) (pid int, end func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, nil, err
	}
	cmd := exec.Command(self, noopVerb, dir, name, strconv.FormatInt(size, 10))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	alive, err := cmd.StdinPipe()                         // which it sees the end of, however we end
	if err != nil {
		return 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	end = func() error { return errors.Join(alive.Close(), cmd.Wait()) }
	if err := mounted(ctx, dir); err != nil {
		return 0, nil, errors.Join(err, end())
	}
	return cmd.Process.Pid, end, nil
}

// mounted waits until something is mounted at a directory.
func mounted(ctx context.Context, dir string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := isMounted(dir)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

// isMounted returns an error unless something is mounted at a directory.
func isMounted(dir string) error {
	here, herr := os.Stat(dir)
	up, uerr := os.Stat(filepath.Dir(dir))
	if err := errors.Join(herr, uerr); err != nil {
		return fmt.Errorf("%s is not mounted: %w", dir, err)
	}
	if here.Sys().(*syscall.Stat_t).Dev == up.Sys().(*syscall.Stat_t).Dev {
		return fmt.Errorf("%s is not mounted", dir)
	}
	return nil
}
