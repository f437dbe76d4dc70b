package client

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/wire/msg"
	"varve/iouring"
)

// near is a world with one chunk server that serves its own host, and a file of some blocks there.
func near(t *testing.T, change func(*Options)) (*world, *fakeNear, *Client, *File, []byte) {
	t.Helper()
	w := newWorld(t, 1, 1, 1, 1)
	n := serveNear(t, w.cs[1])
	c := w.dial(t, change)
	f := create(t, c, "a")
	p := fill(40*chunk.BlockSize, 1)
	write(t, f, p, 0)
	return w, n, c, f, p
}

func (s *fakeCS) readCount() (n int) {
	s.set(func() { n = s.reads })
	return n
}

// readsLocally waits until reads go around the network.
func readsLocally(t *testing.T, c *Client, f *File) {
	t.Helper()
	p := make([]byte, chunk.BlockSize)
	eventually(t, "a read around the network", func() bool {
		before := c.LocalStats().Reads
		if _, err := f.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		return c.LocalStats().Reads > before
	})
}

func TestLocalReads(t *testing.T) {
	w, n, c, f, p := near(t, nil)
	readsLocally(t, c, f)
	before := w.cs[1].readCount()
	check := func(off int64, length int) {
		t.Helper()
		if got := read(t, f, off, length); !bytes.Equal(got, p[off:off+int64(length)]) {
			t.Errorf("[%d, +%d): other bytes than were written", off, length)
		}
	}
	check(0, len(p))
	check(5000, 1)
	check(4095, 8194)
	copy(p[9000:], "new bytes")
	write(t, f, []byte("new bytes"), 9000)
	check(8192, 4096)
	if err := f.Fallocate(t.Context(), 3, 4096, 8192); err != nil { // keep size, punch hole
		t.Fatal(err)
	}
	clear(p[4096:12288])
	check(4096, 8192) // only a hole
	check(0, 16384)
	if after := w.cs[1].readCount(); after != before {
		t.Errorf("%d reads went over the network", after-before)
	}
	if st := c.LocalStats(); st.Links != 1 || st.Chunks != 1 || st.Bytes == 0 || st.Changing+st.Lapsed+st.Revoked+st.Damaged+st.Failed != 0 {
		t.Errorf("%+v", st)
	}
	// A grant that the server ends is asked for again, whether the client was told or finds out.
	for _, tell := range []bool{true, false} {
		var asks int
		w.cs[1].set(func() { asks = n.asks })
		n.revoke(tell)
		readsLocally(t, c, f)
		check(0, len(p))
		if w.cs[1].set(func() { asks = n.asks - asks }); asks != 1 {
			t.Errorf("told %t: asked %d times", tell, asks)
		}
	}
}

func TestLocalOff(t *testing.T) {
	w, n, c, f, p := near(t, func(o *Options) { o.NoLocal = true })
	for range 10 {
		if !bytes.Equal(read(t, f, 0, len(p)), p) {
			t.Fatal("other bytes")
		}
	}
	if st := c.LocalStats(); st != (LocalStats{}) || w.cs[1].readCount() != 10 {
		t.Errorf("%+v", st)
	}
	w.cs[1].set(func() {
		if len(n.conns) != 0 {
			t.Error("a client that shall not has connected")
		}
	})
}

