package cs

import (
	"time"

	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// request is one request on a reactor. Reads, writes and flushes that the store can begin without waiting are done here: the ring
// reads, writes or syncs, and the answer leaves with the next turn. Whatever else is asked, or goes wrong, is left to the
// handler on a goroutine, whose answer comes back through wire.Link.
//
//	stage     waits for
//	atBody    the body of its frame, if that is large
//	atGate    the gate
//	atMemory  memory for its data
//	atData    its data
//	atDisk    the ring
//	atSync    the ring, once more: the write is to be on stable media
//	atSend    its answer to be sent
//	aside     a goroutine
//
// Invariant: between wire.Conn's Begin and End, which enclose all from when the body is there, its memory is not used for another
// request, and the store and the arena stay open.
type request struct {
	grant // what it holds of the gate and of memory
	d     *dataConn
	frame wire.Frame
	size  int    // of data
	body  []byte // memory for small bodies; its capacity is none that wire would pool
	data  []byte // of memory
	stage stage
	next  *request
	task  reactor.Task // posted by who had it wait

	start time.Time
	req   wire.DataRequest
	sums  []uint32 // of an answer
	op    reactor.Op
	file  reactor.File
	read  store.ReadOp
	write store.WriteOp
	flush store.FlushOp
	code  fserr.Code
	head  []byte
	send  reactor.Send
}

type stage uint8

const (
	atBody stage = iota
	atGate
	atMemory
	atData
	atDisk
	atSync
	atSend
	aside
)

// maxDataBody is the longest body of a data request: its header, and the checksum of each block that its data may touch.
const maxDataBody = 64 + 4*(wire.MaxData/chunk.BlockSize+1)

// take returns memory for a request.
func (l *dataLoop) take(d *dataConn) *request {
	q := l.free
	if q == nil {
		q = new(request)
		q.carried = q
		q.task.Run, q.op.Done, q.send.Done = q.wake, q.transferred, q.sent
	} else {
		l.free = q.next
		l.spare--
	}
	q.d, q.next = d, nil
	return q
}

// put gives the memory of a request back.
func (l *dataLoop) put(q *request) {
	q.d, q.frame = nil, wire.Frame{}
	if l.spare < maxSpare {
		q.next, l.free = l.free, q
		l.spare++
	}
}

// keep copies a body that is the reactor's.
func (q *request) keep(body []byte) {
	switch {
	case len(body) > maxDataBody:
		q.frame.Body = wire.Buffer(len(body))
		copy(q.frame.Body, body)
		return
	case cap(q.body) < len(body) && len(body) <= 256:
		q.body = make([]byte, 0, 256)
	case cap(q.body) < len(body):
		q.body = make([]byte, 0, maxDataBody)
	}
	q.body = append(q.body[:0], body...)
	q.frame.Body = q.body
}

// drop ends a request of which the body is not there, or wrong.
func (q *request) drop() {
	wire.Recycle(q.frame.Body)
	q.d.loop.put(q)
}

// end gives back all that a request holds. Preconditions: nobody uses any of it.
func (q *request) end() {
	q.giveBack(q.data)
	q.data = nil
	wire.Recycle(q.frame.Body) // unless it is q.body
	w := q.d.w
	q.d.loop.put(q)
	w.End()
}

// released is called when the goroutine that handled the request has released it, and what it held is given back.
func (q *request) released() {
	q.data = nil
	q.d.loop.Post(&q.task)
}

// wake is the request's task.
func (q *request) wake() {
	switch q.stage {
	case atGate, atMemory:
		q.d.woken(q)
	case aside:
		q.d.done(q)
	case atDisk, atSync:
		q.answer()
	}
}

// delegate has a goroutine handle the request.
func (q *request) delegate() {
	q.stage = aside
	q.frame.Data, q.frame.Grant = q.data, &q.grant
	q.d.w.Handle(&q.frame)
}

// try begins the request, if that is possible without waiting.
func (q *request) try() bool {
	s, r := q.d.s, &q.req
	switch q.frame.Type {
	case wire.Read, wire.Write, wire.Flush:
	default:
		return false
	}
	if r.Decode(q.frame.Body) != nil {
		return false
	}
	q.frame.Data = q.data
	if permit(q.d.peer, &q.frame, r) != fserr.OK || r.Flags&wire.Ordered != 0 && q.frame.Type != wire.Read || r.Flags&wire.Settled != 0 || s.closing.Load() || !s.lease.enter() {
		return false
	}
	if !s.fences.enter(r.Session) {
		s.lease.leave()
		return false
	}
	q.start = time.Now()
	q.stage = atDisk
	begun := false
	switch q.frame.Type {
	case wire.Read:
		begun = q.tryRead()
	case wire.Write:
		begun = q.tryWrite()
	case wire.Flush:
		begun = q.tryFlush()
	}
	if !begun {
		q.leave()
		return false
	}
	q.d.loop.tried.Add(1)
	return true
}

// leave undoes the entering of try.
func (q *request) leave() {
	q.d.s.fences.leave(q.req.Session)
	q.d.s.lease.leave()
}

func (q *request) tryRead() bool {
	s, r := q.d.s, &q.req
	blocks := int(r.Length / chunk.BlockSize)
	if cap(q.sums) < blocks {
		q.sums = make([]uint32, blocks)
	}
	q.sums = q.sums[:blocks]
	if q.grant.answer = q.memory.Get(int(r.Length)); q.grant.answer == nil {
		return false
	}
	if !s.store.TryRead(&q.read, r.Chunk, q.frame.Epoch, r.Offset, r.Length, q.sums) {
		q.memory.Put(q.grant.answer)
		q.grant.answer = nil
		return false
	}
	if q.read.From == q.read.To {
		q.finishRead()
		return true
	}
	q.file = q.d.loop.File(q.read.FD)
	q.file.Read(&q.op, q.grant.answer[q.read.From:q.read.To], q.read.Offset)
	return true
}

func (q *request) tryWrite() bool {
	s, r := q.d.s, &q.req
	if r.Seq != 0 {
		if now, _ := s.orders.admit(r); !now {
			return false
		}
	}
	if !s.store.TryWrite(&q.write, r.Chunk, q.frame.Epoch, r.Offset, q.data, r.Sums) {
		if r.Seq != 0 {
			s.orders.release()
		}
		return false
	}
	s.stats.writes.Add(1)
	s.stats.writeBytes.Add(uint64(len(q.data)))
	q.file = q.d.loop.File(q.write.FD)
	q.file.Write(&q.op, q.data, q.write.Offset)
	return true
}

func (q *request) tryFlush() bool {
	s, r := q.d.s, &q.req
	begun, ok := s.store.TryFlush(&q.flush, r.Chunk, q.frame.Epoch)
	if !ok {
		return false
	}
	s.stats.flushes.Add(1)
	if !begun {
		q.finish(nil)
		return true
	}
	q.file = q.d.loop.File(q.flush.FD)
	q.file.Sync(&q.op)
	return true
}

// written ends the disk's part of a write, or begins to sync it.
func (q *request) written(err error) {
	if err != nil || q.req.Flags&wire.Durable == 0 {
		q.finish(err)
		return
	}
	q.stage = atSync
	if !q.tryFlush() { // another flush of the chunk is under way
		go func() {
			s := q.d.s
			s.stats.flushes.Add(1)
			q.conclude(s.store.Flush(q.req.Chunk, q.frame.Epoch))
		}()
	}
}

// transferred is called when the ring is done.
func (q *request) transferred(n int, err error) {
	switch {
	case q.frame.Type == wire.Read && err != nil:
		// What is wrong with the disk the store finds out by itself.
		q.read.Abort()
		q.leave()
		q.memory.Put(q.grant.answer)
		q.grant.answer = nil
		if q.d.ended {
			q.d.done(q)
			return
		}
		q.delegate()
	case q.frame.Type == wire.Read:
		q.finishRead()
	case q.frame.Type == wire.Write && q.req.Seq != 0:
		go q.concludeNoted(n, err)
	case err != nil: // the store may have to use the disk, which must not be waited for here
		go func() {
			if q.frame.Type == wire.Write && q.stage == atDisk {
				q.conclude(q.rewritten(n, err))
			} else {
				q.conclude(q.flush.Finish(err))
			}
		}()
	case q.frame.Type == wire.Write && q.stage == atDisk:
		q.written(q.write.Finish(n, nil))
	default:
		q.finish(q.flush.Finish(nil))
	}
}

// finishRead ends a read whose data is there. If it is to be on all replicas first, a goroutine sees to that.
func (q *request) finishRead() {
	s, r := q.d.s, &q.req
	err := q.read.Finish(q.grant.answer)
	if err != nil || r.Flags&wire.Ordered == 0 || !s.orders.loose(r.Chunk, q.frame.Epoch, r.Offset, r.Offset+r.Length) {
		q.finish(err)
		return
	}
	q.leave()
	q.memory.Put(q.grant.answer)
	q.grant.answer = nil
	if q.d.ended {
		q.d.done(q)
		return
	}
	q.delegate()
}

// rewritten ends a write that the ring could not do, on a goroutine.
func (q *request) rewritten(n int, err error) error {
	s := q.d.s
	if err = q.write.Finish(n, err); err == nil && q.req.Flags&wire.Durable != 0 {
		s.stats.flushes.Add(1)
		err = s.store.Flush(q.req.Chunk, q.frame.Epoch)
	}
	return err
}

// concludeNoted ends a write that another server has forwarded and that is to be remembered.
func (q *request) concludeNoted(n int, err error) {
	s := q.d.s
	err = q.write.FinishThen(n, err, func() error { return s.took(q.frame.Epoch, &q.req) })
	s.orders.release()
	q.conclude(err)
}

// finish ends the disk's part with an outcome.
func (q *request) finish(err error) {
	if err != nil {
		go q.conclude(err) // to see whether the disk is in order may have to wait
		return
	}
	q.leave()
	q.code = fserr.OK
	q.answer()
}

// conclude is finish on a goroutine.
func (q *request) conclude(err error) {
	s := q.d.s
	q.leave()
	if q.frame.Type == wire.Read {
		err = s.rot(q.req.Chunk, err)
	}
	q.code = s.code(err)
	q.d.loop.Post(&q.task)
}

// answer sends the answer.
func (q *request) answer() {
	s := q.d.s
	q.stage = atSend
	var sums []uint32
	q.send.Body = nil
	switch {
	case q.code != fserr.OK:
		s.stats.errors.Add(1)
	case q.frame.Type == wire.Read:
		s.stats.reads.Add(1)
		s.stats.readBytes.Add(uint64(q.req.Length))
		sums, q.send.Body = q.sums, q.grant.answer
	}
	s.stats.observe(q.Class, time.Since(q.start))
	q.head = q.frame.AppendAnswer(q.head[:0], q.code, sums, len(q.send.Body))
	q.send.Head = q.head
	if err := q.d.conn.Send(&q.send); err != nil {
		q.d.conn.Close(err) // if it is not closed already
		q.sent(err)
	}
}

// sent is called when the answer has left, or never will.
func (q *request) sent(error) {
	q.send.Body = nil
	q.d.done(q)
}
