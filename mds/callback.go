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

// absorb makes facts of what a client answered: the size and times it had accumulated and, if lower, what it
// still holds the inode for.
func (l *leadership) absorb(ctx context.Context, session id.SessionID, ino id.Ino, reply *msg.CallbackReply, lower bool) error {
	latches := withMembership([]decide.Latch{
		{Kind: decide.LatchInode, A: uint64(ino), Exclusive: true}, {Kind: decide.LatchLayout, A: uint64(ino), Exclusive: true}})
	if err := l.latches.acquire(ctx, latches); err != nil {
		return err
	}
	defer l.latches.release(latches)
	var attr *event.SetAttr
	var entry *event.LeaseSet_Entry
	l.s.fsm.view(func(st *state.State) {
		held, ok := st.Lease(ino, session)
		n, exists := st.Inode(ino)
		if !ok || !exists {
			return
		}
		if held.Want == msg.Want_WANT_WRITE {
			attr = flushed(n, reply)
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
		return nil
	}
	return l.propose(ev, "")
}

// flushed returns the change that a writer's report is, nil if it is none. Sizes only grow.
func flushed(n *state.Inode, r *msg.CallbackReply) *event.SetAttr {
	if !r.HasAttr {
		return nil
	}
	a := &event.SetAttr{Ino: uint64(n.Ino)}
	change := false
	if r.Size > n.Size {
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
	return together(calls, func(c call) error {
		reply, err := l.callback(ctx, c.session, c.cb)
		if err != nil || reply == nil {
			return err
		}
		return l.absorb(ctx, c.session, id.Ino(c.cb.Ino), reply, false)
	})
}
