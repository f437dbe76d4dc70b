package crash

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

var cluster = id.Cluster{0xc, 0xa, 0x5, 0xb}

const (
	// patience is how long a test waits for what must come, on a machine that does other things, too.
	patience = time.Minute
	// guest is the session of the client.
	guest = id.SessionID(5)
)

// leader is a metadata server as far as one chunk server can tell. It accepts every unclean chunk, as a leader does that has no
// better replica.
type leader struct {
	listener net.Listener
	server   *wire.Server

	mu      sync.Mutex
	conn    *wire.Conn // of the registered server
	at      string     // its address
	page    map[id.ChunkID]*msg.ChunkInfo
	report  map[id.ChunkID]*msg.ChunkInfo // of the last registration; nil until it is whole
	keep    bool                          // unclean chunks are left unclean
	beats   int                           // since the report
	lastOne *msg.Heartbeat
}

func newLeader(t *testing.T) *leader {
	t.Helper()
	nl, err := wire.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &leader{listener: nl}
	l.server = &wire.Server{Accept: l.accept, Logger: slog.New(slog.DiscardHandler)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.server.Serve(nl) // until the listener is closed
	}()
	t.Cleanup(func() { nl.Close(); l.server.Close(); <-done })
	return l
}

func (l *leader) addr() string { return l.listener.Addr().String() }

func (l *leader) accept(_ *wire.Conn, hello *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
	if len(hello.Cluster) > 0 && string(hello.Cluster) != string(cluster[:]) {
		return nil, nil, fserr.WrongCluster
	}
	return l, &msg.HelloReply{Cluster: cluster[:], Name: "crash"}, fserr.OK
}

// Serve implements wire.Handler.
func (l *leader) Serve(_ context.Context, c *wire.Conn, req *wire.Frame) {
	reply, code := l.serve(c, req)
	_ = c.ReplyMessage(req, code, reply) // a lost connection needs no answer
}

func (l *leader) serve(c *wire.Conn, req *wire.Frame) (wire.Message, fserr.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch req.Type {
	case wire.Members:
		return &msg.MembersReply{Addrs: []string{l.addr()}, Leader: l.addr()}, fserr.OK
	case wire.RegisterServer:
		m := new(msg.RegisterServer)
		if m.UnmarshalVT(req.Body) != nil {
			return nil, fserr.Protocol
		}
		l.conn, l.at, l.page, l.report, l.beats = c, m.Addr, map[id.ChunkID]*msg.ChunkInfo{}, nil, 0
		return &msg.RegisterServerReply{Server: 1, HeartbeatMs: 20, LeaseMs: 30000}, fserr.OK
	case wire.ChunkReport:
		m := new(msg.ChunkReport)
		if m.UnmarshalVT(req.Body) != nil || c != l.conn {
			return nil, fserr.Protocol
		}
		for _, k := range m.Chunks {
			l.page[id.ChunkID(k.Id)] = k
		}
		if m.Last {
			go l.accepts(c, l.page)
		}
		return new(msg.ChunkReportReply), fserr.OK
	case wire.Heartbeat:
		m := new(msg.Heartbeat)
		if m.UnmarshalVT(req.Body) != nil {
			return nil, fserr.Protocol
		}
		if l.report != nil && c == l.conn {
			l.beats++
		}
		l.lastOne = m
		return &msg.HeartbeatReply{LeaseMs: 30000}, fserr.OK
	}
	return nil, fserr.Protocol
}

// accepts has a server count what is unclean of what it has reported, which is its report then. It has died meanwhile if it does not.
func (l *leader) accepts(c *wire.Conn, report map[id.ChunkID]*msg.ChunkInfo) {
	m := new(msg.ChunkAccept)
	l.mu.Lock()
	for c, k := range report {
		if k.Unclean && !l.keep {
			m.Chunks = append(m.Chunks, uint64(c))
		}
	}
	l.mu.Unlock()
	if len(m.Chunks) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if code, err := c.CallMessage(ctx, wire.ChunkAccept, wire.ClassMeta, m, nil); err != nil || code != fserr.OK {
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c == l.conn {
		l.report = report
	}
}

// forget makes waitServing wait for a registration that comes from now on. Call it before a server is started.
func (l *leader) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.report, l.beats = nil, nil, 0
}

