package cs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire"
)

// TestFrames sends frames of every shape: what is no frame ends its connection, what is none of a chunk server's is refused on it.
func TestFrames(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	unknown := func(body, data int) []byte {
		b := wire.AppendRequest(nil, 999, wire.ClassGuest, 1, 77, bytes.Repeat([]byte{5}, body), data, 0)
		return append(b, make([]byte, data)...)
	}
	flip := func(b []byte, at int) []byte {
		b[at] ^= 1
		return b
	}
	answerOf := func(b []byte) []byte { // the header says so, with its checksum
		var q wire.Frame
		if _, _, err := q.DecodeHeader(b, wire.Keys{}); err != nil {
			t.Fatal(err)
		}
		return q.AppendAnswer(nil, fserr.OK, nil, 0)
	}
	for _, test := range []struct {
		name   string
		stream []byte
		ends   bool
	}{
		{"small body", unknown(10, 0), false},
		{"no body", unknown(0, 0), false},
		{"body of some blocks", unknown(20_000, 0), false},
		{"large body", unknown(300_000, 0), false},
		{"data", unknown(10, 50_000), false},
		{"large body and data", unknown(100_000, 50_000), false},
		{"no frame", bytes.Repeat([]byte("GET / "), 20), true},
		{"wrong header checksum", flip(unknown(10, 0), 20), true},
		{"wrong body checksum", flip(unknown(10, 0), wire.HeaderSize+3), true},
		{"wrong checksum of a large body", flip(unknown(100_000, 0), wire.HeaderSize+90_000), true},
		{"an answer to nothing", answerOf(unknown(10, 0)), s.reactors != nil},
		{"a request that contradicts itself", requestBytes(wire.Write, 77, 5, writeRequest(7, 0, make([]byte, block)), make([]byte, 10)), false},
		{"a request of another session", requestBytes(wire.Flush, 77, 6, wire.DataRequest{Chunk: 7}, nil), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			nc, err := rawHello(t, s, 5, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			greeted(t, s, nc)
			// In two parts, the first of which is not a whole header.
			for _, p := range [][]byte{test.stream[:30], test.stream[30:]} {
				if _, err := nc.Write(p); err != nil && !test.ends {
					t.Fatal(err)
				}
			}
			answer := make([]byte, wire.HeaderSize)
			_, err = io.ReadFull(nc, answer)
			var timeout net.Error
			switch {
			case test.ends && (err == nil || errors.As(err, &timeout) && timeout.Timeout()):
				t.Errorf("the connection lives: %x, %v", answer, err)
			case !test.ends && err != nil:
				t.Errorf("no answer: %v", err)
			case !test.ends && (binary.LittleEndian.Uint64(answer[8:]) != 77 || fserr.Code(binary.LittleEndian.Uint16(answer[24:])) == fserr.OK):
				t.Errorf("answered with %x", answer)
			}
		})
	}
	wait(t, "memory to be given back", func() bool { return s.payload.used() == 0 })
}
