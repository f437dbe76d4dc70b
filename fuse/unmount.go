package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
)

// busyRetry is how often an orderly unmount tries again while files are open.
const busyRetry = 50 * time.Millisecond

// Unmount ends the mount within deadline and then waits for the Session to end. It tries in an orderly way for
// half of the time, since files may still be open; then the mount point disappears at once and the
// kernel waits for the open files (MNT_DETACH); at the end the connection is aborted, after which
// applications get ENOTCONN. Nil means that it ended without an abort.
func (s *Session) Unmount(deadline time.Duration) error {
	end := time.Now().Add(deadline)
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	orderly, stop := context.WithTimeout(ctx, deadline/2)
	defer stop()
	select {
	case <-s.ended:
		return s.err
	default:
	}
	err := unmountRetry(orderly, s.mount)
	if err != nil && errors.Is(err, unix.EBUSY) {
		s.log.Warn("mount is busy; detaching it", "files", s.files.size())
		err = within(ctx, func() error { return detach(s.mount) })
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is no mount point any more
		s.log.Warn("unmount failed; aborting the connection", "cause", err)
		end = time.Now()
	}
	wait := time.NewTimer(time.Until(end))
	defer wait.Stop()
	select {
	case <-s.ended:
		return s.err
	case <-wait.C:
	}
	s.log.Warn("aborting the connection: unmount took too long", "files", s.files.size(), "deadline", deadline)
	aborted := fmt.Errorf("unmount %s: connection aborted after %v: %w", s.mount.dir, deadline, fserr.Timeout)
	if err := abort(s.mount.conn); err != nil {
		s.log.Debug("abort through sysfs failed; closing the device does it", "cause", err)
	}
	s.via.close()
	_ = within(context.Background(), func() error { return detach(s.mount) }) // dead now: only the name is left
	select {
	case <-s.ended:
	case <-time.After(2 * drainTime):
		return fmt.Errorf("%w; the session did not end either", aborted)
	}
	return aborted
}

// Unmount ends the mount of any process at dir. Without lazy it fails with EBUSY while files are open; with
// lazy the mount point disappears at once and the rest when the files are closed. If the kernel does not
// answer within deadline, which it does not if the process that serves the mount hangs, the
// connection is aborted.
func Unmount(dir string, lazy bool, deadline time.Duration) error {
	abs, err := resolve(dir)
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	e, err := mountAt(abs)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", abs, err)
	}
	if e == nil || e.fsType != fsType {
		return fmt.Errorf("unmount %s: no varve filesystem is mounted there: %w", abs, fserr.Invalid)
	}
	m := mountID{dir: abs, conn: e.minor, root: os.Geteuid() == 0}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	act := orderly
	if lazy {
		act = detach
	}
	err = within(ctx, func() error { return act(m) })
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	failed := fmt.Errorf("unmount %s: no answer within %v, connection aborted: %w", abs, deadline, fserr.Timeout)
	if err := abort(m.conn); err != nil {
		return errors.Join(failed, err)
	}
	again, cancelAgain := context.WithTimeout(context.Background(), drainTime)
	defer cancelAgain()
	return errors.Join(failed, within(again, func() error { return ignoreGone(detach(m)) }))
}

// within runs f and gives up waiting when ctx is done: a system call about a dead mount may never return. A
// ctx without an end gets drainTime.
func within(ctx context.Context, f func() error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, drainTime)
		defer cancel()
	}
	result := make(chan error, 1)
	go func() { result <- f() }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unmountRetry unmounts in an orderly way, again and again while the mount is busy.
func unmountRetry(ctx context.Context, m mountID) error {
	for {
		err := within(ctx, func() error { return orderly(m) })
		if !errors.Is(err, unix.EBUSY) {
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("unmount %s: %w", m.dir, unix.EBUSY)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyRetry):
		}
	}
}

// orderly is umount(2), which fails while the mount is in use.
func orderly(m mountID) error { return umount(m, 0, "-u") }

// detach takes the mount point away at once.
func detach(m mountID) error { return umount(m, unix.MNT_DETACH, "-uz") }

func umount(m mountID, flags int, userFlag string) error {
	if m.root {
		if err := unix.Unmount(m.dir, flags|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		}
		return nil
	}
	out, err := exec.Command("fusermount3", userFlag, "--", m.dir).CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	cause := err
	if strings.Contains(text, "busy") {
		cause = unix.EBUSY
	} else if e, merr := mountAt(m.dir); merr == nil && e == nil {
		cause = unix.EINVAL
	}
	return fmt.Errorf("fusermount3 %s: %s: %w", userFlag, text, cause)
}

// ignoreGone makes it no failure that the mount point is none any more.
func ignoreGone(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// connections is where the kernel's control filesystem usually is.
const connections = "/sys/fs/fuse/connections"

// abort makes the kernel answer every request of a connection with an error, now and from now on.
func abort(conn uint32) error {
	if conn == 0 {
		return fmt.Errorf("abort: the number of the FUSE connection is unknown: %w", fserr.Invalid)
	}
	name := filepath.Join(strconv.FormatUint(uint64(conn), 10), "abort")
	err := os.WriteFile(filepath.Join(connections, name), []byte("1"), 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) || os.Geteuid() != 0 {
		return err
	}
	dir, err := os.MkdirTemp("", "varve-fusectl-") // not mounted: do it here, for a moment
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("fusectl", dir, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	err = os.WriteFile(filepath.Join(dir, name), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the connection is gone
	}
	return err
}
