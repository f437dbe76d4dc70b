package vhost

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/block/blocktest"
	"varve/internal/fserr"
	"varve/iouring/reactor"
)

// TestRequests: every kind of request, in one piece and in several, with indirect tables and without.
func TestRequests(t *testing.T) {
	each(t, 8*mib, func(t *testing.T, r *rig) {
		for _, features := range []uint64{testAll, testAll | featIndirect | featEventIndex} {
			g := newGuest(t, features)
			g.connect(r.path)
			if m := g.ask(getConfig, append(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0), 60), 0), make([]byte, 60)...)); le.Uint64(m.body[12:]) != 8*mib/512 ||
				le.Uint16(m.body[12+34:]) != 2 || le.Uint32(m.body[12+20:]) != 512 || m.body[12+24] != 3 {
				t.Errorf("configuration %x", m.body)
			}
			if m := g.ask(getQueueNum, nil); le.Uint64(m.body) != 2 {
				t.Errorf("%d queues", le.Uint64(m.body))
			}
			g.begin()
			want := make([]byte, 8*mib)
			r.m.f.Data(func(p []byte) { copy(want, p) })
			rnd := rand.New(rand.NewPCG(features, 3))
			for i := range 60 {
				q := g.queues[i%2]
				indirect := features&featIndirect != 0 && i%3 == 0
				n := 512 * (1 + rnd.IntN(64))
				at := rnd.IntN(8*mib/512 - 200)
				pieces := []piece{{dataArea + 512*rnd.IntN(100), n}}
				if i%2 == 0 {
					cutAt := 1 + rnd.IntN(n-1)
					pieces = []piece{{mib - cutAt, cutAt}, {2 * mib, n - cutAt}} // up to a region's end
				}
				if indirect {
					pieces = append(pieces, piece{3 * mib, 4096}, piece{mib - 2048, 4096}) // across it
					n += 8192
				}
				switch rnd.IntN(4) {
				case 0, 1:
					p := make([]byte, n)
					for i := range p {
						p[i] = byte(rnd.Uint32())
					}
					copy(want[at*512:], p)
					rest := p
					for _, x := range pieces {
						rest = rest[copy(g.mem[x.off:][:x.n], rest):]
					}
					p = p[:0] // pieces may lie over one another: what is there counts
					for _, x := range pieces {
						p = append(p, g.mem[x.off:][:x.n]...)
					}
					copy(want[at*512:], p)
					if s, written := q.do(blkOut, uint64(at), indirect, pieces...); s != statusOK || written != 1 {
						t.Fatalf("write %d: status %d, %d bytes", i, s, written)
					}
				case 2:
					if s, written := q.do(blkIn, uint64(at), indirect, pieces[0], piece{2 * mib, 512}); s != statusOK || int(written) != pieces[0].n+513 && pieces[0].n%512 == 0 {
						if pieces[0].n%512 == 0 {
							t.Fatalf("read %d: status %d, %d bytes", i, s, written)
						}
					} else if !bytes.Equal(g.mem[pieces[0].off:][:pieces[0].n], want[at*512:][:pieces[0].n]) {
						t.Fatalf("read %d: not what was written", i)
					}
				case 3:
					p := g.mem[dataArea:]
					le.PutUint64(p, uint64(at))
					le.PutUint32(p[8:], 16)
					le.PutUint32(p[12:], uint32(i%2))
					clear(want[at*512:][:8192])
					if s, _ := q.do(blkWriteZeroes, 0, indirect, piece{dataArea, 16}); s != statusOK {
						t.Fatalf("write zeroes: status %d", s)
					}
				}
			}
			q := g.queues[0]
			if s, _ := q.do(blkFlush, 0, false); s != statusOK || r.m.f.Unflushed() != 0 {
				t.Errorf("flush: status %d, %d unflushed", s, r.m.f.Unflushed())
			}
			if s, n := q.do(blkGetID, 0, false, piece{dataArea, 20}); s != statusOK || n != 21 || string(bytes.TrimRight(g.mem[dataArea:][:20], "\x00")) != "serial" {
				t.Errorf("identity: status %d, %d bytes, %q", s, n, g.mem[dataArea:][:20])
			}
			le.PutUint64(g.mem[dataArea:], 1024)
			le.PutUint32(g.mem[dataArea+8:], 1024)
			le.PutUint32(g.mem[dataArea+12:], 0)
			punches := r.m.f.Count("punch")
			clear(want[512*1024:][:512*1024])
			if s, _ := q.do(blkDiscard, 0, false, piece{dataArea, 16}); s != statusOK || r.m.f.Count("punch") != punches+1 {
				t.Errorf("discard: status %d", s)
			}
			for what, x := range map[string]struct {
				kind uint32
				at   uint64
				data []piece
				want byte
			}{
				"read beyond":     {blkIn, 8 * mib / 512, []piece{{dataArea, 512}}, statusIOErr},
				"read at 2^63":    {blkIn, 1 << 63, []piece{{dataArea, 512}}, statusIOErr},
				"write over end":  {blkOut, 8*mib/512 - 1, []piece{{dataArea, 1024}}, statusIOErr},
				"half a sector":   {blkIn, 0, []piece{{dataArea, 100}}, statusIOErr},
				"nothing":         {blkIn, 0, nil, statusOK},
				"unknown":         {99, 0, nil, statusUnsupported},
				"discard of much": {blkDiscard, 0, []piece{{dataArea, 32}}, statusUnsupported},
			} {
				if s, _ := q.do(x.kind, x.at, false, x.data...); s != x.want {
					t.Errorf("%s: status %d, want %d", what, s, x.want)
				}
			}
			r.m.f.Data(func(p []byte) {
				if !bytes.Equal(p, want) {
					t.Error("the image is not what was written")
				}
			})
			if m := g.ask(getVringBase, state(0, 0)); le.Uint32(m.body[4:]) != uint32(q.availIdx) {
				t.Errorf("the queue was read up to %d, want %d", le.Uint32(m.body[4:]), q.availIdx)
			}
			g.c.Close()
			r.idle()
		}
		r.stop()
		if r.m.f.Released() != 2 || r.m.f.Unflushed() != 0 {
			t.Errorf("%d opens given back, %d writes unflushed", r.m.f.Released(), r.m.f.Unflushed())
		}
	})
}

