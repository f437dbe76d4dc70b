package decide

import (
	"bytes"
	"fmt"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"

	"pgregory.net/rapid"
)

// world is a state with the leader's part of a server around it.
type world struct {
	s     *state.State
	log   []*event.Event
	env   Env
	now   int64
	ino   id.Ino
	chunk id.ChunkID
	seq   uint64
	dead  map[id.ServerID]bool
}

func newWorld() *world {
	w := &world{s: state.New(), dead: map[id.ServerID]bool{}}
	w.env = Env{
		NextIno:   func() id.Ino { w.ino = max(w.ino+1, w.s.NextIno()); return w.ino },
		NextChunk: func() id.ChunkID { w.chunk = max(w.chunk+1, w.s.NextChunk()); return w.chunk },
		Place: func(_ id.Ino, index uint32, norm int) []id.ServerID {
			var out []id.ServerID
			w.s.Servers(func(r *state.Server) bool {
				if !r.Retired && !w.dead[r.ID] && len(out) < norm {
					out = append(out, r.ID)
				}
				return true
			})
			return out
		},
		Servers: func(v id.ServerID) (string, bool) { return fmt.Sprintf("host%d:1", v), !w.dead[v] },
		Space:   func(norm int) (uint64, uint64) { return 1 << 40 / uint64(norm), 1 << 39 / uint64(norm) },
	}
	w.apply(&event.Event{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Name: "c", Perm: 0o755}}})
	for i := range 4 {
		w.apply(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{
			Id: uint32(i + 1), Uuid: []byte{byte(i)}, Addr: "a", Host: fmt.Sprintf("h%d", i/2),
		}}})
	}
	return w
}

func (w *world) apply(ev *event.Event) {
	w.now++
	if ev.Time == 0 {
		ev.Time = w.now
	}
	raw, err := ev.MarshalVT()
	if err != nil {
		panic(err)
	}
	c := &event.Event{}
	if err := c.UnmarshalVT(raw); err != nil {
		panic(err)
	}
	w.log = append(w.log, c)
	w.s.Apply(ev)
}

func (w *world) openSession() uint64 {
	n := w.s.NextSession()
	w.apply(&event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: uint64(n), Nonce: []byte{byte(n)}}}})
	return uint64(n)
}

// do decides req and applies its event; cred is root's if there is none.
func (w *world) do(session uint64, req *msg.MetaRequest) (fserr.Code, *msg.MetaReply) {
	req.Session = session
	if session != 0 && !ReadOnly(req) && req.Seq == 0 {
		w.seq++
		req.Seq = w.seq
		req.Acked = w.seq - min(w.seq, 3)
	}
	if req.Cred == nil {
		req.Cred = &msg.Cred{}
	}
	w.now++
	w.env.Now = w.now
	Latches(w.s, req)
	out := Decide(w.s, req, &w.env)
	if out.Event == nil {
		return out.Code, out.Reply
	}
	w.apply(out.Event)
	return fserr.OK, Reply(w.s, req, &w.env, state.ResultOf(out.Event))
}

func p[T any](v T) *T { return &v }

