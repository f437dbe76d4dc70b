package store

// A store is a directory:
//
//	lock              locked while a process has the store open
//	active.log        the activity log
//	active.rest       chunks that are active beside it: rest.go
//	label             whose the store is, where it was made, whether its disk was retired: label.go
//	quarantine        the blocks that are bad: quarantine.go
//	index, index.log  epochs and states, so that a start reads no headers: index.go
//	scrub             how far the scrub is: scrubstate.go
//	boot              the boot of the machine in which every chunk was last in order: boot.go
//	worn/ID.N         a chunk file that was replaced, with nothing in it but blocks that do not take writes: renew.go
//	chunks/XX/ID.chk  one file per chunk; ID is 16 hexadecimal digits, XX the last two of them
//	*.new             a file that is being made; removed at start
//
// All numbers are little-endian. Every checksum is CRC32C with 1 in place of 0 (chunk.Sum). Reserved
// bytes are written zero and checked zero.
//
// # Chunk file
//
// 65 MiB long from the start and sparse, so that no write changes its size.
//
//	offset   bytes    what
//	0        4096     header, slot A
//	4096     4096     header, slot B
//	8192     65536    table: 16 pages of 1024 x u32, one page per 4 MiB extent, one u32 per block;
//	                  0 is a hole, which reads as zeros
//	73728             unused up to 1 MiB
//	1048576  64 MiB   data, in place
//
// Header slot (the valid one with the higher sequence counts; the next is written to the other):
//
//	offset  bytes  what
//	0       8      magic "VRVCHNK1"
//	8       4      version, 1
//	12      1      state: 1 serving, 2 joining, 4 unclean, 5 joining and copied (repl.State)
//	13      3      reserved
//	16      16     cluster
//	32      8      chunk id
//	40      8      epoch
//	48      8      sequence, from 1
//	56      64     16 x u32: the checksum of each table page as it was last written
//	120     3972   reserved
//	4092    4      checksum of bytes 0 to 4091
//
// # Activity log
//
// Two regions of 1052672 bytes, written in turn: a region is filled from its start, and when it is
// full the other one is begun with what is active then. The valid header with the higher generation
// counts. The file is made at its full size and filled with zeros, so that an append changes neither
// size nor allocation and cannot run out of space.
//
//	offset  bytes  what (header of a region)
//	0       8      magic "VRVACTV1"
//	8       4      version, 1
//	12      4      reserved
//	16      16     cluster
//	32      8      generation, from 1
//	40      4052   reserved
//	4092    4      checksum of bytes 0 to 4091
//	4096           32768 records of 32 bytes
//
//	offset  bytes  what (record)
//	0       4      checksum of bytes 4 to 31
//	4       1      kind: 1 mark, 2 unmark
//	5       1      reserved
//	6       2      extents: bit i is extent i of the chunk
//	8       8      chunk id
//	16      8      position in the region, from 0
//	24      8      generation of the region
//
// # Recovery
//
// An extent that the log marks active may hold torn data and its table page may be old or torn: its
// checksums are made again from the data on the disk (a block of zeros is a hole), which is why a flush
// need not write the table. A server that was stopped cleanly leaves no marks. Outside active extents
// everything was synced before the unmark: a mismatch there is bit rot. A table page that does not
// match the header is believed only where it agrees with the data, see image.mistrust.
//
// A missing record ends what is believed of the log but for later marks of the same
// generation, which are believed too: a false mark costs time, a missed one would cost truth. Records do not
// cross sectors, so a loss of power leaves each whole or not there. One that holds other bytes, or is missing
// before another in its sector, was overwritten or never written: then every extent counts as active. The same
// holds if a region's header was: marks of the generation after the one that counts are believed. And a block that
// is a hole to the table but holds data, in an extent that is not active, gets a checksum that no read accepts. A header
// slot is written only while the other is on stable media, so one is always valid; a chunk file
// without a valid header is reported as joining, lost, at epoch 0, and made anew by a join.
//
// # History
//
// Version 1: the first.

