package client

import (
	"bytes"
	"math/rand"
	"testing"

	"varve/internal/chunk"
	"varve/internal/readcache"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// ssd opens the read cache in a directory.
func ssd(t *testing.T, dir string) *readcache.Cache {
	t.Helper()
	c, err := readcache.Open(readcache.Options{Dir: dir, Bytes: readcache.MinBytes, Cluster: testCluster, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func withCache(c *readcache.Cache) func(*Options) {
	return func(o *Options) { o.ReadCache, o.ReadAhead = c, 0 }
}

// filled waits until n blocks have been put into the cache since it was opened.
func filled(t *testing.T, c *readcache.Cache, n uint64) {
	t.Helper()
	eventually(t, "blocks to be put into the cache", func() bool { return c.Stats().Filled >= n })
}

// reads counts the reads that chunk servers were asked for.
func (w *world) reads() (n int) {
	for _, s := range w.cs {
		s.mu.Lock()
		n += s.reads
		s.mu.Unlock()
	}
	return n
}

func TestReadCache(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	dir := t.TempDir()
	cache := ssd(t, dir)
	a, b := w.dial(t, withCache(cache)), w.dial(t, nil)
	f := create(t, a, "f")
	const at = 3*chunk.BlockSize + 100
	one, two, three := fill(20000, 1), fill(20000, 2), fill(20000, 3)
	write(t, f, one, at)
	want := func(f *File, p []byte, asked int) {
		t.Helper()
		before := w.reads()
		if got := read(t, f, at, len(p)); !bytes.Equal(got, p) {
			t.Error("wrong bytes")
		}
		if n := w.reads() - before; n != asked {
			t.Errorf("asked a server for %d reads, want %d", n, asked)
		}
	}
	want(f, one, 1)
	filled(t, cache, 5)
	want(f, one, 0)

	// Own writes, and a truncate.
	write(t, f, two, at)
	want(f, two, 1)
	filled(t, cache, 10)
	want(f, two, 0)
	if err := f.Truncate(t.Context(), at+1); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(t.Context(), at+20000); err != nil {
		t.Fatal(err)
	}
	want(f, append(two[:1:1], make([]byte, 19999)...), 1)
	filled(t, cache, 15)
	write(t, f, two, at)

	// Another mount writes.
	want(f, two, 1)
	filled(t, cache, 20)
	want(f, two, 0)
	g := open(t, b, f, true)
	write(t, g, three, at)
	want(f, three, 1) // they share it now
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	upgraded(t, w, a, f, msg.Mode_EXCLUSIVE_WRITE)
	want(f, three, 1)
	filled(t, cache, 25)
	want(f, three, 0)

	// The mount ends and comes back.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cache.Close(); err != nil {
		t.Fatal(err)
	}
	cache = ssd(t, dir)
	a = w.dial(t, withCache(cache))
	f = open(t, a, f, true)
	want(f, three, 0)
	if st := cache.Stats(); st.Hits != 1 || st.Misses != 0 || st.Damaged != 0 {
		t.Errorf("stats: %+v", st)
	}
}

// TestReadCacheOfChangingMemory: a read into memory that a guest writes to at the same time has the right checksums at one moment, and puts other bytes into the
// cache a moment later: these are not kept.
func TestReadCacheOfChangingMemory(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	cache := ssd(t, t.TempDir())
	c := w.dial(t, withCache(cache))
	f := create(t, c, "f")
	p := fill(3*chunk.BlockSize, 1)
	write(t, f, p, 0)
	loc, _ := f.in.lookup(0)
	changed := bytes.Clone(p)
	changed[5000] ^= 1
	f.in.layoutMu.RLock()
	f.in.cache(loc, chunk.Piece{Length: uint32(len(p))}, changed, chunk.AppendSums(nil, 0, p))
	f.in.layoutMu.RUnlock()
	eventually(t, "the fill to be looked at", func() bool { st := cache.Stats(); return st.Overtaken+st.Filled > 0 })
	if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) {
		t.Error("the cache has bytes that were never written")
	}
	filled(t, cache, 3)
	asked := w.reads()
	if got := read(t, f, 0, len(p)); !bytes.Equal(got, p) || w.reads() != asked {
		t.Error("what is right is not in the cache")
	}
}

// upgraded has the metadata server tell a mount that nobody else has the file any more.
func upgraded(t *testing.T, w *world, c *Client, f *File, mode msg.Mode) {
	t.Helper()
	w.mu.Lock()
	in := w.inodes[uint64(f.Ino())]
	cb := &msg.Callback{Kind: msg.Callback_UPGRADE, Ino: uint64(f.Ino()), Lease: in.leases[uint64(c.Session())], Mode: mode, Writable: in.writable}
	w.mu.Unlock()
	w.call(uint64(c.Session()), cb)
	eventually(t, "the lease to be the mount's alone", func() bool { m, _ := f.in.state(); return m == mode })
}

// TestReadCacheUpgrade: who shared a file with a writer and has it alone again reads what was written.
func TestReadCacheUpgrade(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	cache := ssd(t, t.TempDir())
	a, b := w.dial(t, withCache(cache)), w.dial(t, nil)
	f := create(t, a, "f")
	one, two := fill(8192, 1), fill(8192, 2)
	write(t, f, one, 0)
	read(t, f, 0, 8192)
	filled(t, cache, 2)
	g := open(t, b, f, true)
	write(t, g, two, 0)
	if err := g.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	upgraded(t, w, a, f, msg.Mode_EXCLUSIVE_WRITE)
	if got := read(t, f, 0, 8192); !bytes.Equal(got, two) {
		t.Error("the cache has what was before another mount wrote")
	}
}

// TestReadCacheSessionLost: what was cached under a session that was lost counts if nobody else wrote.
func TestReadCacheSessionLost(t *testing.T) {
	for _, other := range []bool{false, true} {
		w := newWorld(t, 1, 1, 1, 1)
		cache := ssd(t, t.TempDir())
		a, b := w.dial(t, withCache(cache)), w.dial(t, nil)
		f := create(t, a, "f")
		one, two := fill(8192, 1), fill(8192, 2)
		write(t, f, one, 0)
		if err := f.Fsync(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		read(t, f, 0, 8192)
		filled(t, cache, 2)
		lost := a.Session()
		w.expire(uint64(lost))
		eventually(t, "a new session", func() bool { return a.Session() != lost })
		want := one
		if other {
			g := open(t, b, f, true)
			write(t, g, two, 0)
			if err := g.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			want = two
		}
		f = open(t, a, f, true)
		before := w.reads()
		if got := read(t, f, 0, 8192); !bytes.Equal(got, want) {
			t.Errorf("other %v: wrong bytes", other)
		}
		if asked := w.reads() - before; (asked > 0) != other {
			t.Errorf("other %v: asked servers %d times", other, asked)
		}
	}
}

func TestReadCacheOnReactor(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	cache := ssd(t, t.TempDir())
	c := w.dial(t, withCache(cache))
	f := create(t, c, "f")
	one, two := fill(1<<20, 1), fill(1<<20, 2)
	write(t, f, one, 0)
	h := sit(t, c, reactor.Ring)
	get := func(off, n int, want []byte) {
		t.Helper()
		p := make([]byte, n)
		if n, err := h.must(f, false, p, int64(off)).wait(); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		if !bytes.Equal(p, want[off:off+n]) {
			t.Errorf("wrong bytes at %d", off)
		}
	}
	get(8192, 4096, one)
	get(5000, 3000, one)
	filled(t, cache, 2)
	before := w.reads()
	get(8192, 4096, one)
	get(5000, 2000, one)
	if n := w.reads() - before; n != 0 {
		t.Errorf("asked servers %d times", n)
	}
	if _, err := h.must(f, true, two[8192:12288], 8192).wait(); err != nil {
		t.Fatal(err)
	}
	get(8192, 4096, two)
	get(5000, 2000, one)
	get(65536, 65536, one) // of several slots
	filled(t, cache, 19)
	before = w.reads()
	p := make([]byte, 65536)
	if h.begin(f, false, p, 65536) != nil {
		t.Error("a read of several slots began on the reactor")
	}
	if got := read(t, f, 65536, 65536); !bytes.Equal(got, one[65536:131072]) || w.reads() != before {
		t.Errorf("wrong bytes, or asked a server (%d)", w.reads()-before)
	}
}

// TestReadCacheScan: a stream is not put in, beyond its beginning.
func TestReadCacheScan(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	cache := ssd(t, t.TempDir())
	c := w.dial(t, withCache(cache))
	f := create(t, c, "f")
	const size = 8 << 20
	write(t, f, fill(size, 1), 0)
	for off := int64(0); off < size; off += 65536 {
		read(t, f, off, 65536)
	}
	st := cache.Stats()
	if n := st.Filled * chunk.BlockSize; n > 2<<20 || st.StreamBytes < 6<<20 {
		t.Errorf("%d bytes of a stream of %d were put in, %d not", n, size, st.StreamBytes)
	}
}

// TestReadCacheRandom: two mounts read, write, cut and close at random, and one has a cache; what each reads is what was written last.
func TestReadCacheRandom(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	dir := t.TempDir()
	cache := ssd(t, dir)
	mounts := [2]*Client{w.dial(t, withCache(cache)), w.dial(t, nil)}
	rng := rand.New(rand.NewSource(7))
	first := create(t, mounts[0], "f")
	files := [2]*File{first, nil}
	const size = 128 << 10
	model := make([]byte, size)
	all := uint64(0)
	write(t, first, model, 0)
	for n := range 500 {
		k := 0
		if rng.Intn(60) == 0 {
			k = 1
		}
		if files[k] == nil {
			files[k] = open(t, mounts[k], first, true)
		}
		off := int64(rng.Intn(size - 40000))
		length := 1 + rng.Intn(30000)
		switch what := rng.Intn(20); {
		case what < 12:
			if got := read(t, files[k], off, length); !bytes.Equal(got, model[off:off+int64(length)]) {
				t.Fatalf("step %d: mount %d read wrong bytes at %d", n, k, off)
			}
		case what < 15:
			p := fill(length, byte(n))
			write(t, files[k], p, off)
			copy(model[off:], p)
		case what < 16:
			if err := files[k].Fallocate(t.Context(), 3, off, int64(length)); err != nil {
				t.Fatal(err)
			}
			clear(model[off : off+int64(length)])
		case what < 17:
			if err := files[k].Truncate(t.Context(), off); err != nil {
				t.Fatal(err)
			}
			if err := files[k].Truncate(t.Context(), size); err != nil {
				t.Fatal(err)
			}
			clear(model[off:])
		default:
			if err := files[k].Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			files[k] = nil
			if k == 0 && rng.Intn(10) == 0 { // the mount starts anew
				if err := mounts[0].Close(); err != nil {
					t.Fatal(err)
				}
				if err := cache.Close(); err != nil {
					t.Fatal(err)
				}
				hits := cache.Stats().Hits
				cache = ssd(t, dir)
				mounts[0] = w.dial(t, withCache(cache))
				all += hits
			}
		}
		if k == 1 { // the other mount goes, so that mount 0 has it alone again
			if err := mounts[1].Close(); err != nil {
				t.Fatal(err)
			}
			mounts[1], files[1] = w.dial(t, nil), nil
			if files[0] != nil {
				upgraded(t, w, mounts[0], files[0], msg.Mode_EXCLUSIVE_WRITE)
			}
		}
	}
	if all == 0 {
		t.Error("nothing was read from the cache")
	}
	if st := cache.Stats(); st.Damaged > 0 {
		t.Errorf("stats: %+v", st)
	}
}

// TestScan: what is a stream, and what is not.
func TestScan(t *testing.T) {
	rng := rand.New(rand.NewSource(3))
	var s scan
	streamed := func(n int, next func(i int) (off, length int64)) (k int) {
		s = scan{}
		for i := range n {
			if s.sequential(next(i)) {
				k++
			}
		}
		return k
	}
	if k := streamed(1000, func(i int) (int64, int64) { return int64(i) * 4096, 4096 }); k < 700 {
		t.Errorf("of 1,000 reads in sequence %d are a stream", k)
	}
	perm := rng.Perm(32)
	if k := streamed(1024, func(i int) (int64, int64) { return int64(i/32*32+perm[i%32]) * 4096, 4096 }); k < 700 {
		t.Errorf("of 1,024 reads nearly in sequence %d are a stream", k)
	}
	if k := streamed(1000, func(i int) (int64, int64) { return int64(i%2)<<30 + int64(i/2)*65536, 65536 }); k < 900 {
		t.Errorf("of two streams of 500 reads %d are in a stream", k)
	}
	for _, size := range []int{64, 256, 1024, 100000} { // blocks
		if k := streamed(5000, func(int) (int64, int64) { return int64(rng.Intn(size)) * 4096, 4096 }); k > 100 {
			t.Errorf("of 5,000 random reads of %d blocks %d are a stream", size, k)
		}
	}
	if k := streamed(5000, func(i int) (int64, int64) { return int64(i*389%1021) * 4096, 4096 }); k > 100 {
		t.Errorf("of 5,000 reads with a stride %d are a stream", k)
	}
}
