package store

import (
	"errors"
	"fmt"
	"path/filepath"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// Owned says whether Open would take the directory for that of the store: it is where and what it was, of the cluster and server that o
// names, and in service. It is for who must know before Open.
func Owned(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	f, err := openLabel(&o)
	if err != nil {
		return fmt.Errorf("store %s: %w", o.Dir, err)
	}
	return f.Close()
}

// maxDistrust is the number of chunks that Distrust leaves to be read when they are opened; it reads all others itself.
const maxDistrust = maxActiveChunks / 2

// Distrust is for a store that is not open and has lost writes that were flushed, as with the journal in front of its disk. It makes each
// chunk a joining replica that has lost its place, so that it is never read before it was rebuilt from another one, and sees to it that its
// checksums are made again from what is on the disk, so that the rebuild finds every block that differs. What is on the disk stays. It
// may be repeated, and must be if it was interrupted. It returns how many chunks there are; those without a readable header are left as
// they are, since they are lost anyway.
func Distrust(o Options) (int, error) {
	o, err := o.withDefaults()
	if err != nil {
		return 0, err
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return 0, err
	}
	defer unlock()
	f, err := openLabel(&o)
	if err != nil {
		return 0, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	s := &Store{o: o}
	if err := s.probe(); err != nil {
		return 0, err
	}
	ids, _, err := listChunks(o.FS, o.Dir)
	if err != nil {
		return 0, err
	}
	if err := removeIndex(o.FS, o.Dir); err != nil {
		return 0, err
	}
	st := newStage()
	marked := ids[:min(len(ids), maxDistrust)]
	for i, c := range ids {
		if err := s.distrust(c, st, i >= len(marked)); err != nil {
			return 0, fmt.Errorf("chunk %v: %w", c, err)
		}
	}
	// Last, so that until then the log in place, whatever it says, goes with chunks that all are joining by then.
	return len(ids), makeActivity(o.FS, o.Dir, o.Cluster, marked)
}

// distrust writes the header of a chunk as that of a joining replica, and with all its table as well.
func (s *Store) distrust(c id.ChunkID, st *stage, table bool) error {
	f, err := s.openFile(s.pathOf(c), disk.ReadWrite)
	if err != nil {
		return err
	}
	err = s.distrustFile(f, c, st, table)
	return errors.Join(err, f.Close())
}

func (s *Store) distrustFile(f disk.File, c id.ChunkID, st *stage, table bool) error {
	meta := disk.AlignedBuffer(metaSize)
	if _, err := f.ReadAt(meta, 0); err != nil {
		return err
	}
	h, err := newestHeader(meta)
	if err == nil {
		err = h.check(s.o.Cluster, c)
	}
	if err != nil {
		s.o.Logger.Error("chunk has no readable header", "chunk", c, "cause", err)
		return nil
	}
	if table {
		if err := remakeTable(f, st, &h, meta); err != nil {
			return err
		}
		if _, err := f.WriteAt(meta[tableOffset:], tableOffset); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	slot := int64(h.sequence%2) * slotSize // as in writeHeader
	h.sequence++
	h.rec.State = repl.Tracking // which a start finds as lost
	h.encode(st.buf)
	if _, err := f.WriteAt(st.buf[:slotSize], slot); err != nil {
		return err
	}
	return f.Sync()
}

// remakeTable makes the table in meta, and what the header says of it, from what is on the disk. A block that cannot be read gets a
// checksum that it does not have elsewhere, so that the rebuild writes it.
func remakeTable(f disk.File, st *stage, h *header, meta []byte) error {
	sums := make([]uint32, chunk.Blocks)
	for i := range uint32(chunk.Extents) {
		decodePage(sums[i*pageSums:(i+1)*pageSums], meta[tableOffset+i*pageSize:][:pageSize])
	}
	for first := uint32(0); first < chunk.Blocks; first += stageSize / chunk.BlockSize {
		_, all := f.ReadAt(st.buf, place(first))
		if all != nil && !disk.Medium(all) {
			return all
		}
		for i := range uint32(stageSize / chunk.BlockSize) {
			b, sum := st.buf[i*chunk.BlockSize:(i+1)*chunk.BlockSize], &sums[first+i]
			if all != nil {
				if _, err := f.ReadAt(b, place(first+i)); err != nil {
					*sum = max(1, ^*sum)
					continue
				}
			}
			if *sum = chunk.Sum(b); chunk.IsZero(b) {
				*sum = chunk.Hole
			}
		}
	}
	for i := range uint32(chunk.Extents) {
		page := meta[tableOffset+i*pageSize:][:pageSize]
		encodePage(page, sums[i*pageSums:(i+1)*pageSums])
		h.pages[i] = chunk.Sum(page)
	}
	return nil
}
