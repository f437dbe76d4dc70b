package posix

import (
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func chmod(p string) error { return unix.Chmod(p, 0o600) }

var chmodCases = []testCase{
	{"changes the mode of every kind", func(c *check) {
		for _, k := range notLinks {
			p := c.path()
			c.make(k, p, root)
			for _, m := range []uint32{0o111, 0o000, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o640} {
				c.must(unix.Chmod(p, m))
				c.mode(p, m)
			}
		}
	}},
	{"follows links", func(c *check) {
		f, l := c.file(root, 0o644), c.path()
		c.must(unix.Symlink(f, l))
		c.must(unix.Chmod(l, 0o600))
		c.mode(f, 0o600)
		c.mode(l, 0o777)
	}},
	{"changes ctime only", func(c *check) {
		for _, k := range notLinks {
			p := c.path()
			c.make(k, p, root)
			c.changes(func() error { return unix.Chmod(p, 0o711) }, touch{path: p, which: ctime}, touch{path: c.dir})
		}
	}},
	{"a refused one changes nothing", func(c *check) {
		f := c.file(alice, 0o644)
		c.changes(func() error {
			c.is(as(bob, func() error { return unix.Chmod(f, 0o777) }), unix.EPERM, "chmod by another user")
			return nil
		}, touch{path: f})
		c.mode(f, 0o644)
	}},
	{"open file", func(c *check) {
		f := c.file(root, 0o644)
		fd, err := unix.Open(f, unix.O_RDONLY, 0)
		c.must(err)
		c.must(unix.Fchmod(fd, 0o400))
		c.mode(f, 0o400)
		c.must(unix.Unlink(f))
		c.must(unix.Fchmod(fd, 0o444))
		var st unix.Stat_t
		c.must(unix.Fstat(fd, &st))
		c.equal(st.Mode&0o7777, uint32(0o444), "mode of an unlinked file")
		c.must(unix.Close(fd))
	}},
	{"owner only", func(c *check) {
		for _, k := range notLinks {
			p := c.path()
			c.make(k, p, alice)
			c.is(as(alice, func() error { return unix.Chmod(p, 0o600) }), 0, "owner of a %v", k)
			c.is(as(carol, func() error { return unix.Chmod(p, 0o666) }), unix.EPERM, "a member of the group of a %v", k)
			c.mode(p, 0o600)
		}
	}},
	{"setgid is lost outside the group", func(c *check) {
		f := c.file(alice, 0o644)
		c.must(unix.Chown(f, alice.uid, bob.gid))
		c.is(as(alice, func() error { return unix.Chmod(f, 0o2755) }), 0, "chmod")
		c.mode(f, 0o755)
		c.must(unix.Chown(f, alice.uid, alice.gid))
		c.is(as(alice, func() error { return unix.Chmod(f, 0o2755) }), 0, "chmod in the group")
		c.mode(f, 0o2755)
	}},
	{"setuid and setgid are lost by a write", func(c *check) {
		for _, m := range []uint32{0o4777, 0o2777, 0o6777} {
			f := c.file(alice, 0o644)
			c.must(unix.Chmod(f, m))
			c.is(as(bob, func() error {
				fd, err := unix.Open(f, unix.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				_, err = unix.Write(fd, []byte("x"))
				return err
			}), 0, "write")
			c.mode(f, 0o777)
		}
	}},
	{"errors of paths", pathErrors(chmod, false)},
}

var chownCases = []testCase{
	{"root changes every kind", func(c *check) {
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.must(unix.Lchown(p, 123, 456))
			c.owner(p, 123, 456)
			c.must(unix.Lchown(p, -1, 789))
			c.owner(p, 123, 789)
			c.must(unix.Lchown(p, 0, -1))
			c.owner(p, 0, 789)
		}
	}},
	{"follows links, lchown does not", func(c *check) {
		f, l := c.file(root, 0o644), c.path()
		c.must(unix.Symlink(f, l))
		c.must(unix.Chown(l, 11, 12))
		c.owner(f, 11, 12)
		c.owner(l, 0, 0)
		c.must(unix.Lchown(l, 13, 14))
		c.owner(f, 11, 12)
		c.owner(l, 13, 14)
	}},
	{"an owner may give to a group of hers", func(c *check) {
		f := c.file(carol, 0o644)
		c.is(as(carol, func() error { return unix.Chown(f, -1, alice.gid) }), 0, "to a supplementary group")
		c.owner(f, carol.uid, alice.gid)
		c.is(as(carol, func() error { return unix.Chown(f, carol.uid, carol.gid) }), 0, "to the own group")
		c.owner(f, carol.uid, carol.gid)
		c.is(as(carol, func() error { return unix.Chown(f, -1, bob.gid) }), unix.EPERM, "to a foreign group")
		c.is(as(carol, func() error { return unix.Chown(f, bob.uid, -1) }), unix.EPERM, "to another user")
		c.owner(f, carol.uid, carol.gid)
	}},
	{"others may not", func(c *check) {
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, alice)
			c.is(as(bob, func() error { return unix.Lchown(p, bob.uid, bob.gid) }), unix.EPERM, "a %v", k)
			c.is(as(carol, func() error { return unix.Lchown(p, -1, alice.gid) }), unix.EPERM, "a %v, to the same group", k)
			c.owner(p, alice.uid, alice.gid)
		}
	}},
	{"setuid and setgid are lost", func(c *check) {
		f := c.file(carol, 0o755)
		for _, m := range []uint32{0o4755, 0o2755, 0o6755} {
			c.must(unix.Chmod(f, m))
			c.is(as(carol, func() error { return unix.Chown(f, -1, alice.gid) }), 0, "by the owner")
			c.mode(f, 0o755)
			c.must(unix.Chown(f, carol.uid, carol.gid))
			c.must(unix.Chmod(f, m))
			c.must(unix.Chown(f, 5, 5))
			c.mode(f, 0o755)
			c.must(unix.Chown(f, carol.uid, carol.gid))
		}
		c.must(unix.Chmod(f, 0o2644)) // not executable by the group: a mark for mandatory locks, which stays
		c.must(unix.Chown(f, 5, 5))
		c.mode(f, 0o2644)
		d := c.mkdir(root, 0o6755)
		c.must(unix.Chown(d, 5, 5))
		c.mode(d, 0o6755)
	}},
	{"changes ctime only", func(c *check) {
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.changes(func() error { return unix.Lchown(p, 7, 8) }, touch{path: p, which: ctime}, touch{path: c.dir})
		}
	}},
	{"open file", func(c *check) {
		f := c.file(root, 0o644)
		fd, err := unix.Open(f, unix.O_RDONLY, 0)
		c.must(err)
		c.must(unix.Fchown(fd, 77, 78))
		c.owner(f, 77, 78)
		c.must(unix.Close(fd))
	}},
	{"large numbers", func(c *check) {
		f := c.file(root, 0o644)
		c.must(unix.Chown(f, 1<<31, 1<<32-2))
		c.owner(f, 1<<31, 1<<32-2)
	}},
	{"errors of paths", pathErrors(func(p string) error { return unix.Chown(p, 1, 1) }, false)},
}

