package reactor_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/iouring/reactor"
)

// framed answers each frame (4 bytes of length, 4 bytes of pause in microseconds, payload) with the same frame.
type framed struct {
	t      testing.TB
	conn   *reactor.Conn // that has brought something
	head   [8]byte
	inFill bool
	closed atomic.Int32
	drains int
	ended  func(error)
	pause  reactor.Timer
	buf    []byte
	live   *atomic.Int64 // buffers that are the connection's
}

const (
	frameHead  = 8
	smallFrame = 1000
)

type echoSend struct {
	reactor.Send
	head [8]byte
}

func (h *framed) OnData(c *reactor.Conn, p []byte) int {
	h.conn = c
	if len(p) < frameHead {
		c.Need(frameHead)
		return 0
	}
	copy(h.head[:], p)
	n := int(binary.LittleEndian.Uint32(p))
	if n <= smallFrame && len(p) < frameHead+n {
		return 0
	}
	if us := binary.LittleEndian.Uint32(p[4:]); us > 0 {
		c.Pause()
		h.pause.Fire = c.Resume
		c.Loop().SetTimer(&h.pause, time.Duration(us)*time.Microsecond)
	}
	if n <= smallFrame {
		h.echo(c, bytes.Clone(p[frameHead:frameHead+n]))
		return frameHead + n
	}
	h.inFill = true
	h.buf = make([]byte, n)
	h.live.Add(1)
	c.Fill(h.buf)
	return frameHead
}

func (h *framed) OnFilled(c *reactor.Conn, p []byte) {
	if !h.inFill || &p[0] != &h.buf[0] || len(p) != len(h.buf) {
		h.t.Error("OnFilled with another buffer than Fill had")
	}
	h.inFill = false
	h.live.Add(-1)
	h.echo(c, p)
}

func (h *framed) echo(c *reactor.Conn, p []byte) {
	s := &echoSend{head: h.head}
	s.Head, s.Body = s.head[:], p
	h.live.Add(1)
	s.Done = func(error) { h.live.Add(-1) }
	if err := c.Send(&s.Send); err != nil {
		h.live.Add(-1)
		if !c.Closed() {
			h.t.Error(err)
		}
	}
}

func (h *framed) OnDrain(*reactor.Conn) { h.drains++ }

func (h *framed) OnClose(c *reactor.Conn, err error) {
	if h.closed.Add(1) != 1 {
		h.t.Error("OnClose was called twice")
	}
	c.Loop().StopTimer(&h.pause)
	if h.inFill {
		h.live.Add(-1)
	}
	if h.ended != nil {
		h.ended(err)
	}
}

// frame makes a frame with n bytes of payload.
func frame(i, n int, pause time.Duration) []byte {
	b := make([]byte, frameHead, frameHead+n)
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint32(b[4:], uint32(pause.Microseconds()))
	return append(b, pattern(i, n)...)
}

