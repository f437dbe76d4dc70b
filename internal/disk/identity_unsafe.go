package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of ioctl(2), see include/uapi/linux/fs.h, fs/ext4/ext4.h (include/uapi/linux/ext4.h) and fs/xfs/libxfs/xfs_fs.h.
const (
	fsGetUUID     = 0x80111500 // FS_IOC_GETFSUUID, _IOR(0x15, 0, struct fsuuid2), Linux 6.9
	ext4GetUUID   = 0x8008662c // EXT4_IOC_GETFSUUID, _IOR('f', 44, struct fsuuid), Linux 6.0
	xfsGeometryV1 = 0x80705864 // XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, struct xfs_fsop_geom_v1)
)

// filesystemUUID asks the filesystem of an open file for its UUID, each way that there is. Zero: none answers.
func filesystemUUID(fd int) (uuid [16]byte) {
	var any struct {
		n    uint8
		uuid [16]byte
		_    [15]byte
	}
	if ioctl(fd, fsGetUUID, unsafe.Pointer(&any)) && any.n == 16 {
		return any.uuid
	}
	// The two have a type of their own: the numbers mean other things elsewhere.
	var sfs unix.Statfs_t
	if unix.Fstatfs(fd, &sfs) != nil {
		return uuid
	}
	switch sfs.Type {
	case unix.EXT4_SUPER_MAGIC:
		ext4 := struct {
			n, flags uint32
			uuid     [16]byte
		}{n: 16}
		if ioctl(fd, ext4GetUUID, unsafe.Pointer(&ext4)) {
			return ext4.uuid
		}
	case unix.XFS_SUPER_MAGIC:
		var xfs struct {
			_    [64]byte
			uuid [16]byte
			_    [32]byte
		}
		if ioctl(fd, xfsGeometryV1, unsafe.Pointer(&xfs)) {
			return xfs.uuid
		}
	}
	return uuid
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno == 0
}
