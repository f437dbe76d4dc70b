package block_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/block/blocktest"
	"varve/internal/fserr"
	"varve/iouring/reactor"
)

// bench is a disk with threads.
type bench struct {
	t     *testing.T
	f     *blocktest.File
	d     *block.Disk
	loops []*block.Loop
}

// each runs a test on files that begin operations on loops and on those that do not, on a ring and on epoll.
func each(t *testing.T, size int, fn func(*bench)) {
	for _, hot := range []bool{false, true} {
		for _, kind := range []reactor.Kind{reactor.Auto, reactor.Poll} {
			name := kind.String()
			if hot {
				name += ", on loops"
			}
			t.Run(name, func(t *testing.T) {
				b := &bench{t: t, f: blocktest.New(size)}
				seats := &blocktest.Seats{}
				var file block.File = b.f
				o := block.LoopOptions{Threads: 2, Kind: kind}
				if hot {
					file = &blocktest.Hot{File: b.f, Seats: seats}
					o.Host = seats
				}
				var err error
				if b.loops, err = block.StartLoops(o); err != nil {
					t.Fatal(err)
				}
				b.d = block.NewDisk(file)
				fn(b)
				b.d.Close()
				if err := block.CloseLoops(t.Context(), b.loops); err != nil {
					t.Error(err)
				}
				if hot && seats.Left() != 2 {
					t.Errorf("%d seats were left, want 2", seats.Left())
				}
			})
		}
	}
}

// do carries an operation out on a loop and returns how it ended.
func (b *bench) do(loop int, op *block.Op) error {
	ended := make(chan error, 1)
	op.Done = func(err error) { ended <- err }
	b.loops[loop].Do(func() { b.d.Start(b.loops[loop], op) })
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Minute):
		b.t.Fatal("an operation does not end")
		return nil
	}
}

func (b *bench) must(loop int, op *block.Op) {
	b.t.Helper()
	if err := b.do(loop, op); err != nil {
		b.t.Fatalf("%+v: %v", op.Kind, err)
	}
}

func TestOperations(t *testing.T) {
	const size = 3<<20 + 100
	each(t, size, func(b *bench) {
		want := make([]byte, size)
		for i := range 40 {
			p := bytes.Repeat([]byte{byte(i + 1)}, 5000)
			off := i * 20000
			copy(want[off:], p)
			b.must(i%2, &block.Op{Kind: block.Write, P: p, Off: int64(off), FUA: i%3 == 0})
			if i%3 == 0 && b.f.Unflushed() != 0 {
				t.Fatal("a write with FUA ended unflushed")
			}
		}
		b.must(0, &block.Op{Kind: block.Flush})
		if b.f.Unflushed() != 0 {
			t.Error("a flush left something")
		}
		b.must(1, &block.Op{Kind: block.Trim, Off: 21000, N: 8000}) // no whole block but one
		clear(want[24576:28672])
		b.must(1, &block.Op{Kind: block.Trim, Off: 1, N: 4094})
		b.must(0, &block.Op{Kind: block.Zero, Off: 40100, N: 20000, FUA: true})
		clear(want[40100:60100])
		if b.f.Unflushed() != 0 {
			t.Error("zeros with FUA ended unflushed")
		}
		b.must(0, &block.Op{Kind: block.Zero, Off: 100, N: size - 200, NoHole: true})
		clear(want[100 : size-100])
		b.must(0, &block.Op{Kind: block.Cache, Off: 10, N: size - 10})
		got := make([]byte, size)
		b.must(1, &block.Op{Kind: block.Read, P: got})
		if !bytes.Equal(got, want) {
			t.Error("what is read is not what was written")
		}
		b.f.Cut(5000)
		got = bytes.Repeat([]byte{1}, 8192)
		op := &block.Op{Kind: block.Read, P: got}
		b.must(1, op)
		if !bytes.Equal(got[5000:], make([]byte, 3192)) || !op.Zeros {
			t.Error("beyond the end of a file that was cut there are no zeros")
		}
	})
}

