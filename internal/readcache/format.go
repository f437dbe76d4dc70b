package readcache

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/zeebo/xxh3"

	"varve/internal/chunk"
	"varve/internal/id"
)

// A cache is a directory with three files. All integers are little-endian. A hash is XXH3-64 of what is before it in its record, seeded by the cache's salt
// and the record's number, so that a record in another's place is none.
//
//	lock         held by the process that uses the directory; empty
//	cache.index  header, files, slots
//	cache.data   slot n, 32 KiB, at n*32 KiB: eight blocks
//
//	header    0  8  magic "varvRCCH"
//	          8  4  version
//	         12  4  1 if the last run ended in order: then every record is exact
//	         16 16  UUID of the cache; its first half is the salt
//	         32 16  UUID of the cluster
//	         48  8  slots
//	         56  8  run, a random number
//	         64  8  if the last run ended in order: sum of XXH3-64 of all records of files and slots that are not empty
//	         72  8  hash
//	                zeros up to 4096
//	file n    0  8  inode, 0: none                           at 4096 + 64*n, for 16,384 files
//	          8  8  era
//	         16  8  asOf: index of an event after which no other session was let write
//	         24  8  run in which it was held for writing, 0: none since one that ended in order
//	         32 24  zero
//	         56  8  hash
//	slot n    0  8  chunk, 0: none                           at 1,052,672 + 128*n
//	          8  8  generation
//	         16  8  version, counted up through the cache
//	         24  4  place: slot of the chunk
//	         28  1  valid: bit per block
//	         29  1  queue: 1 small, 2 main
//	         30  2  zero
//	         32 64  hash of each block
//	         96 24  zero
//	        120  8  hash
//
// A block's hash is XXH3-64 of its bytes, seeded by salt, chunk, generation and number. A header that is not sound, or of another cluster, makes the cache empty; a
// file or slot that is not sound is none. Nothing is assumed of the disk.
//
// The witness is a file of a tmpfs, words of 8 bytes: magic, UUID (two), run, slots, state (1: it is kept, 2: it is not any more), two zeros; the era of each
// file; version<<8 | valid of each slot. Versions: 1, the first.
const (
	magic   = "varvRCCH"
	version = 1

	headerBytes  = 4096
	maxFiles     = 1 << 14
	fileBytes    = 64
	recordBytes  = 128
	recordsStart = headerBytes + maxFiles*fileBytes

	slotBlocks = 8
	slotBytes  = slotBlocks * chunk.BlockSize

	// MinBytes and MaxBytes bound the size of a cache.
	MinBytes = 16 << 20
	MaxBytes = 8 << 40
)

const (
	indexName = "cache.index"
	dataName  = "cache.data"
	lockName  = "lock"
)

const (
	witnessMagic = 0x7654_5243_5749_5431
	witnessHead  = 8
	witnessKept  = 1
	witnessLost  = 2
)

// Shared is the era of chunks that never change again.
const Shared uint64 = 0

var errHeader = errors.New("no sound header")

// slotsFor is how many slots a cache of a size has.
func slotsFor(size int64) int {
	return int((size-recordsStart)/(slotBytes+recordBytes)) / shards * shards
}

type header struct {
	clean   bool
	uuid    [16]byte
	cluster id.Cluster
	slots   uint64
	run     uint64
	digest  uint64 // if clean
}

func (h *header) salt() uint64 { return binary.LittleEndian.Uint64(h.uuid[:]) }

func (h *header) encode() []byte {
	b := make([]byte, headerBytes)
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[8:], version)
	if h.clean {
		b[12] = 1
	}
	copy(b[16:], h.uuid[:])
	copy(b[32:], h.cluster[:])
	le.PutUint64(b[48:], h.slots)
	le.PutUint64(b[56:], h.run)
	le.PutUint64(b[64:], h.digest)
	le.PutUint64(b[72:], xxh3.HashSeed(b[:72], h.salt()))
	return b
}

