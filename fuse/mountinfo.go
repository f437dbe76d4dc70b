package fuse

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fsType is the type of our mounts, and how they are told from others.
const fsType = "fuse.varve"

// mountEntry is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	dir          string
	major, minor uint32
	fsType       string
	source       string
}

// parseMountinfo calls f for each line it understands.
func parseMountinfo(r io.Reader, f func(mountEntry)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		if !ok {
			continue
		}
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 2 {
			continue
		}
		major, minor, _ := strings.Cut(left[2], ":")
		ma, err1 := strconv.ParseUint(major, 10, 32)
		mi, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		f(mountEntry{unescape(left[4]), uint32(ma), uint32(mi), right[0], unescape(right[1])})
	}
	return lines.Err()
}

// unescape turns \040 and the like into the bytes they stand for.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt returns what is mounted at dir, the topmost if several are, and nil if nothing is. It asks only
// the kernel's table, never the filesystem, which may be dead.
func mountAt(dir string) (*mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found *mountEntry
	err = parseMountinfo(f, func(e mountEntry) {
		if e.dir == dir {
			found = &e
		}
	})
	if err != nil {
		return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
	}
	return found, nil
}

// resolve makes dir absolute and free of symbolic links, without a question to what is mounted on it:
// readlink(2) of a mount point, other than stat(2), is answered by the kernel alone.
func resolve(dir string) (string, error) {
	const maxLinks = 40
	for range maxLinks {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", err
		}
		if abs == "/" {
			return abs, nil
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return "", err
		}
		abs = filepath.Join(parent, filepath.Base(abs))
		target, err := os.Readlink(abs)
		if errors.Is(err, syscall.EINVAL) {
			return abs, nil
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		dir = target
	}
	return "", fmt.Errorf("%s: %w", dir, unix.ELOOP)
}

// IsMounted reports whether a varve filesystem is mounted at dir, by whichever process.
func IsMounted(dir string) (bool, error) {
	abs, err := resolve(dir)
	if err != nil {
		return false, err
	}
	e, err := mountAt(abs)
	return e != nil && e.fsType == fsType, err
}
