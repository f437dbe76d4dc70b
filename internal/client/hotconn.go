package client

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/records"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

const (
	// hotSlots bounds the requests under way on one connection: a server handles so many at once, and does not read on before one has ended.
	hotSlots = 256
	// maxHotBody bounds the body of an answer in bytes: the checksums of a read.
	maxHotBody = 4 * (maxPiece/chunk.BlockSize + 2)
	// trashSize is the memory into which data is received that nobody waits for.
	trashSize = 64 << 10
)

// hotConn is a connection to a chunk server on a reactor. All but shut is done on its thread.
type hotConn struct {
	lane   *hotLane
	st     *seat
	number uint64 // among those of its lane

	fd      int
	taken   *records.Taken // nil once it is adopted
	keys    wire.Keys
	peer    string // serial number of the server's certificate, "" if the cluster is insecure
	read    []byte // came with the hello
	adopt   reactor.Task
	end     reactor.Task
	closing atomic.Bool // end was posted

	local, remote netip.AddrPort

	c          records.Conn // nil before it is adopted, and if it never was
	prev, next *hotConn     // of the seat

	slots [hotSlots]hotSlot
	free  int32        // the first free slot, -1: none
	busy  atomic.Int32 // slots that are not

	cur   *exchange // whose data is being received; nil: nobody's, if trash is above 0
	trash int       // bytes of data to come that nobody waits for
	bin   []byte
}

// hotSlot is a place in the table of requests under way. A request's number holds that of its place and how often the place was used before.
type hotSlot struct {
	x    *exchange
	uses uint64
	next int32 // free
}

var _ reactor.Handler = (*hotConn)(nil)

func newHotConn(lane *hotLane, st *seat, number uint64, taken *records.Taken, read []byte, keys wire.Keys) *hotConn {
	h := &hotConn{lane: lane, st: st, number: number, fd: taken.FD, taken: taken, read: read, keys: keys}
	h.adopt.Run, h.end.Run = h.start, h.stop
	for i := range h.slots {
		h.slots[i].next = int32(i) + 1
	}
	h.slots[hotSlots-1].next = -1
	return h
}

// start takes the socket over.
func (h *hotConn) start() {
	var err error = fserr.Unavailable
	if !h.st.leaving {
		h.c, err = h.taken.Adopt(h.st.l, h, h.read)
	}
	if err != nil {
		h.c = nil
		unix.Close(h.fd)
		h.lane.cur.CompareAndSwap(h, nil)
		return
	}
	h.c.SendLimit(1 << 30) // what is queued is bounded by hotSlots, and answers must be read whatever is yet to be sent
	if h.next = h.st.conns; h.next != nil {
		h.next.prev = h
	}
	h.st.conns, h.lane.conn = h, h
	h.taken, h.read = nil, nil
	if h.closing.Load() {
		h.c.Close(nil)
	}
}

// shut ends the connection soon. Any goroutine may call it.
func (h *hotConn) shut() {
	if !h.closing.Swap(true) {
		h.st.l.Post(&h.end)
	}
}

func (h *hotConn) stop() {
	if h.c != nil {
		h.c.Close(nil)
	}
}

// OnData implements reactor.Handler: it takes one answer up to its data.
func (h *hotConn) OnData(_ *reactor.Conn, p []byte) int {
	c := h.c
	if len(p) < wire.HeaderSize {
		c.Need(wire.HeaderSize)
		return 0
	}
	a, err := wire.DecodeAnswer(p, h.keys.Receive)
	if err == nil && a.Body > maxHotBody {
		err = fmt.Errorf("answer with a body of %d bytes, want %d at most: %w", a.Body, maxHotBody, fserr.Protocol)
	}
	if err != nil {
		c.Close(err)
		return 0
	}
	n := wire.HeaderSize + a.Body
	if len(p) < n {
		c.Need(n)
		return 0
	}
	body := p[wire.HeaderSize:n]
	x := h.find(a.ID)
	if err = a.CheckBody(body); err == nil && x != nil && a.Type != x.typ {
		err = fmt.Errorf("answer of type %d to a request of type %d: %w", a.Type, x.typ, fserr.Protocol)
	}
	if err != nil {
		c.Close(err)
		return 0
	}
	switch {
	case x == nil: // it was given up, or this is the second answer
	case a.Code != fserr.OK || x.typ != wire.Read:
		x.code = a.Code
		x.finish(answered, nil)
	case a.Data != len(x.dst) || a.Body != 4*(len(x.dst)/chunk.BlockSize):
		x.code = fserr.Protocol
		x.finish(answered, nil)
	default:
		x.code, x.sums = fserr.OK, wire.DecodeSums(x.sums[:0], body)
		h.cur = x
		c.Fill(x.dst)
		return n
	}
	if a.Data > 0 {
		h.trash = a.Data
		h.skip()
	}
	return n
}

