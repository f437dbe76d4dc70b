package mds

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"varve/internal/wire/msg"
	"varve/mds/raftlog"
)

// TestLogMovesOutOfBolt starts a server whose log is in raft.db, as earlier versions kept it, also after a move that did not end.
func TestLogMovesOutOfBolt(t *testing.T) {
	c := newCluster(t, 1, nil)
	k := newClient(c)
	for _, name := range []string{"a", "b", "c"} {
		k.create(name, false)
	}
	s := c.leader()
	dir, uuid := s.o.Dir, s.identity.cluster()
	c.kill(0)
	path := filepath.Join(dir, "raft")
	log, err := raftlog.Open(raftlog.Options{Dir: path, Cluster: uuid})
	if err != nil {
		t.Fatal(err)
	}
	bolt, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	first, _ := log.FirstIndex()
	last, _ := log.LastIndex()
	if first != 1 || last < 4 {
		t.Fatalf("log has %d to %d", first, last)
	}
	for i := first; i <= last; i++ {
		var e raft.Log
		if err := log.GetLog(i, &e); err != nil {
			t.Fatal(err)
		}
		if err := bolt.StoreLog(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	// The move was killed after its first entries.
	if log, err = raftlog.Open(raftlog.Options{Dir: path, Cluster: uuid}); err != nil {
		t.Fatal(err)
	}
	if err := log.StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("half")}); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	for _, name := range []string{"a", "b", "c"} {
		k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte(name)}))
	}
	s = c.leader()
	if _, err := os.Stat(filepath.Join(dir, "raft.db")); !os.IsNotExist(err) {
		t.Errorf("raft.db is still there: %v", err)
	}
	if now, err := s.raftLog.LastIndex(); err != nil || now < last {
		t.Errorf("the log ends at %d, want %d or more: %v", now, last, err)
	}
}
