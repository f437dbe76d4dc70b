package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/id"
)

// Segment format, version 1. Little-endian. A segment is a file named after its sequence number, as 20 digits and ".rlog". It is
// made in full size, filled with zeros and on stable media before its first record is written, so that a sync of records
// changes nothing but data. It is a header and records, back to back, then zeros.
//
//	offset size  header
//	 0     4     magic "VRVL"
//	 4     4     version
//	 8    16     UUID of the cluster
//	24     8     sequence number: one more than the segment's before
//	32     8     size of the file
//	40    20     reserved, zero
//	60     4     CRC32C of bytes 0 to 59
//
//	offset size  record
//	 0     4     length: of the record without its padding, at least 48; zero where no record follows in this segment
//	 4     4     CRC32C of bytes 8 to the length
//	 8     8     index: of the entry; of the last entry kept (cut); of the last entry dropped (drop)
//	16     8     term
//	24     8     when the leader appended it, in nanoseconds since 1970, or zero
//	32     4     stable: the offset in this file up to which all was on stable media when the record was written
//	36     4     length of the extensions
//	40     1     kind: raft.LogType of an entry (0 to 5), 128 = cut: entries above the index are gone, 129 = drop: entries up to
//	             the index are gone
//	41     7     reserved, zero
//	48     -     extensions, data, zeros up to a multiple of 8
//
// The index of an entry is one more than that of the entry before it; any, if the log is empty. The first record of a segment is
// written when everything in the segments before is on stable media.
//
// Recovery reads all segments. In the last one that has records, a record that is not whole is where a crash tore the write: what
// follows is overwritten with zeros, since it was never acknowledged. But if a whole record behind it says that this place was on stable
// media, or if a later segment has records, it is damage, and the log is refused. Files that end in ".tmp" are removed.
//
// Assumed of the disk: as package disk says. Versions: 1, first.
const (
	version      = 1
	segmentMagic = "VRVL"
	headerSize   = 64
	recordHeader = 48
	align        = 8

	kindCut  = 128
	kindDrop = 129

	segmentSuffix = ".rlog"
	tmpSuffix     = ".tmp"
)

// ErrCorrupt is wrapped by errors about files that do not hold what was written.
var ErrCorrupt = errors.New("raft log is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func segmentName(seq uint64) string { return fmt.Sprintf("%020d%s", seq, segmentSuffix) }

func appendHeader(b []byte, cluster id.Cluster, seq uint64, size int64) []byte {
	start, le := len(b), binary.LittleEndian
	b = append(b, segmentMagic...)
	b = le.AppendUint32(b, version)
	b = append(b, cluster[:]...)
	b = le.AppendUint64(b, seq)
	b = le.AppendUint64(b, uint64(size))
	b = append(b, make([]byte, 20)...)
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// checkHeader compares the header of a segment, whose whole content is b, with what it must be.
func checkHeader(name string, b []byte, cluster id.Cluster, seq uint64) error {
	if len(b) < headerSize || string(b[:4]) != segmentMagic || binary.LittleEndian.Uint32(b[4:]) != version {
		return fmt.Errorf("%s: offset 0: want a header %q of version %d: %w", name, segmentMagic, version, ErrCorrupt)
	}
	want := appendHeader(nil, cluster, seq, int64(len(b)))
	if !bytes.Equal(b[:headerSize], want) {
		return fmt.Errorf("%s: header %x, want %x: %w", name, b[:headerSize], want, ErrCorrupt)
	}
	return nil
}

// record is a decoded record. Its data is a part of what it was decoded from.
type record struct {
	kind   byte
	stable uint32
	log    raft.Log
}

// zeroBytes are compared at once, since a segment that is new holds little else.
var zeroBytes [4096]byte

func padded(n int) int { return (n + align - 1) &^ (align - 1) }

func recordSize(l *raft.Log) int { return padded(recordHeader + len(l.Extensions) + len(l.Data)) }

// appendRecord appends the record of l, of a kind that need not be the entry's.
func appendRecord(b []byte, kind byte, stable uint32, l *raft.Log) []byte {
	start, le := len(b), binary.LittleEndian
	n := recordHeader + len(l.Extensions) + len(l.Data)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = le.AppendUint32(b, uint32(n))
	b = append(b, 0, 0, 0, 0)
	b = le.AppendUint64(b, l.Index)
	b = le.AppendUint64(b, l.Term)
	b = le.AppendUint64(b, uint64(at))
	b = le.AppendUint32(b, stable)
	b = le.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, kind, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, l.Extensions...)
	b = append(b, l.Data...)
	le.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli))
	for len(b)%align != start%align {
		b = append(b, 0)
	}
	return b
}

// decodeRecord decodes the record that b begins with, and says how long it is with its padding. At zeros, which end a segment, ok is
// false without an error.
func decodeRecord(b []byte) (r record, size int, ok bool, err error) {
	le := binary.LittleEndian
	if len(b) < recordHeader {
		return r, 0, false, zeros(b)
	}
	n := int(le.Uint32(b))
	if n == 0 {
		return r, 0, false, zeros(b[:recordHeader])
	}
	if n < recordHeader || padded(n) > len(b) {
		return r, 0, false, fmt.Errorf("record of %d bytes, want %d to %d: %w", n, recordHeader, len(b), ErrCorrupt)
	}
	if want, got := le.Uint32(b[4:]), crc32.Checksum(b[8:n], castagnoli); want != got {
		return r, 0, false, fmt.Errorf("record checksum %08x, want %08x: %w", got, want, ErrCorrupt)
	}
	if err := errors.Join(zeros(b[41:recordHeader]), zeros(b[n:padded(n)])); err != nil {
		return r, 0, false, err
	}
	ext := int(le.Uint32(b[36:]))
	if ext > n-recordHeader {
		return r, 0, false, fmt.Errorf("extensions of %d bytes in a record of %d: %w", ext, n, ErrCorrupt)
	}
	r.kind, r.stable = b[40], le.Uint32(b[32:])
	if r.kind > byte(raft.LogConfiguration) && r.kind != kindCut && r.kind != kindDrop {
		return r, 0, false, fmt.Errorf("record of unknown kind %d: %w", r.kind, ErrCorrupt)
	}
	r.log = raft.Log{Index: le.Uint64(b[8:]), Term: le.Uint64(b[16:]), Type: raft.LogType(r.kind)}
	if at := int64(le.Uint64(b[24:])); at != 0 {
		r.log.AppendedAt = time.Unix(0, at)
	}
	if ext > 0 {
		r.log.Extensions = b[recordHeader : recordHeader+ext : recordHeader+ext]
	}
	if n > recordHeader+ext {
		r.log.Data = b[recordHeader+ext : n : n]
	}
	return r, padded(n), true, nil
}

func zeros(b []byte) error {
	for len(b) >= len(zeroBytes) && bytes.Equal(b[:len(zeroBytes)], zeroBytes[:]) {
		b = b[len(zeroBytes):]
	}
	for _, c := range b {
		if c != 0 {
			return fmt.Errorf("byte %#x where zeros belong: %w", c, ErrCorrupt)
		}
	}
	return nil
}
