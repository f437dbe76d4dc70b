package wire

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkEcho is one connection over loopback with depth calls under way.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{0, 4096, 1 << 20} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("size=%d/depth=%d", size, depth), func(b *testing.B) {
				_, addr := startServer(b, handlerFunc(echo), Options{}, nil)
				c := dialTest(b, addr, nil, Options{})
				req := &Frame{Type: Read, Class: ClassGuest, Body: make([]byte, 64), Data: make([]byte, size)}
				if f, err := c.Call(context.Background(), req); err != nil {
					b.Fatal(err)
				} else {
					f.Release()
				}
				done := make(chan *Call, depth)
				under := 0
				finish := func() {
					call := <-done
					under--
					if call.Err != nil {
						b.Fatal(call.Err)
					}
					call.Reply.Release()
				}
				b.SetBytes(int64(2 * size))
				b.ReportAllocs()
				for b.Loop() {
					if under == depth {
						finish()
					}
					c.Start(req, done)
					under++
				}
				for under > 0 {
					finish()
				}
			})
		}
	}
}
