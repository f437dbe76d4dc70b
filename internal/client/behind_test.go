package client

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// behindOf is a file of a client that writes behind, 2 MiB at most, and never by itself unless change says so.
func behindOf(t *testing.T, w *world, change func(*Options)) (*Client, *File) {
	t.Helper()
	c := w.dial(t, func(o *Options) {
		o.WriteBehind, o.FlushEvery = 2<<20, time.Hour
		if change != nil {
			change(o)
		}
	})
	return c, create(t, c, "a")
}

// later writes behind if that is possible now, as a mount does.
func later(t *testing.T, f *File, p []byte, off int64) bool {
	t.Helper()
	if f.WriteBehind(p, off) {
		return true
	}
	write(t, f, p, off)
	return false
}

func (s *fakeCS) writeCount() (n int) {
	s.set(func() { n = s.writes })
	return n
}

func TestWriteBehind(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c, f := behindOf(t, w, nil)
	var want []byte
	for i := range 64 {
		p := fill(3000, byte(i))
		if !later(t, f, p, int64(len(want))) {
			t.Fatalf("write %d was not taken", i)
		}
		want = append(want, p...)
	}
	if n := w.cs[1].writeCount(); n != 0 {
		t.Fatalf("%d writes before anybody asked", n)
	}
	if a, err := c.GetAttr(t.Context(), f.Ino()); err != nil || a.Size != uint64(len(want)) {
		t.Fatalf("size %v, %v", a, err)
	}
	later(t, f, fill(100, 99), 5000)
	copy(want[5000:], fill(100, 99))
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if n := w.cs[1].writeCount(); n != 1 {
		t.Errorf("%d requests for writes that were next to one another", n)
	}
	for _, s := range w.cs {
		s.set(func() {
			if s.flushes == 0 {
				t.Errorf("server %v: fsync without a flush", s.id)
			}
		})
	}
	if !bytes.Equal(read(t, f, 0, len(want)+1), want) {
		t.Error("other bytes than were written")
	}
	// A read has only what it needs written.
	later(t, f, fill(4096, 7), 0)
	later(t, f, fill(4096, 8), 1<<20)
	copy(want, fill(4096, 7))
	if !bytes.Equal(read(t, f, 100, 4096), want[100:4196]) {
		t.Error("a read beside what was written behind")
	}
	if n, limit := c.behindBytes.Load(), c.o.WriteBehind; n < 0 || n > limit {
		t.Errorf("%d bytes of memory, limit %d", n, limit)
	}
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.behindBytes.Load(); n != 0 {
		t.Errorf("%d bytes of memory after close", n)
	}
}

// Whatever needs the bytes on the servers finds them there.
func TestWriteBehindOrder(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, f *File, model []byte) []byte{
		"direct write over it": func(t *testing.T, f *File, m []byte) []byte {
			write(t, f, fill(5000, 3), 2000)
			copy(m[2000:], fill(5000, 3))
			return m
		},
		"punch": func(t *testing.T, f *File, m []byte) []byte {
			if err := f.Fallocate(t.Context(), 3, 1000, 6000); err != nil {
				t.Fatal(err)
			}
			clear(m[1000:7000])
			return m
		},
		"shorter and longer": func(t *testing.T, f *File, m []byte) []byte {
			for _, n := range []int64{3000, 9000} {
				if err := f.Truncate(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
			clear(m[3000:])
			return m[:9000]
		},
		"append": func(t *testing.T, f *File, m []byte) []byte {
			if _, end, err := f.WriteAt(t.Context(), fill(50, 4), 0, true); err != nil || end != int64(len(m)+50) {
				t.Fatal(end, err)
			}
			return append(m, fill(50, 4)...)
		},
		"data after a hole": func(t *testing.T, f *File, m []byte) []byte {
			later(t, f, fill(10, 5), chunk.Size)
			if at, err := f.Seek(t.Context(), int64(len(m)), 3); err != nil || at < int64(len(m)) { // SEEK_DATA
				t.Fatal(at, err)
			}
			if err := f.Truncate(t.Context(), int64(len(m))); err != nil {
				t.Fatal(err)
			}
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 2, 2, 1)
			_, f := behindOf(t, w, nil)
			m := fill(12000, 1)
			if !later(t, f, m, 0) {
				t.Fatal("was not taken")
			}
			m = do(t, f, m)
			if !later(t, f, fill(77, 6), 500) {
				t.Fatal("was not taken afterwards")
			}
			copy(m[500:], fill(77, 6))
			if got := read(t, f, 0, len(m)+100); !bytes.Equal(got, m) {
				t.Errorf("%d bytes, want %d, or others", len(got), len(m))
			}
		})
	}
}

func TestWriteBehindIsBoundedAndTimely(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c, f := behindOf(t, w, func(o *Options) { o.FlushEvery = 50 * time.Millisecond })
	later(t, f, fill(100, 1), 0)
	eventually(t, "written by itself", func() bool { return w.cs[1].writeCount() == 1 && !f.in.behind.on.Load() })
	// The server takes nothing until a write is refused: a slow machine would not come to the limit.
	full := make(chan struct{})
	w.cs[1].set(func() {
		w.cs[1].before = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
			if typ == wire.Write {
				<-full
			}
			return fserr.OK
		}
	})
	taken := 0
	for i := range 200 {
		if p := fill(70<<10, byte(i)); f.WriteBehind(p, int64(i)<<20) {
			taken++
		} else {
			if i == taken {
				close(full)
			}
			write(t, f, p, int64(i)<<20)
		}
		if n := c.behindBytes.Load(); n < 0 || n > 2<<20 {
			t.Fatalf("%d bytes of memory", n)
		}
	}
	if taken == 0 || taken == 200 {
		t.Fatalf("%d of 200 writes were taken", taken)
	}
	for i := range 200 {
		if !bytes.Equal(read(t, f, int64(i)<<20, 70<<10), fill(70<<10, byte(i))) {
			t.Fatalf("piece %d", i)
		}
	}
	if f.WriteBehind(nil, 0) || f.WriteBehind(fill(1, 1), -1) || f.WriteBehind(fill(2, 1), chunk.MaxFileSize-1) {
		t.Error("what cannot be written was taken")
	}
	g := open(t, c, f, false)
	if g.WriteBehind(fill(1, 1), 0) {
		t.Error("a handle for reading took a write")
	}
}

