package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/latency"
	"varve/iouring/reactor"
)

// Reads and writes that need not wait go on as state machines on the thread of a reactor (package hot), in these files:
//
//	hotseat.go      a loop that has a seat here, and its memory
//	hotlane.go      the connection of a seat to a chunk server, and what is owed to it
//	hotconn.go      the frames on that connection; one request and its answer
//	hotread.go      a read: a chunk file of this host (hotdisk.go), else a replica over the network
//	hotwrite.go     a write to all replicas
//	hotflush.go     a flush of one chunk at all replicas
//
// Begin takes the locks that the goroutine's way takes, in the same order, but none that it would have to wait for, and does what that way does in its
// best case: whatever else comes up is left to it. So all decisions about replicas, epochs and leases are made in one place (read.go, data.go,
// mend.go). What may come in between, and what follows:
//
//	what                                        a read                               a write
//	a block is being read or written            goes on in a goroutine, and waits there for the range lock
//	lease or layout is being called back        goes on in a goroutine; one that has begun ends first, since it holds layoutMu
//	lease lapsed, mode shared-write, layout not known, hole (write), no connection yet: goes on in a goroutine
//	server killed, connection lost, garbled     begun anew in a goroutine            handed over, with a debt to that server
//	no answer in time                           given up, then the same              the connection is closed, then the same
//	answer that is late, or the second one      nobody waits for its number: dropped. A number is not used again.
//	outcome not OK, checksum wrong              begun anew in a goroutine            handed over as an attempt that went so
//	session lost or fenced                      fails as there: Stale                fails as there: Stale
//	the seat is left, the client closed         ends first; with Close it fails with Stale, and is on the servers or not, as after any crash
//
// What is handed over is a dataOp that was sent, with its range lock, as after a first attempt: it is carried out again until all replicas
// have it. A server that may still be at work on our request is owed a greeting on the lane that it came on, which ends it, before the request is sent on
// another lane, and so before the blocks are unlocked (hotLane.pay).
//
// Memory: p is given back when no send, no receive and no disk has it any more. A request is over when its send is done and either its answer
// is there, or its connection is at its end, after which the kernel has none of its memory. A disk that does not answer keeps memory of its own.

// maxSeats bounds the loops of a client.
const maxSeats = 16

// maxSpare bounds what a seat keeps of each kind of operation for the next.
const maxSpare = 256

// seat is a loop as the client sees it. What is not marked otherwise is of the loop's thread.
type seat struct {
	c      *Client
	l      *reactor.Loop
	n      int             // its number; any goroutine
	ctx    context.Context // of what goes on in goroutines; any goroutine
	cancel context.CancelFunc

	turn      int // among the connections to one server
	leaving   bool
	under     int // operations begun and not ended
	conns     *hotConn
	leaveTask reactor.Task
	empty     chan struct{} // closed when it was left and nothing is under way any more

	lookTask reactor.Task
	looking  atomic.Bool // lookTask was posted
	lookAll  atomic.Bool // at idle connections too

	reads  *hotRead
	writes *hotWrite
	disks  *hotDisk
	cached *hotCached
	syncs  *hotFlush
	spare  [5]int // of each in these lists

	deaf bool // tests: the disk does not answer, but to hang
	hang *hotDisk
}

// hotStats counts what was done on reactors, and what was begun there and ended elsewhere.
type hotStats struct{ reads, writes, durable, flushes, readsLeft, writesLeft, flushesLeft atomic.Uint64 }

// HotStats is what a client has done on the threads of reactors.
type HotStats struct {
	// Begun and ended there, since Dial.
	Reads   uint64 `json:"reads"`
	Writes  uint64 `json:"writes"`
	Flushes uint64 `json:"flushes"`
	// Of the writes, those that replicas had on stable media before they answered.
	DurableWrites uint64 `json:"durable_writes"`
	// Begun there, and ended by a goroutine since something went wrong.
	ReadsLeft   uint64 `json:"reads_left"`
	WritesLeft  uint64 `json:"writes_left"`
	FlushesLeft uint64 `json:"flushes_left"`
}

