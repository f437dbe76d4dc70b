package records

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/iouring/reactor"
)

// The messages of these tests: lengths of head and data, 4 bytes each, then these. A message is answered with itself.
const messageHeader = 8

// loops runs a test on every kind of loop that there is here.
func loops(t *testing.T, fn func(t *testing.T, l *reactor.Loop)) {
	for _, kind := range []reactor.Kind{reactor.Ring, reactor.Poll} {
		t.Run(kind.String(), func(t *testing.T) {
			fn(t, newLoop(t, kind))
		})
	}
}

func newLoop(t testing.TB, kind reactor.Kind) *reactor.Loop {
	l, err := reactor.Start(reactor.Options{Kind: kind, SendBytes: 1 << 30})
	if err != nil {
		t.Skipf("no loop of this kind here: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return l
}

// echoer answers messages on a loop, as a chunk server does: one message at a time is received, and it pauses now and then.
type echoer struct {
	t      testing.TB
	l      *reactor.Loop
	c      Conn
	every  int // pause so often; 0: never
	count  int
	free   []*echo
	cur    *echo
	timer  reactor.Timer
	got    atomic.Int64
	err    error
	closed chan struct{}
}

type echo struct {
	d    *echoer
	head []byte
	data []byte
	send reactor.Send
}

func (d *echoer) OnData(c *reactor.Conn, p []byte) int {
	if c != nil && d.c != Conn(c) {
		d.t.Error("a handler was given a connection that is not its own")
	}
	if len(p) < messageHeader {
		d.c.Need(messageHeader)
		return 0
	}
	head, data := int(binary.LittleEndian.Uint32(p)), int(binary.LittleEndian.Uint32(p[4:]))
	if len(p) < messageHeader+head {
		d.c.Need(messageHeader + head)
		return 0
	}
	var m *echo
	if n := len(d.free); n > 0 {
		m, d.free = d.free[n-1], d.free[:n-1]
	} else {
		m = &echo{d: d}
		m.send.Done = m.sent
	}
	m.head = append(m.head[:0], p[:messageHeader+head]...)
	d.cur = m
	if cap(m.data) < data {
		m.data = make([]byte, data)
	}
	m.data = m.data[:data]
	if d.count++; d.every > 0 && d.count%d.every == 0 {
		d.c.Pause()
		d.l.SetTimer(&d.timer, time.Duration(d.count%3)*time.Millisecond)
	}
	if data == 0 {
		d.answer()
	} else {
		d.c.Fill(m.data)
	}
	return messageHeader + head
}

func (d *echoer) OnFilled(_ *reactor.Conn, p []byte) {
	if &p[0] != &d.cur.data[0] || len(p) != len(d.cur.data) {
		d.t.Error("another buffer is filled than was given")
	}
	d.answer()
}

func (d *echoer) answer() {
	m := d.cur
	d.cur = nil
	d.got.Add(1)
	m.send.Head, m.send.Body = m.head, m.data
	if err := d.c.Send(&m.send); err != nil && !d.c.Closed() {
		d.t.Error(err)
	}
}

func (m *echo) sent(error) { m.d.free = append(m.d.free, m) }

func (d *echoer) OnDrain(*reactor.Conn) {}

func (d *echoer) OnClose(_ *reactor.Conn, err error) {
	d.l.StopTimer(&d.timer)
	d.err = err
	close(d.closed)
}

// serve has a connection answered on a loop.
func serve(t testing.TB, l *reactor.Loop, nc net.Conn, every int, read []byte) *echoer {
	t.Helper()
	d := &echoer{t: t, l: l, every: every, closed: make(chan struct{})}
	d.timer.Fire = func() { d.c.Resume() }
	taken, err := Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	done := make(chan error, 1)
	l.Do(func() {
		d.c, err = taken.Adopt(l, d, read)
		done <- err
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *echoer) await() error {
	d.t.Helper()
	select {
	case <-d.closed:
		return d.err
	case <-time.After(patience):
		d.t.Fatal("the connection does not end")
		return nil
	}
}

// message makes one of these lengths.
func message(head, data, seed int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(head))
	b = binary.LittleEndian.AppendUint32(b, uint32(data))
	return append(b, pattern(head+data, seed)...)
}

// TestConn: messages of all sizes, written in records of all sizes, come to a handler on a loop, and its answers back, in records and without.
func TestConn(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		for _, way := range []string{"plain", "message", "parts", "shreds"} {
			for _, every := range []int{0, 3} {
				t.Run(fmt.Sprintf("%s/pause=%d", way, every), func(t *testing.T) {
					a, b := sockets(t)
					if way != "plain" {
						pa, pb := pairs(t, 1)
						pa.out.each, pb.in.each, pa.in.each, pb.out.each = 11, 11, 5, 5
						a, b = NewStream(a, pa, nil), NewStream(b, pb, func() { t.Error("a record is wrong") })
					}
					r := rand.New(rand.NewPCG(7, uint64(every)))
					var all [][]byte
					for i, size := range []int{0, 1, 100, 4096, 4097, 16 << 10, 20000, MaxContent, MaxContent + 1, 1 << 20, 300_000} {
						for j := range 2 {
							all = append(all, message(r.IntN(3000), size, 10*i+j))
						}
						all = append(all, message(0, 0, i), message(r.IntN(9<<10), 0, i))
					}
					r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
					d := serve(t, l, b, every, nil)
					var wg sync.WaitGroup
					wg.Go(func() {
						for i := 0; i < len(all); i++ {
							m := all[i]
							var pieces [][]byte
							switch head := messageHeader + int(binary.LittleEndian.Uint32(m)); way {
							case "parts":
								pieces = [][]byte{m[:head], m[head:]}
							case "shreds":
								for rest := m; len(rest) > 0; {
									n := min(len(rest), 1+r.IntN(1<<r.IntN(17)))
									pieces, rest = append(pieces, rest[:n]), rest[n:]
								}
							default: // with the next one, if both are small
								if i+1 < len(all) && len(m)+len(all[i+1]) < 40<<10 {
									m = append(append([]byte(nil), m...), all[i+1]...)
									i++
								}
								pieces = [][]byte{m}
							}
							for _, p := range pieces {
								if _, err := a.Write(p); err != nil {
									t.Error(err)
									return
								}
							}
						}
					})
					for i, want := range all {
						got := make([]byte, len(want))
						if n, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, want) {
							t.Fatalf("answer %d of %d bytes: %d, %v, equal %v", i, len(want), n, err, bytes.Equal(got, want))
						}
					}
					wg.Wait()
					a.Close()
					if err := d.await(); err != io.EOF {
						t.Errorf("ended with %v", err)
					}
				})
			}
		}
	})
}

