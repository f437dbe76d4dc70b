package store

// The file `quarantine` lists the blocks that are bad: what is on the disk does not match the checksum, or cannot be read. It has two
// regions of 102400 bytes, written in turn; the valid one with the higher generation counts. It is made at its full length and filled
// with zeros, so that noting a block needs no room.
//
//	offset  bytes  what (region)
//	0       8      magic "VRVBADB1"
//	8       4      version, 1
//	12      4      number of entries, at most 4096
//	16      16     cluster
//	32      8      generation, from 1
//	40      4      checksum of the entries
//	44      4048   reserved
//	4092    4      checksum of bytes 0 to 4091
//	4096           entries of 24 bytes, by chunk and block; zeros behind them
//
//	offset  bytes  what (entry)
//	0       8      chunk id
//	8       8      nanoseconds since 1970 UTC when it was found
//	16      4      block
//	20      1      cause: 1 checksum, 2 read error
//	21      3      reserved
//
// A block is listed before anybody is told that it is bad, and taken off the list when a whole new block (or a hole) is on stable media in its
// place, before whoever wrote it is told. In between a crash leaves it listed, so that a bad block is never given a new
// checksum because it was active; what a crash takes then was never acknowledged. If both regions are damaged the list is lost: blocks
// outside active extents are found again when they are read.

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

const (
	quarantineName  = "quarantine"
	quarantineMagic = "VRVBADB1"
	badSize         = 24
	// MaxBad is the number of bad blocks that a disk may have; with one more it is retired.
	MaxBad        = 4096
	badRegionSize = slotSize + MaxBad*badSize
	// maxMended bounds the blocks that are remembered after they were taken off the list, mendedFor how long they are.
	maxMended = 256
	mendedFor = 30 * time.Second
)

// Cause says what is wrong with a block.
type Cause uint8

// The causes.
const (
	Rotten     Cause = 1 // the data does not match the checksum
	Unreadable Cause = 2 // the disk answered with an error
)

func (c Cause) String() string {
	switch c {
	case Rotten:
		return "checksum"
	case Unreadable:
		return "read error"
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

// BadBlock is one block on the list.
type BadBlock struct {
	Chunk id.ChunkID
	Block uint32
	Cause Cause
	Since time.Time
}

func (b BadBlock) compare(o BadBlock) int {
	return cmp.Or(cmp.Compare(b.Chunk, o.Chunk), cmp.Compare(b.Block, o.Block))
}

// ErrBadBlock says that a block is in quarantine. The error wraps fserr.BadChecksum or fserr.IO as well.
var ErrBadBlock = errors.New("block is in quarantine")

// quarantine is the list. Its methods may be called at once; they return when the change is on stable media.
//
// Lock order: quarantine.mu comes after every other lock and is held during I/O, since changes are rare.
type quarantine struct {
	f          disk.File
	cluster    id.Cluster
	mu         sync.Mutex
	blocks     map[id.ChunkID]map[uint32]BadBlock
	count      int
	unreadable int
	generation uint64
	err        error // sticky: what is on the disk is not known
	// mended is what was taken off the list lately, oldest first. A guest may write a bad block anew before anybody has asked, and that
	// the disk had lost it is to be known all the same.
	mended []mendedBlock
}

type mendedBlock struct {
	BadBlock
	at time.Time
}

// openQuarantine opens the list of a directory, or makes it. damaged says that there was one that could not be read.
func openQuarantine(fsys disk.FS, dir string, cluster id.Cluster) (q *quarantine, damaged bool, err error) {
	path := filepath.Join(dir, quarantineName)
	list, generation, err := readQuarantine(fsys, path, cluster)
	damaged = errors.Is(err, ErrCorrupt)
	if damaged || errors.Is(err, fs.ErrNotExist) {
		err = makeQuarantine(fsys, dir, cluster)
	}
	if err != nil {
		return nil, damaged, err
	}
	f, err := fsys.Open(path, disk.ReadWrite)
	if err != nil {
		return nil, damaged, err
	}
	q = &quarantine{f: f, cluster: cluster, blocks: make(map[id.ChunkID]map[uint32]BadBlock), generation: max(generation, 1)}
	for _, b := range list {
		q.put(b)
	}
	return q, damaged, nil
}

func makeQuarantine(fsys disk.FS, dir string, cluster id.Cluster) error {
	path := filepath.Join(dir, quarantineName)
	f, err := fsys.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	b := make([]byte, 2*badRegionSize)
	encodeBad(b[badRegionSize:], cluster, 1, nil)
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// readQuarantine returns the list in a file and its generation.
func readQuarantine(fsys disk.FS, path string, cluster id.Cluster) (list []BadBlock, generation uint64, err error) {
	f, err := fsys.Open(path, disk.ReadOnly)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	b := make([]byte, 2*badRegionSize)
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	} else if n < len(b) {
		return nil, 0, fmt.Errorf("%s: %d bytes, want %d: %w", path, n, len(b), ErrCorrupt)
	}
	var faults []error
	for i := range 2 {
		of, g, l, err := decodeBad(b[i*badRegionSize : (i+1)*badRegionSize])
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("region %d: %w", i, err))
		case of != cluster:
			return nil, 0, fmt.Errorf("%s is of cluster %v, want %v: %w", path, of, cluster, fserr.WrongCluster)
		case g > generation:
			list, generation = l, g
		}
	}
	if generation == 0 {
		return nil, 0, fmt.Errorf("%s: %w", path, errors.Join(faults...))
	}
	return list, generation, nil
}

