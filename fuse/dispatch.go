package fuse

import (
	"context"
	"log/slog"
	"runtime/debug"
	"syscall"
	"time"

	"varve/internal/fserr"
	"varve/internal/invariant"
)

// handler answers one operation: it builds the body in r.room and returns its length, or an error.
type handler func(s *Session, r *request) (int, error)

// handlers are all operations that are answered. The others get ENOSYS, after which the kernel does without
// (POLL, BMAP, TMPFILE) or does it by other means (COPY_FILE_RANGE).
var handlers = [opLimit]handler{
	opLookup: (*Session).lookup, opGetattr: (*Session).getattr, opStatx: (*Session).statx, opSetattr: (*Session).setattr,
	opReadlink: (*Session).readlink, opSymlink: (*Session).symlink, opMknod: (*Session).mknod, opMkdir: (*Session).mkdir,
	opUnlink: (*Session).remove, opRmdir: (*Session).remove, opRename: (*Session).rename, opRename2: (*Session).rename,
	opLink: (*Session).link, opOpen: (*Session).open, opCreate: (*Session).create, opRead: (*Session).read,
	opWrite: (*Session).write, opStatfs: (*Session).statfs, opRelease: (*Session).release, opFsync: (*Session).fsync,
	opFlush: (*Session).flush, opSyncfs: (*Session).syncfs, opFallocate: (*Session).fallocate, opLseek: (*Session).lseek,
	opSetxattr: (*Session).setxattr, opGetxattr: (*Session).getxattr, opListxattr: (*Session).listxattr,
	opRemovexattr: (*Session).removexattr, opAccess: (*Session).access,
	opOpendir: (*Session).opendir, opReaddir: (*Session).readdir,
	opReleasedir: (*Session).releasedir, opFsyncdir: (*Session).fsyncdir,
	opGetlk: (*Session).getlk, opSetlk: (*Session).setlk, opSetlkw: (*Session).setlk,
	opIoctl: (*Session).ioctl, opDestroy: (*Session).destroy, opInit: (*Session).init,
}

// accept takes a request from a transport, in the goroutine that read it. What never blocks is done at
// once; the rest gets a goroutine of its own when the budget allows. It owns r.
func (s *Session) accept(r *request) {
	if s.atOnce(r) {
		return
	}
	if !s.budget.take(r.cost, s.saturated) {
		s.refuse(r)
		return
	}
	s.spawn(r)
}

// atOnce does what never blocks. For the rest it sets when r began and what it costs.
func (s *Session) atOnce(r *request) bool {
	switch r.op {
	case opForget:
		s.nodes.forget(r.ino, r.u64(0))
		s.done(r, 0, 0)
	case opBatchForget:
		s.batchForget(r)
		s.done(r, 0, 0)
	case opInterrupt:
		s.interrupt(r)
	case opNotifyReply:
		s.done(r, 0, 0)
	case opInit:
		r.began = time.Now()
		r.flight = &flight{op: r.op, ino: r.ino, started: r.began}
		s.serve(r)
		s.initAnswered()
	default:
		r.began = time.Now()
		switch r.op {
		case opRead, opReaddir:
			r.cost = int(min(r.u32(16), maxWrite))
		case opWrite, opSetxattr:
			r.cost = len(r.rest)
		}
		return false
	}
	return true
}

// refuse answers a request that came when the connection was ending: the kernel may not take it.
func (s *Session) refuse(r *request) {
	_ = r.via.send(r, syscall.ENODEV, 0)
	r.free()
}

// spawn serves r, whose cost was taken from the budget, in a goroutine of its own.
func (s *Session) spawn(r *request) {
	r.flight = &flight{op: r.op, ino: r.ino, pid: r.pid, started: r.began}
	s.flights.add(r.unique, r.flight)
	if s.early.take(r.unique) {
		s.interruptFlight(r.flight)
	}
	s.enter()
	go func() {
		defer s.leave()
		unique, cost := r.unique, r.cost
		s.serve(r)
		s.flights.remove(unique)
		s.budget.give(cost)
	}()
}

