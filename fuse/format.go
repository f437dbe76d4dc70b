package fuse

// The FUSE protocol, from the kernel's include/uapi/linux/fuse.h, version 7.45. All integers have the
// byte order of the machine (little endian on every platform varve supports).
//
//	request:  in header (40 bytes), the fixed arguments of the operation, names and data
//	  0 len u32 | 4 opcode u32 | 8 unique u64 | 16 inode u64 | 24 uid u32 | 28 gid u32 | 32 pid u32
//	  36 extension length u16, in units of 8 bytes, at the end of the request | 38 padding u16
//	reply:    out header (16 bytes), then the fixed results and data
//	  0 len u32 | 4 error i32, 0 or a negative errno | 8 unique u64
//	notification: an out header with unique 0 and the notification's code as error
//
// Names end with a zero byte. Lengths come from the kernel, and are checked all the same.
const (
	protoMajor    = 7
	protoMinor    = 45 // the newest whose structures this package knows
	protoMinMinor = 31 // Linux 5.4; older kernels are refused

	inHeaderSize  = 40
	outHeaderSize = 16

	// maxWrite is the largest READ or WRITE in bytes; maxPages is the same in pages.
	maxWrite = 1 << 20
	maxPages = maxWrite / pageSize
	pageSize = 4096
)

// opcode says what a request asks for.
type opcode uint32

const (
	opLookup        opcode = 1
	opForget        opcode = 2
	opGetattr       opcode = 3
	opSetattr       opcode = 4
	opReadlink      opcode = 5
	opSymlink       opcode = 6
	opMknod         opcode = 8
	opMkdir         opcode = 9
	opUnlink        opcode = 10
	opRmdir         opcode = 11
	opRename        opcode = 12
	opLink          opcode = 13
	opOpen          opcode = 14
	opRead          opcode = 15
	opWrite         opcode = 16
	opStatfs        opcode = 17
	opRelease       opcode = 18
	opFsync         opcode = 20
	opSetxattr      opcode = 21
	opGetxattr      opcode = 22
	opListxattr     opcode = 23
	opRemovexattr   opcode = 24
	opFlush         opcode = 25
	opInit          opcode = 26
	opOpendir       opcode = 27
	opReaddir       opcode = 28
	opReleasedir    opcode = 29
	opFsyncdir      opcode = 30
	opGetlk         opcode = 31
	opSetlk         opcode = 32
	opSetlkw        opcode = 33
	opAccess        opcode = 34
	opCreate        opcode = 35
	opInterrupt     opcode = 36
	opBmap          opcode = 37
	opDestroy       opcode = 38
	opIoctl         opcode = 39
	opPoll          opcode = 40
	opNotifyReply   opcode = 41
	opBatchForget   opcode = 42
	opFallocate     opcode = 43
	opReaddirplus   opcode = 44
	opRename2       opcode = 45
	opLseek         opcode = 46
	opCopyFileRange opcode = 47
	opSyncfs        opcode = 50
	opTmpfile       opcode = 51
	opStatx         opcode = 52
	opCopyFileRng64 opcode = 53

	opLimit = 64 // every opcode of the kernel is below; statistics are kept in an array of this length
)

// opInfo is what the parser must know of an operation: its name, the size of its fixed arguments, and
// whether it changes the filesystem (and is refused on a read-only mount).
type opInfo struct {
	name    string
	fixed   int
	changes bool
}

