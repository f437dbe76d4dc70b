package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Identity tells one directory from its copies, and from the empty directory that is there when its filesystem is not mounted. It
// survives restarts of the machine, unlike a device number.
type Identity struct {
	UUID  [16]byte // of the filesystem; zero: it has none, or does not tell
	Inode uint64   // of the directory; zero: the filesystem may give it another one when it is mounted again
	Mount bool     // the directory is the root of a mounted filesystem
	Type  string   // of the filesystem: "ext4", "xfs", ..., or its magic number
}

// Identifier is an FS that knows the identity of a directory.
type Identifier interface {
	Identify(path string) (Identity, error)
}

var _ Identifier = OS{}
var _ Identifier = (*Faulty)(nil)

// Identify returns the identity of a directory; of an FS that is no Identifier the zero value.
func Identify(fsys FS, path string) (Identity, error) {
	if i, ok := fsys.(Identifier); ok {
		return i.Identify(path)
	}
	return Identity{}, nil
}

// Allocated returns the bytes that a file takes up on the disk, as its filesystem accounts for them. ok is false if fi, which came from
// FS.Stat, does not say.
func Allocated(fi fs.FileInfo) (bytes int64, ok bool) {
	switch st := fi.Sys().(type) {
	case *syscall.Stat_t:
		return st.Blocks * 512, true
	case faultySys:
		return st.allocated, true
	}
	return 0, false
}

// Medium reports whether err comes from the disk itself, or from a filesystem that has found itself damaged, and not from
// a shortage, a wrong argument or a process that ends.
func Medium(err error) bool {
	for _, e := range [...]error{unix.EIO, unix.EROFS, unix.EUCLEAN, unix.EBADMSG, unix.ENODATA, unix.ENXIO, unix.ENODEV, unix.EREMOTEIO, unix.EILSEQ,
		unix.ETIMEDOUT, unix.ENOMEDIUM, unix.ESHUTDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

var magics = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.F2FS_SUPER_MAGIC: "f2fs", unix.FUSE_SUPER_MAGIC: "fuse",
}

// Identify implements Identifier.
func (OS) Identify(path string) (Identity, error) {
	d, err := os.Open(path)
	if err != nil {
		return Identity{}, err
	}
	defer d.Close()
	fd := int(d.Fd())
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return Identity{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	id := Identity{Inode: st.Ino, Type: magics[sfs.Type], UUID: filesystemUUID(fd)}
	switch id.Type {
	case "ext4", "xfs", "btrfs", "f2fs":
	default:
		id.Inode = 0
	}
	if id.Type == "" {
		id.Type = fmt.Sprintf("%#x", sfs.Type)
	}
	id.Mount, err = mountRoot(fd, path, &st)
	return id, err
}

// mountRoot reports whether the directory is the root of a mount. Before Linux 5.8 only if its parent is on another device.
func mountRoot(fd int, path string, st *unix.Stat_t) (bool, error) {
	var x unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO, &x)
	if err == nil && x.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	var up unix.Stat_t
	if err := unix.Stat(filepath.Dir(abs), &up); err != nil {
		return false, &os.PathError{Op: "stat", Path: filepath.Dir(abs), Err: err}
	}
	return up.Dev != st.Dev || up.Ino == st.Ino, nil
}

// SetIdentity sets what Identify answers for every directory. The zero value is a disk that does not say.
func (d *Faulty) SetIdentity(id Identity) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.identity = id
}

// Identify implements Identifier.
func (d *Faulty) Identify(path string) (Identity, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpRead, path, 0, 0); err != nil {
		return Identity{}, err
	}
	return d.identity, nil
}

// faultySys is what Sys returns for a file of a Faulty disk.
type faultySys struct{ allocated int64 }
