package mds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"varve/mds/raftlog"
)

// openStores opens what Raft keeps on disk: its term and vote in the file votes, its log in the directory raft. What an earlier version kept
// in raft.db is moved over first.
func (s *Server) openStores() error {
	var first votes
	old, err := s.openBolt()
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
		if first, err = boltVotes(old); err != nil {
			return err
		}
	}
	if s.votes, err = openVotes(s.o.FS, filepath.Join(s.o.Dir, votesFile), s.identity.cluster(), first, s.fatal); err != nil {
		return err
	}
	s.raftLog, err = raftlog.Open(raftlog.Options{
		FS: s.o.FS, Dir: filepath.Join(s.o.Dir, "raft"), Cluster: s.identity.cluster(), Failed: s.fatal, Lazy: s.lazy, SegmentBytes: s.o.LogSegmentBytes,
	})
	if err != nil || old == nil {
		return err
	}
	if err := s.moveLog(old); err != nil {
		return err
	}
	if err := os.Remove(s.boltPath()); err != nil {
		return err
	}
	return s.o.FS.SyncDir(s.o.Dir)
}

func (s *Server) boltPath() string { return filepath.Join(s.o.Dir, "raft.db") }

// openBolt opens raft.db; nil if there is none.
func (s *Server) openBolt() (*raftboltdb.BoltStore, error) {
	if _, err := os.Stat(s.boltPath()); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	old, err := raftboltdb.New(raftboltdb.Options{
		Path: s.boltPath(), BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: time.Second},
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.boltPath(), err)
	}
	return old, nil
}

// boltVotes reads the term and the vote from raft.db. They hold only until the file votes is made.
func boltVotes(old *raftboltdb.BoltStore) (votes, error) {
	term, err1 := old.GetUint64([]byte(keyTerm))
	voteTerm, err2 := old.GetUint64([]byte(keyVoteTerm))
	candidate, err3 := old.Get([]byte(keyVoteCand))
	for _, err := range []error{err1, err2, err3} {
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return votes{}, fmt.Errorf("read the vote in raft.db: %w", err)
		}
	}
	return votes{term: term, voteTerm: voteTerm, candidate: candidate}, nil
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
func (s *Server) moveLog(old *raftboltdb.BoltStore) error {
	first, err := old.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	last, err := old.LastIndex()
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
	if err := s.raftLog.Import(old); err != nil {
		return err
	}
	return old.DeleteRange(first, last)
}

// logStore is what Raft keeps its log in.
func (s *Server) logStore() raft.LogStore { return &roomyLog{Log: s.raftLog, s: s} }

// roomyLog is Raft's log while the disk may be full. Raft takes an error of StoreLogs well where nothing else has changed: a follower does not
// acknowledge, a leader steps down. Where it has (Raft then has a member, or a last entry, in memory that is not in the log) the server ends and
// is opened anew.
type roomyLog struct {
	*raftlog.Log
	s *Server

	mu  sync.Mutex
	cut bool // entries were taken off the end, and none stored since
}

var (
	_ raft.LogStore          = (*roomyLog)(nil)
	_ raft.MonotonicLogStore = (*roomyLog)(nil)
)

// StoreLog implements raft.LogStore.
func (l *roomyLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore. While the disk is full it takes no events, but what elections and changes of members need.
func (l *roomyLog) StoreLogs(logs []*raft.Log) error {
	err := l.s.votes.alive()
	if err == nil && l.s.room.now() == diskFull && hasEvents(logs) {
		err = errNoRoom
	}
	if err == nil {
		err = l.Log.StoreLogs(logs)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.cut = false
		return nil
	}
	if isFull(err) {
		if l.s.room.now() != diskFull {
			l.s.room.ranOut()
			l.s.log.Error("disk full: no changes are taken until there is room", "err", err)
		}
		if l.cut || hasMembers(logs) {
			l.s.fatal(err)
		}
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (l *roomyLog) DeleteRange(lo, hi uint64) error {
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if err := l.Log.DeleteRange(lo, hi); err != nil {
		if isFull(err) {
			l.s.room.ranOut()
		}
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = l.cut || hi >= last
	return nil
}

func hasEvents(logs []*raft.Log) bool {
	for _, e := range logs {
		if e.Type == raft.LogCommand {
			return true
		}
	}
	return false
}

func hasMembers(logs []*raft.Log) bool {
	for _, e := range logs {
		if e.Type == raft.LogConfiguration {
			return true
		}
	}
	return false
}
