package fuse

import (
	"syscall"

	"golang.org/x/sys/unix"

	"varve/internal/wire/msg"
)

// typeBits are the file type bits of a mode.
func typeBits(t msg.FileType) uint32 {
	switch t {
	case msg.FileType_DIRECTORY:
		return unix.S_IFDIR
	case msg.FileType_SYMLINK:
		return unix.S_IFLNK
	case msg.FileType_FIFO:
		return unix.S_IFIFO
	case msg.FileType_CHAR:
		return unix.S_IFCHR
	case msg.FileType_BLOCK:
		return unix.S_IFBLK
	case msg.FileType_SOCKET:
		return unix.S_IFSOCK
	}
	return unix.S_IFREG
}

// typeOf is the opposite of typeBits; NONE for bits that no file has.
func typeOf(mode uint32) msg.FileType {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return msg.FileType_DIRECTORY
	case unix.S_IFLNK:
		return msg.FileType_SYMLINK
	case unix.S_IFIFO:
		return msg.FileType_FIFO
	case unix.S_IFCHR:
		return msg.FileType_CHAR
	case unix.S_IFBLK:
		return msg.FileType_BLOCK
	case unix.S_IFSOCK:
		return msg.FileType_SOCKET
	case unix.S_IFREG, 0: // mknod(2): zero means a regular file
		return msg.FileType_REGULAR
	}
	return msg.FileType_NONE
}

// splitTime cuts nanoseconds since 1970 into seconds, rounded down, and the rest.
func splitTime(t int64) (sec uint64, nsec uint32) {
	s, n := t/1e9, t%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

// putAttr writes struct fuse_attr to b.
func putAttr(b []byte, a *msg.Attr) {
	le.PutUint64(b, a.Ino)
	le.PutUint64(b[8:], a.Size)
	le.PutUint64(b[16:], a.Blocks)
	for i, t := range [...]int64{a.Atime, a.Mtime, a.Ctime} {
		sec, nsec := splitTime(t)
		le.PutUint64(b[24+8*i:], sec)
		le.PutUint32(b[48+4*i:], nsec)
	}
	le.PutUint32(b[60:], typeBits(a.Type)|a.Perm&0o7777)
	le.PutUint32(b[64:], a.Nlink)
	le.PutUint32(b[68:], a.Uid)
	le.PutUint32(b[72:], a.Gid)
	le.PutUint32(b[76:], a.Rdev)
	le.PutUint32(b[80:], pageSize) // preferred block size
	le.PutUint32(b[84:], 0)        // flags
}

// putEntry writes struct fuse_entry_out to b: the inode number is the kernel's inode too, its
// generation is 0 since numbers are never reused, and neither name nor attributes are valid for any time.
func putEntry(b []byte, a *msg.Attr) {
	clear(b[:40])
	le.PutUint64(b, a.Ino)
	putAttr(b[40:], a)
}

// putAttrOut writes struct fuse_attr_out to b.
func putAttrOut(b []byte, a *msg.Attr) {
	clear(b[:16])
	putAttr(b[16:], a)
}

// putStatx writes struct fuse_statx_out to b.
func putStatx(b []byte, a *msg.Attr) {
	clear(b[:statxOutSize])
	s := b[32:]
	le.PutUint32(s, unix.STATX_BASIC_STATS|unix.STATX_BTIME)
	le.PutUint32(s[4:], pageSize)
	le.PutUint32(s[16:], a.Nlink)
	le.PutUint32(s[20:], a.Uid)
	le.PutUint32(s[24:], a.Gid)
	le.PutUint16(s[28:], uint16(typeBits(a.Type)|a.Perm&0o7777))
	le.PutUint64(s[32:], a.Ino)
	le.PutUint64(s[40:], a.Size)
	le.PutUint64(s[48:], a.Blocks)
	for i, t := range [...]int64{a.Atime, a.Btime, a.Ctime, a.Mtime} {
		sec, nsec := splitTime(t)
		le.PutUint64(s[64+16*i:], sec)
		le.PutUint32(s[72+16*i:], nsec)
	}
	le.PutUint32(s[128:], unix.Major(uint64(a.Rdev)))
	le.PutUint32(s[132:], unix.Minor(uint64(a.Rdev)))
}

// putStatfs writes struct fuse_kstatfs to b. A cluster has no fixed number of inodes, so freeInodes is
// shown as free; programs that ask want to see "many".
func putStatfs(b []byte, s *msg.StatFSReply) {
	const freeInodes = 1 << 32
	clear(b[:statfsSize])
	le.PutUint64(b, s.Total/pageSize)
	le.PutUint64(b[8:], s.Free/pageSize)
	le.PutUint64(b[16:], s.Free/pageSize)
	le.PutUint64(b[24:], s.Files+freeInodes)
	le.PutUint64(b[32:], freeInodes)
	le.PutUint32(b[40:], pageSize)
	nameMax := s.NameMax
	if nameMax == 0 {
		nameMax = maxName
	}
	le.PutUint32(b[44:], nameMax)
	le.PutUint32(b[48:], pageSize)
}

// putLock writes struct fuse_lk_out to b: the lock that is in the way, or that none is.
func putLock(b []byte, l *msg.LockReply) {
	clear(b[:24])
	var t uint32
	switch l.GetType() {
	case msg.LockType_READ_LOCK:
		t = syscall.F_RDLCK
	case msg.LockType_WRITE_LOCK:
		t = syscall.F_WRLCK
	default:
		le.PutUint32(b[16:], syscall.F_UNLCK)
		return
	}
	le.PutUint64(b, l.GetStart())
	le.PutUint64(b[8:], l.GetEnd())
	le.PutUint32(b[16:], t)
	le.PutUint32(b[20:], l.GetPid())
}
