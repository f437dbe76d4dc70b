package secure

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"varve/internal/pki"
	"varve/internal/secure/securetest"
)

// stream is a connection from which bytes come in pieces.
type stream struct {
	net.Conn
	b     []byte
	piece int
	wrote int
}

func (s *stream) Read(b []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.b[:min(len(s.b), s.piece)])
	s.b = s.b[n:]
	return n, nil
}

func (s *stream) Write(b []byte) (int, error)      { s.wrote += len(b); return len(b), nil }
func (s *stream) Close() error                     { return nil }
func (s *stream) SetDeadline(time.Time) error      { return nil }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }
func (s *stream) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7} }
func (s *stream) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 7} }

// FuzzRecords: what reads the records of a handshake gives what came, never reads beyond the record that is being read, nor more than it may.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 2, 7, 7, 23, 3, 3, 0, 1, 9}, byte(1), uint16(100))
	f.Add(bytes.Repeat([]byte{22, 3, 3, 0, 0}, 40), byte(3), uint16(64))
	f.Add([]byte{22, 3, 1, 0xff, 0xff, 1}, byte(7), uint16(1000))
	f.Add([]byte{}, byte(1), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, piece byte, left uint16) {
		s := &stream{b: b, piece: int(piece%64) + 1}
		r := &recordConn{Conn: s, left: int(left)}
		var got []byte
		p := make([]byte, 37)
		for len(got) <= len(b) {
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
			if n == 0 {
				t.Fatal("nothing was read, and no error said why")
			}
			// What is left of the stream begins where a record ends, as far as all that came before was whole.
			if at := recordEnd(b, len(got)); at >= 0 && len(b)-len(s.b) > at {
				t.Fatalf("read %d bytes, and the record ended at %d", len(b)-len(s.b), at)
			}
		}
		if !bytes.HasPrefix(b, got) || len(got) > int(left) {
			t.Fatalf("%d bytes of %d came, limit %d", len(got), len(b), left)
		}
		if len(b)-len(s.b) != len(got) {
			t.Fatalf("%d bytes were taken, and %d given", len(b)-len(s.b), len(got))
		}
	})
}

// recordEnd is where the record ends in which byte at-1 is, -1 if that is not known.
func recordEnd(b []byte, at int) int {
	pos := 0
	for pos+recordHeader <= len(b) {
		end := pos + recordHeader + int(binary.BigEndian.Uint16(b[pos+3:]))
		if at <= pos+recordHeader {
			return max(end, pos+recordHeader)
		}
		if at <= end {
			return end
		}
		pos = end
	}
	return -1
}

// FuzzHandshake: nothing that somebody without a certificate sends is taken for a member, or has the server send more than a handshake, or panic.
func FuzzHandshake(f *testing.F) {
	ca := securetest.New(f, cluster)
	n := New(Options{Credentials: ca.Node(f, "server"), Logger: quiet()})
	var join pki.JoinServer = nobodyJoins{}
	n.HandleJoin(join)
	for _, conf := range []*tls.Config{
		{NextProtos: []string{ProtoControl}}, {NextProtos: []string{ProtoData, ProtoSealed, ProtoDataTLS}}, {NextProtos: []string{ProtoJoin}}, {},
		{NextProtos: []string{ProtoControl}, MaxVersion: tls.VersionTLS12},
	} {
		f.Add(firstFlight(f, conf), byte(63))
	}
	f.Add([]byte("VRV1"), byte(1))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40}, byte(5))
	f.Add([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, byte(5))
	f.Fuzz(func(t *testing.T, b []byte, piece byte) {
		s := &stream{b: b, piece: int(piece) + 1}
		c, join, err := n.server(context.Background(), s)
		if err == nil && c != nil {
			t.Fatalf("let in: %v", c)
		}
		if err == nil && join == nil {
			t.Fatal("neither refused nor let in")
		}
		if s.wrote > 8<<10 {
			t.Fatalf("%d bytes were sent to a stranger", s.wrote)
		}
	})
}

type nobodyJoins struct{}

func (nobodyJoins) ServeJoin(_ context.Context, c *tls.Conn) { c.Close() }

// firstFlight is what a client sends first.
func firstFlight(f *testing.F, conf *tls.Config) []byte {
	f.Helper()
	conf.InsecureSkipVerify = true
	a, b := net.Pipe()
	defer b.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = tls.Client(a, conf).Handshake() // it ends when the pipe does
		a.Close()
	})
	buf := make([]byte, 1<<13)
	n, err := b.Read(buf)
	b.Close()
	wg.Wait()
	if err != nil {
		f.Fatal(err)
	}
	return buf[:n]
}
