package cs

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const block = chunk.BlockSize

func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func TestReadWrite(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	p := pattern(1, 3*block+100)
	c.want(c.write(7, 1, 1000, p), fserr.OK, "write")
	want := make([]byte, 5*block)
	copy(want[1000:], p)
	code, got := c.read(7, 1, 0, 5*block)
	c.want(code, fserr.OK, "read")
	if !bytes.Equal(got, want) {
		t.Error("read returns other bytes than were written")
	}
	code, _, _ = c.do(wire.Punch, 1, wire.DataRequest{Chunk: 7, Offset: block, Length: block}, nil)
	c.want(code, fserr.OK, "punch")
	code, _, _ = c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
	c.want(code, fserr.OK, "flush")
	clear(want[block : 2*block])
	if _, got = c.read(7, 1, 0, 5*block); !bytes.Equal(got, want) {
		t.Error("read after punch returns other bytes")
	}
	seek := &msg.ChunkSeekReply{}
	body, _ := (&msg.ChunkSeek{Chunk: 7, Offset: 10, Hole: true}).MarshalVT()
	fr, err := c.c.Call(context.Background(), &wire.Frame{Type: wire.ChunkSeek, Epoch: 1, Body: body})
	if err != nil || fr.Code != fserr.OK || seek.UnmarshalVT(fr.Body) != nil || !seek.Found || seek.Offset != block {
		t.Errorf("seek: %+v, %v", seek, err)
	}
	verify := &msg.ChunkVerifyReply{}
	if code, err := c.c.CallMessage(context.Background(), wire.ChunkVerify, wire.ClassScrub, &msg.ChunkVerify{Chunk: 7}, verify); err != nil || code != fserr.OK ||
		verify.Blocks != 3 || verify.Bad != 0 || len(verify.Digest) != 32 {
		t.Errorf("verify: %v, %v, %+v", verify, err, code)
	}
	list := &msg.ChunkListReply{}
	if code, err := c.c.CallMessage(context.Background(), wire.ChunkList, wire.ClassMeta, &msg.ChunkList{}, list); err != nil || code != fserr.OK || len(list.Chunks) != 1 || !list.Last {
		t.Errorf("list: %v, %v, %+v", list, err, code)
	}
	st := s.Stats()
	if st.Writes != 1 || st.Reads != 2 || st.Punches != 1 || st.Flushes != 1 || st.WriteBytes != uint64(len(p)) || st.Latency == 0 || st.UnderWay != 0 {
		t.Errorf("stats: %+v", st)
	}
}

func TestOutcomes(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 3, s)
	f.must(s.ID(), wire.ChunkJoin, &msg.ChunkJoin{Chunk: 8, Epoch: 3})
	c := dial(t, s, 5)
	p := pattern(1, block)
	c.want(c.write(7, 2, 0, p), fserr.StaleEpoch, "write at a lower epoch")
	c.want(c.write(9, 2, 0, p), fserr.NoChunk, "write to no chunk")
	c.want(c.write(8, 3, 0, p), fserr.OK, "write to a joining replica")
	code, _ := c.read(8, 3, 0, block)
	c.want(code, fserr.NotReady, "read from a joining replica")
	c.want(c.write(7, 4, 0, p), fserr.OK, "write at a higher epoch")
	code, _ = c.read(7, 3, 0, block)
	c.want(code, fserr.StaleEpoch, "read at the epoch before")

	r := writeRequest(7, 0, p)
	r.Sums[0]++
	code, _, _ = c.do(wire.Write, 4, r, p)
	c.want(code, fserr.BadChecksum, "write with a bad checksum")
	tests := []struct {
		name string
		typ  wire.Type
		req  wire.DataRequest
		data []byte
		want fserr.Code
	}{
		{"missing checksum", wire.Write, wire.DataRequest{Chunk: 7, Length: block}, p, fserr.Protocol},
		{"length and data differ", wire.Write, wire.DataRequest{Chunk: 7, Length: 5}, p, fserr.Protocol},
		{"empty write", wire.Write, wire.DataRequest{Chunk: 7}, nil, fserr.Invalid},
		{"read of no block", wire.Read, wire.DataRequest{Chunk: 7}, nil, fserr.Invalid},
		{"unaligned read", wire.Read, wire.DataRequest{Chunk: 7, Offset: 1, Length: block}, nil, fserr.Invalid},
		{"too long a read", wire.Read, wire.DataRequest{Chunk: 7, Length: wire.MaxData + block}, nil, fserr.Invalid},
		{"empty punch", wire.Punch, wire.DataRequest{Chunk: 7}, nil, fserr.Invalid},
		{"forwarded by a client", wire.Punch, wire.DataRequest{Chunk: 7, Length: 1, Flags: wire.Forwarded}, nil, fserr.Protocol},
		{"list without order", wire.Punch, wire.DataRequest{Chunk: 7, Length: 1, Forward: [4]id.ServerID{2}}, nil, fserr.Protocol},
	}
	for _, tt := range tests {
		code, _, _ := c.do(tt.typ, 4, tt.req, tt.data)
		c.want(code, tt.want, "%s", tt.name)
	}
	none := dial(t, s, 0)
	none.want(none.write(7, 4, 0, p), fserr.NoSession, "write without a session")
	none.session = 5
	none.want(none.write(7, 4, 0, p), fserr.NoSession, "write with another's session")
	code2, err := c.c.CallMessage(context.Background(), wire.RegisterServer, wire.ClassMeta, &msg.RegisterServer{}, nil)
	if err != nil || code2 != fserr.Protocol {
		t.Errorf("request of a type that is not for a chunk server: %v, %v", code2, err)
	}
}

