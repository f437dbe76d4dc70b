package posix

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// making is what mkdir, mkfifo and mknod have in common.
func making(do func(path string, perm uint32) error, k kind) []testCase {
	one := func(p string) error { return do(p, 0o755) }
	return []testCase{
		{"mode and mask", func(c *check) {
			for _, t := range []struct{ perm, mask, want uint32 }{
				{0o755, 0, 0o755}, {0o777, 0o022, 0o755}, {0o151, 0, 0o151}, {0o151, 0o077, 0o100}, {0o345, 0o070, 0o305}, {0o345, 0o501, 0o244},
			} {
				p := c.path()
				old := unix.Umask(int(t.mask))
				err := do(p, t.perm)
				unix.Umask(old)
				c.must(err)
				c.mode(p, t.want)
				c.equal(kind(c.lstat(p).Mode&unix.S_IFMT), k, "type")
			}
		}},
		{"owner", func(c *check) {
			d := c.mkdir(alice, 0o777)
			p := filepath.Join(d, "a")
			c.is(as(bob, func() error { return one(p) }), 0, "make")
			c.owner(p, bob.uid, bob.gid)
			c.must(unix.Chmod(d, 0o2777))
			p = filepath.Join(d, "b")
			c.is(as(bob, func() error { return one(p) }), 0, "make")
			c.owner(p, bob.uid, alice.gid) // a setgid directory gives its group
			if k == dir {
				c.mode(p, 0o2755)
			}
		}},
		{"times", func(c *check) {
			d := c.mkdir(root, 0o755)
			p := filepath.Join(d, "a")
			c.changes(func() error { return one(p) }, touch{path: d, which: mtime | ctime}, touch{path: c.dir})
			st := c.lstat(p)
			c.equal(st.Mtim, st.Ctim, "mtime beside ctime")
			c.equal(st.Atim, st.Ctim, "atime beside ctime")
		}},
		{"exists", func(c *check) {
			for _, other := range allKinds {
				p := c.path()
				c.make(other, p, root)
				c.is(one(p), unix.EEXIST, "on a %v", other)
			}
			c.is(one(c.dir+"/."), unix.EEXIST, "dot")
			c.is(one(c.dir+"/.."), unix.EEXIST, "dot dot")
			c.is(one("/"), unix.EEXIST, "the root")
		}},
		{"who may", func(c *check) {
			d := c.mkdir(alice, 0o755)
			c.is(as(alice, func() error { return one(filepath.Join(d, "a")) }), 0, "owner")
			c.is(as(bob, func() error { return one(filepath.Join(d, "b")) }), unix.EACCES, "another")
			c.must(unix.Chmod(d, 0o775))
			c.is(as(carol, func() error { return one(filepath.Join(d, "c")) }), 0, "a member of the group")
			c.must(unix.Chmod(d, 0o555))
			c.is(as(alice, func() error { return one(filepath.Join(d, "d")) }), unix.EACCES, "owner without the right to write")
			c.is(one(filepath.Join(d, "e")), 0, "root")
		}},
		{"names", func(c *check) {
			for _, n := range []string{strings.Repeat("n", 255), "with space", "new\nline", "\xff\xfe", "ünï", "...", "-", "*", "a\\b"} {
				p := filepath.Join(c.dir, n)
				c.is(one(p), 0, "name %q", n)
				list, err := os.ReadDir(c.dir)
				c.must(err)
				c.equal(len(list), 1, "entries")
				c.equal(list[0].Name(), n, "entry")
				c.must(os.Remove(p))
			}
		}},
		{"in a removed directory", func(c *check) {
			d := c.mkdir(root, 0o755)
			fd, err := unix.Open(d, unix.O_DIRECTORY, 0)
			c.must(err)
			c.must(unix.Rmdir(d))
			if k == dir {
				err = unix.Mkdirat(fd, "x", 0o755)
			} else {
				err = unix.Mknodat(fd, "x", uint32(k)|0o644, 0)
			}
			c.is(err, unix.ENOENT, "make")
			c.must(unix.Close(fd))
		}},
		{"errors of paths", pathErrors(one, true)},
	}
}

