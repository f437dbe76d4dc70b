// Package chunk is the arithmetic of file layouts and the checksums of blocks: which chunk and block
// an offset of a file falls into, and what the checksum of a block is. It is pure.
//
// A file is cut into chunks of Size bytes, a chunk into blocks of BlockSize bytes. Every block that
// was ever written has a checksum (Sum); Hole stands for a block that was never written or was
// punched, which reads as zeros.
package chunk

import (
	"bytes"
	"hash/crc32"
)

const (
	// BlockSize is the unit of checksums and of disk writes, in bytes.
	BlockSize = 4096
	// Size is the length of a chunk in bytes. Part of the on-disk and wire formats.
	Size = 64 << 20
	// Blocks is the number of blocks in a chunk.
	Blocks = Size / BlockSize
	// ExtentSize is the unit of the activity log in bytes.
	ExtentSize = 4 << 20
	// Extents is the number of activity-log extents in a chunk.
	Extents = Size / ExtentSize
	// MaxFileSize is the largest file, in bytes: 2^18 TiB would fit the index, the limit keeps
	// offsets well inside a signed 64-bit integer.
	MaxFileSize = 1 << 50
)

// Hole is the checksum of a block that was never written or was punched: it reads as zeros.
const Hole uint32 = 0

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the checksum of b: CRC32C, with 1 in place of 0, since 0 means Hole.
func Sum(b []byte) uint32 {
	if s := crc32.Checksum(b, castagnoli); s != Hole {
		return s
	}
	return 1
}

// Piece is the part of a byte range of a file that falls into one chunk.
type Piece struct {
	Index  uint32 // which chunk of the file
	Offset uint32 // first byte inside the chunk
	Length uint32 // bytes
}

// First returns the piece of [off, off+n) that falls into its first chunk. n must be positive.
func First(off int64, n int) Piece {
	in := off % Size
	return Piece{
		Index:  uint32(off / Size),
		Offset: uint32(in),
		Length: uint32(min(int64(n), Size-in)),
	}
}

// Span returns the blocks that [off, off+n) touches, as first block and number of blocks.
func Span(off, n uint32) (first, count uint32) {
	if n == 0 {
		return off / BlockSize, 0
	}
	first = off / BlockSize
	return first, (off+n-1)/BlockSize - first + 1
}

// Aligned reports whether [off, off+n) covers whole blocks only.
func Aligned(off, n uint32) bool { return off%BlockSize == 0 && n%BlockSize == 0 }

// AppendSums appends to dst the checksum of each part of p that falls into one block, where p starts
// at byte off of the chunk. Its inverse is VerifySums.
func AppendSums(dst []uint32, off uint32, p []byte) []uint32 {
	for len(p) > 0 {
		n := min(len(p), int(BlockSize-off%BlockSize))
		dst = append(dst, Sum(p[:n]))
		p = p[n:]
		off += uint32(n)
	}
	return dst
}

// VerifySums compares p with sums as AppendSums makes them and returns the index of the first part
// that differs, or -1. A part whose sum is Hole must be all zeros.
func VerifySums(sums []uint32, off uint32, p []byte) int {
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), int(BlockSize-off%BlockSize))
		if i >= len(sums) {
			return i
		}
		if sums[i] == Hole {
			if !IsZero(p[:n]) {
				return i
			}
		} else if Sum(p[:n]) != sums[i] {
			return i
		}
		p = p[n:]
		off += uint32(n)
	}
	return -1
}

var zeros [BlockSize]byte

// IsZero reports whether every byte of b is zero.
func IsZero(b []byte) bool {
	for len(b) > BlockSize {
		if !bytes.Equal(b[:BlockSize], zeros[:]) {
			return false
		}
		b = b[BlockSize:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
