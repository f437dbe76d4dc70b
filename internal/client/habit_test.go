package client

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// TestDurableWrites: where each write is followed by a flush, the writes are durable and the flushes ask nobody; as soon as one is not, flushes ask again. A
// server that does not know of durable writes is sent none.
func TestDurableWrites(t *testing.T) {
	for _, old := range []bool{false, true} {
		w := newWorld(t, 1, 3, 3, 2)
		for s, cs := range w.cs {
			if !old || s != 2 {
				cs.set(func() { cs.takes = wire.Takes })
			}
		}
		c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
		f := create(t, c, "a")
		write(t, f, fill(8*chunk.BlockSize, 1), 0)
		if err := f.Fsync(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		h := sit(t, c, reactor.Auto)
		h.warm(f)
		block := 0
		put := func(p []byte) {
			block = (block + 1) % 8
			h.write(f, p, int64(block)*chunk.BlockSize)
		}
		flush := func() {
			t.Helper()
			var o *hotOp
			eventually(t, "a flush that can begin on the reactor", func() bool { o = h.fsync(f); return o != nil })
			if _, err := o.wait(); err != nil {
				t.Fatal(err)
			}
		}
		// cost is how many writes were durable, and how many flushes were asked for, at each server.
		cost := func(do func()) (durable, flushes int) {
			t.Helper()
			count := func() (all [4][2]int) {
				for s, cs := range w.cs {
					cs.set(func() { all[s] = [2]int{cs.durable, cs.flushes} })
				}
				return all
			}
			was := count()
			do()
			now := count()
			for s := 2; s <= 3; s++ {
				if now[s][0]-was[s][0] != now[1][0]-was[1][0] || now[s][1]-was[s][1] != now[1][1]-was[1][1] {
					t.Fatalf("servers did not do the same: %v, %v", was, now)
				}
			}
			return now[1][0] - was[1][0], now[1][1] - was[1][1]
		}
		want := func(what string, wantDurable, wantFlushes int, do func()) {
			t.Helper()
			if old {
				wantDurable, wantFlushes = 0, wantDurable+wantFlushes
			}
			if d, n := cost(do); d != wantDurable || n != wantFlushes {
				t.Fatalf("old %t: %s: %d durable writes and %d flushes, want %d and %d", old, what, d, n, wantDurable, wantFlushes)
			}
		}
		both := func() { put(fill(4096, byte(block+2))); flush() }
		want("until it is a habit", 0, habitual-1, func() { // with the first one
			for range habitual - 1 {
				both()
			}
		})
		want("as it is one", 3, 0, func() { both(); both(); both() })
		want("a flush of nothing", 0, 0, flush)
		want("goes on", 1, 0, both)
		want("two writes", 1, 1, func() {
			put(fill(4096, 3))
			if old {
				flush() // so that the count is the same
			}
			put(fill(4096, 4))
			flush()
		})
		if !old {
			want("the habit is over", 0, 1, both)
		}
		if st := c.HotStats(); !old && st.DurableWrites != 5 || old && st.DurableWrites != 0 {
			t.Errorf("old %t: %+v", old, st)
		}
	}
}

// TestDurableWriteFails: one replica does not take a durable write, or says nothing: the write is made good, and its flush is due as any other's.
func TestDurableWriteFails(t *testing.T) {
	for _, silent := range []bool{false, true} {
		w := newWorld(t, 1, 3, 3, 2)
		for _, cs := range w.cs {
			cs.set(func() { cs.takes = wire.Takes })
		}
		c := w.dial(t, func(o *Options) {
			o.FlushEvery, o.WriteTimeout, o.Patience = time.Hour, time.Second, 20*time.Second
		})
		f := create(t, c, "a")
		write(t, f, fill(8192, 1), 0)
		if err := f.Fsync(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		h := sit(t, c, reactor.Auto)
		h.warm(f)
		for range habitual {
			h.write(f, fill(4096, 2), 0)
			var o *hotOp
			eventually(t, "a flush that can begin on the reactor", func() bool { o = h.fsync(f); return o != nil })
			if _, err := o.wait(); err != nil {
				t.Fatal(err)
			}
		}
		var once atomic.Int32
		once.Store(1)
		w.cs[2].set(func() {
			w.cs[2].before = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
				if typ == wire.Write && r.Flags&wire.Durable != 0 && once.Add(-1) == 0 {
					if !silent {
						return fserr.IO
					}
					time.Sleep(1500 * time.Millisecond)
				}
				return fserr.OK
			}
		})
		p := fill(4096, 9)
		h.write(f, p, 4096)
		if once.Load() > 0 {
			t.Fatal("the write was not durable")
		}
		f.in.mu.Lock()
		due := len(f.in.unflushed)
		f.in.mu.Unlock()
		if due != 1 {
			t.Errorf("silent %t: %d chunks are to be flushed, want 1", silent, due)
		}
		before := w.flushCounts()
		if err := f.Fsync(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		now := w.flushCounts()
		for _, s := range w.replicas(f.Ino(), 0) {
			if now[s] == before[s] {
				t.Errorf("silent %t: %v was not flushed", silent, s)
			}
			if got := w.cs[s].content(f.Ino(), 0, 8192)[4096:]; !bytes.Equal(got, p) {
				t.Errorf("silent %t: %v has other bytes", silent, s)
			}
		}
	}
}