// encodeBad fills b, one region long, with a sorted list.
func encodeBad(b []byte, cluster id.Cluster, generation uint64, list []BadBlock) {
	clear(b[:badRegionSize])
	for i, e := range list {
		at := b[slotSize+i*badSize:]
		binary.LittleEndian.PutUint64(at, uint64(e.Chunk))
		binary.LittleEndian.PutUint64(at[8:], uint64(e.Since.UnixNano()))
		binary.LittleEndian.PutUint32(at[16:], e.Block)
		at[20] = byte(e.Cause)
	}
	copy(b, quarantineMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(list)))
	copy(b[16:], cluster[:])
	binary.LittleEndian.PutUint64(b[32:], generation)
	binary.LittleEndian.PutUint32(b[40:], chunk.Sum(b[slotSize:][:len(list)*badSize]))
	seal(b)
}

// decodeBad reads one region. Its errors wrap ErrCorrupt.
func decodeBad(b []byte) (cluster id.Cluster, generation uint64, list []BadBlock, err error) {
	bad := func(format string, args ...any) (id.Cluster, uint64, []BadBlock, error) {
		return id.Cluster{}, 0, nil, fmt.Errorf(format+": %w", append(args, ErrCorrupt)...)
	}
	if err := unseal(b, quarantineMagic); err != nil {
		return id.Cluster{}, 0, nil, err
	}
	n := binary.LittleEndian.Uint32(b[12:])
	if n > MaxBad {
		return bad("%d entries, limit %d", n, MaxBad)
	}
	entries := b[slotSize:][:n*badSize]
	if want, got := binary.LittleEndian.Uint32(b[40:]), chunk.Sum(entries); want != got {
		return bad("entries: checksum %08x, want %08x", got, want)
	}
	if generation = binary.LittleEndian.Uint64(b[32:]); generation == 0 || !chunk.IsZero(b[44:slotSize-4]) || !chunk.IsZero(b[slotSize+n*badSize:badRegionSize]) {
		return bad("generation %d, or reserved bytes are not zero", generation)
	}
	for i := range int(n) {
		at := entries[i*badSize:][:badSize]
		e := BadBlock{
			Chunk: id.ChunkID(binary.LittleEndian.Uint64(at)), Since: time.Unix(0, int64(binary.LittleEndian.Uint64(at[8:]))).UTC(),
			Block: binary.LittleEndian.Uint32(at[16:]), Cause: Cause(at[20]),
		}
		if e.Block >= chunk.Blocks || e.Cause != Rotten && e.Cause != Unreadable || !chunk.IsZero(at[21:]) ||
			i > 0 && list[i-1].compare(e) >= 0 {
			return bad("entry %d: chunk %v block %d cause %d", i, e.Chunk, e.Block, at[20])
		}
		list = append(list, e)
	}
	return id.Cluster(b[16:32]), generation, list, nil
}

