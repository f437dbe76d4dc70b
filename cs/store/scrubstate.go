package store

// The file `scrub` says how far the scrub is. It has two slots of 4096 bytes, written in turn; the valid one with the higher sequence
// counts. It need not be on stable media: what a crash takes is scrubbed again. If both are damaged a new pass begins.
//
//	offset  bytes  what (slot)
//	0       8      magic "VRVSCRB1"
//	8       4      version, 1
//	12      1      1: a pass is under way, 2: the rate below was set by somebody; added up
//	13      3      reserved
//	16      16     cluster
//	32      8      sequence, from 1
//	40      8      chunk that comes next
//	48      4      its block that comes next
//	52      4      reserved
//	56      8      rate in bytes/s, 0: off
//	64      8      passes that came to their end
//	72      8      nanoseconds since 1970 UTC when the last did
//	80      8      nanoseconds that it took
//	88      8      nanoseconds since 1970 UTC when this one began
//	96      8      chunks, 104: bytes, 112: bad blocks found in this pass
//	120     3972   reserved
//	4092    4      checksum of bytes 0 to 4091

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

const (
	scrubName    = "scrub"
	scrubMagic   = "VRVSCRB1"
	scrubRunning = 1
	scrubRateSet = 2
)

// scrubState is the decoded content of a slot.
type scrubState struct {
	sequence uint64
	running  bool
	rateSet  bool
	chunk    id.ChunkID
	block    uint32
	rate     int64

	passes               uint64
	passed, took, begun  int64
	chunks, bytes, found uint64
}

// encode fills b, one slot long.
func (st *scrubState) encode(b []byte, cluster id.Cluster) {
	clear(b[:slotSize])
	copy(b, scrubMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	if st.running {
		b[12] |= scrubRunning
	}
	if st.rateSet {
		b[12] |= scrubRateSet
	}
	copy(b[16:], cluster[:])
	binary.LittleEndian.PutUint64(b[40:], uint64(st.chunk))
	binary.LittleEndian.PutUint32(b[48:], st.block)
	for at, v := range map[int]uint64{32: st.sequence, 56: uint64(st.rate), 64: st.passes, 72: uint64(st.passed), 80: uint64(st.took), 88: uint64(st.begun),
		96: st.chunks, 104: st.bytes, 112: st.found} {
		binary.LittleEndian.PutUint64(b[at:], v)
	}
	seal(b)
}

// decodeScrub reads one slot. Its errors wrap ErrCorrupt.
func decodeScrub(b []byte) (scrubState, id.Cluster, error) {
	if err := unseal(b, scrubMagic); err != nil {
		return scrubState{}, id.Cluster{}, err
	}
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	st := scrubState{
		sequence: u(32), running: b[12]&scrubRunning != 0, rateSet: b[12]&scrubRateSet != 0, chunk: id.ChunkID(u(40)),
		block: binary.LittleEndian.Uint32(b[48:]), rate: int64(u(56)), passes: u(64), passed: int64(u(72)), took: int64(u(80)), begun: int64(u(88)),
		chunks: u(96), bytes: u(104), found: u(112),
	}
	if b[12] > scrubRunning|scrubRateSet || !chunk.IsZero(b[13:16]) || !chunk.IsZero(b[52:56]) || !chunk.IsZero(b[120:slotSize-4]) ||
		st.sequence == 0 || st.block >= chunk.Blocks || st.rate < 0 || st.rate > maxScrubRate {
		return scrubState{}, id.Cluster{}, fmt.Errorf("scrub: sequence %d, block %d, rate %d, or reserved bytes are not zero: %w", st.sequence, st.block, st.rate, ErrCorrupt)
	}
	return st, id.Cluster(b[16:32]), nil
}

// scrubFile is the open file. Its methods may be called at once.
type scrubFile struct {
	mu       sync.Mutex
	f        disk.File
	cluster  id.Cluster
	sequence uint64
	buf      []byte
}

// openScrub opens the file of a directory, or makes it, and returns what it holds.
func openScrub(fsys disk.FS, dir string, cluster id.Cluster) (*scrubFile, scrubState, error) {
	f, err := fsys.Open(filepath.Join(dir, scrubName), disk.ReadWrite|disk.Create)
	if err != nil {
		return nil, scrubState{}, err
	}
	b := make([]byte, 2*slotSize)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) && !disk.Medium(err) {
		return nil, scrubState{}, errors.Join(err, f.Close())
	}
	var st scrubState
	for i := range 2 {
		s, of, err := decodeScrub(b[i*slotSize : (i+1)*slotSize])
		if err == nil && of == cluster && s.sequence > st.sequence {
			st = s
		}
	}
	return &scrubFile{f: f, cluster: cluster, sequence: st.sequence, buf: make([]byte, slotSize)}, st, nil
}

// save writes the state to the slot that is not the newest.
func (k *scrubFile) save(st scrubState) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	st.block %= chunk.Blocks
	k.sequence++
	st.sequence = k.sequence
	st.encode(k.buf, k.cluster)
	_, err := k.f.WriteAt(k.buf, int64(st.sequence%2)*slotSize)
	return err
}
