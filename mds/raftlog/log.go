package raftlog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"varve/internal/disk"
	"varve/internal/id"
)

const (
	defaultSegment = 8 << 20
	keepBuffer     = 1 << 20 // bytes kept of the write buffer
	recentBytes    = 8 << 20 // of entries kept in memory, for followers that are a little behind
	maxEntry       = 64 << 20
)

// Options of a Log. Dir must be given; the rest has defaults.
type Options struct {
	FS      disk.FS // default disk.OS
	Dir     string  // made if it is missing; nothing else may be in it
	Cluster id.Cluster
	// SegmentBytes is the size of a segment; default 8 MiB. A larger entry gets a segment of its own.
	SegmentBytes int64
	// Lazy, if set, says whether StoreLogs may return before these entries are on stable media.
	Lazy func([]*raft.Log) bool
	// Failed, if set, is told once that the log is at its end.
	Failed func(error)
}

// place is where an entry is.
type place struct {
	s    *segment
	off  int64
	size int32
}

// Log is Raft's log on disk.
//
// Lock order: wmu, spareMu, syncMu, mu.
type Log struct {
	o Options

	wmu sync.Mutex // who writes
	buf []byte

	spareMu sync.Mutex // who makes or takes the spare segment
	syncMu  sync.Mutex // who syncs

	mu       sync.RWMutex
	segments []*segment // the last is written to
	spare    *segment   // the next one, or nil
	first    uint64     // index of entries[0]
	entries  []place
	recent   ring
	end      int64  // of what is written, counted over all segments
	stored   uint64 // index up to which StoreLogs has written
	onDisk   uint64 // index up to which entries are on stable media
	cuts     uint64 // how often entries were taken off the end

	stable atomic.Int64 // what of end is on stable media
	err    atomic.Pointer[error]

	kick   chan struct{} // a lazy batch waits for its sync
	refill chan struct{} // a spare segment is wanted
	stop   chan struct{}
	wg     sync.WaitGroup
}

var (
	_ raft.LogStore          = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

// ErrClosed is what a closed Log answers.
var ErrClosed = errors.New("raft log is closed")

// IsMonotonic implements raft.MonotonicLogStore: Raft removes the whole log when it installs a snapshot.
func (l *Log) IsMonotonic() bool { return true }

func (l *Log) failed() error {
	if err := l.err.Load(); err != nil {
		return *err
	}
	return nil
}

// poison ends the log.
func (l *Log) poison(err error) error {
	if l.err.CompareAndSwap(nil, &err) && l.o.Failed != nil {
		l.o.Failed(err)
	}
	return err
}

// Close syncs and closes.
func (l *Log) Close() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	err := l.failed()
	if errors.Is(err, ErrClosed) {
		return nil
	}
	if err == nil {
		err = l.sync()
	}
	closed := ErrClosed
	l.err.Store(&closed)
	close(l.stop)
	l.wg.Wait()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	errs := []error{err}
	for _, s := range l.segments {
		errs = append(errs, s.file.Close())
	}
	if l.spare != nil {
		errs = append(errs, l.spare.file.Close())
	}
	return errors.Join(errs...)
}

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.entries) == 0 {
		return 0, nil
	}
	return l.first, nil
}

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last(), nil
}

// last returns the index of the last entry, 0 if there is none. The caller holds mu.
func (l *Log) last() uint64 {
	if len(l.entries) == 0 {
		return 0
	}
	return l.first + uint64(len(l.entries)) - 1
}

