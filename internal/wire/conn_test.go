package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

type handlerFunc func(ctx context.Context, c *Conn, req *Frame)

func (f handlerFunc) Serve(ctx context.Context, c *Conn, req *Frame) { f(ctx, c, req) }

func echo(_ context.Context, c *Conn, req *Frame) { _ = c.Reply(req, fserr.OK, req.Body, req.Data) }

// startServer serves h on a loopback port and returns the address. accepted gets the connections, if not nil.
func startServer(t testing.TB, h Handler, o Options, accepted chan *Conn) (*Server, string) {
	t.Helper()
	l, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Options: o, Logger: slog.New(slog.DiscardHandler),
		Accept: func(c *Conn, hello *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
			if hello.Role == msg.Hello_UNKNOWN {
				return nil, nil, fserr.WrongCluster
			}
			if accepted != nil {
				accepted <- c
			}
			return h, &msg.HelloReply{Name: "lake"}, fserr.OK
		},
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

func dialTest(t testing.TB, addr string, h Handler, o Options) *Conn {
	t.Helper()
	c, reply, err := Dial(context.Background(), addr, &msg.Hello{Role: msg.Hello_CLIENT}, h, o)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Name != "lake" {
		t.Errorf("hello answered with %+v", reply)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestConcurrentCalls(t *testing.T) {
	_, addr := startServer(t, handlerFunc(echo), Options{}, nil)
	c := dialTest(t, addr, nil, Options{})
	var work sync.WaitGroup
	for g := range 16 {
		work.Go(func() {
			data := bytes.Repeat([]byte{byte(g)}, 10000*g)
			for range 50 {
				f, err := c.Call(context.Background(), &Frame{Type: Read, Epoch: 7, Body: []byte{byte(g)}, Data: data})
				if err != nil {
					t.Error(err)
					return
				}
				if f.Type != Read || f.Epoch != 7 || f.Body[0] != byte(g) || !bytes.Equal(f.Data, data) {
					t.Errorf("answer of another call: %d", f.Body[0])
				}
				f.Release()
			}
		})
	}
	work.Wait()
}

func TestBothSidesAsk(t *testing.T) {
	accepted := make(chan *Conn, 1)
	_, addr := startServer(t, handlerFunc(echo), Options{}, accepted)
	c := dialTest(t, addr, handlerFunc(func(_ context.Context, c *Conn, req *Frame) {
		_ = c.ReplyMessage(req, fserr.Busy, &msg.CallbackReply{Size: 9})
	}), Options{})
	s := <-accepted
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			reply := new(msg.CallbackReply)
			// The outcome does not keep the answer from being decoded.
			if code, err := s.CallMessage(context.Background(), Callback, ClassMeta, &msg.Callback{}, reply); err != nil || code != fserr.Busy || reply.Size != 9 {
				t.Errorf("callback: %v, %v, %+v", code, err, reply)
			}
			if _, err := c.Call(context.Background(), &Frame{Type: Read}); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
}

func TestCallEnds(t *testing.T) {
	release := make(chan struct{})
	_, addr := startServer(t, handlerFunc(func(ctx context.Context, c *Conn, req *Frame) {
		<-release
		echo(ctx, c, req)
	}), Options{}, nil)
	c := dialTest(t, addr, nil, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, &Frame{Type: Read}); !errors.Is(err, fserr.Timeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer in time: %v", err)
	}
	done := make(chan *Call, 2)
	call := c.Start(&Frame{Type: Read}, done)
	c.Start(&Frame{Type: Read}, done)
	if !c.Abandon(call) || c.Abandon(call) {
		t.Error("a call under way can be abandoned once")
	}
	close(release) // late answers are dropped
	if got := <-done; got == call || got.Err != nil {
		t.Errorf("call %v, %v", got == call, got.Err)
	}
	c.Close()
	if _, err := c.Call(context.Background(), &Frame{Type: Read}); !errors.Is(err, ErrClosed) {
		t.Errorf("call on a closed connection: %v", err)
	}
}

func TestOversizeFailsItsCallOnly(t *testing.T) {
	_, addr := startServer(t, handlerFunc(func(ctx context.Context, c *Conn, req *Frame) {
		if req.Type == Write {
			_ = c.Reply(req, fserr.OK, nil, make([]byte, MaxData+1))
			return
		}
		echo(ctx, c, req)
	}), Options{}, nil)
	c := dialTest(t, addr, nil, Options{})
	if _, err := c.Call(context.Background(), &Frame{Type: Read, Data: make([]byte, MaxData+1)}); !errors.Is(err, fserr.Protocol) {
		t.Errorf("request over the limit: %v", err)
	}
	f, err := c.Call(context.Background(), &Frame{Type: Write})
	if err != nil || f.Code != fserr.Protocol {
		t.Errorf("answer over the limit: %+v, %v", f, err)
	}
	f, err = c.Call(context.Background(), &Frame{Type: Read, Body: make([]byte, MaxBody), Data: make([]byte, MaxData)})
	if err != nil || len(f.Body) != MaxBody || len(f.Data) != MaxData {
		t.Errorf("frame at the limit: %v", err)
	}
	f.Release()
}

func TestGarbage(t *testing.T) {
	accepted := make(chan *Conn, 8)
	_, addr := startServer(t, handlerFunc(echo), Options{}, accepted)
	hello, err := (&msg.Hello{Role: msg.Hello_CLIENT}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	good := frameBytes(header{typ: Hello}, hello, nil)
	tests := []struct {
		name     string
		bytes    []byte
		accepted bool
	}{
		{"noise", bytes.Repeat([]byte("noise"), 100), false},
		{"another first frame", frameBytes(header{typ: Read}, nil, nil), false},
		{"an answer first", frameBytes(header{typ: Hello, answer: true}, hello, nil), false},
		{"hello with data", frameBytes(header{typ: Hello}, hello, []byte("data")), false},
		{"long hello", frameBytes(header{typ: Hello}, make([]byte, maxHello+1), nil), false},
		{"hello that is no message", frameBytes(header{typ: Hello}, []byte{0xff}, nil), false},
		{"noise after hello", append(bytes.Clone(good), bytes.Repeat([]byte("noise"), 100)...), true},
		{"unasked answer, then noise", append(append(bytes.Clone(good), frameBytes(header{typ: Read, answer: true, id: 5}, nil, nil)...), make([]byte, 48)...), true},
	}
	for _, tt := range tests {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := nc.Write(tt.bytes); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		// The server ends the connection; nothing else does.
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, context.DeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", tt.name, err)
		}
		nc.Close()
		if got := len(accepted) == 1; got != tt.accepted {
			t.Errorf("%s: accepted is %t", tt.name, got)
		}
		for len(accepted) > 0 {
			<-accepted
		}
	}
	c := dialTest(t, addr, nil, Options{})
	if _, err := c.Call(context.Background(), &Frame{Type: Read}); err != nil {
		t.Errorf("call after garbage: %v", err)
	}
	if _, _, err := Dial(context.Background(), addr, &msg.Hello{}, nil, Options{}); !errors.Is(err, fserr.WrongCluster) {
		t.Errorf("refused hello: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := Dial(ctx, addr, &msg.Hello{}, nil, Options{}); !errors.Is(err, fserr.Unavailable) {
		t.Errorf("cancelled dial: %v", err)
	}
}

func TestQuiesceWaitsForHandlers(t *testing.T) {
	entered, release := make(chan struct{}, 4), make(chan struct{})
	var ended atomic.Int32
	accepted := make(chan *Conn, 1)
	_, addr := startServer(t, handlerFunc(func(ctx context.Context, c *Conn, req *Frame) {
		entered <- struct{}{}
		<-ctx.Done()
		<-release
		ended.Add(1)
		_ = c.Reply(req, fserr.OK, nil, nil)
	}), Options{}, accepted)
	c := dialTest(t, addr, nil, Options{})
	done := make(chan *Call, 3)
	for range 3 {
		c.Start(&Frame{Type: Write, Data: make([]byte, 4096)}, done)
	}
	for range 3 {
		<-entered
	}
	s := <-accepted
	quiet := make(chan struct{})
	for range 2 { // may be called at once
		go func() {
			s.Quiesce()
			if n := ended.Load(); n != 3 {
				t.Errorf("quiet with %d of 3 handlers ended", n)
			}
			quiet <- struct{}{}
		}()
	}
	for range 3 {
		if call := <-done; !errors.Is(call.Err, ErrClosed) {
			t.Errorf("call on a closed connection: %v", call.Err)
		}
	}
	select {
	case <-quiet:
		t.Fatal("quiet while handlers are under way")
	case <-time.After(30 * time.Millisecond):
	}
	close(release)
	<-quiet
	<-quiet
}

// TestQuiesceInHandshake quiesces connections that were accepted but may not have been started.
func TestQuiesceInHandshake(t *testing.T) {
	accepted := make(chan *Conn, 1)
	_, addr := startServer(t, handlerFunc(echo), Options{}, accepted)
	for range 100 {
		go func() {
			if c, _, err := Dial(context.Background(), addr, &msg.Hello{Role: msg.Hello_CLIENT}, nil, Options{}); err == nil {
				c.Close()
			}
		}()
		(<-accepted).Quiesce()
	}
}

func TestSlowPeerIsCutOff(t *testing.T) {
	accepted := make(chan *Conn, 1)
	_, addr := startServer(t, handlerFunc(func(_ context.Context, c *Conn, req *Frame) {
		_ = c.Reply(req, fserr.OK, nil, make([]byte, MaxData))
	}), Options{WriteTimeout: 100 * time.Millisecond}, accepted)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	hello, _ := (&msg.Hello{Role: msg.Hello_CLIENT}).MarshalVT()
	b := frameBytes(header{typ: Hello}, hello, nil)
	for i := range 64 {
		b = append(b, frameBytes(header{typ: Read, id: uint64(i + 1)}, nil, nil)...)
	}
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
	select { // it reads nothing
	case <-(<-accepted).Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the connection lives")
	}
	if n, _ := io.Copy(io.Discard, nc); n >= 64*MaxData {
		t.Error("everything was sent")
	}
}

func TestInFlightIsBounded(t *testing.T) {
	var now, most atomic.Int32
	_, addr := startServer(t, handlerFunc(func(ctx context.Context, c *Conn, req *Frame) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond)
		now.Add(-1)
		echo(ctx, c, req)
	}), Options{InFlight: 3}, nil)
	c := dialTest(t, addr, nil, Options{})
	done := make(chan *Call, 60)
	for range 60 {
		c.Start(&Frame{Type: Read}, done)
	}
	for range 60 {
		if call := <-done; call.Err != nil {
			t.Fatal(call.Err)
		}
	}
	if n := most.Load(); n > 3 {
		t.Errorf("%d requests were handled at once, limit 3", n)
	}
}

// byBytes admits what fits a number of bytes.
type byBytes struct{ *semaphore.Weighted }

type byBytesGrant struct {
	byBytes
	n int64
}

func (b byBytes) Admit(ctx context.Context, _ *Conn, _ *Frame, size int) (Grant, []byte, error) {
	if err := b.Acquire(ctx, int64(size)); err != nil {
		return nil, nil, err
	}
	return byBytesGrant{b, int64(size)}, Buffer(size), nil
}

func (g byBytesGrant) Release(data []byte) {
	Recycle(data)
	g.Weighted.Release(g.n)
}

func TestAdmission(t *testing.T) {
	budget := byBytes{semaphore.NewWeighted(MaxData)}
	release, entered := make(chan struct{}), make(chan struct{}, 8)
	l, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Logger: slog.New(slog.DiscardHandler), Accept: func(c *Conn, _ *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
		c.Admission = budget
		return handlerFunc(func(ctx context.Context, c *Conn, req *Frame) {
			entered <- struct{}{}
			<-release
			echo(ctx, c, req)
		}), &msg.HelloReply{Name: "lake"}, fserr.OK
	}}
	go s.Serve(l)
	defer s.Close()
	defer l.Close()
	a, b := dialTest(t, l.Addr().String(), nil, Options{}), dialTest(t, l.Addr().String(), nil, Options{})
	done := make(chan *Call, 8)
	a.Start(&Frame{Type: Write, Data: make([]byte, MaxData)}, done)
	<-entered
	b.Start(&Frame{Type: Write, Data: make([]byte, 1)}, done)
	select {
	case <-entered:
		t.Fatal("a request over the budget was let in")
	case <-time.After(30 * time.Millisecond):
	}
	gone := dialTest(t, l.Addr().String(), nil, Options{})
	gone.Start(&Frame{Type: Write, Data: make([]byte, 1)}, make(chan *Call, 1))
	gone.Close() // while it waits: it must take nothing with it
	close(release)
	for range 2 {
		if call := <-done; call.Err != nil {
			t.Error(call.Err)
		}
	}
	for end := time.Now().Add(10 * time.Second); !budget.TryAcquire(MaxData); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the budget was not given back")
		}
	}
}

