package cs

import (
	"bytes"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// named sends a write that has a name through the first replica.
func (c *client) named(seq uint64, e id.Epoch, off uint32, p []byte, list ...id.ServerID) (fserr.Code, []byte) {
	c.t.Helper()
	r := writeRequest(7, off, p)
	r.Flags, r.Seq, r.Low = wire.Ordered, seq, seq
	copy(r.Forward[:], list)
	code, body, _ := c.do(wire.Write, e, r, p)
	return code, body
}

// first reads as under a shared-write lease.
func (c *client) first(e id.Epoch, off, n uint32, list ...id.ServerID) (fserr.Code, []byte) {
	c.t.Helper()
	r := wire.DataRequest{Chunk: 7, Offset: off, Length: n, Flags: wire.Ordered}
	copy(r.Forward[:], list)
	code, _, data := c.do(wire.Read, e, r, nil)
	return code, data
}

func (c *client) wantBlocks(e id.Epoch, what string, want []byte) {
	c.t.Helper()
	code, got := c.read(7, e, 0, uint32(len(want)))
	c.want(code, fserr.OK, "%s", what)
	if !bytes.Equal(got, want) {
		c.t.Errorf("%s: other bytes than those wanted", what)
	}
}

func wantFailed(t *testing.T, code fserr.Code, body []byte, server id.ServerID, why fserr.Code) {
	t.Helper()
	s, w, err := wire.DecodeReplicaFailed(body)
	if code != fserr.ReplicaFailed || err != nil || s != server || w != why {
		t.Errorf("answer %v, %v, %v, %v, want that %v fails with %v", code, s, w, err, server, why)
	}
}

// cluster is three replicas of chunk 7 at epoch 1, and two mounts.
type cluster struct {
	f       *fakeLeader
	s       []*testServer
	a, b    *client // of the first replica
	w1, w2  []byte
	one     []byte // a block of zeros
	session id.SessionID
}

func newCluster(t *testing.T) *cluster {
	f := newFakeLeader(t)
	x := &cluster{f: f, s: []*testServer{newTestServer(t, f), newTestServer(t, f), newTestServer(t, f)}, session: 20}
	for i, s := range x.s {
		waitPeers(t, s, x.s[(i+1)%3], x.s[(i+2)%3])
	}
	f.create(7, 1, x.s...)
	x.a, x.b = dial(t, x.s[0], x.session), dial(t, x.s[0], 30)
	x.w1, x.w2, x.one = pattern(1, block), pattern(2, block), make([]byte, block)
	return x
}

func (x *cluster) id(i int) id.ServerID { return x.s[i].ID() }

// mustName has a named write succeed.
func mustName(c *client, seq uint64, e id.Epoch, off uint32, p []byte, list ...id.ServerID) {
	c.t.Helper()
	code, _ := c.named(seq, e, off, p, list...)
	c.want(code, fserr.OK, "named write")
}

// TestOrderedOnce: a change that is sent again, since its answer was lost, does not come back over a later one.
func TestOrderedOnce(t *testing.T) {
	x := newCluster(t)
	list := []id.ServerID{x.id(1), x.id(2)}
	mustName(x.a, 1, 1, 0, x.w1, list...)
	mustName(x.b, 1, 1, 0, x.w2, list...) // the same number, of another session
	mustName(x.a, 1, 1, 0, x.w1, list...)
	for _, s := range x.s {
		dial(t, s, 40).wantBlocks(1, "after a write that came again", x.w2)
	}
	if n := x.s[0].stats.repeats.Load(); n != 1 {
		t.Errorf("%d repeats", n)
	}
	// A punch as well.
	r := wire.DataRequest{Chunk: 7, Length: block, Flags: wire.Ordered, Seq: 2, Low: 2, Forward: [4]id.ServerID{x.id(1), x.id(2)}}
	code, _, _ := x.a.do(wire.Punch, 1, r, nil)
	x.a.want(code, fserr.OK, "punch")
	mustName(x.b, 2, 1, 0, x.w2, list...)
	code, _, _ = x.a.do(wire.Punch, 1, r, nil)
	x.a.want(code, fserr.OK, "punch again")
	for _, s := range x.s {
		dial(t, s, 40).wantBlocks(1, "after a punch that came again", x.w2)
	}
	// What the session has said is over is forgotten, and refused.
	if n := x.s[0].orders.count(); n != 2 {
		t.Errorf("%d changes remembered, want the last of each session", n)
	}
	code, _ = x.a.named(1, 1, 0, x.w1, list...)
	x.a.want(code, fserr.Protocol, "a change that is over")
}

// TestOrderedIsShownWhenAllHaveIt: a write that some replica has not got is shown by none that is asked, and is done once when the replica set has changed.
func TestOrderedIsShownWhenAllHaveIt(t *testing.T) {
	x := newCluster(t)
	x.s[2].crash()
	code, body := x.a.named(1, 1, 0, x.w1, x.id(1), x.id(2))
	wantFailed(t, code, body, x.id(2), fserr.Unavailable)
	code, got := x.b.first(1, 0, block, x.id(1), x.id(2))
	x.b.want(code, fserr.OK, "read")
	if !bytes.Equal(got, x.one) {
		t.Error("the first replica shows what another one lacks")
	}
	// Without the third, another mount is faster.
	mustName(x.b, 1, 2, 0, x.w2, x.id(1))
	mustName(x.a, 1, 2, 0, x.w1, x.id(1))
	mustName(x.b, 2, 2, 0, x.w2, x.id(1))
	mustName(x.a, 1, 2, 0, x.w1, x.id(1))
	for _, s := range x.s[:2] {
		dial(t, s, 40).wantBlocks(2, "after all", x.w2)
	}
}

// TestOrderedNewFirst: the first replica dies after others have a write. The next one that has it shows it when all have it, and it is not done again;
// where the next one has not got it, it is done for the first time, over whatever was written since.
func TestOrderedNewFirst(t *testing.T) {
	for _, has := range []bool{true, false} {
		x := newCluster(t)
		// As the first replica does that dies before it is done: the second or the third has it.
		r := writeRequest(7, 0, x.w1)
		r.Session, r.Flags, r.Seq, r.Low = x.session, wire.Forwarded, 1, 1
		next, other := 1, 2
		if !has {
			next, other = 2, 1
		}
		peer := dialPeer(t, x.s[1], x.id(0))
		code, _, _ := peer.do(wire.Write, 1, r, x.w1)
		peer.want(code, fserr.OK, "forwarded write")
		x.s[0].crash()
		a, b := dial(t, x.s[next], x.session), dial(t, x.s[next], 30)
		code, got := b.first(2, 0, block, x.id(other))
		b.want(code, fserr.OK, "read")
		want := x.one
		if has {
			want = x.w1
			dial(t, x.s[other], 40).wantBlocks(2, "the other replica", x.w1)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("has=%t: the next first replica shows other bytes", has)
		}
		mustName(b, 1, 2, 0, x.w2, x.id(other))
		mustName(a, 1, 2, 0, x.w1, x.id(other))
		want = x.w1
		if has {
			want = x.w2
		}
		for _, s := range x.s[1:] {
			dial(t, s, 40).wantBlocks(2, "at the end", want)
		}
	}
}

// TestOrderedUndone: where replicas are made equal, a change that the first one has not got is undone in part, and is done again there alone.
func TestOrderedUndone(t *testing.T) {
	x := newCluster(t)
	old := pattern(5, 4*block)
	mustName(x.b, 1, 1, block, old[block:2*block], x.id(1), x.id(2))
	long := pattern(6, 4*block)
	r := writeRequest(7, 0, long)
	r.Session, r.Flags, r.Seq, r.Low = x.session, wire.Forwarded, 1, 1
	peer := dialPeer(t, x.s[2], x.id(0)) // the third alone has it
	code, _, _ := peer.do(wire.Write, 1, r, long)
	peer.want(code, fserr.OK, "forwarded write")
	x.s[0].crash()
	// The second makes the second block equal, of which it cannot know whether the third has what it has.
	b := dial(t, x.s[1], 30)
	code, _ = b.first(2, block, block, x.id(2))
	b.want(code, fserr.OK, "read")
	if n := x.s[1].stats.settles.Load(); n != 1 {
		t.Errorf("%d times made equal", n)
	}
	x.s[1].crash()
	// Now the third is alone. What it has it shows, and what it has not of the write that comes again it does.
	c, a := dial(t, x.s[2], 30), dial(t, x.s[2], x.session)
	code, got := c.first(3, 0, 4*block)
	c.want(code, fserr.OK, "read")
	want := bytes.Clone(long)
	copy(want[block:], old[block:2*block])
	if !bytes.Equal(got, want) {
		t.Error("the third replica does not have what it was made to")
	}
	mustName(c, 2, 3, 0, x.w2)
	mustName(a, 1, 3, 0, long)
	copy(want, x.w2)
	copy(want[block:], long[block:2*block])
	a.wantBlocks(3, "at the end", want)
}

// TestOrderedAfterRestart: what is remembered survives the death of all processes, and their end in order, but not what took power away.
func TestOrderedAfterRestart(t *testing.T) {
	for _, how := range []string{"killed", "stopped", "power lost"} {
		x := newCluster(t)
		mustName(x.a, 1, 1, 0, x.w1, x.id(1), x.id(2))
		mustName(x.b, 1, 1, 0, x.w2, x.id(1), x.id(2))
		want := x.w2
		for _, s := range x.s {
			switch how {
			case "killed":
				s.crash()
			case "stopped":
				if err := s.Shutdown(t.Context()); err != nil {
					t.Fatal(err)
				}
			default:
				s.crash()
				s.o.Store.Boot = "another"
				want = x.w1
			}
		}
		for _, s := range x.s {
			s.start(t)
			s.waitServing(t)
		}
		if how != "stopped" {
			for _, s := range x.s {
				x.f.must(s.ID(), wire.ChunkAccept, &msg.ChunkAccept{Chunks: []uint64{7}})
			}
		}
		for i, s := range x.s {
			waitPeers(t, s, x.s[(i+1)%3], x.s[(i+2)%3])
		}
		mustName(dial(t, x.s[0], x.session), 1, 1, 0, x.w1, x.id(1), x.id(2))
		for _, s := range x.s {
			dial(t, s, 40).wantBlocks(1, how, want)
		}
	}
}

// TestOrderedAfterJoin: a replica that joins takes over what is remembered, and forgets what it had before.
func TestOrderedAfterJoin(t *testing.T) {
	x := newCluster(t)
	mustName(x.a, 1, 1, 0, x.w1, x.id(1), x.id(2))
	mustName(x.b, 1, 1, 0, x.w2, x.id(1), x.id(2))
	// The third has besides what the others have not.
	lone := pattern(9, block)
	r := writeRequest(7, 4*block, lone)
	r.Session, r.Flags, r.Seq, r.Low = x.session, wire.Forwarded, 2, 1
	peer := dialPeer(t, x.s[2], x.id(0))
	code, _, _ := peer.do(wire.Write, 1, r, lone)
	peer.want(code, fserr.OK, "forwarded write")
	x.f.must(x.id(2), wire.ChunkJoin, &msg.ChunkJoin{Chunk: 7, Epoch: 2})
	x.f.must(x.id(0), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: 7, Epoch: 2})
	x.f.must(x.id(2), wire.ChunkRebuild, &msg.ChunkRebuild{Chunk: 7, Epoch: 2, Source: uint32(x.id(0)), SourceAddr: x.s[0].Addr()})
	x.f.must(x.id(2), wire.ChunkPromote, &msg.ChunkPromote{Chunk: 7, Epoch: 2})
	x.s[0].crash()
	x.s[1].crash()
	a := dial(t, x.s[2], x.session)
	code, _ = a.named(1, 3, 0, x.w1)
	a.want(code, fserr.OK, "write again")
	a.wantBlocks(3, "what came again", x.w2)
	r = writeRequest(7, 4*block, lone)
	r.Flags, r.Seq, r.Low, r.Recent = wire.Ordered, 2, 1, 1
	code, _, _ = a.do(wire.Write, 3, r, lone)
	a.want(code, fserr.OK, "write that was lost with the join")
	if code, got := a.read(7, 3, 4*block, block); code != fserr.OK || !bytes.Equal(got, lone) {
		t.Errorf("a write that the replica had before it joined, and has not now, was not done: %v", code)
	}
}