func TestStatus(t *testing.T) {
	const size = 1 << 20
	each(t, size, func(b *bench) {
		for _, off := range []int64{8192, 12288, 40960} {
			b.must(0, &block.Op{Kind: block.Write, P: make([]byte, 4096), Off: off})
		}
		op := &block.Op{Kind: block.Status, N: size, Extents: make([]block.Extent, 0, 100)}
		b.must(0, op)
		want := []block.Extent{{Length: 8192, Hole: true}, {Length: 8192}, {Length: 24576, Hole: true}, {Length: 4096}, {Length: size - 45056, Hole: true}}
		if len(op.Extents) != len(want) {
			t.Fatalf("%+v, want %+v", op.Extents, want)
		}
		for i := range want {
			if op.Extents[i] != want[i] {
				t.Errorf("%+v, want %+v", op.Extents, want)
			}
		}
		op = &block.Op{Kind: block.Status, Off: 10000, N: 1000, Extents: make([]block.Extent, 0, 1)}
		b.must(1, op)
		if len(op.Extents) != 1 || op.Extents[0] != (block.Extent{Length: 1000}) {
			t.Errorf("%+v", op.Extents)
		}
		b.f.Cut(4096)
		op = &block.Op{Kind: block.Status, Off: 8192, N: size - 8192, Extents: make([]block.Extent, 0, 4)}
		b.must(1, op)
		if len(op.Extents) != 1 || op.Extents[0] != (block.Extent{Length: size - 8192, Hole: true}) {
			t.Errorf("beyond the end: %+v", op.Extents)
		}
	})
}

// TestFlushesShare: flushes that wait while one is under way are done together, and each of them covers what had ended before it.
func TestFlushesShare(t *testing.T) {
	each(t, 1<<20, func(b *bench) {
		enter, leave := make(chan struct{}, 100), make(chan struct{})
		b.f.Gate(func(_ context.Context, what string) error {
			if what == "flush" {
				enter <- struct{}{}
				<-leave
			}
			return nil
		})
		var wg sync.WaitGroup
		flush := func() { wg.Go(func() { b.must(0, &block.Op{Kind: block.Flush}) }) }
		flush()
		<-enter
		for range 20 {
			flush()
		}
		b.must(1, &block.Op{Kind: block.Write, P: make([]byte, 4096)})
		time.Sleep(10 * time.Millisecond) // most of them wait by now; how many does not matter
		leave <- struct{}{}
		close(leave)
		wg.Wait()
		b.must(1, &block.Op{Kind: block.Flush})
		if n := b.f.Count("flush"); n > 22 || b.f.Unflushed() != 0 {
			t.Errorf("%d flushes for 22, %d writes unflushed", n, b.f.Unflushed())
		}
	})
}

// TestOrder: a change that waits is made before those that overlap it and were started later, on whatever loop, and keeps no others.
func TestOrder(t *testing.T) {
	const size = 1 << 20
	each(t, size, func(b *bench) {
		enter, leave := make(chan struct{}, 1), make(chan struct{})
		b.f.Gate(func(_ context.Context, what string) error {
			if what == "punch" {
				enter <- struct{}{}
				<-leave
			}
			return nil
		})
		var mu sync.Mutex
		var ended []int
		var wg sync.WaitGroup
		start := func(n, loop int, op *block.Op) {
			wg.Add(1)
			op.Done = func(err error) {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				if ended = append(ended, n); err != nil {
					t.Errorf("change %d: %v", n, err)
				}
			}
			begun := make(chan struct{})
			b.loops[loop].Do(func() { b.d.Start(b.loops[loop], op); close(begun) })
			<-begun
		}
		fill := func(n byte, length int) []byte { return bytes.Repeat([]byte{n}, length) }
		start(0, 0, &block.Op{Kind: block.Zero, Off: 8192, N: 8192})
		<-enter
		for i := range 8 { // some of them on goroutines
			start(1+i, 1, &block.Op{Kind: block.Write, P: fill(byte(1+i), 8192), Off: 12288, FUA: i%3 == 0})
		}
		start(9, 0, &block.Op{Kind: block.Write, P: fill(9, 4096), Off: 16384})
		for i := range 8 {
			b.must(i%2, &block.Op{Kind: block.Write, P: fill(100, 4096), Off: int64(65536 + i*4096)})
		}
		mu.Lock()
		if len(ended) > 0 {
			t.Errorf("%v have ended before the change that they were started after", ended)
		}
		mu.Unlock()
		close(leave)
		wg.Wait()
		b.f.Data(func(p []byte) {
			if !bytes.Equal(p[8192:12288], make([]byte, 4096)) || !bytes.Equal(p[12288:16384], fill(8, 4096)) || !bytes.Equal(p[16384:20480], fill(9, 4096)) {
				t.Errorf("%d, %d and %d: not what the last changes made", p[8192], p[12288], p[16384])
			}
		})
	})
}