// waitServing waits until the server of p serves and returns its address and what it reported.
func (l *leader) waitServing(t *testing.T, p *process) (addr string, report map[id.ChunkID]*msg.ChunkInfo) {
	t.Helper()
	wait(t, "the server to serve", func() bool {
		if p.dead() {
			t.Fatalf("the server ended while it started:\n%s", p.out)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		addr, report = l.at, l.report
		return l.beats > 0
	})
	return addr, report
}

// ask sends the chunk server a request. It fails if the server dies.
func (l *leader) ask(t wire.Type, m wire.Message) error {
	l.mu.Lock()
	c := l.conn
	l.mu.Unlock()
	if c == nil {
		return fserr.Unavailable
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	code, err := c.CallMessage(ctx, t, wire.ClassMeta, m, nil)
	if err == nil {
		err = code.Err()
	}
	return err
}

func (l *leader) must(t *testing.T, typ wire.Type, m wire.Message) {
	t.Helper()
	if err := l.ask(typ, m); err != nil {
		t.Fatalf("request type %d: %v", typ, err)
	}
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// client is a bare client of the chunk server.
type client struct{ conn *wire.Conn }

func dial(t *testing.T, addr string, lane uint32) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	hello := &msg.Hello{Cluster: cluster[:], Role: msg.Hello_CLIENT, Session: uint64(guest), Lane: lane}
	c, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{c}
}

// do sends a data request; the caller releases the answer. An error of wire.ErrClosed means that nobody knows whether it was done.
func (c *client) do(t wire.Type, e id.Epoch, r wire.DataRequest, p []byte) (*wire.Frame, error) {
	r.Session = guest
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f, err := c.conn.Call(ctx, &wire.Frame{Type: t, Class: wire.ClassGuest, Epoch: e, Body: r.Append(nil), Data: p})
	if err == nil && f.Code != fserr.OK {
		err = f.Code
	}
	if err != nil {
		f.Release()
		return nil, fmt.Errorf("request type %d of chunk %v at %d: %w", t, r.Chunk, r.Offset, err)
	}
	return f, nil
}

func (c *client) write(k id.ChunkID, e id.Epoch, off uint32, p []byte) error {
	f, err := c.do(wire.Write, e, wire.DataRequest{Chunk: k, Offset: off, Length: uint32(len(p)), Sums: chunk.AppendSums(nil, off, p)}, p)
	f.Release()
	return err
}

func (c *client) punch(k id.ChunkID, e id.Epoch, off, n uint32) error {
	f, err := c.do(wire.Punch, e, wire.DataRequest{Chunk: k, Offset: off, Length: n}, nil)
	f.Release()
	return err
}

func (c *client) flush(k id.ChunkID, e id.Epoch) error {
	f, err := c.do(wire.Flush, e, wire.DataRequest{Chunk: k}, nil)
	f.Release()
	return err
}

// read returns blocks that match the checksums that came with them.
func (c *client) read(k id.ChunkID, e id.Epoch, off, n uint32) ([]byte, error) {
	f, err := c.do(wire.Read, e, wire.DataRequest{Chunk: k, Offset: off, Length: n}, nil)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	if len(f.Data) != int(n) {
		return nil, fmt.Errorf("read of %d bytes answered with %d", n, len(f.Data))
	}
	if i := chunk.VerifySums(wire.DecodeSums(nil, f.Body), off, f.Data); i >= 0 {
		return nil, fmt.Errorf("block %d of chunk %v does not match the checksum that came with it: %w", int(off/chunk.BlockSize)+i, k, errWrongSum)
	}
	return append([]byte(nil), f.Data...), nil
}

var errWrongSum = fmt.Errorf("data and checksum of an answer differ")
