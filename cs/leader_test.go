package cs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/planes"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

var testCluster = id.Cluster{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

const testTimeout = time.Minute

// longLease is the lease of a server that is to keep it, in milliseconds: a third of it bounds what a heartbeat takes, also on a machine that stands still for a while.
const longLease = 60_000

// fakeLeader is a metadata server as far as a chunk server can tell.
type fakeLeader struct {
	t        testing.TB
	listener net.Listener
	server   *wire.Server

	mu       sync.Mutex
	byUUID   map[string]uint32
	conns    map[uint32]*wire.Conn
	addrs    map[uint32]string
	reports  map[uint32][]*msg.ChunkInfo // of the last registration
	reported map[uint32]int              // complete reports
	beats    map[uint32]*msg.Heartbeat
	leaseMs  uint32
	beatMs   uint32
	fenced   []uint64
	follows  string        // if set: not the leader, that one is
	silent   bool          // heartbeats and registrations are not answered with OK
	refused  chan struct{} // told of each of these, unless it is nil or full
	answer   func(*msg.ChunkReport) *msg.ChunkReportReply
	ca       *securetest.CA // if set: the cluster is secured; chunk servers are on node "host"
	signer   *pki.Signer    // if it is
	hellos   int
	version  uint64 // of what it tells of who may speak
	dataTLS  bool
	ahead    time.Duration // of its clock
}

func newFakeLeader(t testing.TB) *fakeLeader { return newFakeLeaderOf(t, nil) }

func newFakeLeaderOf(t testing.TB, ca *securetest.CA) *fakeLeader {
	var network wire.Network = wire.TCP{}
	if ca != nil {
		network = secure.New(secure.Options{Credentials: ca.Node(t, "leader"), Logger: quiet()})
	}
	l, err := network.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeLeader{
		t: t, ca: ca, listener: l, byUUID: map[string]uint32{}, conns: map[uint32]*wire.Conn{}, addrs: map[uint32]string{},
		reports: map[uint32][]*msg.ChunkInfo{}, reported: map[uint32]int{}, beats: map[uint32]*msg.Heartbeat{},
		leaseMs: longLease, beatMs: 20,
	}
	if ca != nil {
		if f.signer, err = pki.NewSigner(testCluster, 1); err != nil {
			t.Fatal(err)
		}
	}
	f.server = &wire.Server{Accept: f.accept, Logger: quiet()}
	go f.server.Serve(l)
	t.Cleanup(f.stop)
	return f
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (f *fakeLeader) addr() string { return f.listener.Addr().String() }

func (f *fakeLeader) stop() {
	f.listener.Close()
	f.server.Close()
}

func (f *fakeLeader) accept(c *wire.Conn, hello *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
	asking := hello.Role == msg.Hello_ADMIN && len(hello.Cluster) == 0
	if !asking && string(hello.Cluster) != string(testCluster[:]) {
		return nil, nil, fserr.WrongCluster
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hellos++
	return f, &msg.HelloReply{Cluster: testCluster[:], Name: "lake", Proof: wire.MetaProof(c, f.signer)}, fserr.OK
}

// Serve implements wire.Handler.
func (f *fakeLeader) Serve(_ context.Context, c *wire.Conn, req *wire.Frame) {
	code, reply := f.serve(c, req)
	_ = c.ReplyMessage(req, code, reply)
}

func (f *fakeLeader) serve(c *wire.Conn, req *wire.Frame) (fserr.Code, wire.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.Type == wire.Members {
		return fserr.OK, &msg.MembersReply{Addrs: []string{f.addr()}, Leader: f.follows}
	}
	if f.follows != "" {
		return fserr.NotLeader, nil
	}
	if f.silent {
		select {
		case f.refused <- struct{}{}:
		default:
		}
		return fserr.Unavailable, nil
	}
	switch req.Type {
	case wire.Trust:
		return fserr.OK, f.ca.Told(max(f.version, 1), []pki.CapabilityKey{f.signer.Key()})
	case wire.RegisterServer:
		m := new(msg.RegisterServer)
		if m.UnmarshalVT(req.Body) != nil {
			return fserr.Protocol, nil
		}
		n := f.byUUID[string(m.Uuid)]
		if n == 0 {
			n = m.Server
			if n == 0 {
				n = uint32(len(f.byUUID) + 1)
			}
			f.byUUID[string(m.Uuid)] = n
		}
		f.conns[n], f.addrs[n], f.reports[n] = c, m.Addr, nil
		return fserr.OK, &msg.RegisterServerReply{Server: n, HeartbeatMs: f.beatMs, LeaseMs: f.leaseMs, Fenced: f.fenced, Peers: f.peersLocked(),
			DataTls: f.dataTLS, Now: time.Now().Add(f.ahead).UnixNano()}
	case wire.ChunkReport:
		m := new(msg.ChunkReport)
		if m.UnmarshalVT(req.Body) != nil {
			return fserr.Protocol, nil
		}
		f.reports[m.Server] = append(f.reports[m.Server], m.Chunks...)
		if m.Last {
			f.reported[m.Server]++
		}
		if f.answer != nil {
			return fserr.OK, f.answer(m)
		}
		return fserr.OK, &msg.ChunkReportReply{}
	case wire.Heartbeat:
		m := new(msg.Heartbeat)
		if m.UnmarshalVT(req.Body) != nil {
			return fserr.Protocol, nil
		}
		f.beats[m.Server] = m
		return fserr.OK, &msg.HeartbeatReply{Peers: f.peersLocked(), LeaseMs: f.leaseMs, Fenced: f.fenced, DataTls: f.dataTLS,
			Now: time.Now().Add(f.ahead).UnixNano()}
	}
	return fserr.Protocol, nil
}

func (f *fakeLeader) peersLocked() []*msg.Peer {
	var list []*msg.Peer
	for n, addr := range f.addrs {
		p := &msg.Peer{Server: n, Addr: planes.Book(addr).Addr(planes.Replication), RepairAddr: planes.Book(addr).Addr(planes.Repair)}
		if f.ca != nil {
			p.Node = "host"
		}
		list = append(list, p)
	}
	return list
}

func (f *fakeLeader) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// ask sends a request to a chunk server and returns the outcome.
func (f *fakeLeader) ask(server id.ServerID, t wire.Type, req, reply wire.Message) fserr.Code {
	f.t.Helper()
	f.mu.Lock()
	c := f.conns[uint32(server)]
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	code, err := c.CallMessage(ctx, t, wire.ClassMeta, req, reply)
	if err != nil {
		f.t.Fatalf("ask type %d: %v", t, err)
	}
	return code
}

func (f *fakeLeader) must(server id.ServerID, t wire.Type, req wire.Message) {
	f.t.Helper()
	if code := f.ask(server, t, req, nil); code != fserr.OK {
		f.t.Fatalf("request type %d to %v: %v", t, server, code)
	}
}

func (f *fakeLeader) create(c id.ChunkID, e id.Epoch, servers ...*testServer) {
	f.t.Helper()
	for _, s := range servers {
		f.must(s.ID(), wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(c), Epoch: uint64(e)})
	}
}

// testServer is a chunk server on a disk in memory.
type testServer struct {
	*Server
	o    Options
	disk *disk.Faulty
	hang *hangFS // over disk
	run  chan error
}

func testOptions(f *fakeLeader) Options {
	var creds *pki.Credentials
	if f.ca != nil {
		creds = f.ca.Node(f.t, "host")
	}
	return Options{ // a busy machine is not to be taken for a server that fails
		Credentials: creds,
		Dir:         "/cs", Metas: []string{f.addr()}, Addr: "127.0.0.1:0", Host: "h", Logger: quiet(),
		ForwardTimeout: testTimeout, Store: store.Options{SettleEvery: -1}, Memory: MinMemory, trace: true, Reactors: testReactors,
	}
}

// newTestServer makes a chunk server, starts it and waits until it is registered.
func newTestServer(t testing.TB, f *fakeLeader) *testServer {
	return newTestServerWith(t, f, func(*Options) {})
}

func newTestServerWith(t testing.TB, f *fakeLeader, change func(*Options)) *testServer {
	t.Helper()
	d := new(disk.Faulty)
	s := &testServer{o: testOptions(f), disk: d, hang: &hangFS{FS: d}}
	change(&s.o)
	s.o.FS = s.hang
	mustInit(t, s.o)
	s.start(t)
	s.waitServing(t)
	t.Cleanup(func() {
		s.Kill()
		if s.endErr != nil {
			t.Error(s.endErr)
		}
		s.disk.Kill()
	})
	return s
}

// mustInit makes the directory of a server. A leader that a busy machine kept from answering in time is asked again.
func mustInit(t testing.TB, o Options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for {
		_, err := Init(ctx, o)
		if err == nil {
			return
		}
		if !errors.Is(err, fserr.Unavailable) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// endLease has the leader be silent, and the lease of the server, which nothing renews any more, end soon.
func (s *testServer) endLease(t testing.TB, f *fakeLeader) {
	t.Helper()
	f.set(func() { f.silent = true })
	wait(t, "the server to lose its leader", func() bool { return s.leading.Load() == nil })
	s.lease.expiry.Store(bootTime() + time.Second.Nanoseconds())
	wait(t, "the lease to end", func() bool { return !s.lease.held() })
}

func (s *testServer) start(t testing.TB) {
	t.Helper()
	var err error
	if s.Server, err = Open(s.o); err != nil {
		t.Fatal(err)
	}
	server, run := s.Server, make(chan error, 1)
	s.run = run
	go func() { run <- server.Run(context.Background()) }()
}

func (s *testServer) waitServing(t testing.TB) {
	t.Helper()
	wait(t, "the server to serve", func() bool { return s.accepted.Load() && s.lease.held() })
}

// crash ends the server and its process, keeping what is on the disk.
func (s *testServer) crash() {
	s.disk.Kill()
	s.Kill()
	s.disk.Kill()
}

func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(testTimeout); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", testTimeout, what)
		}
	}
}

// client is a bare client of one chunk server.
type client struct {
	t       testing.TB
	c       *wire.Conn
	session id.SessionID
}

func dialLane(t testing.TB, addr string, session id.SessionID, lane uint32) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	hello := &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CLIENT, Session: uint64(session), Lane: lane}
	c, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t: t, c: c, session: session}
}