func (q *quarantine) put(b BadBlock) {
	m := q.blocks[b.Chunk]
	if m == nil {
		m = make(map[uint32]BadBlock)
		q.blocks[b.Chunk] = m
	}
	m[b.Block] = b
	q.count++
	if b.Cause == Unreadable {
		q.unreadable++
	}
}

func (q *quarantine) cut(b BadBlock) {
	m := q.blocks[b.Chunk]
	if delete(m, b.Block); len(m) == 0 {
		delete(q.blocks, b.Chunk)
	}
	q.count--
	if b.Cause == Unreadable {
		q.unreadable--
	}
}

// errTooManyBad says that there is no room on the list.
var errTooManyBad = fmt.Errorf("more than %d bad blocks", MaxBad)

// add notes blocks of a chunk. fresh is how many were not listed.
func (q *quarantine) add(c id.ChunkID, blocks []uint32, cause Cause) (fresh int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for _, b := range blocks {
		if _, ok := q.blocks[c][b]; ok {
			continue
		}
		if q.count >= MaxBad {
			err = errTooManyBad
			break
		}
		q.put(BadBlock{Chunk: c, Block: b, Cause: cause, Since: now})
		fresh++
	}
	if fresh > 0 {
		err = errors.Join(err, q.write())
	}
	return fresh, err
}

// remove takes blocks [first, end) of a chunk off the list and returns how many were on it.
func (q *quarantine) remove(c id.ChunkID, first, end uint32) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for b, e := range q.blocks[c] {
		if b >= first && b < end {
			q.cut(e)
			q.mended = append(q.mended, mendedBlock{e, now})
			n++
		}
	}
	if n == 0 {
		return 0, nil
	}
	q.mended = q.mended[max(0, len(q.mended)-maxMended):]
	return n, q.write()
}

// lately returns the blocks that were taken off the list in the last mendedFor, at most maxMended of them, oldest first.
func (q *quarantine) lately() (list []BadBlock) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mended = slices.DeleteFunc(q.mended, func(b mendedBlock) bool { return time.Since(b.at) > mendedFor })
	for _, b := range q.mended {
		list = append(list, b.BadBlock)
	}
	return list
}

// keep takes off the list what known does not want, and returns how many blocks each chunk has.
func (q *quarantine) keep(known func(id.ChunkID) bool) (map[id.ChunkID]int32, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	left, dropped := make(map[id.ChunkID]int32), false
	for c, m := range maps.Clone(q.blocks) {
		if known(c) {
			left[c] = int32(len(m))
			continue
		}
		dropped = true
		for _, e := range maps.Clone(m) {
			q.cut(e)
		}
	}
	if !dropped {
		return left, nil
	}
	return left, q.write()
}

// write puts the list on stable media. The caller holds mu.
func (q *quarantine) write() error {
	if q.err != nil {
		return q.err
	}
	b := make([]byte, badRegionSize)
	encodeBad(b, q.cluster, q.generation+1, q.sorted(q.count))
	if _, err := q.f.WriteAt(b, int64((q.generation+1)%2)*badRegionSize); err != nil {
		q.err = err
	} else {
		q.err = q.f.Sync()
	}
	q.generation++
	return q.err
}

func (q *quarantine) sorted(limit int) []BadBlock {
	list := make([]BadBlock, 0, q.count)
	for _, m := range q.blocks {
		for _, b := range m {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, BadBlock.compare)
	return list[:min(limit, len(list))]
}

// first returns the first of the blocks [from, end) that is listed.
func (q *quarantine) first(c id.ChunkID, from, end uint32) (bad BadBlock, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for b, e := range q.blocks[c] {
		if b >= from && b < end && (!ok || b < bad.Block) {
			bad, ok = e, true
		}
	}
	return bad, ok
}

// of returns the listed blocks of a chunk.
func (q *quarantine) of(c id.ChunkID) map[uint32]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	set := make(map[uint32]bool, len(q.blocks[c]))
	for b := range q.blocks[c] {
		set[b] = true
	}
	return set
}

func (q *quarantine) counts() (blocks, unreadable int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count, q.unreadable
}

func (q *quarantine) list(limit int) []BadBlock {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sorted(limit)
}

func (q *quarantine) chunks(limit int) []id.ChunkID {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := slices.Sorted(maps.Keys(q.blocks))
	return all[:min(limit, len(all))]
}
