package mds

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"varve/mds/event"
	"varve/mds/state"
)

// TestUnknownEventStops: an event of a kind that a newer version knows is not passed over. The server says what to do, and starts
// again from the same directory once it is upgraded.
func TestUnknownEventStops(t *testing.T) {
	c := newCluster(t, 1, nil)
	k := newClient(c)
	k.create("a", false)
	s := c.servers[0]
	index := s.fsm.index()
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 900, protowire.BytesType), []byte{8, 1})
	entry := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), unknown)
	if err := s.raft.Apply(entry, 5*time.Second).Error(); err != nil {
		t.Logf("proposed: %v", err)
	}
	err := c.ended(0)
	if !errors.Is(err, state.ErrUnknown) || !strings.Contains(err.Error(), "upgrade this server") {
		t.Errorf("it stopped because of %v", err)
	}
	if got := s.journal.Last().Index; got != index {
		t.Errorf("journal ends at %d, want %d", got, index)
	}
	if m, err := readMarker(c.options(0).withDefaults().FS, c.dirs[0]); m != nil || err != nil {
		t.Errorf("marker %+v, %v", m, err)
	}
}

// TestMisfitIsAnError: an event that does not fit stops this server, not the process.
func TestMisfitIsAnError(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.servers[0]
	b := &event.Batch{Events: []*event.Event{{Body: &event.Event_PunchDone{PunchDone: &event.PunchDone{Ino: 999}}}}}
	raw, err := b.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	var f raft.ApplyFuture = s.raft.Apply(raw, 5*time.Second)
	if f.Error() == nil {
		if a, ok := f.Response().(applied); !ok || !errors.Is(a.err, state.ErrMisfit) {
			t.Errorf("answered %+v", f.Response())
		}
	}
	if err := c.ended(0); !errors.Is(err, state.ErrMisfit) || !strings.Contains(err.Error(), "999") {
		t.Errorf("it stopped because of %v", err)
	}
}

// TestDamagedMemoryIsNotWritten: a checkpoint of records that changed without an event is not written; the server stops.
func TestDamagedMemoryIsNotWritten(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.SessionLease = time.Minute })
	k := newClient(c)
	ino := k.create("a", false).Attr.Ino
	bad := (c.leaderIndex() + 1) % 3
	s := c.servers[bad]
	c.eventually("the follower to have the file", func() bool { return s.fsm.index() == c.leader().fsm.index() })
	corrupt(t, s, ino)
	if err := s.raft.Snapshot().Error(); err == nil || !strings.Contains(err.Error(), state.ErrChanged.Error()) {
		t.Errorf("snapshot: %v", err)
	}
	if err := c.ended(bad); !errors.Is(err, errDiverged) || !strings.Contains(err.Error(), "--rebuild") {
		t.Errorf("it stopped because of %v", err)
	}
	if _, err := Open(c.options(bad)); !errors.Is(err, ErrStopped) {
		t.Errorf("opened again: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(c.dirs[bad], "journal", "*ckpt*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if f, err := os.Stat(path); err == nil && !strings.HasSuffix(path, ".tmp") && !strings.HasSuffix(path, ".new") {
			t.Errorf("a checkpoint was left: %s of %d bytes", path, f.Size())
		}
	}
	k.create("b", false)
}