// TestEcho sends frames of all sizes, cut at any place, and wants them back in order.
func TestEcho(t *testing.T) {
	each(t, func(o *reactor.Options) { o.BufferSize, o.Buffers, o.Held = 4096, 4, 8192 }, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		var ends sync.WaitGroup
		addr := serve(t, l, func() reactor.Handler {
			return &framed{t: t, live: &live, ended: func(err error) {
				defer ends.Done()
				if err != io.EOF {
					t.Errorf("connection ended with %v", err)
				}
			}}
		})
		var wg sync.WaitGroup
		for seed := range uint64(8) {
			wg.Add(1)
			ends.Add(1)
			c := dial(t, addr)
			go func() {
				defer wg.Done()
				r := rand.New(rand.NewPCG(seed, 7))
				sizes := []int{0, 1, 63, 64, 992, 1000, 1001, 4096, 5000, 8 << 10, 40_000, 200_000}
				var all []byte
				frames := 60
				for i := range frames {
					var pause time.Duration
					if r.IntN(20) == 0 {
						pause = 2 * time.Millisecond
					}
					all = append(all, frame(i, sizes[r.IntN(len(sizes))], pause)...)
				}
				go func() {
					for p := all; len(p) > 0; {
						n := min(len(p), 1+r.IntN([]int{3, 100, 5000, 100_000}[r.IntN(4)]))
						if _, err := c.Write(p[:n]); err != nil {
							t.Error(err)
							return
						}
						p = p[n:]
						if r.IntN(10) == 0 {
							runtime.Gosched()
						}
					}
				}()
				got := make([]byte, len(all))
				if n, err := io.ReadFull(c, got); err != nil {
					t.Errorf("seed %d: %d of %d bytes came back: %v", seed, n, len(all), err)
					return
				}
				if !bytes.Equal(got, all) {
					t.Errorf("seed %d: what came back differs", seed)
				}
				c.Close()
			}()
		}
		done := make(chan struct{})
		go func() { wg.Wait(); ends.Wait(); close(done) }()
		for collect := true; collect; { // buffers must survive it
			select {
			case <-done:
				collect = false
			case <-time.After(20 * time.Millisecond):
				runtime.GC()
			}
			if t.Failed() {
				return
			}
		}
		if n := live.Load(); n != 0 {
			t.Errorf("%d buffers were not given back", n)
		}
	})
}

// TestHuge echoes payloads far larger than any buffer.
func TestHuge(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		addr := serve(t, l, func() reactor.Handler { return &framed{t: t, live: &live} })
		c := dial(t, addr)
		for i, n := range []int{16 << 20, 1<<20 + 1, 3} {
			f := frame(i, n, 0)
			go func() {
				if _, err := c.Write(f); err != nil {
					t.Error(err)
				}
			}()
			got := make([]byte, len(f))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, f) {
				t.Fatalf("payload of %d bytes: %v, equal: %v", n, err, bytes.Equal(got, f))
			}
		}
	})
}

// TestPeerGoes ends the client's side, in order and with a reset, after each of the first bytes of a stream: the server's side ends each time, with
// the right words, and gives back all buffers.
func TestPeerGoes(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		type end struct {
			h   *framed
			err error
		}
		ends := make(chan end, 1)
		addr := serve(t, l, func() reactor.Handler {
			h := &framed{t: t, live: &live}
			h.ended = func(err error) { ends <- end{h, err} }
			return h
		})
		small, large := frame(1, 100, 0), frame(2, 50_000, 0)
		stream := append(bytes.Clone(small), large...)
		stream = append(stream, frame(3, 10, 5*time.Millisecond)...)
		cuts := []int{0, 1, 4, 7, 8, 9, 107, 108, 109, 115, 116, 117, 200, 8000, 20_000, 50_115, 50_116, 50_120, len(stream)}
		for _, cut := range cuts {
			for _, reset := range []bool{false, true} {
				c := dial(t, addr)
				if _, err := c.Write(stream[:cut]); err != nil {
					t.Fatal(err)
				}
				if reset {
					if err := c.SetLinger(0); err != nil {
						t.Fatal(err)
					}
				}
				c.Close()
				var e end
				select {
				case e = <-ends:
				case <-time.After(patience):
					t.Fatalf("cut at %d, reset %v: the connection did not end", cut, reset)
				}
				whole := cut == 0 || cut == len(small) || cut == len(small)+len(large) || cut == len(stream)
				// A close with answers unread is a reset, too.
				if e.err == io.EOF && !whole || e.err == nil || !reset && cut < len(small) && cut > 0 && e.err != io.ErrUnexpectedEOF {
					t.Errorf("cut at %d, reset %v: ended with %v", cut, reset, e.err)
				}
			}
		}
		if n := live.Load(); n != 0 {
			t.Errorf("%d buffers were not given back", n)
		}
	})
}

