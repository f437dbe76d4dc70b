package client

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// hotTest is a loop with a seat at a client.
type hotTest struct {
	t *testing.T
	c *Client
	l *reactor.Loop
	s hot.Seat
}

func sit(t *testing.T, c *Client, kind reactor.Kind) *hotTest {
	t.Helper()
	l, err := reactor.Start(reactor.Options{Kind: kind, Logger: quiet()})
	if err != nil {
		t.Skip(err)
	}
	s, err := c.Sit(l)
	if err != nil {
		t.Fatal(err)
	}
	h := &hotTest{t: t, c: c, l: l, s: s}
	t.Cleanup(h.end)
	return h
}

// end leaves and closes the loop.
func (h *hotTest) end() {
	h.c.Leave(h.s)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := h.l.Close(ctx); err != nil {
		h.t.Error(err)
	}
}

// on runs fn on the loop's thread.
func (h *hotTest) on(fn func()) {
	h.t.Helper()
	done := make(chan struct{})
	if !h.l.Do(func() { fn(); close(done) }) {
		h.t.Fatal("the loop has ended")
	}
	<-done
}

// hotEnd is how an operation ended.
type hotEnd struct {
	n   int
	err error
}

// hotOp is an operation that was begun.
type hotOp struct {
	h     *hotTest
	ended chan hotEnd
	calls atomic.Int32
	begun bool // Begin has returned; of the loop's thread
}

// Ended implements hot.Ender.
func (o *hotOp) Ended(n int, err error) {
	if !o.begun {
		o.h.t.Error("Ended was called before Begin had returned")
	}
	if o.calls.Add(1) > 1 {
		o.h.t.Error("Ended was called again")
		return
	}
	o.ended <- hotEnd{n, err}
}

// begin begins an operation, nil if that cannot be done.
func (h *hotTest) begin(f *File, write bool, p []byte, off int64) *hotOp {
	h.t.Helper()
	o := &hotOp{h: h, ended: make(chan hotEnd, 2)}
	h.on(func() {
		if write {
			o.begun = f.BeginWrite(h.s, p, off, o)
		} else {
			o.begun = f.BeginRead(h.s, p, off, o)
		}
	})
	if !o.begun {
		return nil
	}
	return o
}

func (o *hotOp) wait() (int, error) {
	o.h.t.Helper()
	select {
	case e := <-o.ended:
		return e.n, e.err
	case <-time.After(60 * time.Second):
		o.h.t.Fatal("an operation on a reactor does not end")
		return 0, nil
	}
}

// must begins an operation as soon as that is possible.
func (h *hotTest) must(f *File, write bool, p []byte, off int64) (o *hotOp) {
	h.t.Helper()
	eventually(h.t, "an operation that can begin on the reactor", func() bool {
		o = h.begin(f, write, p, off)
		return o != nil
	})
	return o
}

func (h *hotTest) write(f *File, p []byte, off int64) {
	h.t.Helper()
	if n, err := h.must(f, true, p, off).wait(); err != nil || n != len(p) {
		h.t.Fatalf("write of %d at %d: %d, %v", len(p), off, n, err)
	}
}

func (h *hotTest) read(f *File, off int64, n int) []byte {
	h.t.Helper()
	p := disk.AlignedBuffer(n)
	got, err := h.must(f, false, p, off).wait()
	if err != nil {
		h.t.Fatalf("read of %d at %d: %v", n, off, err)
	}
	return p[:got]
}

// warm makes the connections to all servers of the first chunk.
func (h *hotTest) warm(f *File) {
	h.t.Helper()
	loc, _ := f.in.lookup(0)
	eventually(h.t, "connections of the seat", func() (all bool) {
		h.on(func() {
			all = true
			for i := range loc.replicas {
				all = h.seat().ready(f.in.s.servers.server(&loc.replicas[i])) != nil && all
			}
		})
		return all
	})
}

func (h *hotTest) seat() *seat { return h.c.seat(h.s) }

// hotKinds runs a test on each kind of loop.
func hotKinds(t *testing.T, fn func(t *testing.T, kind reactor.Kind)) {
	for _, k := range []reactor.Kind{reactor.Ring, reactor.Poll} {
		t.Run(k.String(), func(t *testing.T) { fn(t, k) })
	}
}

