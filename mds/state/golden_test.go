package state

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"varve/internal/wire/msg"
	"varve/mds/event"
)

// A golden journal is what some version wrote: NAME.journal, a Batch, and NAME.digests, lines of index, kind of digest and digest at several
// indexes, and NAME.vN.checkpoint, the state at the end in version N of the format. They are never written again. To add one, for instance for a new event or field: put its events into recipes under a new
// name and run
//
//	go test ./mds/state -run TestGolden -update-golden
var updateGolden = flag.Bool("update-golden", false, "write the golden journals that recipes has and testdata lacks; none is overwritten")

// recipes are the events of the golden journals, by name. They were used once, and stay to show what is in a journal.
var recipes = map[string]func() []*event.Event{
	"every-event-1": history,
	"every-field-2": everyField,
	"server-mode-3": serverModes,
	"policy-4":      policies,
	"replicas-3":    replicaEvents,
	"writers-5":     writerEvents,
	"mode-times-6":  modeTimes,
	"security-7":    securityEvents,
}

// history is what the first golden journal holds: every kind of event once, as the first version of the schema had them.
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

// everyField has every field of every event, those included that came after the first journal was written.
func everyField() []*event.Event {
	p32 := func(v uint32) *uint32 { return &v }
	p64 := func(v uint64) *uint64 { return &v }
	i64 := func(v int64) *int64 { return &v }
	create := func(ino uint64, name string, c *event.Create) *event.Event {
		return &event.Event{Time: int64(1000 + ino), Body: &event.Event_Create{Create: &event.Create{
			Parent: 1, Name: []byte(name), Ino: ino, Type: c.Type, Perm: 0o640, Uid: 7, Gid: 8, Rdev: c.Rdev, Target: c.Target, Want: c.Want,
		}}}
	}
	lock := func(flock bool, typ uint32, start, end uint64) *event.Event {
		return &event.Event{Body: &event.Event_LockSet{LockSet: &event.LockSet{
			Ino: 10, Session: 1, Owner: 77, Pid: 4242, Flock: flock, Type: typ, Start: start, End: end}}}
	}
	uuid := []byte("0123456789abcdef")
	evs := []*event.Event{
		{Time: 5, Cause: &event.Cause{Reason: "the cluster is made"}, Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{
			Uuid: uuid, Name: "golden", Perm: 0o755, Uid: 3, Gid: 4}}},
		{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{Id: 1, Uuid: uuid, Addr: "10.0.0.1:2510"}}},
		{Body: &event.Event_MetaUpdate{MetaUpdate: &event.MetaUpdate{Id: 1, Addr: "10.0.0.2:2510"}}},
	}
	for n := range uint32(4) {
		evs = append(evs, &event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{
			Id: n + 1, Uuid: uuid, Addr: fmt.Sprintf("10.0.1.%d:2511", n), Host: fmt.Sprint("host", n), Rack: "r1", Tier: 2}}})
	}
	evs = append(evs,
		&event.Event{Body: &event.Event_ServerUpdate{ServerUpdate: &event.ServerUpdate{Id: 4, Addr: "10.0.2.4:2511", Host: "host9", Rack: "r2", Tier: 1}}},
		evConfig("repair.grace", "90s"),
		&event.Event{Time: 9, Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 1, Host: "client1", Pid: 99, Mount: "/mnt/vm", Nonce: uuid}}},
		&event.Event{Time: 9, Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 2, Host: "client2", Pid: 98, Mount: "/mnt/vm", Nonce: uuid[1:]}}},
		evCreate(1, 2, "dir", msg.FileType_DIRECTORY),
		cause(create(10, "disk.qcow2", &event.Create{Type: uint32(msg.FileType_REGULAR), Want: uint32(msg.Want_WANT_WRITE)}), 1, 1, 0),
		create(11, "sym", &event.Create{Type: uint32(msg.FileType_SYMLINK), Target: []byte("disk.qcow2")}),
		create(12, "null", &event.Create{Type: uint32(msg.FileType_CHAR), Rdev: 0x103}),
		create(13, "\xff not UTF-8", &event.Create{Type: uint32(msg.FileType_FIFO)}),
		&event.Event{Time: 20, Cause: &event.Cause{Session: 1, Seq: 2, Acked: 1, Uid: 1000}, Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{
			Ino: 10, Norm: 3, Chunks: []*event.ChunkAlloc_Entry{{Index: 0, Id: 5, Epoch: 1, Servers: []uint32{1, 2, 3}}, {Index: 2, Id: 6, Epoch: 4, Servers: []uint32{3, 1}}}}}},
		&event.Event{Time: 21, Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: 10, Perm: p32(0o600), Uid: p32(70), Gid: p32(80),
			Size: p64(150 << 20), Atime: i64(-5), Mtime: i64(1 << 40)}}},
		cause(&event.Event{Time: 22, Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: 10, Size: p64(151 << 20), Offset: p64(150 << 20)}}}, 1, 3, 1),
		&event.Event{Time: 23, Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 10, Name: []byte("user.x"), Value: []byte{0, 1, 2}, Perm: p32(0o604)}}},
		&event.Event{Time: 24, Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 10, Name: []byte("user.y"), Value: []byte("y")}}},
		&event.Event{Time: 25, Body: &event.Event_RemoveXattr{RemoveXattr: &event.RemoveXattr{Ino: 10, Name: []byte("user.y")}}},
		&event.Event{Time: 26, Body: &event.Event_Link{Link: &event.Link{Ino: 10, Parent: 2, Name: []byte("hard")}}},
		&event.Event{Time: 27, Body: &event.Event_Rename{Rename: &event.Rename{Parent: 1, Name: []byte("sym"), Ino: 11, NewParent: 2, NewName: []byte("hard"),
			Replaced: 10, Exchange: true}}},
		lock(false, 2, 5, 10), lock(false, 1, 100, LockEnd), lock(true, 2, 0, LockEnd), lock(false, 0, 7, 8),
		&event.Event{Time: 30, Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
			Entries: []*event.LeaseSet_Entry{{Session: 2, Ino: 10, Want: 2}, {Session: 1, Ino: 10, Want: 1}}, Attr: &event.SetAttr{Ino: 10, Size: p64(140 << 20)}}}},
		evPolicy(2, 2, 1), evPolicy(10, 3, 0),
		&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: 6, Server: 4, Epoch: 5}}},
		&event.Event{Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{Chunk: 6, Server: 4, Epoch: 5}}},
		&event.Event{Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{Ino: 10, Server: 3, Chunks: []*event.ReplicaDrop_Entry{{Index: 2, Epoch: 6}, {Index: 0, Epoch: 2}}}}},
		&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: 5, Server: 3, Epoch: 3}}},
		&event.Event{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: 2}}},
		&event.Event{Body: &event.Event_PunchDone{PunchDone: &event.PunchDone{Ino: 10}}},
		evSize(10, 64<<20),
		&event.Event{Body: &event.Event_Purged{Purged: &event.Purged{Server: 1, Chunks: []uint64{6}}}},
		&event.Event{Cause: &event.Cause{Reason: "not renewed for 10s"}, Body: &event.Event_SessionClose{SessionClose: &event.SessionClose{Id: 2, Kind: event.SessionClose_EXPIRED}}},
		&event.Event{Body: &event.Event_Settled{Settled: &event.Settled{Ino: 10}}},
		&event.Event{Body: &event.Event_SessionForgotten{SessionForgotten: &event.SessionForgotten{Id: 2}}},
		&event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 2}}},
		&event.Event{Time: 50, Body: &event.Event_Remove{Remove: &event.Remove{Parent: 2, Name: []byte("hard"), Ino: 11}}},
		evCreate(1, 20, "gone", msg.FileType_DIRECTORY),
		&event.Event{Time: 51, Body: &event.Event_Remove{Remove: &event.Remove{Parent: 1, Name: []byte("gone"), Ino: 20, Dir: true}}},
		&event.Event{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{Id: 2, Uuid: uuid, Addr: "10.0.0.3:2510"}}},
		&event.Event{Body: &event.Event_MetaRemove{MetaRemove: &event.MetaRemove{Id: 2}}},
		&event.Event{Body: &event.Event_Digest{Digest: &event.Digest{Index: 40, Digest: make([]byte, 16), Kind: DigestSum}}},
	)
	return evs
}