// utimes sets both times, of a link itself if not follow.
func utimes(p string, a, m unix.Timespec, flags int) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{a, m}, flags)
}

var (
	now  = unix.Timespec{Nsec: unix.UTIME_NOW}
	omit = unix.Timespec{Nsec: unix.UTIME_OMIT}
)

func at(sec, nsec int64) unix.Timespec { return unix.Timespec{Sec: sec, Nsec: nsec} }

var utimensatCases = []testCase{
	{"sets the times of every kind, to the nanosecond", func(c *check) {
		for _, k := range allKinds {
			p := c.path()
			c.make(k, p, root)
			c.must(utimes(p, at(1000000000, 123456789), at(1100000000, 987654321), unix.AT_SYMLINK_NOFOLLOW))
			st := c.lstat(p)
			c.equal(st.Atim, at(1000000000, 123456789), "atime of a %v", k)
			c.equal(st.Mtim, at(1100000000, 987654321), "mtime of a %v", k)
		}
	}},
	{"times before 1970 and after 2038", func(c *check) {
		f := c.file(root, 0o644)
		for _, s := range []int64{-1000000000, -1, 0, 1 << 31, 4294967296, 8589934592} {
			c.must(utimes(f, at(s, 5), at(s, 7), 0))
			st := c.lstat(f)
			c.equal(st.Atim, at(s, 5), "atime")
			c.equal(st.Mtim, at(s, 7), "mtime")
		}
	}},
	{"now and omit", func(c *check) {
		f := c.file(root, 0o644)
		c.must(utimes(f, at(5, 0), at(6, 0), 0))
		c.must(utimes(f, omit, now, 0))
		st := c.lstat(f)
		c.equal(st.Atim, at(5, 0), "atime")
		if d := time.Since(time.Unix(st.Mtim.Unix())); d < -time.Minute || d > time.Minute {
			c.Errorf("mtime is %v ago, want now", d)
		}
		c.must(utimes(f, at(5, 0), omit, 0))
		c.equal(c.lstat(f).Mtim, st.Mtim, "mtime")
		c.changes(func() error { return utimes(f, omit, omit, 0) }, touch{path: f})
	}},
	{"changes ctime", func(c *check) {
		f := c.file(root, 0o644)
		c.changes(func() error { return utimes(f, at(5, 0), omit, 0) }, touch{path: f, which: ctime}, touch{path: c.dir})
	}},
	{"links", func(c *check) {
		f, l := c.file(root, 0o644), c.path()
		c.must(unix.Symlink(f, l))
		c.must(utimes(l, at(5, 0), at(6, 0), 0))
		c.equal(c.lstat(f).Mtim, at(6, 0), "mtime of the target")
		c.must(utimes(l, at(7, 0), at(8, 0), unix.AT_SYMLINK_NOFOLLOW))
		c.equal(c.lstat(l).Mtim, at(8, 0), "mtime of the link")
		c.equal(c.lstat(f).Mtim, at(6, 0), "mtime of the target")
	}},
	{"who may", func(c *check) {
		f := c.file(alice, 0o644)
		set := func(u user, a, m unix.Timespec) error { return as(u, func() error { return utimes(f, a, m, 0) }) }
		c.is(set(alice, at(1, 0), at(2, 0)), 0, "owner")
		c.is(set(bob, at(1, 0), at(2, 0)), unix.EPERM, "another, given times")
		c.is(set(bob, now, omit), unix.EPERM, "another, one of them now")
		c.is(set(bob, now, now), unix.EACCES, "another, now, without the right to write")
		c.is(set(bob, omit, omit), 0, "another, no change")
		c.must(unix.Chmod(f, 0o666))
		c.is(set(bob, now, now), 0, "another, now, with the right to write")
		c.is(set(bob, at(1, 0), at(2, 0)), unix.EPERM, "another with the right to write, given times")
		c.must(unix.Chmod(f, 0o444))
		c.is(set(alice, now, now), 0, "owner, now, without the right to write")
	}},
	{"open file", func(c *check) {
		f := c.file(root, 0o644)
		fd, err := unix.Open(f, unix.O_RDONLY, 0)
		c.must(err)
		defer unix.Close(fd)
		c.must(unix.Futimes(fd, []unix.Timeval{{Sec: 9}, {Sec: 10}}))
		st := c.lstat(f)
		c.equal(st.Atim, at(9, 0), "atime")
		c.equal(st.Mtim, at(10, 0), "mtime")
	}},
	{"bad nanoseconds", func(c *check) {
		f := c.file(root, 0o644)
		c.is(utimes(f, at(1, 1000000000), at(1, 0), 0), unix.EINVAL, "a second of nanoseconds")
		c.is(utimes(f, at(1, -1), at(1, 0), 0), unix.EINVAL, "negative nanoseconds")
	}},
	{"reading and writing change times", func(c *check) {
		f := c.file(root, 0o644)
		c.changes(func() error {
			fd, err := unix.Open(f, unix.O_WRONLY, 0)
			c.must(err)
			_, err = unix.Write(fd, []byte("abc"))
			c.must(err)
			return unix.Close(fd)
		}, touch{path: f, which: mtime | ctime}, touch{path: c.dir})
		c.changes(func() error { return open(f, unix.O_RDWR, 0) }, touch{path: f})
	}},
	{"errors of paths", pathErrors(func(p string) error { return utimes(p, at(1, 0), at(1, 0), 0) }, false)},
}