func TestHotReadsAndWrites(t *testing.T) {
	hotKinds(t, func(t *testing.T, kind reactor.Kind) {
		w := newWorld(t, 1, 3, 3, 2)
		c := w.dial(t, func(o *Options) { o.Relay = RelayNever })
		f := create(t, c, "a")
		h := sit(t, c, kind)
		if h.begin(f, true, fill(4096, 1), 0) != nil {
			t.Fatal("a write into a hole was begun")
		}
		size := 5<<20 + 777
		want := make([]byte, size)
		write(t, f, fill(100, 1), int64(size)-100) // so that the chunk is there
		copy(want[size-100:], fill(100, 1))
		h.warm(f)
		put := func(off, n int) {
			t.Helper()
			p := fill(n, byte(off*31+n))
			h.write(f, p, int64(off))
			if off+n > len(want) {
				want = append(want, make([]byte, off+n-len(want))...)
			}
			copy(want[off:], p)
		}
		for _, a := range [][2]int{{0, 4096}, {4096, 8192}, {5, 1}, {4000, 200}, {1 << 20, 1 << 20}, {3<<20 + 1, 1<<20 - 2}, {size - 50, 100}, {size + 50, 4096}, {0, 512}} {
			put(a[0], a[1])
		}
		for _, a := range [][2]int{{0, 4096}, {0, 1 << 20}, {1, 1}, {4095, 2}, {1 << 20, 1 << 20}, {3<<20 + 1, 1<<20 - 2}, {len(want) - 10, 4096}, {len(want), 100}, {len(want) + 9000, 4096}, {2 << 20, 1 << 20}} {
			end := min(a[0]+a[1], len(want))
			var exp []byte
			if a[0] < end {
				exp = want[a[0]:end]
			}
			if got := h.read(f, int64(a[0]), a[1]); !bytes.Equal(got, exp) {
				t.Errorf("[%d, +%d): read %d bytes, want %d equal ones", a[0], a[1], len(got), len(exp))
			}
		}
		if got := read(t, f, 0, len(want)+1); !bytes.Equal(got, want) {
			t.Error("a goroutine reads other bytes")
		}
		if bad := w.unequal(f, want[:5<<20], 1, 2, 3); bad != nil {
			t.Errorf("%v differ", bad)
		}
		if err := f.Fsync(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		got := w.inodes[uint64(f.Ino())].attr.Size
		w.mu.Unlock()
		if got != uint64(len(want)) {
			t.Errorf("size %d was reported, want %d", got, len(want))
		}
		if st := c.HotStats(); st.Writes != 9 || st.Reads != 10 || st.WritesLeft+st.ReadsLeft != 0 {
			t.Errorf("%+v", st)
		}
		if n := f.in.s.changing.Load(); n != 0 {
			t.Errorf("%d changes are under way", n)
		}
	})
}

// TestHotHole: a chunk that was never written reads as zeros, with no server asked.
func TestHotHole(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(10, 1), chunk.Size+100)
	h := sit(t, c, reactor.Auto)
	before := w.cs[1].readCount()
	p := fill(8192, 3)
	if n, err := h.must(f, false, p, 4096).wait(); n != len(p) || err != nil || !chunk.IsZero(p) {
		t.Errorf("%d, %v", n, err)
	}
	if n := w.cs[1].readCount(); n != before {
		t.Errorf("%d requests for a hole", n-before)
	}
}

