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

// writeJournal writes a small journal, of a checkpoint at index 4, the events, a digest and the rest, and returns its directory.
func writeJournal(t *testing.T, rest ...*event.Event) string {
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
		if err := s.Try(withIndex(ev, uint64(s.Index()+1))); err != nil {
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
	for _, ev := range rest {
		add(ev)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// later is what follows in the journal that the verbs about causes are tested with.
func later() []*event.Event {
	mode, size := uint32(0o600), uint64(1<<20)
	user := func(session, seq uint64) *event.Cause { return &event.Cause{Session: session, Seq: seq, Uid: 1000} }
	server := func(n uint32, host string) *event.Event {
		return &event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: n, Uuid: bytes.Repeat([]byte{byte(n)}, 16), Addr: "127.0.0.1:700" + string(rune('0'+n)), Host: host}}}
	}
	return []*event.Event{
		server(2, "h2"), server(3, "h3"), // 11, 12
		{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 2, Host: "h2", Pid: 10, Mount: "/mnt", Nonce: bytes.Repeat([]byte{2}, 16)}}},
		{Cause: user(2, 1), Body: &event.Event_Link{Link: &event.Link{Ino: 3, Parent: 2, Name: []byte("hard")}}},
		{Cause: user(2, 2), Body: &event.Event_Create{Create: &event.Create{
			Parent: 2, Name: []byte("c.img"), Ino: 5, Type: uint32(msg.FileType_REGULAR), Perm: 0o644, Want: 2}}}, // 15
		{Cause: user(2, 3), Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{
			Ino: 5, Chunks: []*event.ChunkAlloc_Entry{{Index: 0, Id: 2, Epoch: 1, Servers: []uint32{1, 2, 3}}}, Norm: 3}}},
		{Cause: &event.Cause{Session: 2, Seq: 4, Uid: 1000, Reason: "cs2 did not answer in 3s"}, Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{
			Ino: 5, Server: 2, Chunks: []*event.ReplicaDrop_Entry{{Index: 0, Epoch: 2}}}}},
		{Cause: &event.Cause{Reason: "2 of 3 replicas"}, Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: 2, Server: 2, Epoch: 3}}},
		{Cause: &event.Cause{Reason: "copied 4.0 KiB"}, Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{Chunk: 2, Server: 2, Epoch: 3}}},
		{Cause: user(2, 5), Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: 5, Size: &size, Perm: &mode}}}, // 20
		{Cause: user(1, 7), Body: &event.Event_Remove{Remove: &event.Remove{Parent: 2, Name: []byte("li\nnk"), Ino: 4}}},
		{Cause: &event.Cause{Reason: "its lease has run out; last renewed 10s ago"}, Body: &event.Event_SessionClose{SessionClose: &event.SessionClose{
			Id: 2, Kind: event.SessionClose_EXPIRED}}},
		{Body: &event.Event_Settled{Settled: &event.Settled{Ino: 5}}},
		{Cause: &event.Cause{Reason: "set by an administrator"}, Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: "replicas", Value: "3:1"}}},
		{Cause: user(1, 8), Body: &event.Event_Rename{Rename: &event.Rename{ // 25
			Parent: 1, Name: []byte("images"), Ino: 2, NewParent: 1, NewName: []byte("vm")}}},
		{Cause: &event.Cause{Reason: "silent for 1m0s"}, Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: 3}}},
		{Cause: user(1, 9), Body: &event.Event_Remove{Remove: &event.Remove{Parent: 2, Name: []byte("c.img"), Ino: 5}}},
	}
}

func withIndex(ev *event.Event, index uint64) *event.Event {
	ev.Index = index
	return ev
}

// TestJournal runs the commands of testdata/journal.txt on a small journal, and those of causes.txt on a longer one.
func TestJournal(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	defer func() { time.Local = local }()
	t.Run("journal", func(t *testing.T) { journalCommands(t, "testdata/journal.txt", writeJournal(t)) })
	t.Run("causes", func(t *testing.T) { journalCommands(t, "testdata/causes.txt", writeJournal(t, later()...)) })
}

func journalCommands(t *testing.T, file, dir string) {
	datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string {
		var out bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &out}
		args := strings.Split(d.Input, " ")
		if i := strings.Index(d.Input, "--run "); i >= 0 { // the rest of the line is the command
			args = append(strings.Fields(d.Input[:i]), "--run", d.Input[i+len("--run "):])
		}
		if args[0] != "explain" {
			args = append([]string{"journal"}, args...)
		}
		code := a.run(context.Background(), append(args, "-r", dir))
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
		if code := a.run(context.Background(), []string{"journal", "verify", "-r", dir}); code != exitFailed || !strings.Contains(out.String(), "corrupt journal") ||
			!strings.Contains(out.String(), "--rebuild") {
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
