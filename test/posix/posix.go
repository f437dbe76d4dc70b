// Package posix checks that a directory behaves as POSIX and Linux say a filesystem does, one system call at a time:
// chmod, chown, link, mkdir, mkfifo, mknod, open, rename, rmdir, symlink, truncate, unlink, utimensat and
// posix_fallocate, with every error that they document, the times that they change, and who may do what.
//
// It runs on any mount: `VARVE_POSIX_DIR=/mnt go test ./test/posix`, without the variable in a temporary directory. It needs root,
// since it acts as several users. For tests only.
package posix

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// user is who does something; groups are supplementary.
type user struct {
	uid, gid int
	groups   []int
}

var (
	root  = user{}
	alice = user{uid: 65533, gid: 65533}
	bob   = user{uid: 65532, gid: 65532}
	carol = user{uid: 65531, gid: 65531, groups: []int{65533}} // in alice's group
)

// area is one system call's cases.
type area struct {
	name  string
	cases []testCase
}

type testCase struct {
	name string
	run  func(c *check)
}

var areas = []area{
	{"chmod", chmodCases}, {"chown", chownCases}, {"link", linkCases}, {"mkdir", mkdirCases}, {"mkfifo", mkfifoCases},
	{"mknod", mknodCases}, {"open", openCases}, {"rename", renameCases}, {"rmdir", rmdirCases}, {"symlink", symlinkCases},
	{"truncate", truncateCases}, {"unlink", unlinkCases}, {"utimensat", utimensatCases}, {"posix_fallocate", fallocateCases},
}

// Run does every case as a subtest in a directory of its own below dir, which must exist, and removes it.
func Run(t *testing.T, dir string) { RunSeen(t, dir, dir) }

// RunSeen is Run, with what was done in dir looked at there and in seen, another mount of the same directory, where it must be the same.
func RunSeen(t *testing.T, dir, seen string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to act as several users")
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	letIn(t, dir)
	letIn(t, seen)
	base := filepath.Join(dir, "posix")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	for _, a := range areas {
		t.Run(a.name, func(t *testing.T) {
			for i, tc := range a.cases {
				t.Run(tc.name, func(t *testing.T) {
					at := filepath.Join(base, fmt.Sprintf("%s%d", a.name, i))
					if err := os.Mkdir(at, 0o777); err != nil {
						t.Fatal(err)
					}
					c := &check{T: t, dir: at, base: dir, seen: seen}
					tc.run(c)
					if !t.Failed() {
						if err := os.RemoveAll(at); err != nil {
							t.Errorf("clean up: %v", err)
						}
					}
				})
			}
		})
	}
}

// letIn makes the test's own temporary directories above dir searchable, so that other users get there.
func letIn(t *testing.T, dir string) {
	for d := dir; d != os.TempDir() && d != "/" && strings.HasPrefix(d, os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// check is one case under way.
type check struct {
	*testing.T
	dir        string
	n          int
	base, seen string
}

// elsewhere is where a path is looked at.
func (c *check) elsewhere(path string) string {
	if rest, ok := strings.CutPrefix(path, c.base); ok {
		return c.seen + rest
	}
	return path
}

// path is a name that was not used before.
func (c *check) path() string {
	c.n++
	return filepath.Join(c.dir, fmt.Sprintf("n%d", c.n))
}

// is wants the outcome to be the errno, 0 for success.
func (c *check) is(err error, want unix.Errno, what string, args ...any) {
	c.Helper()
	c.oneOf(err, []unix.Errno{want}, what, args...)
}

// oneOf is is where POSIX leaves a choice.
func (c *check) oneOf(err error, want []unix.Errno, what string, args ...any) {
	c.Helper()
	var got unix.Errno
	if err != nil && !errors.As(err, &got) {
		c.Errorf("%s: %v is no errno", fmt.Sprintf(what, args...), err)
		return
	}
	for _, w := range want {
		if got == w {
			return
		}
	}
	c.Errorf("%s: got %v, want %v", fmt.Sprintf(what, args...), name(got), names(want))
}

func name(e unix.Errno) string {
	if e == 0 {
		return "success"
	}
	return unix.ErrnoName(e)
}

func names(list []unix.Errno) string {
	var out []string
	for _, e := range list {
		out = append(out, name(e))
	}
	return strings.Join(out, " or ")
}

// must is for what the case builds on.
func (c *check) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *check) lstat(path string) unix.Stat_t {
	c.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		c.Fatalf("lstat %s: %v", filepath.Base(path), err)
	}
	if c.seen != c.base {
		var other unix.Stat_t
		if err := unix.Lstat(c.elsewhere(path), &other); err != nil {
			c.Fatalf("lstat %s through the other mount: %v", filepath.Base(path), err)
		}
		if a, b := what(&st), what(&other); a != b {
			c.Errorf("%s is %+v, and through the other mount %+v", filepath.Base(path), a, b)
		}
	}
	return st
}

