package posix

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var linkCases = []testCase{
	{"every kind", func(c *check) {
		for _, k := range notDirs {
			a, b, d := c.path(), c.path(), c.path()
			c.make(k, a, root)
			c.must(unix.Link(a, b))
			c.nlink(a, 2)
			c.equal(c.lstat(a).Ino, c.lstat(b).Ino, "inode of a %v", k)
			c.must(unix.Link(b, d))
			c.nlink(a, 3)
			c.must(unix.Lchown(d, 5, 6))
			c.owner(a, 5, 6)
			c.must(unix.Unlink(a))
			c.nlink(b, 2)
			c.must(unix.Unlink(d))
			c.nlink(b, 1)
		}
	}},
	{"times", func(c *check) {
		a, d := c.file(root, 0o644), c.mkdir(root, 0o755)
		c.changes(func() error { return unix.Link(a, d+"/l") }, touch{path: a, which: ctime}, touch{path: d, which: mtime | ctime}, touch{path: c.dir})
	}},
	{"exists", func(c *check) {
		a := c.file(root, 0o644)
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.is(unix.Link(a, p), unix.EEXIST, "on a %v", k)
		}
		c.is(unix.Link(a, a), unix.EEXIST, "on itself")
		c.nlink(a, 1)
	}},
	{"directories", func(c *check) {
		d := c.mkdir(root, 0o755)
		c.is(unix.Link(d, c.path()), unix.EPERM, "a directory")
		c.nlink(d, 2)
	}},
	{"a link or what it means", func(c *check) {
		f, l := c.file(root, 0o644), c.path()
		c.must(unix.Symlink(f, l))
		a, b := c.path(), c.path()
		c.must(unix.Linkat(unix.AT_FDCWD, l, unix.AT_FDCWD, a, 0))
		c.equal(c.lstat(a).Ino, c.lstat(l).Ino, "inode")
		c.must(unix.Linkat(unix.AT_FDCWD, l, unix.AT_FDCWD, b, unix.AT_SYMLINK_FOLLOW))
		c.equal(c.lstat(b).Ino, c.lstat(f).Ino, "inode")
	}},
	{"who may", func(c *check) {
		f, d := c.file(alice, 0o666), c.mkdir(alice, 0o755)
		c.is(as(bob, func() error { return unix.Link(f, d+"/l") }), unix.EACCES, "into another's directory")
		c.is(as(alice, func() error { return unix.Link(f, d+"/l") }), 0, "owner")
		c.must(unix.Chmod(d, 0o700))
		c.is(as(bob, func() error { return unix.Link(d+"/l", filepath.Join(c.dir, "x")) }), unix.EACCES, "from another's directory")
	}},
	{"a file without names", func(c *check) {
		f, d := c.file(root, 0o644), c.path()
		fd, err := unix.Open(f, unix.O_RDONLY, 0)
		c.must(err)
		c.must(unix.Unlink(f))
		c.is(unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+itoa(fd), unix.AT_FDCWD, d, unix.AT_SYMLINK_FOLLOW), unix.ENOENT, "link")
		c.must(unix.Close(fd))
	}},
	{"errors of paths, from", pathErrors(func(p string) error { return unix.Link(p, p+"-new") }, false)},
	{"errors of paths, to", func(c *check) {
		f := c.file(root, 0o666)
		pathErrors(func(p string) error { return unix.Link(f, p) }, true)(c)
	}},
}

var unlinkCases = []testCase{
	{"every kind", func(c *check) {
		for _, k := range notDirs {
			p := c.path()
			c.make(k, p, root)
			c.changes(func() error { return unix.Unlink(p) }, touch{path: c.dir, which: mtime | ctime})
			c.gone(p)
		}
	}},
	{"one of several names", func(c *check) {
		a, b := c.file(root, 0o644), c.path()
		c.must(unix.Link(a, b))
		c.changes(func() error { return unix.Unlink(a) }, touch{path: b, which: ctime})
		c.nlink(b, 1)
	}},
	{"an open file lives on", func(c *check) {
		f := c.path()
		c.write(f, "content")
		c.onFile(f, unix.O_RDWR, func(fd int) {
			c.must(unix.Unlink(f))
			c.gone(f)
			var st unix.Stat_t
			c.must(unix.Fstat(fd, &st))
			c.equal(uint64(st.Nlink), uint64(0), "links")
			b := make([]byte, 20)
			n, err := unix.Pread(fd, b, 0)
			c.must(err)
			c.equal(string(b[:n]), "content", "content")
			_, err = unix.Pwrite(fd, []byte("more"), 7)
			c.must(err)
			n, err = unix.Pread(fd, b, 0)
			c.must(err)
			c.equal(string(b[:n]), "contentmore", "content")
			c.write(f, "another") // the name is free
			n, err = unix.Pread(fd, b, 0)
			c.must(err)
			c.equal(string(b[:n]), "contentmore", "content")
		})
		c.content(f, "another")
	}},
	{"directories", func(c *check) {
		d, f := c.mkdir(root, 0o755), c.file(root, 0o644)
		c.is(unix.Unlink(d), unix.EISDIR, "unlink")
		c.is(unix.Unlink(f+"/"), unix.ENOTDIR, "a file with a slash")
		c.is(unix.Unlink(d+"/."), unix.EISDIR, "dot")
	}},
	{"who may", func(c *check) {
		d := c.mkdir(alice, 0o755)
		f := d + "/f"
		c.make(regular, f, bob)
		c.is(as(bob, func() error { return unix.Unlink(f) }), unix.EACCES, "the file's owner in another's directory")
		c.is(as(alice, func() error { return unix.Unlink(f) }), 0, "the directory's owner")
	}},
	{"sticky directories", stickyCases(notDirs, unix.Unlink)},
	{"errors of paths", pathErrors(unix.Unlink, false)},
}

