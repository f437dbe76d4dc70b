package cs

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// These tests run on a real disk: only there do reactors do the I/O. TestWithoutReactors runs them with goroutines.

// onDisk counts the requests that reactors have done by themselves.
func (s *testServer) onDisk(t testing.TB) uint64 {
	if s.reactors == nil {
		return 0
	}
	n := uint64(0)
	for _, l := range s.reactors.loops {
		n += l.tried.Load()
	}
	return n
}

// TestDataOnDisk has clients write, read, flush and punch at random, each its own part of a chunk, while others come and are cut off in
// the middle of what they send. At the end everything is there.
func TestDataOnDisk(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	const clients, part, steps = 5, 64 * block, 80
	models, conns := make([][]byte, clients), make([]*client, clients)
	for i := range conns { // before there are so many that no more are taken
		conns[i] = dial(t, s, id.SessionID(10+i))
	}
	stop := make(chan struct{})
	var noise, work sync.WaitGroup
	for i := range 2 {
		noise.Go(func() { cutOff(t, s, uint64(i), stop) })
	}
	for i := range clients {
		models[i] = make([]byte, part)
		work.Go(func() {
			c := conns[i]
			r := rand.New(rand.NewPCG(1, uint64(i)))
			base := uint32(i * part)
			for step := range steps {
				off, n := uint32(r.IntN(part/block))*block, uint32(1+r.IntN(8))*block
				n = min(n, part-off)
				if r.IntN(5) == 0 { // not on whole blocks
					off, n = off+uint32(r.IntN(block)), n-uint32(r.IntN(block))
					n = min(n, part-off)
				}
				switch r.IntN(8) {
				case 0, 1, 2, 3:
					p := pattern(uint64(step*clients+i), int(n))
					c.want(c.write(7, 1, base+off, p), fserr.OK, "write")
					copy(models[i][off:], p)
				case 4, 5:
					off, n = off/block*block, (n+block-1)/block*block
					code, p := c.read(7, 1, base+off, min(n, part-off))
					c.want(code, fserr.OK, "read")
					if !bytes.Equal(p, models[i][off:][:len(p)]) {
						t.Errorf("client %d, step %d: what was read differs", i, step)
						return
					}
				case 6:
					code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
					c.want(code, fserr.OK, "flush")
				case 7:
					code, _, _ := c.do(wire.Punch, 1, wire.DataRequest{Chunk: 7, Offset: base + off, Length: n}, nil)
					c.want(code, fserr.OK, "punch")
					clear(models[i][off:][:n])
				}
			}
		})
	}
	work.Wait()
	close(stop)
	noise.Wait()
	c := conns[0]
	for i, m := range models {
		code, p := c.read(7, 1, uint32(i*part), part)
		c.want(code, fserr.OK, "read at the end")
		if !bytes.Equal(p, m) {
			t.Errorf("the part of client %d differs at the end", i)
		}
	}
	if s.reactors != nil && s.onDisk(t) == 0 {
		t.Error("the reactors have done nothing by themselves")
	}
	wait(t, "requests of lost connections to end", func() bool { return s.payload.used() == 0 })
}

// rawHello connects and says hello, with what is to follow in the same packet.
func rawHello(t testing.TB, s *testServer, session uint64, follow []byte) (net.Conn, error) {
	nc, err := net.Dial("tcp", s.Addr())
	if err != nil {
		return nil, err
	}
	if err := nc.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Error(err)
	}
	body, err := (&msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CLIENT, Session: session}).MarshalVT()
	if err != nil {
		t.Error(err)
	}
	_, err = nc.Write(append(wire.AppendRequest(nil, wire.Hello, wire.ClassGuest, 0, 0, body, 0, 0), follow...))
	return nc, err
}

// greeted waits until the server has answered a hello, and so begun to serve.
func greeted(t testing.TB, s *testServer, nc net.Conn) {
	t.Helper()
	hello, err := (&msg.HelloReply{Cluster: s.cluster[:], Version: s.o.Version, Server: uint32(s.id), Name: s.name, Takes: wire.Takes}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, wire.HeaderSize+len(hello))); err != nil {
		t.Fatal(err)
	}
}

// requestBytes is the frame of a data request.
func requestBytes(t wire.Type, reqID uint64, session id.SessionID, r wire.DataRequest, data []byte) []byte {
	r.Session = session
	b := wire.AppendRequest(nil, t, wire.ClassGuest, 1, reqID, r.Append(nil), len(data), 0)
	return append(b, data...)
}

// cutOff sends streams of requests that end anywhere, on a chunk of their own, until stop.
func cutOff(t *testing.T, s *testServer, seed uint64, stop chan struct{}) {
	r := rand.New(rand.NewPCG(seed, 3))
	session := id.SessionID(100 + seed)
	for round := 0; ; round++ {
		select {
		case <-stop:
			return
		default:
		}
		var stream []byte
		for i := range uint64(6) {
			off := uint32(40<<20 + r.IntN(1000)*block)
			n := []int{block, 4 * block, 100 * block}[r.IntN(3)]
			switch r.IntN(3) {
			case 0:
				stream = append(stream, requestBytes(wire.Read, i, session, wire.DataRequest{Chunk: 7, Offset: off, Length: uint32(n)}, nil)...)
			case 1:
				p := pattern(seed, n)
				stream = append(stream, requestBytes(wire.Write, i, session, writeRequest(7, off, p), p)...)
			case 2:
				stream = append(stream, requestBytes(wire.Flush, i, session, wire.DataRequest{Chunk: 7}, nil)...)
			}
		}
		nc, err := rawHello(t, s, uint64(session), stream[:r.IntN(len(stream)+1)])
		if nc == nil {
			t.Error(err)
			return
		}
		// An error of the write is as good: an older hello, served late, has replaced this connection.
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		if r.IntN(2) == 0 {
			_ = nc.(*net.TCPConn).SetLinger(0)
		}
		nc.Close()
	}
}

