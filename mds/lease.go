package mds

import (
	"context"
	"slices"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/state"
)

// told is one holder whom a callback made give up what it had, by the number of its lease.
type told struct {
	session id.SessionID
	lease   id.Index
}

// open grants a lease: Open, and Create of a file that is opened at once. Grants of one inode are made one after the other; each
// first calls back whoever would be in the way.
func (l *leadership) open(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	if l.done(req) {
		return l.commit(ctx, req)
	}
	for {
		ino, fresh := l.target(req)
		if fresh { // nobody can hold what is not there yet
			out, again, err := l.grantFresh(ctx, req)
			if again {
				continue
			}
			return out, err
		}
		grant := grantLatch(ino)
		if err := l.latches.acquire(ctx, grant); err != nil {
			return decide.Outcome{}, err
		}
		out, again, err := l.grant(ctx, req, ino)
		l.latches.release(grant)
		if !again {
			return out, err
		}
	}
}

// target returns the inode that the request is to hold; fresh: it is to be made.
func (l *leadership) target(req *msg.MetaRequest) (ino id.Ino, fresh bool) {
	if o := req.GetOpen(); o != nil {
		return id.Ino(o.Ino), false
	}
	c := req.GetCreate()
	fresh = true
	l.s.fsm.view(func(st *state.State) {
		if d, ok := st.Dentry(id.Ino(c.Parent), string(c.Name)); ok {
			ino, fresh = d.Ino, false
		}
	})
	return ino, fresh
}

func (l *leadership) grantFresh(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, bool, error) {
	latches, err := l.latch(ctx, req)
	if err != nil {
		return decide.Outcome{}, false, err
	}
	defer l.latches.release(latches)
	if _, fresh := l.target(req); !fresh {
		return decide.Outcome{}, true, nil
	}
	out := l.decideNow(req)
	if out.Event == nil {
		return out, false, l.confirmRead(ctx)
	}
	if err := l.propose(out.Event, ""); err != nil {
		return decide.Outcome{}, false, err
	}
	l.reply(req, &out)
	return out, false, nil
}

// reply makes the answer to a request whose event is applied.
func (l *leadership) reply(req *msg.MetaRequest, out *decide.Outcome) {
	l.s.fsm.view(func(st *state.State) {
		out.Reply = decide.Reply(st, req, l.env(st), state.ResultOf(out.Event))
		l.grantChange(st, req, out.Event, out.Reply)
	})
}

// grant runs with the grant latch of ino. again: the name means another inode by now.
func (l *leadership) grant(ctx context.Context, req *msg.MetaRequest, ino id.Ino) (_ decide.Outcome, again bool, _ error) {
	session := id.SessionID(req.Session)
	if out := l.decideNow(req); out.Event == nil { // refused, or held already: nobody is called back for it
		return out, false, l.confirmRead(ctx)
	}
	if err := l.settle(ctx, ino, session); err != nil {
		return decide.Outcome{}, false, err
	}
	var called []told
	defer func() {
		for _, t := range called { // the grant failed, or the caller got less than it asked for
			l.spawn(func() { l.upgrade(ino, t.session) })
		}
	}()
	for {
		conflicts := l.conflicts(req, ino)
		conflicts = slices.DeleteFunc(conflicts, func(c decide.Conflict) bool {
			return c.After != msg.Mode_SHARED_WRITE || slices.Contains(called, told{c.Session, c.Lease})
		})
		if len(conflicts) > 0 {
			if err := l.recall(ctx, ino, conflicts); err != nil {
				return decide.Outcome{}, false, err
			}
			for _, c := range conflicts {
				called = append(called, told{c.Session, c.Lease})
			}
			continue
		}
		if o := req.GetOpen(); o != nil && o.Trunc {
			if err := l.recallLayouts(ctx, ino, session, false); err != nil {
				return decide.Outcome{}, false, err
			}
		}
		out, retry, err := l.grantNow(ctx, req, ino, func(cs []decide.Conflict) bool {
			return !slices.ContainsFunc(cs, func(c decide.Conflict) bool {
				return c.After == msg.Mode_SHARED_WRITE && !slices.Contains(called, told{c.Session, c.Lease})
			})
		})
		if retry {
			if now, fresh := l.target(req); fresh || now != ino {
				return out, true, nil
			}
			continue
		}
		if err == nil && out.Code == fserr.OK && out.Event != nil {
			called = nil
		}
		return out, false, err
	}
}

