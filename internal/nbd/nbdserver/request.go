package nbdserver

import (
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/iouring/reactor"
)

// maxExtents bounds a block status; clients ask again from where it ends.
const maxExtents = 512

// request is one request, from its head until its answer has left. Those of a thread are used again.
type request struct {
	d    *conn
	r    nbd.Request
	size int    // of payload, either way
	buf  []byte // memory of the loop's, nil: none
	op   block.Op
	send reactor.Send
	head [64]byte
	body []byte // of a block status
	next *request
}

// take returns a request for a connection.
func (l *loop) take(d *conn) *request {
	q := l.free
	if q == nil {
		q = &request{}
		q.op.Done = q.done
		q.send.Done = q.sent
	} else {
		l.free, q.next = q.next, nil
	}
	q.d = d
	return q
}

// drop ends a request that has no answer to give, or whose answer has left.
func (q *request) drop() {
	d := q.d
	l := d.l
	if q.buf != nil {
		d.held -= cap(q.buf)
		l.Put(q.buf)
		q.buf = nil
	}
	q.d, q.send.Head, q.send.Body = nil, nil, nil
	q.next, l.free = l.free, q
	d.underWay--
	if d.ended {
		d.finish()
	} else {
		d.resume()
		d.wound()
	}
	l.feed()
}

// commandFlags are those that a command may have, by its number.
var commandFlags = [...]uint16{
	nbd.CmdRead: nbd.FlagDF | nbd.FlagFUA, nbd.CmdWrite: nbd.FlagFUA, nbd.CmdFlush: nbd.FlagFUA, nbd.CmdTrim: nbd.FlagFUA, nbd.CmdCache: nbd.FlagFUA,
	nbd.CmdWriteZeroes: nbd.FlagFUA | nbd.FlagNoHole | nbd.FlagFastZero, nbd.CmdBlockStatus: nbd.FlagReqOne | nbd.FlagFUA,
}

func changes(c nbd.Command) bool {
	return c == nbd.CmdWrite || c == nbd.CmdTrim || c == nbd.CmdWriteZeroes
}

// check returns why a request is refused, 0 if it is not.
func (q *request) check() nbd.Errno {
	r, d := &q.r, q.d
	ok := int(r.Command) < len(commandFlags) && r.Command != nbd.CmdDisconnect
	changes := changes(r.Command)
	beyond := r.Offset > d.offer.Size || uint64(r.Length) > d.offer.Size-r.Offset
	switch {
	case !ok || r.Flags&^commandFlags[r.Command] != 0 || r.Flags&nbd.FlagDF != 0 && !d.structured:
		return nbd.EINVAL
	case changes && d.offer.Flags&nbd.ReadOnly != 0:
		return nbd.EPERM
	case r.Command == nbd.CmdFlush:
		return 0
	case beyond && (r.Command == nbd.CmdWrite || r.Command == nbd.CmdWriteZeroes):
		return nbd.ENOSPC
	case beyond || r.Command == nbd.CmdRead && r.Length > nbd.MaxPayload:
		return nbd.EINVAL
	case r.Command == nbd.CmdBlockStatus && (d.status == nil || r.Length == 0):
		return nbd.EINVAL
	case r.Command == nbd.CmdWriteZeroes && r.Flags&nbd.FlagFastZero != 0 && r.Flags&nbd.FlagNoHole != 0:
		return nbd.ENOTSUP // zeros would have to be written
	}
	return 0
}

// start carries a request out.
func (d *conn) start(q *request) {
	if e := q.check(); e != 0 {
		q.fail(e)
		return
	}
	r, op := &q.r, &q.op
	if changes(r.Command) && d.gone() {
		d.close(errGone)
		q.drop()
		return
	}
	op.FUA, op.NoHole = r.Flags&nbd.FlagFUA != 0, r.Flags&nbd.FlagNoHole != 0
	op.P, op.Off, op.N = q.buf, int64(r.Offset), int64(r.Length)
	switch r.Command {
	case nbd.CmdRead:
		op.Kind = block.Read
	case nbd.CmdWrite:
		op.Kind = block.Write
	case nbd.CmdFlush:
		op.Kind = block.Flush
	case nbd.CmdTrim:
		op.Kind = block.Trim
	case nbd.CmdWriteZeroes:
		op.Kind = block.Zero
	case nbd.CmdCache:
		op.Kind = block.Cache
	case nbd.CmdBlockStatus:
		op.Kind = block.Status
		n := maxExtents
		if r.Flags&nbd.FlagReqOne != 0 {
			n = 1
		}
		if cap(op.Extents) != n {
			op.Extents = make([]block.Extent, 0, n)
		}
	}
	if r.Length == 0 && r.Command != nbd.CmdFlush {
		q.done(nil)
		return
	}
	d.open.disk.Start(d.l.Loop, op)
}

// done is told the outcome.
func (q *request) done(err error) {
	d := q.d
	if d.open.disk.Dead() {
		// Who comes again finds the image opened anew. Nothing is acknowledged from here on.
		d.close(errLost)
	}
	if err != nil {
		if now := time.Now(); !d.ended && now.Sub(d.logged) >= time.Second {
			d.logged = now
			d.l.s.log.Warn("a request failed", "export", d.open.e.name, "command", q.r.Command, "offset", q.r.Offset, "length", q.r.Length, "err", err)
		}
		q.fail(errno(err))
		return
	}
	r := &q.r
	switch {
	case r.Command == nbd.CmdRead && d.structured && r.Length == 0:
		q.reply(nbd.AppendChunk(q.head[:0], nbd.ReplyDone, nbd.ChunkNone, r.Cookie, 0), nil)
	case r.Command == nbd.CmdRead && d.structured:
		q.reply(nbd.AppendData(q.head[:0], r.Cookie, r.Offset, len(q.buf)), q.buf)
	case r.Command == nbd.CmdRead:
		q.reply(nbd.AppendSimple(q.head[:0], 0, r.Cookie), q.buf)
	case r.Command == nbd.CmdBlockStatus:
		q.reply(q.extents(), nil)
	default:
		q.reply(nbd.AppendSimple(q.head[:0], 0, r.Cookie), nil)
	}
}

// extents makes the reply to a block status.
func (q *request) extents() []byte {
	out := make([]nbd.Extent, 0, len(q.op.Extents))
	for _, e := range q.op.Extents {
		x := nbd.Extent{Length: uint32(e.Length)} // as long as the request at most
		if e.Hole {
			x.Flags = nbd.ExtentHole | nbd.ExtentZero
		}
		out = append(out, x)
	}
	q.body = nbd.AppendStatus(q.body[:0], q.r.Cookie, statusContext, out)
	return q.body
}

// fail answers with an error.
func (q *request) fail(e nbd.Errno) {
	if q.d.structured && (q.r.Command == nbd.CmdRead || q.r.Command == nbd.CmdBlockStatus) {
		q.reply(nbd.AppendErrorChunk(q.head[:0], e, q.r.Cookie), nil)
		return
	}
	q.reply(nbd.AppendSimple(q.head[:0], e, q.r.Cookie), nil)
}

// reply sends an answer; the request's memory is free when it has left.
func (q *request) reply(head, body []byte) {
	if body == nil && q.buf != nil { // of a write
		q.d.held -= cap(q.buf)
		q.d.l.Put(q.buf)
		q.buf = nil
	}
	q.send.Head, q.send.Body = head, body
	if err := q.d.c.Send(&q.send); err != nil {
		q.drop()
	}
}

// sent is told that the answer has left, or never will.
func (q *request) sent(error) { q.drop() }