// idle waits until no front end is served.
func (r *rig) idle() {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		busy := r.now != nil
		r.mu.Unlock()
		if !busy {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("a front end that has gone is still served")
		}
	}
}

// TestInterrupts: the guest is called when it wants to be, and not else.
func TestInterrupts(t *testing.T) {
	for _, events := range []bool{false, true} {
		r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
		features := uint64(testAll)
		if events {
			features |= featEventIndex
		}
		g := newGuest(t, features)
		g.connect(r.path)
		g.begin()
		q := g.queues[0]
		q.called() // that of the beginning
		want := func(wanted bool) {
			t.Helper()
			if events {
				at := q.usedIdx // the next one
				if !wanted {
					at += 5
				}
				le.PutUint16(q.avail()[4+2*ringSize:], at)
			} else {
				store32(q.avail(), 0, uint32(q.availIdx)<<16|map[bool]uint32{false: 1, true: 0}[wanted])
			}
			q.do(blkIn, 0, false, piece{dataArea, 4096})
			called := q.called()
			for deadline := time.Now().Add(time.Minute); wanted && !called && time.Now().Before(deadline); called = q.called() {
				time.Sleep(time.Millisecond)
			}
			if called != wanted {
				t.Errorf("events %v: called %v, want %v", events, called, wanted)
			}
		}
		want(true)
		want(false)
		want(false)
		want(true)
		if events {
			m := g.ask(getVringBase, state(0, 0)) // the queue's thread has gone to rest
			if e := le.Uint16(q.used()[4+8*ringSize:]); e != q.availIdx || le.Uint32(m.body[4:]) != uint32(q.availIdx) {
				t.Errorf("the device wants to be kicked at %d, want %d", e, q.availIdx)
			}
		}
		g.c.Close()
	}
}

