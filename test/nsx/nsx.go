// Package nsx does random namespace operations (create, mkdir, link, rename with its flags, symlink, mknod, chmod,
// chown, xattrs, unlink while open, …) in a reference directory on a local filesystem and, each time the same, in a
// directory under test, and compares the outcomes (errno included) and, at intervals, the whole trees. With several
// directories under test, which are mounts of one filesystem, each operation goes through one chosen at random.
//
// Bounded by Options.Ops; everything follows from Options.Seed. For tests only; needs root for mknod and chown.
package nsx

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options of a run.
type Options struct {
	Reference string   // an empty directory on a local filesystem with xattrs
	Dirs      []string // the same empty directory through each mount
	Ops       int
	Seed      uint64
	Compare   int // compare the trees every so many operations; default 500
}

type runner struct {
	o     Options
	rng   *rand.Rand
	log   []string
	opens []pair // files kept open, on both sides
}

// pair is one file open in the reference and under test.
type pair struct{ ref, got int }

// names is small, so that operations often meet.
var names = []string{"a", "b", "c", "d", "e", "ünï", strings.Repeat("n", 255)}

// Run does o.Ops operations and a last comparison.
func Run(o Options) (err error) {
	r := &runner{o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x6e616d65))}
	if r.o.Compare == 0 {
		r.o.Compare = 500
	}
	defer func() {
		for _, p := range r.opens {
			unix.Close(p.ref)
			unix.Close(p.got)
		}
		if err != nil {
			err = fmt.Errorf("nsx seed %d: %w\n  before it:\n    %s", o.Seed, err, strings.Join(r.log, "\n    "))
		}
	}()
	old := unix.Umask(0)
	defer unix.Umask(old)
	for op := range o.Ops {
		if err := r.step(op); err != nil {
			return fmt.Errorf("operation %d: %w", op, err)
		}
		if op%r.o.Compare == r.o.Compare-1 {
			if err := r.compareTrees(); err != nil {
				return fmt.Errorf("after operation %d: %w", op, err)
			}
		}
	}
	return r.compareTrees()
}

// path is a random path of up to three names, relative.
func (r *runner) path() string {
	depth := 1 + r.rng.IntN(3)
	parts := make([]string, depth)
	for i := range parts {
		parts[i] = names[r.rng.IntN(len(names))]
	}
	return filepath.Join(parts...)
}

// both runs f in the reference and in the directory under test and compares the outcomes.
func (r *runner) both(what string, f func(root string) (string, error)) error {
	dir := r.o.Dirs[r.rng.IntN(len(r.o.Dirs))]
	want, wantErr := f(r.o.Reference)
	got, gotErr := f(dir)
	if len(r.o.Dirs) > 1 && errors.Is(gotErr, unix.ESTALE) {
		// Linux cannot move its cached name of a directory that another mount has moved while a rename holds the locks for
		// that (__d_unalias in fs/dcache.c), and fails before the filesystem is asked. A look at the paths mends it.
		if _, err := tree(dir); err != nil {
			return err
		}
		got, gotErr = f(dir)
	}
	what = shorten(what)
	r.log = append(r.log, fmt.Sprintf("%s = %q %v", what, short(want), wantErr))
	if len(r.log) > 40 {
		r.log = r.log[1:]
	}
	if errno(wantErr) != errno(gotErr) {
		return fmt.Errorf("%s in %s: got %v, want %v", what, dir, gotErr, wantErr)
	}
	if want != got {
		return fmt.Errorf("%s in %s: got %q, want %q", what, dir, short(got), short(want))
	}
	return nil
}

func shorten(s string) string { return strings.ReplaceAll(s, names[len(names)-1], "<long>") }

