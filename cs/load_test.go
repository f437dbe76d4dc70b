package cs

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

// TestSlowPeer asks for much and reads nothing: the server holds no more than a few answers, and others are served meanwhile.
func TestSlowPeer(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	if s.reactors == nil {
		t.Skip("goroutines bound what all hold, not what one does: a slow peer may use it up until it is cut off")
	}
	f.create(7, 1, s)
	c := dial(t, s, 6)
	p := pattern(1, 1<<20)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")
	var stream []byte
	for i := range uint64(300) {
		stream = append(stream, requestBytes(wire.Read, i, 5, wire.DataRequest{Chunk: 7, Length: 1 << 20}, nil)...)
	}
	nc, err := rawHello(t, s, 5, stream)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for range 20 {
		code, got := c.read(7, 1, 0, block)
		c.want(code, fserr.OK, "read beside a slow peer")
		if !bytes.Equal(got, p[:block]) {
			t.Fatal("what was read differs")
		}
	}
	if used, limit := s.payload.used(), s.payload.clients.Size()/heldShare+2<<20; used > limit {
		t.Errorf("%d bytes of payload are held for it, limit %d", used, limit)
	}
}

// TestManyWriters have more data under way than there is memory for it.
func TestManyWriters(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	var all sync.WaitGroup
	for i := range 14 {
		all.Go(func() {
			c := dial(t, s, id.SessionID(10+i))
			p := pattern(uint64(i), wire.MaxData)
			off := uint32(i * wire.MaxData)
			for range 3 {
				done := make(chan *wire.Call, 4)
				r := writeRequest(7, off, p)
				r.Session = c.session
				body := r.Append(nil)
				for range cap(done) {
					c.c.Start(&wire.Frame{Type: wire.Write, Class: wire.ClassGuest, Epoch: 1, Body: body, Data: p}, done)
				}
				for range cap(done) {
					call := <-done
					if call.Err != nil || call.Reply.Code != fserr.OK {
						t.Errorf("write: %v, %+v", call.Err, call.Reply)
						return
					}
					call.Reply.Release()
				}
			}
			code, got := c.read(7, 1, off, wire.MaxData)
			if code != fserr.OK || !bytes.Equal(got, p) {
				t.Errorf("client %d: %v, equal: %v", i, code, bytes.Equal(got, p))
			}
		})
	}
	all.Wait()
}

// TestShutdownUnderLoad ends servers while clients write and read, on disks that stay: what was answered after a flush is there.
func TestShutdownUnderLoad(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	for round := range 4 {
		const clients = 4
		var all sync.WaitGroup
		last := make([]uint64, clients) // flushed
		for i := range clients {
			c := dial(t, s, id.SessionID(10+i)) // before the server may go
			all.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
				defer cancel()
				ask := func(typ wire.Type, r wire.DataRequest, data []byte) bool {
					r.Session = c.session
					a, err := c.c.Call(ctx, &wire.Frame{Type: typ, Class: wire.ClassGuest, Epoch: 1, Body: r.Append(nil), Data: data})
					if err != nil {
						return false
					}
					defer a.Release()
					return a.Code == fserr.OK
				}
				for n := uint64(1); ; n++ {
					p := pattern(uint64(round)<<32|n, block)
					if !ask(wire.Write, writeRequest(7, uint32(i)*block, p), p) {
						// This one may be there or not.
						return
					}
					if !ask(wire.Flush, wire.DataRequest{Chunk: 7}, nil) {
						return
					}
					last[i] = n
				}
			})
		}
		time.Sleep(time.Duration(20+10*round) * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		all.Wait()
		s.start(t)
		s.waitServing(t)
		c := dial(t, s, 9)
		for i, n := range last {
			code, got := c.read(7, 1, uint32(i)*block, block)
			c.want(code, fserr.OK, "read after the restart")
			if n > 0 && !bytes.Equal(got, pattern(uint64(round)<<32|n, block)) && !bytes.Equal(got, pattern(uint64(round)<<32|(n+1), block)) {
				t.Errorf("round %d, client %d: block is neither of write %d nor of the next", round, i, n)
			}
		}
	}
}

// TestReactorsAllocateNothing runs the hot paths of a read, a write and a flush, and counts.
func TestReactorsAllocateNothing(t *testing.T) {
	f := newFakeLeader(t)
	f.set(func() { f.beatMs = 60_000; f.leaseMs = 120_000 })
	s := newDiskServer(t, f, func(o *Options) { o.trace = false })
	if s.reactors == nil {
		t.Skip(s.dataPath)
	}
	f.create(7, 1, s)
	nc, err := rawHello(t, s, 5, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	greeted(t, s, nc)
	fd, err := nc.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := unix.SetNonblock(int(fd.Fd()), false); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	full := func(n int) {
		for have := 0; have < n; {
			m, err := unix.Read(int(fd.Fd()), buf[:n-have])
			if err != nil || m == 0 {
				t.Fatal("read of an answer: ", m, err)
			}
			have += m
		}
	}
	p := pattern(1, 4*block)
	for _, test := range []struct {
		name    string
		request []byte
		answer  int
	}{
		{"write", requestBytes(wire.Write, 1, 5, writeRequest(7, 0, p), p), wire.HeaderSize},
		{"read", requestBytes(wire.Read, 2, 5, wire.DataRequest{Chunk: 7, Length: 4 * block}, nil), wire.HeaderSize + 16 + 4*block},
		{"flush", requestBytes(wire.Flush, 3, 5, wire.DataRequest{Chunk: 7}, nil), wire.HeaderSize},
	} {
		one := func() {
			if n, err := unix.Write(int(fd.Fd()), test.request); err != nil || n != len(test.request) {
				t.Fatal(n, err)
			}
			full(test.answer)
		}
		for range 50 {
			one()
		}
		before := s.onDisk(t)
		if n := testing.AllocsPerRun(200, one); n != 0 {
			t.Errorf("%s: %v allocations, want none", test.name, n)
		}
		if s.onDisk(t)-before < 200 {
			t.Errorf("%s: only %d of 200 were done by the reactor", test.name, s.onDisk(t)-before)
		}
	}
}
