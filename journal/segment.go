package journal

import (
	"fmt"
	"path/filepath"
	"sort"
	"sync"

	"varve/internal/disk"
	"varve/internal/id"
)

// segment is what is known in memory of one segment file. Its file is opened by who needs it.
type segment struct {
	path   string
	header header
	size   int64 // bytes that hold whole records; under Journal.mu

	// marks is a sparse index, ascending and a step apart. It is extended by whoever passes its end,
	// so a sealed segment is read for its index only as far as someone reads it.
	mu    sync.Mutex
	marks []mark
}

// mark says where a record is.
type mark struct {
	index  id.Index
	offset int64
	time   int64
}

func (s *segment) first() id.Index { return s.header.at.Index + 1 }
func (s *segment) gap() bool       { return s.header.flags&flagGap != 0 }

// note adds a mark if it is due and returns the offset from which the next one is.
func (s *segment) note(m mark) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := int64(headerSize + markStep)
	if n := len(s.marks); n > 0 {
		due = s.marks[n-1].offset + markStep
	}
	if m.offset >= due {
		s.marks = append(s.marks, m)
		due = m.offset + markStep
	}
	return due
}

// lastMark returns the last mark for which before is true, or the start of the segment. Before must
// be true for a first part of the segment only.
func (s *segment) lastMark(before func(mark) bool) mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.marks), func(i int) bool { return !before(s.marks[i]) })
	if i == 0 {
		return mark{index: s.first(), offset: headerSize, time: s.header.at.Time}
	}
	return s.marks[i-1]
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
	return &segment{path: filepath.Join(o.Dir, name), header: h, size: headerSize}, f, nil
}

// begin seals the last segment and starts a new one after at. The caller holds appendMu.
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
	j.stable = headerSize
	j.mu.Unlock()
	if err := old.Close(); err != nil {
		return j.poison(fmt.Errorf("journal: close sealed segment: %w", err))
	}
	return nil
}
