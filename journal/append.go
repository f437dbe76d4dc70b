package journal

import (
	"fmt"

	"varve/internal/id"
)

// Append writes recs, whose indexes follow Last().Index one by one. They are in the page cache when it
// returns and on stable media after Sync. If a record does not fit in, nothing is written and the
// journal stays usable.
func (j *Journal) Append(recs []Record) error {
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	if err := j.writable(); err != nil {
		return err
	}
	for i := range recs {
		if want := j.last.Index + 1 + id.Index(i); recs[i].Index != want {
			return fmt.Errorf("journal: append record %d: want index %d", recs[i].Index, want)
		}
		if n := len(recs[i].Payload); n > MaxPayload {
			return fmt.Errorf("journal: append record %d: payload of %d bytes: want at most %d", recs[i].Index, n, MaxPayload)
		}
	}
	for len(recs) > 0 {
		n, err := j.appendSome(recs)
		if err != nil {
			return err
		}
		recs = recs[n:]
	}
	if cap(j.buf) > keepBuffer {
		j.buf = nil
	}
	return nil
}

// appendSome writes as many of recs as fit the last segment and one write, and says how many. The
// caller holds appendMu.
func (j *Journal) appendSome(recs []Record) (int, error) {
	s := j.active()
	if s.size > headerSize && (s.size+recordSize(&recs[0]) > j.o.SegmentBytes || j.cut) {
		if err := j.begin(j.last, false); err != nil {
			return 0, err
		}
		s = j.active()
	}
	j.mu.Lock()
	stable := uint32(j.stable)
	j.mu.Unlock()

	at, n := j.last, 0
	j.buf = j.buf[:0]
	for i := range recs {
		r, start := &recs[i], len(j.buf)
		end := s.size + int64(start) + recordSize(r)
		if i > 0 && (end > j.o.SegmentBytes || start >= writeBuffer) {
			break
		}
		j.buf = appendBody(j.buf, r)
		at = Position{Index: r.Index, Raft: r.Raft, Chain: j.chain.next(at.Chain, j.buf[start:]), Time: r.Time}
		j.buf = appendTrailer(j.buf, start, stable, at.Chain)
		n++
	}
	if _, err := j.file.WriteAt(j.buf, s.size); err != nil {
		return 0, j.poison(fmt.Errorf("%s: append at offset %d: %w", s.path, s.size, err))
	}
	off := s.size
	j.mu.Lock()
	s.size += int64(len(j.buf))
	j.last = at
	j.mu.Unlock()
	s.mu.Lock()
	for i := range recs[:n] {
		s.note(recs[i].Index, off, recs[i].Time)
		off += recordSize(&recs[i])
	}
	s.mu.Unlock()
	return n, nil
}

// Cut lets the next record begin a new segment, if the last one has some size. Records can be dropped in front of a
// checkpoint only if a segment begins right after it, so this is called where a checkpoint is to be.
func (j *Journal) Cut() {
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.cut = j.active().size >= j.o.SegmentBytes/cutShare
}

// Sync returns when everything appended before it was called is on stable media. Appends and readers
// go on meanwhile. If it fails, what is on the disk is unknown and the journal is at its end.
func (j *Journal) Sync() error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if err := j.writable(); err != nil {
		return err
	}
	j.mu.Lock()
	s := j.segments[len(j.segments)-1]
	size, done := s.size, j.stable == s.size
	j.mu.Unlock()
	if done {
		return nil
	}
	if err := j.file.Sync(); err != nil {
		return j.poison(fmt.Errorf("%s: sync: %w", s.path, err))
	}
	j.mu.Lock()
	j.stable = size
	j.mu.Unlock()
	return nil
}

// Reset goes on after a checkpoint of another server that was stored with WriteCheckpoint: the next
// record has index at.Index+1, and the records between the last one and at are a hole. It does
// nothing if the journal is at at already, and refuses to go back.
func (j *Journal) Reset(at Position) error {
	j.checkpointMu.Lock()
	defer j.checkpointMu.Unlock()
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	if err := j.writable(); err != nil {
		return err
	}
	if at == j.last {
		return nil
	}
	if at.Index <= j.last.Index {
		return fmt.Errorf("journal: reset to index %d: want more than %d, the last record's", at.Index, j.last.Index)
	}
	j.o.Logger.Info("journal: skip to installed checkpoint", "index", at.Index, "last", j.last.Index)
	old := j.active()
	if err := j.begin(at, true); err != nil {
		return err
	}
	if old.size > headerSize {
		return nil
	}
	// An empty segment has nothing to keep. If it stays because the power fails, it does no harm.
	return j.remove(old)
}
