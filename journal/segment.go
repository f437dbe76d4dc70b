package journal

import (
	"fmt"
	"io"
	"path/filepath"
	"sort"
	"sync"

	"varve/internal/disk"
	"varve/internal/id"
)

// segment is what is known in memory of one segment file. Its file is opened by who needs it. When a
// segment is sealed, a new one takes its place; who has the old one reads on in the old file.
type segment struct {
	path   string
	header header
	size   int64   // bytes that hold whole records; of a sealed segment, of the file; under Journal.mu
	seal   *footer // nil: not sealed

	// marks is a sparse index of a segment that is not sealed, ascending and about markStep bytes apart, from the first
	// record on. Whoever needs a record in the middle of a segment that was not indexed reads it once to its end.
	mu      sync.Mutex
	indexed bool // marks cover all records, and go on to
	marks   []mark
}

// mark says where a record is, and in which range the times of it and of those up to the next mark are.
type mark struct {
	index  id.Index
	offset int64
	times  span
}

func (s *segment) first() id.Index { return s.header.at.Index + 1 }
func (s *segment) gap() bool       { return s.header.flags&flagGap != 0 }
func (s *segment) empty() bool     { return s.seal == nil && s.size == headerSize }

// note takes up the next record of the segment into marks. The caller holds s.mu.
func (s *segment) note(index id.Index, offset, time int64) {
	n := len(s.marks)
	if n == 0 || offset >= s.marks[n-1].offset+markStep {
		s.marks = append(s.marks, mark{index: index, offset: offset, times: span{time, time}})
		return
	}
	s.marks[n-1].times.add(time, false)
}

// markOf returns the mark before which the record index is not. The segment is indexed.
func (s *segment) markOf(index id.Index) mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].index > index })
	if i == 0 {
		return mark{index: s.first(), offset: headerSize}
	}
	return s.marks[i-1]
}

// index makes s, which is not sealed and whose file is f, indexed.
func (j *Journal) index(s *segment, f disk.File) error {
	size, _, err := j.extent(s)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.indexed {
		return nil
	}
	var sc scanner
	sc.reset(s.path, f, headerSize, size)
	for want := s.first(); ; want++ {
		off := sc.off
		raw, err := sc.next()
		if err == io.EOF {
			s.indexed = true
			return nil
		}
		if err == nil && frameIndex(raw) != want {
			err = fmt.Errorf("%s: offset %d: index: want %d, got %d: %w", s.path, off, want, frameIndex(raw), ErrCorrupt)
		}
		if err != nil {
			s.marks = nil
			return err
		}
		s.note(want, off, frameTime(raw))
	}
}

func segmentName(first id.Index) string { return fmt.Sprintf("%020d%s", uint64(first), segSuffix) }

// createFile makes dir/name with fill, so that it is there in full or not at all, whenever the
// power fails. It is open for writing when it is returned.
func createFile(fs disk.FS, dir, name string, fill func(disk.File) error) (disk.File, error) {
	path := filepath.Join(dir, name)
	f, err := fs.Open(path+tmpSuffix, disk.ReadWrite|disk.Create)
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(0); err == nil {
		err = fill(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fs.Rename(path+tmpSuffix, path)
	}
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// createSegment makes an empty segment after at.
func createSegment(o *Options, at Position, gap bool) (*segment, disk.File, error) {
	h := header{cluster: o.Cluster, at: at}
	if gap {
		h.flags |= flagGap
	}
	name := segmentName(at.Index + 1)
	f, err := createFile(o.FS, o.Dir, name, func(f disk.File) error {
		_, err := f.WriteAt(appendHeader(nil, segMagic, h), 0)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: create segment: %w", name, err)
	}
	return &segment{path: filepath.Join(o.Dir, name), header: h, size: headerSize, indexed: true}, f, nil
}

// begin ends the last segment and starts a new one after at. The caller holds appendMu.
func (j *Journal) begin(at Position, gap bool) error {
	if err := j.Sync(); err != nil { // only the last segment can be torn
		return err
	}
	s, f, err := createSegment(&j.o, at, gap)
	if err != nil {
		return j.poison(err)
	}
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	old := j.file
	j.file = f
	j.mu.Lock()
	j.segments = append(j.segments[:len(j.segments):len(j.segments)], s)
	j.last = at
	j.cut = false
	j.stable = headerSize
	j.mu.Unlock()
	if err := old.Close(); err != nil {
		return j.poison(fmt.Errorf("journal: close full segment: %w", err))
	}
	j.sealer.nudge()
	return nil
}
