package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"varve/internal/id"
	"varve/internal/invariant"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// event builders of the tests

func evInit() *event.Event {
	return &event.Event{Time: 1, Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Name: "c", Perm: 0o755}}}
}

func evServer(n uint32) *event.Event {
	return &event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: n, Uuid: []byte{byte(n)}, Addr: "a:1", Host: fmt.Sprint("h", n)}}}
}

func evSession(n uint64) *event.Event {
	return &event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: n, Host: "h", Nonce: []byte{byte(n)}}}}
}

func evClose(n uint64, k event.SessionClose_Kind) *event.Event {
	return &event.Event{Body: &event.Event_SessionClose{SessionClose: &event.SessionClose{Id: n, Kind: k}}}
}

func evCreate(parent, ino uint64, name string, typ msg.FileType) *event.Event {
	return &event.Event{Time: int64(ino), Body: &event.Event_Create{Create: &event.Create{
		Parent: parent, Name: []byte(name), Ino: ino, Type: uint32(typ), Perm: 0o644,
	}}}
}

func evAlloc(ino uint64, index uint32, c uint64, servers ...uint32) *event.Event {
	return &event.Event{Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{
		Ino: ino, Norm: 3, Chunks: []*event.ChunkAlloc_Entry{{Index: index, Id: c, Epoch: 1, Servers: servers}},
	}}}
}

func evLease(session, ino uint64, want msg.Want) *event.Event {
	return &event.Event{Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
		Entries: []*event.LeaseSet_Entry{{Session: session, Ino: ino, Want: uint32(want)}},
	}}}
}

func evSize(ino, size uint64) *event.Event {
	return &event.Event{Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: ino, Size: &size}}}
}

func evRemove(parent, ino uint64, name string) *event.Event {
	return &event.Event{Body: &event.Event_Remove{Remove: &event.Remove{Parent: parent, Ino: ino, Name: []byte(name)}}}
}

func evPolicy(ino uint64, norm, least uint32) *event.Event {
	return &event.Event{Body: &event.Event_PolicySet{PolicySet: &event.PolicySet{Ino: ino, Norm: norm, Min: least}}}
}

func evConfig(key, value string) *event.Event {
	return &event.Event{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: key, Value: value}}}
}

func cause(ev *event.Event, session, seq, acked uint64) *event.Event {
	ev.Cause = &event.Cause{Session: session, Seq: seq, Acked: acked}
	return ev
}

// play applies the events and checks the state after each.
func play(t testing.TB, s *State, evs ...*event.Event) *State {
	t.Helper()
	for _, ev := range evs {
		s.Apply(ev)
		if err := s.Check(); err != nil {
			t.Fatalf("after %v: %v", ev, err)
		}
	}
	return s
}

// sample returns a state with one of everything.
func sample(t testing.TB) *State {
	return play(t, New(), evInit(), evServer(1), evServer(2), evServer(3), evServer(4), evSession(1), evSession(2), evSession(3),
		evConfig("color", "blue"), evConfig(ConfigReplicas, "2:1"),
		&event.Event{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{Id: 1, Uuid: []byte{9}, Addr: "m:1"}}},
		evCreate(1, 2, "d", msg.FileType_DIRECTORY), evCreate(2, 3, "f", msg.FileType_REGULAR),
		evAlloc(3, 0, 1, 1, 2, 3), evAlloc(3, 1, 2, 2, 3), evSize(3, 100<<20), evAlloc(3, 3, 3, 1, 2), evSize(3, 70<<20),
		cause(evLease(1, 3, msg.Want_WANT_WRITE), 1, 1, 0), evLease(3, 3, msg.Want_WANT_WRITE), cause(evPolicy(2, 4, 0), 1, 2, 0),
		&event.Event{Body: &event.Event_LockSet{LockSet: &event.LockSet{Ino: 3, Session: 1, Owner: 5, Type: 2, End: 9}}},
		&event.Event{Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 3, Name: []byte("user.b"), Value: []byte("x")}}},
		&event.Event{Body: &event.Event_SetXattr{SetXattr: &event.SetXattr{Ino: 3, Name: []byte("user.a"), Value: []byte("y")}}},
		&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{Chunk: 1, Server: 4, Epoch: 2}}},
		evClose(3, event.SessionClose_EXPIRED))
}