// TestHotRefuses: whatever might have to wait is not begun.
func TestHotRefuses(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	w.renewMs = uint32(time.Hour.Milliseconds()) // a renewal would move the deadline that the test sets
	c := w.dial(t, nil)
	f := create(t, c, "a")
	f.in.s.deadline.Store(bootTime() + int64(time.Hour))
	write(t, f, fill(64<<10, 1), 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	p := make([]byte, 4096)
	refused := func(what string, g *File, write bool, p []byte, off int64) {
		t.Helper()
		if o := h.begin(g, write, p, off); o != nil {
			n, err := o.wait()
			t.Errorf("%s (write %t) was begun: %d, %v", what, write, n, err)
		}
	}
	for _, wr := range []bool{false, true} {
		refused("nothing", f, wr, nil, 0)
		refused("an offset below 0", f, wr, p, -1)
		refused("a request over two chunks", f, wr, p, chunk.Size-1)
		refused("a request of more than 1 MiB", f, wr, make([]byte, maxPiece+1), 0)
		refused("a request behind the largest file", f, wr, p, chunk.MaxFileSize)
	}
	reader := open(t, c, f, false)
	refused("with a handle for reading", reader, true, p, 0)
	hold, err := f.in.ranges.lock(t.Context(), 3, 3, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, wr := range []bool{false, true} {
		refused("blocks that are being written", f, wr, p, 3*4096+5)
	}
	h.read(f, 4*4096, 4096)
	f.in.ranges.unlock(hold)
	if hold, err = f.in.ranges.lock(t.Context(), 3, 3, false); err != nil {
		t.Fatal(err)
	}
	refused("blocks that are being read", f, true, p, 3*4096)
	h.read(f, 3*4096, 4096)
	f.in.ranges.unlock(hold)
	f.in.layoutMu.Lock()
	for _, wr := range []bool{false, true} {
		refused("while the layout is called back", f, wr, p, 0)
	}
	f.in.layoutMu.Unlock()
	f.in.mu.Lock()
	f.in.written = f.in.size + 10
	f.in.mu.Unlock()
	refused("behind what a failed write may have left", f, true, p, 128<<10)
	h.write(f, p, 0)
	deadline := f.in.s.deadline.Swap(0)
	for _, wr := range []bool{false, true} {
		refused("with a lease that was not renewed", f, wr, p, 0)
	}
	f.in.s.deadline.Store(deadline)
	// Another mount opens it, so that every write has to be told.
	c2 := w.dial(t, nil)
	open(t, c2, f, true)
	for _, wr := range []bool{false, true} {
		refused("with a shared lease", f, wr, p, 0)
	}
	if n := len(f.in.ranges.all); n != 0 {
		t.Errorf("%d ranges are still locked", n)
	}
	if !f.in.layoutMu.TryLock() {
		t.Error("the layout is still locked")
	} else {
		f.in.layoutMu.Unlock()
	}
}

// TestHotReadFailsOver: whatever comes of one replica, the bytes are right, and come from another.
func TestHotReadFailsOver(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, func(o *Options) { o.ReadTimeout = 5 * time.Second }) // less may pass on a busy machine without anybody's fault
	f := create(t, c, "a")
	want := fill(64<<10, 1)
	write(t, f, want, 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	check := func(what string) {
		t.Helper()
		left := c.HotStats().ReadsLeft
		for i := range 4 {
			if got := h.read(f, int64(i)*4096+1, 9000); !bytes.Equal(got, want[i*4096+1:][:9000]) {
				t.Fatalf("%s: other bytes", what)
			}
			for _, s := range f.in.s.servers.all { // whoever let us down is asked again
				s.avoidUntil.Store(0)
			}
		}
		if c.HotStats().ReadsLeft == left {
			t.Errorf("%s: no read failed on the reactor", what)
		}
		h.warm(f)
	}
	all := func(set func(s *fakeCS)) {
		for _, s := range w.cs {
			s.set(func() { set(s) })
		}
	}
	loc, _ := f.in.lookup(0)
	preferred := w.cs[loc.replicas[f.in.choose(loc, 0)].server]
	preferred.set(func() { preferred.damage = true })
	check("damage")
	all(func(s *fakeCS) { s.damage = false })
	for _, code := range []fserr.Code{fserr.StaleEpoch, fserr.NoChunk, fserr.NotReady, fserr.IO} {
		// The next read is refused, whoever gets it.
		var once atomic.Int32
		once.Store(1)
		all(func(s *fakeCS) {
			s.before = func(wire.Type, *wire.DataRequest) fserr.Code {
				if once.Add(-1) == 0 {
					return code
				}
				return fserr.OK
			}
		})
		check(code.Error())
	}
	// No answer in time; it comes when nobody waits for it.
	var once atomic.Int32
	once.Store(1)
	stop := make(chan struct{})
	all(func(s *fakeCS) {
		s.before = func(wire.Type, *wire.DataRequest) fserr.Code {
			if once.Add(-1) == 0 {
				<-stop
			}
			return fserr.OK
		}
	})
	check("no answer")
	close(stop)
	check2 := c.HotStats().ReadsLeft
	for range 20 {
		if got := h.read(f, 0, 4096); !bytes.Equal(got, want[:4096]) {
			t.Fatal("other bytes after a late answer")
		}
	}
	if n := c.HotStats().ReadsLeft; n != check2 {
		t.Errorf("%d reads failed after a late answer", n-check2)
	}
	all(func(s *fakeCS) { s.before = nil })
	// A server that is killed under way.
	stop = make(chan struct{})
	once.Store(1)
	var victim atomic.Pointer[fakeCS]
	all(func(s *fakeCS) {
		s.before = func(wire.Type, *wire.DataRequest) fserr.Code {
			if once.Add(-1) == 0 {
				victim.Store(s)
				<-stop
			}
			return fserr.OK
		}
	})
	o := h.must(f, false, make([]byte, 4096), 0)
	eventually(t, "a read on a server", func() bool { return victim.Load() != nil })
	v := victim.Load()
	v.l.Close()
	v.mu.Lock()
	for _, conn := range v.conns {
		conn.Close()
	}
	v.mu.Unlock()
	if n, err := o.wait(); n != 4096 || err != nil {
		t.Errorf("server killed: %d, %v", n, err)
	}
	close(stop)
}

// TestHotWriteHandedOver: whatever comes of one replica, the write is on all that are left, and nothing stays locked.
func TestHotWriteHandedOver(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(64<<10, 1), 0)
	h := sit(t, c, reactor.Auto)
	want := fill(64<<10, 1)
	seed := byte(1)
	check := func(what string, drops int) {
		t.Helper()
		before, left := w.count("drop"), c.HotStats().WritesLeft
		seed++
		p := fill(9000, seed)
		copy(want[5000:], p)
		h.write(f, p, 5000)
		if n := c.HotStats().WritesLeft - left; n != 1 {
			t.Errorf("%s: %d writes were handed over, want 1", what, n)
		}
		if n := w.count("drop") - before; n != drops {
			t.Errorf("%s: %d replicas were dropped, want %d", what, n, drops)
		}
		if bad := w.unequal(f, want, w.replicas(f.Ino(), 0)...); bad != nil {
			t.Errorf("%s: %v differ", what, bad)
		}
		if n := f.in.s.changing.Load(); n != 0 {
			t.Errorf("%s: %d changes are under way", what, n)
		}
		read(t, f, 0, len(want)) // so that the layout is known
		h.warm(f)
	}
	h.warm(f)
	refuse := func(code fserr.Code) {
		var once atomic.Int32
		once.Store(1)
		w.cs[2].set(func() {
			w.cs[2].before = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
				if typ == wire.Write && once.Add(-1) == 0 {
					return code
				}
				return fserr.OK
			}
		})
	}
	for _, code := range []fserr.Code{fserr.StaleEpoch, fserr.NoChunk, fserr.NotReady, fserr.BadChecksum} {
		refuse(code)
		check(code.Error(), 0)
	}
	// The connections are lost, with the request or its answer.
	var once atomic.Int32
	once.Store(1)
	w.cs[2].set(func() {
		w.cs[2].before = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
			if typ == wire.Write && once.Add(-1) == 0 {
				// While this is locked no connection is made again: the write goes on when the client knows that all are lost.
				w.cs[2].mu.Lock()
				defer w.cs[2].mu.Unlock()
				for _, conn := range w.cs[2].conns {
					conn.Close()
				}
				srv := f.in.s.servers.server(&replica{server: 2})
				for i := range srv.lanes {
					if conn := srv.lanes[i].conn.Load(); conn != nil {
						<-conn.Done()
					}
				}
			}
			return fserr.OK
		}
	})
	check("connection lost", 0)
	refuse(fserr.IO)
	check("an error of the disk", 1)
	if r := w.replicas(f.Ino(), 0); slices.Contains(r, 2) {
		t.Errorf("replicas %v", r)
	}
}

