package raftlog

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"varve/internal/disk"
)

// segment is one file of the log. end and last are changed under Log.wmu and Log.mu, and read under either.
type segment struct {
	path   string
	file   disk.File
	seq    uint64
	size   int64
	end    int64        // of what is written
	stable atomic.Int64 // what of it is on stable media
	last   uint64       // the highest index that was ever in it
	torn   bool         // as found by Open: what follows end is not whole
}

// room is where entries must end: behind it there is place for records that take something away, on a full disk too.
func (s *segment) room() int64 { return s.size - 2*recordHeader }

func (l *Log) active() *segment { return l.segments[len(l.segments)-1] }

// zeroStep is how much of a new segment is written at once.
const zeroStep = 256 << 10

// createSegment makes a segment with room for at least one record of n bytes. It is there in full or not at all.
func (l *Log) createSegment(seq uint64, n int64) (s *segment, err error) {
	size := max(l.o.SegmentBytes, headerSize+n+2*recordHeader)
	s = &segment{path: filepath.Join(l.o.Dir, segmentName(seq)), seq: seq, size: size, end: headerSize}
	s.stable.Store(headerSize)
	tmp := s.path + tmpSuffix
	if s.file, err = l.o.FS.Open(tmp, disk.ReadWrite|disk.Create); err != nil {
		return nil, fmt.Errorf("new segment of the raft log: %w", err)
	}
	if err := l.fill(s); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: new segment of the raft log: %w", tmp, err), s.file.Close(), l.o.FS.Remove(tmp))
	}
	if err := l.o.FS.Rename(tmp, s.path); err != nil {
		return nil, errors.Join(fmt.Errorf("new segment of the raft log: %w", err), s.file.Close(), l.o.FS.Remove(tmp))
	}
	if err := l.o.FS.SyncDir(l.o.Dir); err != nil {
		return nil, errors.Join(l.poison(fmt.Errorf("%s: sync directory: %w", l.o.Dir, err)), s.file.Close())
	}
	return s, nil
}

func (l *Log) fill(s *segment) error {
	zero := make([]byte, zeroStep)
	for off := int64(0); off < s.size; off += zeroStep {
		if _, err := s.file.WriteAt(zero[:min(zeroStep, s.size-off)], off); err != nil {
			return err
		}
	}
	if err := s.file.Truncate(s.size); err != nil { // a longer one may have been left by a crash
		return err
	}
	if _, err := s.file.WriteAt(appendHeader(nil, l.o.Cluster, s.seq, s.size), 0); err != nil {
		return err
	}
	return s.file.Sync()
}

// rotate goes on in a new segment with room for n bytes, when everything in the one before is on stable media. The caller holds wmu.
func (l *Log) rotate(n int64) error {
	if err := l.sync(); err != nil {
		return err
	}
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	l.mu.Lock()
	s, seq := l.spare, l.active().seq+1
	fits := s != nil && headerSize+n <= s.room()
	if fits {
		l.spare = nil
	}
	l.mu.Unlock()
	if !fits {
		if err := l.dropSpare(); err != nil {
			return err
		}
		var err error
		if s, err = l.createSegment(seq, n); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, s)
	return nil
}

// dropSpare removes a spare segment that is too small.
func (l *Log) dropSpare() error {
	l.mu.Lock()
	s := l.spare
	l.spare = nil
	l.mu.Unlock()
	if s == nil {
		return nil
	}
	return errors.Join(s.file.Close(), l.o.FS.Remove(s.path), l.o.FS.SyncDir(l.o.Dir))
}

// prepare keeps a spare segment ready, so that a rotation need not wait for one.
func (l *Log) prepare() {
	defer l.wg.Done()
	for {
		select {
		case <-l.refill:
		case <-l.stop:
			return
		}
		if err := l.makeSpare(); err != nil && l.failed() == nil {
			continue // the rotation tries again, and says why it cannot
		}
	}
}

func (l *Log) makeSpare() error {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	l.mu.RLock()
	have, seq := l.spare != nil, l.active().seq+1
	l.mu.RUnlock()
	if have || l.failed() != nil {
		return nil
	}
	s, err := l.createSegment(seq, 0)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare = s
	return nil
}

// removeUnused removes the segments at the front whose entries are all dropped. The caller holds wmu.
func (l *Log) removeUnused() error {
	l.mu.Lock()
	n := 0
	for n < len(l.segments)-1 && (len(l.entries) == 0 || l.segments[n].last < l.first) {
		n++
	}
	unused := l.segments[:n]
	l.segments = append([]*segment(nil), l.segments[n:]...)
	l.mu.Unlock()
	if n == 0 {
		return nil
	}
	var err error
	for _, s := range unused { // nobody reads them any more: readers hold mu
		err = errors.Join(err, s.file.Close())
		if err == nil { // one after the other: there must be no hole
			err = l.o.FS.Remove(s.path)
		}
	}
	if err == nil {
		err = l.o.FS.SyncDir(l.o.Dir)
	}
	if err != nil {
		return l.poison(fmt.Errorf("%s: remove segments: %w", l.o.Dir, err))
	}
	return nil
}