var mkdirCases = append(making(unix.Mkdir, dir),
	testCase{"links", func(c *check) {
		d := c.mkdir(root, 0o755)
		c.nlink(d, 2)
		c.must(unix.Mkdir(d+"/a", 0o755))
		c.must(unix.Mkdir(d+"/b/", 0o755)) // a slash at the end is allowed
		c.nlink(d, 4)
		c.write(d+"/f", "")
		c.nlink(d, 4)
		c.must(unix.Rmdir(d + "/a"))
		c.nlink(d, 3)
		var a, b unix.Stat_t
		c.must(unix.Stat(d, &a))
		c.must(unix.Stat(d+"/b/..", &b))
		c.equal(a.Ino, b.Ino, "dot dot")
	}},
	testCase{"many", func(c *check) {
		d := c.mkdir(root, 0o755)
		want := map[string]bool{}
		for i := range 700 {
			n := strings.Repeat("x", i%200) + string(rune('a'+i%26)) + "-" + filepath.Base(c.path())
			c.must(unix.Mkdir(filepath.Join(d, n), 0o755))
			want[n] = true
		}
		list, err := os.ReadDir(d)
		c.must(err)
		c.equal(len(list), len(want), "entries")
		for _, e := range list {
			if !want[e.Name()] || !e.IsDir() {
				c.Errorf("entry %q, directory %v", e.Name(), e.IsDir())
			}
			delete(want, e.Name())
		}
	}})

var mkfifoCases = append(making(unix.Mkfifo, fifo), testCase{"carries data", func(c *check) {
	p := c.path()
	c.must(unix.Mkfifo(p, 0o644))
	c.is(open(p, unix.O_WRONLY|unix.O_NONBLOCK, 0), unix.ENXIO, "open for writing without a reader")
	c.onFile(p, unix.O_RDONLY|unix.O_NONBLOCK, func(r int) {
		c.onFile(p, unix.O_WRONLY|unix.O_NONBLOCK, func(w int) {
			b := make([]byte, 8)
			_, err := unix.Write(w, []byte("through"))
			c.must(err)
			n, err := unix.Read(r, b)
			c.must(err)
			c.equal(string(b[:n]), "through", "read")
		})
	})
	c.equal(c.lstat(p).Size, int64(0), "size")
}})

var mknodCases = append(making(func(p string, perm uint32) error { return unix.Mknod(p, unix.S_IFREG|perm, 0) }, regular),
	testCase{"devices", func(c *check) {
		for _, k := range []kind{block, char} {
			for _, dev := range []uint64{unix.Mkdev(1, 2), unix.Mkdev(254, 255), unix.Mkdev(4095, 1048575)} {
				p := c.path()
				c.must(unix.Mknod(p, uint32(k)|0o600, int(dev)))
				st := c.lstat(p)
				c.equal(kind(st.Mode&unix.S_IFMT), k, "type")
				c.equal(st.Rdev, dev, "device")
				c.mode(p, 0o600)
			}
		}
		d := c.mkdir(bob, 0o777)
		c.is(as(bob, func() error { return unix.Mknod(d+"/b", unix.S_IFBLK|0o644, 1) }), unix.EPERM, "block device by a user")
		c.is(as(bob, func() error { return unix.Mknod(d+"/c", unix.S_IFCHR|0o644, 1) }), unix.EPERM, "character device by a user")
		c.is(as(bob, func() error { return unix.Mknod(d+"/f", unix.S_IFIFO|0o644, 0) }), 0, "fifo by a user")
		c.is(as(bob, func() error { return unix.Mknod(d+"/s", unix.S_IFSOCK|0o644, 0) }), 0, "socket by a user")
		c.is(unix.Mknod(d+"/d", unix.S_IFDIR|0o755, 0), unix.EPERM, "directory")
	}},
	testCase{"socket", func(c *check) {
		p := c.path()
		c.must(unix.Mknod(p, unix.S_IFSOCK|0o644, 0))
		c.is(open(p, unix.O_RDONLY, 0), unix.ENXIO, "open a socket")
	}})

