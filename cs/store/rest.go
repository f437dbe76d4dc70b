package store

// The file `active.rest` lists chunks all of whose extents are active, beside those that the activity log marks. It is made when the log is lost and
// there are more chunks than a log can mark, before the new log is, and removed when the last of them was settled; until then it is not changed,
// so that a chunk of it counts as active after a crash though it was settled.
//
//	offset  bytes  what
//	0       8      magic "VRVREST1"
//	8       4      version, 1
//	12      4      zero
//	16      16     cluster
//	32      8      number of chunks
//	40      8*n    their ids
//	40+8*n  4      checksum of all before

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// Of more than mostMarked chunks a new log marks the first keepMarked, which leaves room for marks. Tests change them.
var mostMarked, keepMarked = maxActiveChunks, maxDistrust

const (
	restName  = "active.rest"
	restMagic = "VRVREST1"
	restHead  = 40
)

// writeRest makes the file durably.
func writeRest(fsys disk.FS, dir string, cluster id.Cluster, all []id.ChunkID) error {
	b := make([]byte, restHead, restHead+8*len(all)+4)
	copy(b, restMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], cluster[:])
	le.PutUint64(b[32:], uint64(len(all)))
	for _, c := range all {
		b = le.AppendUint64(b, uint64(c))
	}
	b = le.AppendUint32(b, chunk.Sum(b))
	path := filepath.Join(dir, restName)
	f, err := fsys.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		if _, err = f.WriteAt(b, 0); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// readRest returns what the file lists, nothing if there is none. Errors of what it holds wrap ErrCorrupt.
func readRest(fsys disk.FS, dir string, cluster id.Cluster) ([]id.ChunkID, error) {
	f, err := fsys.Open(filepath.Join(dir, restName), disk.ReadOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size < restHead+4 || size > restHead+4+8*maxIndex {
		return nil, fmt.Errorf("%s is %d bytes long: %w", restName, size, ErrCorrupt)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = ErrCorrupt
		}
		return nil, fmt.Errorf("%s: %d of %d bytes: %w", restName, n, size, err)
	}
	le := binary.LittleEndian
	body := b[:len(b)-4]
	switch {
	case string(b[:8]) != restMagic || le.Uint32(b[8:]) != formatVersion || chunk.Sum(body) != le.Uint32(b[len(body):]):
		return nil, fmt.Errorf("%s: wrong magic, version or checksum: %w", restName, ErrCorrupt)
	case id.Cluster(b[16:32]) != cluster || le.Uint64(b[32:]) != uint64(len(body)-restHead)/8 || (len(body)-restHead)%8 != 0:
		return nil, fmt.Errorf("%s: of another cluster, or %d chunks in %d bytes: %w", restName, le.Uint64(b[32:]), size, ErrCorrupt)
	}
	all := make([]id.ChunkID, 0, len(body)/8)
	for at := restHead; at < len(body); at += 8 {
		all = append(all, id.ChunkID(le.Uint64(body[at:])))
	}
	return all, nil
}

// recoverRest makes active what the file lists, all chunks if it is damaged.
func (s *Store) recoverRest() error {
	all, err := readRest(s.o.FS, s.o.Dir, s.o.Cluster)
	if errors.Is(err, ErrCorrupt) {
		s.o.Logger.Error("list of active chunks is damaged: every chunk is unclean", "chunks", len(s.ids), "cause", err)
		all = s.ids
		err = writeRest(s.o.FS, s.o.Dir, s.o.Cluster, all)
	}
	if err != nil {
		return err
	}
	for _, c := range all {
		e := s.chunks[c]
		if e == nil || e.rest.Swap(true) {
			continue
		}
		if e.marked == 0 {
			s.active.Add(1)
		}
		e.marked, e.replay = allExtents, allExtents
		s.rest.Add(1)
	}
	if len(all) > 0 && s.rest.Load() == 0 {
		s.removeRest()
	}
	return nil
}

// quieted notes that a chunk has no active extents any more.
func (s *Store) quieted(e *entry) {
	s.active.Add(-1)
	if e.rest.CompareAndSwap(true, false) && s.rest.Add(-1) == 0 {
		s.removeRest()
	}
}

// removeRest removes the file. If it stays, its chunks are unclean once more after a crash, which does no harm.
func (s *Store) removeRest() {
	err := s.o.FS.Remove(filepath.Join(s.o.Dir, restName))
	if err == nil {
		err = s.o.FS.SyncDir(s.o.Dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Logger.Warn("list of active chunks not removed, going on", "dir", s.o.Dir, "err", err)
	}
}
