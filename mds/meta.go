package mds

import (
	"context"
	"fmt"
	"slices"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/state"
)

// request handles one filesystem operation on the leader. An error means that the outcome is not known or could not be
// decided; its code says whether the client should look for another leader. Only an administrator may change something
// without a session; such a change is not remembered.
func (l *leadership) request(ctx context.Context, req *msg.MetaRequest, admin bool) (decide.Outcome, error) {
	session := id.SessionID(req.Session)
	if decide.ReadOnly(req) {
		ctx := l.requestContext(ctx, nil)
		defer ctx.end()
		if session != 0 {
			if _, ok := l.alive(session); !ok {
				return decide.Outcome{Code: fserr.NoSession}, l.confirmRead(ctx)
			}
		}
		return l.read(ctx, req)
	}
	if session == 0 && admin {
		req.Seq, req.Acked = 0, 0
		ctx := l.requestContext(ctx, nil)
		defer ctx.end()
		return l.change(ctx, req)
	}
	if session == 0 || req.Seq == 0 {
		return decide.Outcome{Code: fserr.NoSession}, nil
	}
	x, code := l.enter(session)
	bound := l.requestContext(ctx, x)
	defer bound.end()
	if code != fserr.OK {
		return decide.Outcome{Code: code}, l.confirmRead(bound)
	}
	defer l.leave(x)
	done, err := l.once(bound, requestKey{session, req.Seq})
	if err != nil {
		return decide.Outcome{}, err
	}
	defer done()
	return l.change(bound, req)
}

// once keeps a request back while an earlier copy of it is under way.
func (l *leadership) once(ctx context.Context, k requestKey) (func(), error) {
	for {
		l.mu.Lock()
		first, busy := l.inflight[k]
		if !busy {
			if len(l.inflight) >= maxInFlight {
				l.mu.Unlock()
				return nil, fmt.Errorf("%d requests are under way: %w", maxInFlight, fserr.Unavailable)
			}
			mine := make(chan struct{})
			l.inflight[k] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.inflight, k)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-first:
		case <-ctx.Done():
			return nil, waitError(ctx, "an earlier copy of the request")
		}
	}
}

// done reports whether the request's event is in the state already, so that nobody need be called back for it.
func (l *leadership) done(req *msg.MetaRequest) bool {
	var ok bool
	l.s.fsm.view(func(st *state.State) { _, ok = st.Outcome(id.SessionID(req.Session), req.Seq) })
	return ok
}

func (l *leadership) read(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	asker := id.SessionID(req.Session)
	if g := req.GetGetLayout(); g != nil {
		freeze, err := l.holdLayouts(ctx, id.Ino(g.Ino), asker)
		if err != nil {
			return decide.Outcome{}, err
		}
		defer l.latches.release(freeze)
	}
	out := l.decideRead(req)
	if out.Code == fserr.OK {
		if inos := l.sizesOf(req, out.Reply); len(inos) > 0 {
			if err := l.recallAttr(ctx, asker, inos); err != nil {
				return decide.Outcome{}, err
			}
			out = l.decideRead(req)
		}
	}
	if k := out.Reply.GetLock(); out.Code == fserr.OK && k != nil && k.Type != msg.LockType_UNLOCK {
		l.askLockers(ctx, req)
		out = l.decideRead(req)
	}
	if out.Event != nil {
		return decide.Outcome{Code: fserr.Protocol}, nil
	}
	return out, l.confirmRead(ctx)
}

func (l *leadership) decideNow(req *msg.MetaRequest) (out decide.Outcome) {
	l.s.fsm.view(func(st *state.State) { out = decide.Decide(st, req, l.env(st)) })
	return out
}

// decideRead is decideNow for a read, whose answer may be granted.
func (l *leadership) decideRead(req *msg.MetaRequest) (out decide.Outcome) {
	l.s.fsm.view(func(st *state.State) {
		out = decide.Decide(st, req, l.env(st))
		l.grantRead(st, req, &out)
	})
	return out
}

