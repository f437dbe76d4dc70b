package ssd

// A journal is a directory on the fast disk:
//
//	lock      locked while a process has the journal open
//	journal   the journal: made at its full size and filled with zeros, so that no write changes its size or allocation
//	*.new     a journal that is being made
//
// All numbers are little-endian. Every checksum is CRC32C with 1 in place of 0 (chunk.Sum). Reserved bytes are written zero and
// checked zero. A block is 4096 bytes.
//
//	block    what
//	0        header, slot A
//	1        header, slot B
//	2 to N   the ring of batches
//
// # Header
//
// The valid slot with the higher number counts; the next one is written to the other, and synced before anything relies on it.
//
//	offset  bytes  what
//	0       8      magic "VRVSSDJ1"
//	8       4      version, 1
//	12      4      reserved
//	16      16     UUID of the journal
//	32      16     UUID of the server that it belongs to
//	48      16     cluster
//	64      8      blocks in the ring
//	72      8      number of this header, from 1
//	80      8      generation: starts of the server with this journal
//	88      8      sequence of the first batch of this generation; batches from there on of an older one do not count
//	96      8      tail: position of the oldest batch that may be needed
//	104     8      sequence of the batch at the tail
//	112     8      durable: batches below this sequence were on stable media when the header was written
//	120     3972   reserved
//	4092    4      checksum of bytes 0 to 4091
//
// # Batch
//
// A descriptor of one or more blocks, and the data. A position counts blocks since the journal was made; position p is in block p mod
// N of the ring. A batch does not go over the end of the ring: if it would, it begins at block 0 and the rest stays unused. A batch
// counts if its descriptor's checksum fits, it names this journal and its own position, its sequence is the one that is expected,
// its generation is not lower than that of the one before nor than the header allows, and, unless it is known to have been synced, all
// its data fit their checksums. The first that does not count is the end: it was torn, or never written. It is damage if anything behind
// it shows that it had been synced.
//
//	offset  bytes  what
//	0       8      magic "VRVSSDB1"
//	8       4      checksum of the descriptor from byte 12 to the end of its last block
//	12      4      blocks of the batch, descriptor and data
//	16      8      sequence
//	24      8      position
//	32      8      generation
//	40      8      durable: batches below this sequence were on stable media when this one was written
//	48      16     UUID of the journal
//	64      2      blocks of the descriptor
//	66      2      number of files
//	68      2      number of entries
//	70      2      reserved
//	72             files: u64 id, u16 length of the path, the path relative to the server's directory. An id is one life of a file:
//	               a file that is removed and made again gets another.
//	then           entries: u8 kind, u8 reserved, u16 number of the file in this batch, u32 first page, u32 number of pages, and a u32
//	               checksum for each page. Kinds: 1 data; 2 data that is a hole (zeros, to be punched); 3 the file's life has ended, and
//	               no entry with this id counts any more (no pages)
//	then           zeros to the end of the block; then the pages of the entries in their order
//
// Replay applies entries in order of their sequence to an index; nothing is written to the slow disk before the store uses it, and what
// is destaged twice is the same twice.
//
// Assumed of the disk: see package disk. Version 1: the first.

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"varve/internal/chunk"
	"varve/internal/id"
)

const (
	headerMagic   = "VRVSSDJ1"
	batchMagic    = "VRVSSDB1"
	formatVersion = 1

	// pageSize is the unit of the ring and of the index, in bytes.
	pageSize   = 4096
	ringOffset = 2 * pageSize

	batchHead = 72
	entryHead = 12

	// batchPages bounds the data of a batch.
	batchPages = 256
	// batchBlocks bounds a batch: in the worst case each page has a descriptor block of its own.
	batchBlocks = 2 * batchPages
	// maxPath bounds a path in a batch, in bytes.
	maxPath = 1024

	minRingBlocks = 4 * batchBlocks
	maxRingBlocks = 16 << 20

	kindData = 1
	kindHole = 2
	kindEnd  = 3
)

// ErrDamaged says that the journal has lost or changed what it had acknowledged.
var ErrDamaged = errors.New("the journal is damaged")

// ErrLost says that the journal that a server's disk needs is not there.
var ErrLost = errors.New("the journal is lost")

// errInvalid says that bytes are no header or no batch. It is an end, or damage: who reads decides.
var errInvalid = errors.New("not valid")

// UUID names a journal or a server.
type UUID [16]byte

// String returns 32 hexadecimal digits.
func (u UUID) String() string { return hex.EncodeToString(u[:]) }

