package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// script is a connection whose peer sends what is given and then nothing, and takes everything.
type script struct {
	in  bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzHandshake: whatever comes first on a connection either says hello or ends it, and no handler sees anything before.
func FuzzHandshake(f *testing.F) {
	hello, _ := (&msg.Hello{Cluster: make([]byte, 16), Role: msg.Hello_CLIENT, Session: 7, Lane: 1}).MarshalVT()
	whole := frameBytes(header{typ: Hello, id: 1}, hello, nil)
	f.Add(whole)
	f.Add(append(whole, frameBytes(header{typ: Read, id: 2}, (&DataRequest{Chunk: 1, Length: 4096}).Append(nil), nil)...))
	f.Add(frameBytes(header{typ: Hello, id: 1}, []byte{0xff}, nil))
	f.Add(frameBytes(header{typ: Read, id: 1}, hello, nil))
	f.Add(frameBytes(header{typ: Hello, id: 1}, nil, []byte("data")))
	f.Add(frameBytes(header{typ: Hello, id: 1, answer: true}, hello, nil))
	f.Add(whole[:60])
	f.Fuzz(func(t *testing.T, b []byte) {
		nc := &script{}
		nc.in.Reset(b)
		accepted := 0
		s := &Server{Logger: slog.New(slog.DiscardHandler), Accept: func(c *Conn, m *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
			if accepted++; m.Role != msg.Hello_CLIENT {
				return nil, nil, fserr.Protocol
			}
			return nil, &msg.HelloReply{Cluster: m.Cluster}, fserr.OK
		}}
		c := newConn(nc, bufio.NewReader(nc), Options{})
		defer c.Close()
		_, err := s.greet(c)
		answer, isAnswer, rerr := read(nc.out.Bytes(), MaxBody, 0)
		switch {
		case accepted > 1 || err == nil && accepted != 1:
			t.Fatalf("accepted %d times, %v", accepted, err)
		case accepted == 0 && nc.out.Len() > 0:
			t.Fatalf("answered %x to what is no hello", nc.out.Bytes())
		case accepted == 0:
			return
		case rerr != nil || !isAnswer || answer.Type != Hello || (answer.Code == fserr.OK) != (err == nil):
			t.Fatalf("answer %+v, %v to a hello, %v", answer, rerr, err)
		}
		// The same bytes as an answer, to one who said hello.
		nc = &script{}
		if len(b) > headerSize {
			b = bytes.Clone(b)
			b[7] |= flagAnswer
			sealHeader(b)
		}
		nc.in.Reset(b)
		c = newConn(nc, bufio.NewReader(nc), Options{})
		defer c.Close()
		if reply, err := c.sayHello(context.Background(), &msg.Hello{}); (reply == nil) == (err == nil) {
			t.Fatalf("%+v, %v", reply, err)
		}
	})
}

// sealHeader gives a frame's header a right checksum.
func sealHeader(b []byte) {
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
}

// grants is an Admission that counts what it gave and did not get back.
type grants struct{ out int }

func (g *grants) Admit(_ context.Context, _ *Conn, _ *Frame, size int) (Grant, []byte, error) {
	g.out++
	if size == 0 {
		return g, nil, nil
	}
	return g, make([]byte, size), nil
}

func (g *grants) Release([]byte) { g.out-- }

// FuzzStream: a stream of frames is cut into the same frames however it is cut into reads, and what was granted is given back.
func FuzzStream(f *testing.F) {
	var b []byte
	for i := range uint64(4) {
		b = append(b, frameBytes(header{typ: Write, id: i, epoch: 1}, (&DataRequest{Chunk: id.ChunkID(i)}).Append(nil), bytes.Repeat([]byte{1}, int(i)*700))...)
	}
	f.Add(b, uint16(1))
	f.Add(b, uint16(47))
	f.Add(b[:len(b)-5], uint16(100))
	f.Add(append(bytes.Clone(b), "garbage"...), uint16(3000))
	f.Fuzz(func(t *testing.T, b []byte, step uint16) {
		memory := new(grants)
		frames := func(r io.Reader) (all []*Frame, end error) {
			c := newConn(&script{}, bufio.NewReader(r), Options{})
			defer c.Close()
			c.Admission = memory
			for {
				fr, _, err := readFrame(c, c.br, nil, 1<<12, 1<<14)
				if err != nil {
					return all, err
				}
				all = append(all, &Frame{Type: fr.Type, Epoch: fr.Epoch, id: fr.id, Body: bytes.Clone(fr.Body), Data: bytes.Clone(fr.Data)})
				fr.Release()
			}
		}
		want, wantErr := frames(bytes.NewReader(b))
		got, gotErr := frames(&steps{b: b, n: max(1, int(step))})
		if len(got) != len(want) || wantErr.Error() != gotErr.Error() {
			t.Fatalf("%d frames and %v, in steps of %d %d and %v", len(want), wantErr, step, len(got), gotErr)
		}
		for i := range got {
			if got[i].id != want[i].id || !bytes.Equal(got[i].Body, want[i].Body) || !bytes.Equal(got[i].Data, want[i].Data) {
				t.Fatalf("frame %d differs", i)
			}
		}
		if memory.out != 0 {
			t.Fatalf("%d grants were not given back", memory.out)
		}
	})
}

// steps reads n bytes at a time.
type steps struct {
	b []byte
	n int
}

func (s *steps) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.n)], s.b)
	s.b = s.b[n:]
	return n, nil
}

// FuzzSums: checksums come back as they went, verify what they were made of, and find a changed bit.
func FuzzSums(f *testing.F) {
	f.Add([]byte("some bytes"), uint32(4090), uint16(3))
	f.Add(make([]byte, 9000), uint32(0), uint16(8999))
	f.Fuzz(func(t *testing.T, p []byte, off uint32, flip uint16) {
		off %= chunk.Size
		if len(p) == 0 || len(p) > 1<<16 {
			return
		}
		sums := chunk.AppendSums(nil, off, p)
		if _, n := chunk.Span(off, uint32(len(p))); int(n) != len(sums) {
			t.Fatalf("%d checksums for %d blocks", len(sums), n)
		}
		back := DecodeSums(nil, AppendSums(nil, sums))
		if i := chunk.VerifySums(back, off, p); i >= 0 {
			t.Fatalf("part %d does not match", i)
		}
		p[int(flip)%len(p)] ^= 1 << (flip % 8)
		if chunk.VerifySums(back, off, p) < 0 {
			t.Fatal("a changed bit is not found")
		}
	})
}

// FuzzReplicaFailed: round trip.
func FuzzReplicaFailed(f *testing.F) {
	f.Add(AppendReplicaFailed(nil, 9, fserr.Timeout))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		server, code, err := DecodeReplicaFailed(b)
		if err != nil {
			if !errors.Is(err, fserr.Protocol) {
				t.Fatal(err)
			}
			return
		}
		if again, code2, err := DecodeReplicaFailed(AppendReplicaFailed(nil, server, code)); again != server || code2 != code || err != nil {
			t.Fatalf("%v %v, again %v %v %v", server, code, again, code2, err)
		}
	})
}