func TestBitRot(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, 2*block)), fserr.OK, "write")
	if err := s.disk.Flip("/cs/chunks/07/0000000000000007.chk", 1<<20+block+5); err != nil {
		t.Fatal(err)
	}
	code, _ := c.read(7, 1, 0, 2*block)
	c.want(code, fserr.IO, "read of a rotten block")
	c.want(c.write(7, 1, block+1, []byte("x")), fserr.IO, "write into a rotten block")
	code, _ = c.read(7, 1, 0, block)
	c.want(code, fserr.OK, "read of another block")
	if s.Stats().Failed {
		t.Error("a rotten block took the disk out of service")
	}
}

func TestFence(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c, other := dial(t, s, 5), dial(t, s, 6)
	p := pattern(1, block)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")

	// A write that hangs in the disk: the fence must wait for it.
	g := s.hang.hang()
	wrote := make(chan fserr.Code, 1)
	go func() { wrote <- c.write(7, 1, block, p) }()
	<-g.arrived
	fenced := make(chan fserr.Code, 1)
	go func() { fenced <- f.ask(s.ID(), wire.Fence, &msg.Fence{Sessions: []uint64{5}}, nil) }()
	wait(t, "the session to be fenced", func() bool { return s.Stats().Fenced == 1 })
	c.want(c.write(7, 1, 2*block, p), fserr.Fenced, "write of a fenced session")
	select {
	case <-fenced:
		t.Fatal("fence answered while a write is under way")
	case <-time.After(50 * time.Millisecond):
	}
	s.hang.release()
	c.want(<-wrote, fserr.OK, "write that was under way")
	c.want(<-fenced, fserr.OK, "fence")
	code, _ := c.read(7, 1, 0, block)
	c.want(code, fserr.Fenced, "read of a fenced session")
	other.want(other.write(7, 1, 0, p), fserr.OK, "write of another session")

	f.set(func() { f.fenced = []uint64{5, 6} })
	wait(t, "the list of a heartbeat", func() bool { return s.Stats().Fenced == 2 })
	other.want(other.write(7, 1, 0, p), fserr.Fenced, "write of a session fenced by heartbeat")
}

func TestLaneReplacement(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	g := s.hang.hang()
	old := pattern(2, block)
	r := writeRequest(7, 0, old)
	r.Session = 5
	done := make(chan *wire.Call, 1)
	c.c.Start(&wire.Frame{Type: wire.Write, Class: wire.ClassGuest, Epoch: 1, Body: r.Append(nil), Data: old}, done)
	<-g.arrived
	dialLane(t, s.Addr(), 5, 1) // another lane is not in the way
	dialLane(t, s.Addr(), 6, 0) // nor another session
	next := make(chan *client, 1)
	go func() { next <- dialLane(t, s.Addr(), 5, 0) }()
	if call := <-done; call.Err == nil {
		t.Fatal("the older connection was not closed")
	}
	select {
	case <-next:
		t.Fatal("greeted while a write of the older connection is under way")
	case <-time.After(50 * time.Millisecond):
	}
	s.hang.release()
	n := <-next
	newer := pattern(3, block)
	n.want(n.write(7, 1, 0, newer), fserr.OK, "write on the new connection")
	if _, got := n.read(7, 1, 0, block); !bytes.Equal(got, newer) {
		t.Error("the older write came after the newer one")
	}
	n.c.Close()
	wait(t, "lanes to be forgotten", func() bool { return s.Stats().Connections == 2 })
}

func TestGarbageAndWrongCluster(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	rng := rand.New(rand.NewPCG(1, 1))
	preface := wire.Preface()
	for i := range 50 {
		nc, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		b := pattern(rng.Uint64(), 1+rng.IntN(4096))
		if i%2 == 0 {
			copy(b, preface[:])
		}
		_, _ = nc.Write(b)
		nc.Close()
	}
	hello := &msg.Hello{Cluster: make([]byte, 16), Role: msg.Hello_CLIENT}
	if _, _, err := wire.Dial(context.Background(), s.Addr(), hello, nil, wire.Options{}); fserr.Of(err) != fserr.WrongCluster {
		t.Errorf("hello of another cluster: %v", err)
	}
	hello.Cluster, hello.Role = testCluster[:], msg.Hello_UNKNOWN
	if _, _, err := wire.Dial(context.Background(), s.Addr(), hello, nil, wire.Options{}); fserr.Of(err) != fserr.Protocol {
		t.Errorf("hello of nobody: %v", err)
	}
	admin, reply, err := wire.Dial(context.Background(), s.Addr(), &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
	if err != nil || string(reply.Cluster) != string(testCluster[:]) || reply.Name != "lake" || id.ServerID(reply.Server) != s.ID() {
		t.Errorf("asked what cluster this is: %+v, %v", reply, err)
	} else if _, err := admin.CallMessage(context.Background(), wire.ChunkList, wire.ClassMeta, &msg.ChunkList{}, nil); err == nil {
		t.Error("one who did not name the cluster got an answer")
	}
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write after garbage")
}

func TestFailedDisk(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	s.disk.Inject(func(op disk.Op) error {
		if op.Kind == "sync" {
			return disk.ErrPowerOff
		}
		return nil
	})
	code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
	c.want(code, fserr.IO, "flush")
	s.disk.Inject(nil)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.IO, "write after a failed sync")
	code, _ = c.read(7, 1, 0, block)
	c.want(code, fserr.IO, "read after a failed sync")
	wait(t, "a heartbeat to say so", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		b := f.beats[uint32(s.ID())]
		return b != nil && b.State == "failed"
	})
}
