package fuse

import (
	"context"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// Backend is the filesystem that a Session serves. All methods may be called at once, may block until
// ctx is done, and answer with an fserr.Code (wrapped or not) when they fail. Slices of an argument
// belong to the caller and are valid only during the call; results belong to the caller.
type Backend interface {
	Namespace
	Attributes
	Files
}

// Namespace is directories and names. In Create, perm already has the umask applied.
type Namespace interface {
	Lookup(ctx context.Context, cred *msg.Cred, parent id.Ino, name []byte) (*msg.Attr, error)
	// Create answers a Handle, open for writing, exactly if req.Open and err is nil.
	Create(ctx context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, Handle, error)
	Link(ctx context.Context, cred *msg.Cred, ino, parent id.Ino, name []byte) (*msg.Attr, error)
	Remove(ctx context.Context, cred *msg.Cred, parent id.Ino, name []byte, dir bool) error
	Rename(ctx context.Context, cred *msg.Cred, req *msg.Rename) error
	// ReadDir answers up to max entries that come after cookie (0: from the start), in the order of
	// their cookies, without "." and "..". Cookies are greater than zero, below 2^62, and stay valid
	// while entries come and go. Entries have attributes if plus.
	ReadDir(ctx context.Context, cred *msg.Cred, ino id.Ino, cookie uint64, max int, plus bool) (*msg.ReadDirReply, error)
	ReadLink(ctx context.Context, ino id.Ino) ([]byte, error)
}

// Attributes is what is known of an inode besides its data.
type Attributes interface {
	GetAttr(ctx context.Context, ino id.Ino) (*msg.Attr, error)
	// SetAttr also truncates and extends.
	SetAttr(ctx context.Context, cred *msg.Cred, req *msg.SetAttr) (*msg.Attr, error)
	GetXattr(ctx context.Context, cred *msg.Cred, ino id.Ino, name []byte) ([]byte, error)
	SetXattr(ctx context.Context, cred *msg.Cred, req *msg.SetXattr) error
	ListXattr(ctx context.Context, cred *msg.Cred, ino id.Ino) ([][]byte, error)
	RemoveXattr(ctx context.Context, cred *msg.Cred, ino id.Ino, name []byte) error
	Access(ctx context.Context, cred *msg.Cred, ino id.Ino, mask uint32) error
	StatFS(ctx context.Context) (*msg.StatFSReply, error)
}

// Files opens and locks files.
type Files interface {
	Open(ctx context.Context, cred *msg.Cred, ino id.Ino, write, trunc bool) (Handle, error)
	// Lock sets, clears or tests a lock. If req.Wait it blocks until the lock is granted or ctx is done,
	// in which case the lock is not held afterwards unless it was before.
	Lock(ctx context.Context, req *msg.Lock) (*msg.LockReply, error)
}

// Handle is one open file. All methods may be called at once; Release is called exactly once and last.
type Handle interface {
	// ReadAt fills p from off and answers fewer bytes only at the end of the file (0 past it).
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes p at off, or at the end of the file if appendMode, and answers the end of what it
	// wrote. n < len(p) only with an error.
	WriteAt(ctx context.Context, p []byte, off int64, appendMode bool) (n int, newOff int64, err error)
	Fsync(ctx context.Context, dataOnly bool) error
	// Flush is called for each close(2) of a descriptor of the file.
	Flush(ctx context.Context) error
	// Fallocate has the mode bits of fallocate(2).
	Fallocate(ctx context.Context, mode uint32, off, n int64) error
	// Seek finds data or a hole; whence is SEEK_DATA or SEEK_HOLE.
	Seek(ctx context.Context, off int64, whence int) (int64, error)
	Release(ctx context.Context) error
}

// WriteBehinder is a Handle that may take a write to be carried out later.
type WriteBehinder interface {
	// WritesBehind says whether it ever does; it is asked when the file is opened.
	WritesBehind() bool
	// WriteBehind reports whether it has taken the write. It is called only for descriptors that promise nothing about when bytes are where, and
	// does not block.
	WriteBehind(p []byte, off int64) bool
}

// Keeper is a Backend whose answers the kernel may keep for a while.
type Keeper interface {
	// Hold says for how long the kernel may keep an answer that is about to be written: a, as Lookup or GetAttr returned it, and, unless
	// parent is 0, that name in parent is a (or, with a nil, that there is none). What it says remains true until Unhold, which
	// is called with the same arguments.
	Hold(parent id.Ino, name []byte, a *msg.Attr) (entry, attr time.Duration)
	Unhold(parent id.Ino, a *msg.Attr)
}

// Notifier is what a Backend calls when something that the kernel may have cached was changed by someone
// else. The calls only queue and never block; see the package documentation.
type Notifier interface {
	// InvalidateInode makes the kernel drop the attributes of an inode and its cached pages in [off,
	// off+length); a length of 0 means to the end, an off below 0 means attributes only.
	InvalidateInode(ino id.Ino, off, length int64)
	// InvalidateEntry makes the kernel forget a name.
	InvalidateEntry(parent id.Ino, name []byte)
}

// NotifierSetter is a Backend that wants to call back. SetNotifier is called once, before any other method.
type NotifierSetter interface {
	SetNotifier(Notifier)
}