// TestConnBetweenLoops: two connections on loops understand each other, with many messages under way.
func TestConnBetweenLoops(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		a, b := sockets(t)
		pa, pb := pairs(t, 1)
		server := serve(t, l, NewStream(b, pb, nil), 0, nil)
		c := newAsker(t, l, NewStream(a, pa, nil))
		c.ask(400, 64, []int{0, 4096, 4096, 512, 200_000})
		if c.err != nil {
			t.Error(c.err)
		}
		if n := server.got.Load(); n != 400 {
			t.Errorf("%d messages came, want 400", n)
		}
		l.Do(func() { server.c.Close(nil) })
		if err := server.await(); err != reactor.ErrClosed {
			t.Errorf("ended with %v", err)
		}
		if err := c.await(); err != io.EOF {
			t.Errorf("the other end ended with %v", err)
		}
	})
}

// asker sends messages from a loop, and compares the answers.
type asker struct {
	*echoer
	sends []reactor.Send
	sent  int
	total int
	sizes []int
	seen  int
	over  chan struct{}
	err   error
	task  reactor.Task
	buf   []byte
	wants [][]byte
}

func newAsker(t testing.TB, l *reactor.Loop, nc net.Conn) *asker {
	c := &asker{over: make(chan struct{}, 1)}
	c.echoer = &echoer{t: t, l: l, closed: make(chan struct{})}
	taken, err := Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	done := make(chan error, 1)
	l.Do(func() {
		c.c, err = taken.Adopt(l, c, nil)
		done <- err
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends so many messages of these sizes, depth at a time, and waits for the answers.
func (c *asker) ask(total, depth int, sizes []int) {
	c.total, c.sent, c.seen, c.sizes = total, 0, 0, sizes
	if len(c.sends) < depth {
		c.sends = make([]reactor.Send, depth)
		c.wants = nil
		for i, n := range sizes {
			c.wants = append(c.wants, message(60, n, i))
		}
		c.task.Run = func() {
			for range min(len(c.sends), c.total) {
				c.next()
			}
		}
	}
	c.l.Post(&c.task)
	select {
	case <-c.over:
	case <-time.After(patience):
		c.t.Fatalf("%d of %d answers came", c.seen, total)
	}
}

func (c *asker) next() {
	s := &c.sends[c.sent%len(c.sends)]
	m := c.wants[c.sent%len(c.sizes)]
	c.sent++
	s.Head, s.Body = m[:messageHeader+60], m[messageHeader+60:]
	if err := c.c.Send(s); err != nil {
		c.end(err)
	}
}

func (c *asker) end(err error) {
	if c.err == nil {
		c.err = err
	}
	select {
	case c.over <- struct{}{}:
	default:
	}
}

func (c *asker) OnData(_ *reactor.Conn, p []byte) int {
	m := c.wants[c.seen%len(c.sizes)]
	if len(p) < messageHeader+60 {
		c.c.Need(messageHeader + 60)
		return 0
	}
	if !bytes.Equal(p[:messageHeader+60], m[:messageHeader+60]) {
		c.end(errors.New("another head came"))
		c.c.Close(nil)
		return 0
	}
	if n := len(m) - messageHeader - 60; n > 0 {
		if cap(c.buf) < n {
			c.buf = make([]byte, n)
		}
		c.c.Fill(c.buf[:n])
	} else {
		c.answered()
	}
	return messageHeader + 60
}

func (c *asker) OnFilled(_ *reactor.Conn, p []byte) {
	if !bytes.Equal(p, c.wants[c.seen%len(c.sizes)][messageHeader+60:]) {
		c.end(errors.New("other data came"))
	}
	c.answered()
}

func (c *asker) answered() {
	c.seen++
	if c.sent < c.total {
		c.next()
	} else if c.seen == c.total {
		c.end(nil)
	}
}

func (c *asker) OnClose(x *reactor.Conn, err error) {
	c.end(err)
	c.echoer.OnClose(x, err)
}

// TestConnLeftovers: what was received before the connection came to a loop, opened or not, is delivered first.
func TestConnLeftovers(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		a, b := sockets(t)
		pa, pb := pairs(t, 1)
		sa, sb := NewStream(a, pa, nil), NewStream(b, pb, nil)
		first := append([]byte("hi!"), message(10, 100, 1)...)
		all := first[3:]
		sealed := seal(t, pa.out, first)
		for i := range 3 {
			m := message(20, 50, i)
			all = append(all, m...)
			sealed = append(sealed, seal(t, pa.out, m)...)
		}
		if _, err := a.Write(sealed); err != nil {
			t.Fatal(err)
		}
		hi := make([]byte, 8)
		if _, err := io.ReadFull(sb, hi); err != nil {
			t.Fatal(err)
		}
		d := serve(t, l, sb, 0, hi[3:])
		got := make([]byte, len(all))
		if _, err := io.ReadFull(sa, got); err != nil || !bytes.Equal(got, all) {
			t.Fatalf("%v, equal %v", err, bytes.Equal(got, all))
		}
		sa.Close()
		if err := d.await(); err != io.EOF {
			t.Error(err)
		}
	})
}

// TestConnForged: on a loop, too, nothing comes of a record that somebody has changed, or after it, and the connection ends.
func TestConnForged(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		for _, data := range []int{100, 30_000, 200_000} {
			m := message(60, data, 1)
			var sealed []byte
			ends := []int{0} // of records
			for _, at := range []string{"kind", "length", "content", "tag", "repeated", "left out", "cut", "second", "last"} {
				a, b := sockets(t)
				pa, pb := pairs(t, 1)
				sealed, ends = sealed[:0], ends[:1]
				for _, p := range [][]byte{m[:68], m[68:], m[:68], m[68:]} {
					for len(p) > 0 {
						n := min(len(p), MaxContent)
						sealed = append(sealed, seal(t, pa.out, p[:n])...)
						p = p[n:]
						ends = append(ends, len(sealed))
					}
				}
				half := len(ends) / 2 // records of one message
				from, to := ends[half+1], ends[half+2]
				whole := 1 // messages that come through
				switch at {
				case "kind":
					sealed[from] = 2
				case "length":
					sealed[from+1] ^= 1
				case "content":
					sealed[(from+to)/2] ^= 1
				case "tag":
					sealed[to-1] ^= 1
				case "repeated":
					sealed = append(sealed[:from:from], append(bytes.Clone(sealed[ends[half]:from]), sealed[from:]...)...)
				case "left out":
					sealed = append(sealed[:from:from], sealed[to:]...)
				case "cut":
					sealed = sealed[:to-1]
				case "second":
					sealed[ends[1]+headerSize] ^= 1
					whole = 0
				case "last":
					sealed[len(sealed)-1] ^= 1
				}
				var told atomic.Int32
				d := serve(t, l, NewStream(b, pb, func() { told.Add(1) }), 0, nil)
				_, _ = a.Write(sealed) // the other end may be closed before all is written; what came is looked at
				_ = a.(*net.TCPConn).CloseWrite()
				err := d.await()
				if n := int(d.got.Load()); n != whole {
					t.Errorf("%s, %d bytes: %d messages came, want %d", at, data, n, whole)
				}
				short := at == "cut" || at == "length" || at == "left out" && err != ErrForged
				if errors.Is(err, ErrForged) != (told.Load() == 1) || !errors.Is(err, ErrForged) && (!short || !errors.Is(err, io.ErrUnexpectedEOF)) {
					t.Errorf("%s, %d bytes: %v, told %d times", at, data, err, told.Load())
				}
			}
		}
	})
}