// serverModes has chunk servers in every mode.
func serverModes() []*event.Event {
	evs := []*event.Event{evInit()}
	for n := range uint32(6) {
		evs = append(evs, evServer(n+1))
	}
	mode := func(server uint32, m event.ServerMode_Mode) {
		evs = append(evs, &event.Event{Time: 7, Cause: &event.Cause{Reason: "an administrator says so"},
			Body: &event.Event_ServerMode{ServerMode: &event.ServerMode{Id: server, Mode: m}}})
	}
	for m := event.ServerMode_ACTIVE; m <= event.ServerMode_DRAINED; m++ {
		mode(uint32(m)+1, m)
	}
	mode(2, event.ServerMode_DRAINED)
	mode(2, event.ServerMode_ACTIVE)
	mode(2, event.ServerMode_DRAINING)
	mode(6, event.ServerMode_REMOVING)
	return append(evs, &event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 6}}})
}

// modeTimes has chunk servers whose modes have a beginning, and an end.
func modeTimes() []*event.Event {
	evs := []*event.Event{evInit()}
	for n := range uint32(4) {
		evs = append(evs, evServer(n+1))
	}
	for i, m := range []*event.ServerMode{
		{Id: 1, Mode: event.ServerMode_STANDBY, Since: 7, Until: 1 << 62}, {Id: 2, Mode: event.ServerMode_STANDBY, Since: 8, Until: 9},
		{Id: 3, Mode: event.ServerMode_DRAINING, Since: 9}, {Id: 4, Mode: event.ServerMode_REMOVING, Since: 10}, {Id: 2, Mode: event.ServerMode_ACTIVE, Since: 11},
		{Id: 3, Mode: event.ServerMode_STANDBY, Since: 12, Until: 13}, {Id: 3, Mode: event.ServerMode_STANDBY},
	} {
		evs = append(evs, &event.Event{Time: int64(7 + i), Cause: &event.Cause{Reason: "an administrator says so"}, Body: &event.Event_ServerMode{ServerMode: m}})
	}
	return append(evs, &event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 4}}})
}

