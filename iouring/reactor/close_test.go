package reactor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"varve/iouring/reactor"
)

// TestCloseUnderWay closes the loop with connections in every state.
func TestCloseUnderWay(t *testing.T) {
	each(t, func(o *reactor.Options) { o.SendBytes = 64 << 10 }, func(t *testing.T, l *reactor.Loop) {
		var live, open atomic.Int64
		addr := serve(t, l, func() reactor.Handler {
			open.Add(1)
			return &framed{t: t, live: &live, ended: func(error) { open.Add(-1) }}
		})
		starts := [][]byte{
			nil, {1, 2}, frame(1, 10, 0), frame(1, 100_000, 0)[:50_000],
			frame(1, 10, time.Hour), bytes.Repeat(frame(1, 90_000, 0), 60), frame(1, 500, 0)[:300],
		}
		for i := range 5 * len(starts) {
			c := dial(t, addr)
			go c.Write(starts[i%len(starts)])
		}
		until(t, "connections", func() bool { return open.Load() == int64(5*len(starts)) })
		time.Sleep(20 * time.Millisecond) // whatever state they are in
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if open.Load() != 0 || live.Load() != 0 {
			t.Errorf("after the end %d connections were not told, %d buffers not given back", open.Load(), live.Load())
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("the address still accepts")
		}
	})
}

// TestMany has many connections at once, more than there are buffers.
func TestMany(t *testing.T) {
	each(t, func(o *reactor.Options) { o.Buffers, o.BufferSize = 8, 1024; o.Operations = 64 }, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		addr := serve(t, l, func() reactor.Handler { return &framed{t: t, live: &live} })
		conns := make([]net.Conn, 50)
		if l.Kind() == reactor.Poll {
			conns = make([]net.Conn, 500) // what waits in the kernel here is not an operation of the loop's
		}
		for i := range conns {
			conns[i] = dial(t, addr)
		}
		for round := range 3 {
			for i, c := range conns {
				if _, err := c.Write(frame(i+round, 100+i, 0)); err != nil {
					t.Fatal(err)
				}
			}
			for i, c := range conns {
				want := frame(i+round, 100+i, 0)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("connection %d, round %d: %v", i, round, err)
				}
			}
		}
		if n := l.Stats().Conns; n != len(conns) {
			t.Errorf("%d connections, want %d", n, len(conns))
		}
	})
}

// TestGreedy ends a connection whose handler consumes nothing of what comes.
func TestGreedy(t *testing.T) {
	each(t, func(o *reactor.Options) { o.Held = 10_000 }, func(t *testing.T, l *reactor.Loop) {
		ends := make(chan error, 1)
		addr := serve(t, l, func() reactor.Handler { return lazy(ends) })
		c := dial(t, addr)
		go c.Write(make([]byte, 1<<20))
		select {
		case err := <-ends:
			if err == nil || err == io.EOF {
				t.Errorf("ended with %v", err)
			}
			t.Log(err)
		case <-time.After(patience):
			t.Fatal("still connected")
		}
	})
}

// lazy consumes nothing.
type lazy chan error

func (lazy) OnData(*reactor.Conn, []byte) int     { return 0 }
func (lazy) OnFilled(*reactor.Conn, []byte)       {}
func (lazy) OnDrain(*reactor.Conn)                {}
func (h lazy) OnClose(_ *reactor.Conn, err error) { h <- err }

// TestSendsRefused fills the queue of a connection that cannot send.
func TestSendsRefused(t *testing.T) {
	each(t, func(o *reactor.Options) { o.Sends = 3 }, func(t *testing.T, l *reactor.Loop) {
		ends := make(chan error, 1)
		addr := serve(t, l, func() reactor.Handler { return lazy(ends) })
		nc := dial(t, addr)
		fd, err := reactor.Descriptor(nc)
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
		var c *reactor.Conn
		done := make(chan error, 3)
		on(t, l, func() {
			if c, err = l.Adopt(fd, lazy(make(chan error, 1))); err != nil {
				t.Error(err)
				return
			}
			for i := range 4 {
				err := c.Send(&reactor.Send{Head: make([]byte, 64<<20), Done: func(err error) { done <- err }})
				if (err != nil) != (i == 3) || i == 3 && !errors.Is(err, reactor.ErrFull) {
					t.Errorf("send %d: %v", i, err)
				}
			}
			if !c.Congested() || c.Queued() != 3*64<<20 {
				t.Errorf("congested: %v, queued: %d", c.Congested(), c.Queued())
			}
			c.Close(fmt.Errorf("enough"))
		})
		for range 3 {
			select {
			case err := <-done:
				if err == nil || err.Error() != "enough" {
					t.Errorf("send ended with %v", err)
				}
			case <-time.After(patience):
				t.Fatal("a send did not end")
			}
		}
		<-ends
	})
}
