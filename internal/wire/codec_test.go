package wire

import (
	"bufio"
	"bytes"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

func frameBytes(h header, body, data []byte) []byte {
	h.bodyLen, h.dataLen, h.bodyCRC = uint32(len(body)), uint32(len(data)), crc32.Checksum(body, castagnoli)
	b := make([]byte, headerSize)
	h.encode(b)
	return append(append(b, body...), data...)
}

func read(b []byte, maxBody, maxData uint32) (*Frame, bool, error) {
	return readFrame(nil, bufio.NewReader(bytes.NewReader(b)), nil, maxBody, maxData)
}

func TestHeaderRoundTrip(t *testing.T) {
	want := header{
		typ: Write, class: ClassRepair, answer: true, id: 1<<63 + 5, epoch: 77, code: fserr.StaleEpoch,
		bodyLen: MaxBody, dataLen: MaxData, bodyCRC: 0xdeadbeef,
	}
	b := make([]byte, headerSize)
	want.encode(b)
	var got header
	if err := got.decode(b); err != nil || got != want {
		t.Fatalf("decoded %+v, %v, want %+v", got, err, want)
	}
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if err := got.decode(b); !errors.Is(err, fserr.Protocol) {
				t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
			}
			b[i] ^= 1 << bit
		}
	}
}

func TestHeaderRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(b []byte)
	}{
		{"magic", func(b []byte) { b[3] = '2' }},
		{"class", func(b []byte) { b[6] = byte(classEnd) }},
		{"flags", func(b []byte) { b[7] = 2 }},
		{"reserved 26", func(b []byte) { b[26] = 1 }},
		{"reserved 40", func(b []byte) { b[43] = 1 }},
		{"body length", func(b []byte) { b[31] = 0xff }},
		{"data length", func(b []byte) { b[35] = 0xff }},
	}
	for _, tt := range tests {
		b := make([]byte, headerSize)
		(&header{typ: Read}).encode(b)
		tt.change(b)
		c := crc32.Checksum(b[:44], castagnoli)
		b[44], b[45], b[46], b[47] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
		var h header
		if err := h.decode(b); !errors.Is(err, fserr.Protocol) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestReadFrame(t *testing.T) {
	body, data := []byte("body"), bytes.Repeat([]byte("d"), 5000)
	whole := frameBytes(header{typ: Write, id: 9, epoch: 3}, body, data)
	f, answer, err := read(whole, MaxBody, MaxData)
	if err != nil || answer || f.Type != Write || f.id != 9 || f.Epoch != 3 || !bytes.Equal(f.Body, body) || !bytes.Equal(f.Data, data) {
		t.Fatalf("frame %+v, %t, %v", f, answer, err)
	}
	f.Release()
	f.Release() // does nothing
	for n := range len(whole) {
		if _, _, err := read(whole[:n], MaxBody, MaxData); err == nil {
			t.Fatalf("frame cut to %d bytes was read", n)
		}
	}
	if _, _, err := read(whole, 3, MaxData); !errors.Is(err, fserr.Protocol) {
		t.Errorf("body over the limit: %v", err)
	}
	if _, _, err := read(whole, MaxBody, 4999); !errors.Is(err, fserr.Protocol) {
		t.Errorf("data over the limit: %v", err)
	}
	whole[headerSize]++
	if _, _, err := read(whole, MaxBody, MaxData); !errors.Is(err, fserr.Protocol) {
		t.Errorf("changed body: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	b := make([]byte, headerSize)
	(&header{typ: Read, id: 1}).encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		b = b[:headerSize:headerSize]
		// A right checksum, so that the rest of the decoder is reached.
		c := crc32.Checksum(b[:44], castagnoli)
		b[44], b[45], b[46], b[47] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
		var h header
		if err := h.decode(b); err != nil {
			return
		}
		again := make([]byte, headerSize)
		h.encode(again)
		if !bytes.Equal(again, b) {
			t.Fatalf("decoded %x, encoded %x", b, again)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frameBytes(header{typ: Write, id: 9}, []byte("body"), []byte("data")))
	f.Add([]byte("VRV1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, answer, err := read(b, 1<<10, 1<<12)
		if err != nil {
			if fr != nil {
				t.Fatal("a frame and an error")
			}
			return
		}
		defer fr.Release()
		again := frameBytes(header{
			typ: fr.Type, class: fr.Class, answer: answer, id: fr.id, epoch: fr.Epoch, code: fr.Code,
		}, fr.Body, fr.Data)
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("read %x, wrote %x", b, again)
		}
	})
}

func FuzzDataRequest(f *testing.F) {
	r := DataRequest{Chunk: 1, Session: 2, Offset: 3, Length: 4, Flags: Ordered, Forward: [MaxForward]id.ServerID{5, 6}, Sums: []uint32{7}}
	f.Add(r.Append(nil))
	r.Seq, r.Low, r.Recent = 9, 7, 3
	f.Add(r.Append(nil))
	r = DataRequest{Chunk: 1, Length: 4096, Flags: Forwarded | Settled, Sums: []uint32{7}, Done: []Done{{Session: 1, Seq: 2, From: 3, To: 4}, {Session: 5, Seq: 1, To: 1}}}
	f.Add(r.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r DataRequest
		if err := r.Decode(b); err != nil {
			if !errors.Is(err, fserr.Protocol) {
				t.Fatalf("error is %v", err)
			}
			return
		}
		if uint64(r.Offset)+uint64(r.Length) > chunk.Size {
			t.Fatalf("[%d, +%d) is outside the chunk", r.Offset, r.Length)
		}
		if again := r.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("decoded %x, encoded %x", b, again)
		}
	})
}