var truncateCases = []testCase{
	{"shorter, longer, and what is between is zero", func(c *check) {
		f := c.path()
		c.write(f, strings.Repeat("abcdefgh", 1000))
		c.must(unix.Truncate(f, 5))
		c.content(f, "abcde")
		c.must(unix.Truncate(f, 9000))
		c.equal(c.lstat(f).Size, int64(9000), "size")
		c.must(unix.Truncate(f, 8))
		c.content(f, "abcde\x00\x00\x00")
		c.must(unix.Truncate(f, 0))
		c.content(f, "")
	}},
	{"open file", func(c *check) {
		f := c.path()
		c.write(f, "0123456789")
		fd, err := unix.Open(f, unix.O_RDWR, 0)
		c.must(err)
		c.must(unix.Ftruncate(fd, 3))
		c.content(f, "012")
		c.must(unix.Unlink(f))
		c.must(unix.Ftruncate(fd, 1<<20))
		var st unix.Stat_t
		c.must(unix.Fstat(fd, &st))
		c.equal(st.Size, int64(1<<20), "size of an unlinked file")
		c.must(unix.Close(fd))
		g := c.file(root, 0o644)
		fd, err = unix.Open(g, unix.O_RDONLY, 0)
		c.must(err)
		c.is(unix.Ftruncate(fd, 3), unix.EINVAL, "ftruncate of a file open for reading")
		c.must(unix.Close(fd))
	}},
	{"changes mtime and ctime", func(c *check) {
		f := c.path()
		c.write(f, "0123456789")
		c.changes(func() error { return unix.Truncate(f, 3) }, touch{path: f, which: mtime | ctime}, touch{path: c.dir})
		c.changes(func() error { return unix.Truncate(f, 30) }, touch{path: f, which: mtime | ctime})
	}},
	{"who may", func(c *check) {
		f := c.file(alice, 0o644)
		cut := func(u user) error { return as(u, func() error { return unix.Truncate(f, 3) }) }
		c.is(cut(alice), 0, "owner")
		c.changes(func() error {
			c.is(cut(bob), unix.EACCES, "another")
			return nil
		}, touch{path: f})
		c.must(unix.Chmod(f, 0o622))
		c.is(cut(bob), 0, "another with the right to write")
		c.must(unix.Chmod(f, 0o444))
		c.is(cut(alice), unix.EACCES, "owner without it")
	}},
	{"setuid is lost", func(c *check) {
		f := c.file(alice, 0o644)
		c.must(unix.Chmod(f, 0o4777))
		c.is(as(bob, func() error { return unix.Truncate(f, 1) }), 0, "truncate")
		c.mode(f, 0o777)
	}},
	{"kinds and lengths", func(c *check) {
		c.is(unix.Truncate(c.dir, 0), unix.EISDIR, "a directory")
		for _, k := range []kind{fifo, socket} {
			p := c.path()
			c.make(k, p, root)
			c.is(unix.Truncate(p, 0), unix.EINVAL, "a %v", k)
		}
		f := c.file(root, 0o644)
		c.is(unix.Truncate(f, -1), unix.EINVAL, "a negative length")
		c.is(unix.Truncate(f, 1<<62), unix.EFBIG, "a length over the limit")
		c.equal(c.lstat(f).Size, int64(0), "size")
	}},
	{"a running program", func(c *check) {
		f := c.program()
		stop := c.start(f)
		defer stop()
		c.is(unix.Truncate(f, 3), unix.ETXTBSY, "truncate")
		c.is(open(f, unix.O_WRONLY, 0), unix.ETXTBSY, "open for writing")
	}},
	{"errors of paths", pathErrors(func(p string) error { return unix.Truncate(p, 1) }, false)},
}

