package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// nullStore makes the chunk servers answer writes without storing, so that the client is what is measured.
func nullStore(w *world) {
	for _, cs := range w.cs {
		cs.set(func() { cs.null = true })
	}
}

func benchFile(b *testing.B, replicas int) *File {
	t := &testing.T{}
	w := newWorld(t, 1, replicas, replicas, 1)
	c := w.dial(t, nil)
	b.Cleanup(func() {
		c.Close()
		for _, cs := range w.cs {
			cs.stop()
		}
		w.servers[0].stop()
	})
	_, f, err := c.Create(context.Background(), nil, &msg.Create{Parent: 1, Name: []byte("a"), Type: msg.FileType_REGULAR, Open: true})
	if err != nil {
		b.Fatal(err)
	}
	if _, _, err := f.WriteAt(context.Background(), fill(16<<20, 1), 0, false); err != nil {
		b.Fatal(err)
	}
	nullStore(w)
	return f
}

func BenchmarkWrite(b *testing.B) {
	for _, replicas := range []int{1, 3} {
		for _, size := range []int{4096, 1 << 20} {
			for _, jobs := range []int{1, 16} {
				b.Run(fmt.Sprintf("replicas=%d/size=%d/jobs=%d", replicas, size, jobs), func(b *testing.B) {
					f := benchFile(b, replicas)
					benchmark(b, size, jobs, func(p []byte, off int64) error {
						_, _, err := f.WriteAt(context.Background(), p, off, false)
						return err
					})
				})
			}
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4096, 1 << 20} {
		for _, jobs := range []int{1, 16} {
			b.Run(fmt.Sprintf("size=%d/jobs=%d", size, jobs), func(b *testing.B) {
				f := benchFile(b, 1)
				benchmark(b, size, jobs, func(p []byte, off int64) error {
					n, err := f.ReadAt(context.Background(), p, off)
					if err == nil && n != len(p) {
						return fserr.IO
					}
					return err
				})
			})
		}
	}
}

func benchmark(b *testing.B, size, jobs int, do func(p []byte, off int64) error) {
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.SetParallelism(max(1, jobs/2))
	var n atomic.Int64
	if jobs == 1 {
		p := fill(size, 1)
		for b.Loop() {
			if err := do(p, n.Add(1)*int64(size)%(16<<20)); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.RunParallel(func(pb *testing.PB) {
		p := fill(size, 1)
		for pb.Next() {
			if err := do(p, n.Add(1)*int64(size)%(16<<20)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// The client's own share of allocations: what wire and the fake server make of a request is measured beside it.
func TestHotPathAllocates(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	w.renewMs = uint32(time.Hour.Milliseconds()) // what goes on beside counts too, the more the slower the machine
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, c, "a")
	f.in.s.deadline.Store(bootTime() + int64(time.Hour)) // which nobody renews
	p := fill(4096, 1)
	write(t, f, p, 0)
	nullStore(w)
	srv := f.in.s.servers.server(&replica{server: 1})
	conn, err := srv.conn(0)
	if err != nil {
		t.Fatal(err)
	}
	loc, _ := f.in.lookup(0)
	req := wire.DataRequest{Chunk: loc.chunk, Session: f.in.s.id, Length: 4096, Sums: chunk.AppendSums(nil, 0, p)}
	frame := &wire.Frame{Type: wire.Write, Epoch: loc.epoch, Body: req.Append(nil), Data: p}
	done := make(chan *wire.Call, 1)
	base := testing.AllocsPerRun(500, func() {
		conn.Start(frame, done)
		call := <-done
		call.Reply.Release()
	})
	ctx := t.Context()
	all := testing.AllocsPerRun(500, func() {
		if _, _, err := f.WriteAt(ctx, p, 0, false); err != nil {
			t.Error(err)
		}
	})
	if own := all - base; own > 6 {
		t.Errorf("a 4 KiB write allocates %.0f times more than its request", own)
	}
	frame = &wire.Frame{Type: wire.Read, Epoch: loc.epoch, Body: req.Append(nil)}
	base = testing.AllocsPerRun(500, func() {
		conn.Start(frame, done)
		call := <-done
		call.Reply.Release()
	})
	all = testing.AllocsPerRun(500, func() {
		if _, err := f.ReadAt(ctx, p, 0); err != nil {
			t.Error(err)
		}
	})
	if own := all - base; own > 6 {
		t.Errorf("a 4 KiB read allocates %.0f times more than its request", own)
	}
	t.Logf("last base %.0f, all %.0f", base, all)
}
