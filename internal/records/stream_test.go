package records

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds what a test waits for.
const patience = 60 * time.Second

// sockets are the two ends of a TCP connection on loopback.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err == nil {
		b, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// TestStream: what is written in pieces of any size is read in pieces of any size, both ways at once.
func TestStream(t *testing.T) {
	a, b := sockets(t)
	pa, pb := pairs(t, 1)
	pa.out.each, pb.in.each = 7, 7
	sa, sb := NewStream(a, pa, nil), NewStream(b, pb, nil)
	var wg sync.WaitGroup
	const total = 3 << 20
	for i, ends := range [][2]*Stream{{sa, sb}, {sb, sa}} {
		p := pattern(total, i)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for rest := p; len(rest) > 0; {
				n := min(1+r.IntN(1<<r.IntN(20)), len(rest))
				if k, err := ends[0].Write(rest[:n]); err != nil || k != n {
					t.Errorf("write: %d, %v", k, err)
					return
				}
				rest = rest[n:]
			}
		})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			got := make([]byte, 0, total)
			for len(got) < total {
				n := min(1+r.IntN(1<<r.IntN(20)), total-len(got))
				k, err := ends[1].Read(got[len(got) : len(got)+n])
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				got = got[:len(got)+k]
			}
			if !bytes.Equal(got, p) {
				t.Error("other bytes came than were written")
			}
		})
	}
	wg.Wait()
	if n, err := sa.Read(nil); n != 0 || err != nil {
		t.Errorf("read of nothing: %d, %v", n, err)
	}
	sb.Close()
	if _, err := sa.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after the end: %v", err)
	}
}

// TestStreamTimeout: a time-out in the middle of a record loses nothing.
func TestStreamTimeout(t *testing.T) {
	a, b := sockets(t)
	pa, pb := pairs(t, 1)
	s := NewStream(b, pb, nil)
	rec := seal(t, pa.out, pattern(5000, 1))
	got := make([]byte, 6000)
	for _, cut := range []int{2, 2, 10, 3000} {
		if _, err := a.Write(rec[:cut]); err != nil {
			t.Fatal(err)
		}
		rec = rec[cut:]
		if err := s.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Read(got); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if _, err := a.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(got); err != nil || !bytes.Equal(got[:n], pattern(5000, 1)) {
		t.Errorf("%d, %v", n, err)
	}
}

// TestStreamForged: after a wrong record nothing comes, and somebody is told once; a record that is cut is no end.
func TestStreamForged(t *testing.T) {
	for _, big := range []bool{false, true} {
		n := 100
		if big {
			n = MaxContent
		}
		for _, at := range []int{0, 1, 2, 3, 4, n / 2, n + headerSize - 1, n + headerSize, n + overhead - 1} {
			a, b := sockets(t)
			pa, pb := pairs(t, 1)
			var told atomic.Int32
			s := NewStream(b, pb, func() { told.Add(1) })
			good := seal(t, pa.out, pattern(n, 1))
			bad := seal(t, pa.out, pattern(n, 2))
			bad[at] ^= 0x80
			go func() {
				_, _ = a.Write(append(append(good, bad...), seal(t, pa.out, pattern(n, 3))...))
				a.Close()
			}()
			got, err := io.ReadAll(s)
			if !bytes.Equal(got, pattern(n, 1)) {
				t.Errorf("byte %d of a record of %d: %d bytes came, want %d", at, n, len(got), n)
			}
			length := at == 1 || at == 2 // a longer record may be awaited
			if err != ErrForged && (!length || err != io.ErrUnexpectedEOF) || err == ErrForged && told.Load() != 1 {
				t.Errorf("byte %d of a record of %d: %v, told %d times", at, n, err, told.Load())
			}
			if err == ErrForged {
				if _, err := s.Read(make([]byte, 1)); err != ErrForged || told.Load() != 1 {
					t.Errorf("byte %d, read again: %v", at, err)
				}
			}
		}
	}
	a, b := sockets(t)
	pa, pb := pairs(t, 1)
	s := NewStream(b, pb, nil)
	rec := seal(t, pa.out, pattern(100, 1))
	_, _ = a.Write(rec[:50])
	a.Close()
	if _, err := s.Read(make([]byte, 100)); err != io.ErrUnexpectedEOF {
		t.Errorf("half a record, and the end: %v", err)
	}
}

// TestTaken: a stream that was given away neither reads nor writes: its numbers must not be used twice.
func TestTaken(t *testing.T) {
	_, b := sockets(t)
	_, pb := pairs(t, 1)
	s := NewStream(b, pb, nil)
	if !s.OnSocket() {
		t.Fatal("a TCP connection is no socket")
	}
	taken, err := Take(s)
	if err != nil {
		t.Fatal(err)
	}
	defer (os.NewFile(uintptr(taken.FD), "")).Close()
	if _, err := s.Read(make([]byte, 1)); err != errTaken {
		t.Errorf("read: %v", err)
	}
	if _, err := s.Write(make([]byte, 1)); err != errTaken {
		t.Errorf("write: %v", err)
	}
	if _, err := Take(s); err != errTaken {
		t.Errorf("taken again: %v", err)
	}
	x, y := net.Pipe()
	defer x.Close()
	defer y.Close()
	if s := NewStream(x, pb, nil); s.OnSocket() {
		t.Error("a pipe is a socket")
	}
	if _, err := Take(x); err == nil {
		t.Error("a pipe was taken")
	}
}

// FuzzStream: a stream whose bytes somebody has changed gives what was written up to there, and then an error.
func FuzzStream(f *testing.F) {
	f.Add([]byte("hello"), uint16(3), byte(1), uint8(0))
	f.Add(pattern(5000, 1), uint16(4100), byte(0x80), uint8(1))
	f.Add(pattern(300, 1), uint16(0), byte(0), uint8(2))
	f.Add(pattern(70000, 1), uint16(65000), byte(7), uint8(3))
	f.Fuzz(func(t *testing.T, p []byte, at uint16, with byte, how uint8) {
		pa, pb := pairs(t, 1)
		var b []byte
		for rest := p; len(rest) > 0; {
			n := min(len(rest), 1000)
			b = append(b, seal(t, pa.out, rest[:n])...)
			rest = rest[n:]
		}
		whole := bytes.Clone(b)
		if i := int(at); i < len(b) {
			switch how % 4 {
			case 0:
				b[i] ^= with
			case 1:
				b = b[:i]
			case 2:
				b = append(b[:i:i], b[min(len(b), i+int(with)):]...)
			case 3:
				b = append(b[:i:i], append(bytes.Clone(b[:min(i, int(with))]), b[i:]...)...)
			}
		}
		s := NewStream(memory{Reader: bytes.NewReader(b)}, pb, nil)
		got, err := io.ReadAll(s)
		if !bytes.HasPrefix(p, got) {
			t.Fatal("other bytes came than were written")
		}
		if bytes.Equal(b, whole) && (err != nil || len(got) != len(p)) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(p), err)
		}
		if len(got) == len(p) && len(b) > len(whole) && err == nil {
			t.Fatal("more than was written, and no error")
		}
	})
}

// memory is a connection that reads from memory.
type memory struct {
	net.Conn
	*bytes.Reader
}

func (m memory) Read(b []byte) (int, error) { return m.Reader.Read(b) }
