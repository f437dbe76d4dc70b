package cs

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// ordered sends a write through the first replica.
func (c *client) ordered(k id.ChunkID, e id.Epoch, off uint32, p []byte, list ...id.ServerID) (fserr.Code, []byte) {
	c.t.Helper()
	r := writeRequest(k, off, p)
	r.Flags = wire.Ordered
	copy(r.Forward[:], list)
	code, body, _ := c.do(wire.Write, e, r, p)
	return code, body
}

// waitPeers waits until a knows the address of the others.
func waitPeers(t testing.TB, a *testServer, others ...*testServer) {
	t.Helper()
	for _, o := range others {
		wait(t, "addresses of peers", func() bool {
			a.peers.mu.Lock()
			defer a.peers.mu.Unlock()
			return a.peers.addrs[o.ID()].replication == o.Addr()
		})
	}
}

func TestForward(t *testing.T) {
	f := newFakeLeader(t)
	a, b, d := newTestServer(t, f), newTestServer(t, f), newTestServer(t, f)
	waitPeers(t, a, b, d)
	f.create(7, 1, a, b, d)
	all := []*testServer{a, b, d}

	// Overlapping writes of several mounts end in one order.
	var work sync.WaitGroup
	for i := range 4 {
		c := dial(t, a, id.SessionID(10+i))
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		work.Go(func() {
			for n := range 40 {
				p := pattern(rng.Uint64(), 1+rng.IntN(3*block))
				off := rng.Uint32N(4 * block)
				if n%10 == 9 {
					r := wire.DataRequest{Chunk: 7, Offset: off, Length: uint32(len(p)), Flags: wire.Ordered, Forward: [4]id.ServerID{b.ID(), d.ID()}}
					if code, _, _ := c.do(wire.Punch, 1, r, nil); code != fserr.OK {
						t.Errorf("ordered punch: %v", code)
					}
				} else if code, _ := c.ordered(7, 1, off, p, b.ID(), d.ID()); code != fserr.OK {
					t.Errorf("ordered write: %v", code)
				}
			}
		})
	}
	work.Wait()
	sameReplicas(t, 7, 1, all...)

	// One of them dies: the client hears which, and the others have the write.
	d.crash()
	c := dial(t, a, 20)
	p := pattern(99, block)
	code, body := c.ordered(7, 1, 0, p, b.ID(), d.ID())
	c.want(code, fserr.ReplicaFailed, "write with a dead replica")
	if server, why, err := wire.DecodeReplicaFailed(body); err != nil || server != d.ID() || why != fserr.Unavailable {
		t.Errorf("failed replica: %v, %v, %v", server, why, err)
	}
	sameReplicas(t, 7, 1, a, b)

	// It is dropped; its old epoch is refused when it comes back, at first because it is unclean.
	code, _ = c.ordered(7, 2, 0, p, b.ID())
	c.want(code, fserr.OK, "write without it")
	d.start(t)
	d.waitServing(t)
	waitPeers(t, a, d)
	code, body = c.ordered(7, 2, 0, p, b.ID(), d.ID())
	c.want(code, fserr.ReplicaFailed, "write to an unclean replica")
	if server, why, err := wire.DecodeReplicaFailed(body); err != nil || server != d.ID() || why != fserr.NotReady {
		t.Errorf("failed replica: %v, %v, %v", server, why, err)
	}
	// A peer that has a higher epoch tells the client to fetch its layout.
	f.must(b.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: 7, Epoch: 5})
	code, _ = c.ordered(7, 2, 0, p, b.ID())
	c.want(code, fserr.StaleEpoch, "write with a stale epoch at the peer")
	// A fence at a peer counts.
	f.must(b.ID(), wire.Fence, &msg.Fence{Sessions: []uint64{20}})
	code, _ = c.ordered(7, 5, 0, p, b.ID())
	c.want(code, fserr.Fenced, "write of a session that a peer has fenced")
	code, _ = c.ordered(7, 5, 0, p, 77)
	c.want(code, fserr.ReplicaFailed, "write to a server that nobody knows")
}

// sameReplicas compares the first blocks of a chunk on several servers.
func sameReplicas(t *testing.T, k id.ChunkID, e id.Epoch, servers ...*testServer) {
	t.Helper()
	var first []byte
	for i, s := range servers {
		c := dial(t, s, 1000)
		code, p := c.read(k, e, 0, 16*block)
		c.want(code, fserr.OK, "read from %v", s.ID())
		if i == 0 {
			first = p
		} else if !bytes.Equal(p, first) {
			t.Fatalf("%v and %v differ", servers[0].ID(), s.ID())
		}
	}
}

func TestForwardWaitsForPeer(t *testing.T) {
	f := newFakeLeader(t)
	a, b := newTestServer(t, f), newTestServer(t, f)
	waitPeers(t, a, b)
	f.create(7, 1, a, b)
	c := dial(t, a, 20)
	code, _ := c.ordered(7, 1, 0, pattern(1, block), b.ID())
	c.want(code, fserr.OK, "write")
	g := b.hang.hang()
	old, newer := pattern(2, block), pattern(3, block)
	r := writeRequest(7, 0, old)
	r.Session, r.Flags, r.Forward = 20, wire.Ordered, [4]id.ServerID{b.ID()}
	done := make(chan *wire.Call, 1)
	c.c.Start(&wire.Frame{Type: wire.Write, Epoch: 1, Body: r.Append(nil), Data: old}, done)
	<-g.arrived
	c.c.Close()
	next := make(chan *client, 1)
	go func() { next <- dialLane(t, a.Addr(), 20, 0) }()
	// The write at b outlives the client's connection: it must be over before the client may write again.
	b.hang.release()
	n := <-next
	code, _ = n.ordered(7, 1, 0, newer, b.ID())
	n.want(code, fserr.OK, "write on the new connection")
	sameReplicas(t, 7, 1, a, b)
	if _, p := n.read(7, 1, 0, block); !bytes.Equal(p, newer) {
		t.Error("the older write came last")
	}
}

func TestDiff(t *testing.T) {
	theirs, ours := make([]uint32, chunk.Blocks), make([]uint32, chunk.Blocks)
	if runs := diff(theirs, ours); len(runs) != 0 {
		t.Errorf("equal tables differ: %v", runs)
	}
	ours[3], ours[4], theirs[5], theirs[9] = 1, 1, 1, 1
	for i := 100; i < 100+rebuildRun+1; i++ {
		theirs[i] = 7
	}
	want := []run{{3, 2, true}, {5, 1, false}, {9, 1, false}, {100, rebuildRun, false}, {100 + rebuildRun, 1, false}}
	got := diff(theirs, ours)
	if len(got) != len(want) {
		t.Fatalf("runs: %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("run %d: %v, want %v", i, got[i], want[i])
		}
	}
}
