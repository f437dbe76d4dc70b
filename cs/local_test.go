package cs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// newDiskServer is a chunk server on a real disk, whose files have descriptors.
func newDiskServer(t testing.TB, f *fakeLeader, change func(*Options)) *testServer {
	t.Helper()
	s := &testServer{o: testOptions(f)}
	s.o.Dir = t.TempDir()
	if change != nil {
		change(&s.o)
	}
	mustInit(t, s.o)
	s.start(t)
	s.waitServing(t)
	t.Cleanup(func() { s.shutdown(t) })
	return s
}

func (s *testServer) shutdown(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// localClient is a client that reads by itself.
type localClient struct {
	t    testing.TB
	conn *local.Conn
	seat local.Seat
	late []uint64 // revoked while something else was waited for
}

func helloOf(s *testServer, session id.SessionID) local.Packet {
	return local.Packet{Kind: local.Hello, Cluster: testCluster, Server: s.ID(), Session: session}
}

// greet says hello and returns the outcome.
func greet(t testing.TB, s *testServer, hello local.Packet) (*localClient, fserr.Code) {
	t.Helper()
	var conn *local.Conn
	wait(t, "the socket", func() (ok bool) {
		var err error
		conn, err = local.Dial(testCluster, s.ID(), s.Addr())
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	if err := errors.Join(conn.Deadline(time.Now().Add(testTimeout)), conn.Send(&hello, -1)); err != nil {
		t.Fatal(err)
	}
	var p local.Packet
	f, err := conn.Receive(&p)
	if err != nil || p.Kind != local.Welcome {
		t.Fatal(p, err)
	}
	c := &localClient{t: t, conn: conn}
	if p.Code != fserr.OK {
		if f != nil {
			t.Fatal("a refused client gets a descriptor")
		}
		return c, p.Code
	}
	v, err := local.Map(f)
	if err != nil {
		t.Fatal(err)
	}
	c.seat = local.Seat{View: v, Place: p.Place, Stamp: p.Stamp}
	return c, fserr.OK
}

func localDial(t testing.TB, s *testServer, session id.SessionID) *localClient {
	t.Helper()
	c, code := greet(t, s, helloOf(s, session))
	if code != fserr.OK {
		t.Fatal(code)
	}
	return c
}

func (c *localClient) ask(k id.ChunkID, e id.Epoch) (*local.Grant, fserr.Code) {
	c.t.Helper()
	if err := c.conn.Send(&local.Packet{Kind: local.Ask, Chunk: k, Epoch: e}, -1); err != nil {
		c.t.Fatal(err)
	}
	for {
		var p local.Packet
		f, err := c.conn.Receive(&p)
		switch {
		case err != nil:
			c.t.Fatal(err)
		case p.Kind == local.Revoked:
			c.late = append(c.late, p.Stamp)
			continue
		case p.Kind != local.Granted || p.Chunk != k || p.Epoch != e || (p.Code == fserr.OK) != (f != nil):
			c.t.Fatalf("%+v", p)
		}
		if p.Code != fserr.OK {
			return nil, p.Code
		}
		g, err := local.NewGrant(c.seat, p.Place, p.Stamp, f, p.Time)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { g.Close() })
		return g, fserr.OK
	}
}

func (c *localClient) must(k id.ChunkID, e id.Epoch) *local.Grant {
	c.t.Helper()
	g, code := c.ask(k, e)
	if code != fserr.OK {
		c.t.Fatal(code)
	}
	return g
}

// told waits for the news that a grant is over.
func (c *localClient) told(stamp uint64) {
	c.t.Helper()
	for _, s := range c.late {
		if s == stamp {
			return
		}
	}
	for {
		var p local.Packet
		if _, err := c.conn.Receive(&p); err != nil || p.Kind != local.Revoked {
			c.t.Fatalf("%+v, %v; want the end of grant %d", p, err, stamp)
		}
		if p.Stamp == stamp {
			return
		}
	}
}

// localRead reads. A board that the server has not extended in time, since the machine is busy, it waits for.
func localRead(g *local.Grant, first uint32, n int) (p []byte, err error) {
	for end := time.Now().Add(testTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if p, err = localReadOnce(g, first, n); !errors.Is(err, local.ErrLapsed) {
			break
		}
	}
	return p, err
}

func localReadOnce(g *local.Grant, first uint32, n int) ([]byte, error) {
	p := disk.AlignedBuffer(n * block)
	return p, doRead(g, p, first)
}

func wantErr(t testing.TB, g *local.Grant, want error, why string) {
	t.Helper()
	read := localRead
	if want == local.ErrLapsed {
		read = localReadOnce
	}
	if _, err := read(g, 0, 1); !errors.Is(err, want) || (want == nil) != (err == nil) {
		t.Errorf("%s: %v, want %v", why, err, want)
	}
}

func TestLocal(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	f.create(8, 1, s)
	net := dial(t, s, 5)
	p := pattern(1, 3*block)
	net.want(net.write(7, 1, 0, p), fserr.OK, "write")
	c := localDial(t, s, 6)
	g := c.must(7, 1)
	if got, err := localRead(g, 0, 3); err != nil || !bytes.Equal(got, p) {
		t.Fatal("other bytes", err)
	}
	p = pattern(2, 3*block)
	net.want(net.write(7, 1, 0, p), fserr.OK, "write again")
	if got, err := localRead(g, 0, 3); err != nil || !bytes.Equal(got, p) {
		t.Fatal("a write is not seen", err)
	}
	if st := s.Stats(); st.Locals != 1 || st.LocalChunks != 1 {
		t.Errorf("stats: %+v", st)
	}
	for name, ask := range map[string]struct {
		k    id.ChunkID
		e    id.Epoch
		want fserr.Code
	}{
		"no chunk": {9, 1, fserr.NoChunk}, "stale": {8, 0, fserr.StaleEpoch}, "scratch": {1<<63 | 5, 1, fserr.NoChunk},
	} {
		if _, code := c.ask(ask.k, ask.e); code != ask.want {
			t.Errorf("%s: %v, want %v", name, code, ask.want)
		}
	}
	// What the leader does to a chunk ends a grant before the leader has its answer.
	f.must(s.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: 7, Epoch: 2})
	wantErr(t, g, local.ErrRevoked, "adopted")
	c.told(g.Stamp())
	g = c.must(7, 2)
	wantErr(t, g, nil, "granted anew")
	f.must(s.ID(), wire.ChunkJoin, &msg.ChunkJoin{Chunk: 7, Epoch: 3})
	wantErr(t, g, local.ErrRevoked, "joining")
	c.told(g.Stamp())
	if _, code := c.ask(7, 3); code != fserr.NotReady {
		t.Error(code)
	}
	g = c.must(8, 1)
	f.must(s.ID(), wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{8}})
	wantErr(t, g, local.ErrRevoked, "deleted")
	c.told(g.Stamp())

	// Fences are of sessions: by the leader's request, and by heartbeat.
	f.create(9, 1, s)
	g = c.must(9, 1)
	other := localDial(t, s, 7)
	h := other.must(9, 1)
	f.must(s.ID(), wire.Fence, &msg.Fence{Sessions: []uint64{6}})
	wantErr(t, g, local.ErrPlace, "fenced")
	wantErr(t, h, nil, "another session")
	if _, code := c.ask(9, 1); code != fserr.Fenced {
		t.Error(code)
	}
	if _, code := greet(t, s, helloOf(s, 6)); code != fserr.Fenced {
		t.Error("a fenced session is greeted:", code)
	}
	f.set(func() { f.fenced = []uint64{6, 7} })
	wait(t, "the fence of a heartbeat", func() bool { _, err := localRead(h, 0, 1); return errors.Is(err, local.ErrPlace) })
	wantErr(t, h, local.ErrPlace, "fenced by a heartbeat")

	// Whom a server does not greet.
	for name, hello := range map[string]struct {
		p    local.Packet
		want fserr.Code
	}{
		"cluster": {local.Packet{Kind: local.Hello, Cluster: id.Cluster{1}, Server: s.ID(), Session: 8}, fserr.WrongCluster},
		"server":  {local.Packet{Kind: local.Hello, Cluster: testCluster, Server: s.ID() + 1, Session: 8}, fserr.WrongCluster},
		"session": {local.Packet{Kind: local.Hello, Cluster: testCluster, Server: s.ID()}, fserr.Protocol},
		"kind":    {local.Packet{Kind: local.Ask, Cluster: testCluster, Server: s.ID(), Session: 8}, fserr.Protocol},
	} {
		if _, code := greet(t, s, hello.p); code != hello.want {
			t.Errorf("%s: %v, want %v", name, code, hello.want)
		}
	}
	// A client that goes gives its place back.
	other.conn.Close()
	c.conn.Close()
	wait(t, "clients to be forgotten", func() bool { return s.Stats().Locals == 0 })
}

