package cs

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/cs/admit"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestGate has many clients of all classes wait for little, some of which give up: the bounds hold, and all is given back.
func TestGate(t *testing.T) {
	g, err := newGate(8, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	s := &Server{gate: g}
	var under, bytes atomic.Int64
	var gaveUp, done atomic.Int64
	var wg sync.WaitGroup
	for w := range uint64(24) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 3))
			f := g.join(flowKey{role: msg.Hello_CLIENT, who: w % 5})
			defer g.leave(f)
			for range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(4) == 0 {
					time.AfterFunc(time.Duration(rng.IntN(300))*time.Microsecond, cancel)
				}
				r := grants.Get().(*grant)
				r.s = s
				r.Class, r.Bytes, r.Owner = admit.Class(1+w%5), int64(rng.IntN(wire.MaxData)), r
				if err := g.wait(ctx, r, f); err != nil {
					gaveUp.Add(1)
				} else {
					if n, b := under.Add(1), bytes.Add(r.Bytes); n > 8 || b > 16<<20 {
						t.Errorf("%d requests with %d bytes are under way", n, b)
					}
					time.Sleep(time.Duration(rng.IntN(100)) * time.Microsecond)
					under.Add(-1)
					bytes.Add(-r.Bytes)
					r.Release(nil)
					done.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if waiting, n := g.use(); waiting != 0 || n != 0 || len(g.flows) != 0 {
		t.Errorf("%d wait, %d under way, %d flows at the end", waiting, n, len(g.flows))
	}
	if done.Load() == 0 || gaveUp.Load() == 0 {
		t.Errorf("%d done, %d gave up", done.Load(), gaveUp.Load())
	}
}