import (
	"encoding/binary"
	"errors"
	"fmt"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

const (
	chunkMagic    = "VRVCHNK1"
	activeMagic   = "VRVACTV1"
	formatVersion = 1

	slotSize    = 4096
	tableOffset = 2 * slotSize
	pageSums    = chunk.Blocks / chunk.Extents
	pageSize    = 4 * pageSums
	metaSize    = tableOffset + chunk.Extents*pageSize
	dataOffset  = 1 << 20
	fileSize    = dataOffset + chunk.Size

	recordSize    = 32
	regionRecords = 32768
	regionSize    = slotSize + regionRecords*recordSize
	sectorRecords = 512 / recordSize // a disk writes a sector whole or not at all

	kindMark   = 1
	kindUnmark = 2
)

// ErrCorrupt says that bytes on the disk are not what was written there.
var ErrCorrupt = errors.New("corrupt")

// header is the decoded header of a chunk file.
type header struct {
	cluster  id.Cluster
	chunk    id.ChunkID
	rec      repl.Record
	sequence uint64
	pages    [chunk.Extents]uint32
}

// encode fills b, one slot long.
func (h *header) encode(b []byte) {
	clear(b[:slotSize])
	copy(b, chunkMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	b[12] = byte(h.rec.State)
	copy(b[16:], h.cluster[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(h.chunk))
	binary.LittleEndian.PutUint64(b[40:], uint64(h.rec.Epoch))
	binary.LittleEndian.PutUint64(b[48:], h.sequence)
	for i, sum := range h.pages {
		binary.LittleEndian.PutUint32(b[56+4*i:], sum)
	}
	seal(b)
}

// decodeHeader reads one slot. Its errors wrap ErrCorrupt.
func decodeHeader(b []byte) (header, error) {
	if err := unseal(b, chunkMagic); err != nil {
		return header{}, err
	}
	h := header{
		cluster: id.Cluster(b[16:32]),
		chunk:   id.ChunkID(binary.LittleEndian.Uint64(b[32:])),
		rec: repl.Record{
			Epoch: id.Epoch(binary.LittleEndian.Uint64(b[40:])),
			State: repl.State(b[12]),
		},
		sequence: binary.LittleEndian.Uint64(b[48:]),
	}
	for i := range h.pages {
		h.pages[i] = binary.LittleEndian.Uint32(b[56+4*i:])
	}
	switch h.rec.State {
	case repl.Serving, repl.Tracking, repl.Unclean, repl.Copied:
	default:
		return header{}, fmt.Errorf("state %d: %w", b[12], ErrCorrupt)
	}
	if !chunk.IsZero(b[13:16]) || !chunk.IsZero(b[120:slotSize-4]) {
		return header{}, fmt.Errorf("reserved bytes are not zero: %w", ErrCorrupt)
	}
	return h, nil
}

// newestHeader reads both slots of a chunk file.
func newestHeader(b []byte) (header, error) {
	h, err := decodeHeader(b[:slotSize])
	h2, err2 := decodeHeader(b[slotSize : 2*slotSize])
	switch {
	case err != nil && err2 != nil:
		return header{}, fmt.Errorf("slot A: %w, slot B: %w", err, err2)
	case err != nil || err2 == nil && h2.sequence > h.sequence:
		return h2, nil
	}
	return h, nil
}

// check says whether h belongs to the file in which it was found.
func (h *header) check(cluster id.Cluster, c id.ChunkID) error {
	if h.cluster != cluster {
		return fmt.Errorf("chunk %v is of cluster %v, want %v: %w", c, h.cluster, cluster, fserr.WrongCluster)
	}
	if h.chunk != c {
		return fmt.Errorf("header names chunk %v, want %v: %w", h.chunk, c, ErrCorrupt)
	}
	return nil
}

// seal writes the checksum of a slot.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b[slotSize-4:], chunk.Sum(b[:slotSize-4]))
}

// unseal checks the checksum, magic and version of a slot.
func unseal(b []byte, magic string) error {
	want := binary.LittleEndian.Uint32(b[slotSize-4:])
	if got := chunk.Sum(b[:slotSize-4]); got != want {
		return fmt.Errorf("checksum %08x, want %08x: %w", got, want, ErrCorrupt)
	}
	if string(b[:8]) != magic {
		return fmt.Errorf("magic %q, want %q: %w", b[:8], magic, ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return fmt.Errorf("version %d, want %d: %w", v, formatVersion, ErrCorrupt)
	}
	return nil
}

// encodePage fills b, one page long, with sums.
func encodePage(b []byte, sums []uint32) {
	for i, sum := range sums {
		binary.LittleEndian.PutUint32(b[4*i:], sum)
	}
}

// decodePage is the inverse of encodePage.
func decodePage(sums []uint32, b []byte) {
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
}

// extents is a set of extents of one chunk.
type extents uint16

const allExtents extents = 1<<chunk.Extents - 1

// span returns the extents from lo to hi, both included.
func span(lo, hi uint32) extents { return allExtents << lo & (allExtents >> (chunk.Extents - 1 - hi)) }

func (x extents) has(i uint32) bool { return x>>i&1 != 0 }

// record is one entry of the activity log.
type record struct {
	kind  byte
	marks extents
	chunk id.ChunkID
}

// append encodes r as the record at a position of the region with a generation.
func (r record) append(b []byte, position, generation uint64) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, r.kind, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(r.marks))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.chunk))
	b = binary.LittleEndian.AppendUint64(b, position)
	b = binary.LittleEndian.AppendUint64(b, generation)
	binary.LittleEndian.PutUint32(b[start:], chunk.Sum(b[start+4:]))
	return b
}

// decodeRecord reads the record at a position of the region with a generation.
func decodeRecord(b []byte, position, generation uint64) (record, error) {
	switch r, state := readSlot(b, position, generation); state {
	case slotRecord:
		return r, nil
	case slotEmpty:
		return record{}, fmt.Errorf("record %d of generation %d: there is none: %w", position, generation, ErrCorrupt)
	}
	return record{}, fmt.Errorf("record %d of generation %d holds other bytes: %w", position, generation, ErrCorrupt)
}