// What goes wrong around the network goes right over it.
func TestLocalFallsBack(t *testing.T) {
	w, n, c, f, p := near(t, nil)
	readsLocally(t, c, f)
	over := func(why string, counter func(LocalStats) uint64) {
		t.Helper()
		before, reads := counter(c.LocalStats()), w.cs[1].readCount()
		if got := read(t, f, 0, 3*chunk.BlockSize); !bytes.Equal(got, p[:len(got)]) {
			t.Errorf("%s: other bytes", why)
		}
		if counter(c.LocalStats()) != before+1 || w.cs[1].readCount() != reads+1 {
			t.Errorf("%s: %+v, %d reads", why, c.LocalStats(), w.cs[1].readCount()-reads)
		}
	}
	id := f.in.layout[0].chunks[0].chunk
	w.cs[1].set(func() { n.begin(id, 1, 1) })
	over("a block is being changed", func(s LocalStats) uint64 { return s.Changing })
	w.cs[1].set(func() { n.end(id, w.cs[1].chunks[id], 1, 1) })
	readsLocally(t, c, f)
	n.damage()
	over("a bit is wrong", func(s LocalStats) uint64 { return s.Damaged })
	write(t, f, p[:chunk.BlockSize], 0)
	readsLocally(t, c, f)
	if err := os.Truncate(n.path(id), chunk.BlockSize); err != nil {
		t.Fatal(err)
	}
	over("the file is too short", func(s LocalStats) uint64 { return s.Failed })
	if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) {
		t.Error("other bytes")
	}
	n.revoke(true)

	// A server that stops serving its host: the board ends, the connection ends, and a session without its place.
	n.board.Stop()
	if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) {
		t.Error("other bytes")
	}
	n.stop()
	eventually(t, "the end of the bypass", func() bool { return c.LocalStats().Links == 0 })
	if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) {
		t.Error("other bytes")
	}
	w.cs[1].set(func() {
		n.board, _ = local.NewBoard(8)
		n.count()
		clear(n.slots)
	})
	n.start(t)
	readsLocally(t, c, f)
	n.board.Fence(f.in.s.id)
	reads := w.cs[1].readCount()
	if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) || w.cs[1].readCount() != reads+1 {
		t.Error("a session without its place reads around the network")
	}
	readsLocally(t, c, f) // a new connection, a new place
}

// A disk that does not answer holds up a read as long as a server that does not, and the other replicas not at all.
func TestLocalHang(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	serveNear(t, w.cs[1])
	c := w.dial(t, func(o *Options) { o.ReadTimeout = 200 * time.Millisecond })
	f := create(t, c, "a")
	p := fill(4*chunk.BlockSize, 1)
	write(t, f, p, 0)
	prefer := func() { // the first, though what it did before counts against it
		f.in.s.servers.server(&replica{server: 2}).avoid()
		f.in.s.servers.server(&replica{server: 1}).avoidUntil.Store(0)
	}
	eventually(t, "a read around the network", func() bool {
		prefer()
		read(t, f, 0, len(p))
		return c.LocalStats().Reads > 0
	})
	failed := c.LocalStats().Failed // more than none if the machine is slow
	hang := make(chan struct{})
	c.disk.hang.Store(&hang)
	eventually(t, "a read that the disk does not answer", func() bool {
		prefer()
		if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) {
			t.Fatal("other bytes")
		}
		return c.LocalStats().Failed > failed
	})
	for range 5 {
		prefer()
		failed = c.LocalStats().Failed
		start := time.Now()
		if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) {
			t.Fatal("other bytes")
		}
		if c.LocalStats().Failed != failed {
			t.Fatalf("another read waited %v for a disk that does not answer", time.Since(start))
		}
	}
	c.disk.hang.Store(nil)
	close(hang)
	before := c.LocalStats().Reads
	eventually(t, "the disk to be used again", func() bool {
		prefer()
		read(t, f, 0, len(p))
		return c.LocalStats().Reads > before
	})
}

// A server whose clock is not ours is not believed: its board would count by another time.
func TestLocalClock(t *testing.T) {
	for _, skew := range []time.Duration{-time.Second, time.Second} {
		w := newWorld(t, 1, 1, 1, 1)
		n := serveNear(t, w.cs[1])
		n.skew = int64(skew)
		c := w.dial(t, nil)
		f := create(t, c, "a")
		write(t, f, fill(4096, 1), 0)
		read(t, f, 0, 4096)
		eventually(t, "a connection", func() (ok bool) {
			w.cs[1].set(func() { ok = len(n.conns) > 0 })
			return ok
		})
		eventually(t, "the end of the attempt", func() bool { return !f.in.s.servers.server(&replica{server: 1}).seeking.Load() })
		if st := c.LocalStats(); st.Links != 0 {
			t.Errorf("%+v", st)
		}
		c.Close()
	}
}

// Many readers and writers at once: a thread with a ring does the reads, or, where there is no ring, goroutines. Each reader checks what
// only it writes.
func TestLocalConcurrent(t *testing.T) {
	t.Run("ring", func(t *testing.T) { localConcurrent(t, true) })
	t.Run("plain", func(t *testing.T) { localConcurrent(t, false) })
}