// TestGateWakes has a request that waits for nothing but time go on by itself.
func TestGateWakes(t *testing.T) {
	g, err := newGate(8, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	s := &Server{gate: g}
	f := g.join(flowKey{who: 1})
	guest := &grant{s: s, ready: make(chan struct{}, 1)}
	guest.Class, guest.Bytes, guest.Owner = admit.Guest, 4096, guest
	if err := g.wait(t.Context(), guest, f); err != nil { // stays under way, so that guests are active
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for range 3 {
		repair := &grant{s: s, ready: make(chan struct{}, 1)}
		repair.Class, repair.Bytes, repair.Owner = admit.Repair, 1<<20, repair
		if err := g.wait(ctx, repair, f); err != nil {
			t.Fatal("repair never goes on beside an active guest: ", err)
		}
		g.done(&repair.Request)
	}
	g.done(&guest.Request)
}

// TestMemoryIsGivenBack has clients that vanish, ask nonsense and are slow leave no payload behind. newTestServer's cleanup finds leaks.
func TestMemoryIsGivenBack(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	var wg sync.WaitGroup
	for i := range id.SessionID(6) {
		wg.Go(func() {
			for n := range 5 {
				c := dial(t, s, 10+i)
				p := pattern(uint64(i), 64<<10)
				done := make(chan *wire.Call, 200)
				for range 30 {
					w := writeRequest(7, 0, p)
					w.Session = c.session
					c.c.Start(&wire.Frame{Type: wire.Write, Class: wire.ClassGuest, Epoch: 1, Body: w.Append(nil), Data: p}, done)
					r := wire.DataRequest{Chunk: 7, Length: 1 << 20, Session: c.session}
					c.c.Start(&wire.Frame{Type: wire.Read, Class: wire.Class(n % 7), Epoch: 1, Body: r.Append(nil)}, done)
					c.c.Start(&wire.Frame{Type: wire.Read, Epoch: 1, Body: []byte{1, 2, 3}}, done)
					c.c.Start(&wire.Frame{Type: wire.ChunkSeek, Epoch: 1, Data: p}, done)
					c.c.Start(&wire.Frame{Type: wire.ChunkTable, Body: []byte{1, 2, 3}}, done)
				}
				if n%2 == 0 {
					<-done
				}
				c.c.Close()
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(testTimeout)
	for s.payload.used() > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of payload memory are out, nobody is connected", s.payload.used())
		}
		time.Sleep(time.Millisecond)
	}
	c := dial(t, s, 99)
	code, _ := c.read(7, 1, 0, 1<<20)
	c.want(code, fserr.OK, "read")
}

// TestCrossedForwards has two servers full of writes that each of them can end only when the other has taken a part: neither keeps the
// other waiting, although all that guests may hold is held.
func TestCrossedForwards(t *testing.T) {
	const clients, depth, size = 4, 80, 64 << 10 // more than the gate lets go on, for each server
	f := newFakeLeader(t)
	a, b := newTestServer(t, f), newTestServer(t, f)
	waitPeers(t, a, b)
	waitPeers(t, b, a)
	f.create(7, 1, a, b)
	f.create(8, 1, a, b)
	most := 0
	var work sync.WaitGroup
	for i, s := range []*testServer{a, b} {
		other := []*testServer{b, a}[i]
		for n := range clients {
			c := dial(t, s, id.SessionID(10+clients*i+n))
			work.Go(func() {
				done := make(chan *wire.Call, depth)
				p := pattern(uint64(n), size)
				for k := range depth {
					r := writeRequest(id.ChunkID(7+i), uint32(n*depth+k)*size, p)
					r.Flags, r.Forward[0], r.Session = wire.Ordered, other.ID(), c.session
					c.c.Start(&wire.Frame{Type: wire.Write, Class: wire.ClassGuest, Epoch: 1, Body: r.Append(nil), Data: p}, done)
				}
				for range depth {
					if call := <-done; call.Err != nil {
						t.Errorf("write: %v", call.Err)
					} else {
						if call.Reply.Code != fserr.OK {
							t.Errorf("write: %v", call.Reply.Code)
						}
						call.Reply.Release()
					}
				}
			})
		}
	}
	ended := make(chan struct{})
	go func() { work.Wait(); close(ended) }()
	for running := true; running; {
		select {
		case <-ended:
			running = false
		case <-time.After(time.Millisecond):
			waiting, _ := a.gate.use()
			most = max(most, waiting)
		}
	}
	t.Logf("at most %d requests were seen waiting at the gate", most)
	sameReplicas(t, 7, 1, a, b)
	sameReplicas(t, 8, 1, a, b)
}

// TestGreedyConnection has a client with 200 writes under way at a disk that does none of them: it uses half of what may be under way, the
// rest of its requests is not read, and the only request of another client goes on.
func TestGreedyConnection(t *testing.T) {
	const depth = 200
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	f.create(8, 1, s)
	p := pattern(1, block)
	send := func(c *client, k id.ChunkID, n int, done chan *wire.Call) {
		for i := range n {
			r := writeRequest(k, uint32(i)*block, p)
			r.Session = c.session
			c.c.Start(&wire.Frame{Type: wire.Write, Class: wire.ClassGuest, Epoch: 1, Body: r.Append(nil), Data: p}, done)
		}
	}
	greedy, small := dial(t, s, 5), dial(t, s, 6)
	// Extents are active before the disk hangs, so that each write comes to it by itself.
	greedy.want(greedy.write(7, 1, 0, p), fserr.OK, "write")
	small.want(small.write(8, 1, 0, p), fserr.OK, "write")
	g := s.hang.hang()
	drained := make(chan struct{})
	go func() {
		for {
			select {
			case <-g.arrived:
			case <-drained:
				return
			}
		}
	}()
	defer close(drained)
	underWay := func(want int) func() bool {
		return func() bool { _, n := s.gate.use(); return n == want }
	}
	many, one := make(chan *wire.Call, depth), make(chan *wire.Call, 1)
	go send(greedy, 7, depth, many)
	wait(t, "half of the gate to be used", underWay(maxOps/2))
	time.Sleep(20 * time.Millisecond)
	if !underWay(maxOps / 2)() {
		t.Error("a client uses more than half")
	}
	go send(small, 8, 1, one)
	wait(t, "the other client's request to go on", underWay(maxOps/2+1))
	s.hang.release()
	for range depth {
		if call := <-many; call.Err != nil || call.Reply.Code != fserr.OK {
			t.Fatal(call.Err, call.Reply)
		}
	}
	if call := <-one; call.Err != nil || call.Reply.Code != fserr.OK {
		t.Fatal(call.Err, call.Reply)
	}
}