func dial(t testing.TB, s *testServer, session id.SessionID) *client {
	t.Helper()
	return dialLane(t, s.Addr(), session, 0)
}

// do sends a data request; the answer's body and data are copies.
func (c *client) do(t wire.Type, e id.Epoch, r wire.DataRequest, data []byte) (fserr.Code, []byte, []byte) {
	c.t.Helper()
	r.Session = c.session
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	f, err := c.c.Call(ctx, &wire.Frame{Type: t, Class: wire.ClassGuest, Epoch: e, Body: r.Append(nil), Data: data})
	if err != nil {
		c.t.Errorf("request type %d: %v", t, err)
		return fserr.Unavailable, nil, nil
	}
	defer f.Release()
	return f.Code, append([]byte(nil), f.Body...), append([]byte(nil), f.Data...)
}

func (c *client) write(k id.ChunkID, e id.Epoch, off uint32, p []byte) fserr.Code {
	c.t.Helper()
	code, _, _ := c.do(wire.Write, e, writeRequest(k, off, p), p)
	return code
}

func writeRequest(k id.ChunkID, off uint32, p []byte) wire.DataRequest {
	return wire.DataRequest{Chunk: k, Offset: off, Length: uint32(len(p)), Sums: chunk.AppendSums(nil, off, p)}
}

// read returns the blocks after it verified them.
func (c *client) read(k id.ChunkID, e id.Epoch, off, n uint32) (fserr.Code, []byte) {
	c.t.Helper()
	code, body, data := c.do(wire.Read, e, wire.DataRequest{Chunk: k, Offset: off, Length: n}, nil)
	if code != fserr.OK {
		return code, nil
	}
	if i := chunk.VerifySums(wire.DecodeSums(nil, body), off, data); i >= 0 || len(data) != int(n) {
		c.t.Errorf("read of %d bytes at %d: %d bytes, part %d does not match its checksum", n, off, len(data), i)
	}
	return code, data
}

func (c *client) want(got, want fserr.Code, format string, args ...any) {
	c.t.Helper()
	if got != want {
		c.t.Fatalf("%s: %v, want %v", fmt.Sprintf(format, args...), got, want)
	}
}