// TestSlowReader asks for far more than the client reads: the server stops reading requests, and goes on when the client does.
func TestSlowReader(t *testing.T) {
	each(t, func(o *reactor.Options) { o.SendBytes = 256 << 10; o.Sends = 64 }, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		var h *framed
		addr := serve(t, l, func() reactor.Handler { h = &framed{t: t, live: &live}; return h })
		c := dial(t, addr)
		// Some of it lies in the kernel: less than all, also where that gives the server's side the 32 MiB that newer ones may.
		if err := errors.Join(c.SetReadBuffer(512<<10), c.SetWriteBuffer(512<<10)); err != nil {
			t.Fatal(err)
		}
		const frames, size = 450, 100_000
		var some [7][]byte // made once, which takes longest
		for i := range some {
			some[i] = frame(i, size, 0)
		}
		var written atomic.Int64
		sent := make(chan error, 1)
		go func() {
			for i := range frames {
				if _, err := c.Write(some[i%len(some)]); err != nil {
					sent <- err
					return
				}
				written.Add(1)
			}
			sent <- nil
		}()
		until(t, "the server reads no more", func() (stopped bool) {
			on(t, l, func() { stopped = h != nil && h.conn != nil && h.conn.Congested() })
			return stopped
		})
		// Until nothing moves any more.
		for last := int64(-1); last != written.Load(); time.Sleep(150 * time.Millisecond) {
			last = written.Load()
		}
		if n := live.Load(); n > 8 {
			t.Errorf("%d buffers are held for a client that reads nothing", n)
		}
		if n := written.Load(); n == frames {
			t.Errorf("all %d frames were taken though none was read", n)
		}
		got := make([]byte, frameHead+size)
		for i := range frames {
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, some[i%len(some)]) {
				t.Fatalf("frame %d: %v", i, err)
			}
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		on(t, l, func() {
			if h.drains == 0 {
				t.Error("OnDrain was never called")
			}
		})
	})
}

// TestSilentReader cuts off a client that takes nothing for too long, and one that does not bring what it announced.
func TestSilent(t *testing.T) {
	each(t, func(o *reactor.Options) { o.SendTimeout, o.FillTimeout = 200*time.Millisecond, 200*time.Millisecond }, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		ends := make(chan error, 1)
		addr := serve(t, l, func() reactor.Handler {
			return &framed{t: t, live: &live, ended: func(err error) { ends <- err }}
		})
		for _, test := range []struct {
			name string
			send []byte
		}{
			{"takes nothing", bytes.Repeat(frame(1, 1<<20, 0), 40)},
			{"brings nothing", frame(1, 1<<20, 0)[:100_000]},
		} {
			c := dial(t, addr)
			go c.Write(test.send)
			select {
			case err := <-ends:
				if !errors.Is(err, reactor.ErrTimeout) {
					t.Errorf("%s: ended with %v", test.name, err)
				}
			case <-time.After(patience):
				t.Fatalf("%s: still connected", test.name)
			}
			if n := live.Load(); n != 0 {
				t.Errorf("%s: %d buffers were not given back", test.name, n)
			}
		}
	})
}

// TestDrip cuts off a client that brings what it announced so slowly that it never ends.
func TestDrip(t *testing.T) {
	each(t, func(o *reactor.Options) { o.FillTimeout = 100 * time.Millisecond }, func(t *testing.T, l *reactor.Loop) {
		var live atomic.Int64
		ends := make(chan error, 1)
		addr := serve(t, l, func() reactor.Handler {
			return &framed{t: t, live: &live, ended: func(err error) { ends <- err }}
		})
		c := dial(t, addr)
		f := frame(1, 1<<20, 0)
		_, _ = c.Write(f[:100_000]) // a busy machine may have been cut off by then
		for i := range 2000 {
			select {
			case err := <-ends:
				if !errors.Is(err, reactor.ErrTimeout) {
					t.Errorf("ended with %v", err)
				}
				if n := live.Load(); n != 0 {
					t.Errorf("%d buffers were not given back", n)
				}
				return
			case <-time.After(10 * time.Millisecond):
				_, _ = c.Write(f[100_000+i : 100_001+i]) // it may have ended just now
			}
		}
		t.Fatal("still connected")
	})
}