// TestStuck: a disk whose cluster does not answer holds up neither reads of another loop's memory nor its own end.
func TestStuck(t *testing.T) {
	each(t, 1<<20, func(b *bench) {
		b.f.Gate(func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return fserr.Interrupted
		})
		var ended atomic.Int32
		done := make(chan struct{})
		const ops = 300 // more than goroutines
		b.loops[0].Do(func() {
			for range ops {
				op := &block.Op{Kind: block.Cache, N: 4096}
				op.Done = func(err error) {
					if !errors.Is(err, fserr.Interrupted) {
						t.Error(err)
					}
					if ended.Add(1) == ops {
						close(done)
					}
				}
				b.d.Start(b.loops[0], op)
			}
		})
		b.d.Cancel()
		<-done
		if err := b.do(1, &block.Op{Kind: block.Flush}); !errors.Is(err, fserr.Interrupted) {
			t.Errorf("a flush after that: %v", err)
		}
	})
}

func TestDead(t *testing.T) {
	each(t, 1<<20, func(b *bench) {
		if err := b.do(0, &block.Op{Kind: block.Write, P: make([]byte, 512)}); err != nil || b.d.Dead() {
			t.Fatal(err)
		}
		b.f.Fault(func(string, int64, int64) error { return fserr.IO })
		if err := b.do(0, &block.Op{Kind: block.Write, P: make([]byte, 512)}); !errors.Is(err, fserr.IO) || b.d.Dead() {
			t.Errorf("%v, dead: %v", err, b.d.Dead())
		}
		b.f.Fault(func(string, int64, int64) error { return fserr.Stale })
		if err := b.do(0, &block.Op{Kind: block.Read, P: make([]byte, 512)}); !errors.Is(err, fserr.Stale) || !b.d.Dead() {
			t.Errorf("%v, dead: %v", err, b.d.Dead())
		}
	})
}

// TestMemory: buffers are aligned, used again, and never more than the limit.
func TestMemory(t *testing.T) {
	loops, err := block.StartLoops(block.LoopOptions{Threads: 1, Memory: block.MinMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := block.CloseLoops(t.Context(), loops); err != nil {
			t.Error(err)
		}
	}()
	l := loops[0]
	var out [][]byte
	for {
		p := l.Get(1 << 20)
		if p == nil {
			break
		}
		out = append(out, p)
	}
	if len(out) != block.MinMemory>>20 || l.Get(1) != nil {
		t.Fatalf("%d buffers of a mebibyte", len(out))
	}
	for _, p := range out {
		l.Put(p)
	}
	a, b := l.Get(block.MaxPayload), l.Get(block.MaxPayload-5)
	if len(a) != block.MaxPayload || len(b) != block.MaxPayload-5 || l.Get(1) != nil {
		t.Fatal("two of the largest should be all")
	}
	l.Put(b)
	for _, n := range []int{1, 511, 4096, 4097, 100000} {
		if p := l.Get(n); len(p) != n || cap(p)%block.BlockSize != 0 {
			t.Errorf("%d bytes: %d of %d", n, len(p), cap(p))
		} else {
			l.Put(p)
		}
	}
	l.Put(a)
	if n := testing.AllocsPerRun(100, func() { l.Put(l.Get(4096)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if _, err := block.StartLoops(block.LoopOptions{Threads: 2, Memory: block.MinMemory}); err == nil {
		t.Error("too little memory was taken")
	}
}