var fallocateCases = []testCase{
	{"sets the size and reads as zeros", func(c *check) {
		f := c.path()
		c.write(f, "abc")
		c.onFile(f, unix.O_RDWR, func(fd int) {
			c.is(unix.Fallocate(fd, 0, 0, 10), 0, "fallocate")
			c.content(f, "abc"+strings.Repeat("\x00", 7))
			c.is(unix.Fallocate(fd, 0, 2, 3), 0, "inside")
			c.content(f, "abc"+strings.Repeat("\x00", 7))
			c.is(unix.Fallocate(fd, 0, 1<<20, 1<<20), 0, "far beyond the end")
			c.equal(c.lstat(f).Size, int64(2<<20), "size")
			c.is(unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 4<<20), 0, "keep size")
			c.equal(c.lstat(f).Size, int64(2<<20), "size")
		})
	}},
	{"changes times", func(c *check) {
		f := c.file(root, 0o644)
		c.changes(func() error {
			c.onFile(f, unix.O_RDWR, func(fd int) { c.must(unix.Fallocate(fd, 0, 0, 100)) })
			return nil
		}, touch{path: f, which: mtime | ctime}, touch{path: c.dir})
	}},
	{"refusals", func(c *check) {
		f := c.file(root, 0o644)
		c.onFile(f, unix.O_RDONLY, func(fd int) { c.is(unix.Fallocate(fd, 0, 0, 10), unix.EBADF, "open for reading") })
		c.onFile(f, unix.O_RDWR, func(fd int) {
			c.is(unix.Fallocate(fd, 0, 0, 0), unix.EINVAL, "length 0")
			c.is(unix.Fallocate(fd, 0, -1, 10), unix.EINVAL, "a negative offset")
			c.is(unix.Fallocate(fd, 0, 0, -1), unix.EINVAL, "a negative length")
			c.is(unix.Fallocate(fd, 0, 1<<62, 1<<61), unix.EFBIG, "over the limit")
			c.is(unix.Fallocate(fd, 0x4000, 0, 10), unix.EOPNOTSUPP, "an unknown mode")
		})
		p := filepath.Join(c.dir, "fifo")
		c.must(unix.Mkfifo(p, 0o644))
		c.onFile(p, unix.O_RDWR, func(fd int) { c.is(unix.Fallocate(fd, 0, 0, 10), unix.ESPIPE, "a fifo") })
		c.equal(c.lstat(f).Size, int64(0), "size")
	}},
	{"punched holes and zeroed ranges", func(c *check) {
		f := c.path()
		c.write(f, strings.Repeat("x", 20000))
		c.onFile(f, unix.O_RDWR, func(fd int) {
			c.is(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, 9900), 0, "punch")
			c.content(f, strings.Repeat("x", 100)+strings.Repeat("\x00", 9900)+strings.Repeat("x", 10000))
			c.is(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 15000, 10000), 0, "zero range")
			c.content(f, strings.Repeat("x", 100)+strings.Repeat("\x00", 9900)+strings.Repeat("x", 5000)+strings.Repeat("\x00", 10000))
		})
	}},
}

// onFile runs do with the file open.
func (c *check) onFile(path string, flags int, do func(fd int)) {
	c.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	c.must(err)
	do(fd)
	c.must(unix.Close(fd))
}
