package cs

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"varve/cs/admit"
	"varve/cs/arena"
	"varve/internal/fserr"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// gate is what decides when requests go on (package admit), for whoever serves them: goroutines wait, reactors are told.
type gate struct {
	start time.Time
	waits *waits.Table

	mu    sync.Mutex
	queue *admit.Queue
	timer *time.Timer // calls awake at wake
	wake  time.Duration
	flows map[flowKey]*flow
	ended uint64 // requests
}

// admitted is the Owner of a request. granted is called once when a request that had to wait may go on, with the gate's lock held: it must
// neither wait nor call the gate.
type admitted interface{ granted() }

// flowKey names a client: a session, a server, or a connection without either.
type flowKey struct {
	role msg.Hello_Role
	who  uint64
	conn *wire.Conn
}

// flow is a client's place in the queue, shared by its connections.
type flow struct {
	admit.Flow
	key   flowKey
	conns int // guarded by gate.mu
}

func newGate(ops int, bytes int64) (*gate, error) {
	q, err := admit.New(admit.Options{Ops: ops, Bytes: bytes, Largest: wire.MaxData})
	if err != nil {
		return nil, err
	}
	g := &gate{start: time.Now(), queue: q, wake: math.MaxInt64, flows: make(map[flowKey]*flow)}
	g.timer = time.AfterFunc(math.MaxInt64, g.awake)
	return g, nil
}

// join returns the flow of a client for one more connection. It must leave.
func (g *gate) join(key flowKey) *flow {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flows[key]
	if f == nil {
		f = &flow{key: key}
		g.flows[key] = f
	}
	f.conns++
	return f
}

// leave ends what join began, when all requests of the connection have ended.
func (g *gate) leave(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.conns--; f.conns == 0 {
		delete(g.flows, f.key)
	}
}

// ask reports whether a request may go on at once. If not, and err is nil, its owner is told when it may. Either way it ends with done,
// or with cancel while it waits.
func (g *gate) ask(r *admit.Request, f *flow) (now bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.queue.Ask(r, &f.Flow) {
		return false, fmt.Errorf("%d requests wait already: %w", g.queue.Waiting(), fserr.Unavailable)
	}
	g.run(r)
	return r.UnderWay(), nil
}

// done takes back what a request was given.
func (g *gate) done(r *admit.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue.Done(r, time.Since(g.start))
	g.ended++
	g.run(nil)
}

// cancel has a request not wait any more. It returns false if the request may go on already: then done ends it, and its owner was told.
func (g *gate) cancel(r *admit.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.queue.Cancel(r) {
		return false
	}
	g.run(nil)
	return true
}

// run lets go on what may, and tells the owners but that of self.
func (g *gate) run(self *admit.Request) {
	if g.queue.Waiting() == 0 {
		return
	}
	now := time.Since(g.start)
	for r := g.queue.Next(now); r != nil; r = g.queue.Next(now) {
		if r != self {
			r.Owner.(admitted).granted()
		}
	}
	// A timer that goes off too early does no harm.
	if w := g.queue.Wake(); w < g.wake {
		g.wake = w
		g.timer.Reset(w - now)
	}
}

func (g *gate) awake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wake = math.MaxInt64
	g.run(nil)
}

func (g *gate) close() { g.timer.Stop() }

// use returns how many requests wait, and how many are under way.
func (g *gate) use() (waiting, underWay int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k := admit.Guest; int(k) < admit.Classes; k++ {
		_, ops, _ := g.queue.Use(k)
		underWay += ops
	}
	return g.queue.Waiting(), underWay
}

// progress returns how many requests have ended.
func (g *gate) progress() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended
}

// waiting returns how many requests of a class wait.
func (g *gate) waiting(k admit.Class) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.queue.WaitingOf(k)
}