// Another mount that opens the file finds everything, and from then on nothing is taken.
func TestWriteBehindEndsWithTheLease(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	_, f1 := behindOf(t, w, nil)
	c2 := w.dial(t, nil)
	p := fill(3<<20, 1)
	for off := 0; off < len(p); off += 50000 {
		later(t, f1, p[off:min(off+50000, len(p))], int64(off))
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { // writes go on while the lease is called back
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if q := fill(100, byte(i)); !f1.WriteBehind(q, 4<<20) {
				if _, _, err := f1.WriteAt(t.Context(), q, 4<<20, false); err != nil {
					t.Error(err)
				}
			}
		}
	})
	f2 := open(t, c2, f1, true)
	if !bytes.Equal(read(t, f2, 0, len(p)), p) {
		t.Error("the other mount reads other bytes")
	}
	if mode, _ := f1.in.state(); mode != msg.Mode_SHARED_WRITE {
		t.Errorf("mode %v", mode)
	}
	if f1.WriteBehind(p[:10], 0) || f1.in.behind.on.Load() {
		t.Error("something is written behind under a shared lease")
	}
	close(stop)
	wg.Wait()
}

// What cannot be written is told once by each handle, and by nobody else.
func TestWriteBehindFails(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c, f := behindOf(t, w, nil)
	g := open(t, c, f, true)
	w.cs[1].set(func() {
		w.cs[1].before = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
			if typ == wire.Write {
				return fserr.NoSpace
			}
			return fserr.OK
		}
	})
	if !later(t, f, fill(100, 1), 0) {
		t.Fatal("was not taken")
	}
	if err := f.Fsync(t.Context(), true); fserr.Of(err) != fserr.NoSpace {
		t.Errorf("fsync: %v", err)
	}
	w.cs[1].set(func() { w.cs[1].before = nil })
	if err := f.Fsync(t.Context(), true); err != nil {
		t.Errorf("second fsync: %v", err)
	}
	if err := g.Flush(t.Context()); fserr.Of(err) != fserr.NoSpace {
		t.Errorf("close of the other handle: %v", err)
	}
	h := open(t, c, f, true)
	if err := h.Fsync(t.Context(), true); err != nil {
		t.Errorf("of a handle that was opened later: %v", err)
	}
	if n := c.behindBytes.Load(); n != 0 {
		t.Errorf("%d bytes of memory", n)
	}
	// A session that is lost takes what was not written with it, and says so.
	later(t, f, fill(100, 1), 0)
	w.expire(uint64(c.Session()))
	if err := f.Fsync(t.Context(), true); fserr.Of(err) != fserr.Stale {
		t.Errorf("fsync after the session: %v", err)
	}
}

// Random writes, behind and not, reads, punches and flushes of several goroutines, each on bytes of its own, which meet in blocks.
func TestWriteBehindAgainstAModel(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c, f := behindOf(t, w, func(o *Options) { o.FlushEvery = 20 * time.Millisecond })
	const workers, size = 4, 300 << 10
	write(t, f, make([]byte, workers*size), 0)
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 1))
			base := int64(k * size)
			model := make([]byte, size)
			for i := range 300 {
				off := rng.Int64N(size - 1)
				n := min(rng.Int64N(20000)+1, size-off)
				if i%2 == 0 { // beside one another, or the same again
					off = off % 20000 / 1000 * 1000
					n = 1000 * (1 + n%4)
				}
				switch rng.IntN(8) {
				case 0, 1, 2, 3:
					p := fill(int(n), byte(i))
					copy(model[off:], p)
					if rng.IntN(4) > 0 && f.WriteBehind(p, base+off) {
						continue
					}
					if _, _, err := f.WriteAt(t.Context(), p, base+off, false); err != nil {
						t.Error(err)
					}
				case 4:
					clear(model[off : off+n])
					if err := f.Fallocate(t.Context(), 3, base+off, n); err != nil {
						t.Error(err)
					}
				case 5:
					if err := f.Fsync(t.Context(), true); err != nil {
						t.Error(err)
					}
				default:
					p := make([]byte, n)
					if _, err := f.ReadAt(t.Context(), p, base+off); err != nil || !bytes.Equal(p, model[off:off+n]) {
						t.Errorf("worker %d, step %d: [%d, +%d): other bytes than were written, %v", k, i, off, n, err)
						return
					}
				}
			}
			if p := make([]byte, size); true {
				if _, err := f.ReadAt(context.Background(), p, base); err != nil || !bytes.Equal(p, model) {
					t.Errorf("worker %d: other bytes in the end, %v", k, err)
				}
			}
		})
	}
	wg.Wait()
	if err := f.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if n := c.behindBytes.Load(); n != 0 {
		t.Errorf("%d bytes of memory", n)
	}
}
