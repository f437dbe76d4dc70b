package cs

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

// newBenchServer is a chunk server on a real disk.
func newBenchServer(b *testing.B, f *fakeLeader) *testServer {
	s := &testServer{o: testOptions(f)}
	s.o.Dir = b.TempDir()
	s.o.Store.SettleEvery, s.o.trace, s.o.Memory = 0, false, 0
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if _, err := Init(ctx, s.o); err != nil {
		b.Fatal(err)
	}
	s.start(b)
	s.waitServing(b)
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			b.Error(err)
		}
	})
	return s
}

// cpuTime returns the CPU time of this process: of server and client together.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkData is one client over loopback with depth requests under way.
func BenchmarkData(b *testing.B) {
	for _, op := range []struct {
		name string
		typ  wire.Type
	}{{"read", wire.Read}, {"write", wire.Write}} {
		for _, size := range []int{block, 1 << 20} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("op=%s/size=%d/depth=%d", op.name, size, depth), func(b *testing.B) {
					f := newFakeLeader(b)
					f.set(func() { f.beatMs = 1000 })
					s := newBenchServer(b, f)
					f.create(7, 1, s)
					c := dial(b, s, 5)
					p := pattern(1, size)
					const span = 32 << 20
					for off := 0; off < span; off += size {
						c.want(c.write(7, 1, uint32(off), p), fserr.OK, "fill")
					}
					bodies := make([][]byte, span/size)
					for i := range bodies {
						r := writeRequest(7, uint32(i*size), p)
						if op.typ == wire.Read {
							r.Sums = nil
						}
						r.Session = 5
						bodies[i] = r.Append(nil)
					}
					var data []byte
					if op.typ == wire.Write {
						data = p
					}
					done := make(chan *wire.Call, depth)
					start, sent, cpu := time.Now(), 0, cpuTime(b)
					b.SetBytes(int64(size))
					b.ReportAllocs()
					under := 0
					finish := func() {
						call := <-done
						under--
						if call.Err != nil || call.Reply.Code != fserr.OK {
							b.Fatal(call.Err, call.Reply)
						}
						call.Reply.Release()
					}
					for b.Loop() {
						if under == depth {
							finish()
						}
						i := (sent * 7919) % len(bodies)
						c.c.Start(&wire.Frame{Type: op.typ, Class: wire.ClassGuest, Epoch: id.Epoch(1), Body: bodies[i], Data: data}, done)
						sent++
						under++
					}
					for under > 0 {
						finish()
					}
					b.ReportMetric(float64(sent)/time.Since(start).Seconds(), "ops/s")
					b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/float64(sent), "cpu-µs/op")
				})
			}
		}
	}
}
