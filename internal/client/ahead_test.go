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
)

func TestStreams(t *testing.T) {
	var s streams
	const k4, m1 = 4 << 10, int64(aheadPiece)
	// Random reads are no sequence.
	for range 1000 {
		if from, to := s.read(rand.Int64N(1<<30)*k4, k4); from < to {
			t.Fatalf("after a random read: [%d, %d)", from, to)
		}
	}
	// Of a sequence every piece is given out once, in order, from early on, with a window that grows with use.
	s = streams{}
	var last, pieces int64
	for off := int64(0); off < 64*m1; off += k4 {
		from, to := s.read(off, k4)
		if from < to {
			if from%m1 != 0 || to%m1 != 0 || from < last || pieces > 0 && from != last {
				t.Fatalf("at %d: [%d, %d) after %d", off, from, to, last)
			}
			pieces += (to - from) / m1
			last = to
		}
		if off > 0 && off%m1 == 0 {
			s.grow(off)
		}
		if pieces > 0 && (last < off || last > off+k4+maxWindow) {
			t.Fatalf("at %d: ahead up to %d", off, last)
		}
	}
	if pieces < 60 {
		t.Errorf("%d pieces of 64", pieces)
	}
	// Three sequences at once, in pieces that overtake one another, beside random reads.
	s = streams{}
	heads := [3]int64{0, 1 << 30, 2 << 30}
	got := [3]int64{}
	for i := range 600 {
		h := i % 3
		off := heads[h] + int64(i/3^1)*(128<<10)
		from, to := s.read(off, 128<<10)
		got[h] += to - from
		if i%5 == 0 {
			s.read(4<<30+rand.Int64N(1<<20)*k4, k4)
		}
	}
	for h, n := range got {
		if n < 20*m1 || n > 30*m1 {
			t.Errorf("sequence %d of 25 MiB: %d bytes ahead", h, n)
		}
	}
	// The end of the largest file.
	s = streams{}
	for off := chunk.MaxFileSize - 4*m1; off < chunk.MaxFileSize; off += m1 {
		if _, to := s.read(off, m1); to > chunk.MaxFileSize {
			t.Errorf("ahead up to %d of %d", to, int64(chunk.MaxFileSize))
		}
	}
}

// sequential reads [from, to) in steps and compares.
func sequential(t *testing.T, f *File, want []byte, from, to, step int) {
	t.Helper()
	for off := from; off < to; off += step {
		n := min(step, to-off)
		here := want[min(off, len(want)):min(off+n, len(want))]
		if got := read(t, f, int64(off), n); !bytes.Equal(got, here) {
			t.Fatalf("at %d: %d bytes, others than the %d that were written", off, len(got), len(here))
		}
	}
}

func TestReadAheadOfFiles(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	p := fill(9<<20+5000, 1)
	write(t, f, p, 0)
	sequential(t, f, p, 0, 10<<20, 32<<10)
	st := c.AheadStats()
	if st.Fetched < 7 || st.Fetched > 10 || st.Hits < 200 {
		t.Errorf("%+v", st)
	}
	// What we change ourselves is seen, wherever it stands: fetched, being fetched, or not yet.
	for _, change := range []func(off int64, q []byte){
		func(off int64, q []byte) { write(t, f, q, off); copy(p[off:], q) },
		func(off int64, q []byte) {
			if err := f.Fallocate(t.Context(), 3, off, int64(len(q))); err != nil { // keep size, punch hole
				t.Fatal(err)
			}
			clear(p[off : off+int64(len(q))])
		},
	} {
		for _, off := range []int64{1<<20 - 100, 2 << 20, 3<<20 + 4096, 4<<20 - 4096} {
			sequential(t, f, p, 0, 1<<20, 64<<10)
			change(off, fill(4096, byte(off>>12)))
			sequential(t, f, p, 1<<20-64<<10, 5<<20, 64<<10)
		}
	}
	// Cut and grown: zeros.
	sequential(t, f, p, 0, 1<<20, 64<<10)
	if err := f.Truncate(t.Context(), 2<<20+100); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(t.Context(), 4<<20); err != nil {
		t.Fatal(err)
	}
	p = p[:4<<20]
	clear(p[2<<20+100:])
	sequential(t, f, p, 1<<20, 5<<20, 64<<10)
	// An append after the end was read ahead.
	q := fill(2<<20, 9)
	if _, _, err := f.WriteAt(t.Context(), q, 0, true); err != nil {
		t.Fatal(err)
	}
	p = append(p, q...)
	sequential(t, f, p, 3<<20, 6<<20, 64<<10)
	eventually(t, "memory given back", func() bool { return c.AheadStats().Bytes == 0 })
	if !f.in.ahead.idle() {
		t.Error("pieces are left")
	}
}

func (a *fileAhead) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pieces) == 0 && !a.on.Load()
}