// TestOrderedWithoutRoom: a write for which one replica has no room is on none.
func TestOrderedWithoutRoom(t *testing.T) {
	for full := range 3 {
		x := newCluster(t)
		old := pattern(3, 2*block)
		mustName(x.b, 1, 1, 0, old, x.id(1), x.id(2))
		s := x.s[full]
		s.disk.SetCapacity(s.disk.Used() + 2*block)
		long := pattern(4, 8*block) // over two that are there and six that are not
		code, body := x.a.named(1, 1, 0, long, x.id(1), x.id(2))
		if full == 0 {
			x.a.want(code, fserr.NoSpace, "write without room at the first replica")
		} else {
			wantFailed(t, code, body, s.ID(), fserr.NoSpace)
		}
		want := append(bytes.Clone(old), make([]byte, 6*block)...)
		for _, o := range x.s {
			dial(t, o, 40).wantBlocks(1, "after a write without room", want)
		}
		s.disk.SetCapacity(0)
		code, _ = x.a.named(1, 1, 0, long, x.id(1), x.id(2))
		x.a.want(code, fserr.OK, "write with room")
		for _, o := range x.s {
			dial(t, o, 40).wantBlocks(1, "after a write with room", long)
		}
	}
}

// TestOrderedTwiceAtOnce: a change that comes again while it is under way waits for that.
func TestOrderedTwiceAtOnce(t *testing.T) {
	x := newCluster(t)
	mustName(x.a, 1, 1, 0, x.w1, x.id(1), x.id(2))
	g := x.s[1].hang.hang()
	again := dialLane(t, x.s[0].Addr(), x.session, 1)
	codes := make(chan fserr.Code, 2)
	send := func(c *client) {
		code, _ := c.named(2, 1, 0, x.w2, x.id(1), x.id(2))
		codes <- code
	}
	go send(x.a)
	<-g.arrived
	go send(again)
	x.s[1].hang.release()
	for range 2 {
		if code := <-codes; code != fserr.OK {
			t.Errorf("outcome %v", code)
		}
	}
	if n := x.s[0].stats.repeats.Load(); n != 1 {
		t.Errorf("%d repeats", n)
	}
	sameReplicas(t, 7, 1, x.s...)
}

// dialPeer connects as another chunk server.
func dialPeer(t *testing.T, s *testServer, as id.ServerID) *client {
	t.Helper()
	hello := &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CHUNK_SERVER, Server: uint32(as), Lane: 9}
	c, _, err := wire.Dial(t.Context(), s.Addr(), hello, nil, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, c: c, session: 20}
}