// grantNow commits the grant, with layouts of the inode held still, if clear finds no conflict that was not called back.
func (l *leadership) grantNow(ctx context.Context, req *msg.MetaRequest, ino id.Ino, clear func([]decide.Conflict) bool) (_ decide.Outcome, retry bool, _ error) {
	freeze := freezeLatch(ino, req.GetOpen().GetTrunc())
	if err := l.latches.acquire(ctx, freeze); err != nil {
		return decide.Outcome{}, false, err
	}
	defer l.latches.release(freeze)
	latches, err := l.latch(ctx, req)
	if err != nil {
		return decide.Outcome{}, false, err
	}
	defer l.latches.release(latches)
	if now, fresh := l.target(req); fresh || now != ino || !clear(l.conflicts(req, ino)) {
		return decide.Outcome{}, true, nil
	}
	var unsettled bool
	var before id.Index
	l.s.fsm.view(func(st *state.State) {
		n, ok := st.Inode(ino)
		unsettled = ok && n.Unsettled()
		before = st.Writable(ino)
	})
	if unsettled { // a holder died meanwhile
		return decide.Outcome{}, false, waitError(ctx, "the inode to be settled")
	}
	out := l.decideNow(req)
	if out.Event == nil {
		return out, false, l.confirmRead(ctx)
	}
	if err := l.propose(out.Event, ""); err != nil {
		return decide.Outcome{}, false, err
	}
	l.reply(req, &out)
	if o := out.Reply.GetOpen(); o != nil { // grants of one inode are made one after the other: nobody was granted anything since
		o.WritableBefore = uint64(before)
	}
	return out, false, nil
}

func (l *leadership) conflicts(req *msg.MetaRequest, ino id.Ino) (out []decide.Conflict) {
	want := msg.Want_WANT_WRITE
	if o := req.GetOpen(); o != nil {
		want = o.Want
	}
	l.s.fsm.view(func(st *state.State) {
		session := id.SessionID(req.Session)
		if h, ok := st.Lease(ino, session); ok && h.Want > want {
			want = h.Want
		}
		out = decide.Conflicts(st, ino, session, want)
	})
	return out
}

// recall takes what the conflicts name from their holders, and makes facts of what they answer.
func (l *leadership) recall(ctx context.Context, ino id.Ino, conflicts []decide.Conflict) error {
	return together(conflicts, func(c decide.Conflict) error {
		return l.askSize(ctx, c.Session, ino, &msg.Callback{
			Kind: msg.Callback_LEASE, Ino: uint64(ino), Lease: uint64(c.Lease), Mode: c.After}, true)
	})
}

// release lowers what a session holds an inode for, and tells whoever now may cache.
func (l *leadership) release(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	ino := id.Ino(req.GetRelease().Ino)
	var before []decide.Conflict
	l.s.fsm.view(func(st *state.State) {
		before = decide.Conflicts(st, ino, id.SessionID(req.Session), req.GetRelease().Keep)
	})
	out, err := l.commit(ctx, req)
	if err == nil && out.Event != nil {
		for _, c := range before {
			if c.After != msg.Mode_SHARED_WRITE {
				l.spawn(func() { l.upgrade(ino, c.Session) })
			}
		}
	}
	return out, err
}