// TestHotWriteOwes: a server that was given up while it works on a write has ended that before it gets the write again, and before the blocks
// are given to others.
func TestHotWriteOwes(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 2) // none can be dropped
	c := w.dial(t, func(o *Options) { o.WriteTimeout, o.DialTimeout = 100*time.Millisecond, 5*time.Second })
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	var mu sync.Mutex
	var order []string
	stop := make(chan struct{})
	first := true
	w.cs[2].set(func() {
		w.cs[2].before = func(typ wire.Type, req *wire.DataRequest) fserr.Code {
			if typ != wire.Write {
				return fserr.OK
			}
			mu.Lock()
			held := first
			first = false
			order = append(order, fmt.Sprintf("begin %t", held))
			mu.Unlock()
			if held {
				<-stop
				mu.Lock()
				order = append(order, "end")
				mu.Unlock()
			}
			return fserr.OK
		}
	})
	want := fill(4096, 2)
	o := h.must(f, true, want, 4096)
	eventually(t, "a write that was handed over", func() bool { return c.HotStats().WritesLeft == 1 })
	later := fill(4096, 3)
	if h.begin(f, true, later, 4096) != nil {
		t.Fatal("a second write to a block was begun while it is not known what the first one does")
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := f.WriteAt(context.Background(), later, 4096, false)
		done <- err
	}()
	time.Sleep(300 * time.Millisecond) // in which nothing may reach the server
	select {
	case e := <-o.ended:
		t.Fatalf("the write ended with %v while a server that counts is at work on it", e)
	default:
	}
	close(stop)
	if n, err := o.wait(); n != 4096 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(order) < 3 || order[0] != "begin true" || order[1] != "end" || order[2] != "begin false" {
		t.Errorf("order on the server: %v", order)
	}
	for s := id.ServerID(1); s <= 2; s++ {
		if got := w.cs[s].content(f.Ino(), 0, 8192)[4096:]; !bytes.Equal(got, later) {
			t.Errorf("%v does not have the later write", s)
		}
	}
}

