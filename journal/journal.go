// Package journal keeps the append-only log of events on disk, in segments, with checkpoints beside
// them. It does not know what an event means: a record is opaque bytes with an index, a time and the
// index of the Raft entry that brought it.
//
// Open recovers a directory. Append adds records, and Sync puts all that was appended on stable
// media; nothing is promised before. A Reader walks the records and sees what is appended while it
// walks. A segment that is full is compressed in the background; nobody sees a difference. WriteCheckpoint stores the state at an index; after Open, take the newest checkpoint and read
// on from the index after it. After a checkpoint of another server was stored, Reset goes on behind it.
//
// It guarantees that a record is returned as it was appended, in order of index and without a hole, or
// ErrCorrupt (or a *GapError where Reset left a hole). A write or sync that fails ends the
// journal: every later call returns that error, and nothing is tried again.
//
// All methods of Journal may be called at once from several goroutines: appends are done one after the
// other, and neither readers nor checkpoints wait for a sync. A Reader belongs to one goroutine.
//
// Lock order: checkpointMu, appendMu, syncMu, mu, segment.mu. Files are synced under appendMu or
// syncMu, never under mu.
package journal

import (
	"errors"
	"fmt"
	"sort"
	"sync"

	"varve/internal/disk"
	"varve/internal/id"
)

// Record is one event as the journal sees it.
type Record struct {
	Index   id.Index
	Time    int64  // nanoseconds since 1970; recorded, never used for ordering
	Raft    uint64 // index of the Raft entry
	Payload []byte // at most MaxPayload
}

// Position is where a journal stands: after the record Index, with that record's Raft index, chain
// hash and time. The zero Position is the empty journal.
type Position struct {
	Index id.Index
	Raft  uint64
	Chain [16]byte
	Time  int64
}

// GapError says that the records between Last and Next are not in the journal: Reset skipped them.
type GapError struct {
	Last id.Index // the last record before the hole
	Next id.Index // the first index after it
}

func (e *GapError) Error() string {
	return fmt.Sprintf("journal: records %d to %d were skipped when a checkpoint was installed", e.Last+1, e.Next-1)
}

var (
	errClosed   = errors.New("journal: closed")
	errReadOnly = errors.New("journal: open read-only")
)

// Journal is an open journal.
type Journal struct {
	o Options

	sealer *sealer   // nil if nothing is sealed
	once   sync.Once // ends the sealer

	// checkpointMu is held while a checkpoint is written, and while segments are dropped or replaced by sealed ones.
	checkpointMu sync.Mutex

	appendMu sync.Mutex // held by what adds, begins or removes segments
	chain    *chainer
	buf      []byte
	cut      bool // the next record begins a segment

	// syncMu is held while the active segment is synced, and while file changes.
	syncMu sync.Mutex
	file   disk.File // of the last segment; nil if ReadOnly

	mu       sync.Mutex
	err      error      // why the journal ended
	segments []*segment // ascending, never empty, never changed in place; all but the last one are full
	last     Position   // written under appendMu and mu
	stable   int64      // bytes of the last segment that are on stable media
}

// Last returns the position of the last record written.
func (j *Journal) Last() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// First returns the first index that is still there, or one more than Last().Index if there is none.
func (j *Journal) First() id.Index {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segments[0].first()
}

// Bytes returns the size of all segments.
func (j *Journal) Bytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	var n int64
	for _, s := range j.segments {
		n += s.size
	}
	return n
}

// Close syncs and closes the journal. Readers must have been closed. It returns the error that ended
// the journal, if one did.
func (j *Journal) Close() error {
	var err error
	j.once.Do(func() {
		if j.sealer != nil {
			close(j.sealer.stop)
			<-j.sealer.done
		}
	})
	if !j.o.ReadOnly {
		err = j.Sync()
	}
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.file != nil {
		if cerr := j.file.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("journal: close: %w", cerr)
		}
		j.file = nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = errClosed
	}
	return err
}

// failed returns the error that ended the journal.
func (j *Journal) failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// writable returns why the journal cannot be written, or nil.
func (j *Journal) writable() error {
	if j.o.ReadOnly {
		return errReadOnly
	}
	return j.failed()
}

// poison ends the journal with err; the first error stays.
func (j *Journal) poison(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = err
	}
	return j.err
}

// active returns the last segment.
func (j *Journal) active() *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segments[len(j.segments)-1]
}

// extent returns how far s may be read, and the segment after it, nil for the last one.
func (j *Journal) extent(s *segment) (size int64, next *segment, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, nil, j.err
	}
	i := sort.Search(len(j.segments), func(i int) bool { return j.segments[i].first() > s.first() })
	if i < len(j.segments) {
		next = j.segments[i]
	}
	return s.size, next, nil
}

// find returns the segment in which the record index is or would be.
func (j *Journal) find(index id.Index) (*segment, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return nil, j.err
	}
	if first := j.segments[0].first(); index < first || index > j.last.Index+1 {
		return nil, fmt.Errorf("journal: record %d: have %d to %d: %w", index, first, j.last.Index, ErrNotFound)
	}
	i := sort.Search(len(j.segments), func(i int) bool { return j.segments[i].first() > index })
	return j.segments[i-1], nil
}
