package perf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

// Contents of a block under Options.Verify. Each sector of 512 bytes begins with (little-endian):
//
//	 0  8  magic "varvPERF"
//	 8  8  run: nanoseconds since 1970 at which the run began
//	16  4  job
//	20  4  sector: its number in the block
//	24  8  block: its number in the job's range
//	32  8  seq: number of the write in the job, from 1
//	40  4  block size
//	44  4  CRC32C of the sector without this field
//
// and goes on with random bytes. A sector is what a disk writes in one piece, so a block that was torn shows sectors of
// several writes.
const (
	sectorSize = 512
	stampSize  = 48
	stampMagic = 0x46524550_76726176
	crcOffset  = 44
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp is what a sector says of itself.
type stamp struct {
	run    uint64
	job    uint32
	sector uint32
	block  int64
	seq    uint64
	size   uint32
}

// poolSize is the size of the random bytes that blocks are filled from: more than compression looks back.
const poolSize = 1 << 20

// pool is random bytes that blocks are filled from. It is read only.
type pool []byte

func newPool(seed uint64) pool {
	p := make(pool, poolSize+sectorSize)
	r := rand.NewPCG(seed, 0x7661727665)
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

// fill makes p random bytes, which begin at another place of the pool for another n.
func (l pool) fill(p []byte, n uint64) {
	at := (n * 0x9e3779b97f4a7c15) >> 44 // 20 bits
	for len(p) > 0 {
		done := copy(p, l[at:poolSize])
		p, at = p[done:], 0
	}
}

// renew changes a word of each page of p, so that nothing that saves equal blocks can save any. It is a small part of the price of fill.
func renew(p []byte, n uint64) {
	for ; len(p) >= 8; p = p[min(pageSize, len(p)):] {
		n = (n + 1) * 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(p, n)
	}
}

// seal makes p the block that s says; s.sector and s.size are set here.
func (l pool) seal(p []byte, s stamp) {
	s.size = uint32(len(p))
	for s.sector = 0; len(p) > 0; s.sector++ {
		sector := p[:sectorSize]
		l.fill(sector[stampSize:], s.seq<<24^uint64(s.block)<<8^uint64(s.sector))
		le := binary.LittleEndian
		le.PutUint64(sector[0:], stampMagic)
		le.PutUint64(sector[8:], s.run)
		le.PutUint32(sector[16:], s.job)
		le.PutUint32(sector[20:], s.sector)
		le.PutUint64(sector[24:], uint64(s.block))
		le.PutUint64(sector[32:], s.seq)
		le.PutUint32(sector[40:], s.size)
		le.PutUint32(sector[crcOffset:], sectorSum(sector))
		p = p[sectorSize:]
	}
}

func sectorSum(p []byte) uint32 {
	return crc32.Update(crc32.Checksum(p[:crcOffset], castagnoli), castagnoli, p[stampSize:])
}

// readStamp returns what a sector says of itself, false if it is not intact.
func readStamp(p []byte) (stamp, bool) {
	le := binary.LittleEndian
	s := stamp{
		run: le.Uint64(p[8:]), job: le.Uint32(p[16:]), sector: le.Uint32(p[20:]),
		block: int64(le.Uint64(p[24:])), seq: le.Uint64(p[32:]), size: le.Uint32(p[40:]),
	}
	return s, le.Uint64(p) == stampMagic && le.Uint32(p[crcOffset:]) == sectorSum(p)
}

// FaultKind is what is wrong with a block.
type FaultKind string

// Kinds of faults.
const (
	Lost      FaultKind = "lost"      // an acknowledged write is not there at all: zeros
	Old       FaultKind = "old"       // an earlier write is there instead of the last one that was acknowledged
	Torn      FaultKind = "torn"      // parts of several writes
	Misplaced FaultKind = "misplaced" // the contents of another place
	// Duplicated: a write that is at its own place as well, or an earlier one that came back after a later one had been read.
	Duplicated FaultKind = "duplicated"
	Corrupt    FaultKind = "corrupt" // bytes that no write wrote
)

// want is what a block should hold: a write of this run from lo (the last acknowledged) to hi (the last begun). hi is 0 for a
// block that this run did not write: then anything intact is right.
type want struct {
	run    uint64
	job    uint32
	block  int64
	lo, hi uint64
}

// check returns what is wrong with the block p, "" if it is what w wants, and the details for people. found is what a Misplaced sector says of itself; else
// the stamp of the first sector, zero if there is none or not all of them are of one write.
func check(p []byte, w want) (kind FaultKind, detail string, found stamp) {
	var first stamp
	stamped, zeros := 0, 0
	mixed := false
	for i := uint32(0); len(p) > 0; i, p = i+1, p[sectorSize:] {
		s, ok := readStamp(p[:sectorSize])
		switch {
		case !ok && bytes.Count(p[:sectorSize], []byte{0}) == sectorSize:
			zeros++
			continue
		case !ok:
			return Corrupt, fmt.Sprintf("sector %d is not what was ever written", i), stamp{}
		case s.job != w.job || s.block != w.block || s.sector != i:
			return Misplaced, fmt.Sprintf("sector %d holds sector %d of block %d of job %d (write %d)", i, s.sector, s.block, s.job, s.seq), s
		}
		if stamped++; stamped == 1 {
			first = s
		}
		mixed = mixed || s.run != first.run || s.seq != first.seq
		if mixed && (w.hi <= w.lo || s.run != w.run || s.seq < w.lo || s.seq > w.hi) {
			return Torn, fmt.Sprintf("sector %d is of write %d, another of write %d", i, s.seq, first.seq), stamp{}
		}
	}
	if !mixed && zeros == 0 {
		found = first
	}
	switch {
	case w.hi == 0 && (stamped == 0 || zeros == 0):
		return "", "", found
	case stamped == 0 && w.lo == 0:
		return "", "", found // the only write failed
	case stamped == 0:
		return Lost, fmt.Sprintf("zeros instead of write %d", w.lo), found
	case zeros > 0 && (w.hi == 0 || w.lo > 0):
		return Torn, fmt.Sprintf("%d sectors of zeros beside write %d", zeros, first.seq), found
	case first.run != w.run && w.lo > 0:
		return Old, fmt.Sprintf("a write of an earlier run instead of write %d", w.lo), found
	case first.run == w.run && first.seq < w.lo:
		return Old, fmt.Sprintf("write %d instead of write %d", first.seq, w.lo), found
	case first.run == w.run && first.seq > w.hi:
		return Corrupt, fmt.Sprintf("write %d, which was never begun", first.seq), found
	}
	return "", "", found
}
