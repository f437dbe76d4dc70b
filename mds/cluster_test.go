package mds

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/ports"
)

// testCluster is a cluster of metadata servers in this process.
type testCluster struct {
	t       testing.TB
	cluster id.Cluster
	dirs    []string
	addrs   []string
	mu      sync.Mutex
	servers []*Server // nil: stopped; written under mu by the test's own goroutine, or by serve's: then read under mu, too
	tune    func(*Options)
}

func testLogger() *slog.Logger {
	if os.Getenv("VARVE_TEST_LOG") == "" {
		return slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (c *testCluster) options(i int) Options {
	o := Options{
		Dir: c.dirs[i], Logger: testLogger(), ElectionTimeout: 300 * time.Millisecond, SessionLease: 1500 * time.Millisecond,
		ServerTimeout: 800 * time.Millisecond, RequestTimeout: 8 * time.Second, RepairGrace: 200 * time.Millisecond,
		RepairInterval: 50 * time.Millisecond, LostGrace: time.Hour, UnknownGrace: 300 * time.Millisecond, UncleanWait: 500 * time.Millisecond,
	}
	if c.tune != nil {
		c.tune(&o)
	}
	return o
}

// patient is for tests in which nobody is to be missed: a machine that stands still for seconds ends nobody's lease, and no chunk server is taken for silent.
// One whose connection has ended is away at once all the same.
func patient(o *Options) {
	o.SessionLease, o.ServerTimeout, o.RepairGrace = time.Minute, 8*time.Second, time.Second
}

// dying is patient, but for the sessions of clients that fall silent: these end, and until then chunk servers have some time to answer.
func dying(o *Options) {
	patient(o)
	o.SessionLease = 5 * time.Second
}

func newCluster(t testing.TB, n int, tune func(*Options)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, tune: tune}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	root := t.TempDir() // before the servers' clean-up, so that it is removed after they have ended
	t.Cleanup(func() {
		for i := range c.servers {
			c.kill(i)
		}
	})
	for i := range n {
		c.dirs = append(c.dirs, filepath.Join(root, fmt.Sprint("mds", i+1)))
		c.addrs = append(c.addrs, ports.Hold(t))
		c.servers = append(c.servers, nil)
		o := c.options(i)
		o.Addr = c.addrs[i]
		var err error
		if i == 0 {
			o.Name = "test"
			c.cluster, err = Init(o)
		} else {
			_, err = Join(ctx, o, c.addrs[:1])
		}
		if err != nil {
			t.Fatal(err)
		}
		c.start(i)
		if i == 0 {
			c.leader()
		}
	}
	c.eventually("all servers to be voters", func() bool {
		return c.leader().otherVoters() == n-1
	})
	return c
}

func (c *testCluster) start(i int) {
	c.t.Helper()
	s, err := Open(c.options(i))
	if err != nil {
		c.t.Fatal(err)
	}
	c.set(i, s)
}

func (c *testCluster) set(i int, s *Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[i] = s
}

// leading returns the server that leads, or nil.
func (c *testCluster) leading() *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.servers {
		if s != nil && s.Leads() {
			return s
		}
	}
	return nil
}

func (c *testCluster) kill(i int) {
	if s := c.servers[i]; s != nil {
		s.Kill()
		if err := s.Run(); err != nil {
			c.t.Errorf("server %d ended with %v", i, err)
		}
		c.set(i, nil)
	}
}

func (c *testCluster) eventually(what string, fn func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !fn() {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *testCluster) leader() *Server {
	c.t.Helper()
	var found *Server
	c.eventually("a leader", func() bool {
		found = c.leading()
		return found != nil
	})
	return found
}

func (c *testCluster) leaderIndex() (i int) {
	c.t.Helper()
	c.eventually("a leader", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		i = slices.IndexFunc(c.servers, func(s *Server) bool { return s != nil && s.Leads() })
		return i >= 0
	})
	return i
}

// lead returns the leadership of the server that leads.
func (c *testCluster) lead() (l *leadership) {
	c.t.Helper()
	c.eventually("a leader", func() bool {
		if s := c.leading(); s != nil {
			l = s.lead.Load()
		}
		return l != nil
	})
	return l
}

// testClient is a client that speaks the wire protocol and answers callbacks with fn.
type testClient struct {
	c       *testCluster
	session id.SessionID
	nonce   []byte
	mount   string
	seq     atomic.Uint64
	silent  atomic.Bool // renews and answers nothing, on a connection that stays

	mu   sync.Mutex
	conn *wire.Conn
	fn   func(*msg.Callback) *msg.CallbackReply
	got  []*msg.Callback
	stop chan struct{}
}