// shown is what of a file all mounts must show alike.
type shown struct {
	ino, nlink     uint64
	mode, uid, gid uint32
	rdev           uint64
	size           int64
	mtime, ctime   unix.Timespec
}

func what(st *unix.Stat_t) shown {
	return shown{st.Ino, uint64(st.Nlink), st.Mode, st.Uid, st.Gid, st.Rdev, st.Size, st.Mtim, st.Ctim}
}

func (c *check) equal(got, want any, what string, args ...any) {
	c.Helper()
	if got != want {
		c.Errorf("%s: got %v, want %v", fmt.Sprintf(what, args...), got, want)
	}
}

// mode wants the twelve low bits of the mode.
func (c *check) mode(path string, want uint32) {
	c.Helper()
	if got := c.lstat(path).Mode & 0o7777; got != want {
		c.Errorf("mode of %s: got %04o, want %04o", filepath.Base(path), got, want)
	}
}

func (c *check) owner(path string, uid, gid int) {
	c.Helper()
	st := c.lstat(path)
	if int(st.Uid) != uid || int(st.Gid) != gid {
		c.Errorf("owner of %s: got %d:%d, want %d:%d", filepath.Base(path), st.Uid, st.Gid, uid, gid)
	}
}

func (c *check) nlink(path string, want uint64) {
	c.Helper()
	if got := uint64(c.lstat(path).Nlink); got != want {
		c.Errorf("links of %s: got %d, want %d", filepath.Base(path), got, want)
	}
}

func (c *check) gone(path string) {
	c.Helper()
	var st unix.Stat_t
	c.is(unix.Lstat(path, &st), unix.ENOENT, "lstat of %s", filepath.Base(path))
	c.is(unix.Lstat(c.elsewhere(path), &st), unix.ENOENT, "lstat of %s", filepath.Base(path))
}

// as runs f on a thread that has the user's identity and no capability, unless it is root.
func as(u user, f func() error) error {
	if u.uid == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the identity
		done <- func() error {
			if err := become(u); err != nil {
				return fmt.Errorf("become user %d: %v", u.uid, err)
			}
			return f()
		}()
	}()
	return <-done
}

// kind is a type of file that a case is repeated for.
type kind uint32

const (
	regular = kind(unix.S_IFREG)
	dir     = kind(unix.S_IFDIR)
	fifo    = kind(unix.S_IFIFO)
	block   = kind(unix.S_IFBLK)
	char    = kind(unix.S_IFCHR)
	socket  = kind(unix.S_IFSOCK)
	symlink = kind(unix.S_IFLNK)
)

var (
	allKinds  = []kind{regular, dir, fifo, block, char, socket, symlink}
	notDirs   = []kind{regular, fifo, block, char, socket, symlink}
	notLinks  = []kind{regular, dir, fifo, block, char, socket}
	kindNames = map[kind]string{regular: "regular", dir: "dir", fifo: "fifo", block: "block", char: "char", socket: "socket", symlink: "symlink"}
)

func (k kind) String() string { return kindNames[k] }