// securityEvents has what there is of who may speak: two versions, certificates given, given again, forgotten and revoked.
func securityEvents() []*event.Event {
	key := func(n uint32) *event.SecuritySet_Key {
		return &event.SecuritySet_Key{Generation: n, Public: bytes.Repeat([]byte{byte(n)}, 32)}
	}
	issue := func(serial, node string, role uint32, authority uint32, forgotten ...string) *event.Event {
		return &event.Event{Time: 9, Cause: &event.Cause{Reason: "joins with the password"}, Body: &event.Event_CertIssue{CertIssue: &event.CertIssue{
			Serial: serial, Node: node, Role: role, From: 7, Until: 1 << 60, Authority: authority, Forgotten: forgotten}}}
	}
	return []*event.Event{
		evInit(),
		{Body: &event.Event_SecuritySet{SecuritySet: &event.SecuritySet{Version: 1, Sealed: []byte("sealed"), Bundle: []byte("bundle"), Authority: 1, Oldest: 1,
			Keys: []*event.SecuritySet_Key{key(1)}}}},
		issue("aa", "node1", 1, 1), issue("bb", "node2", 1, 1), issue("cc", "node1", 2, 1), issue("aa", "node1", 1, 1),
		{Body: &event.Event_SecuritySet{SecuritySet: &event.SecuritySet{Version: 2, Sealed: []byte("sealed again"), Bundle: []byte("bundle of two"), Authority: 2, Oldest: 1,
			Keys: []*event.SecuritySet_Key{key(1), key(2)}}}},
		issue("dd", "node2", 3, 2, "bb", "not there"),
		{Body: &event.Event_CertRevoke{CertRevoke: &event.CertRevoke{Serials: []string{"aa", "cc"}, At: 11}}},
	}
}

