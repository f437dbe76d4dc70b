package capture

import (
	"fmt"
	"syscall"
	"time"
)

// Kind is what an operation does.
type Kind uint8

// Kinds. They are in files: none is ever used for something else.
const (
	Other Kind = iota
	Read
	Write
	Fsync
	Flush // a close(2) of one descriptor
	Open
	Create
	Release // the last close
	Fallocate
	Truncate
	Lookup
	Getattr
	Setattr
	Opendir
	Readdir
	Releasedir
	Mkdir
	Unlink
	Rmdir
	Rename
	Link
	Symlink
	Mknod
	Readlink
	Xattr
	Lock
	Statfs
	Seek
	Syncfs
	Access
	Trim // of a block device; imported
	kinds
)

var kindNames = [kinds]string{
	"other", "read", "write", "fsync", "flush", "open", "create", "release", "fallocate", "truncate", "lookup", "getattr", "setattr", "opendir",
	"readdir", "releasedir", "mkdir", "unlink", "rmdir", "rename", "link", "symlink", "mknod", "readlink", "xattr", "lock", "statfs", "seek", "syncfs",
	"access", "trim",
}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Record is one operation.
type Record struct {
	Kind   Kind
	Errno  syscall.Errno
	PID    uint32
	Begin  time.Duration // since the start of the capture
	Took   time.Duration
	Inode  uint64
	Handle uint64 // 0: none
	Offset int64
	Size   int64  // bytes asked for
	Done   uint32 // bytes
	Arg    uint32
}

// End is when the operation ended.
func (r *Record) End() time.Duration { return r.Begin + r.Took }

// put encodes r to the first RecordSize bytes of b.
func (r *Record) put(b []byte) {
	_ = b[RecordSize-1]
	b[0], b[1] = byte(r.Kind), 0
	le.PutUint16(b[2:], uint16(r.Errno))
	le.PutUint32(b[4:], r.PID)
	le.PutUint64(b[8:], uint64(r.Begin))
	le.PutUint64(b[16:], uint64(r.Took))
	le.PutUint64(b[24:], r.Inode)
	le.PutUint64(b[32:], r.Handle)
	le.PutUint64(b[40:], uint64(r.Offset))
	le.PutUint64(b[48:], uint64(r.Size))
	le.PutUint32(b[56:], r.Done)
	le.PutUint32(b[60:], r.Arg)
}

// decodeRecord decodes the first RecordSize bytes of b.
func decodeRecord(b []byte) (Record, error) {
	r := Record{
		Kind: Kind(b[0]), Errno: syscall.Errno(le.Uint16(b[2:])), PID: le.Uint32(b[4:]), Begin: time.Duration(le.Uint64(b[8:])),
		Took: time.Duration(le.Uint64(b[16:])), Inode: le.Uint64(b[24:]), Handle: le.Uint64(b[32:]), Offset: int64(le.Uint64(b[40:])),
		Size: int64(le.Uint64(b[48:])), Done: le.Uint32(b[56:]), Arg: le.Uint32(b[60:]),
	}
	const longest = 1 << 62 // so that sums of two do not overflow
	if b[1] != 0 || r.Begin < 0 || r.Took < 0 || r.Offset < 0 || r.Size < 0 || r.Begin >= longest || r.Took >= longest || r.Offset >= longest || r.Size >= longest {
		return Record{}, fmt.Errorf("record of a %v at %d for %d, offset %d, size %d: %w", r.Kind, r.Begin, r.Took, r.Offset, r.Size, ErrCorrupt)
	}
	return r, nil
}

// File is a file that records are of.
type File struct {
	Inode uint64
	Size  int64  // bytes, when it was first seen
	Path  string // below the mount, without a slash before it
}