// sizesOf lists the inodes whose attributes are in the answer and that somebody else writes to with a cache.
func (l *leadership) sizesOf(req *msg.MetaRequest, reply *msg.MetaReply) []id.Ino {
	var all []id.Ino
	switch req.Op.(type) {
	case *msg.MetaRequest_Lookup, *msg.MetaRequest_GetAttr:
		if a := reply.GetAttr(); a.GetType() == msg.FileType_REGULAR {
			all = append(all, id.Ino(a.Ino))
		}
	case *msg.MetaRequest_ReadDir:
		for _, e := range reply.GetReadDir().GetEntries() {
			if e.Attr.GetType() == msg.FileType_REGULAR {
				all = append(all, id.Ino(e.Attr.Ino))
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	asker := id.SessionID(req.Session)
	if _, lookup := req.Op.(*msg.MetaRequest_Lookup); lookup && asker == 0 {
		return nil // an administrator wants the inode, and must not wait for a client that hangs
	}
	var held []id.Ino
	l.s.fsm.view(func(st *state.State) {
		for _, ino := range all {
			if h := st.Holders(ino); h.Writers != 1 || h.Readers != 0 {
				continue
			}
			if _, own := st.Lease(ino, asker); !own {
				held = append(held, ino)
			}
		}
	})
	return held
}

// change handles what may make an event, with what must happen before and after it.
func (l *leadership) change(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	if err := l.admit(req); err != nil && !l.done(req) { // before any latch: what holds it may be waiting for room
		return decide.Outcome{}, err
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Open:
		return l.open(ctx, req)
	case *msg.MetaRequest_Create:
		if op.Create.Open {
			return l.open(ctx, req)
		}
	case *msg.MetaRequest_SetAttr:
		if op.SetAttr.Size != nil && !op.SetAttr.Flush {
			return l.truncate(ctx, req)
		}
	case *msg.MetaRequest_DropReplica:
		return l.changeLayout(ctx, req, id.Ino(op.DropReplica.Ino))
	case *msg.MetaRequest_AllocChunk:
		return l.alloc(ctx, req)
	case *msg.MetaRequest_WriteDone:
		return l.writeDone(ctx, req)
	case *msg.MetaRequest_Lock:
		return l.lock(ctx, req)
	case *msg.MetaRequest_Release:
		return l.release(ctx, req)
	case *msg.MetaRequest_Remove, *msg.MetaRequest_Rename:
		out, err := l.commit(ctx, req)
		if err == nil && out.Event != nil {
			l.afterUnlink(out.Event)
		}
		return out, err
	}
	return l.commit(ctx, req)
}

// commit decides the request under its latches and, if that makes an event, returns when it is applied.
func (l *leadership) commit(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	return l.commitWith(ctx, req, nil)
}

// commitWith is commit with a step between decision and proposal, which may refuse and have it decided again.
func (l *leadership) commitWith(ctx context.Context, req *msg.MetaRequest, prepare preparation) (decide.Outcome, error) {
	latches, err := l.latch(ctx, req)
	if err != nil {
		return decide.Outcome{}, err
	}
	defer l.latches.release(latches)
	var skip []id.ServerID
	for {
		var out decide.Outcome
		l.s.fsm.view(func(st *state.State) { out = decide.Decide(st, req, l.env(st, skip...)) })
		if out.Event == nil {
			return out, l.confirmRead(ctx)
		}
		if prepare != nil {
			again, err := prepare(ctx, out.Event)
			if err != nil {
				return decide.Outcome{}, err
			}
			if len(again) > 0 {
				skip = append(skip, again...)
				continue
			}
		}
		if err := ctx.Err(); err != nil {
			return decide.Outcome{}, waitError(ctx, "the proposal")
		}
		if err := l.propose(out.Event, ""); err != nil {
			return decide.Outcome{}, err
		}
		if op := req.GetSetAttr(); op != nil && op.Size != nil && !op.Flush {
			l.noteCut(id.Ino(op.Ino))
		}
		l.reply(req, &out)
		return out, nil
	}
}

// preparation does what must be done before the event may be proposed. It may name servers without which to decide again.
type preparation func(context.Context, *event.Event) ([]id.ServerID, error)

// latch acquires what the request reads and writes.
func (l *leadership) latch(ctx context.Context, req *msg.MetaRequest) ([]decide.Latch, error) {
	latches := func() (out []decide.Latch) {
		l.s.fsm.view(func(st *state.State) { out = decide.Latches(st, req) })
		return withMembership(out)
	}
	for {
		want := latches()
		if err := l.latches.acquire(ctx, want); err != nil {
			return nil, err
		}
		if slices.Equal(want, latches()) {
			return want, nil
		}
		l.latches.release(want)
	}
}
