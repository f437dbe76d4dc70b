package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// RepairWrite writes whole blocks that were copied from the source of a rebuild, starting at block,
// and returns how many it wrote: what is fresh is left out, since it is newer than the copy. Of a
// block of which a part is fresh that part is kept. A block whose sum is chunk.Hole becomes a hole;
// data may be nil if all are, and holds zeros for it otherwise.
func (s *Store) RepairWrite(c id.ChunkID, epoch id.Epoch, block uint32, data []byte, sums []uint32) (written int, err error) {
	n := uint32(len(sums))
	if n == 0 || block >= chunk.Blocks || n > chunk.Blocks-block {
		return 0, fmt.Errorf("chunk %v: repair of %d blocks at block %d: %w", c, n, block, fserr.Invalid)
	}
	if data == nil {
		for i, sum := range sums {
			if sum != chunk.Hole {
				return 0, fmt.Errorf("chunk %v: repair of block %d: no data: %w", c, block+uint32(i), fserr.Invalid)
			}
		}
	} else if len(data) != len(sums)*chunk.BlockSize {
		return 0, fmt.Errorf("chunk %v: repair of %d blocks with %d bytes: %w", c, n, len(data), fserr.Invalid)
	} else if i := chunk.VerifySums(sums, 0, data); i >= 0 {
		return 0, fmt.Errorf("chunk %v: repair of block %d: payload does not match %08x: %w", c, block+uint32(i), sums[i], fserr.BadChecksum)
	}
	if err := s.begin(); err != nil {
		return 0, err
	}
	defer s.end()
	s.makeRoom(c)
	e, _, err := s.enter(c, repl.Input{Kind: repl.Repair, Epoch: epoch})
	if err != nil {
		return 0, err
	}
	defer e.gate.RUnlock()
	t := e.lock(block, block+n, true)
	defer e.unlock(t)
	if err := s.activate(e, block, block+n); err != nil {
		return 0, err
	}
	written, err = s.mend(e, block, data, sums)
	s.release(e, block, block+n, false, 0, 0)
	return written, err
}

// need is what a repair has to do with a block.
type need uint8

const (
	needNone  need = iota // it is fresh
	needDig               // the source has a hole
	needPut               // nothing of it is fresh
	needMerge             // a part of it is fresh
)

func (e *entry) need(block, sum uint32) need {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch f := e.rep.Fresh; {
	case f.Whole(block):
		return needNone
	case f.Spans(block) != nil:
		return needMerge
	case sum == chunk.Hole:
		return needDig
	}
	return needPut
}

// mend goes through the blocks in runs that need the same.
func (s *Store) mend(e *entry, block uint32, data []byte, sums []uint32) (written int, err error) {
	for i := 0; i < len(sums); {
		what := e.need(block+uint32(i), sums[i])
		j := i + 1
		for j < len(sums) && what != needMerge && e.need(block+uint32(j), sums[j]) == what {
			j++
		}
		at := block + uint32(i)
		switch what {
		case needDig:
			err = s.dig(e, at, block+uint32(j))
		case needPut:
			err = s.write(e, at*chunk.BlockSize, data[i*chunk.BlockSize:j*chunk.BlockSize], sums[i:j])
		case needMerge:
			from := zeros[:chunk.BlockSize]
			if sums[i] != chunk.Hole {
				from = data[i*chunk.BlockSize:][:chunk.BlockSize]
			}
			err = s.merge(e, at, from)
		}
		if err != nil {
			return written, err
		}
		if what != needNone {
			written += j - i
		}
		i = j
	}
	return written, nil
}

// merge takes the bytes of a block that are not fresh from the source's copy of it. Afterwards all of
// the block is as new as the fresh bytes, so it counts as fresh.
func (s *Store) merge(e *entry, block uint32, from []byte) error {
	p := getPage()
	defer putPage(p)
	own, both := p[:chunk.BlockSize], p[chunk.BlockSize:]
	if err := s.old(e, block, own); err != nil {
		return err
	}
	copy(both, from)
	e.mu.Lock()
	for _, p := range e.rep.Fresh.Spans(block) {
		copy(both[p.From:p.To], own[p.From:p.To])
	}
	e.mu.Unlock()
	if err := s.put(e, block, both, []uint32{chunk.Sum(both)}); err != nil {
		return err
	}
	e.mu.Lock()
	e.rep.Fresh.NoteWhole(block)
	e.mu.Unlock()
	return nil
}

// Verify reads every block of a chunk, in any state of the replica. It returns how many there are, holes
// left out, how many do not match their checksum or cannot be read, and a digest that is equal for
// chunks of equal contents.
func (s *Store) Verify(c id.ChunkID) (blocks, bad int, digest [32]byte, err error) {
	if err := s.begin(); err != nil {
		return 0, 0, digest, err
	}
	defer s.end()
	h := sha256.New()
	for b := uint32(0); b < chunk.Blocks; b += stageSize / chunk.BlockSize {
		n, m, err := s.verify(c, b, h.Write)
		if err != nil {
			return 0, 0, digest, err
		}
		blocks, bad = blocks+n, bad+m
	}
	return blocks, bad, [32]byte(h.Sum(nil)), nil
}

var verifyStages = sync.Pool{New: func() any { return newStage() }}

// verify reads one stage of blocks. The gate is not held longer, so that a change of state need not
// wait for a whole chunk to be read.
func (s *Store) verify(c id.ChunkID, first uint32, hash func([]byte) (int, error)) (blocks, bad int, err error) {
	e, err := s.hold(c)
	if err != nil {
		return 0, 0, err
	}
	defer e.gate.RUnlock()
	// Not of the store's stages: who has one of those must not wait for blocks.
	st := verifyStages.Get().(*stage)
	defer verifyStages.Put(st)
	if !s.hollow(e, first, st.sums[:]) {
		if err := s.read(e, first, st.buf, st.sums[:]); err != nil {
			bad = s.count(e, first, st)
		}
	}
	var four [4]byte
	for _, sum := range st.sums {
		if sum != chunk.Hole {
			blocks++
		} else {
			sum = zeroSum
		}
		binary.LittleEndian.PutUint32(four[:], sum)
		hash(four[:])
	}
	return blocks, bad, nil
}

// zeroSum is the checksum of a block of zeros that is not a hole.
var zeroSum = chunk.Sum(zeros[:chunk.BlockSize])

// hollow tells whether blocks are all holes, and good, so that there is nothing to read; sums has their checksums then.
func (s *Store) hollow(e *entry, first uint32, sums []uint32) bool {
	t := e.lock(first, first+uint32(len(sums)), false)
	defer e.unlock(t)
	e.mu.Lock()
	copy(sums, e.img.sums[first:])
	e.mu.Unlock()
	return s.refuseBad(e, first, len(sums)) == nil && !slices.ContainsFunc(sums, func(sum uint32) bool { return sum != chunk.Hole })
}

// count reads the blocks of a stage one by one and returns how many are bad.
func (s *Store) count(e *entry, first uint32, st *stage) (bad int) {
	for i := range st.sums {
		if s.read(e, first+uint32(i), st.buf[:chunk.BlockSize], st.sums[i:i+1]) != nil {
			bad++
		}
	}
	return bad
}