func TestSample(t *testing.T) {
	s := sample(t)
	n, _ := s.Inode(3)
	if p, ok := n.Punch(); !ok || p != (PendingPunch{Index: 1, From: 6 << 20}) || !n.Unsettled() || n.Chunks() != 2 {
		t.Errorf("inode %+v, punch %+v", n, p)
	}
	if c, _ := s.ChunkByID(1); c.Norm() != 4 || c.Joining() != 1 || !c.Degraded() {
		t.Errorf("chunk %+v", c)
	}
	if got := s.Policy(3); got != (Policy{Norm: 4, Min: 1}) {
		t.Errorf("policy %+v", got)
	}
	if got := fmt.Sprint(s.Garbage(1, 9), s.Garbage(2, 9)); got != "[0000000000000003] [0000000000000003]" {
		t.Errorf("garbage %v", got)
	}
	if c := s.Counts(); c.Garbage != 2 || c.Unsettled != 1 || c.Punching != 1 || c.Joining != 1 {
		t.Errorf("counts %+v", c)
	}
	if r, ok := s.Outcome(1, 1); !ok || r.Ino != 3 {
		t.Errorf("outcome %+v %v", r, ok)
	}
	if s.Mode(3, 1) != msg.Mode_EXCLUSIVE_WRITE {
		t.Errorf("mode %v", s.Mode(3, 1))
	}
}

func TestSessionClose(t *testing.T) {
	for _, k := range []event.SessionClose_Kind{event.SessionClose_CLEAN, event.SessionClose_EXPIRED, event.SessionClose_FENCED} {
		s := play(t, New(), evInit(), evServer(1), evSession(1), evCreate(1, 2, "f", msg.FileType_REGULAR), evAlloc(2, 0, 1, 1),
			evCreate(1, 3, "g", msg.FileType_REGULAR), evLease(1, 2, msg.Want_WANT_WRITE), evLease(1, 3, msg.Want_WANT_WRITE),
			evRemove(1, 3, "g"), evClose(1, k))
		x, ok := s.Session(1)
		n, _ := s.Inode(2)
		_, gone := s.Inode(3)
		clean := k == event.SessionClose_CLEAN
		if ok == clean || !clean && !x.Fenced || n.Unsettled() == clean || gone {
			t.Errorf("%v: session %v, inode %+v, unlinked inode there %v", k, x, n, gone)
		}
		if !clean {
			play(t, s, &event.Event{Body: &event.Event_SessionForgotten{SessionForgotten: &event.SessionForgotten{Id: 1}}},
				&event.Event{Body: &event.Event_Settled{Settled: &event.Settled{Ino: 2}}})
		}
		if c := s.Counts(); c.Sessions != 0 || c.Leases != 0 || c.Unsettled != 0 {
			t.Errorf("%v: %+v", k, c)
		}
	}
}

func TestServerLostAndRetired(t *testing.T) {
	s := play(t, New(), evInit(), evServer(1), evServer(2), evCreate(1, 2, "f", msg.FileType_REGULAR), evAlloc(2, 0, 1, 1, 2), evAlloc(2, 1, 2, 1),
		&event.Event{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: 1}}})
	a, _ := s.ChunkByID(1)
	b, _ := s.ChunkByID(2)
	if a.Len() != 1 || a.Epoch() != 2 || b.Len() != 1 || b.Epoch() != 1 {
		t.Errorf("%+v %+v", a, b)
	}
	play(t, s, &event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 1}}}, evRemove(1, 2, "f"))
	if g1, g2 := s.Garbage(1, 9), s.Garbage(2, 9); len(g1) != 0 || len(g2) != 1 {
		t.Errorf("garbage %v %v", g1, g2)
	}
}

