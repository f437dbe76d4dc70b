package journal

// The format on disk, version 1. Integers are little endian. Nothing is aligned. CRC is CRC32C
// (Castagnoli). A directory holds
//
//	%020d.seg       a segment as it is appended to, named by its first index
//	%020d.sealed    a segment that is full and was compressed, named likewise
//	%020d.ckpt      a checkpoint, named by its index
//	%020d.*.tmp     one of them being made; removed when the journal is opened for writing
//
// Header of all three, 96 bytes:
//
//	offset size
//	     0    8  magic: "varveseg", "varvesld" (sealed) or "varveckp"
//	     8    4  version: 1
//	    12    4  flags: segment bit 0 = gap, the records just before the first are not in this journal;
//	             checkpoint bit 0 = foreign, it came from another server and the records are not here
//	    16   16  cluster UUID
//	    32    8  segment: index of its first record; checkpoint: index of the state
//	    40    8  Raft index of the record before (segment) or of the last applied (checkpoint)
//	    48    8  time of that record, nanoseconds since 1970
//	    56   16  chain hash of that record; zero for index 0
//	    72   20  reserved, zero
//	    92    4  CRC of bytes 0 to 91
//
// A segment is a header and records, each 56 bytes and its payload of n bytes:
//
//	offset size
//	     0    4  n, at most 16 MiB
//	     4    4  reserved, zero
//	     8    8  index: one more than the record before
//	    16    8  time, nanoseconds since 1970
//	    24    8  Raft index
//	    32    n  payload
//	  32+n    4  stable: how many bytes of this segment were known to be on stable media
//	  36+n   16  chain hash: the first 16 bytes of SHA-256(chain hash of the record before, bytes 0 to 31+n)
//	  52+n    4  CRC of bytes 0 to 51+n
//
// The chain hash leaves out what differs from server to server, so equal journals have equal hashes.
//
// A sealed segment is a header, blocks, a block table and a footer, without a byte between them. A
// block is one zstd frame (RFC 8878, without its own checksum). Decoded it is records, as many as begin in its
// first 128 KiB, each
//
//	    uvarint  n, at most 16 MiB
//	    varint   time, less that of the record before
//	    varint   Raft index, less that of the record before
//	    n bytes  payload
//
// where the record before the first one is in the block's line of the table. Varints are those of
// protobuf (varint: zigzag). Indexes follow one another. The CRC and the chain hash of a record are not there, since they cannot
// be compressed and would be half of the file: the CRCs of the block stand for the one, and the other is computed again
// from that of the record before the block. A line of the block table, 80 bytes:
//
//	     0    8  offset of the block in the file
//	     8    4  its length
//	    12    4  its length decoded
//	    16    4  CRC of the block
//	    20    4  CRC of the block decoded
//	    24   40  the record before its first: index, Raft index, time (8 bytes each), chain hash (16)
//	    64    8  the lowest time in it
//	    72    8  the highest time in it
//
// The footer, the last 128 bytes:
//
//	     0    8  magic: "varvefot"
//	     8    8  offset of the block table, which ends at the footer
//	    16    4  number of blocks, at least 1
//	    20    4  CRC of the block table
//	    24    4  CRC of the header (bytes 92 to 95 of the file)
//	    28    4  reserved, zero
//	    32   40  the last record: index, Raft index, time (8 bytes each), chain hash (16)
//	    72    8  the lowest time in the segment
//	    80    8  the highest time in the segment
//	    88    8  length of the segment before it was sealed
//	    96   28  reserved, zero
//	   124    4  CRC of bytes 0 to 123
//
// So every byte of a sealed segment is under one CRC at least, and what is said twice (the positions in
// header, table, footer and the segment that follows; the times) must agree.
//
// A checkpoint is a header, a payload that only its writer understands, and a trailer of 40 bytes:
//
//	     0    8  length of the payload
//	     8   32  SHA-256 of header and payload
//
// Recovery. All kinds of file are made under a temporary name, synced, and renamed; then the directory
// is synced. A segment is synced before the next one is made. So only the records of the last segment
// can be torn. The first record there that does not decode ends the journal and the rest is cut off,
// unless a record after it says (in stable) that it had been on stable media: then it was damaged
// later, and that is corruption. A record that decodes but does not follow the one before is corruption
// as well, and so is a checkpoint that is not foreign above the last record. A foreign checkpoint above
// the last record is an interrupted Reset, which is completed. A checkpoint that does not decode is
// passed over for an older one.
//
// The last segment is never sealed. A segment is sealed into a new file, which is synced, decoded again
// and only then renamed; the old file is removed after the directory was synced. If both are there, the
// sealed one is read whole: if it is right the other is removed, else it is removed itself.
//
// Assumed of the disk: what package disk says.
//
// History: version 1, the first. Sealed segments came later and have their own magic: a directory
// without them is read as before, and who does not know them reports records that are missing.

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"

	"varve/internal/id"
)

