package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"varve/internal/chunk"
	"varve/internal/id"
)

// A sector of 512 bytes that was written says what it is (little-endian):
//
//	 0  8  magic
//	 8  8  chunk
//	16  8  sector: its number in the chunk
//	24  8  seq: number of the write
//	32  4  CRC32C of bytes 0 to 31 and 36 to 511
//	36     bytes that follow from seq and sector
const (
	sectorSize      = 512
	sectorMagic     = 0x726f746365737276
	sectorCRC       = 32
	sectorsPerBlock = chunk.BlockSize / sectorSize
	// areaSectors is the length of an area.
	areaSectors = 512
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fillSector makes p what write seq puts there.
func fillSector(p []byte, k id.ChunkID, sector, seq uint64) {
	le := binary.LittleEndian
	le.PutUint64(p, sectorMagic)
	le.PutUint64(p[8:], uint64(k))
	le.PutUint64(p[16:], sector)
	le.PutUint64(p[24:], seq)
	x := seq*0x9e3779b97f4a7c15 + sector
	for i := sectorCRC + 4; i < sectorSize; i += 4 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		le.PutUint32(p[i:], uint32(x))
	}
	le.PutUint32(p[sectorCRC:], sectorSum(p))
}

func sectorSum(p []byte) uint32 {
	return crc32.Update(crc32.Checksum(p[:sectorCRC], castagnoli), castagnoli, p[sectorCRC+4:sectorSize])
}

var (
	errLost    = errors.New("lost")
	errForeign = errors.New("holds what was never written there")
)

// readSector returns the number of the write that p holds, 0 for zeros.
func readSector(p []byte, k id.ChunkID, sector uint64) (seq uint64, err error) {
	p = p[:sectorSize]
	if chunk.IsZero(p) {
		return 0, nil
	}
	le := binary.LittleEndian
	seq = le.Uint64(p[24:])
	if le.Uint64(p) != sectorMagic || le.Uint64(p[8:]) != uint64(k) || le.Uint64(p[16:]) != sector || le.Uint32(p[sectorCRC:]) != sectorSum(p) {
		return 0, fmt.Errorf("sector %d of chunk %v begins with %x: %w", sector, k, p[:40], errForeign)
	}
	return seq, nil
}

// value is what a sector holds: a write, or zeros since a punch.
type value struct {
	seq  uint64
	zero bool
}

// sector is what a sector may hold.
type sector struct {
	kept    value // acknowledged last
	next    value // sent, outcome not known; seq 0: none
	flushed uint64
}

// area is a range of a chunk that one writer writes.
type area struct {
	chunk   id.ChunkID
	first   uint64 // sector in the chunk; the beginning of an extent
	sectors [areaSectors]sector
}

func newArea(k id.ChunkID, extent int) *area {
	a := &area{chunk: k, first: uint64(extent) * chunk.ExtentSize / sectorSize}
	for i := range a.sectors {
		a.sectors[i].kept = value{zero: true}
	}
	return a
}

// offset returns where sector i of the area is in the chunk, in bytes.
func (a *area) offset(i int) uint32 { return uint32(a.first+uint64(i)) * sectorSize }

// begin notes that sectors are about to be changed, and returns the bytes if they are to be written.
func (a *area) begin(from, to int, v value) []byte {
	var p []byte
	if !v.zero {
		p = make([]byte, (to-from)*sectorSize)
	}
	for i := from; i < to; i++ {
		a.sectors[i].next = v
		if !v.zero {
			fillSector(p[(i-from)*sectorSize:], a.chunk, a.first+uint64(i), v.seq)
		}
	}
	return p
}

// end notes that the change was acknowledged.
func (a *area) end(from, to int) {
	for i := from; i < to; i++ {
		s := &a.sectors[i]
		s.kept, s.next = s.next, value{}
	}
}

// undo notes that the change was refused.
func (a *area) undo(from, to int) {
	for i := from; i < to; i++ {
		a.sectors[i].next = value{}
	}
}

// flush notes that what was acknowledged is on stable media.
func (a *area) flush() {
	for i := range a.sectors {
		a.sectors[i].flushed = a.sectors[i].kept.seq
	}
}

// check compares what the whole area holds with what it may hold, and takes it as what it holds from now on. It returns how many of the
// changes of unknown outcome are there and how many are not.
func (a *area) check(p []byte) (there, absent int, err error) {
	for i := range a.sectors {
		s := &a.sectors[i]
		seq, err := readSector(p[i*sectorSize:], a.chunk, a.first+uint64(i))
		if err != nil {
			return 0, 0, err
		}
		is := func(v value) bool { return v.zero && seq == 0 || !v.zero && seq == v.seq && seq > 0 }
		switch {
		case s.next.seq > 0 && is(s.next):
			s.kept, s.next = s.next, value{}
			there++
		case is(s.kept):
			if s.next.seq > 0 {
				absent++
			}
			s.next = value{}
		default:
			what := "acknowledged"
			if seq < s.flushed {
				what = "flushed"
			}
			return 0, 0, fmt.Errorf("sector %d of chunk %v holds write %d, not %+v, which was %s, nor %+v: %w",
				a.first+uint64(i), a.chunk, seq, s.kept, what, s.next, errLost)
		}
	}
	return there, absent, nil
}
