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
	Space   func(norm int) (total, free uint64) // bytes that files with so many replicas may take up
}

// Outcome is what Decide makes of a request.
type Outcome struct {
	Code  fserr.Code
	Reply *msg.MetaReply // set if Event is nil; with an error it may name a detail
	Event *event.Event   // nil: nothing changes
}

// decider is one request while it is decided.
type decider struct {
	s    *state.State
	req  *msg.MetaRequest
	cred *msg.Cred
	env  *Env
}

// Decide decides the request. The caller holds its latches, and the state does not change meanwhile.
func Decide(s *state.State, req *msg.MetaRequest, env *Env) Outcome {
	d := &decider{s: s, req: req, cred: req.GetCred(), env: env}
	if out, done := d.session(); done {
		return out
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup:
		return d.lookup(op.Lookup)
	case *msg.MetaRequest_GetAttr:
		return d.getAttr(op.GetAttr)
	case *msg.MetaRequest_SetAttr:
		return d.setAttr(op.SetAttr)
	case *msg.MetaRequest_Create:
		return d.create(op.Create)
	case *msg.MetaRequest_Link:
		return d.link(op.Link)
	case *msg.MetaRequest_Remove:
		return d.remove(op.Remove)
	case *msg.MetaRequest_Rename:
		return d.rename(op.Rename)
	case *msg.MetaRequest_ReadDir:
		return d.readDir(op.ReadDir)
	case *msg.MetaRequest_ReadLink:
		return d.readLink(op.ReadLink)
	case *msg.MetaRequest_GetXattr:
		return d.getXattr(op.GetXattr)
	case *msg.MetaRequest_SetXattr:
		return d.setXattr(op.SetXattr)
	case *msg.MetaRequest_ListXattr:
		return d.listXattr(op.ListXattr)
	case *msg.MetaRequest_RemoveXattr:
		return d.removeXattr(op.RemoveXattr)
	case *msg.MetaRequest_Access:
		return d.access(op.Access)
	case *msg.MetaRequest_StatFs:
		return d.statFS()
	case *msg.MetaRequest_Open:
		return d.open(op.Open)
	case *msg.MetaRequest_Release:
		return d.release(op.Release)
	case *msg.MetaRequest_GetLayout:
		return d.getLayout(op.GetLayout)
	case *msg.MetaRequest_AllocChunk:
		return d.allocChunk(op.AllocChunk)
	case *msg.MetaRequest_DropReplica:
		return d.dropReplica(op.DropReplica)
	case *msg.MetaRequest_WriteDone:
		return d.writeDone(op.WriteDone)
	case *msg.MetaRequest_Append:
		return d.append(op.Append)
	case *msg.MetaRequest_PunchDone:
		return d.punchDone(op.PunchDone)
	case *msg.MetaRequest_Lock:
		return d.lock(op.Lock)
	case *msg.MetaRequest_GetPolicy:
		return d.getPolicy(op.GetPolicy)
	case *msg.MetaRequest_SetPolicy:
		return d.setPolicy(op.SetPolicy)
	}
	return fail(fserr.Protocol, "unknown operation")
}

// session checks the session, and answers a request that was done before.
func (d *decider) session() (Outcome, bool) {
	if d.req.Session == 0 {
		return Outcome{}, false
	}
	sess := id.SessionID(d.req.Session)
	switch x, ok := d.s.Session(sess); {
	case !ok:
		return fail(fserr.NoSession, ""), true
	case x.Fenced:
		return fail(fserr.Fenced, ""), true
	case ReadOnly(d.req):
		return Outcome{}, false
	case d.req.Seq == 0 || d.req.Acked >= d.req.Seq:
		return fail(fserr.Protocol, "a change needs a sequence number above the acknowledged one"), true
	}
	if res, ok := d.s.Outcome(sess, d.req.Seq); ok {
		return Outcome{Reply: Reply(d.s, d.req, d.env, res)}, true
	}
	if d.req.Seq <= d.s.Acked(sess) {
		return fail(fserr.Protocol, "the outcome of this request is forgotten"), true
	}
	return Outcome{}, false
}

func fail(code fserr.Code, detail string) Outcome {
	return Outcome{Code: code, Reply: &msg.MetaReply{Detail: detail}}
}