func short(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func errno(err error) unix.Errno {
	var e unix.Errno
	if err == nil {
		return 0
	}
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

func (r *runner) step(op int) error {
	p, q := r.path(), r.path()
	perm := uint32(r.rng.IntN(0o10000))
	text := fmt.Sprintf("text %d", op)
	only := func(err error) (string, error) { return "", err }
	switch r.rng.IntN(22) {
	case 0, 1, 2:
		flags := unix.O_CREAT | unix.O_WRONLY | unix.O_NONBLOCK // a pipe without reader would block
		if r.rng.IntN(2) == 0 {
			flags |= unix.O_EXCL
		}
		if r.rng.IntN(3) == 0 {
			flags |= unix.O_TRUNC
		}
		return r.both(fmt.Sprintf("create %s flags %#x mode %o", p, flags, perm), func(root string) (string, error) {
			fd, err := unix.Open(filepath.Join(root, p), flags, perm)
			if err != nil {
				return "", err
			}
			_, err = unix.Write(fd, []byte(text))
			return "", errors.Join(err, unix.Close(fd))
		})
	case 3, 4, 5:
		return r.both(fmt.Sprintf("mkdir %s %o", p, perm), func(root string) (string, error) { return only(unix.Mkdir(filepath.Join(root, p), perm)) })
	case 6:
		return r.both("rmdir "+p, func(root string) (string, error) { return only(unix.Rmdir(filepath.Join(root, p))) })
	case 7:
		return r.both("unlink "+p, func(root string) (string, error) { return only(unix.Unlink(filepath.Join(root, p))) })
	case 8, 9, 10:
		flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.rng.IntN(4)]
		return r.both(fmt.Sprintf("rename %s %s flags %d", p, q, flags), func(root string) (string, error) {
			return only(unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, p), unix.AT_FDCWD, filepath.Join(root, q), flags))
		})
	case 11:
		return r.both("link "+p+" "+q, func(root string) (string, error) {
			return only(unix.Link(filepath.Join(root, p), filepath.Join(root, q)))
		})
	case 12:
		return r.both("symlink "+p, func(root string) (string, error) { return only(unix.Symlink(q, filepath.Join(root, p))) })
	case 13:
		return r.both("readlink "+p, func(root string) (string, error) {
			buf := make([]byte, 4096)
			n, err := unix.Readlink(filepath.Join(root, p), buf)
			return string(buf[:max(n, 0)]), err
		})
	case 14:
		kind := []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK, unix.S_IFREG}[r.rng.IntN(5)]
		return r.both(fmt.Sprintf("mknod %s %o", p, kind|perm), func(root string) (string, error) {
			return only(unix.Mknod(filepath.Join(root, p), kind|perm, int(unix.Mkdev(1, 3))))
		})
	case 15:
		return r.both(fmt.Sprintf("chmod %s %o", p, perm), func(root string) (string, error) { return only(unix.Chmod(filepath.Join(root, p), perm)) })
	case 16:
		uid, gid := r.rng.IntN(3), r.rng.IntN(3)
		return r.both(fmt.Sprintf("lchown %s %d:%d", p, uid, gid), func(root string) (string, error) {
			return only(unix.Lchown(filepath.Join(root, p), uid, gid))
		})
	case 17:
		name := []string{"user.one", "user.two", "trusted.three", "user." + strings.Repeat("x", 250)}[r.rng.IntN(4)]
		flags := r.rng.IntN(3)
		return r.both(fmt.Sprintf("setxattr %s %s flags %d", p, name, flags), func(root string) (string, error) {
			return only(unix.Lsetxattr(filepath.Join(root, p), name, []byte(text), flags))
		})
	case 18:
		name := []string{"user.one", "user.two", "trusted.three"}[r.rng.IntN(3)]
		if r.rng.IntN(2) == 0 {
			return r.both("removexattr "+p+" "+name, func(root string) (string, error) {
				return only(unix.Lremovexattr(filepath.Join(root, p), name))
			})
		}
		return r.both("getxattr "+p+" "+name, func(root string) (string, error) { return xattr(filepath.Join(root, p), name) })
	case 19:
		return r.both("stat "+p, func(root string) (string, error) { return describe(filepath.Join(root, p), root) })
	case 20:
		return r.keepOpen(p)
	default:
		return r.useOpen(text)
	}
}

// keepOpen opens a file on both sides, to be used after it was unlinked or replaced.
func (r *runner) keepOpen(p string) error {
	var fds []int
	err := r.both("open "+p, func(root string) (string, error) {
		fd, err := unix.Open(filepath.Join(root, p), unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			unix.Close(fd)
			return "not regular", err
		}
		fds = append(fds, fd)
		return "", nil
	})
	if len(fds) != 2 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return err
	}
	r.opens = append(r.opens, pair{fds[0], fds[1]})
	if len(r.opens) > 8 {
		unix.Close(r.opens[0].ref)
		unix.Close(r.opens[0].got)
		r.opens = r.opens[1:]
	}
	return err
}

func (r *runner) useOpen(text string) error {
	if len(r.opens) == 0 {
		return nil
	}
	p := r.opens[r.rng.IntN(len(r.opens))]
	side := 0
	off := int64(r.rng.IntN(9000))
	return r.both("use open file", func(string) (string, error) {
		fd := p.ref
		if side++; side == 2 {
			fd = p.got
		}
		if _, err := unix.Pwrite(fd, []byte(text), off); err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return "", err
		}
		buf := make([]byte, st.Size)
		n, err := unix.Pread(fd, buf, 0)
		return fmt.Sprintf("nlink %d size %d %x", st.Nlink, st.Size, bytes.TrimRight(buf[:max(n, 0)], "\x00")), err
	})
}

func xattr(path, name string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, name, buf)
	return string(buf[:max(n, 0)]), err
}

// describe returns what of a file must be equal on both sides.
func describe(path, root string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	d := fmt.Sprintf("mode %o nlink %d uid %d gid %d rdev %d", st.Mode, st.Nlink, st.Uid, st.Gid, st.Rdev)
	if path == root {
		d = "root"
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		d += fmt.Sprintf(" size %d %x", st.Size, data)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		d += " -> " + target
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return "", err
	}
	var attrs []string
	for _, name := range strings.Split(string(buf[:max(n, 0)]), "\x00") {
		if strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") {
			v, err := xattr(path, name)
			if err != nil {
				return "", err
			}
			attrs = append(attrs, name+"="+v)
		}
	}
	slices.Sort(attrs)
	return d + " " + strings.Join(attrs, " "), nil
}

func (r *runner) compareTrees() error {
	want, err := tree(r.o.Reference)
	if err != nil {
		return err
	}
	for _, dir := range r.o.Dirs {
		got, err := tree(dir)
		if err != nil {
			return fmt.Errorf("listing %s: %w", dir, err)
		}
		for i := range max(len(want), len(got)) {
			switch {
			case i >= len(got):
				return fmt.Errorf("%s lacks %q", dir, short(want[i]))
			case i >= len(want):
				return fmt.Errorf("%s has %q, which the reference has not", dir, short(got[i]))
			case want[i] != got[i]:
				return fmt.Errorf("%s has %q, want %q", dir, shorten(got[i]), shorten(want[i]))
			}
		}
	}
	return nil
}

// tree lists everything under root with its description. Modes may deny nothing: tests run as root.
func tree(root string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		d, err := describe(path, root)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		out = append(out, rel+": "+d)
		return err
	})
	return out, err
}