// stickyCases wants that in a sticky directory only the owner of it or of the file removes a name.
func stickyCases(kinds []kind, remove func(path string) error) func(c *check) {
	return func(c *check) {
		for _, k := range kinds {
			for _, t := range []struct {
				dir, file, by user
				want          unix.Errno
			}{
				{alice, alice, alice, 0}, {alice, bob, alice, 0}, {alice, bob, bob, 0}, {alice, bob, carol, unix.EPERM},
				{root, root, bob, unix.EPERM}, {root, alice, bob, unix.EPERM}, {alice, root, bob, unix.EPERM}, {alice, bob, root, 0},
			} {
				d := c.mkdir(t.dir, 0o1777)
				p := filepath.Join(d, "x")
				c.make(k, p, t.file)
				c.oneOf(as(t.by, func() error { return remove(p) }), either(t.want), "%v of %d in a directory of %d, by %d",
					k, t.file.uid, t.dir.uid, t.by.uid)
			}
		}
	}
}

// either allows EACCES for EPERM, as POSIX does.
func either(want unix.Errno) []unix.Errno {
	if want == unix.EPERM {
		return []unix.Errno{unix.EPERM, unix.EACCES}
	}
	return []unix.Errno{want}
}

var rmdirCases = []testCase{
	{"removes", func(c *check) {
		d := c.mkdir(root, 0o755)
		c.must(unix.Mkdir(d+"/a", 0o755))
		c.changes(func() error { return unix.Rmdir(d + "/a") }, touch{path: d, which: mtime | ctime}, touch{path: c.dir})
		c.gone(d + "/a")
		c.nlink(d, 2)
		c.is(unix.Rmdir(d+"/"), 0, "with a slash")
	}},
	{"not empty", func(c *check) {
		for _, k := range allKinds {
			d := c.mkdir(root, 0o755)
			c.make(k, d+"/x", root)
			c.oneOf(unix.Rmdir(d), []unix.Errno{unix.ENOTEMPTY, unix.EEXIST}, "with a %v in it", k)
		}
	}},
	{"no directory", func(c *check) {
		for _, k := range notDirs {
			p := c.path()
			c.make(k, p, root)
			c.is(unix.Rmdir(p), unix.ENOTDIR, "a %v", k)
			c.lstat(p)
		}
	}},
	{"dots", func(c *check) {
		d := c.mkdir(root, 0o755)
		c.must(unix.Mkdir(d+"/a", 0o755))
		c.is(unix.Rmdir(d+"/a/."), unix.EINVAL, "dot")
		c.oneOf(unix.Rmdir(d+"/a/.."), []unix.Errno{unix.ENOTEMPTY, unix.EEXIST}, "dot dot")
	}},
	{"while open", func(c *check) {
		d := c.mkdir(root, 0o755)
		fd, err := unix.Open(d, unix.O_DIRECTORY, 0)
		c.must(err)
		f := os.NewFile(uintptr(fd), d)
		defer f.Close()
		c.must(unix.Rmdir(d))
		var st unix.Stat_t
		c.is(unix.Fstat(fd, &st), 0, "fstat")
		c.equal(uint64(st.Nlink), uint64(0), "links")
		list, err := f.Readdirnames(-1)
		if len(list) > 0 {
			c.Errorf("entries of a removed directory: %q, %v", list, err)
		}
		c.is(unix.Fstatat(fd, "x", new(unix.Stat_t), 0), unix.ENOENT, "look up")
		_, err = unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
		c.is(err, unix.ENOENT, "create")
		c.must(unix.Mkdir(d, 0o700)) // the name is free
	}},
	{"who may", func(c *check) {
		d := c.mkdir(alice, 0o755)
		c.make(dir, d+"/x", bob)
		c.is(as(bob, func() error { return unix.Rmdir(d + "/x") }), unix.EACCES, "the owner, in another's directory")
		c.is(as(alice, func() error { return unix.Rmdir(d + "/x") }), 0, "the parent's owner")
	}},
	{"sticky directories", stickyCases([]kind{dir}, unix.Rmdir)},
	{"errors of paths", pathErrors(unix.Rmdir, false)},
}