// TestConnCut: an end in the middle of a record or a message is not an orderly one, and all messages are given back.
func TestConnCut(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		for _, keep := range []int{3, 50, 88, 88 + 50, 88 + 20_000, 88 + 65556, 88 + 65556 + 3} {
			a, b := sockets(t)
			pa, pb := pairs(t, 1)
			d := serve(t, l, NewStream(b, pb, nil), 0, nil)
			m := message(60, 100_000, 1)
			sealed := append(seal(t, pa.out, m[:68]), seal(t, pa.out, m[68:])...)
			_, _ = a.Write(sealed[:keep])
			a.Close()
			if err := d.await(); !errors.Is(err, io.ErrUnexpectedEOF) || d.got.Load() != 0 {
				t.Errorf("%d bytes: %v, %d messages", keep, err, d.got.Load())
			}
		}
	})
}

// pauser takes one byte, and waits with a buffer to be filled for being let go on.
type pauser struct {
	c      Conn
	asked  chan struct{}
	filled chan []byte
	closed chan error
}

func (d *pauser) OnData(*reactor.Conn, []byte) int {
	d.c.Pause()
	d.c.Fill(make([]byte, 30_000))
	close(d.asked)
	return 1
}

func (d *pauser) OnFilled(_ *reactor.Conn, p []byte) {
	d.c.Pause()
	d.filled <- p
}

