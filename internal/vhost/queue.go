package vhost

import (
	"fmt"

	"golang.org/x/sys/unix"

	"varve/iouring/reactor"
)

// queue is one split virtqueue. Everything is used on its loop's thread; the device's goroutine asks there.
//
//	available ring: 0 2 flags  2 2 index  4 each 2 head   then 2 used event
//	used ring:      0 2 flags  2 2 index  4 each: 4 head 4 bytes written   then 2 available event
type queue struct {
	d     *device
	l     *loop
	index int

	num       uint16
	addr      ringAddr
	base      uint16
	kick      int // descriptors; -1: none
	call, err int
	disabled  bool

	running           bool // requests are taken
	begun             bool // it has run before, for this front end
	broken            error
	t                 *table // held while the ring is known
	desc, avail, used []byte
	lastAvail         uint16 // how far the available ring was read
	usedIndex         uint16
	log               inflight
	dirty             *dirtyLog // where what is written is logged; nil: nowhere
	unlogged          bool      // it is to be logged and there is no log yet: nothing is begun
	forgotten         bool      // what another process has logged may not have been seen: all memory counts as written
	reqs              []*req    // by head
	underWay          int
	again             []uint16 // heads that were under way in another process and are to be begun, also while the queue is stopped or disabled
	waiting           *req     // for memory: nothing is taken before it is begun

	poll    reactor.Op
	polling bool
	more    reactor.Task // goes on where serve stopped to let others have their turn
	posted  bool         // more is
	watched int          // descriptor, -1: none
	quiet   []func()
	one     [8]byte
	got     [8]byte
}

// newQueue makes a queue that has not begun.
func newQueue(d *device, l *loop, index int) *queue {
	q := &queue{d: d, l: l, index: index, kick: -1, call: -1, err: -1, watched: -1}
	q.one[0] = 1 // the machine is little-endian; any number but 0 is a signal
	q.poll.Done = q.kicked
	q.more.Run = func() {
		q.posted = false
		q.serve()
		q.settled()
	}
	return q
}

// resolve finds the ring in the guest's memory.
func (q *queue) resolve(t *table) error {
	n := uint64(q.num)
	desc, avail, used := t.front(q.addr.desc, descSize*n), t.front(q.addr.avail, 8+2*n), t.front(q.addr.used, 6+8*n)
	switch {
	case desc == nil || avail == nil || used == nil:
		return fmt.Errorf("%w: queue %d of %d at %#x, %#x and %#x is not in the guest's memory", ErrProtocol, q.index, q.num, q.addr.desc, q.addr.avail, q.addr.used)
	case address(avail)%4 != 0 || address(used)%4 != 0:
		return fmt.Errorf("%w: queue %d: rings at %#x and %#x are not aligned to 4 bytes", ErrProtocol, q.index, q.addr.avail, q.addr.used)
	}
	t.hold() // until there is another one: what ends is told in these rings
	q.unmap()
	q.t, q.desc, q.avail, q.used = t, desc, avail, used
	return nil
}

// unmap lets go of the rings.
func (q *queue) unmap() {
	q.d.letGo(q.t)
	q.t, q.desc, q.avail, q.used = nil, nil, nil, nil
}

// start begins to serve the queue: first what was under way when another process served it.
func (q *queue) start() error {
	if q.running || q.num == 0 || q.kick < 0 || q.d.table == nil {
		return fmt.Errorf("%w: queue %d cannot begin: %d descriptors, running: %v, memory: %v", ErrProtocol, q.index, q.num, q.running, q.d.table != nil)
	}
	if err := q.resolve(q.d.table); err != nil {
		return err
	}
	if err := q.l.Watch(q.kick); err != nil {
		return err
	}
	q.watched = q.kick
	if len(q.reqs) != int(q.num) {
		q.reqs = make([]*req, q.num)
		for i := range q.reqs {
			q.reqs[i] = newReq(q, uint16(i))
		}
	}
	q.broken, q.running = nil, true
	q.usedIndex = uint16(load32(q.used, 0) >> 16)
	q.lastAvail = q.base
	q.log, q.again = inflight{p: q.d.inflightOf(q.index, q.num)}, nil
	if q.log.p != nil {
		var used bool
		q.again, used = q.log.adopt(q.num, q.usedIndex)
		if len(q.again) > 0 {
			q.d.s.log.Info("requests that were under way in another process are done again", "queue", q.index, "requests", len(q.again))
		}
		q.lastAvail = q.usedIndex + uint16(len(q.again))
		// What a process that was killed had marked in a log, qemu may not have looked at before it let go of that.
		q.forgotten = q.forgotten || used && !q.begun && q.d.logging()
	}
	q.begun = true
	q.relog() // serves
	q.arm()
	return nil
}

func (q *queue) arm() {
	if q.running && !q.polling {
		q.polling = true
		q.l.Poll(&q.poll, q.watched, unix.POLLIN)
	}
}

// kicked is told that the guest has put something into the available ring.
func (q *queue) kicked(_ int, err error) {
	q.polling = false
	if err == nil {
		_, _ = unix.Read(q.watched, q.got[:]) // fails only if it was read already
	}
	q.serve()
	q.arm()
	q.settled()
}