func localConcurrent(t *testing.T, ring bool) {
	w, n, c, f, _ := near(t, nil)
	if !ring {
		c.disk.start.Do(func() {}) // as if the kernel had none
	}
	readsLocally(t, c, f)
	const jobs = 8
	var stop atomic.Bool
	var wg sync.WaitGroup
	for j := range jobs {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(j)))
			own := int64(j) * 5 * chunk.BlockSize
			mine := make([]byte, 5*chunk.BlockSize)
			if _, _, err := f.WriteAt(context.Background(), mine, own, false); err != nil {
				t.Error(err)
				return
			}
			p := make([]byte, len(mine))
			for !stop.Load() {
				off, length := r.IntN(len(mine)), 1+r.IntN(9000)
				length = min(length, len(mine)-off)
				if r.IntN(4) == 0 {
					for i := range length {
						mine[off+i] = byte(r.Uint32())
					}
					if _, _, err := f.WriteAt(context.Background(), mine[off:off+length], own+int64(off), false); err != nil {
						t.Error(err)
					}
					continue
				}
				if _, err := f.ReadAt(context.Background(), p[:length], own+int64(off)); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(p[:length], mine[off:off+length]) {
					t.Errorf("job %d: [%d, +%d): other bytes than were written", j, off, length)
					stop.Store(true)
				}
			}
		})
	}
	const enough = 100
	deadline := time.Now().Add(15 * time.Second)
	for i := 0; !stop.Load(); i++ {
		if n := c.LocalStats().Reads; n >= 3000 || n >= enough && time.Now().After(deadline) || time.Now().After(deadline.Add(2*time.Minute)) {
			break
		}
		time.Sleep(5 * time.Millisecond)
		if i%20 == 19 {
			n.revoke(i%40 == 39)
		}
	}
	stop.Store(true)
	wg.Wait()
	st := c.LocalStats()
	c.disk.mu.Lock()
	has := c.disk.ring
	c.disk.mu.Unlock()
	if _, err := iouring.Probe(); ring != has && !errors.Is(err, iouring.ErrUnavailable) {
		t.Errorf("ring %t, want %t", has, ring)
	}
	t.Logf("%+v; %d over the network; ring %t", st, w.cs[1].readCount(), has)
	if st.Reads < enough {
		t.Errorf("only %d reads went around the network", st.Reads)
	}
}

// A client that closes leaves no descriptor open, and keeps no more files open than it may.
func TestLocalDescriptors(t *testing.T) {
	w, _, c, f, _ := near(t, nil)
	readsLocally(t, c, f)
	l := f.in.s.servers.server(&replica{server: 1}).bypass.Load()
	for i := range 3 * maxGrants {
		g := &grant{epoch: 1}
		g.used.Store(i%2 == 0)
		l.mu.Lock()
		l.makeRoom()
		l.grants[id.ChunkID(1000+i)] = g
		if len(l.grants) > maxGrants {
			t.Fatalf("%d grants", len(l.grants))
		}
		l.mu.Unlock()
	}
	readsLocally(t, c, f)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := len(l.grants); n != 0 {
		t.Errorf("%d files are left open", n)
	}
	w.cs[1].near.stop()
}

// A read that begins after another mount's write has ended sees it, also if both mounts read around the network.
func TestLocalSharedWrite(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	first := serveNear(t, w.cs[1])
	second := serveNear(t, w.cs[2])
	a, b := w.dial(t, nil), w.dial(t, nil)
	fa := create(t, a, "a")
	write(t, fa, fill(chunk.BlockSize, 1), 0)
	fb := open(t, b, fa, true)
	// Until a mount has what it needs to read around the network, it reads over it.
	near := func() bool { return a.LocalStats().Reads+b.LocalStats().Reads > 0 }
	for i, end := 0, time.Now().Add(time.Minute); i < 200 || !near() && time.Now().Before(end); i++ {
		p := fill(chunk.BlockSize, byte(i))
		f, g := fa, fb
		if i%2 == 1 {
			f, g = fb, fa
		}
		write(t, f, p, 0)
		if got := read(t, g, 0, chunk.BlockSize); !bytes.Equal(got, p) {
			t.Fatalf("write %d is not seen by the other mount", i)
		}
	}
	if mode, _ := fa.in.state(); mode != msg.Mode_SHARED_WRITE {
		t.Fatal(mode)
	}
	if !near() {
		t.Error("nothing was read around the network")
	}
	w.cs[1].set(func() {
		if len(first.slots) == 0 {
			t.Error("the first replica was not asked")
		}
	})
	w.cs[2].set(func() {
		if len(second.slots) != 0 {
			t.Error("a replica that does not order writes was asked, with several mounts writing")
		}
	})
}