func rename2(a, b string, flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags)
}

var renameCases = []testCase{
	{"every kind", func(c *check) {
		for _, k := range allKinds {
			a, b := c.path(), c.path()
			c.make(k, a, root)
			before := c.lstat(a)
			c.must(unix.Rename(a, b))
			c.gone(a)
			after := c.lstat(b)
			c.equal(after.Ino, before.Ino, "inode of a %v", k)
			c.equal(after.Mode, before.Mode, "mode of a %v", k)
			c.equal(after.Nlink, before.Nlink, "links of a %v", k)
		}
	}},
	{"times", func(c *check) {
		for _, k := range allKinds {
			from, to := c.mkdir(root, 0o755), c.mkdir(root, 0o755)
			c.make(k, from+"/x", root)
			c.changes(func() error { return unix.Rename(from+"/x", to+"/y") },
				touch{path: from, which: mtime | ctime}, touch{path: to, which: mtime | ctime},
				touch{path: from + "/x", after: to + "/y", which: ctime})
		}
	}},
	{"replaces", func(c *check) {
		for _, k := range notDirs {
			for _, over := range notDirs {
				a, b := c.path(), c.path()
				c.make(k, a, root)
				c.make(over, b, root)
				ino := c.lstat(a).Ino
				c.is(unix.Rename(a, b), 0, "a %v over a %v", k, over)
				c.equal(c.lstat(b).Ino, ino, "inode")
				c.gone(a)
			}
		}
		a, b := c.mkdir(root, 0o755), c.mkdir(root, 0o755)
		c.write(a+"/f", "inside")
		c.is(unix.Rename(a, b), 0, "a directory over an empty one")
		c.content(b+"/f", "inside")
	}},
	{"a replaced file loses a name", func(c *check) {
		a, b, d := c.file(root, 0o644), c.file(root, 0o644), c.path()
		c.must(unix.Link(b, d))
		c.changes(func() error { return unix.Rename(a, b) }, touch{path: d, which: ctime})
		c.nlink(d, 1)
	}},
	{"a replaced file that is open lives on", func(c *check) {
		a, b := c.path(), c.path()
		c.write(a, "new")
		c.write(b, "old")
		c.onFile(b, unix.O_RDONLY, func(fd int) {
			c.must(unix.Rename(a, b))
			buf := make([]byte, 10)
			n, err := unix.Pread(fd, buf, 0)
			c.must(err)
			c.equal(string(buf[:n]), "old", "content")
		})
		c.content(b, "new")
	}},
	{"two names of one file", func(c *check) {
		a, b := c.file(root, 0o644), c.path()
		c.must(unix.Link(a, b))
		c.changes(func() error { return unix.Rename(a, b) }, touch{path: a}, touch{path: c.dir})
		c.nlink(a, 2)
		c.is(unix.Rename(a, a), 0, "to itself")
		c.lstat(a)
	}},
	{"kinds that do not fit", func(c *check) {
		d, full := c.mkdir(root, 0o755), c.mkdir(root, 0o755)
		c.write(full+"/f", "")
		for _, k := range notDirs {
			p := c.path()
			c.make(k, p, root)
			c.is(unix.Rename(p, d), unix.EISDIR, "a %v over a directory", k)
			c.is(unix.Rename(d, p), unix.ENOTDIR, "a directory over a %v", k)
		}
		c.oneOf(unix.Rename(d, full), []unix.Errno{unix.ENOTEMPTY, unix.EEXIST}, "over a directory that is not empty")
		c.is(unix.Rename(full, d), 0, "a full directory over an empty one")
	}},
	{"into itself", func(c *check) {
		d := c.mkdir(root, 0o755)
		c.must(os.MkdirAll(d+"/a/b", 0o755))
		c.is(unix.Rename(d, d+"/x"), unix.EINVAL, "into itself")
		c.is(unix.Rename(d, d+"/a/b/x"), unix.EINVAL, "far into itself")
		c.oneOf(unix.Rename(d+"/a/b", d), []unix.Errno{unix.ENOTEMPTY, unix.EEXIST}, "over its ancestor")
		c.oneOf(unix.Rename(d+"/.", c.path()), []unix.Errno{unix.EINVAL, unix.EBUSY}, "dot")
		c.oneOf(unix.Rename(d+"/a/..", c.path()), []unix.Errno{unix.EINVAL, unix.EBUSY}, "dot dot")
	}},
	{"directories take their links along", func(c *check) {
		from, to := c.mkdir(root, 0o755), c.mkdir(root, 0o755)
		c.must(unix.Mkdir(from+"/d", 0o755))
		c.nlink(from, 3)
		c.must(unix.Rename(from+"/d", to+"/e"))
		c.nlink(from, 2)
		c.nlink(to, 3)
		var a, b unix.Stat_t
		c.must(unix.Stat(to, &a))
		c.must(unix.Stat(to+"/e/..", &b))
		c.equal(a.Ino, b.Ino, "dot dot")
		c.must(unix.Mkdir(from+"/f", 0o755))
		c.must(unix.Rename(from+"/f", to+"/e"))
		c.nlink(from, 2)
		c.nlink(to, 3)
	}},
	{"without replacing", func(c *check) {
		a, b := c.file(root, 0o644), c.path()
		c.is(rename2(a, b, unix.RENAME_NOREPLACE), 0, "to a free name")
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.is(rename2(b, p, unix.RENAME_NOREPLACE), unix.EEXIST, "on a %v", k)
		}
		c.is(rename2(a, b, unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE), unix.EINVAL, "both flags")
	}},
	{"exchange", func(c *check) {
		for _, k := range allKinds {
			for _, other := range allKinds {
				d, e := c.mkdir(root, 0o755), c.mkdir(root, 0o755)
				a, b := d+"/a", e+"/b"
				c.make(k, a, root)
				c.make(other, b, root)
				ia, ib := c.lstat(a).Ino, c.lstat(b).Ino
				c.is(rename2(a, b, unix.RENAME_EXCHANGE), 0, "a %v with a %v", k, other)
				c.equal(c.lstat(a).Ino, ib, "inode")
				c.equal(c.lstat(b).Ino, ia, "inode")
				links := func(k kind) uint64 {
					if k == dir {
						return 3
					}
					return 2
				}
				c.nlink(d, links(other))
				c.nlink(e, links(k))
			}
		}
		c.is(rename2(c.file(root, 0o644), c.path(), unix.RENAME_EXCHANGE), unix.ENOENT, "with nothing")
		d := c.mkdir(root, 0o755)
		c.must(unix.Mkdir(d+"/a", 0o755))
		c.is(rename2(d, d+"/a", unix.RENAME_EXCHANGE), unix.EINVAL, "a directory with one inside")
	}},
	{"who may", func(c *check) {
		mine, theirs := c.mkdir(alice, 0o755), c.mkdir(bob, 0o755)
		c.make(regular, mine+"/a", alice)
		move := func(u user, a, b string) error { return as(u, func() error { return unix.Rename(a, b) }) }
		c.is(move(alice, mine+"/a", theirs+"/a"), unix.EACCES, "into another's directory")
		c.is(move(bob, mine+"/a", theirs+"/a"), unix.EACCES, "out of another's directory")
		c.is(move(alice, mine+"/a", mine+"/b"), 0, "within")
		c.must(unix.Chmod(theirs, 0o777))
		c.is(move(alice, mine+"/b", theirs+"/b"), 0, "into one that all may write")
		c.make(dir, theirs+"/d", root)
		c.is(move(alice, theirs+"/d", mine+"/d"), unix.EACCES, "a directory that she may not write, to another parent")
		c.is(move(alice, theirs+"/d", theirs+"/e"), 0, "and within its parent")
	}},
	{"sticky source", stickyCases(allKinds, func(p string) error { return unix.Rename(p, p+"-new") })},
	{"sticky target", stickyCases(notDirs, func(p string) error {
		from := p + "-from"
		if err := open(from, unix.O_CREAT|unix.O_WRONLY, 0o644); err != nil {
			return err
		}
		return unix.Rename(from, p)
	})},
	{"names", func(c *check) {
		long := filepath.Join(c.dir, strings.Repeat("n", 255))
		f := c.file(root, 0o644)
		c.is(unix.Rename(f, long), 0, "to a name of 255 bytes")
		c.is(unix.Rename(long, c.path()), 0, "and back")
		g, d := c.file(root, 0o644), c.mkdir(root, 0o755)
		c.is(unix.Rename(g+"/", c.path()), unix.ENOTDIR, "a file with a slash")
		c.is(unix.Rename(g, c.path()+"/"), unix.ENOTDIR, "a file to a name with a slash")
		c.is(unix.Rename(d+"/", c.path()+"/"), 0, "a directory with slashes")
	}},
	{"errors of paths, from", pathErrors(func(p string) error { return unix.Rename(p, p+"-new") }, false)},
	{"errors of paths, to", func(c *check) {
		base := c.mkdir(root, 0o777)
		pathErrors(func(p string) error {
			f := filepath.Join(base, "f")
			if err := os.WriteFile(f, nil, 0o666); err != nil {
				return err
			}
			return unix.Rename(f, p)
		}, true)(c)
	}},
}