// randomRequest draws a request about a small world, so that things meet.
func randomRequest(t *rapid.T, w *world) *msg.MetaRequest {
	var inos, files []uint64
	w.s.Inodes(0, func(n *state.Inode) bool {
		inos = append(inos, uint64(n.Ino))
		if n.IsRegular() {
			files = append(files, uint64(n.Ino))
		}
		return len(inos) < 40
	})
	ino := rapid.SampledFrom(inos)
	file := ino
	if len(files) > 0 {
		file = rapid.SampledFrom(files)
	}
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "..", ""})
	nm := func(l string) []byte { return []byte(name.Draw(t, l)) }
	yes := rapid.Bool()
	sizes := rapid.SampledFrom([]uint64{0, 1, 4096, 64 << 20, 100 << 20, 200 << 20})
	r := &msg.MetaRequest{}
	if yes.Draw(t, "user") {
		r.Cred = &msg.Cred{Uid: 1, Gid: 1}
	}
	switch rapid.IntRange(0, 20).Draw(t, "op") {
	case 0, 1, 2:
		r.Op = &msg.MetaRequest_Create{Create: &msg.Create{
			Parent: ino.Draw(t, "parent"), Name: nm("name"), Type: msg.FileType(rapid.SampledFrom([]int32{1, 1, 1, 2, 2, 3, 4}).Draw(t, "type")),
			Perm: 0o777, Target: []byte("x"), Exclusive: yes.Draw(t, "excl"), Open: yes.Draw(t, "open"),
		}}
	case 3:
		r.Op = &msg.MetaRequest_Link{Link: &msg.Link{Ino: ino.Draw(t, "ino"), Parent: ino.Draw(t, "parent"), Name: nm("name")}}
	case 4, 5:
		r.Op = &msg.MetaRequest_Remove{Remove: &msg.Remove{Parent: ino.Draw(t, "parent"), Name: nm("name"), Dir: yes.Draw(t, "dir")}}
	case 6, 7, 8:
		r.Op = &msg.MetaRequest_Rename{Rename: &msg.Rename{
			Parent: ino.Draw(t, "parent"), Name: nm("name"), NewParent: ino.Draw(t, "to"), NewName: nm("newname"),
			NoReplace: yes.Draw(t, "noreplace"), Exchange: yes.Draw(t, "exchange"),
		}}
	case 9:
		r.Op = &msg.MetaRequest_SetAttr{SetAttr: &msg.SetAttr{Ino: file.Draw(t, "ino"), Size: p(sizes.Draw(t, "size")), Flush: yes.Draw(t, "flush")}}
	case 10:
		r.Op = &msg.MetaRequest_SetAttr{SetAttr: &msg.SetAttr{Ino: ino.Draw(t, "ino"), Perm: p(uint32(0o6775)), Uid: p(uint32(1)), MtimeNow: true}}
	case 11:
		r.Op = &msg.MetaRequest_SetXattr{SetXattr: &msg.SetXattr{Ino: ino.Draw(t, "ino"), Name: append([]byte("user."), nm("name")...), Value: []byte("v")}}
	case 12:
		r.Op = &msg.MetaRequest_RemoveXattr{RemoveXattr: &msg.RemoveXattr{Ino: ino.Draw(t, "ino"), Name: append([]byte("user."), nm("name")...)}}
	case 13, 14:
		want := msg.Want(rapid.IntRange(1, 2).Draw(t, "want"))
		r.Op = &msg.MetaRequest_Open{Open: &msg.Open{Ino: file.Draw(t, "ino"), Want: want, Trunc: want == 2 && yes.Draw(t, "trunc")}}
	case 15:
		r.Op = &msg.MetaRequest_Release{Release: &msg.Release{Ino: file.Draw(t, "ino"), Keep: msg.Want(rapid.IntRange(0, 1).Draw(t, "keep"))}}
	case 16, 17:
		r.Op = &msg.MetaRequest_AllocChunk{AllocChunk: &msg.AllocChunk{Ino: file.Draw(t, "ino"), First: rapid.Uint32Range(0, 3).Draw(t, "first"), Count: 2}}
	case 18:
		op := &msg.DropReplica{Ino: file.Draw(t, "ino"), Server: rapid.Uint32Range(1, 4).Draw(t, "server")}
		w.s.Chunks(id.Ino(op.Ino), 0, 4, func(c *state.Chunk) bool { op.Chunk, op.Epoch = uint64(c.ID), uint64(c.Epoch()); return false })
		r.Op = &msg.MetaRequest_DropReplica{DropReplica: op}
	case 19:
		a := rapid.Uint64Range(0, 9).Draw(t, "start")
		r.Op = &msg.MetaRequest_Lock{Lock: &msg.Lock{
			Ino: ino.Draw(t, "ino"), Owner: rapid.Uint64Range(1, 2).Draw(t, "owner"), Start: a, End: a + 3,
			Type: msg.LockType(rapid.IntRange(0, 2).Draw(t, "type")), Flock: yes.Draw(t, "flock"),
		}}
	case 20:
		if yes.Draw(t, "policy") {
			norm := rapid.Uint32Range(0, 4).Draw(t, "norm")
			r.Op = &msg.MetaRequest_SetPolicy{SetPolicy: &msg.SetPolicy{Ino: ino.Draw(t, "ino"), Policy: &msg.Policy{Norm: norm, Min: min(norm, 1)}}}
		} else {
			r.Op = &msg.MetaRequest_PunchDone{PunchDone: &msg.PunchDone{Ino: file.Draw(t, "ino")}}
		}
	}
	return r
}