var symlinkCases = []testCase{
	{"makes one", func(c *check) {
		for _, target := range []string{"x", "/nowhere/at/all", strings.Repeat("a/", 1000), strings.Repeat("t", 4095), "\xff"} {
			p := c.path()
			c.must(unix.Symlink(target, p))
			st := c.lstat(p)
			c.equal(kind(st.Mode&unix.S_IFMT), symlink, "type")
			c.equal(st.Size, int64(len(target)), "size")
			got, err := os.Readlink(p)
			c.must(err)
			c.equal(got, target, "target")
			c.mode(p, 0o777)
		}
	}},
	{"owner and times", func(c *check) {
		d := c.mkdir(alice, 0o777)
		p := filepath.Join(d, "l")
		c.changes(func() error { return as(bob, func() error { return unix.Symlink("x", p) }) }, touch{path: d, which: mtime | ctime})
		c.owner(p, bob.uid, bob.gid)
	}},
	{"exists", func(c *check) {
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.is(unix.Symlink("x", p), unix.EEXIST, "on a %v", k)
		}
	}},
	{"targets", func(c *check) {
		c.is(unix.Symlink("", c.path()), unix.ENOENT, "empty")
		c.is(unix.Symlink(strings.Repeat("t", 4096), c.path()), unix.ENAMETOOLONG, "of 4096 bytes")
		f := c.file(root, 0o644)
		_, err := unix.Readlink(f, make([]byte, 10))
		c.is(err, unix.EINVAL, "readlink of a file")
	}},
	{"who may", func(c *check) {
		d := c.mkdir(alice, 0o755)
		c.is(as(bob, func() error { return unix.Symlink("x", d+"/l") }), unix.EACCES, "another")
		c.is(as(alice, func() error { return unix.Symlink("x", d+"/l") }), 0, "owner")
	}},
	{"followed", func(c *check) {
		d := c.mkdir(root, 0o755)
		c.write(d+"/f", "content")
		c.must(unix.Symlink("f", d+"/a"))
		c.must(unix.Symlink("a", d+"/b"))
		c.content(d+"/b", "content")
		l := c.path()
		c.must(unix.Symlink(d, l))
		c.content(l+"/b", "content")
		c.is(unix.Rmdir(l), unix.ENOTDIR, "rmdir of a link to a directory")
		c.is(open(l, unix.O_RDONLY|unix.O_NOFOLLOW, 0), unix.ELOOP, "open without following")
		c.must(unix.Symlink("f", filepath.Join(d, "l0")))
		for i := range 45 {
			c.must(unix.Symlink(filepath.Join(d, "l"+itoa(i)), filepath.Join(d, "l"+itoa(i+1))))
		}
		c.is(open(d+"/l30", unix.O_RDONLY, 0), 0, "31 links")
		c.is(open(d+"/l45", unix.O_RDONLY, 0), unix.ELOOP, "46 links")
	}},
	{"errors of paths", pathErrors(func(p string) error { return unix.Symlink("x", p) }, true)},
}

func itoa(i int) string {
	if i < 10 {
		return string(rune('0' + i))
	}
	return itoa(i/10) + itoa(i%10)
}