// class returns the class of a peer's request. Peers say what they do for whom; nobody may call himself more urgent than he is.
func (p peer) class(c wire.Class) admit.Class {
	switch c {
	case wire.ClassRepair:
		return admit.Repair
	case wire.ClassRebalance:
		return admit.Rebalance
	case wire.ClassScrub:
		return admit.Scrub
	}
	if p.role == msg.Hello_CHUNK_SERVER {
		return admit.Replication
	}
	return admit.Guest
}

// grant is what a data request holds: its place in the gate and memory. It is kept for the next.
type grant struct {
	admit.Request
	s      *Server
	memory *arena.Arena
	ready  chan struct{} // told when the request may go on
	answer []byte        // of memory, for a read

	carried *request // that it belongs to, if a reactor has the connection
	gated   bool     // of carried: the gate has let it pass
}

var _ wire.Grant = (*grant)(nil)

var grants = sync.Pool{New: func() any { return &grant{ready: make(chan struct{}, 1)} }}

func (g *grant) granted() {
	if q := g.carried; q != nil {
		q.d.loop.Post(&q.task)
		return
	}
	g.ready <- struct{}{}
}

// cost returns what a request with size bytes of data is counted with at the gate. Others than gated ones go on at once.
func cost(f *wire.Frame, size int) (bytes int64, gated bool) {
	switch f.Type {
	case wire.Read:
		return max(int64(size), min(int64(wire.DataLength(f.Body)), wire.MaxData)), true
	case wire.ChunkTable:
		return tableBytes, true
	case wire.Write, wire.Punch, wire.Flush:
		return int64(size), true
	}
	return int64(size), size > 0 // small, and does not touch the disk much
}

// Admit implements wire.Admission. What is over the bounds waits here, and is not read from its connection.
func (h *data) Admit(ctx context.Context, c *wire.Conn, f *wire.Frame, size int) (wire.Grant, []byte, error) {
	s := (*Server)(h)
	p := c.Value.(peer)
	bytes, gated := cost(f, size)
	if !gated {
		return nil, nil, nil
	}
	g := grants.Get().(*grant)
	g.s, g.memory = s, p.memory
	g.Class, g.Bytes, g.Owner = p.class(f.Class), bytes, g
	if err := s.gate.wait(ctx, g, p.flow); err != nil {
		return nil, nil, err
	}
	if size == 0 {
		return g, nil, nil
	}
	data, err := g.memory.Wait(ctx, size)
	if err != nil {
		g.Release(nil)
		return nil, nil, err
	}
	return g, data, nil
}

// admitOwn returns when what the server does by itself may go on.
func (s *Server) admitOwn(ctx context.Context, k admit.Class, bytes int64) (*grant, error) {
	g := grants.Get().(*grant)
	g.s, g.memory = s, nil
	g.Class, g.Bytes, g.Owner = k, bytes, g
	return g, s.gate.wait(ctx, g, &s.own)
}

// wait returns when a request may go on. It takes the grant back if ctx ends first.
func (g *gate) wait(ctx context.Context, r *grant, f *flow) error {
	now, err := g.ask(&r.Request, f)
	if now {
		return nil
	}
	if err == nil {
		if r.Class == admit.Guest || r.Class == admit.Replication { // repair and scrub are to wait
			defer g.waits.For("other requests to end, since as many are under way as may be", "class", int(r.Class)).End()
		}
		select {
		case <-r.ready:
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		}
		if !g.cancel(&r.Request) {
			<-r.ready
			r.Release(nil)
			return err
		}
	}
	grants.Put(r)
	return err
}

// Release implements wire.Grant.
func (g *grant) Release(data []byte) {
	g.giveBack(data)
	if g.carried != nil {
		g.carried.released()
		return
	}
	grants.Put(g)
}

// giveBack gives memory back, and the place in the gate.
func (g *grant) giveBack(data []byte) {
	if data != nil {
		g.memory.Put(data)
	}
	if g.answer != nil {
		g.memory.Put(g.answer)
		g.answer = nil
	}
	if g.carried == nil || g.gated {
		g.gated = false
		g.s.gate.done(&g.Request)
	}
}
