package client

import (
	"fmt"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// hotRead is a read on a reactor. From begin to done or leave it holds its blocks and layoutMu, as read and readPiece do.
//
//	begin -> fromDisk -> done            a chunk file of this host
//	      |           -> fromServer ...  the file does not count now
//	      -> fromServer -> done          a replica, over the network
//	                    -> leave         it has failed: slow reads all of it again, in a goroutine
type hotRead struct {
	st    *seat
	next  *hotRead
	ender hot.Ender
	in    *inode
	all   []byte // the caller's
	off   int64
	p     []byte // of these, those before the end of the file
	start time.Time

	hold      *rangeHold // nil: it holds nothing any more
	loc       *location
	pc, whole chunk.Piece
	at        int // of the replicas
	srv       *server

	disk   *hotDisk   // that is under way
	cached *hotCached // or this
	x      exchange
	body   []byte
	bounce []byte // where the blocks go, if not into p
	dst    []byte
	timer  reactor.Timer

	n    int
	err  error
	task reactor.Task
	left bool       // it goes on, or went on, in a goroutine
	code fserr.Code // why
}

func (st *seat) takeRead() *hotRead {
	op := st.reads
	if op == nil {
		op = &hotRead{st: st}
		op.x.owner = op
		op.task.Run, op.timer.Fire = op.end, op.late
		return op
	}
	st.reads, op.next = op.next, nil
	st.spare[0]--
	return op
}

func (op *hotRead) free() {
	wire.Recycle(op.bounce)
	op.ender, op.in, op.all, op.p, op.loc, op.srv, op.bounce, op.dst, op.err, op.left = nil, nil, nil, nil, nil, nil, nil, nil, nil, false
	if st := op.st; st.spare[0] < maxSpare {
		op.next, st.reads = st.reads, op
		st.spare[0]++
	}
}

// BeginRead implements hot.File.
func (f *File) BeginRead(s hot.Seat, p []byte, off int64, e hot.Ender) bool {
	in := f.in
	st := in.s.c.seat(s)
	if st == nil || st.leaving || off < 0 || len(p) == 0 || len(p) > maxPiece || off%chunk.Size+int64(len(p)) > chunk.Size || off >= chunk.MaxFileSize {
		return false
	}
	if !in.s.certain() || !in.s.c.patient() || in.behind.on.Load() {
		return false
	}
	there, coming := in.copyAhead(atOnce, p, off)
	if coming {
		return false
	}
	if there {
		op := st.takeRead()
		op.in, op.all, op.off, op.ender, op.start, op.n = in, p, off, e, time.Now(), len(p)
		op.begun()
		st.l.Post(&op.task)
		return true
	}
	hold := in.ranges.try(off/chunk.BlockSize, (off+int64(len(p))-1)/chunk.BlockSize, false)
	if hold == nil {
		return false
	}
	if !in.layoutMu.TryRLock() {
		in.ranges.unlock(hold)
		return false
	}
	op := st.takeRead()
	op.in, op.all, op.off, op.ender, op.hold, op.start = in, p, off, e, hold, time.Now()
	if op.begin() {
		op.begun()
		return true
	}
	op.release()
	op.free()
	return false
}

// begun notes a read that has begun.
func (op *hotRead) begun() {
	op.st.under++
	op.in.ahead.reading.Add(1)
	op.in.noteRead(op.off, int64(len(op.all)))
}

// begin finds out what to read, and begins with it.
func (op *hotRead) begin() bool {
	in := op.in
	v := in.glance(uint32(op.off / chunk.Size))
	if v.mode != msg.Mode_EXCLUSIVE_WRITE && (v.mode != msg.Mode_SHARED_READ || !v.sizeKnown) {
		return false
	}
	if op.off >= v.size {
		op.n = 0
		return op.st.l.Post(&op.task)
	}
	op.p = op.all[:min(int64(len(op.all)), v.size-op.off)]
	if !v.known {
		return false
	}
	if v.loc == nil { // a hole
		clear(op.p)
		op.n = len(op.p)
		return op.st.l.Post(&op.task)
	}
	op.loc = v.loc
	op.pc = chunk.First(op.off, len(op.p))
	op.whole = wholeBlocks(op.pc)
	if op.at = in.choose(v.loc, 0); op.at < 0 {
		return false
	}
	op.srv = in.s.servers.server(&v.loc.replicas[op.at])
	begun, wait := op.fromCache()
	if wait || !begun && !op.fromDisk(op.srv) && !op.fromServer() {
		return false
	}
	patience := in.s.c.o.ReadTimeout
	if d := in.s.c.o.Timeout; d > 0 {
		patience = min(patience, d)
	}
	op.st.l.SetTimer(&op.timer, patience)
	return true
}

// fromServer asks the replica for the blocks.
func (op *hotRead) fromServer() bool {
	h := op.st.ready(op.srv)
	if h == nil {
		return false
	}
	in, n := op.in, int(op.whole.Length)
	switch {
	case op.pc.Offset == op.whole.Offset && n <= len(op.all):
		op.dst = op.all[:n]
	default:
		if op.bounce == nil {
			op.bounce = wire.Buffer(n)
		}
		op.dst = op.bounce
	}
	req := wire.DataRequest{Chunk: op.loc.chunk, Session: in.s.id, Offset: op.whole.Offset, Length: op.whole.Length}
	op.body = req.Append(op.body[:0])
	if !op.x.begin(h, wire.Read, op.loc.epoch, op.body, nil, op.dst, time.Now()) {
		return false
	}
	op.srv.inFlight.Add(1)
	return true
}

// exchanged takes the answer of the replica.
func (op *hotRead) exchanged(x *exchange) {
	op.srv.inFlight.Add(-1)
	met(&op.srv.met, x.start)
	switch {
	case x.what == slow:
		op.leave(fmt.Errorf("read from %v: %w", op.srv.id, fserr.Timeout))
	case x.what != answered:
		op.leave(fmt.Errorf("read from %v: %w: %w", op.srv.id, fserr.Unavailable, x.err))
	case x.code != fserr.OK:
		op.leave(fmt.Errorf("read from %v: %w", op.srv.id, x.code))
	default:
		if bad := chunk.VerifySums(x.sums, op.whole.Offset, op.dst); bad >= 0 {
			op.leave(fmt.Errorf("read from %v: chunk %v block %d: %w", op.srv.id, op.loc.chunk, int(op.whole.Offset/chunk.BlockSize)+bad, fserr.BadChecksum))
			return
		}
		op.in.cache(op.loc, op.whole, op.dst, x.sums)
		if op.bounce != nil {
			copy(op.p, op.bounce[op.pc.Offset-op.whole.Offset:])
		}
		op.done(len(op.p))
	}
}

// late is called when it has taken too long.
func (op *hotRead) late() {
	if d := op.cached; d != nil {
		op.cached = nil
		d.abandon()
		op.leave(nil)
		return
	}
	if d := op.disk; d != nil {
		d.abandon()
		op.disk = nil
		op.in.s.c.localReads.failed.Add(1)
		op.leave(fmt.Errorf("read the file of %v: %w", op.srv.id, fserr.Timeout))
		return
	}
	op.x.giveUp()
}

// release gives back what keeps others waiting.
func (op *hotRead) release() {
	if op.hold == nil {
		return
	}
	op.st.l.StopTimer(&op.timer)
	op.in.layoutMu.RUnlock()
	op.in.ranges.unlock(op.hold)
	op.hold = nil
}

// done ends the read here. p has n bytes.
func (op *hotRead) done(n int) {
	op.n = n
	op.end()
}

// end tells the caller. It is also the task by which what ends in a goroutine, or at once, comes back.
func (op *hotRead) end() {
	c := op.in.s.c
	if !op.left {
		c.hot.reads.Add(1)
		met(&c.reads, op.start)
		op.release()
	}
	op.in.ahead.reading.Add(-1)
	st, e, n, err := op.st, op.ender, op.n, op.err
	op.free()
	e.Ended(n, err)
	st.ended()
}

// leave has a goroutine read all of it, since what was tried here has failed with err. nil: it cannot be tried here now.
func (op *hotRead) leave(err error) {
	in := op.in
	op.left, op.code = true, fserr.Of(err)
	switch op.code {
	case fserr.OK:
	case fserr.StaleEpoch, fserr.NoChunk:
		in.forgetLayout()
	case fserr.BadChecksum, fserr.IO:
		in.elsewhere(op.loc, op.srv.id, err)
	}
	if op.code != fserr.OK && op.code != fserr.StaleEpoch {
		op.srv.avoid()
	}
	op.release()
	in.s.c.hot.readsLeft.Add(1)
	if !in.s.c.background(op.slow) {
		op.n, op.err = 0, fserr.Stale
		op.end()
	}
}

// slow is the goroutine's way.
func (op *hotRead) slow() {
	s := op.in.s
	if gone(op.code) {
		s.kill(op.code)
	}
	ctx, cancel := op.st.context(op.ender, op.start)
	defer cancel()
	op.in.ahead.reading.Add(-1) // read counts it
	op.n, op.err = op.in.read(ctx, op.all, op.off)
	op.in.ahead.reading.Add(1)
	op.st.l.Post(&op.task)
}

// glanced is what an operation on a reactor wants to know of an inode.
type glanced struct {
	mode      msg.Mode
	size      int64
	sizeKnown bool
	loc       *location
	known     bool // the location
}

// glance looks, with layoutMu held.
func (in *inode) glance(index uint32) (v glanced) {
	in.mu.Lock()
	v.mode, v.size, v.sizeKnown = in.mode, in.size, in.sizeKnown
	v.loc, v.known = in.lookupLocked(index)
	in.mu.Unlock()
	return v
}
