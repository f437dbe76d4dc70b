package store

import (
	"errors"
	"io"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// falseHoles looks for blocks that are holes to the table, in extents that nobody wrote to when the server stopped, and hold data on the disk. There
// are none, unless the disk lost the mark of an extent that was written to: then the blocks are what it lost of the table, and would
// read as zeros. They get a checksum that no read accepts. Where data is the filesystem says, so holes cost no reading.
func (s *Store) falseHoles(e *entry, im *image, st *stage, but extents) error {
	f, ok := im.f.(disk.DataFinder)
	if !ok {
		return nil
	}
	for off := int64(dataOffset); ; {
		from, to, err := f.NextData(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || from <= dataOffset && to >= fileSize && off == dataOffset && s.all(f) {
			return nil // the filesystem does not tell
		}
		first := uint32((max(from, dataOffset) - dataOffset) / chunk.BlockSize)
		end := uint32((min(to, fileSize) - dataOffset + chunk.BlockSize - 1) / chunk.BlockSize)
		for b := first; b < end; {
			n := b
			for n < end && im.sums[n] == chunk.Hole && !but.has(n/pageSums) {
				n++
			}
			if n > b {
				if err := s.doubt(e, im, st, b, n); err != nil {
					return err
				}
			}
			b = n + 1
		}
		off = to
	}
}

// all reports whether a filesystem takes the unused part of a chunk file for data: it takes everything for data, then.
func (s *Store) all(f disk.DataFinder) bool {
	from, to, err := f.NextData(metaSize)
	return err == nil && from == metaSize && to >= fileSize
}

// doubt gives blocks from first up to end that are holes and not zeros a checksum that no read accepts.
func (s *Store) doubt(e *entry, im *image, st *stage, first, end uint32) error {
	return s.blocks(e, im, st, first, end, func(block uint32, data []byte) {
		if im.sums[block] != chunk.Hole || chunk.IsZero(data) {
			return
		}
		if im.sums[block] = ^chunk.Sum(data); im.sums[block] == chunk.Hole {
			im.sums[block] = 1
		}
		s.o.Logger.Error("block is a hole to the table and holds data", "chunk", e.id, "block", block)
	})
}