// TestCutAtEachPlace ends a connection after each of the first bytes of a write and of a read: nothing is left behind.
func TestCutAtEachPlace(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	p := pattern(3, 5*block)
	stream := requestBytes(wire.Write, 1, 5, writeRequest(7, 0, p), p)
	stream = append(stream, requestBytes(wire.Read, 2, 5, wire.DataRequest{Chunk: 7, Length: 5 * block}, nil)...)
	for cut := 0; cut <= len(stream); cut += 1 + cut/40 {
		nc, err := rawHello(t, s, 5, stream[:cut])
		if nc == nil {
			t.Fatal(err)
		}
		if cut%2 == 0 {
			_ = nc.(*net.TCPConn).SetLinger(0)
		}
		nc.Close()
	}
	// Of another session: a hello that is served late would replace the connection. Those that have not ended yet may be as many as a
	// server of so little memory takes. A read waits for a write under way.
	c := &client{t: t, session: 6}
	wait(t, "a connection", func() (ok bool) {
		var err error
		hello := &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CLIENT, Session: 6}
		c.c, _, err = wire.Dial(t.Context(), s.Addr(), hello, nil, wire.Options{})
		return err == nil
	})
	defer c.c.Close()
	code, got := c.read(7, 1, 0, 5*block)
	c.want(code, fserr.OK, "read")
	if !bytes.Equal(got, p) && !chunk.IsZero(got) {
		t.Error("half a write is there")
	}
	wait(t, "memory to be given back", func() bool { return s.payload.used() == 0 })
}

// TestLaneOrder loses connections with writes under way and writes the same place on the next: the older write never
// comes after the newer one.
func TestLaneOrder(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	const n = 64 * block
	for round := range 24 {
		older, newer := pattern(uint64(2*round), n), pattern(uint64(2*round+1), n)
		nc, err := rawHello(t, s, 5, requestBytes(wire.Write, 1, 5, writeRequest(7, 0, older), older))
		if err != nil {
			t.Fatal(err)
		}
		greeted(t, s, nc)
		time.Sleep(time.Duration(round%8) * 100 * time.Microsecond)
		c := dial(t, s, 5)
		c.want(c.write(7, 1, 0, newer), fserr.OK, "write")
		code, got := c.read(7, 1, 0, n)
		c.want(code, fserr.OK, "read")
		if !bytes.Equal(got, newer) {
			t.Fatalf("round %d: an older write came after a newer one", round)
		}
		nc.Close()
		c.c.Close()
	}
}

// TestFenceUnderLoad fences a session that writes as fast as it can: what was answered by then is there, nothing is written afterwards.
func TestFenceUnderLoad(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	fenced := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		p := make([]byte, block)
		for i := uint64(1); ; i++ {
			for j := range p {
				p[j] = byte(i >> (8 * (j % 8)))
			}
			switch code := c.write(7, 1, uint32(i%100)*block, p); code {
			case fserr.OK:
				select {
				case <-fenced:
					t.Error("a write was done after the fence")
					return
				default:
				}
			case fserr.Fenced:
				return
			default:
				t.Errorf("write: %v", code)
				return
			}
		}
	})
	time.Sleep(30 * time.Millisecond)
	f.must(s.ID(), wire.Fence, &msg.Fence{Sessions: []uint64{5}})
	writer.Wait()
	close(fenced)
	reader := dial(t, s, 6)
	_, before := reader.read(7, 1, 0, 100*block)
	if code := c.write(7, 1, 0, pattern(1, block)); code != fserr.Fenced {
		t.Errorf("write after the fence: %v", code)
	}
	_, after := reader.read(7, 1, 0, 100*block)
	if !bytes.Equal(before, after) {
		t.Error("something was written after the fence")
	}
}

// TestRotOnDisk changes bits of a chunk file: the reader gets IO, not the bytes, and the connection lives on.
func TestRotOnDisk(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	p := pattern(1, 8*block)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")
	code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
	c.want(code, fserr.OK, "flush")
	flipInFiles(t, s.o.Dir, p[3*block:4*block])
	code, _ = c.read(7, 1, 0, 8*block)
	c.want(code, fserr.IO, "read of a bad block")
	code, got := c.read(7, 1, 4*block, 4*block)
	c.want(code, fserr.OK, "read of good blocks")
	if !bytes.Equal(got, p[4*block:]) {
		t.Error("good blocks differ")
	}
	wait(t, "memory to be given back", func() bool { return s.payload.used() == 0 })
}

// flipInFiles changes a bit of the block wherever a file below dir holds it.
func flipInFiles(t *testing.T, dir string, want []byte) {
	t.Helper()
	found := false
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if at := bytes.Index(b, want); at >= 0 {
			found = true
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = file.WriteAt([]byte{want[100] ^ 4}, int64(at)+100)
			return err
		}
		return nil
	})
	if err != nil || !found {
		t.Fatalf("flip a bit: found %v, %v", found, err)
	}
}
