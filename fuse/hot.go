package fuse

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/hot"
	"varve/internal/id"
	"varve/internal/invariant"
	"varve/iouring/reactor"
)

// A READ, WRITE or FSYNC that came on a reactor's thread goes on without a goroutine if the file can do that (hot.File): it is begun there, and answered
// there when it has ended. Everything else, and what the file does not begin, is served by a goroutine, as are all requests where there are no reactors.
// Nothing is allocated for a hot request: it is its own hot.Ender, and a member of its loop's list instead of the table of flights.
//
// A panic of a Backend on a reactor's thread ends the process: nobody could tell in what state it leaves the loop.

// loop is the session's side of a reactor.
type loop struct {
	s        *Session
	l        *reactor.Loop
	seat     hot.Seat
	seated   bool // the Backend sits on the loop too
	counters counters

	mu    sync.Mutex // seldom waited for: others look once a second, or when a signal comes
	first *request   // those under way
}

// hotState is what a hot request has instead of a flight. All but loop is guarded by the loop's mu.
type hotState struct {
	loop        *loop // nil: it is none
	prev, next  *request
	reported    bool
	interrupted bool
	canceled    bool
	waits       *flight // the context, once somebody has asked for it
}

// hotRequest names a hot request.
type hotRequest struct {
	unique  uint64
	op      opcode
	ino     id.Ino
	pid     uint32
	began   time.Time
	signals bool // interrupted, and not canceled yet
}

var _ hot.Waiter = (*request)(nil)

// begin has r begun on the thread of l. If it returns false r was not touched, or has a room that it may ask for again.
func (s *Session) begin(l *loop, r *request) bool {
	if !l.seated || r.op != opRead && r.op != opWrite && r.op != opFsync {
		return false
	}
	f := s.files.get(r.u64(0))
	if r.op == opFsync {
		return s.beginFsync(l, r, f)
	}
	off, size := r.u64(8), int(r.u32(16))
	if f == nil || f.hot == nil || f.ino != r.ino || size == 0 || size > maxWrite || off > chunk.MaxFileSize-maxWrite {
		return false // whoever is wrong here, the goroutine says so
	}
	if r.op == opWrite {
		flags := r.u32(20)
		switch {
		case s.opts.ReadOnly, !f.write, size != len(r.rest), r.u32(32)&unix.O_APPEND != 0 && flags&writeCache == 0:
			return false
		case flags&writeKillSuidgid != 0 && s.hasPriv(r.ino), f.behind != nil && r.buffered():
			return false
		}
	}
	if !s.budget.try(r.cost) {
		return false
	}
	l.add(r)
	if s.early.take(r.unique) {
		s.interruptHot(r.unique)
	}
	begun := false
	if r.op == opRead {
		begun = f.hot.BeginRead(l.seat, r.room(size), int64(off), r)
	} else {
		begun = f.hot.BeginWrite(l.seat, r.rest, int64(off), r)
	}
	if !begun {
		l.remove(r)
		r.hot = hotState{}
		s.budget.give(r.cost)
	}
	return begun
}

// beginFsync is begin for a flush.
func (s *Session) beginFsync(l *loop, r *request, f *file) bool {
	if f == nil || f.ino != r.ino || !s.budget.try(r.cost) {
		return false
	}
	y, ok := f.hot.(hot.Syncer)
	if !ok {
		s.budget.give(r.cost)
		return false
	}
	l.add(r)
	if s.early.take(r.unique) {
		s.interruptHot(r.unique)
	}
	if y.BeginFsync(l.seat, r.u32(8)&fsyncDataOnly != 0, r) {
		return true
	}
	l.remove(r)
	r.hot = hotState{}
	s.budget.give(r.cost)
	return false
}