// GetLog implements raft.LogStore.
func (l *Log) GetLog(index uint64, to *raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock() // kept while the file is read, so that it is not removed meanwhile
	if index < l.first || index > l.last() || len(l.entries) == 0 {
		return raft.ErrLogNotFound
	}
	if e := l.recent.get(index); e != nil {
		*to = *e
		return nil
	}
	if err := l.failed(); err != nil {
		return err
	}
	p := l.entries[index-l.first]
	b := make([]byte, p.size)
	if _, err := p.s.file.ReadAt(b, p.off); err != nil {
		return fmt.Errorf("%s: read entry %d at offset %d: %w", p.s.path, index, p.off, err)
	}
	r, _, ok, err := decodeRecord(b)
	if err != nil || !ok || r.log.Index != index {
		return fmt.Errorf("%s: offset %d: want entry %d, got %d: %w", p.s.path, p.off, index, r.log.Index, errors.Join(err, ErrCorrupt))
	}
	*to = r.log
	return nil
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore. The entries follow one another. If the first does not follow the log's last one but lies
// beyond it, which Raft does only behind a snapshot, the log is dropped first.
func (l *Log) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.failed(); err != nil {
		return err
	}
	last := l.last() // only who holds wmu changes it
	for i, e := range logs {
		if e.Index != logs[0].Index+uint64(i) || last > 0 && e.Index <= last {
			return fmt.Errorf("raft log: store entry %d behind %d", e.Index, last)
		}
		if n := recordSize(e); n > maxEntry {
			return fmt.Errorf("raft log: entry %d of %d bytes, want at most %d", e.Index, n, maxEntry)
		}
	}
	if last > 0 && logs[0].Index > last+1 {
		if err := l.drop(last); err != nil {
			return err
		}
	}
	for done := 0; done < len(logs); {
		n, err := l.write(logs[done:])
		if err != nil {
			return l.undo(logs[0].Index, done, err)
		}
		done += n
	}
	if cap(l.buf) > keepBuffer {
		l.buf = nil
	}
	if l.o.Lazy == nil || !l.o.Lazy(logs) {
		return l.sync()
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
	return nil
}

// undo takes back the first entries of a batch of which the rest could not be written.
func (l *Log) undo(first uint64, done int, err error) error {
	if done == 0 || l.failed() != nil {
		return err
	}
	if uerr := l.cut(first - 1); uerr != nil {
		return l.poison(errors.Join(err, uerr))
	}
	return err
}

// write writes as many of logs as fit the segment, at least one, and says how many. The caller holds wmu.
func (l *Log) write(logs []*raft.Log) (int, error) {
	s := l.active()
	if s.end+int64(recordSize(logs[0])) > s.room() {
		if err := l.rotate(int64(recordSize(logs[0]))); err != nil {
			return 0, err
		}
		s = l.active()
	}
	stable := s.stable.Load()
	n, places := 0, make([]place, 0, len(logs))
	l.buf = l.buf[:0]
	for _, e := range logs {
		start, size := len(l.buf), recordSize(e)
		if s.end+int64(start+size) > s.room() {
			break
		}
		l.buf = appendRecord(l.buf, byte(e.Type), uint32(stable), e)
		places = append(places, place{s: s, off: s.end + int64(start), size: int32(size)})
		n++
	}
	if err := l.put(s); err != nil {
		return 0, err
	}
	l.mu.Lock()
	if len(l.entries) == 0 {
		l.first = logs[0].Index
	}
	l.entries = append(l.entries, places...)
	for _, e := range logs[:n] {
		l.recent.add(e)
	}
	s.last = max(s.last, logs[n-1].Index)
	l.stored = logs[n-1].Index
	l.mu.Unlock()
	return n, nil
}

// put writes what is in buf at the end of s. The caller holds wmu.
func (l *Log) put(s *segment) error {
	if _, err := s.file.WriteAt(l.buf, s.end); err != nil {
		return l.poison(fmt.Errorf("%s: write %d bytes at offset %d: %w", s.path, len(l.buf), s.end, err))
	}
	l.mu.Lock()
	s.end += int64(len(l.buf))
	l.end += int64(len(l.buf))
	l.mu.Unlock()
	if s.end > s.size/2 {
		select {
		case l.refill <- struct{}{}:
		default:
		}
	}
	return nil
}

// mark writes a record that is no entry. The caller holds wmu.
func (l *Log) mark(kind byte, index uint64) error {
	s := l.active()
	if s.end+recordHeader > s.size {
		if err := l.rotate(recordHeader); err != nil {
			return err
		}
		s = l.active()
	}
	l.buf = appendRecord(l.buf[:0], kind, uint32(s.stable.Load()), &raft.Log{Index: index})
	return l.put(s)
}

// DeleteRange implements raft.LogStore: a part at the front or at the end.
func (l *Log) DeleteRange(lo, hi uint64) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.failed(); err != nil {
		return err
	}
	last := l.last()
	if len(l.entries) == 0 || hi < l.first || lo > last || lo > hi {
		return nil
	}
	switch {
	case lo <= l.first:
		return l.drop(min(hi, last))
	case hi >= last:
		return l.cut(lo - 1)
	}
	return fmt.Errorf("raft log: delete entries %d to %d in the middle of %d to %d", lo, hi, l.first, last)
}

// cut removes the entries above index, durably. The caller holds wmu.
func (l *Log) cut(index uint64) error {
	if err := l.mark(kindCut, index); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetAfter(index)
	return nil
}

// forgetAfter removes the entries above index from what is in memory. The caller holds mu.
func (l *Log) forgetAfter(index uint64) {
	keep := 0
	if index >= l.first {
		keep = min(int(index-l.first)+1, len(l.entries))
	}
	clear(l.entries[keep:])
	l.entries = l.entries[:keep]
	l.recent.cut(index)
	l.cuts++
	l.stored, l.onDisk = min(l.stored, index), min(l.onDisk, index)
}

// drop removes the entries up to index, durably, and the segments that hold no others. The caller holds wmu.
func (l *Log) drop(index uint64) error {
	if err := l.mark(kindDrop, index); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.mu.Lock()
	l.forgetUpTo(index)
	l.mu.Unlock()
	return l.removeUnused()
}

// forgetUpTo removes the entries up to index from what is in memory. The caller holds mu.
func (l *Log) forgetUpTo(index uint64) {
	if index < l.first || len(l.entries) == 0 {
		return
	}
	n := min(int(index-l.first)+1, len(l.entries))
	l.entries = append(make([]place, 0, len(l.entries)-n), l.entries[n:]...)
	l.first += uint64(n)
	l.recent.drop(index)
}