// Without its lease a server is not read, and with it again it is.
func TestLocalLease(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	c := localDial(t, s, 5)
	g := c.must(7, 1)
	wantErr(t, g, nil, "served")
	s.endLease(t, f)
	wantErr(t, g, local.ErrLapsed, "no lease")
	if _, code := c.ask(7, 1); code != fserr.Unavailable {
		t.Error(code)
	}
	if _, code := greet(t, s, helloOf(s, 9)); code != fserr.Unavailable {
		t.Error(code)
	}
	f.set(func() { f.silent = false })
	wantErr(t, g, nil, "the lease has begun again")
}

// The successor of a process that died changes nothing while the board may count.
func TestLocalSuccessor(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	c := localDial(t, s, 5)
	g := c.must(7, 1)
	wantErr(t, g, nil, "served")
	mark := filepath.Join(s.o.Dir, localMark)
	if _, err := os.Stat(mark); err != nil {
		t.Fatal(err)
	}
	board := s.locals.board
	s.Kill()
	board.Extend(local.Clock() + int64(localTerm)) // as late as the process could have
	until := board.Until()
	if err := s.store.Close(); err != nil { // for its lock, which a dead process does not hold
		t.Fatal(err)
	}
	s.start(t)
	s.waitServing(t)
	if now := local.Clock(); now < until {
		t.Errorf("a successor serves %v before the old board has ended", time.Duration(until-now))
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is still there: %v", err)
	}
	if _, err := localReadOnce(g, 0, 1); err == nil {
		t.Error("the board of a dead server counts")
	}
	g = localDial(t, s, 5).must(7, 1)
	wantErr(t, g, nil, "served by the successor")
	s.shutdown(t)
	if _, err := localReadOnce(g, 0, 1); err == nil {
		t.Error("a server that was shut down is read")
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an orderly end leaves the mark: %v", err)
	}
	s.start(t)
	s.waitServing(t)
}