// TestKilled: requests that were under way when a server was killed are done by the next one, in their order, and those that had ended are not.
func TestKilled(t *testing.T) {
	m := &image{f: blocktest.New(mib)}
	var mu sync.Mutex
	var order []int64
	held := make(chan struct{})
	m.f.Gate(func(ctx context.Context, what string) error {
		if what == "write" {
			mu.Lock()
			n := m.f.Count("write")
			mu.Unlock()
			if n >= 1 { // the first is done, the others hang
				select {
				case <-held:
				case <-ctx.Done():
				}
				return fserr.Interrupted
			}
		}
		return nil
	})
	r := serve(t, m, reactor.Auto, nil)
	g := newGuest(t, testAll|featEventIndex)
	g.connect(r.path)
	g.begin()
	q := g.queues[0]
	copy(g.mem[dataArea:], bytes.Repeat([]byte{7}, 4096*8))
	if s, _ := q.do(blkOut, 0, false, piece{dataArea, 4096}); s != statusOK {
		t.Fatal(s)
	}
	for i := range 3 {
		q.submit(blkOut, uint64(8*(i+1)), []piece{{dataArea, 4096}}, false)
	}
	// They hang when they are marked; the old server then is as good as killed: it never ends them.
	log := inflight{p: mapped1(t, g)}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		n := 0
		for head := range uint16(ringSize) {
			if load32(log.p, log.at(head)) != 0 {
				n++
			}
		}
		if n == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are marked", n)
		}
	}
	// A kill between the guest's sight of an end and its note: the mark of the last one that ended is still there.
	store32(log.p, log.at(0), 1)
	le.PutUint64(log.p[log.at(0)+8:], 1)
	store32(log.p, 12, 0)

	next := &image{f: blocktest.New(mib)}
	next.f.Fault(func(what string, off, _ int64) error {
		mu.Lock()
		defer mu.Unlock()
		if what == "write" {
			order = append(order, off/4096)
		}
		return nil
	})
	old := g.c
	for _, q := range g.queues { // those of the old one are called no more
		_ = unix.Close(q.kick)
		var err error
		if q.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			t.Fatal(err)
		}
	}
	r2 := serve(t, next, reactor.Auto, func(o *Options) { o.Queues = 2 })
	g.connect(r2.path)
	g.begin()
	for i := range 3 {
		if head, _ := q.wait(); q.status(int(head/4)) != statusOK {
			t.Errorf("request %d: status %d", i, q.status(int(head/4)))
		}
	}
	if s, _ := q.do(blkIn, 8, false, piece{dataArea, 512}); s != statusOK || g.mem[dataArea] != 7 {
		t.Errorf("a read after that: status %d", s)
	}
	mu.Lock()
	slices.Sort(order) // begun in their order, and ended by goroutines
	if !slices.Equal(order, []int64{1, 2, 3}) {
		t.Errorf("done again: %v, want the three that had not ended", order)
	}
	mu.Unlock()
	g.c.Close()
	r2.stop()
	// The old one may only go on now that its memory is of no account: what it does is not seen.
	g.mem[0] = 0
	close(held)
	old.Close()
}