// Ended implements hot.Ender: it answers.
func (r *request) Ended(n int, err error) {
	l := r.hot.loop
	s := l.s
	l.remove(r)
	size := 0
	if r.op != opFsync {
		size = int(r.u32(16))
	}
	if n < 0 || n > size || r.op == opWrite && err == nil && n != size {
		invariant.Failf("inode %d: %v of %d bytes ended with %d", r.ino, r.op, size, n)
	}
	e := syscall.Errno(0)
	if err != nil && (r.op == opRead || n == 0 || !errors.Is(err, context.Canceled)) {
		e = errnoOf(err)
	}
	switch {
	case e == syscall.EIO:
		s.ioFailed(r, err)
		n = 0
	case e != 0:
		n = 0
	case r.op == opWrite:
		le.PutUint32(r.zeroed(8), uint32(n))
		n = 8
	}
	cost := r.cost
	_ = r.via.send(r, e, n) // the kernel may not take it any more
	s.done(r, e, n)
	s.budget.give(cost)
}

// Context implements hot.Waiter.
func (r *request) Context() context.Context {
	l := r.hot.loop
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.hot.waits == nil {
		r.hot.waits = &flight{op: r.op, ino: r.ino, pid: r.pid, started: r.began}
		if r.hot.canceled {
			r.hot.waits.cancel()
		}
	}
	return r.hot.waits
}

func (l *loop) add(r *request) {
	r.hot.loop = l
	l.mu.Lock()
	r.hot.next = l.first
	if l.first != nil {
		l.first.hot.prev = r
	}
	l.first = r
	l.mu.Unlock()
}

func (l *loop) remove(r *request) {
	l.mu.Lock()
	if r.hot.prev != nil {
		r.hot.prev.hot.next = r.hot.next
	} else {
		l.first = r.hot.next
	}
	if r.hot.next != nil {
		r.hot.next.hot.prev = r.hot.prev
	}
	l.mu.Unlock()
}

// find returns the request of that number that is under way. The caller holds mu.
func (l *loop) find(unique uint64) *request {
	for r := l.first; r != nil; r = r.hot.next {
		if r.unique == unique {
			return r
		}
	}
	return nil
}

// cancel ends the context of a request that is under way, if it still is.
func (l *loop) cancel(unique uint64) {
	l.mu.Lock()
	var waits *flight
	if r := l.find(unique); r != nil {
		r.hot.canceled, waits = true, r.hot.waits
	}
	l.mu.Unlock()
	if waits != nil {
		waits.cancel()
	}
}

// hotUnderWay returns the hot requests under way now.
func (s *Session) hotUnderWay() (all []hotRequest) {
	for _, l := range s.loops {
		l.mu.Lock()
		for r := l.first; r != nil; r = r.hot.next {
			all = append(all, r.name())
		}
		l.mu.Unlock()
	}
	return all
}

func (r *request) name() hotRequest {
	return hotRequest{r.unique, r.op, r.ino, r.pid, r.began, r.hot.interrupted && !r.hot.canceled}
}

// watchHot does for hot requests what watch does for others.
func (s *Session) watchHot() {
	for _, l := range s.loops {
		var look []hotRequest
		l.mu.Lock()
		for r := l.first; r != nil; r = r.hot.next {
			h := r.name()
			if slow := time.Since(r.began) >= slowAfter && !r.hot.reported; slow {
				r.hot.reported = true
				s.slowNow(h.op, h.ino, h.pid, time.Since(h.began))
			}
			if h.signals || s.unannounced(h.began) && !r.hot.canceled {
				look = append(look, h)
			}
		}
		l.mu.Unlock()
		for _, h := range look {
			if beingKilled(h.pid) {
				l.cancel(h.unique)
			}
		}
	}
}

// interruptHot notes that the caller of a hot request has a signal pending. False: there is no such request.
func (s *Session) interruptHot(unique uint64) bool {
	for _, l := range s.loops {
		l.mu.Lock()
		r := l.find(unique)
		var pid uint32
		if r != nil {
			r.hot.interrupted, pid = true, r.pid
		}
		l.mu.Unlock()
		if r == nil {
			continue
		}
		if beingKilled(pid) {
			l.cancel(unique)
		}
		return true
	}
	return false
}

// cancelHot ends the contexts of all hot requests.
func (s *Session) cancelHot() {
	for _, l := range s.loops {
		l.mu.Lock()
		var waits []*flight
		for r := l.first; r != nil; r = r.hot.next {
			r.hot.canceled = true
			if r.hot.waits != nil {
				waits = append(waits, r.hot.waits)
			}
		}
		l.mu.Unlock()
		for _, w := range waits {
			w.cancel()
		}
	}
}