// skip receives data that nobody waits for.
func (h *hotConn) skip() {
	if h.bin == nil {
		h.bin = make([]byte, trashSize)
	}
	h.c.Fill(h.bin[:min(h.trash, len(h.bin))])
}

// OnFilled implements reactor.Handler.
func (h *hotConn) OnFilled(_ *reactor.Conn, p []byte) {
	if x := h.cur; x != nil {
		h.cur = nil
		x.finish(answered, nil)
		return
	}
	if h.trash -= len(p); h.trash > 0 {
		h.skip()
	}
}

// OnDrain implements reactor.Handler.
func (h *hotConn) OnDrain(*reactor.Conn) {}

// OnClose implements reactor.Handler: no memory of a request is the kernel's any more.
func (h *hotConn) OnClose(_ *reactor.Conn, err error) {
	st := h.st
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		st.conns = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	}
	if h.lane.conn == h {
		h.lane.conn = nil
	}
	h.lane.cur.CompareAndSwap(h, nil)
	h.cur = nil
	for i := range h.slots {
		if x := h.slots[i].x; x != nil {
			how := broken
			if x.late {
				how = slow
			}
			x.finish(how, err)
		}
	}
	st.settle()
}

// find returns the request of a number, nil if it is not under way.
func (h *hotConn) find(number uint64) *exchange {
	s := &h.slots[number%hotSlots]
	if s.x == nil || s.x.number != number {
		return nil
	}
	return s.x
}

// exchange is one request on a connection, and its answer. Its owner embeds it and sets owner once.
type exchange struct {
	owner interface {
		// exchanged is told that the request is over: what says how, and no memory of it is the connection's any more. It is not called
		// before start has returned.
		exchanged(x *exchange)
	}
	h      *hotConn
	srv    *server
	typ    wire.Type
	number uint64
	start  time.Time
	send   reactor.Send
	leaves bool // it is queued, or being sent
	head   []byte
	dst    []byte // Read: where its data goes
	late   bool   // it has taken too long, and the connection is being closed for it

	under bool   // begun and not over
	what  result // unsent until it has ended
	code  fserr.Code
	err   error
	sums  []uint32 // Read: of the answer
}

// begin sends a request. data, and dst of a read, are the exchange's until it is over. It reports false if nothing was done.
func (x *exchange) begin(h *hotConn, typ wire.Type, epoch id.Epoch, body, data, dst []byte, now time.Time) bool {
	if h.free < 0 {
		return false
	}
	i := h.free
	s := &h.slots[i]
	x.h, x.srv, x.typ, x.dst, x.start = h, h.lane.srv, typ, dst, now
	x.number = s.uses*hotSlots + uint64(i)
	x.late, x.under, x.leaves, x.what, x.code, x.err = false, true, true, unsent, fserr.OK, nil
	x.head = wire.AppendRequest(x.head[:0], typ, wire.ClassGuest, epoch, x.number, body, len(data), h.keys.Send)
	x.send.Head, x.send.Body = x.head, data
	if x.send.Done == nil {
		x.send.Done = x.sent
	}
	if err := h.c.Send(&x.send); err != nil {
		x.under, x.leaves, x.send.Body, x.dst = false, false, nil, nil
		h.c.Close(err) // a request that cannot be queued says that the server takes none
		return false
	}
	h.free, s.x = s.next, x
	h.busy.Add(1)
	return true
}

// sent is called when the request has left, or never will: then the end of the connection follows.
func (x *exchange) sent(error) {
	x.leaves = false
	x.settle()
}

// finish notes how the request ended.
func (x *exchange) finish(what result, err error) {
	h := x.h
	i := int32(x.number % hotSlots)
	s := &h.slots[i]
	s.x = nil
	s.uses++
	s.next, h.free = h.free, i
	h.busy.Add(-1)
	x.what, x.err = what, err
	x.settle()
}

// settle tells the owner when all has ended.
func (x *exchange) settle() {
	if !x.under || x.what == unsent || x.leaves {
		return
	}
	x.under, x.send.Body, x.dst = false, nil, nil
	x.owner.exchanged(x)
}

// giveUp ends a request that has taken too long, soon: one that changes nothing at once, unless its memory is in use.
func (x *exchange) giveUp() {
	switch {
	case !x.under || x.what != unsent:
		if x.under { // answered before all of it was sent, which never ends by itself
			x.h.c.Close(fmt.Errorf("request not taken: %w", fserr.Timeout))
		}
	case x.typ != wire.Write && x.h.cur != x && !x.leaves:
		x.finish(slow, fserr.Timeout)
	default:
		x.late = true
		x.h.c.Close(fmt.Errorf("no answer in time: %w", fserr.Timeout))
	}
}