// Without memory for it, or while the application itself has many reads under way, nothing is read ahead.
func TestReadAheadIsBounded(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	p := fill(8<<20, 1)
	off, small := w.dial(t, func(o *Options) { o.ReadAhead = -1 }), w.dial(t, func(o *Options) { o.ReadAhead = 2 << 20 })
	f := create(t, off, "a")
	write(t, f, p, 0)
	sequential(t, f, p, 0, len(p), 128<<10)
	if st := off.AheadStats(); st != (AheadStats{}) {
		t.Errorf("switched off: %+v", st)
	}
	if err := f.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := open(t, small, f, false)
	for i := 0; i < len(p); i += 128 << 10 {
		sequential(t, g, p, i, i+128<<10, 128<<10)
		if st := small.AheadStats(); st.Bytes > 2<<20 {
			t.Fatalf("%+v", st)
		}
	}
	if st := small.AheadStats(); st.Fetched == 0 {
		t.Errorf("%+v", st)
	}
	busy := w.dial(t, nil)
	h := open(t, busy, f, false)
	h.in.ahead.reading.Add(pipelined)
	sequential(t, h, p, 0, len(p), 128<<10)
	if st := busy.AheadStats(); st != (AheadStats{}) {
		t.Errorf("beside other reads: %+v", st)
	}
}

// What another mount changes is seen as soon as it has changed it, with pieces there and with a fetch that began before.
func TestReadAheadEndsWithTheLease(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c1, c2 := w.dial(t, nil), w.dial(t, nil)
	f1 := create(t, c1, "a")
	p := fill(8<<20, 1)
	write(t, f1, p, 0)
	sequential(t, f1, p, 0, 1<<20, 128<<10)
	eventually(t, "pieces", func() bool { return c1.AheadStats().Fetched > 0 })

	// A fetch that began under the lease waits in the server until the other mount's write is done.
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.cs[1].set(func() {
		w.cs[1].before = func(typ wire.Type, req *wire.DataRequest) fserr.Code {
			if typ == wire.Read && req.Length == aheadPiece {
				first := false
				once.Do(func() { first = true })
				if first {
					close(held)
					<-release
				}
			}
			return fserr.OK
		}
	})
	sequential(t, f1, p, 1<<20, 2<<20, 128<<10)
	f1.in.fetchAhead(5<<20, 6<<20)
	<-held
	opened := make(chan *File)
	go func() {
		g, err := c2.Open(context.Background(), nil, f1.Ino(), true, false)
		if err != nil {
			t.Error(err)
		}
		opened <- g
	}()
	time.AfterFunc(50*time.Millisecond, func() { close(release) }) // the recall waits for requests under way
	f2 := <-opened
	q := fill(7<<20, 5)
	write(t, f2, q, 0)
	copy(p, q)
	sequential(t, f1, p, 0, len(p), 128<<10)
	before := c1.AheadStats().Fetched
	sequential(t, f1, p, 0, len(p), 128<<10)
	if after := c1.AheadStats().Fetched; after != before {
		t.Errorf("%d pieces were read ahead of a file that two mounts write", after-before)
	}
}

// Reads in sequence by several, beside writes of the same client, each of which puts one version everywhere in its blocks: a read never
// finds a version older than one that had been written, or read, before it began.
func TestReadAheadBesideWrites(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	const size, step = 4 << 20, 64 << 10
	write(t, f, make([]byte, size), 0)
	var mu sync.Mutex
	var floor [size / step]byte // the newest version known to be there
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	writers.Go(func() {
		for v := byte(1); v < 60 || v < 250 && c.AheadStats().Hits == 0; v++ { // on a busy machine it takes until the readers get on
			if v >= 60 {
				time.Sleep(time.Duration(v-50) * 2 * time.Millisecond)
			}
			for range 4 {
				i := rand.IntN(size / step)
				mu.Lock()
				if floor[i] >= v {
					mu.Unlock()
					continue
				}
				mu.Unlock()
				if _, _, err := f.WriteAt(t.Context(), bytes.Repeat([]byte{v}, step), int64(i)*step, false); err != nil {
					t.Error(err)
				}
				mu.Lock()
				floor[i] = max(floor[i], v)
				mu.Unlock()
			}
		}
		close(stop)
	})
	for range 3 {
		readers.Go(func() {
			p := make([]byte, step)
			for {
				for i := range size / step {
					select {
					case <-stop:
						return
					default:
					}
					mu.Lock()
					want := floor[i]
					mu.Unlock()
					if _, err := f.ReadAt(t.Context(), p, int64(i)*step); err != nil {
						t.Error(err)
						return
					}
					v := p[0]
					for _, b := range p {
						v = min(v, b)
					}
					mu.Lock()
					floor[i] = max(floor[i], v)
					mu.Unlock()
					if v < want {
						t.Errorf("piece %d: version %d after %d", i, v, want)
						return
					}
				}
			}
		})
	}
	writers.Wait()
	readers.Wait()
	if st := c.AheadStats(); st.Hits == 0 {
		t.Errorf("nothing was read ahead: %+v", st)
	}
}