func decodeHeader(b []byte) (h header, err error) {
	le := binary.LittleEndian
	if len(b) != headerBytes || string(b[:8]) != magic || le.Uint32(b[8:]) != version || le.Uint32(b[12:]) > 1 {
		return h, errHeader
	}
	h.clean = b[12] == 1
	copy(h.uuid[:], b[16:])
	copy(h.cluster[:], b[32:])
	h.slots, h.run, h.digest = le.Uint64(b[48:]), le.Uint64(b[56:]), le.Uint64(b[64:])
	if le.Uint64(b[72:]) != xxh3.HashSeed(b[:72], h.salt()) || h.slots > MaxBytes/slotBytes || h.slots%shards != 0 || h.run == 0 {
		return header{}, errHeader
	}
	return h, nil
}

// fileRecord is what is kept of a file.
type fileRecord struct {
	ino, era, asOf, written uint64
}

func (r *fileRecord) encode(b []byte, salt uint64, n int) {
	le := binary.LittleEndian
	clear(b[:fileBytes])
	le.PutUint64(b, r.ino)
	le.PutUint64(b[8:], r.era)
	le.PutUint64(b[16:], r.asOf)
	le.PutUint64(b[24:], r.written)
	le.PutUint64(b[56:], xxh3.HashSeed(b[:56], salt^uint64(n)<<1))
}

func decodeFile(b []byte, salt uint64, n int) (r fileRecord, ok bool) {
	le := binary.LittleEndian
	r = fileRecord{ino: le.Uint64(b), era: le.Uint64(b[8:]), asOf: le.Uint64(b[16:]), written: le.Uint64(b[24:])}
	return r, r.ino != 0 && r.era != Shared && le.Uint64(b[56:]) == xxh3.HashSeed(b[:56], salt^uint64(n)<<1)
}

// key names what is in a slot: a piece of a chunk in a generation.
type key struct {
	chunk uint64
	gen   uint64
	place uint32
}

func (k key) hash() uint64 {
	h := k.chunk*0x9e3779b97f4a7c15 ^ k.gen ^ uint64(k.place)*0xc2b2ae3d27d4eb4f
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// generation names the blocks of a chunk under an era.
func generation(era, lost uint64) uint64 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], era)
	binary.LittleEndian.PutUint64(b[8:], lost)
	return xxh3.Hash(b[:])
}

// sumOf is the hash of block i of a slot.
func sumOf(data []byte, salt uint64, k key, i int) uint64 {
	var b [24]byte
	le := binary.LittleEndian
	le.PutUint64(b[:], k.chunk)
	le.PutUint64(b[8:], k.gen)
	le.PutUint64(b[16:], uint64(k.place)*slotBlocks+uint64(i))
	return xxh3.HashSeed(data, xxh3.HashSeed(b[:], salt))
}

// slotRecord is a slot as it is kept.
type slotRecord struct {
	key     key
	version uint64
	valid   uint8
	queue   uint8
	sums    [slotBlocks]uint64
}

func (r *slotRecord) encode(b []byte, salt uint64, n int) {
	le := binary.LittleEndian
	clear(b[:recordBytes])
	le.PutUint64(b, r.key.chunk)
	le.PutUint64(b[8:], r.key.gen)
	le.PutUint64(b[16:], r.version)
	le.PutUint32(b[24:], r.key.place)
	b[28], b[29] = r.valid, r.queue
	for i, v := range r.sums {
		le.PutUint64(b[32+8*i:], v)
	}
	le.PutUint64(b[120:], xxh3.HashSeed(b[:120], salt^uint64(n)<<1^1))
}

func decodeSlot(b []byte, salt uint64, n int) (r slotRecord, ok bool) {
	le := binary.LittleEndian
	r.key = key{chunk: le.Uint64(b), gen: le.Uint64(b[8:]), place: le.Uint32(b[24:])}
	r.version, r.valid, r.queue = le.Uint64(b[16:]), b[28], b[29]
	for i := range r.sums {
		r.sums[i] = le.Uint64(b[32+8*i:])
	}
	return r, r.key.chunk != 0 && r.valid != 0 && r.version != 0 && r.version < 1<<55 && r.key.place < chunk.Size/slotBytes && r.queue >= inSmall && r.queue <= inMain &&
		le.Uint64(b[120:]) == xxh3.HashSeed(b[:120], salt^uint64(n)<<1^1)
}

func bits8(v uint8) int { return bits.OnesCount8(v) }