// header is the decoded header.
type header struct {
	journal, server UUID
	cluster         id.Cluster
	blocks          uint64
	number          uint64
	generation      uint64
	first           uint64
	tail, tailSeq   uint64
	durable         uint64
}

// encode fills b, one block long.
func (h *header) encode(b []byte) {
	clear(b[:pageSize])
	copy(b, headerMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], h.journal[:])
	copy(b[32:], h.server[:])
	copy(b[48:], h.cluster[:])
	for i, v := range []uint64{h.blocks, h.number, h.generation, h.first, h.tail, h.tailSeq, h.durable} {
		binary.LittleEndian.PutUint64(b[64+8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[pageSize-4:], chunk.Sum(b[:pageSize-4]))
}

// decodeHeader reads one slot. Its errors wrap errInvalid.
func decodeHeader(b []byte) (header, error) {
	want := binary.LittleEndian.Uint32(b[pageSize-4:])
	if got := chunk.Sum(b[:pageSize-4]); got != want {
		return header{}, fmt.Errorf("checksum %08x, want %08x: %w", got, want, errInvalid)
	}
	if string(b[:8]) != headerMagic {
		return header{}, fmt.Errorf("magic %q, want %q: %w", b[:8], headerMagic, errInvalid)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return header{}, fmt.Errorf("version %d, this program knows %d: %w", v, formatVersion, errInvalid)
	}
	if !chunk.IsZero(b[12:16]) || !chunk.IsZero(b[120:pageSize-4]) {
		return header{}, fmt.Errorf("reserved bytes are not zero: %w", errInvalid)
	}
	h := header{journal: UUID(b[16:32]), server: UUID(b[32:48]), cluster: id.Cluster(b[48:64])}
	for i, v := range []*uint64{&h.blocks, &h.number, &h.generation, &h.first, &h.tail, &h.tailSeq, &h.durable} {
		*v = binary.LittleEndian.Uint64(b[64+8*i:])
	}
	if h.blocks < minRingBlocks || h.blocks > maxRingBlocks {
		return header{}, fmt.Errorf("a ring of %d blocks, want %d to %d: %w", h.blocks, minRingBlocks, maxRingBlocks, errInvalid)
	}
	return h, nil
}

// newestHeader reads both slots.
func newestHeader(b []byte) (header, error) {
	h, err := decodeHeader(b[:pageSize])
	h2, err2 := decodeHeader(b[pageSize : 2*pageSize])
	switch {
	case err != nil && err2 != nil:
		return header{}, fmt.Errorf("slot A: %w, slot B: %w", err, err2)
	case err != nil || err2 == nil && h2.number > h.number:
		return h2, nil
	}
	return h, nil
}

// batch is a decoded descriptor.
type batch struct {
	blocks, head        uint32 // of the whole; of the descriptor
	sequence, position  uint64
	generation, durable uint64
	journal             UUID
	files               []batchFile
	entries             []entry
}

type batchFile struct {
	id   uint64
	path string
}

// entry is a run of pages of a file, or the end of its life.
type entry struct {
	kind byte
	file uint16 // index into files
	page uint32
	sums []uint32 // one for each page
}

// pages counts the data of the batch.
func (b *batch) pages() (n uint32) {
	for _, e := range b.entries {
		n += uint32(len(e.sums))
	}
	return n
}

// descriptorBlocks is how many blocks the descriptor takes.
func (b *batch) descriptorBlocks() uint32 {
	n := batchHead
	for _, f := range b.files {
		n += 10 + len(f.path)
	}
	for _, e := range b.entries {
		n += entryHead + 4*len(e.sums)
	}
	return uint32((n + pageSize - 1) / pageSize)
}

// encode fills the start of dst with the descriptor, whole blocks, and sets b.head and b.blocks.
func (b *batch) encode(dst []byte) {
	b.head = b.descriptorBlocks()
	b.blocks = b.head + b.pages()
	d := dst[:b.head*pageSize]
	clear(d)
	copy(d, batchMagic)
	binary.LittleEndian.PutUint32(d[12:], b.blocks)
	for i, v := range []uint64{b.sequence, b.position, b.generation, b.durable} {
		binary.LittleEndian.PutUint64(d[16+8*i:], v)
	}
	copy(d[48:], b.journal[:])
	binary.LittleEndian.PutUint16(d[64:], uint16(b.head))
	binary.LittleEndian.PutUint16(d[66:], uint16(len(b.files)))
	binary.LittleEndian.PutUint16(d[68:], uint16(len(b.entries)))
	at := batchHead
	for _, f := range b.files {
		binary.LittleEndian.PutUint64(d[at:], f.id)
		binary.LittleEndian.PutUint16(d[at+8:], uint16(len(f.path)))
		at += 10 + copy(d[at+10:], f.path)
	}
	for _, e := range b.entries {
		d[at] = e.kind
		binary.LittleEndian.PutUint16(d[at+2:], e.file)
		binary.LittleEndian.PutUint32(d[at+4:], e.page)
		binary.LittleEndian.PutUint32(d[at+8:], uint32(len(e.sums)))
		at += entryHead
		for _, s := range e.sums {
			binary.LittleEndian.PutUint32(d[at:], s)
			at += 4
		}
	}
	binary.LittleEndian.PutUint32(d[8:], chunk.Sum(d[12:]))
}

// descriptorLength reads from the first block of a descriptor how many blocks it has: 0 if it is none.
func descriptorLength(b []byte) uint32 {
	if string(b[:8]) != batchMagic {
		return 0
	}
	n, all := uint32(binary.LittleEndian.Uint16(b[64:])), binary.LittleEndian.Uint32(b[12:])
	if n == 0 || n > batchBlocks || all < n || all > batchBlocks {
		return 0
	}
	return n
}

// decodeBatch reads a descriptor of whole blocks. Its errors wrap errInvalid.
func decodeBatch(d []byte) (batch, error) {
	if len(d) < pageSize || descriptorLength(d) == 0 || int(descriptorLength(d))*pageSize != len(d) {
		return batch{}, fmt.Errorf("no descriptor: %w", errInvalid)
	}
	want := binary.LittleEndian.Uint32(d[8:])
	if got := chunk.Sum(d[12:]); got != want {
		return batch{}, fmt.Errorf("checksum %08x, want %08x: %w", got, want, errInvalid)
	}
	b := batch{blocks: binary.LittleEndian.Uint32(d[12:]), head: descriptorLength(d), journal: UUID(d[48:64])}
	for i, v := range []*uint64{&b.sequence, &b.position, &b.generation, &b.durable} {
		*v = binary.LittleEndian.Uint64(d[16+8*i:])
	}
	if err := b.decodeBody(d, int(binary.LittleEndian.Uint16(d[66:])), int(binary.LittleEndian.Uint16(d[68:]))); err != nil {
		return batch{}, err
	}
	return b, nil
}

// decodeBody reads files and entries, and checks that they fill the descriptor.
func (b *batch) decodeBody(d []byte, files, entries int) error {
	short := func(what string) error { return fmt.Errorf("%s: %w", what, errInvalid) }
	if !chunk.IsZero(d[70:72]) {
		return short("reserved bytes are not zero")
	}
	rest := d[batchHead:]
	for range files {
		if len(rest) < 10 {
			return short("a file goes over the end")
		}
		n := int(binary.LittleEndian.Uint16(rest[8:]))
		if n == 0 || n > maxPath || len(rest) < 10+n {
			return short("a path goes over the end")
		}
		b.files = append(b.files, batchFile{id: binary.LittleEndian.Uint64(rest), path: string(rest[10 : 10+n])})
		rest = rest[10+n:]
	}
	for range entries {
		if len(rest) < entryHead {
			return short("an entry goes over the end")
		}
		e := entry{kind: rest[0], file: binary.LittleEndian.Uint16(rest[2:]), page: binary.LittleEndian.Uint32(rest[4:])}
		n := binary.LittleEndian.Uint32(rest[8:])
		switch {
		case rest[1] != 0:
			return short("reserved bytes are not zero")
		case int(e.file) >= files:
			return short("an entry names no file")
		case e.kind == kindEnd && n != 0, e.kind != kindEnd && (n == 0 || n > batchPages || e.page > ^uint32(0)-n):
			return short("an entry of so many pages")
		case e.kind < kindData || e.kind > kindEnd:
			return short("an entry of no known kind")
		case len(rest) < entryHead+4*int(n):
			return short("checksums go over the end")
		}
		rest = rest[entryHead:]
		if n > 0 {
			e.sums = make([]uint32, n)
			for i := range e.sums {
				e.sums[i] = binary.LittleEndian.Uint32(rest[4*i:])
			}
			rest = rest[4*n:]
		}
		b.entries = append(b.entries, e)
	}
	if !chunk.IsZero(rest) || len(rest) >= pageSize {
		return short("something behind the entries")
	}
	if b.pages() > batchPages || b.head+b.pages() != b.blocks {
		return short("the entries do not fill the batch")
	}
	return nil
}