// mapped1 maps what is kept of the first queue's requests.
func mapped1(t *testing.T, g *guest) []byte {
	t.Helper()
	p, err := mapInflight(g.inflight, g.desc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

// TestInflight: what is found after a kill at each step.
func TestInflight(t *testing.T) {
	f := inflight{p: make([]byte, inflightSize(8))}
	if got, old := f.adopt(8, 5); got != nil || old || le.Uint16(f.p[14:]) != 5 {
		t.Fatalf("new memory: %v", got)
	}
	again := func(used uint16) []uint16 {
		g := inflight{p: bytes.Clone(f.p)}
		all, old := g.adopt(8, used)
		if !old {
			t.Error("memory that was used counts as new")
		}
		return all
	}
	for _, head := range []uint16{6, 2, 4} {
		f.begin(head)
	}
	if got := again(5); !slices.Equal(got, []uint16{6, 2, 4}) {
		t.Errorf("%v, want the order in which they began", got)
	}
	f.ending(2)
	if got := again(5); !slices.Equal(got, []uint16{6, 2, 4}) {
		t.Errorf("before the guest has seen the end: %v", got)
	}
	if got := again(6); !slices.Equal(got, []uint16{6, 4}) {
		t.Errorf("after it has: %v", got)
	}
	f.ended(2, 6)
	if got := again(6); !slices.Equal(got, []uint16{6, 4}) {
		t.Errorf("ended: %v", got)
	}
	if got, _ := (&inflight{p: bytes.Clone(f.p)}).adopt(4, 6); got != nil {
		t.Errorf("of another size: %v", got)
	}
}

// TestNext: a front end that comes while the one before it is being ended waits, and is served then.
func TestNext(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, func(o *Options) { o.Patience = time.Minute })
	for range 5 {
		g := newGuest(t, testAll)
		g.connect(r.path)
		g.begin()
		if s, _ := g.queues[0].do(blkOut, 0, false, piece{dataArea, 4096}); s != statusOK {
			t.Error(s)
		}
		g.c.Close()
	}
	r.idle()
	if n := r.m.f.Released(); n != 5 || r.m.f.Unflushed() != 0 {
		t.Errorf("%d opens given back, want 5; %d writes unflushed", n, r.m.f.Unflushed())
	}
}

// TestGone: a front end that goes with requests under way leaves the memory mapped until they have ended, and the image is given back after them.
func TestGone(t *testing.T) {
	each(t, mib, func(t *testing.T, r *rig) {
		enter, leave := make(chan struct{}, 64), make(chan struct{})
		r.m.f.Gate(func(_ context.Context, what string) error {
			if what == "read" {
				enter <- struct{}{}
				<-leave
			}
			return nil
		})
		g := newGuest(t, testAll)
		g.connect(r.path)
		g.begin()
		q := g.queues[0]
		for i := range 4 { // some of them on goroutines, which hang
			q.submit(blkIn, uint64(8*i), []piece{{dataArea + 8192*i, 4096}}, false)
		}
		<-enter
		g.c.Close()
		time.Sleep(20 * time.Millisecond)
		if r.m.f.Released() != 0 {
			t.Error("the image was given back while a request is under way")
		}
		close(leave)
		r.idle()
		if r.m.f.Released() != 1 {
			t.Error("the image was not given back")
		}
	})
}

// TestMemoryWait: more data under way than there is memory for waits, on both queues, and all of it is done.
func TestMemoryWait(t *testing.T) {
	m := &image{f: blocktest.New(4 * mib)}
	r := serve(t, m, reactor.Auto, nil)
	var held [][]byte // all memory but a little
	for _, l := range r.loops {
		l.Do(func() {
			for p := l.Get(mib); p != nil; p = l.Get(mib) {
				held = append(held, p)
			}
			l.Put(held[len(held)-1])
			held = held[:len(held)-1]
		})
		done := make(chan struct{})
		l.Do(func() { close(done) })
		<-done
	}
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	for range 5 {
		for _, q := range g.queues {
			for range 4 {
				q.submit(blkOut, 0, []piece{{dataArea, 256 << 10}, {2 * mib, 512 << 10}}, false)
			}
		}
		for _, q := range g.queues {
			for range 4 {
				if head, _ := q.wait(); q.status(int(head/4)) != statusOK {
					t.Errorf("status %d", q.status(int(head/4)))
				}
			}
		}
	}
	g.c.Close()
}

// TestKilledMemory: requests that were under way when a server was killed, and need more memory than there is, are all done by the next one, in turn, and the
// queue can be stopped meanwhile.
func TestKilledMemory(t *testing.T) {
	m := &image{f: blocktest.New(4 * mib)}
	r := serve(t, m, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	held := make(chan struct{})
	m.f.Gate(func(ctx context.Context, what string) error {
		if what != "write" {
			return nil
		}
		select {
		case <-held:
		case <-ctx.Done():
		}
		return fserr.Interrupted
	})
	q := g.queues[0]
	copy(g.mem[dataArea:], bytes.Repeat([]byte{7}, mib))
	log := inflight{p: mapped1(t, g)}
	for i := range 4 {
		q.submit(blkOut, uint64(i*mib/512), []piece{{dataArea, 600 << 10}, {dataArea, 100 << 10}}, false)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		marked := 0
		for head := range uint16(ringSize) {
			if load32(log.p, log.at(head)) != 0 {
				marked++
			}
		}
		if marked == 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are marked", marked)
		}
	}
	next := &image{f: blocktest.New(4 * mib)}
	r2 := serve(t, next, reactor.Auto, nil)
	for _, l := range r2.loops { // room for one request at a time
		done := make(chan struct{})
		l.Do(func() {
			var all [][]byte
			for p := l.Get(mib); p != nil; p = l.Get(mib) {
				all = append(all, p)
			}
			l.Put(all[0])
			close(done)
		})
		<-done
	}
	open := make(chan struct{})
	next.f.Gate(func(context.Context, string) error { <-open; return nil })
	old, oldKick := g.c, q.kick
	var err error
	if q.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil { // that of the old server is called no more
		t.Fatal(err)
	}
	_ = unix.Close(oldKick)
	g.connect(r2.path)
	g.begin()
	if err := g.say(getVringBase, 0, state(0, 0)); err != nil { // before the first of them has ended
		t.Fatal(err)
	}
	close(open)
	for range 4 {
		if head, _ := q.wait(); q.status(int(head/4)) != statusOK {
			t.Errorf("status %d", q.status(int(head/4)))
		}
	}
	if at := le.Uint32(g.answer(getVringBase).body[4:]); at != 4 {
		t.Errorf("the queue was stopped at %d, want 4", at)
	}
	next.f.Data(func(p []byte) {
		for i := range 4 {
			if !bytes.Equal(p[i*mib:][:700<<10], bytes.Repeat([]byte{7}, 700<<10)) {
				t.Errorf("write %d was not done", i)
			}
		}
	})
	g.c.Close()
	r2.stop()
	close(held)
	old.Close()
}

// guarded is an open of an image that somebody else may take.
type guarded struct {
	file
	m *shared
}

func (g guarded) Lost() bool { return g.m.lost.Load() }

func (g guarded) Taken(lost []block.OpenFile) bool { return len(lost) > 0 && g.m.taken.Load() }

// shared is an image whose opens are guarded.
type shared struct {
	*image
	lost, taken atomic.Bool
}

func (m *shared) Open(ctx context.Context, readOnly bool) (block.OpenFile, int64, error) {
	o, n, err := m.image.Open(ctx, readOnly)
	if err != nil {
		return nil, 0, err
	}
	return guarded{o.(file), m}, n, nil
}

// TestTaken: a guest whose front end comes again after the session was lost goes on, unless somebody else was let write to the image since.
func TestTaken(t *testing.T) {
	m := &shared{image: &image{f: blocktest.New(mib)}}
	r := serve(t, m.image, reactor.Auto, func(o *Options) { o.Image = m })
	come := func() *guest {
		t.Helper()
		g := newGuest(t, testAll)
		g.connect(r.path)
		g.begin()
		return g
	}
	lose := func() {
		t.Helper()
		g := come()
		m.lost.Store(true)
		m.f.Fault(func(string, int64, int64) error { return fserr.Stale })
		if s, _ := g.queues[0].do(blkIn, 0, false, piece{dataArea, 512}); s != statusIOErr {
			t.Errorf("a read of a lost session: status %d", s)
		}
		g.c.Close()
		r.idle()
		m.f.Fault(nil)
		m.lost.Store(false)
	}
	lose()
	g := come() // nobody else has it
	if n := m.f.Inherited(); n != 1 {
		t.Errorf("what was not flushed under the lost session was handed on %d times, want once", n)
	}
	if s, _ := g.queues[0].do(blkOut, 0, false, piece{dataArea, 512}); s != statusOK {
		t.Errorf("status %d", s)
	}
	g.c.Close()
	r.idle()
	m.taken.Store(true)
	come().c.Close() // it was given back in order
	r.idle()
	lose()
	for range 2 {
		g := newGuest(t, testAll)
		g.connect(r.path)
		if g.tryBegin() {
			t.Error("an image is served that is somebody else's")
		}
		g.c.Close()
		r.idle()
	}
}

// TestTableTaken: requests under way in memory that the front end has replaced, twice, and with a table in which the queue cannot go on, end in the rings
// that they were taken from.
func TestTableTaken(t *testing.T) {
	m := &image{f: blocktest.New(mib)}
	r := serve(t, m, reactor.Auto, nil)
	held := make(chan struct{})
	m.f.Gate(func(context.Context, string) error { <-held; return nil })
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	q := g.queues[0]
	slot := q.submit(blkOut, 0, []piece{{dataArea, 512}}, false)
	if !g.must(setMemTable, g.table(), g.fd, g.fd) {
		t.Fatal("the same memory was refused")
	}
	far := le.AppendUint64(nil, 1) // all of it, where the rings are not
	for _, v := range []uint64{guestLow, memSize, userBase + 1<<40, 0} {
		far = le.AppendUint64(far, v)
	}
	if !g.must(setMemTable, far, g.fd) {
		t.Fatal("another table was refused")
	}
	if g.must(setVringNum, state(0, 2)) {
		t.Error("a queue got another size with a request under way")
	}
	close(held)
	if head, _ := q.wait(); q.status(slot) != statusOK || head != uint32(slot*4) {
		t.Errorf("head %d, status %d", head, q.status(slot))
	}
	g.c.Close()
	r.idle()
}

// TestWriteThrough: a guest that cannot flush has its writes flushed; a read-only disk takes none.
func TestWriteThrough(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	g := newGuest(t, testAll&^featFlush)
	g.connect(r.path)
	g.begin()
	if s, _ := g.queues[0].do(blkOut, 0, false, piece{dataArea, 4096}); s != statusOK || r.m.f.Unflushed() != 0 {
		t.Errorf("status %d, %d unflushed", s, r.m.f.Unflushed())
	}
	g.c.Close()
	r.idle()
	r = serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, func(o *Options) { o.ReadOnly = true })
	g = newGuest(t, featVersion1|featProtocol|featReadOnly)
	g.connect(r.path)
	g.begin()
	if s, _ := g.queues[0].do(blkOut, 0, false, piece{dataArea, 4096}); s != statusIOErr || r.m.f.Count("write") != 0 {
		t.Errorf("write to a read-only disk: status %d", s)
	}
	g.c.Close()
}