func TestDataRequestRoundTrip(t *testing.T) {
	want := DataRequest{
		Chunk: 1 << 60, Session: 2, Offset: chunk.Size - 4, Length: 4, Flags: Forwarded,
		Forward: [MaxForward]id.ServerID{5, 6, 7, 8}, Sums: []uint32{1, 0, 3}, Seq: 1 << 50, Low: 1<<50 - 7, Recent: 3,
	}
	settled := DataRequest{Chunk: 1, Length: 4096, Flags: Forwarded | Settled, Sums: []uint32{7}, Done: []Done{{Session: 1, Seq: 2, From: 3, To: 4}, {Session: 5, Seq: 1, To: 1}}}
	var got DataRequest
	if err := got.Decode(settled.Append(nil)); err != nil || !reflect.DeepEqual(got, settled) {
		t.Errorf("decoded %+v, %v, want %+v", got, err, settled)
	}
	for _, wrong := range []DataRequest{{Seq: 1, Low: 2}, {Seq: 1, Recent: 2}, {Flags: Settled, Seq: 1}, {Flags: Settled, Done: []Done{{Session: 1, Seq: 1, From: 2, To: 2}}}} {
		if err := new(DataRequest).Decode(wrong.Append(nil)); !errors.Is(err, fserr.Protocol) {
			t.Errorf("decoding %+v: %v", wrong, err)
		}
	}
	got = DataRequest{}
	if err := got.Decode(want.Append(nil)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v, want %+v", got, err, want)
	}
	want.Offset++
	if err := got.Decode(want.Append(nil)); !errors.Is(err, fserr.Protocol) {
		t.Errorf("past the end of the chunk: %v", err)
	}
	body := want.Append(nil)
	if n := testing.AllocsPerRun(100, func() { body = want.Append(body[:0]) }); n > 0 {
		t.Errorf("Append allocates %v times", n)
	}
	server, code, err := DecodeReplicaFailed(AppendReplicaFailed(nil, 9, fserr.Timeout))
	if server != 9 || code != fserr.Timeout || err != nil {
		t.Errorf("replica failed: %v, %v, %v", server, code, err)
	}
	if _, _, err := DecodeReplicaFailed(nil); !errors.Is(err, fserr.Protocol) {
		t.Errorf("empty replica-failed body: %v", err)
	}
}

func TestBuffer(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20, MaxData, MaxBody, MaxBody + 1} {
		b := Buffer(n)
		if len(b) != n {
			t.Errorf("buffer of %d bytes has %d", n, len(b))
		}
		Recycle(b)
	}
	Recycle(nil)
	Recycle(make([]byte, 10))
}
