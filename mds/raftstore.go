package mds

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"varve/mds/raftlog"
)

// openStores opens what Raft keeps on disk: its term and vote in raft.db, its log in the directory raft. A log that an earlier version
// kept in raft.db is moved over first.
func (s *Server) openStores() error {
	path := filepath.Join(s.o.Dir, "raft.db")
	var err error
	s.store, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		// The list of free pages is found again at the start instead of being written with each vote.
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: time.Second},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	s.raftLog, err = raftlog.Open(raftlog.Options{
		FS: s.o.FS, Dir: filepath.Join(s.o.Dir, "raft"), Cluster: s.identity.cluster(), Failed: s.fatal, Lazy: s.lazy,
	})
	if err != nil {
		return err
	}
	return s.moveLog()
}

// lazy reports whether Raft may go on before the entries are on stable media here. It may on a leader that needs others for a majority,
// whose answers the transport holds back (see there). What Raft itself puts into the log, changes of members above all, is not hurried: with it
// goes everything before it. Raft stores from the goroutine that changes its state, so the state is that of the moment.
func (s *Server) lazy(logs []*raft.Log) bool {
	r := s.running.Load()
	if r == nil || r.State() != raft.Leader {
		return false
	}
	for _, e := range logs {
		if e.Type != raft.LogCommand && e.Type != raft.LogBarrier {
			return false
		}
	}
	voters := 0
	for _, m := range r.GetConfiguration().Configuration().Servers {
		if m.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters > 1
}

// moveLog moves the log out of raft.db. While that has entries, the new log was never used: a move that was interrupted begins anew.
func (s *Server) moveLog() error {
	first, err := s.store.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	last, err := s.store.LastIndex()
	if err != nil {
		return err
	}
	s.log.Info("raft log moves out of raft.db", "first", first, "last", last)
	have, err := s.raftLog.LastIndex()
	if err != nil {
		return err
	}
	if err := s.raftLog.DeleteRange(0, have); err != nil {
		return err
	}
	if err := s.raftLog.Import(s.store); err != nil {
		return err
	}
	return s.store.DeleteRange(first, last)
}

// logStore is what Raft keeps its log in.
func (s *Server) logStore() raft.LogStore { return s.raftLog }