// upgradeHolders tells those that are left what they may do now.
func (l *leadership) upgradeHolders(ino id.Ino) {
	var holders []id.SessionID
	l.s.fsm.view(func(st *state.State) {
		if h := st.Holders(ino); h.Writers == 0 || h.Writers+h.Readers == 1 {
			st.Leases(ino, func(h state.Lease) bool {
				holders = append(holders, h.Session)
				return true
			})
		}
	})
	for _, session := range holders {
		l.spawn(func() { l.upgrade(ino, session) })
	}
}

// upgrade tells a holder its mode if that allows it to cache. It keeps grants back until the holder has answered, so that a later
// recall cannot overtake it.
func (l *leadership) upgrade(ino id.Ino, session id.SessionID) {
	ctx, cancel := context.WithTimeout(l.ctx, l.s.o.SessionLease+l.s.o.RequestTimeout)
	defer cancel()
	grant := grantLatch(ino)
	if err := l.latches.acquire(ctx, grant); err != nil {
		return
	}
	defer l.latches.release(grant)
	// Who may cache reads from any replica, and whoever held the file with him may have died with a write under way.
	if err := l.settle(ctx, ino, session); err != nil {
		if l.ctx.Err() == nil {
			l.s.log.Warn("a client was not told that it may cache again", "inode", ino, "session", session, "err", err)
		}
		return
	}
	cb := &msg.Callback{Kind: msg.Callback_UPGRADE, Ino: uint64(ino)}
	l.s.fsm.view(func(st *state.State) {
		cb.Mode = st.Mode(ino, session)
		h, _ := st.Lease(ino, session)
		cb.Lease = uint64(h.Index)
		cb.Writable = uint64(st.Writable(ino))
	})
	if cb.Mode != msg.Mode_EXCLUSIVE_WRITE && cb.Mode != msg.Mode_SHARED_READ {
		return
	}
	if _, err := l.callback(ctx, session, cb); err != nil && l.ctx.Err() == nil {
		l.s.log.Warn("a client was not told that it may cache again", "inode", ino, "session", session, "err", err)
	}
}

// afterUnlink asks the holders of an inode that has lost its last name to let go of it.
func (l *leadership) afterUnlink(ev *event.Event) {
	ino := id.Ino(ev.GetRemove().GetIno())
	if r := ev.GetRename(); r != nil && !r.Exchange {
		ino = id.Ino(r.Replaced)
	}
	if ino == 0 {
		return
	}
	l.spawn(func() { l.unlinked(ino) })
}

func (l *leadership) unlinked(ino id.Ino) {
	ctx, cancel := context.WithTimeout(l.ctx, l.s.o.SessionLease+l.s.o.RequestTimeout)
	defer cancel()
	grant := grantLatch(ino)
	if err := l.latches.acquire(ctx, grant); err != nil {
		return
	}
	var holders []state.Lease
	var mode msg.Mode
	l.s.fsm.view(func(st *state.State) {
		n, ok := st.Inode(ino)
		if !ok || n.Nlink() > 0 || n.IsDir() {
			return
		}
		st.Leases(ino, func(h state.Lease) bool {
			holders = append(holders, h)
			if mode == msg.Mode_MODE_NONE || h.Want == msg.Want_WANT_WRITE {
				mode = st.Mode(ino, h.Session)
			}
			return true
		})
	})
	if mode == msg.Mode_EXCLUSIVE_WRITE {
		mode = msg.Mode_SHARED_WRITE // until upgrade says otherwise
	}
	err := together(holders, func(h state.Lease) error {
		return l.askSize(ctx, h.Session, ino, &msg.Callback{
			Kind: msg.Callback_LEASE, Ino: uint64(ino), Lease: uint64(h.Index), Mode: mode, Unlinked: true}, true)
	})
	l.latches.release(grant)
	if err != nil && l.ctx.Err() == nil {
		l.s.log.Warn("not every holder let go of a removed file", "inode", ino, "err", err)
	}
	l.upgradeHolders(ino)
}
