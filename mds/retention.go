package mds

import (
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"varve/journal"
	"varve/mds/settings"
	"varve/mds/state"
)

// retainJournal drops what the settings let go of from this server's journal, now and then. Each server does it by itself: what
// is in a journal is no part of the state.
func (s *Server) retainJournal() {
	var held string
	for sleep(s.ctx, s.o.RetentionInterval) {
		d, err := s.retain()
		if s.ctx.Err() != nil {
			return
		}
		if err != nil { // if it has ended the journal, syncJournal stops the server
			s.log.Error("journal retention failed", "err", err)
			continue
		}
		if d.Segments > 0 {
			s.log.Info("journal dropped old events", "cause", d.Cause, "from", d.From, "to", d.To-1, "segments", d.Segments,
				"checkpoints", d.Checkpoints, "bytes", d.Bytes, "left_bytes", d.Left)
		} else if d.Checkpoints > 0 {
			s.log.Info("journal dropped checkpoints that are close to others", "checkpoints", d.Checkpoints, "bytes", d.Bytes, "left_bytes", d.Left)
		}
		if d.Held != held {
			if held = d.Held; held != "" {
				s.log.Warn("journal is beyond its retention", "cause", held, "index", d.To, "left_bytes", d.Left)
			}
		}
	}
}

func (s *Server) retain() (journal.Dropped, error) {
	r, err := s.retention()
	if err != nil {
		return journal.Dropped{}, err
	}
	return s.journal.Retain(r)
}

// retention returns what may be dropped now. A setting that this version does not understand sets no limit.
func (s *Server) retention() (journal.Retention, error) {
	r := journal.Retention{Every: s.o.CheckpointEvents}
	// At its start the server takes its newest snapshot that is sound, and then compares what follows in Raft's log with the journal.
	snapshots, err := s.snapshots.List()
	if err != nil {
		return r, fmt.Errorf("list raft's snapshots: %w", err)
	}
	r.Raft = neededFrom(snapshots)
	s.fsm.view(func(st *state.State) {
		if age, err := settings.Age(st.Config(settings.JournalAge)); err == nil && age > 0 {
			// Neither a clock of this server that is ahead, nor one of a leader's, drops what is not old.
			r.Before = min(time.Now().UnixNano(), s.journal.Last().Time) - int64(age)
		}
		if n, err := settings.Bytes(st.Config(settings.JournalBytes)); err == nil {
			r.Bytes = n
		}
	})
	return r, nil
}

// neededFrom returns the Raft index of the oldest snapshot, after which Raft may need the journal; 0 without any.
func neededFrom(snapshots []*raft.SnapshotMeta) uint64 {
	if len(snapshots) == 0 {
		return 0
	}
	oldest := uint64(math.MaxUint64)
	for _, m := range snapshots {
		oldest = min(oldest, m.Index)
	}
	return oldest
}