func (k *testClient) Serve(_ context.Context, c *wire.Conn, f *wire.Frame) {
	cb := new(msg.Callback)
	if err := cb.UnmarshalVT(f.Body); err != nil {
		c.ReplyMessage(f, fserr.Protocol, nil)
		return
	}
	k.mu.Lock()
	k.got = append(k.got, cb)
	fn := k.fn
	k.mu.Unlock()
	for k.silent.Load() {
		select {
		case <-k.stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	r := &msg.CallbackReply{Keep: msg.Want_WANT_WRITE, Over: cb.Kind == msg.Callback_OVER}
	if fn != nil && !r.Over {
		r = fn(cb)
	}
	if r == nil {
		<-k.stop
		return
	}
	c.ReplyMessage(f, fserr.OK, r)
}

func (k *testClient) calls(kind msg.Callback_Kind) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, cb := range k.got {
		if cb.Kind == kind {
			n++
		}
	}
	return n
}

func newClient(c *testCluster) *testClient { return newMount(c, "") }

func newMount(c *testCluster, mount string) *testClient {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	return newWith(c, mount, nonce)
}

func newWith(c *testCluster, mount string, nonce []byte) *testClient {
	c.t.Helper()
	k := &testClient{c: c, mount: mount, nonce: nonce, stop: make(chan struct{})}
	c.t.Cleanup(k.close)
	k.open()
	go func() {
		for {
			select {
			case <-k.stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			if k.silent.Load() {
				continue
			}
			k.mu.Lock()
			conn := k.conn
			k.mu.Unlock()
			if conn == nil || conn.Err() != nil {
				conn, _ = k.dial()
			}
			if conn != nil {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				conn.CallMessage(ctx, wire.RenewSession, wire.ClassHeartbeat, &msg.RenewSession{Session: uint64(k.session)}, nil)
				cancel()
			}
		}
	}()
	return k
}

// close makes the client fall silent, without a word.
func (k *testClient) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.stop:
		return
	default:
	}
	close(k.stop)
	if k.conn != nil {
		k.conn.Close()
	}
}

