package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/zstd"

	"varve/internal/id"
)

// block is a line of a sealed segment's table: a run of records that is compressed as one.
type block struct {
	off    int64    // in the file
	size   int      // compressed
	raw    int      // as decoded
	crc    uint32   // of the compressed bytes
	rawCRC uint32   // of the decoded bytes
	at     Position // before its first record
	times  span
}

// span is the range of the times of some records.
type span struct{ low, high int64 }

// add widens s by t; first says that there is nothing in it yet.
func (s *span) add(t int64, first bool) {
	if first {
		s.low, s.high = t, t
		return
	}
	s.low, s.high = min(s.low, t), max(s.high, t)
}

// footer is the end of a sealed segment.
type footer struct {
	table    int64 // where the block table begins
	blocks   int
	tableCRC uint32
	headCRC  uint32 // the header's own
	last     Position
	times    span
	open     int64 // bytes of the segment before it was sealed
}

func appendBlock(b []byte, x *block) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(x.off))
	b = le.AppendUint32(b, uint32(x.size))
	b = le.AppendUint32(b, uint32(x.raw))
	b = le.AppendUint32(b, x.crc)
	b = le.AppendUint32(b, x.rawCRC)
	b = appendPosition(b, x.at)
	return appendSpan(b, x.times)
}

func appendPosition(b []byte, p Position) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(p.Index))
	b = le.AppendUint64(b, p.Raft)
	b = le.AppendUint64(b, uint64(p.Time))
	return append(b, p.Chain[:]...)
}

func decodePosition(b []byte) Position {
	le := binary.LittleEndian
	return Position{Index: id.Index(le.Uint64(b)), Raft: le.Uint64(b[8:]), Time: int64(le.Uint64(b[16:])), Chain: [16]byte(b[24:40])}
}

func appendSpan(b []byte, s span) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(s.low))
	return binary.LittleEndian.AppendUint64(b, uint64(s.high))
}

func decodeSpan(b []byte) span {
	return span{int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:]))}
}

func appendFooter(b []byte, f *footer) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = append(b, footMagic...)
	b = le.AppendUint64(b, uint64(f.table))
	b = le.AppendUint32(b, uint32(f.blocks))
	b = le.AppendUint32(b, f.tableCRC)
	b = le.AppendUint32(b, f.headCRC)
	b = append(b, 0, 0, 0, 0)
	b = appendPosition(b, f.last)
	b = appendSpan(b, f.times)
	b = le.AppendUint64(b, uint64(f.open))
	b = append(b, make([]byte, 28)...)
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// decodeFooter reads the last footerSize bytes b of a sealed segment of size bytes whose header is h.
func decodeFooter(name string, b []byte, size int64, h header) (*footer, error) {
	off := size - footerSize
	bad := func(at int64, what string, want, got any) error {
		return fmt.Errorf("%s: offset %d: footer: %s: want %v, got %v: %w", name, off+at, what, want, got, ErrCorrupt)
	}
	if len(b) != footerSize || off < headerSize {
		return nil, fmt.Errorf("%s: size: want at least %d bytes, got %d: %w", name, headerSize+footerSize, size, ErrCorrupt)
	}
	le := binary.LittleEndian
	if string(b[:8]) != footMagic {
		return nil, bad(0, "magic", footMagic, fmt.Sprintf("%q", b[:8]))
	}
	if want, got := crc32.Checksum(b[:footerSize-4], castagnoli), le.Uint32(b[footerSize-4:]); want != got {
		return nil, bad(footerSize-4, "crc", want, got)
	}
	f := &footer{
		table: int64(le.Uint64(b[8:])), blocks: int(le.Uint32(b[16:])), tableCRC: le.Uint32(b[20:]), headCRC: le.Uint32(b[24:]),
		last: decodePosition(b[32:]), times: decodeSpan(b[72:]), open: int64(le.Uint64(b[88:])),
	}
	if !bytes.Equal(b[28:32], make([]byte, 4)) || !bytes.Equal(b[96:124], make([]byte, 28)) {
		return nil, bad(28, "reserved", "zeros", "others")
	}
	head := appendHeader(nil, sealMagic, h)
	if got := le.Uint32(head[headerSize-4:]); got != f.headCRC {
		return nil, bad(24, "crc of the header", f.headCRC, got)
	}
	if f.table < headerSize || f.table > off || f.blocks < 1 || int64(f.blocks) != (off-f.table)/blockEntry || (off-f.table)%blockEntry != 0 {
		return nil, bad(8, "block table", fmt.Sprintf("%d bytes a block up to offset %d", blockEntry, off), fmt.Sprintf("offset %d, %d blocks", f.table, f.blocks))
	}
	if f.last.Index <= h.at.Index || f.last.Index-h.at.Index > id.Index(maxSegmentBytes/recOverhead+1) {
		return nil, bad(32, "last index", fmt.Sprintf("more than %d", h.at.Index), f.last.Index)
	}
	if f.times.low > f.times.high {
		return nil, bad(72, "times", "low <= high", f.times)
	}
	return f, nil
}

