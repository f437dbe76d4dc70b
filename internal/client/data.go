package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// maxReplicas bounds a replica set: the first and its forward list.
const maxReplicas = wire.MaxForward + 1

// dataOp is a write, punch or flush of a part of one chunk, carried out on every replica: what all of them must do, it
// repeats until all have.
type dataOp struct {
	in    *inode
	typ   wire.Type
	piece chunk.Piece
	data  []byte // of a write; the caller's
	lane  int
	// appending: it must be done under an exclusive lease, since only that makes the end of the file ours; and the file
	// does not grow by it. If the lease changes, run returns errMoved.
	appending bool
	mode      msg.Mode // under which it was carried out
	recalls   uint64   // inode.layoutRecalls when it was
	at        location // where it was; its replicas are not kept

	relay  relayed
	owed   [maxReplicas]id.ServerID // see owe
	debts  [maxReplicas]hotDebt     // see payHot
	nDebts int
	ticket ticket // of the uplink, for a large write under an exclusive lease

	seq      uint64 // its name, once it was to be sent under a shared-write lease
	doubtful bool   // it is one of inode.doubts

	req      wire.DataRequest
	frame    wire.Frame
	body     []byte
	done     chan *wire.Call
	timer    *time.Timer
	targets  [maxReplicas]target
	n        int       // targets
	sent     bool      // some replica may have carried it out
	started  time.Time // when it was sent last
	troubles []trouble
}

// relayed says whether a write under an exclusive lease goes through one replica, which sends it on.
//
// A write keeps to one way until all replicas have it: when a relay could not reach a replica, what it has sent may still be under way there, and
// only the relay's next connection to it waits for that. Another write of the same blocks begins after that one has ended. If the relay
// itself is dropped, the epoch is raised, and what it still has under way is refused. Only an answer that says that the relay has
// neither done nor sent anything lets the write go the other way.
type relayed uint8

const (
	undecided relayed = iota
	inParallel
	byRelay
)

// target is one replica in one attempt.
type target struct {
	r    *replica
	srv  *server
	conn *wire.Conn
	call *wire.Call
	outcome
}

// outcome is how an attempt ended at one replica.
type outcome struct {
	what   result
	code   fserr.Code  // of answered
	failed id.ServerID // of ReplicaFailed: whom it could not reach
	why    fserr.Code  // and with which outcome
	err    error
}

type result uint8

const (
	unsent      result = iota // another replica could not be reached
	unreachable               // no connection
	broken                    // the connection broke under way
	slow                      // no answer in time
	answered
)

var dataOps = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &dataOp{done: make(chan *wire.Call, maxReplicas), timer: t}
}}

func newDataOp(in *inode, typ wire.Type, piece chunk.Piece, data []byte) *dataOp {
	op := dataOps.Get().(*dataOp)
	op.in, op.typ, op.piece, op.data = in, typ, piece, data
	op.lane = int(piece.Offset>>20) + int(piece.Index)
	op.sent, op.appending, op.n, op.at = false, false, 0, location{}
	op.relay, op.ticket = undecided, ticket{}
	clear(op.owed[:])
	op.nDebts = 0
	op.troubles = op.troubles[:0]
	return op
}

func (op *dataOp) free() {
	op.ended()
	if op.sent && op.typ != wire.Flush {
		op.in.s.changing.Add(-1)
	}
	op.in, op.data = nil, nil
	op.frame = wire.Frame{}
	clear(op.targets[:])
	clear(op.debts[:])
	dataOps.Put(op)
}

