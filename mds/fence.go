package mds

import (
	"context"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planted"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

const (
	fenceTimeout = 5 * time.Second // one server's answer
	fencePoll    = 20 * time.Millisecond
	leaseSlack   = 250 * time.Millisecond // for clocks that drift and messages on their way
	// fencedKept is how long chunk servers are told of a fenced session, and maxFenced how many there may be: a client that
	// stood still for longer has found out by its own clock that its lease is over.
	fencedKept = time.Hour
	maxFenced  = 1024
)

// fence is the fencing of one session: done is closed when no chunk server takes anything from it any more.
type fence struct {
	since  time.Duration // bootNow
	index  id.Index      // of the event that closed the session; 0: an earlier leader made it
	done   chan struct{}
	silent []id.ServerID // set before done is closed: those that did not answer and have stopped serving by their own lease
}

func newFence(now time.Duration) *fence { return &fence{since: now, done: make(chan struct{})} }

// goFence fences beside everything else. The caller holds l.mu.
func (l *leadership) goFence(session id.SessionID, f *fence) {
	l.spawnLocked(func() { l.fence(session, f) })
}

// fence asks each chunk server to refuse the session. A server counts as done when it has answered, or has not been heard from for
// its own lease, after which it serves nobody until it is told when it registers. That it has registered is not enough: it may
// still serve under its earlier lease while the answer, with the session in it, is on its way.
func (l *leadership) fence(session id.SessionID, f *fence) {
	answered := make(map[*wire.Conn]bool)
	results := make(chan *wire.Conn, maxChunkServers)
	asked := make(map[*wire.Conn]bool)
	start, logged := time.Now(), time.Now()
	for {
		waits := id.ServerID(0)
		var silent []id.ServerID
		now := bootNow()
		l.mu.Lock()
		for _, c := range l.servers {
			switch {
			case c.conn != nil && answered[c.conn]:
			case now > c.heard+l.s.o.ServerLease+leaseSlack:
				silent = append(silent, c.id)
			default:
				waits = c.id
				if conn := c.conn; conn != nil && !asked[conn] && len(asked) < maxChunkServers {
					asked[conn] = true
					l.spawnLocked(func() { l.askFence(conn, session, results) })
				}
			}
		}
		l.mu.Unlock()
		if waits == 0 {
			slices.Sort(silent)
			f.silent = silent
			close(f.done)
			l.s.log.Info("session fenced", "session", session, "took", time.Since(start).Round(time.Millisecond), "silent", len(silent))
			return
		}
		if time.Since(logged) > 2*time.Second {
			logged = time.Now()
			l.s.log.Warn("waiting for a chunk server to fence a session", "session", session, "cs", waits)
		}
		select {
		case conn := <-results:
			answered[conn] = true
		case <-time.After(fencePoll):
		case <-l.ctx.Done():
			return
		}
	}
}

func (l *leadership) askFence(conn *wire.Conn, session id.SessionID, results chan<- *wire.Conn) {
	for l.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(l.ctx, fenceTimeout)
		code, err := conn.CallMessage(ctx, wire.Fence, wire.ClassMeta, &msg.Fence{Sessions: []uint64{uint64(session)}}, nil)
		cancel()
		if err == nil && code == fserr.OK {
			results <- conn
			return
		}
		if conn.Err() != nil {
			return
		}
		sleep(l.ctx, 100*time.Millisecond)
	}
}

// awaitFences waits until every session that was closed uncleanly can change nothing any more.
func (l *leadership) awaitFences(ctx context.Context) error {
	if planted.Is(planted.GrantBeforeFence) {
		return nil
	}
	l.mu.Lock()
	open := make(map[id.SessionID]*fence)
	for session, f := range l.fences {
		open[session] = f
	}
	l.mu.Unlock()
	for session, f := range open {
		select {
		case <-f.done:
			continue
		default:
		}
		w := l.s.waits.For("all chunk servers to refuse a session that is over, or to stop serving", "session", session)
		select {
		case <-f.done:
			w.End()
		case <-ctx.Done():
			w.End()
			return waitError(ctx, "chunk servers to fence session "+session.String())
		}
	}
	return nil
}

// forgetFenced drops the records of sessions that were fenced long ago.
func (l *leadership) forgetFenced() {
	now := bootNow()
	var old []id.SessionID
	l.mu.Lock()
	oldest, since := id.SessionID(0), now
	for session, f := range l.fences {
		select {
		case <-f.done:
		default:
			continue
		}
		if now-f.since > fencedKept {
			old = append(old, session)
		} else if f.since < since {
			oldest, since = session, f.since
		}
	}
	if len(old) == 0 && len(l.fences) > maxFenced && oldest != 0 {
		old = append(old, oldest)
	}
	l.mu.Unlock()
	for _, session := range old {
		ev := &event.Event{Body: &event.Event_SessionForgotten{SessionForgotten: &event.SessionForgotten{Id: uint64(session)}}}
		if err := l.propose(ev, "fenced long ago"); err != nil {
			return
		}
		l.mu.Lock()
		delete(l.fences, session)
		l.mu.Unlock()
	}
}

// fencedSessions are those that a chunk server must refuse.
func (l *leadership) fencedSessions() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]uint64, 0, len(l.fences))
	for session := range l.fences {
		out = append(out, uint64(session))
	}
	return out
}
