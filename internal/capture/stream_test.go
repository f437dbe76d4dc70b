package capture

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sockets gives each test names of its own, which no mount has: minor numbers have 20 bits.
var sockets atomic.Uint32

// served is a mount without a mount: it serves captures until the test ends.
type served struct {
	minor   uint32
	buffers atomic.Pointer[Buffers]
	stop    chan struct{}
	results chan error
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{minor: 1<<31 | uint32(os.Getpid())<<8 | sockets.Add(1)&0xff, stop: make(chan struct{}), results: make(chan error, 16)}
	l, err := Listen(s.minor)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			nc, err := l.AcceptUnix()
			if err != nil {
				return
			}
			all.Go(func() {
				s.results <- Serve(nc, s.stop, func(b *Buffers) error {
					if !s.buffers.CompareAndSwap(nil, b) {
						return errors.New("busy")
					}
					return nil
				}, func() { s.buffers.Store(nil) })
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.end()
		all.Wait()
	})
	return s
}

func (s *served) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}

// drain takes all records of a stream.
func drain(t *testing.T, s *Stream) (n int, err error) {
	t.Helper()
	for {
		r, err := s.Next()
		if err != nil {
			return n, err
		}
		if r.Kind != Read || r.Size != 4096 {
			t.Fatalf("record %+v", r)
		}
		n++
	}
}

func TestStream(t *testing.T) {
	s := serve(t)
	c, err := Dial(s.minor)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := Dial(s.minor); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("a second capture at once: %v", err)
	}
	const lanes, each = 16, 20000
	got := make(chan int)
	go func() {
		n, err := drain(t, c)
		if err != io.EOF {
			t.Errorf("the stream ended with %v", err)
		}
		got <- n
	}()
	var all sync.WaitGroup
	for lane := range lanes {
		all.Go(func() {
			for range each {
				s.buffers.Load().Add(uint64(lane), &Record{Kind: Read, Size: 4096})
			}
		})
	}
	all.Wait()
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n+int(c.Dropped) != lanes*each || n == 0 {
		t.Errorf("%d records and %d dropped, want %d in all", n, c.Dropped, lanes*each)
	}
	if s.buffers.Load() != nil {
		t.Error("the mount goes on adding")
	}
	again, err := Dial(s.minor) // the next capture
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestSlowClient: a client that takes nothing makes nobody wait; what does not fit is counted.
func TestSlowClient(t *testing.T) {
	s := serve(t)
	c, err := Dial(s.minor)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const many = 400_000 // 25 MiB
	b := s.buffers.Load()
	for i := range uint64(many) {
		b.Add(i, &Record{Kind: Read, Size: 4096})
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	n, err := drain(t, c)
	if err != io.EOF || c.Dropped == 0 || n+int(c.Dropped) != many {
		t.Errorf("%v: %d records and %d dropped, want %d in all and some dropped", err, n, c.Dropped, many)
	}
}

// TestGone: a client that goes away, and a mount that does.
func TestGone(t *testing.T) {
	s := serve(t)
	c, err := Dial(s.minor)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for limit := time.Now().Add(20 * time.Second); s.buffers.Load() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the capture goes on without its client")
		}
	}
	if c, err = Dial(s.minor); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.buffers.Load().Add(1, &Record{Kind: Read, Size: 4096})
	s.end()
	if n, err := drain(t, c); n != 1 || err != io.EOF {
		t.Errorf("when the mount goes away: %d records and %v, want 1 and EOF", n, err)
	}
}

// TestStuckClient: a client that takes nothing does not keep the mount from going away.
func TestStuckClient(t *testing.T) {
	s := serve(t)
	c, err := Dial(s.minor)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := s.buffers.Load()
	for i := range uint64(200_000) {
		b.Add(i, &Record{Kind: Read, Size: 4096})
	}
	begin := time.Now()
	s.end()
	if err := <-s.results; err == nil {
		t.Error("the mount sent all that nobody took")
	}
	if took := time.Since(begin); took > stuckTime/2 {
		t.Errorf("it took %v", took)
	}
}

func TestBadHello(t *testing.T) {
	s := serve(t)
	nc, err := net.DialUnix("unix", nil, name(s.minor))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write(bytes.Repeat([]byte("x"), helloSize)); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(nc) // the connection may be reset, too
	if err := <-s.results; err == nil || len(answer) > 0 && !bytes.Contains(answer, []byte("version 1")) {
		t.Errorf("%v, answer %q", err, answer)
	}
	if _, err := Dial(s.minor + 1<<30); err == nil {
		t.Error("nobody listens there")
	}
	if permit(7, 8) == nil || permit(0, 8) != nil || permit(8, 8) != nil {
		t.Error("users are not told apart")
	}
}

func TestAddAllocs(t *testing.T) {
	b := NewBuffers()
	if n := testing.AllocsPerRun(1000, func() { b.Add(3, &Record{Kind: Read, Size: 4096}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	buffers := NewBuffers()
	var lanes atomic.Uint64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		lane := lanes.Add(1)
		for n := 0; pb.Next(); n++ {
			buffers.Add(lane, &Record{Kind: Read, Size: 4096})
			if n%4096 == 0 {
				s := &buffers.shards[lane%shards]
				s.mu.Lock()
				s.full = s.full[:0]
				s.mu.Unlock()
			}
		}
	})
}
