package raftlog

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"varve/internal/disk"
)

// Open opens the log in a directory, or makes an empty one.
func Open(o Options) (*Log, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegment
	}
	if o.SegmentBytes < headerSize+4*recordHeader || o.SegmentBytes%align != 0 {
		return nil, fmt.Errorf("raft log: segments of %d bytes: want a multiple of %d, at least %d", o.SegmentBytes, align, headerSize+4*recordHeader)
	}
	l := &Log{o: o, kick: make(chan struct{}, 1), refill: make(chan struct{}, 1), stop: make(chan struct{})}
	if err := l.open(); err != nil {
		for _, s := range l.segments {
			err = errors.Join(err, s.file.Close())
		}
		return nil, err
	}
	l.wg.Add(2)
	go l.syncLazily()
	go l.prepare()
	return l, nil
}

func (l *Log) open() error {
	if err := l.o.FS.MkdirAll(l.o.Dir); err != nil {
		return err
	}
	if err := l.o.FS.SyncDir(filepath.Dir(l.o.Dir)); err != nil {
		return err
	}
	seqs, err := l.list()
	if err != nil {
		return err
	}
	ends := 1 // segments up to the last with records
	var torn *segment
	for i, seq := range seqs {
		s, err := l.load(seq)
		if err != nil {
			return err
		}
		l.segments = append(l.segments, s)
		if s.end > headerSize {
			if torn != nil {
				return fmt.Errorf("%s: no whole record at offset %d, though %s has records: %w", torn.path, torn.end, s.path, ErrCorrupt)
			}
			ends = i + 1
		}
		if s.torn && torn == nil {
			torn = s
		}
	}
	return l.settle(ends)
}

// settle keeps the first n segments and brings the last of them in order. If there is none, it makes one.
func (l *Log) settle(n int) error {
	for len(l.segments) > n {
		s := l.active()
		if err := errors.Join(s.file.Close(), l.o.FS.Remove(s.path)); err != nil {
			return err
		}
		l.segments = l.segments[:len(l.segments)-1]
	}
	if len(l.segments) == 0 {
		s, err := l.createSegment(1, 0)
		if err != nil {
			return err
		}
		l.segments = []*segment{s}
	}
	s := l.active()
	// A torn write may have left whole records behind the place where it was cut: they must never be taken for new ones.
	if s.torn {
		if err := l.clean(s); err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
	}
	if err := errors.Join(s.file.Sync(), l.o.FS.SyncDir(l.o.Dir)); err != nil { // what was read may be in the page cache only
		return fmt.Errorf("%s: %w", s.path, err)
	}
	s.stable.Store(s.end)
	l.stored = l.last()
	l.onDisk = l.stored
	return l.removeUnused()
}

func (l *Log) clean(s *segment) error {
	zero := make([]byte, zeroStep)
	for off := s.end; off < s.size; off += zeroStep {
		if _, err := s.file.WriteAt(zero[:min(zeroStep, s.size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// list returns the sequence numbers of the segments, which follow one another, and removes what was never finished.
func (l *Log) list() ([]uint64, error) {
	files, err := l.o.FS.ReadDir(l.o.Dir)
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, f := range files {
		name := f.Name()
		if strings.HasSuffix(name, tmpSuffix) {
			if err := l.o.FS.Remove(filepath.Join(l.o.Dir, name)); err != nil {
				return nil, err
			}
			continue
		}
		seq, err := strconv.ParseUint(strings.TrimSuffix(name, segmentSuffix), 10, 64)
		if err != nil || seq == 0 || name != segmentName(seq) {
			return nil, fmt.Errorf("%s: not a segment of a raft log; move it away: %w", filepath.Join(l.o.Dir, name), ErrCorrupt)
		}
		if n := len(seqs); n > 0 && seq != seqs[n-1]+1 {
			return nil, fmt.Errorf("%s: segment %d is missing before %d: %w", l.o.Dir, seqs[n-1]+1, seq, ErrCorrupt)
		}
		seqs = append(seqs, seq)
	}
	return seqs, nil
}

// load reads a segment and applies its records to what is in memory.
func (l *Log) load(seq uint64) (s *segment, err error) {
	s = &segment{path: filepath.Join(l.o.Dir, segmentName(seq)), seq: seq}
	file, err := l.o.FS.Open(s.path, disk.ReadWrite)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	s.file = file
	if s.size, err = s.file.Size(); err != nil {
		return nil, err
	}
	b := make([]byte, s.size)
	if n, err := s.file.ReadAt(b, 0); n < len(b) && err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	if err := checkHeader(s.path, b, l.o.Cluster, seq); err != nil {
		return nil, err
	}
	end, err := scan(b, func(off int64, size int, r *record) error { return l.replay(s, off, size, r) })
	s.end = end
	if err == nil {
		err = zeros(b[end:])
	}
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, ErrCorrupt) {
		return nil, fmt.Errorf("%s: offset %d: %w", s.path, end, err)
	}
	if at := stableBehind(b, end); at > end {
		return nil, fmt.Errorf("%s: offset %d was on stable media, as a later record says: %w", s.path, end, err)
	}
	s.torn = true
	return s, nil
}

var errOrder = errors.New("entry out of order")

// replay applies a record.
func (l *Log) replay(s *segment, off int64, size int, r *record) error {
	switch r.kind {
	case kindCut:
		l.forgetAfter(r.log.Index)
		return nil
	case kindDrop:
		l.forgetUpTo(r.log.Index)
		return nil
	}
	if last := l.last(); last > 0 && r.log.Index != last+1 {
		return fmt.Errorf("entry %d behind entry %d: %w", r.log.Index, last, errOrder)
	}
	if len(l.entries) == 0 {
		l.first = r.log.Index
	}
	l.entries = append(l.entries, place{s: s, off: off, size: int32(size)})
	s.last = max(s.last, r.log.Index)
	return nil
}

// scan calls fn with each record of a segment whose content is b, and returns where they end: at zeros, without an error, or at what is
// no whole record.
func scan(b []byte, fn func(off int64, size int, r *record) error) (int64, error) {
	off := int64(headerSize)
	for {
		r, size, ok, err := decodeRecord(b[off:])
		if err != nil || !ok {
			return off, err
		}
		if int64(r.stable) > off {
			return off, fmt.Errorf("record says that offset %d before it is on stable media: %w", r.stable, ErrCorrupt)
		}
		if err := fn(off, size, &r); err != nil {
			return off, err
		}
		off += int64(size)
	}
}

// stableBehind looks behind off for whole records and returns how far they say that the segment was on stable media.
func stableBehind(b []byte, off int64) int64 {
	var at int64
	for off += align; off+recordHeader <= int64(len(b)); off += align {
		if r, _, ok, err := decodeRecord(b[off:]); ok && err == nil && int64(r.stable) <= off {
			at = max(at, int64(r.stable))
		}
	}
	return at
}

// Import copies the entries of another store into an empty log, up to its last one: those that follow one another without a gap.
func (l *Log) Import(from raft.LogStore) error {
	last, err := from.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	first := last
	var e raft.Log
	for first > 1 && from.GetLog(first-1, &e) == nil {
		first--
	}
	for i := first; i <= last; {
		var batch []*raft.Log
		for bytes := 0; i <= last && bytes < 1<<20; i++ {
			e := new(raft.Log)
			if err := from.GetLog(i, e); err != nil {
				return fmt.Errorf("import entry %d of the raft log: %w", i, err)
			}
			batch, bytes = append(batch, e), bytes+recordSize(e)
		}
		if err := l.StoreLogs(batch); err != nil {
			return err
		}
	}
	return l.AllStable()
}
