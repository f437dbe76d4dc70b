package capture

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// The file of a capture is a header and blocks, one after the other. All numbers are little endian.
//
//	header, 64 bytes
//	   0  8  magic "varvCAPT"
//	   8  2  version of the format
//	  10  2  size of a record in bytes
//	  12  4  flags: bit 0: how long operations took is not known, only when they began
//	  16  8  start of the capture, nanoseconds since 1970
//	  24 36  zero
//	  60  4  CRC32C of the 60 bytes before
//
//	block, 32 bytes and what it holds
//	   0  4  magic "vBLK"
//	   4  1  kind: 1 records, 2 files, 3 end
//	   5  1  compression: 0 none, 1 zstd
//	   6  2  zero
//	   8  4  number of entries
//	  12  4  length of what it holds, decompressed, at most 1 MiB
//	  16  4  length as it is stored, at most that
//	  20  4  number of the block, from 0
//	  24  4  CRC32C of what is stored
//	  28  4  CRC32C of the 28 bytes before
//
//	record, 64 bytes
//	   0  1  kind (Kind)
//	   1  1  zero
//	   2  2  errno, 0 if it was done
//	   4  4  process that asked
//	   8  8  begin, nanoseconds since the start of the capture
//	  16  8  how long it took, nanoseconds
//	  24  8  inode
//	  32  8  handle (one open), 0 if it has none
//	  40  8  offset; the new size of a truncate
//	  48  8  bytes asked for
//	  56  4  bytes done
//	  60  4  argument: flags of an open, mode of a fallocate, 1 for an fsync of data alone
//
//	file: 8 inode, 8 size when it was first seen, 2 length of the path, the path below the mount
//
//	end, 32 bytes
//	   0  8  records in the file
//	   8  8  records that were dropped because they were not taken in time
//	  16  8  records left out, by --path or because their file has no name any more
//	  24  8  how long the capture was, nanoseconds
//
// Records are in the order in which operations ended, and that only roughly. The entry of a file comes before or after its records; of two for
// one inode the first counts.
//
// What the checksums cover: the header itself, each block's header, and what a block holds. Recovery: reading ends at the first block whose header is not
// sound, which is what a killed writer or a full disk leaves; a block with a sound header and other contents is damage, is reported and passed over. A
// file without an end is one whose capture was cut off: all its blocks count. Nothing is assumed of the disk: the file is not synced before it is closed.
//
// Versions: 1, the first. A later one may only make records longer, or add kinds of blocks, which readers of version 1 pass over; anything else
// gets another magic.
const (
	fileMagic   = "varvCAPT"
	fileVersion = 1
	headerSize  = 64
	blockSize   = 32 // of a block's header
	blockMagic  = 0x4b4c4276
	endSize     = 32
	fileEntry   = 18 // before the path

	flagUntimed = 1 << 0

	maxBlock  = 1 << 20
	maxRecord = 1024 // bytes, of later versions
	maxPath   = 4096
)

// Kinds of blocks.
const (
	blockRecords = 1
	blockFiles   = 2
	blockEnd     = 3
)

const (
	plain      = 0
	compressed = 1
)

// RecordSize is the size of a record in memory of a capture and in its file.
const RecordSize = 64

// ErrCorrupt is what a reader says of bytes that no writer made.
var ErrCorrupt = errors.New("corrupt capture")

// ErrNotCapture is what a reader says of a file of another format.
var ErrNotCapture = errors.New("not a capture")

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