func (k *testClient) dial() (*wire.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if s := k.c.leading(); s != nil {
		conn, _, err := wire.Dial(ctx, s.Addr(), &msg.Hello{Cluster: k.c.cluster[:], Role: msg.Hello_CLIENT, Session: uint64(k.session)}, k, wire.Options{})
		if err != nil {
			return nil, err
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.conn = conn
		return conn, nil
	}
	return nil, fserr.Unavailable
}

func (k *testClient) open() {
	k.c.t.Helper()
	k.c.eventually("a session", func() bool {
		conn, err := k.dial()
		if err != nil {
			return false
		}
		reply := new(msg.OpenSessionReply)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		code, err := conn.CallMessage(ctx, wire.OpenSession, wire.ClassMeta, &msg.OpenSession{Host: "h", Mount: k.mount, Nonce: k.nonce}, reply)
		k.session = id.SessionID(reply.Session)
		return err == nil && code == fserr.OK
	})
}

// change returns a changing request with the next seq.
func (k *testClient) change(op any) *msg.MetaRequest {
	r := k.read(op)
	r.Seq = k.seq.Add(1)
	return r
}

func (k *testClient) read(op any) *msg.MetaRequest {
	r := &msg.MetaRequest{Session: uint64(k.session), Cred: &msg.Cred{}}
	switch op := op.(type) {
	case *msg.Create:
		r.Op = &msg.MetaRequest_Create{Create: op}
	case *msg.Lookup:
		r.Op = &msg.MetaRequest_Lookup{Lookup: op}
	case *msg.GetAttr:
		r.Op = &msg.MetaRequest_GetAttr{GetAttr: op}
	case *msg.SetAttr:
		r.Op = &msg.MetaRequest_SetAttr{SetAttr: op}
	case *msg.Open:
		r.Op = &msg.MetaRequest_Open{Open: op}
	case *msg.Release:
		r.Op = &msg.MetaRequest_Release{Release: op}
	case *msg.Remove:
		r.Op = &msg.MetaRequest_Remove{Remove: op}
	case *msg.Rename:
		r.Op = &msg.MetaRequest_Rename{Rename: op}
	case *msg.AllocChunk:
		r.Op = &msg.MetaRequest_AllocChunk{AllocChunk: op}
	case *msg.GetLayout:
		r.Op = &msg.MetaRequest_GetLayout{GetLayout: op}
	case *msg.DropReplica:
		r.Op = &msg.MetaRequest_DropReplica{DropReplica: op}
	case *msg.Append:
		r.Op = &msg.MetaRequest_Append{Append: op}
	case *msg.WriteDone:
		r.Op = &msg.MetaRequest_WriteDone{WriteDone: op}
	case *msg.PunchDone:
		r.Op = &msg.MetaRequest_PunchDone{PunchDone: op}
	case *msg.Lock:
		r.Op = &msg.MetaRequest_Lock{Lock: op}
	case *msg.SetPolicy:
		r.Op = &msg.MetaRequest_SetPolicy{SetPolicy: op}
	case *msg.StatFS:
		r.Op = &msg.MetaRequest_StatFs{StatFs: op}
	case *msg.ReadDir:
		r.Op = &msg.MetaRequest_ReadDir{ReadDir: op}
	default:
		panic(fmt.Sprintf("%T", op))
	}
	return r
}

// do sends a request until some leader has decided it.
func (k *testClient) do(req *msg.MetaRequest) (*msg.MetaReply, fserr.Code) {
	k.c.t.Helper()
	var reply *msg.MetaReply
	var code fserr.Code
	k.c.eventually("an answer", func() bool {
		k.mu.Lock()
		conn := k.conn
		k.mu.Unlock()
		if conn == nil || conn.Err() != nil {
			var err error
			if conn, err = k.dial(); err != nil {
				return false
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		reply = new(msg.MetaReply)
		var err error
		code, err = conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, req, reply)
		if err == nil && (code == fserr.NotLeader || code == fserr.Unavailable) {
			conn.Close()
			return false
		}
		return err == nil
	})
	return reply, code
}

func (k *testClient) must(req *msg.MetaRequest) *msg.MetaReply {
	k.c.t.Helper()
	r, code := k.do(req)
	if code != fserr.OK {
		k.c.t.Fatalf("%T: %v (%s)", req.Op, code, r.Detail)
	}
	return r
}

// create makes a file in the root directory.
func (k *testClient) create(name string, open bool) *msg.MetaReply {
	k.c.t.Helper()
	return k.must(k.change(&msg.Create{Parent: 1, Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o644, Open: open}))
}

// testChunks is a chunk server that does what it is told, and remembers it.
type testChunks struct {
	c    *testCluster
	uuid []byte
	stop chan struct{}

	beaten chan struct{} // closed after the last heartbeat

	mu       sync.Mutex
	id       id.ServerID
	conn     *wire.Conn
	calls    map[wire.Type]int
	fenced   map[uint64]bool
	chunks   map[uint64]*msg.ChunkInfo
	refuse   map[wire.Type]fserr.Code
	ready    bool
	punches  []*msg.ChunkPunch
	accepted []uint64
	more     msg.Heartbeat // what its heartbeats tell beside room; BadChunks go when they are rebuilt
}

func newChunks(c *testCluster) *testChunks {
	c.t.Helper()
	k := &testChunks{c: c, uuid: make([]byte, 16)}
	rand.Read(k.uuid)
	k.calls, k.fenced, k.chunks = map[wire.Type]int{}, map[uint64]bool{}, map[uint64]*msg.ChunkInfo{}
	k.refuse = map[wire.Type]fserr.Code{}
	k.run()
	c.eventually("a chunk server", k.isReady)
	c.t.Cleanup(k.halt)
	return k
}

func (k *testChunks) isReady() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ready
}

func (k *testChunks) run() {
	k.stop, k.beaten = make(chan struct{}), make(chan struct{})
	go func(stop, beaten chan struct{}) {
		defer close(beaten)
		for {
			k.beat()
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}(k.stop, k.beaten)
}

// halt stops the server without a word. Afterwards it has no connection: one that it was making at that moment would speak for a server that is gone.
func (k *testChunks) halt() {
	k.mu.Lock()
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	if k.conn != nil {
		k.conn.Close()
	}
	k.mu.Unlock()
	<-k.beaten
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn != nil {
		k.conn.Close()
	}
	k.ready = false
}

func (k *testChunks) beat() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	k.mu.Lock()
	conn, ready := k.conn, k.ready
	beat := &msg.Heartbeat{Total: 1 << 40, Free: 1 << 39, State: k.more.State, Reason: k.more.Reason, BadChunks: slices.Clone(k.more.BadChunks),
		BadBlocks: k.more.BadBlocks, Bad: cloneBad(k.more.Bad), Chunks: k.more.Chunks, Allocated: k.more.Allocated}
	k.mu.Unlock()
	if conn == nil || conn.Err() != nil || !ready {
		k.register(ctx)
		return
	}
	code, err := conn.CallMessage(ctx, wire.Heartbeat, wire.ClassHeartbeat, beat, nil)
	if err != nil || code != fserr.OK {
		conn.Close()
	}
}

func (k *testChunks) register(ctx context.Context) {
	s := k.c.leading()
	if s == nil {
		return
	}
	conn, _, err := wire.Dial(ctx, s.Addr(), &msg.Hello{Cluster: k.c.cluster[:], Role: msg.Hello_CHUNK_SERVER}, k, wire.Options{})
	if err != nil {
		return
	}
	reply := new(msg.RegisterServerReply)
	k.mu.Lock()
	req := &msg.RegisterServer{Server: uint32(k.id), Addr: fmt.Sprintf("10.0.0.%d:2511", k.uuid[0]), Host: fmt.Sprint(k.uuid[:4]), Uuid: k.uuid,
		Total: 1 << 40, Free: 1 << 39}
	rep := &msg.ChunkReport{Last: true}
	for _, c := range k.chunks {
		rep.Chunks = append(rep.Chunks, &msg.ChunkInfo{Id: c.Id, Epoch: c.Epoch, Unclean: c.Unclean, Joining: c.Joining, Power: c.Power})
	}
	k.mu.Unlock()
	code, err := conn.CallMessage(ctx, wire.RegisterServer, wire.ClassMeta, req, reply)
	if err == nil && code == fserr.OK {
		code, err = conn.CallMessage(ctx, wire.ChunkReport, wire.ClassMeta, rep, &msg.ChunkReportReply{})
	}
	if err != nil || code != fserr.OK {
		conn.Close()
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id == 0 { // tests read it without the lock once the server is ready
		k.id = id.ServerID(reply.Server)
	}
	k.conn, k.ready = conn, true
	for _, f := range reply.Fenced {
		k.fenced[f] = true
	}
}

func (k *testChunks) Serve(_ context.Context, c *wire.Conn, f *wire.Frame) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[f.Type]++
	if code, ok := k.refuse[f.Type]; ok {
		c.ReplyMessage(f, code, nil)
		return
	}
	var reply wire.Message = &msg.Empty{}
	at := func(chunk, epoch uint64) *msg.ChunkInfo {
		i := k.chunks[chunk]
		if i == nil {
			i = &msg.ChunkInfo{Id: chunk}
			k.chunks[chunk] = i
		}
		i.Epoch = max(i.Epoch, epoch)
		return i
	}
	switch f.Type {
	case wire.ChunkCreate:
		r := new(msg.ChunkCreate)
		r.UnmarshalVT(f.Body)
		at(r.Chunk, r.Epoch)
	case wire.ChunkDelete:
		r := new(msg.ChunkDelete)
		r.UnmarshalVT(f.Body)
		for n, c := range r.Chunks {
			upTo := uint64(0)
			if len(r.Epochs) > 0 {
				upTo = r.Epochs[n]
			}
			if i := k.chunks[c]; i != nil && (upTo == 0 || i.Epoch <= upTo) {
				delete(k.chunks, c)
			}
		}
	case wire.ChunkJoin:
		r := new(msg.ChunkJoin)
		r.UnmarshalVT(f.Body)
		i := at(r.Chunk, r.Epoch)
		i.Joining, i.Unclean = true, false
	case wire.ChunkAdopt:
		r := new(msg.ChunkAdopt)
		r.UnmarshalVT(f.Body)
		at(r.Chunk, r.Epoch)
	case wire.ChunkAccept:
		r := new(msg.ChunkAccept)
		r.UnmarshalVT(f.Body)
		for n, c := range r.Chunks {
			var epoch uint64
			if len(r.Epochs) > 0 {
				epoch = r.Epochs[n]
			}
			at(c, epoch).Unclean = false
			k.accepted = append(k.accepted, c)
		}
	case wire.ChunkRebuild:
		r := new(msg.ChunkRebuild)
		r.UnmarshalVT(f.Body)
		k.more.BadChunks = slices.DeleteFunc(k.more.BadChunks, func(c uint64) bool { return c == r.Chunk })
		reply = &msg.ChunkRebuildReply{BytesCopied: 4096}
	case wire.ChunkPromote:
		r := new(msg.ChunkPromote)
		r.UnmarshalVT(f.Body)
		at(r.Chunk, r.Epoch).Joining = false
	case wire.ChunkPunch:
		r := new(msg.ChunkPunch)
		r.UnmarshalVT(f.Body)
		k.punches = append(k.punches, r)
	case wire.Fence:
		r := new(msg.Fence)
		r.UnmarshalVT(f.Body)
		for _, s := range r.Sessions {
			k.fenced[s] = true
		}
	}
	c.ReplyMessage(f, fserr.OK, reply)
}

func (k *testChunks) count(t wire.Type) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[t]
}