// TestHotRecall: a lease that is called back is kept until what has begun on a reactor has ended; then nothing begins there any more.
func TestHotRecall(t *testing.T) {
	for _, wr := range []bool{false, true} {
		t.Run(fmt.Sprintf("write=%t", wr), func(t *testing.T) {
			w := newWorld(t, 1, 1, 1, 1)
			c, c2 := w.dial(t, nil), w.dial(t, nil)
			f := create(t, c, "a")
			write(t, f, fill(8192, 1), 0)
			h := sit(t, c, reactor.Auto)
			h.warm(f)
			stop := make(chan struct{})
			var held atomic.Bool
			w.cs[1].set(func() {
				w.cs[1].before = func(wire.Type, *wire.DataRequest) fserr.Code {
					held.Store(true)
					<-stop
					return fserr.OK
				}
			})
			o := h.must(f, wr, fill(4096, 2), 0)
			eventually(t, "the request at the server", held.Load)
			opened := make(chan error, 1)
			go func() {
				g, err := c2.Open(context.Background(), nil, f.Ino(), true, false)
				if err == nil {
					defer g.Release(context.Background())
				}
				opened <- err
			}()
			select {
			case err := <-opened:
				t.Errorf("another mount has got the lease, %v, while a request is under way", err)
			case <-time.After(150 * time.Millisecond):
			}
			eventually(t, "the recall", func() bool { // it waits for the request, and nothing gets past it
				free := f.in.layoutMu.TryRLock()
				if free {
					f.in.layoutMu.RUnlock()
				}
				return !free
			})
			if o := h.begin(f, wr, make([]byte, 4096), 4096); o != nil {
				t.Error("a request was begun under a lease that is being called back")
			}
			close(stop)
			if n, err := o.wait(); n != 4096 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			if err := <-opened; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHotFenced: a session that chunk servers refuse is dead, and so is what was begun under it.
func TestHotFenced(t *testing.T) {
	for _, wr := range []bool{false, true} {
		w := newWorld(t, 1, 2, 2, 1)
		c := w.dial(t, nil)
		f := create(t, c, "a")
		write(t, f, fill(8192, 1), 0)
		h := sit(t, c, reactor.Auto)
		h.warm(f)
		for _, s := range w.cs {
			s.set(func() { s.fenced = append(s.fenced, uint64(f.in.s.id)) })
		}
		if _, err := h.must(f, wr, make([]byte, 4096), 0).wait(); fserr.Of(err) != fserr.Stale {
			t.Errorf("write %t: %v, want Stale", wr, err)
		}
		if h.begin(f, wr, make([]byte, 4096), 0) != nil {
			t.Errorf("write %t was begun under a session that is dead", wr)
		}
		w.expire(uint64(f.in.s.id))
		// Under the next session the same seat serves.
		eventually(t, "a new session", func() bool { s := c.sess.Load(); return s != f.in.s && s.ctx.Err() == nil })
		g, err := c.Open(t.Context(), nil, f.Ino(), true, false)
		if err != nil {
			t.Fatal(err)
		}
		read(t, g, 0, 4096)
		p := fill(4096, 9)
		h.write(g, p, 0)
		if !bytes.Equal(h.read(g, 0, 4096), p) {
			t.Error("other bytes under the next session")
		}
	}
}

// TestHotLeave: what is under way ends before Leave returns, whether the client is closed or the servers do not answer.
func TestHotLeave(t *testing.T) {
	for _, closeFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("close=%t", closeFirst), func(t *testing.T) {
			w := newWorld(t, 1, 2, 2, 2)
			c := w.dial(t, func(o *Options) {
				o.ReadTimeout, o.WriteTimeout, o.DialTimeout, o.CloseTimeout = 200*time.Millisecond, 200*time.Millisecond, time.Second, 500*time.Millisecond
			})
			f := create(t, c, "a")
			write(t, f, fill(64<<10, 1), 0)
			h := sit(t, c, reactor.Auto)
			h.warm(f)
			stop := make(chan struct{})
			defer close(stop)
			for _, s := range w.cs {
				s.set(func() {
					s.before = func(wire.Type, *wire.DataRequest) fserr.Code {
						<-stop
						return fserr.OK
					}
				})
			}
			ops := make([]*hotOp, 4)
			h.on(func() { // all at once: when one is given up, no connection is left for another
				for i := range ops {
					o := &hotOp{h: h, ended: make(chan hotEnd, 2)}
					if p, off := make([]byte, 4096), int64(i)*4096; i%2 == 0 {
						o.begun = f.BeginWrite(h.s, p, off, o)
					} else {
						o.begun = f.BeginRead(h.s, p, off, o)
					}
					ops[i] = o
				}
			})
			for i, o := range ops {
				if !o.begun {
					t.Fatalf("operation %d was not begun", i)
				}
			}
			if closeFirst {
				if err := c.Close(); err == nil {
					t.Error("the session was closed while writes are under way")
				}
			}
			h.c.Leave(h.s)
			for i, o := range ops {
				select {
				case e := <-o.ended:
					if e.err == nil {
						t.Errorf("operation %d has succeeded", i)
					}
				default:
					t.Errorf("operation %d has not ended", i)
				}
			}
			if h.begin(f, false, make([]byte, 4096), 0) != nil {
				t.Error("an operation was begun on a seat that was left")
			}
		})
	}
}

// garbler is a network whose connections to chunk servers go through a relay that can damage, repeat and keep back what servers send.
type garbler struct {
	wire.TCP
	t      *testing.T
	mangle atomic.Pointer[func(p []byte) []byte] // what a server sent
}

// Dial implements wire.Network.
func (g *garbler) Dial(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	up, err := g.TCP.Dial(ctx, addr, class)
	if err != nil {
		return nil, err
	}
	var fds [2]int
	if fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, err
	}
	near, far := fileConn(g.t, fds[0]), fileConn(g.t, fds[1])
	pump := func(to, from net.Conn, mangle bool) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 256<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			p := buf[:n]
			if f := g.mangle.Load(); mangle && f != nil {
				p = (*f)(p)
			}
			if _, err := to.Write(p); err != nil {
				return
			}
		}
	}
	go pump(up, far, false)
	go pump(far, up, true)
	return near, nil
}

