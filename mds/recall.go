package mds

import (
	"context"
	"fmt"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/state"
)

// maker returns the session whose request the event is the outcome of, which learns what it has changed from the answer; 0: none.
func maker(ev *event.Event) id.SessionID {
	if ev.Cause.GetSeq() == 0 {
		return 0
	}
	return id.SessionID(ev.Cause.GetSession())
}

// takeBack returns when nobody but the event's maker is granted what the event changes, and nobody will be until done is called.
func (l *leadership) takeBack(ev *event.Event) (done func(), err error) {
	var attrs, names []id.Ino
	l.s.fsm.view(func(st *state.State) { attrs, names = decide.Touched(st, ev) })
	if len(attrs) == 0 && len(names) == 0 {
		return func() {}, nil
	}
	keys := make([]grantKey, 0, len(attrs)+len(names))
	for _, ino := range attrs {
		keys = append(keys, attrKey(ino))
	}
	for _, ino := range names {
		keys = append(keys, namesKey(ino))
	}
	session := maker(ev)
	holders := l.grants.begin(session, keys)
	done = func() { l.grants.end(session, keys) }
	if err := l.awaitUnheard(session); err != nil {
		done()
		return nil, err
	}
	if len(holders) > 0 {
		if err := l.callBack(holders); err != nil {
			done()
			return nil, err
		}
	}
	return done, nil
}

// awaitUnheard waits for the sessions that may hold anything, but one.
func (l *leadership) awaitUnheard(but id.SessionID) error {
	logged := time.Now()
	for {
		list, bound := l.grants.unheard(but)
		if len(list) == 0 {
			return nil
		}
		if time.Since(logged) > callbackLog {
			logged = time.Now()
			l.s.log.Warn("a change waits for clients that have not connected to this leader", "sessions", len(list), "first", list[0].session)
		}
		select {
		case <-bound:
		case <-time.After(min(max(l.grants.wildUntil-bootNow(), time.Millisecond), callbackLog)):
		case <-l.ctx.Done():
			return fmt.Errorf("leadership ended: %w: %w", errNotProposed, fserr.NotLeader)
		}
	}
}

