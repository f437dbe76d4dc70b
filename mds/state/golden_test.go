package state

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"strings"
	"testing"

	"varve/internal/wire/msg"
	"varve/mds/event"
)

var newGolden = flag.String("new-golden", "", "write a golden journal under this name; an old one is never written again")

// history is what the first golden journal holds: every kind of event once.
func history() []*event.Event {
	link := &event.Event{Body: &event.Event_Link{Link: &event.Link{Ino: 4, Parent: 2, Name: []byte("g2")}}}
	rename := func(exchange bool, name, to string, ino, replaced uint64) *event.Event {
		return &event.Event{Time: 77, Body: &event.Event_Rename{Rename: &event.Rename{
			Parent: 1, Name: []byte(name), Ino: ino, NewParent: 2, NewName: []byte(to), Replaced: replaced, Exchange: exchange,
		}}}
	}
	return []*event.Event{
		evInit(), evServer(1), evServer(2), evServer(3), evSession(1), evSession(2), evConfig(ConfigReplicas, "2:1"),
		{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{Id: 1, Uuid: []byte{9}, Addr: "m:1"}}},
		{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{Id: 2, Uuid: []byte{8}, Addr: "m:2"}}},
		{Body: &event.Event_MetaUpdate{MetaUpdate: &event.MetaUpdate{Id: 1, Addr: "m:3"}}},
		{Body: &event.Event_MetaRemove{MetaRemove: &event.MetaRemove{Id: 2}}},
		evCreate(1, 2, "d", msg.FileType_DIRECTORY), cause(evCreate(1, 3, "f", msg.FileType_REGULAR), 1, 1, 0),
		evCreate(1, 4, "g", msg.FileType_REGULAR), link, rename(true, "g", "g2", 4, 4), rename(false, "f", "f", 3, 0),
		evAlloc(3, 0, 1, 1, 2), evAlloc(3, 1, 2, 1, 2), evSize(3, 100<<20), evSize(3, 80<<20), evPolicy(2, 3, 2),
		{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: 1, Server: 3, Epoch: 2}}},
		{Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{Chunk: 1, Server: 3, Epoch: 2}}},
		{Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{Ino: 3, Server: 1, Chunks: []*event.ReplicaDrop_Entry{{Index: 0, Epoch: 3}}}}},
		{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: 2}}},
		{Body: &event.Event_ServerUpdate{ServerUpdate: &event.ServerUpdate{Id: 3, Addr: "b:1", Host: "hh", Rack: "r", Tier: 2}}},
		{Body: &event.Event_PunchDone{PunchDone: &event.PunchDone{Ino: 3}}}, evSize(3, 10),
		{Body: &event.Event_Purged{Purged: &event.Purged{Server: 1, Chunks: []uint64{2}}}},
		{Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 3, Name: []byte("user.a"), Value: []byte("y")}}},
		{Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 3, Name: []byte("user.b"), Value: []byte("z")}}},
		{Body: &event.Event_RemoveXattr{RemoveXattr: &event.RemoveXattr{Ino: 3, Name: []byte("user.a")}}},
		{Body: &event.Event_LockSet{LockSet: &event.LockSet{Ino: 3, Session: 1, Owner: 5, Type: 2, End: 9}}},
		evLease(2, 3, msg.Want_WANT_WRITE), evLease(1, 3, msg.Want_WANT_READ), evClose(2, event.SessionClose_EXPIRED),
		{Body: &event.Event_Settled{Settled: &event.Settled{Ino: 3}}},
		{Body: &event.Event_SessionForgotten{SessionForgotten: &event.SessionForgotten{Id: 2}}},
		{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 1}}},
		cause(evRemove(2, 4, "g2"), 1, 2, 1),
		{Body: &event.Event_Digest{Digest: &event.Digest{Index: 5}}},
	}
}

// TestGolden: journals of the past replay to the digest recorded then, for ever.
func TestGolden(t *testing.T) {
	if *newGolden != "" {
		b, err := (&event.Batch{Events: history()}).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		sum := play(t, New(), history()...).Digest()
		file, err := os.OpenFile("testdata/"+*newGolden+".journal", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/"+*newGolden+".digest", []byte(hex.EncodeToString(sum[:])+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, e := range list {
		name, ok := strings.CutSuffix(e.Name(), ".journal")
		if !ok {
			continue
		}
		tested++
		raw, err := os.ReadFile("testdata/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("testdata/" + name + ".digest")
		if err != nil {
			t.Fatal(err)
		}
		var batch event.Batch
		if err := batch.UnmarshalVT(raw); err != nil {
			t.Fatal(err)
		}
		s := play(t, New(), batch.Events...)
		got := s.Digest()
		if hex.EncodeToString(got[:]) != string(bytes.TrimSpace(want)) {
			t.Errorf("%s: digest %x, recorded %s", name, got, want)
		}
	}
	if tested == 0 {
		t.Error("no golden journal")
	}
}