// TestHotGarbled: damaged, repeated and foreign answers do no harm.
func TestHotGarbled(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t, 1, 2, 2, 1)
	if w.seal != nil {
		t.Skip("what is damaged here are plain frames")
	}
	g := &garbler{t: t}
	c := w.dial(t, func(o *Options) {
		o.Network, o.ReadTimeout, o.WriteTimeout = g, 1500*time.Millisecond, 1500*time.Millisecond
	})
	f := create(t, c, "a")
	want := fill(64<<10, 1)
	write(t, f, want, 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	isAnswer := func(p []byte) bool {
		if len(p) < wire.HeaderSize {
			return false
		}
		a, err := wire.DecodeAnswer(p, 0)
		return err == nil && (a.Type == wire.Read || a.Type == wire.Write)
	}
	cases := map[string]func(p []byte) []byte{
		"header":   func(p []byte) []byte { p[9] ^= 1; return p },
		"body":     func(p []byte) []byte { p[min(wire.HeaderSize+2, len(p)-1)] ^= 1; return p },
		"data":     func(p []byte) []byte { p[len(p)-1] ^= 1; return p },
		"repeated": func(p []byte) []byte { return append(p, p...) },
		"cut":      func(p []byte) []byte { return p[:len(p)/2] },
	}
	for what, how := range cases {
		for _, wr := range []bool{false, true} {
			var once atomic.Int32
			once.Store(1)
			fn := func(p []byte) []byte {
				if isAnswer(p) && once.Add(-1) == 0 {
					return how(p)
				}
				return p
			}
			g.mangle.Store(&fn)
			p := make([]byte, 8192)
			if wr {
				p = fill(8192, byte(len(what)))
				copy(want[4096:], p)
			}
			if n, err := h.must(f, wr, p, 4096).wait(); n != 8192 || err != nil {
				t.Errorf("%s, write %t: %d, %v", what, wr, n, err)
			}
			if !wr && !bytes.Equal(p, want[4096:][:8192]) {
				t.Errorf("%s: other bytes were read", what)
			}
			g.mangle.Store(nil)
			for _, s := range f.in.s.servers.all {
				s.avoidUntil.Store(0)
			}
			if got := read(t, f, 0, len(want)); !bytes.Equal(got, want) {
				t.Fatalf("%s, write %t: other bytes afterwards", what, wr)
			}
			h.warm(f)
			if got := h.read(f, 0, 4096); !bytes.Equal(got, want[:4096]) {
				t.Fatalf("%s, write %t: other bytes in the next read", what, wr)
			}
		}
	}
	if bad := w.unequal(f, want, w.replicas(f.Ino(), 0)...); bad != nil {
		t.Errorf("%v differ", bad)
	}
}