var ops = [opLimit]opInfo{
	opLookup: {name: "LOOKUP"}, opForget: {name: "FORGET", fixed: 8}, opGetattr: {name: "GETATTR", fixed: 16},
	opSetattr: {name: "SETATTR", fixed: 88, changes: true}, opReadlink: {name: "READLINK"},
	opSymlink: {name: "SYMLINK", changes: true}, opMknod: {name: "MKNOD", fixed: 16, changes: true},
	opMkdir: {name: "MKDIR", fixed: 8, changes: true}, opUnlink: {name: "UNLINK", changes: true},
	opRmdir: {name: "RMDIR", changes: true}, opRename: {name: "RENAME", fixed: 8, changes: true},
	opLink: {name: "LINK", fixed: 8, changes: true}, opOpen: {name: "OPEN", fixed: 8}, opRead: {name: "READ", fixed: 40},
	opWrite: {name: "WRITE", fixed: 40, changes: true}, opStatfs: {name: "STATFS"}, opRelease: {name: "RELEASE", fixed: 24},
	opFsync: {name: "FSYNC", fixed: 16}, opSetxattr: {name: "SETXATTR", fixed: 16, changes: true},
	opGetxattr: {name: "GETXATTR", fixed: 8}, opListxattr: {name: "LISTXATTR", fixed: 8},
	opRemovexattr: {name: "REMOVEXATTR", changes: true}, opFlush: {name: "FLUSH", fixed: 24}, opInit: {name: "INIT", fixed: 16},
	opOpendir: {name: "OPENDIR", fixed: 8}, opReaddir: {name: "READDIR", fixed: 40}, opReleasedir: {name: "RELEASEDIR", fixed: 24},
	opFsyncdir: {name: "FSYNCDIR", fixed: 16}, opGetlk: {name: "GETLK", fixed: 48}, opSetlk: {name: "SETLK", fixed: 48},
	opSetlkw: {name: "SETLKW", fixed: 48}, opAccess: {name: "ACCESS", fixed: 8}, opCreate: {name: "CREATE", fixed: 16, changes: true},
	opInterrupt: {name: "INTERRUPT", fixed: 8}, opBmap: {name: "BMAP", fixed: 16}, opDestroy: {name: "DESTROY"},
	opIoctl: {name: "IOCTL", fixed: 32}, opPoll: {name: "POLL", fixed: 24}, opNotifyReply: {name: "NOTIFY_REPLY", fixed: 40},
	opBatchForget: {name: "BATCH_FORGET", fixed: 8}, opFallocate: {name: "FALLOCATE", fixed: 32, changes: true},
	opReaddirplus: {name: "READDIRPLUS", fixed: 40}, opRename2: {name: "RENAME2", fixed: 16, changes: true},
	opLseek: {name: "LSEEK", fixed: 24}, opCopyFileRange: {name: "COPY_FILE_RANGE", fixed: 56}, opSyncfs: {name: "SYNCFS", fixed: 8},
	opTmpfile: {name: "TMPFILE", fixed: 16}, opStatx: {name: "STATX", fixed: 24}, opCopyFileRng64: {name: "COPY_FILE_RANGE_64", fixed: 56},
}

func (o opcode) String() string {
	if o < opLimit && ops[o].name != "" {
		return ops[o].name
	}
	return "UNKNOWN"
}

// Flags of INIT. The upper half travels in a word of its own, if initExt is set.
const (
	initAsyncRead         uint64 = 1 << 0
	initPosixLocks        uint64 = 1 << 1
	initAtomicTrunc       uint64 = 1 << 3
	initBigWrites         uint64 = 1 << 5
	initFlockLocks        uint64 = 1 << 10
	initAsyncDIO          uint64 = 1 << 15
	initParallelDirops    uint64 = 1 << 18
	initMaxPages          uint64 = 1 << 22
	initHandleKillprivV2  uint64 = 1 << 28
	initSetxattrExt       uint64 = 1 << 29
	initExt               uint64 = 1 << 30
	initHasExpireOnly     uint64 = 1 << 35
	initDirectIOAllowMmap uint64 = 1 << 36

	// initWanted is what is asked of the kernel; it gets what both sides have.
	initWanted = initAsyncRead | initPosixLocks | initAtomicTrunc | initBigWrites | initFlockLocks |
		initAsyncDIO | initParallelDirops | initMaxPages |
		initHandleKillprivV2 | initSetxattrExt | initExt | initHasExpireOnly | initDirectIOAllowMmap
)

// Bits of setattrIn.valid.
const (
	fattrMode       = 1 << 0
	fattrUID        = 1 << 1
	fattrGID        = 1 << 2
	fattrSize       = 1 << 3
	fattrAtime      = 1 << 4
	fattrMtime      = 1 << 5
	fattrFH         = 1 << 6
	fattrAtimeNow   = 1 << 7
	fattrMtimeNow   = 1 << 8
	fattrKillSuidgd = 1 << 11
)

// Other flag bits, each named after the structure it is in.
const (
	fopenDirectIO             = 1 << 0
	fopenParallelDirectWrites = 1 << 6

	openKillSuidgid     = 1 << 0
	writeCache          = 1 << 0 // from the page cache: offsets are exact, the handle is guessed
	writeKillSuidgid    = 1 << 2
	releaseFlockUnlock  = 1 << 1
	fsyncDataOnly       = 1 << 0
	lkFlock             = 1 << 0
	renameNoReplace     = 1 << 0
	renameExchange      = 1 << 1
	xattrCreate         = 1
	xattrReplace        = 2
	interruptUniqueFlag = 1 // set in the unique of an INTERRUPT, which is else that of its request
)

// Notification codes.
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
	notifyIncEpoch   = 8 // from 7.44, Linux 6.16: no name that was looked up before is valid
)

// Sizes of replies.
const (
	attrSize     = 88
	attrOutSize  = 16 + attrSize
	entryOutSize = 40 + attrSize
	openOutSize  = 16
	initOutSize  = 64
	statfsSize   = 80
	statxSize    = 256
	statxOutSize = 32 + statxSize
	direntSize   = 24 // before the name
)
