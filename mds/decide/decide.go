// Package decide turns a client's request into an outcome and at most one event, as a pure function of
// the state: Linux's rules for what is asked of a filesystem, and varve's for leases and layouts.
//
// How the leader uses it, for one request:
//
//	for {
//		want := Latches(s, req)     // state read-locked
//		acquire(want)               // waits for others; what follows runs with the state read-locked
//		if !slices.Equal(want, Latches(s, req)) { release(want); continue }
//		break
//	}
//	out := Decide(s, req, env)
//	if out.Event != nil {
//		propose, wait until it is applied
//		out.Reply = Reply(s, req, env, state.ResultOf(out.Event))
//	}
//	release; answer (out.Code, out.Reply)
//
// Latches looks names up (the inode that is to be removed is latched too), so what it answers can change
// while the caller waits: hence the second look. Once it is equal with the latches held it stays so,
// since whoever changes a name holds that name's latch exclusively.
//
// A repeated request (session, seq) whose event is applied is answered from the state by Decide, with
// OK, a Reply and no Event. A repeat while the first is under way must not reach Decide: the caller keeps it back.
// A request with session 0 is the leader's own or an administrator's; its outcome is not remembered.
//
// Deciding does not wait and calls nobody back: before it passes an Open, SetAttr of the size or DropReplica
// to Decide, the leader makes the calls back that Conflicts and Holders of the state name.
package decide

import (
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Env is what the leader knows beyond the state, handed in so that Decide stays pure.
type Env struct {
	Now       int64             // nanoseconds since 1970
	NextIno   func() id.Ino     // never gives a number twice
	NextChunk func() id.ChunkID // never gives a number twice
	// Place chooses servers for a new chunk of a file, up to norm different live ones; fewer than norm if there
	// are no more, none if there is none.
	Place   func(ino id.Ino, index uint32, norm int) []id.ServerID
	Servers func(id.ServerID) (addr string, live bool)
	Space   func() (total, free uint64) // raw bytes on all servers, before replication
}

// Outcome is what Decide makes of a request.
type Outcome struct {
	Code  fserr.Code
	Reply *msg.MetaReply // set if Event is nil; with an error it may name a detail
	Event *event.Event   // nil: nothing changes
}

// Decide decides the request. The caller holds its latches, and the state does not change meanwhile.
func Decide(s *state.State, req *msg.MetaRequest, env *Env) Outcome { return Outcome{} }

// Reply returns the answer to a request whose event is applied, now or on another leader before.
// Attributes are as they are now.
func Reply(s *state.State, req *msg.MetaRequest, env *Env, res state.Result) *msg.MetaReply {
	return nil
}

// ReadOnly reports whether the request can never make an event, so that it needs no latch and no seq.
func ReadOnly(req *msg.MetaRequest) bool { return false }