// TestHotDisk: chunk files of this host are read on the ring; what does not count is read over the network; a disk that does not
// answer holds up nobody for ever.
func TestHotDisk(t *testing.T) {
	t.Parallel() // it waits more than it works
	hotKinds(t, func(t *testing.T, kind reactor.Kind) {
		w, n, c, f, p := near(t, func(o *Options) { o.ReadTimeout = 5 * time.Second }) // less may pass on a busy machine without anybody's fault
		readsLocally(t, c, f)
		h := sit(t, c, kind)
		before := w.cs[1].readCount()
		for _, a := range [][2]int{{0, 4096}, {5000, 1}, {4095, 8194}, {0, len(p)}, {len(p) - 10, 100}} {
			end := min(a[0]+a[1], len(p))
			if got := h.read(f, int64(a[0]), a[1]); !bytes.Equal(got, p[a[0]:end]) {
				t.Errorf("[%d, +%d): other bytes", a[0], a[1])
			}
		}
		if st := c.HotStats(); st.Reads != 5 || st.ReadsLeft != 0 || w.cs[1].readCount() != before {
			t.Errorf("%+v, %d reads over the network", st, w.cs[1].readCount()-before)
		}
		h.warm(f)
		n.damage()
		if got := h.read(f, 0, 4096); !bytes.Equal(got, p[:4096]) {
			t.Error("damage came through")
		}
		if n := w.cs[1].readCount() - before; n < 1 { // more if the machine is so busy that one took too long
			t.Error("damage was not read over the network")
		}
		n.revoke(false)
		if got := h.read(f, 0, 8192); !bytes.Equal(got, p[:8192]) {
			t.Error("other bytes with a grant that is over")
		}
		readsLocally(t, c, f)
		h.on(func() { h.seat().deaf = true })
		got := disk.AlignedBuffer(4096)
		if n, err := h.must(f, false, got, 4096).wait(); n != 4096 || err != nil || !bytes.Equal(got, p[4096:8192]) {
			t.Errorf("disk that does not answer: %d, %v", n, err)
		}
		if n := f.in.s.servers.server(&replica{server: 1}).bypass.Load().stuck.Load(); n != 1 {
			t.Errorf("%d reads are stuck, want 1", n)
		}
		clear(got)
		h.on(func() {
			st := h.seat()
			st.deaf = false
			d := st.hang
			d.done(len(d.read.Dst), nil)
		})
		if !chunk.IsZero(got) {
			t.Error("a disk that answered too late has written into memory that was given back")
		}
		if n := f.in.s.servers.server(&replica{server: 1}).bypass.Load().stuck.Load(); n != 0 {
			t.Errorf("%d reads are stuck", n)
		}
	})
}

// TestHotAllocates: a read and a write of 4 KiB allocate nothing on the client's side.
func TestHotAllocates(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	w.renewMs = uint32(time.Hour.Milliseconds()) // what goes on beside counts too
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, c, "a")
	f.in.s.deadline.Store(bootTime() + int64(time.Hour)) // which nobody renews
	p := disk.AlignedBuffer(4096)
	write(t, f, p, 0)
	nullStore(w)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	loc, _ := f.in.lookup(0)
	e := &hotCount{done: make(chan struct{}, 1)}
	measure := func(fn func()) float64 {
		task := reactor.Task{Run: fn}
		return testing.AllocsPerRun(500, func() {
			h.l.Post(&task)
			<-e.done
		})
	}
	// What the fake server allocates for a request is measured with the same requests from a connection that does nothing else.
	srv := f.in.s.servers.server(&loc.replicas[0])
	conn, err := srv.conn(0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan *wire.Call, 1)
	for _, wr := range []bool{false, true} {
		req := wire.DataRequest{Chunk: loc.chunk, Session: f.in.s.id, Length: 4096}
		frame := &wire.Frame{Type: wire.Read, Epoch: loc.epoch}
		fn := func() { e.failed = e.failed || !f.BeginRead(h.s, p, 0, e) }
		if wr {
			req.Sums = chunk.AppendSums(nil, 0, p)
			frame.Type, frame.Data = wire.Write, p
			fn = func() { e.failed = e.failed || !f.BeginWrite(h.s, p, 0, e) }
		}
		frame.Body = req.Append(nil)
		bare := testing.AllocsPerRun(500, func() {
			conn.Start(frame, done)
			call := <-done
			call.Reply.Release()
		})
		// The bare one has allocations of its own: the call and its answer.
		if all := measure(fn); all > bare && !raceEnabled { // with it, pools forget
			t.Errorf("write %t: %.1f allocations, of which server and a bare request have %.1f", wr, all, bare)
		}
	}
	if e.failed {
		t.Error("an operation was not begun")
	}
}

// hotCount is an Ender that says that it was called.
type hotCount struct {
	done   chan struct{}
	failed bool
}

// Ended implements hot.Ender.
func (e *hotCount) Ended(n int, err error) {
	e.failed = e.failed || n != 4096 || err != nil
	e.done <- struct{}{}
}

