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

const (
	callbackPoll = 20 * time.Millisecond // while a client is not connected
	callbackLog  = 2 * time.Second       // a wait longer than this is logged, again and again
	// maxCallbacks bounds how many clients one request calls back at once.
	maxCallbacks = 16
)

// waitError is what a wait for what ends with when ctx is over.
func waitError(ctx context.Context, what string) error {
	return fmt.Errorf("waiting for %s: %w: %w", what, fserr.Unavailable, context.Cause(ctx))
}

// callback asks the client and waits for its answer, over reconnects if need be, or until its session is closed, or has lapsed and
// can do without: then the answer is nil.
func (l *leadership) callback(ctx context.Context, session id.SessionID, cb *msg.Callback) (*msg.CallbackReply, error) {
	x, ok := l.alive(session)
	if !ok {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	skipped := make(chan struct{})
	go func() {
		start := time.Now()
		lapse := l.lapseOf(x)
		for {
			select {
			case <-x.gone:
				cancel()
				return
			case <-ctx.Done():
				return
			case <-lapse:
				if lapse = nil; l.needless(session, cb) {
					close(skipped)
					cancel()
					return
				}
				l.oust(x, "another client waits for its answer")
			case <-time.After(callbackLog):
				l.s.log.Warn("waiting for a client to answer a callback", "session", session, "kind", cb.Kind.String(), "inode", cb.Ino,
					"waited", time.Since(start).Round(time.Second))
			}
		}
	}()
	for {
		if conn := l.s.clients.get(session); conn != nil {
			reply := new(msg.CallbackReply)
			code, err := conn.CallMessage(ctx, wire.Callback, wire.ClassMeta, cb, reply)
			if err == nil && code == fserr.OK {
				return reply, nil
			}
			if err == nil {
				l.s.log.Warn("a client refused a callback", "session", session, "kind", cb.Kind.String(), "inode", cb.Ino, "err", code)
			}
		}
		if sleep(ctx, callbackPoll) {
			continue
		}
		select {
		case <-x.gone:
			return nil, nil
		case <-skipped:
			return nil, nil
		case <-l.ctx.Done():
			return nil, fmt.Errorf("leadership ended: %w", fserr.NotLeader)
		default:
			return nil, waitError(ctx, fmt.Sprintf("session %v to answer callback %s of inode %d", session, cb.Kind, cb.Ino))
		}
	}
}

// together runs fn for each element, maxCallbacks at a time, and returns one of the errors.
func together[T any](list []T, fn func(T) error) error {
	if len(list) == 1 {
		return fn(list[0])
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	slots := make(chan struct{}, maxCallbacks)
	for _, v := range list {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			if err := fn(v); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return first
}

// asking is about callbacks under way whose answers tell a size of one inode.
type asking struct {
	calls int
	cuts  uint64 // truncates since the first of them was sent
}

// askSize calls a holder back and makes facts of its answer. It asks again if the file was cut meanwhile, since the answer may be of before.
func (l *leadership) askSize(ctx context.Context, session id.SessionID, ino id.Ino, cb *msg.Callback, lower bool) error {
	l.mu.Lock()
	a := l.asked[ino]
	if a == nil {
		a = new(asking)
		l.asked[ino] = a
	}
	a.calls++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if a.calls--; a.calls == 0 {
			delete(l.asked, ino)
		}
	}()
	cuts := func() uint64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return a.cuts
	}
	for {
		before := cuts()
		reply, err := l.callback(ctx, session, cb)
		if err != nil || reply == nil {
			return err
		}
		again, err := l.absorb(ctx, session, ino, reply, lower, func() bool { return cuts() == before })
		if !again {
			return err
		}
	}
}

// noteCut is called when a truncate is a fact, with the inode's latch held.
func (l *leadership) noteCut(ino id.Ino) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.asked[ino]; a != nil {
		a.cuts++
	}
}

// absorb makes facts of what a client answered: the size and times it had accumulated and, if lower, what it
// still holds the inode for. again: the answer does not hold any more, by what holds says under the inode's latch. A size counts from a session that
// writes alone: whoever else was granted the file since has it from a later answer, and may have cut it.
func (l *leadership) absorb(ctx context.Context, session id.SessionID, ino id.Ino, reply *msg.CallbackReply, lower bool, holds func() bool) (again bool, _ error) {
	latches := withMembership([]decide.Latch{
		{Kind: decide.LatchInode, A: uint64(ino), Exclusive: true}, {Kind: decide.LatchLayout, A: uint64(ino), Exclusive: true}})
	if err := l.latches.acquire(ctx, latches); err != nil {
		return false, err
	}
	defer l.latches.release(latches)
	if !holds() {
		return true, nil
	}
	var attr *event.SetAttr
	var entry *event.LeaseSet_Entry
	l.s.fsm.view(func(st *state.State) {
		held, ok := st.Lease(ino, session)
		n, exists := st.Inode(ino)
		if !ok || !exists {
			return
		}
		if held.Want == msg.Want_WANT_WRITE {
			attr = flushed(n, reply, st.Mode(ino, session) == msg.Mode_EXCLUSIVE_WRITE)
		}
		if lower && reply.Keep < held.Want {
			entry = &event.LeaseSet_Entry{Session: uint64(session), Ino: uint64(ino), Want: uint32(reply.Keep)}
		}
	})
	ev := &event.Event{Cause: &event.Cause{Session: uint64(session), Reason: "called back"}}
	switch {
	case entry != nil:
		ev.Body = &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{Entries: []*event.LeaseSet_Entry{entry}, Attr: attr}}
	case attr != nil:
		ev.Body = &event.Event_SetAttr{SetAttr: attr}
	default:
		return false, nil
	}
	return false, l.propose(ev, "")
}

// flushed returns the change that a writer's report is, nil if it is none. Sizes only grow, and only by who writes alone.
func flushed(n *state.Inode, r *msg.CallbackReply, alone bool) *event.SetAttr {
	if !r.HasAttr {
		return nil
	}
	a := &event.SetAttr{Ino: uint64(n.Ino)}
	change := false
	if r.Size > n.Size && alone {
		a.Size, change = &r.Size, true
	}
	if r.Mtime != 0 && r.Mtime != n.Mtime {
		a.Mtime, change = &r.Mtime, true
	}
	if r.Atime != 0 && r.Atime != n.Atime {
		a.Atime, change = &r.Atime, true
	}
	if !change {
		return nil
	}
	return a
}

// recallAttr has the one writer of each inode, if another session has it to itself, report size and times.
func (l *leadership) recallAttr(ctx context.Context, asker id.SessionID, inos []id.Ino) error {
	type call struct {
		session id.SessionID
		cb      *msg.Callback
	}
	var calls []call
	l.s.fsm.view(func(st *state.State) {
		for _, ino := range inos {
			st.Leases(ino, func(h state.Lease) bool {
				if h.Session != asker && h.Want == msg.Want_WANT_WRITE && st.Mode(ino, h.Session) == msg.Mode_EXCLUSIVE_WRITE {
					calls = append(calls, call{h.Session, &msg.Callback{
						Kind: msg.Callback_ATTR, Ino: uint64(ino), Lease: uint64(h.Index), Mode: msg.Mode_EXCLUSIVE_WRITE}})
				}
				return true
			})
		}
	})
	return together(calls, func(c call) error { return l.askSize(ctx, c.session, id.Ino(c.cb.Ino), c.cb, false) })
}