// decodeTable reads the block table b of a sealed segment.
func decodeTable(name string, b []byte, f *footer, h header) ([]block, error) {
	if want, got := crc32.Checksum(b, castagnoli), f.tableCRC; want != got {
		return nil, fmt.Errorf("%s: offset %d: block table crc: want %08x, got %08x: %w", name, f.table, got, want, ErrCorrupt)
	}
	le := binary.LittleEndian
	table := make([]block, f.blocks)
	next := int64(headerSize)
	at := h.at
	for i := range table {
		e := b[i*blockEntry : (i+1)*blockEntry]
		x := &table[i]
		*x = block{
			off: int64(le.Uint64(e)), size: int(le.Uint32(e[8:])), raw: int(le.Uint32(e[12:])), crc: le.Uint32(e[16:]), rawCRC: le.Uint32(e[20:]),
			at: decodePosition(e[24:]), times: decodeSpan(e[64:]),
		}
		last := f.last.Index
		switch {
		case x.off != next || x.size < 1 || x.size > maxBlock || x.off+int64(x.size) > f.table:
		case x.raw < 1 || x.raw > maxBlockRaw:
		case i == 0 && x.at != at, i > 0 && x.at.Index <= at.Index, x.at.Index >= last:
		case x.times.low > x.times.high || x.times.low < f.times.low || x.times.high > f.times.high:
		default:
			next, at = x.off+int64(x.size), x.at
			continue
		}
		return nil, fmt.Errorf("%s: offset %d: block table: entry %d does not fit in: %+v: %w", name, f.table+int64(i*blockEntry), i, *x, ErrCorrupt)
	}
	if next != f.table {
		return nil, fmt.Errorf("%s: offset %d: block table: blocks end at %d: %w", name, f.table, next, ErrCorrupt)
	}
	return table, nil
}

// appendSealed appends a record as it stands in a decoded block, after the record at prev.
func appendSealed(b []byte, prev *Position, r *Record) []byte {
	b = binary.AppendUvarint(b, uint64(len(r.Payload)))
	b = binary.AppendVarint(b, r.Time-prev.Time)
	b = binary.AppendVarint(b, int64(r.Raft-prev.Raft))
	return append(b, r.Payload...)
}

// decodeSealed returns the record at b, after the record at prev, and its length; 0 if there is none. The payload is
// part of b.
func decodeSealed(b []byte, prev *Position) (Record, int) {
	n, a := binary.Uvarint(b)
	if a <= 0 || n > MaxPayload {
		return Record{}, 0
	}
	t, c := binary.Varint(b[a:])
	if c <= 0 {
		return Record{}, 0
	}
	a += c
	raft, c := binary.Varint(b[a:])
	if a += c; c <= 0 || n > uint64(len(b)-a) {
		return Record{}, 0
	}
	end := a + int(n)
	return Record{Index: prev.Index + 1, Time: prev.Time + t, Raft: prev.Raft + uint64(raft), Payload: b[a:end:end]}, end
}

// decoder is shared: DecodeAll keeps nothing, may be called at once, and makes nothing larger than it is given.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxBlockRaw), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// decompress decodes the block x from data into to, reusing it.
func decompress(name string, x *block, data, to []byte) ([]byte, error) {
	if got := crc32.Checksum(data, castagnoli); got != x.crc {
		return nil, fmt.Errorf("%s: offset %d: block crc: want %08x, got %08x: %w", name, x.off, x.crc, got, ErrCorrupt)
	}
	if cap(to) < x.raw {
		to = make([]byte, 0, x.raw+x.raw/8)
	}
	raw, err := decoder().DecodeAll(data, to[:0:x.raw])
	if err != nil {
		return nil, fmt.Errorf("%s: offset %d: block: %w: %w", name, x.off, err, ErrCorrupt)
	}
	if got := crc32.Checksum(raw, castagnoli); len(raw) != x.raw || got != x.rawCRC {
		return nil, fmt.Errorf("%s: offset %d: decoded block: want %d bytes with crc %08x, got %d with %08x: %w",
			name, x.off, x.raw, x.rawCRC, len(raw), got, ErrCorrupt)
	}
	return raw, nil
}