// policies has what a policy came to have beside replicas.
func policies() []*event.Event {
	set := func(p *event.PolicySet) *event.Event {
		return &event.Event{Time: int64(100 + p.Ino), Body: &event.Event_PolicySet{PolicySet: p}}
	}
	return []*event.Event{
		evInit(), evServer(1), evServer(2), evCreate(1, 2, "d", msg.FileType_DIRECTORY), evCreate(2, 3, "f", msg.FileType_REGULAR),
		evAlloc(3, 0, 1, 1, 2),
		set(&event.PolicySet{Ino: 2, Norm: 2, Min: 1, Tier: 2, Domain: uint32(Rack), Prefer: "node1,node2"}),
		set(&event.PolicySet{Ino: 3, Tier: AnyTier, Prefer: PreferNone}), set(&event.PolicySet{Ino: 1, Domain: uint32(Disk)}),
		{Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 2, Name: []byte("user.a"), Value: []byte("b")}}},
	}
}

// replicaEvents has what is told of replicas that lost power, or have bad blocks, and of who is to punch a tail.
func replicaEvents() []*event.Event {
	cut := func(ino, size, puncher uint64) *event.Event {
		ev := evSize(ino, size)
		ev.GetSetAttr().Puncher = puncher
		return ev
	}
	accept := func(c uint64, server uint32, epoch uint64) *event.Event {
		return &event.Event{Time: 9, Cause: &event.Cause{Reason: "every replica lost power"}, Body: &event.Event_ReplicaAccept{
			ReplicaAccept: &event.ReplicaAccept{Chunk: c, Server: server, Epoch: epoch}}}
	}
	return []*event.Event{
		evInit(), evServer(1), evServer(2), evServer(3), evSession(1), evSession(2),
		evCreate(1, 2, "vm.img", msg.FileType_REGULAR), evCreate(1, 3, "gone", msg.FileType_REGULAR), evCreate(1, 4, "done", msg.FileType_REGULAR),
		evAlloc(2, 0, 1, 1, 2, 3), evAlloc(2, 1, 2, 1, 2), evAlloc(3, 0, 3, 2, 3), evAlloc(4, 0, 4, 1),
		accept(1, 2, 2), accept(2, 1, 2), accept(3, 3, 2), accept(1, 3, 3),
		{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: 1, Server: 1, Epoch: 4}}},
		{Body: &event.Event_BadBlocks{BadBlocks: &event.BadBlocks{Chunk: 1, Server: 2, Blocks: []uint32{7, 16383}, Cause: "checksum"}}},
		evSize(2, 100<<20), cut(2, 70<<20, 1), evSize(3, 50<<20), cut(3, 1<<20, 2), evSize(4, 9000), cut(4, 100, 1), cut(4, 50, 2),
		evRemove(1, 3, "gone"), {Body: &event.Event_PunchDone{PunchDone: &event.PunchDone{Ino: 4}}},
	}
}

// digestLines returns what NAME.digests holds for the events: digests of both kinds at ten places and at the end.
func digestLines(t *testing.T, evs []*event.Event) string {
	var b strings.Builder
	s := New()
	for i, ev := range evs {
		play(t, s, ev)
		if i%max(len(evs)/10, 1) == 0 || i == len(evs)-1 {
			for _, kind := range []uint32{DigestSHA256, DigestSum} {
				d, err := s.DigestOf(kind)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "%d %d %x\n", s.Index(), kind, d)
			}
		}
	}
	return b.String()
}

func decodeBatch(t *testing.T, raw []byte) []*event.Event {
	var batch event.Batch
	if err := batch.UnmarshalVT(raw); err != nil {
		t.Fatal(err)
	}
	return batch.Events
}

// writeNew writes a file that is not there; another is left alone.
func writeNew(t *testing.T, path string, b []byte) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(b); err != nil {
		t.Fatal(err)
	}
}