var openCases = []testCase{
	{"creates", func(c *check) {
		for _, t := range []struct{ perm, mask, want uint32 }{
			{0o755, 0, 0o755}, {0o151, 0o077, 0o100}, {0o345, 0o501, 0o244}, {0o7777, 0o022, 0o7755}, {0, 0, 0},
		} {
			p := c.path()
			old := unix.Umask(int(t.mask))
			err := open(p, unix.O_CREAT|unix.O_WRONLY, t.perm)
			unix.Umask(old)
			c.must(err)
			c.mode(p, t.want)
			c.equal(c.lstat(p).Size, int64(0), "size")
			c.nlink(p, 1)
		}
		p := c.path()
		fd, err := unix.Open(p, unix.O_CREAT|unix.O_RDWR, 0) // the mode counts from the next open on
		c.must(err)
		_, err = unix.Write(fd, []byte("x"))
		c.is(err, 0, "write to a file just made with mode 0")
		c.must(unix.Close(fd))
	}},
	{"owner and times", func(c *check) {
		d := c.mkdir(alice, 0o777)
		make := func(p string) error {
			return as(bob, func() error { return open(p, unix.O_CREAT|unix.O_WRONLY, 0o644) })
		}
		c.changes(func() error { return make(d + "/a") }, touch{path: d, which: mtime | ctime})
		c.owner(d+"/a", bob.uid, bob.gid)
		c.changes(func() error { return make(d + "/a") }, touch{path: d}, touch{path: d + "/a"})
		c.must(unix.Chmod(d, 0o2777))
		c.must(make(d + "/b"))
		c.owner(d+"/b", bob.uid, alice.gid)
		c.mode(d+"/b", 0o644)
	}},
	{"truncates", func(c *check) {
		f := c.path()
		c.write(f, "content")
		c.changes(func() error { return open(f, unix.O_WRONLY|unix.O_TRUNC, 0) }, touch{path: f, which: mtime | ctime}, touch{path: c.dir})
		c.equal(c.lstat(f).Size, int64(0), "size")
		c.write(f, "content")
		c.must(unix.Chown(f, alice.uid, alice.gid))
		c.is(as(bob, func() error { return open(f, unix.O_RDONLY|unix.O_TRUNC, 0) }), unix.EACCES, "without the right to write")
		c.content(f, "content")
	}},
	{"exclusive", func(c *check) {
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.is(open(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644), unix.EEXIST, "on a %v", k)
		}
	}},
	{"through a link to nothing", func(c *check) {
		l, p := c.path(), c.path()
		c.must(unix.Symlink(p, l))
		c.is(open(l, unix.O_RDONLY, 0), unix.ENOENT, "open")
		c.is(open(l, unix.O_CREAT|unix.O_WRONLY, 0o600), 0, "create")
		c.mode(p, 0o600)
		a := c.path()
		c.must(unix.Symlink(a, a))
		c.is(open(a, unix.O_RDONLY, 0), unix.ELOOP, "a link to itself")
	}},
	{"directories", func(c *check) {
		d, f := c.mkdir(root, 0o755), c.file(root, 0o644)
		c.is(open(d, unix.O_WRONLY, 0), unix.EISDIR, "for writing")
		c.is(open(d, unix.O_RDWR, 0), unix.EISDIR, "for both")
		c.is(open(d, unix.O_RDONLY|unix.O_TRUNC, 0), unix.EISDIR, "truncating")
		c.is(open(d, unix.O_RDONLY|unix.O_CREAT, 0), unix.EISDIR, "creating")
		c.is(open(d, unix.O_RDONLY, 0), 0, "for reading")
		c.is(open(f, unix.O_RDONLY|unix.O_DIRECTORY, 0), unix.ENOTDIR, "a file as a directory")
		c.is(open(f+"/", unix.O_RDONLY, 0), unix.ENOTDIR, "a file with a slash")
		c.is(open(c.path()+"/", unix.O_CREAT|unix.O_WRONLY, 0o644), unix.EISDIR, "create with a slash")
		c.onFile(d, unix.O_RDONLY, func(fd int) {
			_, err := unix.Read(fd, make([]byte, 10))
			c.is(err, unix.EISDIR, "read of a directory")
		})
	}},
	{"who may", func(c *check) {
		flags := []struct {
			flags int
			needs uint32
		}{{unix.O_RDONLY, 4}, {unix.O_WRONLY, 2}, {unix.O_RDWR, 6}, {unix.O_RDONLY | unix.O_TRUNC, 6}, {unix.O_WRONLY | unix.O_APPEND, 2}}
		who := []struct {
			u     user
			shift uint
		}{{alice, 6}, {carol, 3}, {bob, 0}}
		f := c.file(alice, 0)
		for perm := range uint32(8) {
			for _, w := range who {
				c.must(unix.Chmod(f, 0o777&^(7<<w.shift)|perm<<w.shift)) // only the class that she is in counts
				for _, o := range flags {
					want := unix.Errno(0)
					if perm&o.needs != o.needs {
						want = unix.EACCES
					}
					c.is(as(w.u, func() error { return open(f, o.flags, 0) }), want, "user %d, bits %o, flags %x", w.u.uid, perm, o.flags)
				}
			}
		}
		c.must(unix.Chmod(f, 0))
		c.is(open(f, unix.O_RDWR, 0), 0, "root")
		d := c.mkdir(alice, 0o755)
		c.is(as(bob, func() error { return open(d+"/x", unix.O_CREAT|unix.O_WRONLY, 0o644) }), unix.EACCES, "create in another's directory")
		c.write(d+"/y", "")
		c.must(unix.Chmod(d+"/y", 0o666))
		c.is(as(bob, func() error { return open(d+"/y", unix.O_CREAT|unix.O_WRONLY, 0o644) }), 0, "O_CREAT of what is there")
		c.must(unix.Chmod(d, 0o711))
		c.is(as(bob, func() error { return open(d, unix.O_RDONLY, 0) }), unix.EACCES, "list another's directory")
		c.is(as(bob, func() error { return open(d+"/y", unix.O_WRONLY, 0) }), 0, "a name in a directory that may be searched only")
		c.must(unix.Chmod(d, 0o744))
		c.is(as(bob, func() error { return open(d+"/y", unix.O_WRONLY, 0) }), unix.EACCES, "a name in a directory that may be read only")
	}},
	{"appends", func(c *check) {
		f := c.path()
		c.write(f, "one")
		c.onFile(f, unix.O_WRONLY|unix.O_APPEND, func(fd int) {
			_, err := unix.Write(fd, []byte("two"))
			c.must(err)
			_, err = unix.Seek(fd, 0, unix.SEEK_SET)
			c.must(err)
			_, err = unix.Write(fd, []byte("three"))
			c.must(err)
		})
		c.content(f, "onetwothree")
	}},
	{"sparse files", func(c *check) {
		f := c.path()
		c.must(open(f, unix.O_CREAT|unix.O_WRONLY, 0o644))
		c.onFile(f, unix.O_RDWR, func(fd int) {
			_, err := unix.Pwrite(fd, []byte("end"), 200<<20)
			c.must(err)
			b := make([]byte, 4096)
			n, err := unix.Pread(fd, b, 100<<20)
			c.must(err)
			c.equal(string(b[:n]), strings.Repeat("\x00", 4096), "hole")
			n, err = unix.Pread(fd, b, 200<<20+3)
			c.must(err)
			c.equal(n, 0, "read at the end")
			_, err = unix.Pwrite(fd, []byte("x"), -1)
			c.is(err, unix.EINVAL, "write at a negative offset")
		})
		c.equal(c.lstat(f).Size, int64(200<<20+3), "size")
	}},
	{"errors of paths", pathErrors(func(p string) error { return open(p, unix.O_RDONLY, 0) }, false)},
	{"errors of paths, creating", pathErrors(func(p string) error { return open(p, unix.O_CREAT|unix.O_WRONLY, 0o644) }, true)},
}

// program puts one that can be run.
func (c *check) program() string {
	c.Helper()
	from, err := exec.LookPath("sleep")
	if err != nil {
		c.Skip("no program to run")
	}
	b, err := os.ReadFile(from)
	c.must(err)
	p := c.path()
	c.must(os.WriteFile(p, b, 0o755))
	return p
}

// start runs it until the answer is called.
func (c *check) start(p string) (stop func()) {
	c.Helper()
	cmd := exec.Command(p, "60")
	c.must(cmd.Start())
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
