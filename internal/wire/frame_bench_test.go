package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"testing"

	"varve/internal/chunk"
)

// BenchmarkFrame is what one end does with a write's frame without a connection: make it, take it apart; by op, and by bytes of data.
func BenchmarkFrame(b *testing.B) {
	for _, size := range []int{4096, 1 << 20} {
		req := DataRequest{Chunk: 7, Session: 9, Offset: 8192, Length: uint32(size), Sums: make([]uint32, size/chunk.BlockSize)}
		body := req.Append(nil)
		data := make([]byte, size)
		b.Run(fmt.Sprintf("op=encode/size=%d", size), func(b *testing.B) {
			var head, own []byte
			b.ReportAllocs()
			for b.Loop() {
				own = req.Append(own[:0])
				head = AppendRequest(head[:0], Write, ClassGuest, 3, 1, own, size, 0)
			}
		})
		whole := append(AppendRequest(nil, Write, ClassGuest, 3, 1, body, size, 0), data...)
		b.Run(fmt.Sprintf("op=read/size=%d", size), func(b *testing.B) {
			var got DataRequest
			in := bytes.NewReader(whole)
			br := bufio.NewReaderSize(in, 64<<10)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				in.Reset(whole)
				br.Reset(in)
				f, _, err := readFrame(nil, br, nil, MaxBody, MaxData)
				if err == nil {
					err = got.Decode(f.Body)
				}
				if err != nil {
					b.Fatal(err)
				}
				f.Release()
			}
		})
		b.Run(fmt.Sprintf("op=header/size=%d", size), func(b *testing.B) { // as a reactor does, which has the body where it came
			var f Frame
			var got DataRequest
			b.ReportAllocs()
			for b.Loop() {
				n, _, err := f.DecodeHeader(whole, Keys{})
				if err == nil {
					err = f.CheckBody(whole[headerSize : headerSize+n])
				}
				if err == nil {
					err = got.Decode(whole[headerSize : headerSize+n])
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