func TestResultsAreBounded(t *testing.T) {
	s := play(t, New(), evInit(), evSession(1), evCreate(1, 2, "f", msg.FileType_REGULAR))
	for i := uint64(2); i < MaxResults+100; i++ {
		s.Apply(cause(evSize(2, i), 1, i, 0))
	}
	s.Apply(cause(evSize(2, 1), 1, 1, 0)) // overtaken: applied, not remembered
	if _, ok := s.Outcome(1, 1); ok || s.Acked(1) != 99 {
		t.Errorf("remembered %v, floor %d", ok, s.Acked(1))
	}
	play(t, s, cause(evSize(2, 1), 1, MaxResults+100, MaxResults+99))
	if r, ok := s.Outcome(1, MaxResults+100); !ok || r.Index != s.Index() || s.Acked(1) != MaxResults+99 {
		t.Errorf("%+v %v", r, s.Acked(1))
	}
}

func TestMisfit(t *testing.T) {
	for name, ev := range map[string]*event.Event{
		"no body":         {},
		"second init":     evInit(),
		"parent missing":  evCreate(99, 50, "x", msg.FileType_REGULAR),
		"name taken":      evCreate(1, 50, "d", msg.FileType_REGULAR),
		"inode taken":     evCreate(1, 3, "x", msg.FileType_REGULAR),
		"not empty":       {Body: &event.Event_Remove{Remove: &event.Remove{Parent: 1, Name: []byte("d"), Ino: 2, Dir: true}}},
		"wrong inode":     evRemove(1, 7, "d"),
		"no session":      evLease(77, 3, msg.Want_WANT_READ),
		"fenced session":  evLease(3, 3, msg.Want_WANT_READ),
		"lease on a dir":  evLease(1, 2, msg.Want_WANT_READ),
		"chunk there":     evAlloc(3, 0, 50, 1),
		"id used":         evAlloc(3, 9, 1, 1),
		"unknown server":  evAlloc(3, 9, 50, 88),
		"epoch":           {Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{Ino: 3, Server: 1, Chunks: []*event.ReplicaDrop_Entry{{Index: 0, Epoch: 9}}}}},
		"sync not join":   {Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{Chunk: 1, Server: 1, Epoch: 2}}},
		"done before":     cause(evSize(3, 70<<20), 1, 1, 0),
		"server twice":    evServer(1),
		"session twice":   evSession(1),
		"close of fenced": evClose(3, event.SessionClose_CLEAN),
	} {
		t.Run(name, func(t *testing.T) {
			s := sample(t)
			defer func() {
				if v, ok := recover().(invariant.Violation); !ok || !strings.Contains(v.Message, fmt.Sprintf("event %d", s.Index())) {
					t.Errorf("got %v", v)
				}
			}()
			s.Apply(ev)
		})
	}
}