// MaxPayload is the largest payload of a record, in bytes.
const MaxPayload = 16 << 20

const (
	version     = 1
	segMagic    = "varveseg"
	sealMagic   = "varvesld"
	ckptMagic   = "varveckp"
	footMagic   = "varvefot"
	headerSize  = 96
	recHeader   = 32
	recTrailer  = 24
	recOverhead = recHeader + recTrailer
	maxRecord   = MaxPayload + recOverhead
	ckptTrailer = 8 + sha256.Size
	blockEntry  = 80
	footerSize  = 128

	blockTarget = 128 << 10                    // a block is full when it has this many bytes decoded
	maxBlockRaw = blockTarget + maxRecord      // decoded
	maxBlock    = maxBlockRaw + maxBlockRaw/64 // compressed; zstd adds less where it gains nothing

	flagGap     = 1 // in a segment
	flagForeign = 1 // in a checkpoint

	segSuffix  = ".seg"
	sealSuffix = ".sealed"
	ckptSuffix = ".ckpt"
	tmpSuffix  = ".tmp"
)

var (
	// ErrCorrupt is wrapped by every error about bytes that are not what was written.
	ErrCorrupt = errors.New("corrupt journal")
	// ErrNotFound says that the journal does not hold what was asked for.
	ErrNotFound = errors.New("not in the journal")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the decoded header of a segment or checkpoint.
type header struct {
	flags   uint32
	cluster id.Cluster
	at      Position // segment: of the record before its first; checkpoint: of the state
}

// appendHeader appends the 96 bytes of h to b.
func appendHeader(b []byte, magic string, h header) []byte {
	start := len(b)
	index := h.at.Index
	if magic != ckptMagic {
		index++
	}
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, h.flags)
	b = append(b, h.cluster[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(index))
	b = binary.LittleEndian.AppendUint64(b, h.at.Raft)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.at.Time))
	b = append(b, h.at.Chain[:]...)
	b = append(b, make([]byte, 20)...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// decodeHeader reads the first 96 bytes of a file; name is for errors.
func decodeHeader(name string, b []byte, magic string) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("%s: header: want %d bytes, got %d: %w", name, headerSize, len(b), ErrCorrupt)
	}
	b = b[:headerSize]
	if string(b[:8]) != magic {
		return header{}, fmt.Errorf("%s: offset 0: magic: want %q, got %q: %w", name, magic, b[:8], ErrCorrupt)
	}
	if want, got := crc32.Checksum(b[:92], castagnoli), binary.LittleEndian.Uint32(b[92:]); want != got {
		return header{}, fmt.Errorf("%s: offset 92: header crc: want %08x, got %08x: %w", name, want, got, ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return header{}, fmt.Errorf("%s: offset 8: version: want %d, got %d", name, version, v)
	}
	h := header{flags: binary.LittleEndian.Uint32(b[12:])}
	if h.flags > 1 {
		return header{}, fmt.Errorf("%s: offset 12: flags: want 0 or 1, got %#x: %w", name, h.flags, ErrCorrupt)
	}
	if !bytes.Equal(b[72:92], make([]byte, 20)) {
		return header{}, fmt.Errorf("%s: offset 72: reserved: want zeros, got %x: %w", name, b[72:92], ErrCorrupt)
	}
	copy(h.cluster[:], b[16:])
	h.at.Index = id.Index(binary.LittleEndian.Uint64(b[32:]))
	h.at.Raft = binary.LittleEndian.Uint64(b[40:])
	h.at.Time = int64(binary.LittleEndian.Uint64(b[48:]))
	copy(h.at.Chain[:], b[56:])
	if magic != ckptMagic {
		if h.at.Index == 0 {
			return header{}, fmt.Errorf("%s: offset 32: first index: want 1 or more, got 0: %w", name, ErrCorrupt)
		}
		h.at.Index--
	}
	return h, nil
}