func TestListenTaken(t *testing.T) {
	_, addr := startServer(t, handlerFunc(echo), Options{}, nil)
	if _, err := Listen(context.Background(), addr); err == nil {
		t.Error("a port was taken twice")
	}
}

// Half a frame and then silence kept its share of the budget from everybody else.
func TestHalfAFrameEndsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		c := newConn(here, bufio.NewReaderSize(here, readBuffer), Options{})
		budget := byBytes{semaphore.NewWeighted(MaxData)}
		c.Admission = budget
		c.start(handlerFunc(echo))
		h := header{typ: Write, id: 1, dataLen: MaxData}
		b := make([]byte, headerSize, headerSize+100)
		h.encode(b)
		if _, err := there.Write(b[:headerSize+100]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if budget.TryAcquire(1) {
			t.Fatal("the budget is not held")
		}
		time.Sleep(frameTimeout + time.Second)
		if err := c.Err(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the connection ended with", err)
		}
		if !budget.TryAcquire(MaxData) {
			t.Fatal("the budget is still held")
		}
		c.Quiesce()
	})
}

// TestDropIdle: goroutines that were dropped are not given requests any more.
func TestDropIdle(t *testing.T) {
	_, addr := startServer(t, handlerFunc(echo), Options{}, nil)
	c := dialTest(t, addr, nil, Options{})
	for range 3 {
		f, err := c.Call(t.Context(), &Frame{Type: Read, Body: []byte("hello")})
		if err != nil {
			t.Fatal(err)
		}
		f.Release()
		DropIdle()
	}
}
