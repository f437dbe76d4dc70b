package journal

import (
	"fmt"
	"path/filepath"

	"varve/internal/id"
)

// Trim removes the segments all of whose records are below before, and the checkpoints from which no
// state can be rebuilt any more. It keeps what is needed to rebuild every state from the newest
// checkpoint below before on; without one it removes nothing.
func (j *Journal) Trim(before id.Index) error {
	j.checkpointMu.Lock()
	defer j.checkpointMu.Unlock()
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	if err := j.writable(); err != nil {
		return err
	}
	l, err := list(&j.o)
	if err != nil {
		return err
	}
	var keep id.Index // the newest checkpoint below before; records after it stay
	for _, index := range l.checkpoints {
		if index < before {
			keep = index
		}
	}
	for {
		j.mu.Lock()
		oldest, more := j.segments[0], len(j.segments) > 1
		full := more && j.segments[1].first()-1 <= keep
		j.mu.Unlock()
		if !full {
			break
		}
		if err := j.trimCheckpoints(l.checkpoints, keep); err != nil {
			return err
		}
		if err := j.remove(oldest); err != nil {
			return err
		}
	}
	return nil
}

// trimCheckpoints removes those below keep, which lose the records after them.
func (j *Journal) trimCheckpoints(all []id.Index, keep id.Index) error {
	for _, index := range all {
		path := filepath.Join(j.o.Dir, checkpointName(index))
		if index >= keep {
			return nil
		}
		if _, err := j.o.FS.Stat(path); err != nil {
			continue // removed already
		}
		if err := j.o.FS.Remove(path); err != nil {
			return j.poison(fmt.Errorf("%s: trim: %w", path, err))
		}
	}
	return nil
}

// remove takes s, which is not the last segment, out of the journal. Readers that are in it read on.
// The caller holds appendMu.
func (j *Journal) remove(s *segment) error {
	j.mu.Lock()
	kept := make([]*segment, 0, len(j.segments))
	for _, other := range j.segments {
		if other != s {
			kept = append(kept, other)
		}
	}
	j.segments = kept
	j.mu.Unlock()
	err := j.o.FS.Remove(s.path)
	if err == nil {
		err = j.o.FS.SyncDir(j.o.Dir)
	}
	if err != nil {
		return j.poison(fmt.Errorf("%s: remove segment: %w", s.path, err))
	}
	return nil
}