// run carries the operation out on all replicas. It returns early only for an outcome that the application must see, or
// when ctx or the session has ended; then op.sent says whether replicas may differ.
func (op *dataOp) run(ctx context.Context) error {
	in := op.in
	var wait backoff
	var st *stall
	asked := false // for a hole, in this operation
	begun := time.Now()
	defer func() {
		st.end()
		in.s.c.changes.Add(time.Since(begun))
	}()
	for {
		if ctx.Err() != nil {
			return ended(ctx)
		}
		if err := in.s.live(ctx); err != nil {
			return err
		}
		in.layoutMu.RLock()
		mode := in.modeNow()
		if op.typ != wire.Flush && mode != msg.Mode_EXCLUSIVE_WRITE && mode != msg.Mode_SHARED_WRITE {
			in.layoutMu.RUnlock()
			if err := in.regain(ctx); err != nil {
				return err
			}
			continue
		}
		if op.appending && mode != msg.Mode_EXCLUSIVE_WRITE {
			in.layoutMu.RUnlock()
			return op.abandon(ctx)
		}
		loc, known := in.lookup(op.piece.Index)
		switch {
		case !known:
			in.layoutMu.RUnlock()
			asked = false
			if err := in.fetch(ctx, op.piece.Index); err != nil {
				return err
			}
			continue
		case loc == nil && op.typ != wire.Write:
			in.layoutMu.RUnlock()
			hole, err := in.believeHole(ctx, op.piece.Index, &asked)
			if err != nil {
				return err
			}
			if !hole {
				continue
			}
			op.mode = mode
			return nil
		case loc == nil:
			in.layoutMu.RUnlock()
			if err := in.alloc(ctx, op.piece.Index); err != nil {
				return err
			}
			continue
		}
		op.attempt(loc, mode)
		if op.allOK() {
			op.ended()
			op.measure()
			op.at = location{index: loc.index, chunk: loc.chunk, epoch: loc.epoch, lost: loc.lost}
			if op.typ != wire.Flush {
				in.wrote(op, mode)
			}
			in.layoutMu.RUnlock()
			op.mode = mode
			return nil
		}
		op.doubt()
		in.layoutMu.RUnlock()
		if st == nil {
			st = in.s.c.watch("replicas", "inode", in.ino, "chunk", loc.chunk)
		}
		pause, err := op.mend(ctx, loc)
		if err != nil {
			return err
		}
		if !pause {
			continue
		}
		if err := wait.wait(ctx, in.s.ctx); err != nil {
			return err
		}
	}
}

// end returns the offset in the file that a write reaches to, 0 for a punch.
func (op *dataOp) end() int64 {
	if op.typ != wire.Write {
		return 0
	}
	return int64(op.piece.Index)*chunk.Size + int64(op.piece.Offset) + int64(op.piece.Length)
}

func (in *inode) modeNow() msg.Mode {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mode
}

// attempt sends the request once and collects how it ended everywhere. Answers are waited for whatever the caller's
// context says: a request must not be left under way when its blocks are unlocked.
func (op *dataOp) attempt(loc *location, mode msg.Mode) {
	in, c := op.in, op.in.s.c
	named := (mode == msg.Mode_SHARED_WRITE || op.seq != 0) && op.typ != wire.Flush // what was begun in order goes on so
	ordered := named
	op.n = min(len(loc.replicas), maxReplicas)
	op.req = wire.DataRequest{Chunk: loc.chunk, Session: in.s.id, Offset: op.piece.Offset, Length: op.piece.Length, Sums: op.req.Sums[:0]}
	timeout := c.o.WriteTimeout
	if !ordered && op.typ == wire.Write && op.n > 1 && op.relays(loc) {
		ordered = true
	}
	if !op.payHot(loc) {
		return
	}
	if ordered {
		if !op.payUp(loc) {
			return
		}
		for i, r := range loc.replicas[1:op.n] {
			op.req.Forward[i] = r.server
		}
		op.req.Flags = wire.Ordered
		if named {
			op.name()
		}
		op.n = 1
		timeout = 2*timeout + time.Second // the first replica waits for the others
	}
	if op.typ == wire.Write {
		op.req.Sums = chunk.AppendSums(op.req.Sums, op.piece.Offset, op.data)
	}
	op.body = op.req.Append(op.body[:0])
	op.frame = wire.Frame{Type: op.typ, Class: wire.ClassGuest, Epoch: loc.epoch, Body: op.body, Data: op.data}

	reachable := true
	for i := range op.n {
		t := &op.targets[i]
		*t = target{r: &loc.replicas[i]}
		t.srv = in.s.servers.server(t.r)
		t.conn, t.err = t.srv.conn(op.lane)
		if t.err != nil {
			t.what, reachable = unreachable, false
		} else {
			op.pay(t.r.server)
		}
	}
	if !reachable {
		return
	}
	if !op.sent && op.typ != wire.Flush {
		in.s.changing.Add(1)
	}
	if op.typ != wire.Flush {
		in.uncache(loc, op.piece)
	}
	op.sent = true
	op.started = time.Now()
	for i := range op.n {
		t := &op.targets[i]
		t.call = t.conn.Start(&op.frame, op.done)
	}
	op.timer.Reset(nextLook(0, timeout))
	for left := op.n; left > 0; {
		select {
		case call := <-op.done:
			op.take(call)
			left--
		case <-op.timer.C:
			waited := time.Since(op.started)
			for i := range op.n {
				t := &op.targets[i]
				if t.call != nil && (waited >= timeout || op.in.s.silent(t.srv, waited)) && t.conn.Abandon(t.call) {
					t.call, t.what = nil, slow
					t.srv.met.Add(waited)
					op.owe(t.r.server)
					t.conn.Close() // the next Hello on this lane waits until the server has ended the request
					left--
				}
			}
			op.timer.Reset(nextLook(max(waited, min(timeout, doubtAfter)), timeout))
		}
	}
	op.timer.Stop()
}

