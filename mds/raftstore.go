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
		FS: s.o.FS, Dir: filepath.Join(s.o.Dir, "raft"), Cluster: s.identity.cluster(), Failed: s.fatal,
	})
	if err != nil {
		return err
	}
	return s.moveLog()
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