// make creates a file of the kind, with mode 0644 or, for a directory, 0755, owned by u.
func (c *check) make(k kind, path string, u user) {
	c.Helper()
	var err error
	switch k {
	case dir:
		err = unix.Mkdir(path, 0o755)
	case symlink:
		err = unix.Symlink("target", path)
	case block, char:
		err = unix.Mknod(path, uint32(k)|0o644, int(unix.Mkdev(1, 2)))
	default:
		err = unix.Mknod(path, uint32(k)|0o644, 0)
	}
	c.must(err)
	if u.uid != 0 {
		c.must(unix.Lchown(path, u.uid, u.gid))
	}
}

// file makes a regular file.
func (c *check) file(u user, perm uint32) string {
	c.Helper()
	p := c.path()
	c.make(regular, p, u)
	c.must(unix.Chmod(p, perm))
	return p
}

// mkdir makes a directory.
func (c *check) mkdir(u user, perm uint32) string {
	c.Helper()
	p := c.path()
	c.make(dir, p, u)
	c.must(unix.Chmod(p, perm))
	return p
}

// times of a file that an operation may change.
type times uint

const (
	mtime times = 1 << iota
	ctime
)

// touch is a file with the times that the operation is to change; all others are to stay.
type touch struct {
	path  string
	after string // where it is afterwards, if elsewhere
	which times
}

// changes runs op and wants just the given times to be later.
func (c *check) changes(op func() error, list ...touch) {
	c.Helper()
	before := make([]unix.Stat_t, len(list))
	for i, f := range list {
		before[i] = c.lstat(f.path)
	}
	time.Sleep(12 * time.Millisecond) // more than a tick of the kernel's coarse clock
	c.must(op())
	for i, f := range list {
		at := f.path
		if f.after != "" {
			at = f.after
		}
		st := c.lstat(at)
		for _, w := range []struct {
			bit      times
			name     string
			old, new unix.Timespec
		}{{mtime, "mtime", before[i].Mtim, st.Mtim}, {ctime, "ctime", before[i].Ctim, st.Ctim}} {
			later := w.new.Nano() > w.old.Nano()
			if later != (f.which&w.bit != 0) {
				c.Errorf("%s of %s: later %v, want %v", w.name, filepath.Base(at), later, !later)
			}
		}
	}
}

// pathErrors wants what every call on a path answers: a component that is no directory, names and paths that are
// too long, components that do not exist or may not be searched, loops of symbolic links. makes: the call makes the
// last component, and so does not need it.
func pathErrors(do func(path string) error, makes bool) func(c *check) {
	return func(c *check) {
		f := c.file(root, 0o644)
		c.is(do(f+"/x"), unix.ENOTDIR, "below a file")
		c.is(do(filepath.Join(c.dir, strings.Repeat("x", 256))), unix.ENAMETOOLONG, "name of 256 bytes")
		c.is(do(c.dir+strings.Repeat("/x", 2100)), unix.ENAMETOOLONG, "path of over 4096 bytes")
		c.is(do(filepath.Join(c.path(), "x")), unix.ENOENT, "below nothing")
		c.is(do(""), unix.ENOENT, "empty path")
		if !makes {
			c.is(do(c.path()), unix.ENOENT, "nothing there")
		}
		a, b := c.path(), c.path()
		c.must(unix.Symlink(a, b))
		c.must(unix.Symlink(b, a))
		c.is(do(a+"/x"), unix.ELOOP, "below a loop of links")
		d := c.mkdir(alice, 0o700)
		c.is(as(bob, func() error { return do(filepath.Join(d, "x")) }), unix.EACCES, "below a directory that may not be searched")
	}
}

func open(path string, flags int, perm uint32) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, perm)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (c *check) write(path, content string) {
	c.Helper()
	c.must(os.WriteFile(path, []byte(content), 0o644))
}

func (c *check) content(path, want string) {
	c.Helper()
	b, err := os.ReadFile(path)
	c.must(err)
	if c.seen != c.base {
		other, err := os.ReadFile(c.elsewhere(path))
		c.must(err)
		c.equal(string(other), string(b), "content of %s through the other mount", filepath.Base(path))
	}
	c.equal(string(b), want, "content of %s", filepath.Base(path))
}