func (d *pauser) OnDrain(*reactor.Conn)              {}
func (d *pauser) OnClose(_ *reactor.Conn, err error) { d.closed <- err }

// TestConnResumed: a large record that comes in the same turn in which a pause ends, and completes what is to be filled together with what was held back: nothing
// is awaited behind it.
func TestConnResumed(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		a, b := sockets(t)
		pa, pb := pairs(t, 1)
		p := pattern(1+20_000+17_000, 1)
		first, second := seal(t, pa.out, p[:20_001]), seal(t, pa.out, p[20_001:])
		d := &pauser{asked: make(chan struct{}), filled: make(chan []byte, 1), closed: make(chan error, 1)}
		taken, err := Take(NewStream(b, pb, nil))
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		l.Do(func() {
			if d.c, err = taken.Adopt(l, d, nil); err != nil {
				t.Error(err)
			}
		})
		if _, err := a.Write(first); err != nil {
			t.Fatal(err)
		}
		select {
		case <-d.asked:
		case <-time.After(patience):
			t.Fatal("nothing comes")
		}
		used := make(chan int, 1)
		l.Do(func() { // as when both are told of by one wait
			s := d.c.(*sealed)
			s.Resume()
			used <- s.OnData(s.raw, second[:headerSize])
		})
		if n := <-used; n != headerSize {
			t.Fatalf("%d bytes of a header were used", n)
		}
		if _, err := a.Write(second[headerSize:]); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-d.filled:
			if !bytes.Equal(got, p[1:30_001]) {
				t.Error("other bytes came than were written")
			}
		case err := <-d.closed:
			t.Fatalf("the connection has ended: %v", err)
		case <-time.After(patience):
			t.Fatal("what came in full is not delivered")
		}
		l.Do(func() { d.c.Close(nil) })
		<-d.closed
	})
}

