package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"varve/fuse"
	"varve/internal/client"
	"varve/internal/fserr"

	"golang.org/x/sys/unix"
)

// waitDir has a file for each mount that waits for its cluster in the background, locked by the process that waits, with its number in it.
func waitDir() string {
	if os.Geteuid() == 0 {
		return "/run/varve"
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("varve-%d", os.Geteuid()))
}

// estatesDir is where processes of this host note their sessions, see internal/ledger.
func estatesDir() string { return filepath.Join(waitDir(), "sessions") }

func waitFile(dir string) string {
	return filepath.Join(waitDir(), "waiting-"+strings.ReplaceAll(strings.Trim(filepath.Clean(dir), "/"), "/", "-"))
}

// reach dials the cluster. With the option bg it goes on trying after ready was told that it does.
func reach(ctx context.Context, spec mountSpec, o client.Options, log *slog.Logger, ready func(string)) (*client.Client, error) {
	c, err := client.Dial(ctx, o)
	if err == nil || !spec.background || !outOfReach(err) || ctx.Err() != nil {
		return c, err
	}
	waiting, lockErr := holdWait(spec.dir)
	if lockErr != nil {
		return nil, errors.Join(err, lockErr)
	}
	defer waiting.Close()
	defer os.Remove(waiting.Name())
	log.Warn("the cluster is not reached; the mount is tried again until it is", "err", err)
	ready(fmt.Sprintf("cluster %s is not reached yet: %s will be mounted when it is (varve umount %s calls that off)", o.Name, spec.dir, shellQuote(spec.dir)))
	begin := time.Now()
	for ctx.Err() == nil {
		if c, err = client.Dial(ctx, o); err == nil {
			log.Info("the cluster is reached", "after", time.Since(begin).Round(time.Second))
			return c, nil
		}
		if !outOfReach(err) {
			return nil, err
		}
	}
	return nil, ctx.Err()
}

func outOfReach(err error) bool {
	code := fserr.Of(err)
	return code == fserr.Unavailable || code == fserr.Timeout
}

// holdWait makes the file of a waiting mount, which must be the only one of its directory.
func holdWait(dir string) (*os.File, error) {
	if err := os.MkdirAll(waitDir(), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(waitFile(dir), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another process waits to mount on %s: %w", dir, fserr.Busy)
	}
	if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// callOff ends the process that waits to mount on dir, and reports whether there was one.
func callOff(dir string) (bool, error) {
	f, err := os.OpenFile(waitFile(dir), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, 32)
	n, _ := f.Read(b) // an empty one has no process
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 1 {
		return false, nil
	}
	for deadline, told := time.Now().Add(unmountTimeout), false; ; time.Sleep(20 * time.Millisecond) {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return told, nil
		}
		if !told {
			told = true
			if err := unix.Kill(pid, unix.SIGTERM); err != nil {
				return false, fmt.Errorf("end the process %d that waits to mount on %s: %w", pid, dir, err)
			}
		}
		if time.Now().After(deadline) {
			return true, fmt.Errorf("process %d, which waits to mount on %s, does not end: %w", pid, dir, fserr.Timeout)
		}
	}
}

// checkPlace finds out what is wrong with a mount point before the cluster is waited for.
func checkPlace(dir string) error {
	mounted, err := fuse.IsMounted(dir) // asks the kernel's table, not what is mounted, which may be dead
	if err != nil {
		return mountPointHint(dir, fmt.Errorf("mount point: %w", err))
	}
	if mounted {
		return mountPointHint(dir, fmt.Errorf("mount point %s: a varve filesystem is mounted there already: %w", dir, fserr.Busy))
	}
	info, err := os.Stat(dir)
	if err != nil {
		return mountPointHint(dir, fmt.Errorf("mount point: %w", err))
	}
	if !info.IsDir() {
		return mountPointHint(dir, fmt.Errorf("mount point %s: %w", dir, fserr.NotDir))
	}
	return nil
}

const immutableFlag = 0x10 // FS_IMMUTABLE_FL

// guardPlace makes an empty mount point immutable, so that nothing is put there while nothing is mounted: a guest whose image is missing is better
// than one with an empty disk on the wrong filesystem.
func guardPlace(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return mountPointHint(dir, err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("option guard: the filesystem of %s has no immutable directories; leave the option out: %w", dir, err)
	}
	if flags&immutableFlag != 0 {
		return nil
	}
	if names, err := f.Readdirnames(1); err == nil && len(names) > 0 {
		return refusedf("option guard: %s is not empty (%s ...), and would be hidden; choose another directory", dir, names[0])
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|immutableFlag); err != nil {
		return fmt.Errorf("option guard: make %s immutable (as root, where the filesystem can): %w", dir, err)
	}
	return nil
}