// leaderStep draws something the leader does by itself.
func leaderStep(t *rapid.T, w *world) {
	var sessions []uint64
	w.s.Sessions(func(x *state.Session) bool {
		if !x.Fenced {
			sessions = append(sessions, uint64(x.ID))
		}
		return true
	})
	server := rapid.Uint32Range(1, 4).Draw(t, "server")
	var joining, short *state.Chunk
	w.s.Degraded(func(c *state.Chunk) bool {
		if c.Joining() > 0 {
			joining = c
		}
		if c.Len() < state.MaxReplicas {
			short = c
		}
		return true
	})
	switch k := rapid.IntRange(0, 6).Draw(t, "leader"); {
	case k == 0 && len(sessions) > 1:
		w.apply(&event.Event{Body: &event.Event_SessionClose{SessionClose: &event.SessionClose{
			Id: sessions[0], Kind: event.SessionClose_Kind(rapid.IntRange(1, 3).Draw(t, "kind")),
		}}})
	case k == 1 && len(sessions) < 3:
		w.openSession()
	case k == 2 && joining != nil:
		r := joining.Replica(joining.Len() - 1)
		w.apply(&event.Event{Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{
			Chunk: uint64(joining.ID), Server: uint32(r.Server), Epoch: uint64(joining.Epoch()),
		}}})
	case k == 3 && short != nil:
		if r, has := short.Find(id.ServerID(server)); has && !r.Joining && short.InSync() == 1 {
			return
		}
		w.apply(&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{
			Chunk: uint64(short.ID), Server: server, Epoch: uint64(short.Epoch()) + 1,
		}}})
	case k == 4:
		w.apply(&event.Event{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: server}}})
	case k == 5:
		ev := &event.Purged{Server: server}
		for _, c := range w.s.Garbage(id.ServerID(server), 2) {
			ev.Chunks = append(ev.Chunks, uint64(c))
		}
		w.apply(&event.Event{Body: &event.Event_Purged{Purged: ev}})
	case k == 6:
		w.s.Unsettled(func(ino id.Ino) bool {
			w.apply(&event.Event{Body: &event.Event_Settled{Settled: &event.Settled{Ino: uint64(ino)}}})
			return false
		})
	}
}

// TestRandom: whatever is asked for, the trees agree, a checkpoint and a replay give the same state, a clone does
// not change, and a repeated request is not done twice.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.openSession()
		w.openSession()
		var clone *state.State
		var cloned [32]byte
		for i := range rapid.IntRange(1, 80).Draw(t, "steps") {
			if i%20 == 10 {
				clone = w.s.Clone()
				cloned = clone.Digest()
			}
			if rapid.IntRange(0, 9).Draw(t, "who") == 0 {
				leaderStep(t, w)
			} else {
				req := randomRequest(t, w)
				session := rapid.Uint64Range(1, 3).Draw(t, "session")
				w.do(session, req)
				if before := w.s.Index(); wasDone(w, req) {
					if code, _ := w.do(session, req); code != fserr.OK || w.s.Index() != before {
						t.Fatalf("repeat of %v: %v, index %v then %v", req, code, before, w.s.Index())
					}
				}
			}
			if err := w.s.Check(); err != nil {
				t.Fatalf("after %v:\n%v", w.log[len(w.log)-1], err)
			}
		}
		if clone != nil && clone.Digest() != cloned {
			t.Fatal("the clone changed")
		}
		same(t, w)
	})
}

// wasDone reports whether req made the last event.
func wasDone(w *world, req *msg.MetaRequest) bool {
	c := w.log[len(w.log)-1].GetCause()
	return req.Seq != 0 && c.GetSession() == req.Session && c.GetSeq() == req.Seq
}

// same compares the state with what a checkpoint and a replay make of it.
func same(t *rapid.T, w *world) {
	want := w.s.Digest()
	var b bytes.Buffer
	if err := w.s.Write(&b); err != nil {
		t.Fatal(err)
	}
	r, err := state.Read(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if r.Digest() != want || r.Check() != nil || r.Counts() != w.s.Counts() {
		t.Fatalf("checkpoint differs: %v; counts %+v, want %+v", r.Check(), r.Counts(), w.s.Counts())
	}
	f := state.New()
	for _, ev := range w.log {
		f.Apply(ev)
	}
	if f.Digest() != want {
		t.Fatal("replay differs")
	}
}