// saturated tells the log that requests wait for others to end.
func (s *Session) saturated() {
	now := time.Now().UnixNano()
	if last := s.toldSaturated.Load(); now-last > int64(slowAfter) && s.toldSaturated.CompareAndSwap(last, now) {
		s.log.Warn("as many requests as allowed are under way; the next waits",
			"requests", s.opts.MaxRequests, "bytes", maxDataInFlight)
	}
}

// serve answers r and frees it.
func (s *Session) serve(r *request) {
	if s.keepBack(r) {
		return
	}
	n, err := s.call(r)
	if s.brokenOff(r, err) {
		return
	}
	e := errnoOf(err)
	if e != 0 {
		n = 0
	}
	if e == syscall.EIO {
		s.ioFailed(r, err)
	}
	var sendErr error
	if e == 0 && r.keep.what != keepNothing && s.keeper != nil {
		sendErr = s.sendKept(r, n)
	} else {
		sendErr = r.via.send(r, e, n)
	}
	if sendErr != nil && e == 0 && r.lost != nil {
		r.lost()
	}
	s.done(r, e, n)
}

// done counts r and frees it.
func (s *Session) done(r *request, e syscall.Errno, n int) {
	var took time.Duration
	if !r.began.IsZero() {
		took = time.Since(r.began)
	}
	counters := &s.counters
	if r.hot.loop != nil {
		counters = &r.hot.loop.counters
	}
	counters.count(r, took, e, n)
	if c := s.capture.Load(); c != nil {
		captured(c, r, took, e, n)
	}
	if took >= slowAfter {
		s.slowDone(r, took)
	}
	r.free()
}

// call runs the handler. A panic of a Backend fails the one request with EIO, is logged and otherwise
// survived, since the mount carries running guests; a broken invariant ends the process as everywhere.
func (s *Session) call(r *request) (n int, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if v, ok := p.(invariant.Violation); ok {
			panic(v)
		}
		s.log.Error("panic while serving a request", "op", r.op.String(), "inode", r.ino, "cause", p, "stack", string(debug.Stack()))
		n, err = 0, fserr.IO
	}()
	if r.op >= opLimit || handlers[r.op] == nil {
		return 0, syscall.ENOSYS
	}
	if s.opts.ReadOnly && ops[r.op].changes {
		return 0, fserr.ReadOnly
	}
	return handlers[r.op](s, r)
}

// ioFailed logs the cause of an EIO, at most once a second: the application sees only the number.
func (s *Session) ioFailed(r *request, err error) {
	now := time.Now().UnixNano()
	last := s.toldFailed.Load()
	if now-last < int64(time.Second) || !s.toldFailed.CompareAndSwap(last, now) {
		s.failedUntold.Add(1)
		return
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, "operation failed with EIO", slog.String("op", r.op.String()),
		slog.Uint64("inode", uint64(r.ino)), slog.Any("cause", err), slog.Int64("others", s.failedUntold.Swap(0)))
}

// batchForget takes struct fuse_batch_forget_in.
func (s *Session) batchForget(r *request) {
	count := int(r.u32(0))
	for i := 0; i < count && len(r.rest) >= 16*(i+1); i++ {
		one := r.rest[16*i:]
		s.nodes.forget(inoOf(le.Uint64(one)), le.Uint64(one[8:]))
	}
}

// interrupt takes INTERRUPT, which names a request whose caller has a signal pending. If that request is not
// known it was answered, or it is being read by another reader: EAGAIN makes the kernel ask again if it is
// still unanswered. A request on a ring the kernel does not find by this, so it is noted for when that comes. See the package documentation for who
// is really interrupted.
func (s *Session) interrupt(r *request) {
	unique := r.u64(0)
	if !s.interrupted(unique) {
		if err := r.via.send(r, syscall.EAGAIN, 0); err != nil && s.transport == Uring {
			s.early.add(unique)
			s.interrupted(unique) // it may have come just before
		}
	}
	s.done(r, 0, 0)
}

// interrupted tells whether there is such a request, and that it was interrupted.
func (s *Session) interrupted(unique uint64) bool {
	if f := s.flights.get(unique); f != nil {
		s.interruptFlight(f)
		return true
	}
	return s.interruptHot(unique)
}

func (s *Session) interruptFlight(f *flight) {
	f.mu.Lock()
	f.interrupted = true
	f.mu.Unlock()
	if f.op == opSetlkw || beingKilled(f.pid) {
		f.cancel()
	}
}