// changes returns the outcome that is the event with the body.
func (d *decider) changes(ev *event.Event) Outcome {
	ev.Time = d.env.Now
	ev.Cause = &event.Cause{Session: d.req.Session, Seq: d.req.Seq, Acked: d.req.Acked, Uid: d.cred.GetUid()}
	return Outcome{Event: ev}
}

// nothing returns the outcome of a change that changes nothing: the answer is made from the state as it is.
func (d *decider) nothing(ino id.Ino) Outcome {
	return Outcome{Reply: Reply(d.s, d.req, d.env, state.Result{Ino: ino, Index: d.s.Index()})}
}

// answer returns the outcome of a request that only reads.
func (d *decider) answer(n *state.Inode, r *msg.MetaReply) Outcome {
	r.Index = uint64(d.s.Index())
	if n != nil {
		r.Attr = n.Attr()
	}
	return Outcome{Reply: r}
}

// free reports whether permissions need not be checked. Structure always is.
func (d *decider) free() bool { return d.cred.GetChecked() || d.cred.GetUid() == 0 }

// may reports whether the caller may access n by mask.
func (d *decider) may(n *state.Inode, mask uint32) bool {
	return d.free() || CheckAccess(n, d.cred, mask)
}

// owner reports whether the caller may do what only the owner may.
func (d *decider) owner(n *state.Inode) bool { return d.free() || d.cred.GetUid() == n.UID }

// Reply returns the answer to a request whose event is applied, now or on another leader before.
// Attributes are as they are now.
func Reply(s *state.State, req *msg.MetaRequest, env *Env, res state.Result) *msg.MetaReply {
	r := &msg.MetaReply{Index: uint64(res.Index)}
	n, ok := s.Inode(res.Ino)
	if !ok {
		return r // removed by this request, or since
	}
	r.Attr = n.Attr()
	sess := id.SessionID(req.Session)
	switch op := req.Op.(type) {
	case *msg.MetaRequest_SetAttr:
		if op.SetAttr.Size != nil && !op.SetAttr.Flush {
			r.Result = &msg.MetaReply_SetAttr{SetAttr: punchReply(n)}
		}
	case *msg.MetaRequest_Create:
		if op.Create.Open && n.IsRegular() {
			r.Result = &msg.MetaReply_Open{Open: openReply(s, env, n, sess)}
		}
	case *msg.MetaRequest_Open:
		o := openReply(s, env, n, sess)
		if op.Open.Trunc {
			o.Punch = punchReply(n)
		}
		r.Result = &msg.MetaReply_Open{Open: o}
	case *msg.MetaRequest_AllocChunk:
		r.Result = &msg.MetaReply_Layout{Layout: Layout(s, env, n.Ino, op.AllocChunk.First, op.AllocChunk.Count)}
	case *msg.MetaRequest_DropReplica:
		r.Result = &msg.MetaReply_Layout{Layout: Layout(s, env, n.Ino, op.DropReplica.First, op.DropReplica.Count)}
	case *msg.MetaRequest_Append:
		r.Result = &msg.MetaReply_Append{Append: &msg.AppendReply{Offset: res.Value}}
	case *msg.MetaRequest_Lock:
		l := op.Lock
		r.Result = &msg.MetaReply_Lock{Lock: &msg.LockReply{Type: l.Type, Start: l.Start, End: l.End, Pid: l.Pid}}
	case *msg.MetaRequest_SetPolicy:
		r.Result = &msg.MetaReply_Policy{Policy: policyReply(s, n)}
	}
	return r
}

// ReadOnly reports whether the request can never make an event, so that it needs no latch and no seq.
func ReadOnly(req *msg.MetaRequest) bool {
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup, *msg.MetaRequest_GetAttr, *msg.MetaRequest_ReadDir, *msg.MetaRequest_ReadLink,
		*msg.MetaRequest_GetXattr, *msg.MetaRequest_ListXattr, *msg.MetaRequest_Access, *msg.MetaRequest_StatFs,
		*msg.MetaRequest_GetLayout, *msg.MetaRequest_GetPolicy:
		return true
	case *msg.MetaRequest_Lock:
		return op.Lock.Test
	}
	return false
}
