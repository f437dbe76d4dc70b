package client

import (
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// hotWrite is a write to all replicas on a reactor: the first attempt of a dataOp, in other hands. From begin to end or hand over it holds its
// blocks and layoutMu, as writeOnce and run do.
type hotWrite struct {
	st    *seat
	next  *hotWrite
	ender hot.Ender
	in    *inode
	op    *dataOp
	p     []byte
	off   int64
	start time.Time

	hold  *rangeHold
	loc   *location
	left  int // exchanges that are not over, and one while they are begun
	parts [maxReplicas]exchange
	timer reactor.Timer

	n    int
	err  error
	task reactor.Task
}

func (st *seat) takeWrite() *hotWrite {
	w := st.writes
	if w == nil {
		w = &hotWrite{st: st}
		for i := range w.parts {
			w.parts[i].owner = w
		}
		w.task.Run, w.timer.Fire = w.end, w.late
		return w
	}
	st.writes, w.next = w.next, nil
	st.spare[1]--
	return w
}

func (w *hotWrite) free() {
	w.ender, w.in, w.op, w.p, w.loc, w.hold, w.err = nil, nil, nil, nil, nil, nil, nil
	if st := w.st; st.spare[1] < maxSpare {
		w.next, st.writes = st.writes, w
		st.spare[1]++
	}
}

// BeginWrite implements hot.File.
func (f *File) BeginWrite(s hot.Seat, p []byte, off int64, e hot.Ender) bool {
	in := f.in
	st := in.s.c.seat(s)
	if st == nil || st.leaving || !f.write || off < 0 || len(p) == 0 || len(p) > maxPiece || off%chunk.Size+int64(len(p)) > chunk.Size ||
		off > chunk.MaxFileSize-int64(len(p)) {
		return false
	}
	if !in.s.certain() || !in.s.c.patient() || in.behind.on.Load() || in.s.c.patience.left.Load() >= maxLeft {
		return false
	}
	hold := in.ranges.try(off/chunk.BlockSize, (off+int64(len(p))-1)/chunk.BlockSize, true)
	if hold == nil {
		return false
	}
	if from, _ := in.leftover(off); from < off || !in.layoutMu.TryRLock() {
		in.ranges.unlock(hold)
		return false
	}
	w := st.takeWrite()
	w.in, w.p, w.off, w.ender, w.hold, w.start = in, p, off, e, hold, time.Now()
	if w.begin() {
		st.under++
		return true
	}
	in.layoutMu.RUnlock()
	in.ranges.unlock(hold)
	w.free()
	return false
}

// begin sends the write to all replicas, if that can be done.
func (w *hotWrite) begin() bool {
	in := w.in
	piece := chunk.First(w.off, len(w.p))
	v := in.glance(piece.Index)
	if v.mode != msg.Mode_EXCLUSIVE_WRITE || v.loc == nil || len(v.loc.replicas) == 0 {
		return false
	}
	n := min(len(v.loc.replicas), maxReplicas)
	var conns [maxReplicas]*hotConn
	ready := true
	for i := range n {
		conns[i] = w.st.ready(in.s.servers.server(&v.loc.replicas[i]))
		ready = ready && conns[i] != nil
	}
	if !ready {
		return false
	}
	op := newDataOp(in, wire.Write, piece, w.p)
	if n > 1 && op.relays(v.loc) {
		in.s.c.uplink.forgo()
		op.free()
		return false
	}
	op.relay = inParallel
	w.loc, w.op = v.loc, op
	op.n = n
	op.req = wire.DataRequest{Chunk: v.loc.chunk, Session: in.s.id, Offset: piece.Offset, Length: piece.Length, Sums: op.req.Sums[:0]}
	if in.habit.writes() && op.ticket.window == 0 && durable(conns[:n]) { // one that is measured must not wait for disks
		op.req.Flags = wire.Durable
	}
	op.req.Sums = chunk.AppendSums(op.req.Sums, piece.Offset, w.p)
	op.body = op.req.Append(op.body[:0])
	in.s.changing.Add(1)
	in.uncache(v.loc, piece)
	op.sent = true
	w.left = 1
	now := time.Now()
	for i := range n {
		x := &w.parts[i]
		if x.begin(conns[i], wire.Write, v.loc.epoch, op.body, w.p, nil, now) {
			w.left++
		} else {
			x.h, x.srv, x.what, x.err = conns[i], conns[i].lane.srv, broken, fserr.Unavailable // nothing was sent; to owe for it does no harm
		}
	}
	w.st.l.SetTimer(&w.timer, nextLook(0, in.s.c.o.WriteTimeout))
	if w.left--; w.left == 0 {
		w.left = 1
		w.st.l.Post(&w.task) // end finds that none has it
	}
	return true
}

// exchanged takes the outcome of one replica.
func (w *hotWrite) exchanged(x *exchange) {
	met(&x.srv.met, x.start)
	if w.left--; w.left == 0 {
		w.settle()
	}
}

// late is called when it has taken long, and then again and again.
func (w *hotWrite) late() {
	s, timeout, waited := w.in.s, w.in.s.c.o.WriteTimeout, time.Since(w.start)
	for i := range w.op.n {
		x := &w.parts[i]
		if x.under && !x.late && (waited >= timeout || s.silent(x.srv, waited)) {
			x.giveUp()
		}
	}
	if w.left > 0 {
		w.st.l.SetTimer(&w.timer, nextLook(max(waited, min(timeout, doubtAfter)), timeout))
	}
}

// settle is called when every replica has answered, or will not.
func (w *hotWrite) settle() {
	in, op, loc := w.in, w.op, w.loc
	w.st.l.StopTimer(&w.timer)
	for i := range op.n {
		if x := &w.parts[i]; x.what != answered || x.code != fserr.OK {
			w.handOver()
			return
		}
	}
	if op.req.Flags&wire.Durable != 0 {
		in.s.c.hot.durable.Add(1)
	}
	op.measure()
	op.at = location{index: loc.index, chunk: loc.chunk, epoch: loc.epoch, lost: loc.lost}
	op.mode = msg.Mode_EXCLUSIVE_WRITE
	in.wrote(op, op.mode)
	in.layoutMu.RUnlock()
	op.free()
	in.ranges.unlock(w.hold)
	in.s.c.hot.writes.Add(1)
	met(&in.s.c.changes, w.start)
	w.n = len(w.p)
	w.end()
}

// end tells the caller. It is also the task by which what has ended in a goroutine comes back.
func (w *hotWrite) end() {
	if w.left > 0 { // no replica could be asked
		w.left = 0
		w.settle()
		return
	}
	st, e, n, err := w.st, w.ender, w.n, w.err
	w.free()
	e.Ended(n, err)
	st.ended()
}

// handOver makes the write a dataOp after its first attempt, and has a goroutine go on with it.
func (w *hotWrite) handOver() {
	in, op := w.in, w.op
	op.req.Flags = 0 // its flush is due, whoever has it on stable media
	for i := range op.n {
		x := &w.parts[i]
		t := &op.targets[i]
		*t = target{r: &w.loc.replicas[i], srv: x.srv, outcome: outcome{what: x.what, code: x.code, err: x.err}}
		if t.code == fserr.ReplicaFailed {
			t.code = fserr.Protocol // nothing was to be sent on
		}
		if x.what != answered {
			op.debts[op.nDebts] = hotDebt{lane: x.h.lane, n: x.h.number}
			op.nDebts++
		}
	}
	op.doubt()
	in.layoutMu.RUnlock()
	in.s.c.hot.writesLeft.Add(1)
	if !in.s.c.background(w.slow) {
		op.free()
		in.ranges.unlock(w.hold)
		w.n, w.err = 0, fserr.Stale
		w.end()
	}
}

// slow is the goroutine's way: what writeOnce does after a first attempt.
func (w *hotWrite) slow() {
	in, op := w.in, w.op
	ctx, cancel := w.st.context(w.ender, w.start)
	defer cancel()
	n := int64(len(w.p))
	pause, err := op.mend(ctx, w.loc)
	if err == nil && pause {
		var wait backoff
		err = wait.wait(ctx, in.s.ctx)
	}
	if err == nil {
		err = op.run(ctx)
	}
	if err = in.finish(ctx, w.hold, []*dataOp{op}, []error{err}, w.off, n, false); err == errCut {
		err = in.write(ctx, w.p, w.off, false)
	}
	w.n, w.err = len(w.p), err
	if err != nil {
		w.n = 0
	}
	w.st.l.Post(&w.task)
}