// chainer computes chain hashes without allocating.
type chainer struct {
	h    hash.Hash
	prev [16]byte
	sum  [sha256.Size]byte
}

func newChainer() *chainer { return &chainer{h: sha256.New()} }

// next returns the hash of a record whose header and payload are body and whose predecessor has prev.
func (c *chainer) next(prev [16]byte, body []byte) [16]byte {
	c.prev = prev
	c.h.Reset()
	c.h.Write(c.prev[:])
	c.h.Write(body)
	c.h.Sum(c.sum[:0])
	return [16]byte(c.sum[:16])
}

// recordSize is the number of bytes that r takes in a segment.
func recordSize(r *Record) int64 { return recOverhead + int64(len(r.Payload)) }

// appendBody appends the part of a record that the chain hash covers.
func appendBody(b []byte, r *Record) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Payload)))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Index))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Time))
	b = binary.LittleEndian.AppendUint64(b, r.Raft)
	return append(b, r.Payload...)
}

// appendTrailer completes the record that begins at b[start:].
func appendTrailer(b []byte, start int, stable uint32, chain [16]byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, stable)
	b = append(b, chain[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// frameSize reads the size of a record from its header, of which b holds at least the first 8 bytes.
func frameSize(name string, off int64, b []byte) (int, error) {
	n := binary.LittleEndian.Uint32(b)
	if n > MaxPayload {
		return 0, fmt.Errorf("%s: offset %d: payload length: want at most %d, got %d: %w", name, off, MaxPayload, n, ErrCorrupt)
	}
	if z := binary.LittleEndian.Uint32(b[4:]); z != 0 {
		return 0, fmt.Errorf("%s: offset %d: reserved: want 0, got %#x: %w", name, off+4, z, ErrCorrupt)
	}
	return int(n) + recOverhead, nil
}

// checkFrame checks the CRC of a whole record.
func checkFrame(name string, off int64, raw []byte) error {
	end := len(raw) - 4
	if want, got := crc32.Checksum(raw[:end], castagnoli), binary.LittleEndian.Uint32(raw[end:]); want != got {
		return fmt.Errorf("%s: offset %d: record crc: want %08x, got %08x: %w", name, off, want, got, ErrCorrupt)
	}
	return nil
}

// The fields of a checked record.
func frameIndex(raw []byte) id.Index { return id.Index(binary.LittleEndian.Uint64(raw[8:])) }
func frameTime(raw []byte) int64     { return int64(binary.LittleEndian.Uint64(raw[16:])) }
func frameRaft(raw []byte) uint64    { return binary.LittleEndian.Uint64(raw[24:]) }
func frameBody(raw []byte) []byte    { return raw[:len(raw)-recTrailer] }
func frameStable(raw []byte) int64 {
	return int64(binary.LittleEndian.Uint32(raw[len(raw)-recTrailer:]))
}
func frameChain(raw []byte) [16]byte { return [16]byte(raw[len(raw)-20:]) }

func frameRecord(raw []byte) Record {
	return Record{Index: frameIndex(raw), Time: frameTime(raw), Raft: frameRaft(raw), Payload: frameBody(raw)[recHeader:]}
}

func framePosition(raw []byte) Position {
	return Position{Index: frameIndex(raw), Raft: frameRaft(raw), Chain: frameChain(raw), Time: frameTime(raw)}
}