// eventIndex says that both sides tell one another when they want to be called.
func (q *queue) eventIndex() bool { return q.d.features.Load()&featEventIndex != 0 }

// maxTurn is how many requests a queue takes at once. A guest that fills a queue as fast as it is emptied must keep neither its thread's other queues waiting
// nor what the front end says, which may be that the queue is to stop.
const maxTurn = 256

// serve takes requests until there are none, and says from where on it wants to be kicked.
func (q *queue) serve() {
	for len(q.again) > 0 && q.broken == nil && q.waiting == nil && !q.unlogged {
		head := q.again[0]
		q.again = q.again[1:]
		q.begin(head)
	}
	for turn := 0; q.running && !q.disabled && q.broken == nil && q.waiting == nil && !q.unlogged; turn++ {
		if turn == maxTurn {
			if !q.posted {
				q.posted = q.l.Post(&q.more)
			}
			return
		}
		index := uint16(load32(q.avail, 0) >> 16)
		if index == q.lastAvail {
			if !q.eventIndex() {
				return
			}
			store16(q.used, 4+8*int(q.num), q.lastAvail)
			q.wroteUsed(4+8*int(q.num), 2)
			if uint16(load32(q.avail, 0)>>16) == q.lastAvail {
				return
			}
			continue
		}
		if index-q.lastAvail > q.num {
			q.fail(fmt.Errorf("%w: the available index is %d, %d requests after the last", ErrProtocol, index, index-q.lastAvail))
			return
		}
		head := le.Uint16(q.avail[4+2*int(q.lastAvail%q.num):])
		if head >= q.num {
			q.fail(fmt.Errorf("%w: head %d of %d", ErrProtocol, head, q.num))
			return
		}
		q.lastAvail++
		q.begin(head)
	}
}

// begin takes a request whose head the guest has named.
func (q *queue) begin(head uint16) {
	r := q.reqs[head]
	if r.busy {
		q.fail(fmt.Errorf("%w: head %d is under way already", ErrProtocol, head))
		return
	}
	if err := r.chain.walk(q.t, q.desc, q.num, head, q.d.features.Load()&featIndirect != 0); err != nil {
		q.fail(err)
		return
	}
	q.log.begin(head)
	r.busy = true
	q.underWay++
	r.t = q.t
	r.t.hold()
	if err := r.begin(); err != nil {
		q.fail(err)
		r.forget()
	}
}

// fail stops a queue that breaks the rules. What is under way ends.
func (q *queue) fail(err error) {
	if q.broken != nil {
		return
	}
	q.broken, q.again = err, nil
	q.d.s.log.Error("the guest breaks the rules; its queue is stopped until the device is reset", "queue", q.index, "err", err)
	if q.err >= 0 {
		_, _ = unix.Write(q.err, q.one[:])
	}
}

// end tells the guest that a request has ended, with n bytes written into its memory.
func (q *queue) end(head uint16, n uint32) {
	at := 4 + 8*int(q.usedIndex%q.num)
	le.PutUint32(q.used[at:], uint32(head))
	le.PutUint32(q.used[at+4:], n)
	q.log.ending(head)
	old := q.usedIndex
	q.usedIndex++
	store32(q.used, 0, uint32(q.usedIndex)<<16) // the flags are 0: kicks are wanted
	q.log.ended(head, q.usedIndex)
	q.wroteUsed(at, 8)
	q.wroteUsed(0, 4)
	wanted := load32(q.avail, 0)&1 == 0
	if q.eventIndex() {
		wanted = uint16(load32(q.avail, 4+2*int(q.num))) == old
	}
	if wanted {
		q.interrupt()
	}
}

func (q *queue) interrupt() {
	if q.call >= 0 {
		_, _ = unix.Write(q.call, q.one[:]) // fails only when it is signalled 2^64 times over
	}
}

// stop takes nothing more; then is called when nothing of the queue is under way, also of what another process had begun.
func (q *queue) stop(then func()) {
	q.running = false
	q.quiet = append(q.quiet, then)
	if q.polling {
		q.l.Cancel(&q.poll)
	}
	if q.unlogged {
		q.again = nil // they stay marked
	}
	q.settled()
}

// busy says that something of the queue is under way, or may begin: its size, and what its requests are marked in, must stay.
func (q *queue) busy() bool { return q.running || q.polling || q.underWay > 0 || len(q.again) > 0 }

// settled tells those who wait for a stopped queue.
func (q *queue) settled() {
	if q.busy() || len(q.quiet) == 0 {
		return
	}
	if q.watched >= 0 {
		q.l.Unwatch(q.watched)
		q.watched = -1
	}
	all := q.quiet
	q.quiet = nil
	for _, f := range all {
		f()
	}
}

// remap goes on in another table of memory.
func (q *queue) remap(t *table) {
	if !q.running {
		return
	}
	if err := q.resolve(t); err != nil {
		q.running = false
		q.fail(err)
		if q.polling {
			q.l.Cancel(&q.poll)
		}
	}
}

// setFD puts a descriptor in the place of another, which is closed.
func setFD(place *int, fd int) {
	if *place >= 0 {
		_ = unix.Close(*place)
	}
	*place = fd
}