func fileConn(t *testing.T, fd int) net.Conn {
	t.Helper()
	f := osFile(fd)
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Error(err)
	}
	return c
}

func osFile(fd int) *os.File { return os.NewFile(uintptr(fd), "socket") }

// TestHotLapse: after a lease that was over for a while nothing begins on a reactor under the layout from before.
func TestHotLapse(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	f.in.s.lapses.Add(1)
	for _, wr := range []bool{false, true} {
		if h.begin(f, wr, make([]byte, 4096), 0) != nil {
			t.Errorf("write %t was begun", wr)
		}
	}
	read(t, f, 0, 4096)
	h.write(f, fill(4096, 2), 0)
}

func (h *hotTest) fsync(f *File) *hotOp {
	h.t.Helper()
	o := &hotOp{h: h, ended: make(chan hotEnd, 2)}
	h.on(func() { o.begun = f.BeginFsync(h.s, true, o) })
	if !o.begun {
		return nil
	}
	return o
}

func (w *world) flushCounts() (n [4]int) {
	for s, cs := range w.cs {
		cs.set(func() { n[s] = cs.flushes })
	}
	return n
}

// TestHotFlush: a flush of one chunk goes on on the reactor, and says what one in a goroutine says.
func TestHotFlush(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, func(o *Options) { o.FlushEvery, o.WriteTimeout = time.Hour, 5*time.Second }) // less may pass on a busy machine without anybody's fault
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	if h.fsync(f) != nil {
		t.Fatal("a flush was begun though the size is news")
	}
	if err := f.Fsync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	before := w.flushCounts()
	flush := func(requests int) {
		t.Helper()
		var o *hotOp
		eventually(t, "a flush that can begin on the reactor", func() bool { o = h.fsync(f); return o != nil })
		if n, err := o.wait(); n != 0 || err != nil {
			t.Fatalf("flush: %d, %v", n, err)
		}
		for s := range before {
			if s > 0 {
				before[s] += requests
			}
		}
		if now := w.flushCounts(); now != before {
			t.Fatalf("servers have flushed %v times, want %v", now, before)
		}
	}
	flush(0)
	h.write(f, fill(4096, 2), 0)
	flush(1)
	flush(0)
	if st := c.HotStats(); st.Flushes != 3 || st.FlushesLeft != 0 {
		t.Errorf("%+v", st)
	}
	// Two chunks, or a flush that is under way: in a goroutine.
	write(t, f, fill(4096, 2), chunk.Size)
	if h.fsync(f) != nil {
		t.Error("a flush of two chunks was begun")
	}
	if err := f.Fsync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	h.write(f, fill(4096, 3), 0)
	if err := f.in.flushOp.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.fsync(f) != nil {
		t.Error("two flushes at once")
	}
	f.in.flushOp.unlock()
	// What goes wrong is flushed again: an outcome, no answer.
	for _, late := range []bool{false, true} {
		h.write(f, fill(4096, 4), 0)
		left := c.HotStats().FlushesLeft
		var once atomic.Int32
		once.Store(1)
		w.cs[2].set(func() {
			w.cs[2].before = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
				if typ == wire.Flush && once.Add(-1) == 0 {
					if !late {
						return fserr.NotReady
					}
					for n := 0; c.HotStats().FlushesLeft == left && n < 3000; n++ { // until it is given up
						time.Sleep(10 * time.Millisecond)
					}
				}
				return fserr.OK
			}
		})
		n := w.flushCounts()
		var o *hotOp
		eventually(t, "a flush that can begin on the reactor", func() bool { o = h.fsync(f); return o != nil })
		if _, err := o.wait(); err != nil {
			t.Fatalf("late %t: %v", late, err)
		}
		now := w.flushCounts()
		for s := 1; s <= 3; s++ {
			if now[s] == n[s] {
				t.Errorf("late %t: cs%d was not flushed", late, s)
			}
		}
		if got := c.HotStats().FlushesLeft - left; got != 1 {
			t.Errorf("late %t: %d flushes were left, want 1", late, got)
		}
		if len(f.in.unflushed) != 0 {
			t.Errorf("late %t: still due: %v", late, f.in.unflushed)
		}
	}
	// Power was lost before the flush, at every replica.
	read(t, f, 0, 4096)
	h.write(f, fill(4096, 5), 0)
	powerLoss(w, f, 0)
	read(t, f, 0, 4096)
	f.in.forgetLayout()
	read(t, f, 0, 4096)
	var o *hotOp
	eventually(t, "a flush that can begin on the reactor", func() bool { o = h.fsync(f); return o != nil })
	if _, err := o.wait(); fserr.Of(err) != fserr.IO {
		t.Errorf("every replica lost power before the flush: %v", err)
	}
}