func TestReadRefuses(t *testing.T) {
	var b bytes.Buffer
	s := sample(t)
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	r, err := Read(bytes.NewReader(good))
	if err != nil || r.Digest() != s.Digest() || r.Check() != nil {
		t.Fatalf("round trip: %v", err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := Read(bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, err := Read(bytes.NewReader(good[:i])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	if err := sample(f).Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		if s, err := Read(bytes.NewReader(p)); err == nil {
			var b bytes.Buffer
			if err := s.Write(&b); err != nil || !bytes.Equal(b.Bytes(), p) && len(p) == b.Len() {
				t.Fatalf("round trip: %v", err)
			}
		}
	})
}

// FuzzRecords reaches the records behind the checksums: what decodes encodes to the same bytes.
func FuzzRecords(f *testing.F) {
	e := &encoder{sum: sha256.New()}
	s := sample(f)
	body := func(s *State) []byte {
		var b bytes.Buffer
		e = &encoder{w: &b, sum: sha256.New()}
		s.encode(e)
		var out []byte
		for p := b.Bytes(); len(p) >= 8; {
			n := int(p[0]) | int(p[1])<<8 | int(p[2])<<16 | int(p[3])<<24
			out = append(out, p[8:8+n]...)
			p = p[8+n:]
		}
		return out
	}
	f.Add(body(s))
	f.Fuzz(func(t *testing.T, p []byte) {
		d := &decoder{s: New()}
		if d.block(p) != "" || len(p) == 0 {
			return
		}
		d.s.policy = d.s.configPolicy()
		if got := body(d.s); !bytes.Equal(got, p) {
			t.Fatalf("got %x\nwant %x", got, p)
		}
		_ = d.s.Check()
	})
}

const benchFiles = 1 << 20

// files returns a state of n files in n/1000 directories, with a chunk each.
func files(n uint64) *State {
	s := New()
	for _, ev := range []*event.Event{evInit(), evServer(1), evServer(2), evServer(3), evSession(1)} {
		s.Apply(ev)
	}
	dir, c := uint64(1), uint64(0)
	for i := uint64(2); i < n+2; i++ {
		if i%1000 == 2 {
			s.Apply(evCreate(1, i, fmt.Sprint("dir", i), msg.FileType_DIRECTORY))
			dir = i
			continue
		}
		s.Apply(evCreate(dir, i, fmt.Sprintf("vm-%08d-disk0.qcow2", i), msg.FileType_REGULAR))
		c++
		s.Apply(evAlloc(i, 0, c, 1, 2, 3))
	}
	return s
}

func BenchmarkApply(b *testing.B) {
	s := files(100_000)
	b.Run("event=setattr", func(b *testing.B) {
		ev := evSize(50_000, 4096)
		i := uint64(0)
		b.ReportAllocs()
		for b.Loop() {
			i++
			ev.GetSetAttr().Ino = 3 + i*7919%99_000
			if ev.GetSetAttr().Ino%1000 != 2 {
				s.Apply(ev)
			}
		}
	})
	b.Run("event=writedone-with-seq", func(b *testing.B) {
		ev := cause(evSize(50_000, 4096), 1, 0, 0)
		b.ReportAllocs()
		for b.Loop() {
			ev.Cause.Seq++
			ev.Cause.Acked = max(ev.Cause.Seq, 9) - 8
			s.Apply(ev)
		}
	})
	b.Run("event=create", func(b *testing.B) {
		c := &event.Create{Parent: 1, Type: 1, Perm: 0o644}
		ev := &event.Event{Body: &event.Event_Create{Create: c}}
		n := uint64(s.NextIno())
		name := []byte("file-00000000")
		b.ReportAllocs()
		for b.Loop() {
			n++
			for k, v := len(name)-1, n; k > 4; k-- {
				name[k] = byte('0' + v%10)
				v /= 10
			}
			c.Ino, c.Name = n, name
			s.Apply(ev)
		}
	})
	b.Run("event=replicas", func(b *testing.B) {
		join := &event.ReplicaJoin{Server: 3}
		sync := &event.ReplicaSync{Server: 3}
		i := uint64(0)
		b.ReportAllocs()
		for b.Loop() {
			i++
			c, _ := s.ChunkByID(id.ChunkID(1 + i*7919%90_000))
			join.Chunk, join.Epoch = uint64(c.ID), uint64(c.Epoch())+1
			sync.Chunk, sync.Epoch = join.Chunk, join.Epoch
			s.Apply(&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: join}})
			s.Apply(&event.Event{Body: &event.Event_ReplicaSync{ReplicaSync: sync}})
		}
	})
}

// BenchmarkMemory reports the heap a file with one chunk needs, in a namespace of a million.
func BenchmarkMemory(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := files(benchFiles)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/benchFiles, "B/file")
		runtime.KeepAlive(s)
	}
}

func BenchmarkCheckpoint(b *testing.B) {
	s := files(200_000)
	var buf bytes.Buffer
	b.Run("op=write", func(b *testing.B) {
		for b.Loop() {
			buf.Reset()
			if err := s.Write(&buf); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(buf.Len()))
	})
	b.Run("op=read", func(b *testing.B) {
		for b.Loop() {
			if _, err := Read(bytes.NewReader(buf.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(buf.Len()))
	})
	b.Run("op=clone", func(b *testing.B) {
		for b.Loop() {
			s.Clone()
		}
	})
}