func goldens(t *testing.T) map[string][]byte {
	paths, err := filepath.Glob("testdata/*.journal")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(p), ".journal")] = raw
	}
	return out
}

// TestGolden: journals of the past replay to the digests recorded then, for ever.
func TestGolden(t *testing.T) {
	if *updateGolden {
		for name, recipe := range recipes {
			b, err := (&event.Batch{Events: recipe()}).MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			writeNew(t, "testdata/"+name+".journal", b)
		}
		for name, raw := range goldens(t) {
			writeNew(t, "testdata/"+name+".digests", []byte(digestLines(t, decodeBatch(t, raw))))
			var b bytes.Buffer
			if err := play(t, New(), decodeBatch(t, raw)...).Write(&b); err != nil {
				t.Fatal(err)
			}
			writeNew(t, fmt.Sprintf("testdata/%s.v%d.checkpoint", name, version), b.Bytes())
		}
	}
	all := goldens(t)
	if len(all) < len(recipes) {
		t.Errorf("%d golden journals, %d recipes: see updateGolden", len(all), len(recipes))
	}
	for name, raw := range all {
		want, err := os.ReadFile("testdata/" + name + ".digests")
		if err != nil {
			t.Fatal(err)
		}
		if got := digestLines(t, decodeBatch(t, raw)); got != string(want) {
			t.Errorf("%s: replay gives\n%s\nrecorded was\n%s", name, got, want)
		}
		// The first version recorded one digest, beside what is recorded now.
		if old, err := os.ReadFile("testdata/" + name + ".digest"); err == nil {
			got := play(t, New(), decodeBatch(t, raw)...).Digest()
			if hex.EncodeToString(got[:]) != string(bytes.TrimSpace(old)) {
				t.Errorf("%s: digest %x, recorded %s", name, got, old)
			}
		}
		// What this version writes is what was read, so that a journal that is copied stays what it is.
		again, err := (&event.Batch{Events: decodeBatch(t, raw)}).MarshalVT()
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%s: encodes to other bytes: %v", name, err)
		}
	}
}

// TestGoldenCheckpoints: the checkpoints of every version can be read, and hold what the journal gives.
func TestGoldenCheckpoints(t *testing.T) {
	all := goldens(t)
	for v := 1; v <= version; v++ {
		paths, err := filepath.Glob(fmt.Sprintf("testdata/*.v%d.checkpoint", v))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no checkpoint of version %d: %v", v, err)
		}
		for _, path := range paths {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Read(bytes.NewReader(raw))
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			name, _, _ := strings.Cut(filepath.Base(path), ".")
			want := play(t, New(), decodeBatch(t, all[name])...)
			if s.Sum() != want.Sum() || s.Digest() != want.Digest() {
				t.Errorf("%s: digest %x, replay gives %x", path, s.Sum(), want.Sum())
			}
			if err := s.Check(); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// TestGoldenIsComplete: every event there is, and every field of every event, is in a golden journal.
func TestGoldenIsComplete(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	var note func(m protoreflect.Message)
	note = func(m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			seen[f.FullName()] = true
			switch {
			case f.IsList() && f.Message() != nil:
				for i := range v.List().Len() {
					note(v.List().Get(i).Message())
				}
			case f.Message() != nil:
				note(v.Message())
			}
			return true
		})
	}
	for _, raw := range goldens(t) {
		for i, ev := range decodeBatch(t, raw) {
			ev.Index = uint64(i) + 1 // as Apply sets it
			note(ev.ProtoReflect())
		}
	}
	done := map[protoreflect.FullName]bool{}
	var need func(d protoreflect.MessageDescriptor)
	need = func(d protoreflect.MessageDescriptor) {
		if done[d.FullName()] {
			return
		}
		done[d.FullName()] = true
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			if !seen[f.FullName()] {
				t.Errorf("%s is in no golden journal: add one as updateGolden says", f.FullName())
			}
			if f.Message() != nil {
				need(f.Message())
			}
		}
	}
	need((&event.Event{}).ProtoReflect().Descriptor())
}