// TestConnUnread: what is sent to who does not read is given back when the connection ends, with an error, and nothing can be sent afterwards.
func TestConnUnread(t *testing.T) {
	loops(t, func(t *testing.T, l *reactor.Loop) {
		a, b := sockets(t)
		_, pb := pairs(t, 1)
		d := serve(t, l, NewStream(b, pb, nil), 0, nil)
		const sends = 40
		back := make(chan error, sends)
		l.Do(func() {
			for range sends {
				s := &reactor.Send{Head: []byte("head"), Body: make([]byte, 1<<20), Done: func(err error) { back <- err }}
				if err := d.c.Send(s); err != nil {
					t.Error(err)
				}
			}
		})
		time.Sleep(50 * time.Millisecond) // until the socket takes no more, or not
		l.Do(func() { d.c.Close(nil) })
		if err := d.await(); err != reactor.ErrClosed {
			t.Error(err)
		}
		failed := 0
		for range sends {
			select {
			case err := <-back:
				if err != nil {
					failed++
				}
			case <-time.After(patience):
				t.Fatal("a message was not given back")
			}
		}
		if failed == 0 {
			t.Error("40 MiB were sent to who does not read")
		}
		done := make(chan error, 1)
		l.Do(func() { done <- d.c.Send(&reactor.Send{Head: []byte("x")}) })
		if err := <-done; err == nil {
			t.Error("sent on a connection that has ended")
		}
		a.Close()
	})
}

// TestConnAllocs: a message and its answer allocate nothing on a loop.
func TestConnAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	loops(t, func(t *testing.T, l *reactor.Loop) {
		for _, size := range []int{0, 4096, 100_000} {
			a, b := sockets(t)
			pa, pb := pairs(t, 1)
			serve(t, l, NewStream(b, pb, nil), 0, nil)
			c := newAsker(t, l, NewStream(a, pa, nil))
			c.ask(100, 16, []int{size})
			const messages = 400
			if n := testing.AllocsPerRun(5, func() { c.ask(messages, 16, []int{size}) }); n > messages/20 {
				t.Errorf("%d bytes: %v allocations for %d messages and answers", size, n, messages)
			}
			if c.err != nil {
				t.Error(c.err)
			}
		}
	})
}

// BenchmarkConn is a message and its answer between two connections on one loop, in records and without.
func BenchmarkConn(b *testing.B) {
	for _, size := range []int{4096, 1 << 20} {
		for _, sealed := range []bool{false, true} {
			b.Run(fmt.Sprintf("size=%d/sealed=%v", size, sealed), func(b *testing.B) {
				l := newLoop(b, reactor.Auto)
				x, y := sockets(b)
				if sealed {
					px, py := pairs(b, 1)
					x, y = NewStream(x, px, nil), NewStream(y, py, nil)
				}
				serve(b, l, y, 0, nil)
				c := newAsker(b, l, x)
				b.SetBytes(2 * int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				c.ask(b.N, 8, []int{size})
			})
		}
	}
}
