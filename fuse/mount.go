package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
)

// mountID is what is needed to end a mount.
type mountID struct {
	dir  string // resolved
	conn uint32 // number of the FUSE connection: the minor number of the mount's device
	root bool   // mounted with mount(2), else with fusermount3
}

// Mount attaches backend at opts.MountPoint and serves it until it is unmounted. It returns when the kernel
// has begun to use it. When ctx is done before, the mount is taken back; later ctx has no effect.
func Mount(ctx context.Context, opts Options, backend Backend) (*Session, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	dir, err := checkMountPoint(opts.MountPoint)
	if err != nil {
		return nil, err
	}
	opts.MountPoint = dir
	if err := opts.Transport.check(); err != nil {
		return nil, err
	}
	s := newSession(opts, backend)
	s.mount = mountID{dir: dir, root: os.Geteuid() == 0}
	var fd int
	if s.mount.root {
		fd, err = mountAsRoot(opts)
	} else {
		fd, err = mountAsUser(ctx, opts)
	}
	if err != nil {
		return nil, err
	}
	if err := s.choose(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), detach(s.mount))
	}
	if e, err := mountAt(dir); err == nil && e != nil {
		s.mount.conn = e.minor
		s.listenCaptures()
	}
	go s.run()
	if err := s.begun(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), s.Unmount(time.Second))
	}
	s.findEpochs()
	c := s.Conn()
	s.log.Info("mounted", "protocol", fmt.Sprintf("7.%d", c.Minor), "flags", fmt.Sprintf("%#x", c.Flags), "transport", c.Transport,
		"why", c.Why, "threads", c.Threads)
	return s, nil
}

// begun waits for INIT.
func (s *Session) begun(ctx context.Context) error {
	late := time.NewTimer(initTime)
	defer late.Stop()
	select {
	case <-s.ready:
		return s.initErr
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("kernel sent no INIT within %v: %w", initTime, fserr.Timeout)
	}
}

// checkMountPoint refuses what cannot or should not be mounted on and returns the resolved path.
func checkMountPoint(dir string) (string, error) {
	abs, err := resolve(dir)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	e, err := mountAt(abs)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if e != nil {
		return "", fmt.Errorf("mount point %s: a filesystem of type %s (%s) is mounted there already: %w", abs, e.fsType, e.source, fserr.Busy)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("mount point %s: %w", abs, fserr.NotDir)
	}
	if _, err := os.Stat(devicePath); err != nil {
		return "", fmt.Errorf("no %s: is the kernel module fuse loaded? %w", devicePath, err)
	}
	return abs, nil
}

// mountAsRoot opens /dev/fuse and mounts it with mount(2).
func mountAsRoot(opts Options) (fd int, err error) {
	fd, err = unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", devicePath, err)
	}
	data := []string{
		fmt.Sprintf("fd=%d", fd), "rootmode=40000", fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()), "default_permissions", fmt.Sprintf("max_read=%d", maxWrite),
	}
	if opts.AllowOther {
		data = append(data, "allow_other")
	}
	flags := opts.Flags // without any device nodes and setuid work, as on any filesystem that root mounts
	if opts.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(opts.FSName, opts.MountPoint, fsType, flags, strings.Join(data, ",")); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount %s at %s: %w", opts.FSName, opts.MountPoint, err)
	}
	return fd, nil
}

// mountAsUser lets fusermount3, which is setuid root, open and mount /dev/fuse; it sends the descriptor
// back over a socket whose number is in _FUSE_COMMFD.
func mountAsUser(ctx context.Context, opts Options) (fd int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket pair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	list := []string{"fsname=" + opts.FSName, "subtype=varve", "default_permissions", fmt.Sprintf("max_read=%d", maxWrite), "nosuid", "nodev"}
	if opts.AllowOther {
		list = append(list, "allow_other")
	}
	if opts.ReadOnly {
		list = append(list, "ro")
	}
	for _, f := range []struct {
		flag uintptr
		name string
	}{{unix.MS_NOEXEC, "noexec"}, {unix.MS_NOATIME, "noatime"}, {unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"}} {
		if opts.Flags&f.flag != 0 {
			list = append(list, f.name)
		}
	}
	cmd := exec.CommandContext(ctx, "fusermount3", "-o", strings.Join(list, ","), "--", opts.MountPoint)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return -1, fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return receiveFD(pair[0])
}

// receiveFD takes the one descriptor that was sent to sock.
func receiveFD(sock int) (int, error) {
	var data [4]byte
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, data[:], control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, fmt.Errorf("fusermount3 sent no descriptor: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("fusermount3 sent %d control messages: %w", len(messages), errors.Join(err, fserr.Protocol))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount3 sent %d descriptors: %w", len(fds), errors.Join(err, fserr.Protocol))
	}
	return fds[0], nil
}
