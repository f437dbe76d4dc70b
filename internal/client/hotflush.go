package client

import (
	"time"

	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// hotFlush is a flush on a reactor, of a file of which one chunk was written since the last one, and of which the metadata servers need not be told anything
// now. From begin to end or leave it holds flushOp and layoutMu, as fsync and run do. What goes wrong is put right by a goroutine that flushes once
// more: to do so twice does no harm, and nothing is owed for it.
type hotFlush struct {
	st    *seat
	next  *hotFlush
	ender hot.Ender
	f     *File
	data  bool // dataOnly
	start time.Time

	index uint32
	was   unflushed // what is being flushed
	loc   *location // nil: nothing is
	left  int       // exchanges that are not over, and one while they are begun
	n     int
	parts [maxReplicas]exchange
	body  []byte
	timer reactor.Timer

	err  error
	task reactor.Task
}

func (st *seat) takeFlush() *hotFlush {
	s := st.syncs
	if s == nil {
		s = &hotFlush{st: st}
		for i := range s.parts {
			s.parts[i].owner = s
		}
		s.task.Run, s.timer.Fire = s.end, s.late
		return s
	}
	st.syncs, s.next = s.next, nil
	st.spare[4]--
	return s
}

func (s *hotFlush) free() {
	s.ender, s.f, s.loc, s.err = nil, nil, nil, nil
	if st := s.st; st.spare[4] < maxSpare {
		s.next, st.syncs = st.syncs, s
		st.spare[4]++
	}
}

// BeginFsync implements hot.Syncer.
func (f *File) BeginFsync(n hot.Seat, dataOnly bool, e hot.Ender) bool {
	in := f.in
	st := in.s.c.seat(n)
	if st == nil || st.leaving || !in.s.certain() || !in.s.c.patient() || in.behind.on.Load() || !in.flushOp.try() {
		return false
	}
	if !in.layoutMu.TryRLock() {
		in.flushOp.unlock()
		return false
	}
	s := st.takeFlush()
	in.habit.flushes()
	s.f, s.data, s.ender, s.start, s.n, s.left = f, dataOnly, e, time.Now(), 0, 0
	if s.begin() {
		st.under++
		return true
	}
	s.release()
	s.free()
	return false
}

// begin asks all replicas of the one chunk to flush it, if that is all there is to do.
func (s *hotFlush) begin() bool {
	in := s.f.in
	in.mu.Lock()
	due := len(in.unflushed)
	told := !in.sizeDirty && (!in.timeDirty || s.data || time.Since(in.reported) < in.s.c.o.FlushEvery)
	mode := in.mode
	for index, was := range in.unflushed {
		s.index, s.was = index, was
	}
	in.mu.Unlock()
	switch {
	case !told || due > 1 || due == 1 && mode != msg.Mode_EXCLUSIVE_WRITE:
		return false
	case due == 0:
		return s.st.l.Post(&s.task)
	}
	loc, _ := in.lookup(s.index)
	if loc == nil || len(loc.replicas) == 0 {
		return false
	}
	n := min(len(loc.replicas), maxReplicas)
	var conns [maxReplicas]*hotConn
	ready := true
	for i := range n {
		conns[i] = s.st.ready(in.s.servers.server(&loc.replicas[i]))
		ready = ready && conns[i] != nil
	}
	if !ready {
		return false
	}
	in.mu.Lock()
	was, there := in.unflushed[s.index]
	delete(in.unflushed, s.index) // what is written from now on is of the next flush
	in.mu.Unlock()
	if !there {
		return false // another chunk was written, and this one cut off
	}
	s.was, s.loc, s.n, s.left = was, loc, n, 1
	req := wire.DataRequest{Chunk: loc.chunk, Session: in.s.id}
	s.body = req.Append(s.body[:0])
	for i := range n {
		x := &s.parts[i]
		if x.begin(conns[i], wire.Flush, loc.epoch, s.body, nil, nil, s.start) {
			s.left++
		} else {
			x.what = broken
		}
	}
	s.st.l.SetTimer(&s.timer, in.s.c.o.WriteTimeout)
	if s.left--; s.left == 0 {
		s.st.l.Post(&s.task)
	}
	return true
}

// exchanged takes the outcome of one replica.
func (s *hotFlush) exchanged(x *exchange) {
	met(&x.srv.met, x.start)
	if s.left--; s.left == 0 {
		s.end()
	}
}

// late is called when it has taken too long.
func (s *hotFlush) late() {
	for i := range s.n {
		if s.left > 0 { // the last one ends it
			s.parts[i].giveUp()
		}
	}
}

// release gives back what keeps others waiting.
func (s *hotFlush) release() {
	s.st.l.StopTimer(&s.timer)
	s.f.in.layoutMu.RUnlock()
	s.f.in.flushOp.unlock()
}

// end is called when every replica has answered, or will not, or there was nothing to flush.
func (s *hotFlush) end() {
	f, in := s.f, s.f.in
	if s.loc != nil {
		good := true
		for i := range s.n {
			x := &s.parts[i]
			good = good && x.what == answered && x.code == fserr.OK
		}
		in.mu.Lock()
		if good {
			in.flushedLocked(s.was, s.loc)
		} else {
			in.noteUnflushedLocked(s.index, s.was)
		}
		in.mu.Unlock()
		if !good {
			s.release()
			in.s.c.hot.flushesLeft.Add(1)
			s.leave()
			return
		}
		met(&in.s.c.changes, s.start)
	}
	s.release()
	in.s.c.hot.flushes.Add(1)
	if s.err = f.failed(); s.err == nil {
		s.err = f.lost()
	}
	s.done()
}

// leave has a goroutine flush once more.
func (s *hotFlush) leave() {
	s.task.Run = s.done
	if !s.f.in.s.c.background(s.slow) {
		s.err = fserr.Stale // dead with the client
		s.done()
	}
}

// slow is the goroutine's way.
func (s *hotFlush) slow() {
	ctx, cancel := s.st.context(s.ender, s.start)
	defer cancel()
	s.err = s.f.fsync(ctx, s.data)
	s.st.l.Post(&s.task)
}

// done tells the caller.
func (s *hotFlush) done() {
	st, e, err := s.st, s.ender, s.err
	s.task.Run = s.end
	s.free()
	e.Ended(0, err)
	st.ended()
}
