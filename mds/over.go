package mds

import (
	"context"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// A session that is fenced before its lease is over has a client that may live, and serve what it keeps: blocks of its read cache, what it has read ahead, holes, the
// size of a file. No chunk server hears of such reads. So before the session is closed, and its leases are anybody's, the client says that it serves nothing under
// it any more, or its lease, which is not renewed any more, has run out by its own clock, or the kernel says that its process is no more (heir.go).

// overPoll is the pause between two attempts to tell a client.
const overPoll = 20 * time.Millisecond

// untilOver returns when the client of a session that is closing serves nothing under it any more.
func (l *leadership) untilOver(x *session) {
	start, told := bootNow(), time.Now()
	for {
		l.mu.Lock()
		end, dead := x.deadline+min(leaseSlack, l.s.o.SessionLease/4), x.dead || x.revoked
		l.mu.Unlock()
		left := end - bootNow()
		if left <= 0 || dead || l.ctx.Err() != nil {
			return
		}
		if l.tellOver(x, left) {
			l.s.log.Info("the client of a session that is fenced serves nothing any more", "session", x.id, "took", (bootNow() - start).Round(time.Millisecond))
			return
		}
		if time.Since(told) > callbackLog {
			told = time.Now()
			l.s.log.Warn("a session that is fenced may serve what its client keeps until its lease is over", "session", x.id, "left", left.Round(time.Millisecond))
		}
		sleep(l.ctx, min(left, overPoll))
	}
}

// tellOver tells the client, if it is connected, and reports whether it has said that it serves nothing any more.
func (l *leadership) tellOver(x *session, within time.Duration) bool {
	conn := l.s.clients.get(x.id)
	if conn == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(l.ctx, min(within, callbackLog)) // then it is looked at again
	defer cancel()
	reply := new(msg.CallbackReply)
	code, err := conn.CallMessage(ctx, wire.Callback, wire.ClassMeta, &msg.Callback{Kind: msg.Callback_OVER}, reply)
	return err == nil && code == fserr.OK && reply.Over
}
