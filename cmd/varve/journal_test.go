package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"

	"github.com/cockroachdb/datadriven"
)

// writeJournal writes a small journal, of a checkpoint at index 4, the events and a digest, and returns its directory.
func writeJournal(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cluster := id.Cluster{0xab, 0xcd}
	j, err := journal.Open(journal.Options{Dir: filepath.Join(dir, "journal"), Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	s := state.New()
	add := func(ev *event.Event) {
		t.Helper()
		ev.Time = time.Date(2026, 3, 1, 12, int(s.Index()), 0, 0, time.UTC).UnixNano()
		if err := applyEvent(s, withIndex(ev, uint64(s.Index()+1))); err != nil {
			t.Fatal(err)
		}
		b, err := ev.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Append([]journal.Record{{Index: s.Index(), Time: ev.Time, Raft: uint64(s.Index()), Payload: b}}); err != nil {
			t.Fatal(err)
		}
		if err := j.Sync(); err != nil { // so that damage is not taken for a torn end
			t.Fatal(err)
		}
	}
	user := func(seq uint64) *event.Cause { return &event.Cause{Session: 1, Seq: seq, Uid: 1000} }
	size := uint64(5000)
	add(&event.Event{Cause: &event.Cause{Reason: "cluster made"},
		Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: cluster[:], Name: "test", Perm: 0o755}}})
	add(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: 1, Uuid: bytes.Repeat([]byte{7}, 16), Addr: "127.0.0.1:7001", Host: "h1"}}})
	add(&event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 1, Host: "h1", Pid: 9, Mount: "/mnt", Nonce: bytes.Repeat([]byte{1}, 16)}}})
	add(&event.Event{Cause: user(1), Body: &event.Event_Create{Create: &event.Create{
		Parent: 1, Name: []byte("images"), Ino: 2, Type: uint32(msg.FileType_DIRECTORY), Perm: 0o750, Uid: 1000, Gid: 1000}}})
	if err := j.WriteCheckpoint(j.Last(), s.Write); err != nil {
		t.Fatal(err)
	}
	add(&event.Event{Cause: user(2), Body: &event.Event_Create{Create: &event.Create{
		Parent: 2, Name: []byte("a.img"), Ino: 3, Type: uint32(msg.FileType_REGULAR), Perm: 0o640, Uid: 1000, Gid: 1000, Want: 2}}})
	add(&event.Event{Cause: user(3), Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{
		Ino: 3, Chunks: []*event.ChunkAlloc_Entry{{Index: 0, Id: 1, Epoch: 1, Servers: []uint32{1}}}, Norm: 1}}})
	add(&event.Event{Cause: user(4), Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: 3, Size: &size}}})
	d := s.Digest()
	add(&event.Event{Cause: &event.Cause{Reason: "interval"}, Body: &event.Event_Digest{Digest: &event.Digest{Index: uint64(s.Index()), Digest: d[:]}}})
	add(&event.Event{Cause: user(5), Body: &event.Event_Create{Create: &event.Create{
		Parent: 2, Name: []byte("li\nnk"), Ino: 4, Type: uint32(msg.FileType_SYMLINK), Perm: 0o777, Target: []byte("a.img")}}})
	add(&event.Event{Cause: user(6), Body: &event.Event_Rename{Rename: &event.Rename{
		Parent: 2, Name: []byte("a.img"), Ino: 3, NewParent: 1, NewName: []byte("b.img")}}})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func withIndex(ev *event.Event, index uint64) *event.Event {
	ev.Index = index
	return ev
}

// TestJournal runs the commands of testdata/journal.txt on a small journal.
func TestJournal(t *testing.T) {
	dir := writeJournal(t)
	datadriven.RunTest(t, "testdata/journal.txt", func(t *testing.T, d *datadriven.TestData) string {
		var out bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &out}
		args := strings.Fields(d.Input)
		code := a.run(context.Background(), append([]string{"journal"}, append(args, "-r", dir)...))
		if code != exitDone {
			out.WriteString("exit code " + string(rune('0'+code)) + "\n")
		}
		return strings.ReplaceAll(out.String(), dir, "DIR")
	})
}

// TestJournalDamage: verify finds one changed byte anywhere in a record, and replay of it fails.
func TestJournalDamage(t *testing.T) {
	dir := writeJournal(t)
	segs, err := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
	if err != nil || len(segs) != 1 {
		t.Fatalf("segments %q, %v", segs, err)
	}
	whole, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{20, 100, len(whole) / 2} {
		b := bytes.Clone(whole)
		b[off] ^= 1
		if err := os.WriteFile(segs[0], b, 0o644); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		a := &app{out: &out, err: &out}
		if code := a.run(context.Background(), []string{"journal", "verify", "-r", dir}); code != exitFailed || !strings.Contains(out.String(), "corrupt journal") {
			t.Errorf("byte %d changed: exit code %d, %s", off, code, &out)
		}
	}
}

// TestReplayBadCheckpoint: a damaged checkpoint costs time, not history.
func TestReplayBadCheckpoint(t *testing.T) {
	dir := writeJournal(t)
	want := digestAt(t, dir, "10")
	ckpts, err := filepath.Glob(filepath.Join(dir, "journal", "*.ckpt"))
	if err != nil || len(ckpts) != 1 {
		t.Fatalf("checkpoints %q, %v", ckpts, err)
	}
	b, err := os.ReadFile(ckpts[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(ckpts[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := digestAt(t, dir, "10"); got != want {
		t.Errorf("digest %s, with the checkpoint whole %s", got, want)
	}
	a := &app{out: io.Discard, err: io.Discard}
	if code := a.run(context.Background(), []string{"journal", "verify", "-r", dir}); code != exitFailed {
		t.Errorf("verify: exit code %d with a damaged checkpoint", code)
	}
}

func digestAt(t *testing.T, dir, to string) string {
	t.Helper()
	var out bytes.Buffer
	a := &app{out: &out, err: &out}
	if code := a.run(context.Background(), []string{"journal", "replay", "--counts", "--to", to, "-r", dir}); code != exitDone {
		t.Fatalf("exit code %d: %s", code, &out)
	}
	_, digest, _ := strings.Cut(out.String(), "digest")
	return strings.TrimSpace(digest)
}