func TestStartFaults(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(Options{Listener: l, Queues: 1000, BlockSize: 100, Serial: "a serial number of more than 20 bytes"}); err == nil {
		t.Error("nonsense was taken")
	}
}

// TestAllocations: a request that begins on a loop allocates nothing here.
func TestAllocations(t *testing.T) {
	m := &memory1{}
	loops, err := block.StartLoops(block.LoopOptions{Threads: 1, Host: m})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = block.CloseLoops(context.Background(), loops) }()
	g := newGuest(t, testAll)
	d := &device{s: &Server{log: nil}, size: memSize, disk: block.NewDisk(m)}
	d.features.Store(testAll)
	tab := &table{regions: []mapped{{region: region{guest: guestLow, size: memSize, user: userBase}, mem: g.mem}}}
	tab.refs.Store(1 << 40)
	q := newQueue(d, &loop{Loop: loops[0]}, 0)
	ring := g.queues[0]
	q.num, q.addr, q.kick = ringSize, ringAddr{desc: userBase, used: userBase + 0x2000, avail: userBase + 0x1000}, ring.kick
	d.table = tab
	n := 0.0
	q.l.do(func() {
		if err := q.start(); err != nil {
			t.Error(err)
			return
		}
		n = testing.AllocsPerRun(200, func() {
			ring.submit(blkIn, 0, []piece{{dataArea, 4096}}, false)
			q.serve()
			m.end()
			ring.submit(blkOut, 8, []piece{{dataArea, 4096}}, false)
			q.serve()
			m.end()
		})
	})
	if n > 2 { // the pieces of the two requests that the test itself makes
		t.Errorf("%v allocations for two requests", n)
	}
	done := make(chan struct{})
	q.l.do(func() { q.stop(func() { close(done) }) })
	<-done
	d.disk.Close()
}