// slotState is what was found where a record may be.
type slotState uint8

const (
	slotEmpty  slotState = iota // zeros, or a record of an earlier generation
	slotRecord                  // a record of this generation
	slotBad                     // neither: no loss of power leaves that, since no record lies in two sectors
)

// readSlot is decodeRecord without errors, of which there would be one for nearly every slot.
func readSlot(b []byte, position, generation uint64) (record, slotState) {
	b = b[:recordSize]
	if binary.LittleEndian.Uint32(b) != chunk.Sum(b[4:]) {
		if chunk.IsZero(b) {
			return record{}, slotEmpty
		}
		return record{}, slotBad
	}
	r := record{kind: b[4], marks: extents(binary.LittleEndian.Uint16(b[6:])), chunk: id.ChunkID(binary.LittleEndian.Uint64(b[8:]))}
	p, g := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	switch {
	case p != position || g > generation || r.kind != kindMark && r.kind != kindUnmark || b[5] != 0:
		return record{}, slotBad
	case g < generation:
		return record{}, slotEmpty
	}
	return r, slotRecord
}

// emptySlots returns how many slots from the one at a position on are zeros: those of a page, if one begins there, else 0. b holds all slots. So
// nearly all of a log is looked at a page at a time.
func emptySlots(b []byte, position int) int {
	const n = slotSize / recordSize
	if position%n != 0 || !chunk.IsZero(b[position*recordSize:][:slotSize]) {
		return 0
	}
	return n
}

// region is the decoded content of one region of the activity log.
type region struct {
	cluster    id.Cluster
	generation uint64
	active     map[id.ChunkID]extents
	records    int  // up to the first that is not valid
	gap        bool // valid records were found after one that is not
	// damage says that records are missing or have other bytes, which no loss of power does: marks may be lost. Nil: none.
	damage error
}

// encodeRegionHeader fills b, one slot long.
func encodeRegionHeader(b []byte, cluster id.Cluster, generation uint64) {
	clear(b[:slotSize])
	copy(b, activeMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], cluster[:])
	binary.LittleEndian.PutUint64(b[32:], generation)
	seal(b)
}

// decodeRegionHeader reads the first slot of a region.
func decodeRegionHeader(b []byte) (region, error) {
	if err := unseal(b, activeMagic); err != nil {
		return region{}, err
	}
	if !chunk.IsZero(b[12:16]) || !chunk.IsZero(b[40:slotSize-4]) {
		return region{}, fmt.Errorf("reserved bytes are not zero: %w", ErrCorrupt)
	}
	return region{
		cluster:    id.Cluster(b[16:32]),
		generation: binary.LittleEndian.Uint64(b[32:]),
		active:     make(map[id.ChunkID]extents),
	}, nil
}

// decodeRegion reads one region. Its errors wrap ErrCorrupt.
func decodeRegion(b []byte) (region, error) {
	g, err := decodeRegionHeader(b)
	if err != nil {
		return region{}, err
	}
	missing := -1 // the last slot without a record
	for i := 0; i < regionRecords; i++ {
		if n := emptySlots(b[slotSize:], i); n > 0 {
			i += n - 1
			missing = i
			continue
		}
		r, state := readSlot(b[slotSize+i*recordSize:], uint64(i), g.generation)
		if state != slotRecord {
			if missing = i; state == slotBad && g.damage == nil {
				g.damage = fmt.Errorf("active.log: record %d of generation %d holds other bytes: %w", i, g.generation, ErrCorrupt)
			}
			continue
		}
		ended := missing >= 0
		switch {
		case !ended:
			g.records++
		case i/sectorRecords == missing/sectorRecords && g.damage == nil:
			g.damage = fmt.Errorf("active.log: record %d of generation %d is missing before others: %w", missing, g.generation, ErrCorrupt)
			fallthrough
		default:
			g.gap = true
		}
		if r.kind == kindMark {
			g.active[r.chunk] |= r.marks
		} else if !ended {
			if g.active[r.chunk] &^= r.marks; g.active[r.chunk] == 0 {
				delete(g.active, r.chunk)
			}
		}
	}
	return g, nil
}

// successor adds to g the marks of the region after it, whose header b does not show. If the header was never written they are a part of g's
// own, and cost nothing; if it was, and the disk lost or overwrote it, they are needed.
func (g *region) successor(b []byte) {
	_, err := decodeRegionHeader(b)
	for i := 0; i < regionRecords; i++ {
		if n := emptySlots(b[slotSize:], i); n > 0 {
			i += n - 1
			continue
		}
		switch r, state := readSlot(b[slotSize+i*recordSize:], uint64(i), g.generation+1); {
		case state == slotRecord && r.kind == kindMark:
			g.active[r.chunk] |= r.marks
		case state == slotBad && err != nil && g.damage == nil:
			g.damage = fmt.Errorf("active.log: header of a region: %w; its record %d holds other bytes", err, i)
		}
	}
}