// relays decides, once, how a write under an exclusive lease goes. The relay is the replica that orders shared writes, so that what it
// has under way at others is ended by the next that goes through it, whatever the lease is by then. One on this host would send on over
// the same uplink, so there is nothing to gain.
func (op *dataOp) relays(loc *location) bool {
	if op.relay == undecided {
		op.relay = inParallel
		s := op.in.s
		switch how := s.c.o.Relay; {
		case len(op.data) < relayMin || how == RelayNever:
		case how == RelayAlways:
			op.relay = byRelay
		case s.servers.server(&loc.replicas[0]).local.Load():
		default:
			if op.ticket = s.c.uplink.begin(s.c.sinceStart()); op.ticket.relayed {
				op.relay = byRelay
			}
		}
	}
	return op.relay == byRelay
}

// measure tells the uplink of a large write that all replicas have.
func (op *dataOp) measure() {
	if op.ticket.window != 0 {
		c := op.in.s.c
		c.uplink.end(c.sinceStart(), op.ticket, len(op.data))
	}
}

// take notes the answer of one replica.
func (op *dataOp) take(call *wire.Call) {
	for i := range op.n {
		t := &op.targets[i]
		if t.call != call {
			continue
		}
		t.call = nil
		if op.req.Flags&wire.Ordered == 0 { // else it is the slowest of all replicas that has taken so long
			t.srv.met.Add(time.Since(op.started))
		}
		if call.Err != nil {
			t.what, t.err = broken, call.Err
			op.owe(t.r.server)
			return
		}
		t.what, t.code = answered, call.Reply.Code
		if t.code == fserr.ReplicaFailed {
			var err error
			if t.failed, t.why, err = wire.DecodeReplicaFailed(call.Reply.Body); err != nil {
				t.code = fserr.Protocol
			}
		}
		call.Reply.Release()
		return
	}
}

func (op *dataOp) allOK() bool {
	for i := range op.n {
		if t := &op.targets[i]; t.what != answered || t.code != fserr.OK {
			return false
		}
	}
	return op.n > 0
}

// regain asks for a write lease again, when a recall left less than an open handle needs.
func (in *inode) regain(ctx context.Context) error {
	in = in.s.pin(in.ino)
	f, err := in.reopen(ctx)
	if err != nil {
		in.s.unpin(in)
		return err
	}
	return f.Release(ctx)
}

func (in *inode) reopen(ctx context.Context) (*File, error) {
	if err := in.leaseOp.lock(ctx); err != nil {
		return nil, err
	}
	defer in.leaseOp.unlock()
	for {
		f, err := in.ask(ctx, nil, true, 0)
		if f != nil || err != nil {
			return f, err
		}
	}
}

// gone reports whether an error means that the session is over.
func gone(code fserr.Code) bool { return code == fserr.Fenced || code == fserr.NoSession }

// errMoved says that the end of the file was not ours any more when an append got there.
var errMoved = errors.New("lease changed during an append")

// errCut says that another mount may have truncated the file between a shared write and its report.
var errCut = errors.New("layout called back before a write was reported")