// A client that reads nothing of what it is told is let go; one that sends garbage too.
func TestLocalRude(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	c := localDial(t, s, 5)
	if err := c.conn.Send(&local.Packet{Kind: local.Welcome}, -1); err != nil {
		t.Fatal(err)
	}
	wait(t, "a client with garbage to be let go", func() bool { return s.Stats().Locals == 0 })
	f.create(7, 1, s)
	c = localDial(t, s, 5)
	go func() {
		for e := id.Epoch(1); c.conn.Send(&local.Packet{Kind: local.Ask, Chunk: 7, Epoch: e}, -1) == nil; e++ {
		}
	}()
	wait(t, "a deaf client to be let go", func() bool { return s.Stats().Locals == 0 })
}

func TestLocalOff(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, func(o *Options) { o.LocalChunks = -1 })
	time.Sleep(20 * time.Millisecond)
	if _, err := local.Dial(testCluster, s.ID(), s.Addr()); fserr.Of(err) != fserr.Unavailable {
		t.Fatal(err)
	}
	// A disk without descriptors shares nothing, and says so.
	m := newTestServer(t, f)
	f.create(7, 1, m)
	if _, code := localDial(t, m, 5).ask(7, 1); code != fserr.NotSupported {
		t.Fatal(code)
	}
}

// A bit that flips on the disk is found by the reader.
func TestLocalRot(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	net := dial(t, s, 5)
	p := pattern(3, 2*block)
	net.want(net.write(7, 1, 0, p), fserr.OK, "write")
	g := localDial(t, s, 5).must(7, 1)
	wantErr(t, g, nil, "sound")
	path := filepath.Join(s.o.Dir, "chunks", "07", id.ChunkID(7).String()+".chk")
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const at = 1<<20 + 1234
	if _, err := file.WriteAt([]byte{p[1234] ^ 4}, at); err != nil {
		t.Fatal(err)
	}
	wantErr(t, g, fserr.BadChecksum, "a bit is wrong")
	if _, err := localRead(g, 1, 1); err != nil {
		t.Error("the next block:", err)
	}
	q := pattern(4, block)
	net.want(net.write(7, 1, 0, q), fserr.OK, "write over it")
	if got, err := localRead(g, 0, 1); err != nil || chunk.Sum(got) != chunk.Sum(q) {
		t.Error("written over:", err)
	}
}

func doRead(g *local.Grant, p []byte, first uint32) error {
	op := new(local.Op)
	if err := g.Begin(op, p, first); err != nil {
		return err
	}
	return op.Do()
}