// HotStats returns the counters.
func (c *Client) HotStats() HotStats {
	n := &c.hot
	return HotStats{
		Reads: n.reads.Load(), Writes: n.writes.Load(), Flushes: n.flushes.Load(), DurableWrites: n.durable.Load(),
		ReadsLeft: n.readsLeft.Load(), WritesLeft: n.writesLeft.Load(), FlushesLeft: n.flushesLeft.Load(),
	}
}

var (
	_ hot.Host   = (*Client)(nil)
	_ hot.Syncer = (*File)(nil)
)

// Sit implements hot.Host. Connections to chunk servers are made when they are first wanted.
func (c *Client) Sit(l *reactor.Loop) (hot.Seat, error) {
	if c.ctx.Err() != nil {
		return 0, fmt.Errorf("seat at a client that was closed: %w", fserr.Stale)
	}
	for n := range c.seats {
		st := &seat{c: c, l: l, n: n, empty: make(chan struct{})}
		st.ctx, st.cancel = context.WithCancel(c.ctx)
		st.leaveTask.Run, st.lookTask.Run = st.leave, st.look
		if c.seats[n].CompareAndSwap(nil, st) {
			return hot.Seat(n), nil
		}
		st.cancel()
	}
	return 0, fmt.Errorf("%d loops sit with the client, which is all it takes: %w", maxSeats, fserr.NoSpace)
}

// Leave implements hot.Host. What waits for the cluster is interrupted after Options.CloseTimeout; a write that was begun goes on without
// its caller.
func (c *Client) Leave(n hot.Seat) {
	st := c.seat(n)
	if st == nil || !st.l.Post(&st.leaveTask) {
		return // the loop has ended, which it was not to do before
	}
	defer st.cancel()
	patience := time.NewTimer(c.o.CloseTimeout)
	defer patience.Stop()
	for left := false; !left; {
		select {
		case <-st.empty:
			left = true
		case <-st.l.Done():
			left = true
		case <-patience.C:
			st.cancel()
		}
	}
	c.seats[n].CompareAndSwap(st, nil)
}

func (c *Client) seat(n hot.Seat) *seat {
	if n < 0 || n >= maxSeats {
		return nil
	}
	return c.seats[n].Load()
}

func (st *seat) leave() {
	st.leaving = true
	st.settle()
}

// settle goes on with leaving.
func (st *seat) settle() {
	switch {
	case !st.leaving || st.under > 0:
	case st.conns == nil:
		select {
		case <-st.empty:
		default:
			close(st.empty)
		}
	default:
		for h := st.conns; h != nil; h = h.next {
			h.c.Close(nil)
		}
	}
}

// ended is called after Ended was.
func (st *seat) ended() {
	if st.under--; st.leaving {
		st.settle()
	}
}

// certain reports whether the session certainly holds its leases: live without waiting.
func (s *session) certain() bool { return s.ctx.Err() == nil && bootTime() < s.deadline.Load() }

// context is for what goes on in a goroutine of an operation that began at start. It ends with the seat's, with the caller's if that has one, and
// after Options.Timeout.
func (st *seat) context(e hot.Ender, start time.Time) (context.Context, context.CancelFunc) {
	ctx := st.ctx
	give := func() {}
	if w, ok := e.(hot.Waiter); ok {
		both, end := context.WithCancel(w.Context())
		stop := context.AfterFunc(st.ctx, end)
		ctx, give = both, func() { stop(); end() }
	}
	ctx, cancel := st.c.limitOf(ctx, &st.c.patience.data, time.Since(start))
	return ctx, func() { cancel(); give() }
}

// patient reports whether an operation need not be given up sooner than one that nobody bounds: else a goroutine watches over it.
func (c *Client) patient() bool { return c.o.Timeout == 0 || !c.patience.data.Load() }

// met counts how long something took that began at start.
func met(r *latency.Recorder, start time.Time) { r.Add(time.Since(start)) }