// callBack returns when every holder has answered that it uses its grants no more, or cannot.
func (l *leadership) callBack(holders []recalled) error {
	if len(holders) == 1 {
		return l.callBackOne(holders[0])
	}
	var wg sync.WaitGroup
	errs := make([]error, len(holders))
	for i, r := range holders {
		wg.Go(func() { errs[i] = l.callBackOne(r) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *leadership) callBackOne(r recalled) error {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	answered := make(chan struct{})
	go func() {
		if l.askToForget(ctx, r) {
			close(answered)
		}
	}()
	c, start, logged := r.h.c, bootNow(), time.Now()
	for {
		over, left := c.over(r.h.gen)
		if over {
			l.cutOff(r.h)
			break
		}
		if bootNow()-start > l.grants.lease+l.grants.margin && c.revoke() {
			l.s.log.Warn("a client renews its lease but answers no callback: it may cache nothing any more", "session", c.session)
		}
		if time.Since(logged) > callbackLog {
			logged = time.Now()
			l.s.log.Warn("waiting for a client to forget metadata", "session", c.session, "inode", r.keys[0].ino(), "waited", (bootNow() - start).Round(time.Second))
		}
		select {
		case <-answered:
		case <-time.After(min(max(left, time.Millisecond), 100*time.Millisecond)):
			continue
		case <-l.ctx.Done():
			return fmt.Errorf("leadership ended: %w: %w", errNotProposed, fserr.NotLeader)
		}
		break
	}
	for _, k := range r.keys {
		l.grants.drop(k, r.h)
	}
	return nil
}

// cutOff ends the connection of a session whose cache lease has run out on it, so that it begins anew with nothing.
func (l *leadership) cutOff(h holder) {
	h.c.mu.Lock()
	same := h.c.gen == h.gen
	h.c.mu.Unlock()
	if !same {
		return
	}
	if conn := l.s.clients.get(h.c.session); conn != nil {
		l.s.log.Info("a client's cache lease has run out: its connection is closed", "session", h.c.session)
		conn.Close()
	}
}

// askToForget calls the session back until it has answered; false: ctx has ended.
func (l *leadership) askToForget(ctx context.Context, r recalled) bool {
	for keys := r.keys; len(keys) > 0; {
		n := min(len(keys), maxCallbackKeys)
		cb := &msg.Callback{Kind: msg.Callback_META}
		for _, k := range keys[:n] {
			if k.names() {
				cb.Names = append(cb.Names, uint64(k.ino()))
			} else {
				cb.Attrs = append(cb.Attrs, uint64(k.ino()))
			}
		}
		if conn := l.s.clients.get(r.h.c.session); conn != nil {
			code, err := conn.CallMessage(ctx, wire.Callback, wire.ClassMeta, cb, new(msg.CallbackReply))
			if err == nil && code == fserr.OK {
				keys = keys[n:]
				continue
			}
			if err == nil {
				l.s.log.Warn("a client refused a callback", "session", r.h.c.session, "kind", cb.Kind.String(), "err", code)
			}
		}
		if !sleep(ctx, callbackPoll) {
			return false
		}
	}
	return true
}

// shrink calls some of a session's grants back, beside everything else, when it has as many as it may.
func (l *leadership) shrink(c *cacher) {
	if !c.shrinks.CompareAndSwap(false, true) {
		return
	}
	l.spawn(func() {
		defer c.shrinks.Store(false)
		h, keys := l.grants.some(c, grantShrink)
		if len(keys) == 0 {
			return
		}
		l.grants.begin(0, keys) // nobody is granted them meanwhile; other holders keep theirs
		defer l.grants.end(0, keys)
		_ = l.callBackOne(recalled{h: h, keys: keys}) // it fails when the leadership ends
	})
}

// forgetGrants notes that a session is closed.
func (l *leadership) forgetGrants(session id.SessionID, clean bool) {
	l.grants.gone(session, clean)
	l.spawn(func() {
		if clean || sleep(l.ctx, l.grants.lease+l.grants.margin) {
			l.grants.gone(session, clean)
			l.grants.sweep()
		}
	})
}

// bindGrants notes that the session has made this connection, and so has forgotten what it was granted before. It returns when that is
// done, whoever does it, so that what is then granted on the connection is not taken for a grant of an earlier one.
func (l *leadership) bindGrants(p *peer, session id.SessionID) {
	if p.leader.Load() != nil {
		return
	}
	p.binding.Lock()
	defer p.binding.Unlock()
	if _, ok := l.alive(session); !ok || p.leader.Load() != nil {
		return
	}
	if l.grants.bind(session) {
		l.spawn(l.grants.sweep)
	}
	p.leader.Store(l)
}

// grantRead registers what the answer to a read lets the session cache. The caller holds the state still.
func (l *leadership) grantRead(st *state.State, req *msg.MetaRequest, out *decide.Outcome) {
	c := l.grants.cacher(id.SessionID(req.Session))
	if c == nil || out.Code != fserr.OK && out.Code != fserr.NotExist {
		return
	}
	var g msg.Grant
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup:
		parent := id.Ino(op.Lookup.Parent)
		if n, ok := st.Inode(parent); !ok || !n.IsDir() {
			return
		}
		if out.Reply == nil {
			out.Reply = &msg.MetaReply{Index: uint64(st.Index())}
		}
		g.Names = l.mayCache(c, namesKey(parent))
		g.Attr = l.grantAttr(st, c, out.Reply.Attr)
	case *msg.MetaRequest_GetAttr:
		if out.Code == fserr.OK {
			g.Attr = l.grantAttr(st, c, out.Reply.GetAttr())
		}
	case *msg.MetaRequest_ReadDir:
		r := out.Reply.GetReadDir()
		if out.Code != fserr.OK || r == nil {
			return
		}
		g.Names = l.mayCache(c, namesKey(id.Ino(op.ReadDir.Ino)))
		if op.ReadDir.Plus {
			for _, e := range r.Entries {
				e.Once = e.Attr != nil && !l.grantAttr(st, c, e.Attr)
				g.Entries = g.Entries || e.Attr != nil && !e.Once
			}
		}
	}
	if g.Attr || g.Names || g.Entries {
		out.Reply.Grant = &g
	}
}

func (l *leadership) mayCache(c *cacher, k grantKey) bool {
	ok := l.grants.grant(c, k)
	if !ok && c.count.Load() >= maxSessionGrants {
		l.shrink(c)
	}
	return ok
}

func (l *leadership) grantAttr(st *state.State, c *cacher, a *msg.Attr) bool {
	if a == nil || a.Nlink == 0 { // without a name it goes with its last holder, which calls nobody back
		return false
	}
	ino := id.Ino(a.Ino)
	return (a.Type != msg.FileType_REGULAR || decide.MayCache(st, ino, c.session)) && l.mayCache(c, attrKey(ino))
}

// grantChange registers what the answer to a change lets the session that made it cache, and adds what else has changed. The caller holds
// the state still.
func (l *leadership) grantChange(st *state.State, req *msg.MetaRequest, ev *event.Event, reply *msg.MetaReply) {
	c := l.grants.cacher(id.SessionID(req.Session))
	if c == nil || maker(ev) != c.session {
		return
	}
	var g msg.Grant
	g.Attr = l.grantAttr(st, c, reply.Attr)
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Create:
		g.Names = l.mayCache(c, namesKey(id.Ino(op.Create.Parent)))
		if made := ev.GetCreate(); made != nil && msg.FileType(made.Type) == msg.FileType_DIRECTORY {
			if first, _ := firstName(st, id.Ino(made.Ino)); !first {
				g.NewNames = l.mayCache(c, namesKey(id.Ino(made.Ino)))
			}
		}
	case *msg.MetaRequest_Link:
		g.Names = l.mayCache(c, namesKey(id.Ino(op.Link.Parent)))
	case *msg.MetaRequest_Remove:
		g.Names = l.mayCache(c, namesKey(id.Ino(op.Remove.Parent)))
	case *msg.MetaRequest_Rename:
		g.Names = l.mayCache(c, namesKey(id.Ino(op.Rename.Parent))) && l.mayCache(c, namesKey(id.Ino(op.Rename.NewParent)))
	}
	if g.Attr || g.Names || g.NewNames {
		reply.Grant = &g
	}
	var told [4]uint64
	n := 0
	attrs, _ := decide.Touched(st, ev)
	for _, ino := range attrs {
		if uint64(ino) == reply.Attr.GetIno() || n == len(told) || told[0] == uint64(ino) || told[1] == uint64(ino) || told[2] == uint64(ino) {
			continue
		}
		node, ok := st.Inode(ino)
		switch {
		case !ok: // gone: without links, so that the asker, which may not know which inode had the name, keeps nothing of it
			told[n] = uint64(ino)
			n++
			reply.Touched = append(reply.Touched, &msg.Attr{Ino: uint64(ino)})
		case !node.IsRegular() || decide.MayCache(st, ino, c.session):
			told[n] = uint64(ino)
			n++
			reply.Touched = append(reply.Touched, node.Attr())
		}
	}
}

// firstName reports whether the directory has a name in it.
func firstName(st *state.State, dir id.Ino) (any bool, name string) {
	st.Dentries(dir, 0, func(d *state.Dentry) bool {
		any, name = true, d.Name
		return false
	})
	return any, name
}
