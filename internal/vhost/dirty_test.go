package vhost

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block/blocktest"
	"varve/internal/fserr"
	"varve/iouring/reactor"
)

// frontLog is the log of pages that a front end keeps.
type frontLog struct {
	t  testing.TB
	fd int
	p  []byte
}

const logSize = (guestLow+memSize)/logPage/8 + 4

func newFrontLog(t testing.TB, size int) *frontLog {
	t.Helper()
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, int64(size))
	}
	l := &frontLog{t: t, fd: fd}
	if err == nil {
		l.p, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Munmap(l.p)
		_ = unix.Close(fd)
	})
	return l
}

// take returns the pages that are marked, by their place in the guest's memory, and clears the marks.
func (l *frontLog) take() map[int]bool {
	all := map[int]bool{}
	for off := 0; off+4 <= len(l.p); off += 4 {
		for bits, bit := swap32(l.p, off, 0), 0; bits != 0; bits, bit = bits>>1, bit+1 {
			if bits&1 != 0 {
				all[(off*8+bit)*logPage-guestLow] = true
			}
		}
	}
	return all
}

// log is the payload of setLogBase.
func (l *frontLog) log(size, offset uint64) []byte { return le.AppendUint64(u64(size), offset) }

// setLog has the device log there.
func (g *guest) setLog(l *frontLog) {
	g.t.Helper()
	if m := g.ask(setLogBase, l.log(uint64(len(l.p)), 0), l.fd); le.Uint64(m.body) != 0 {
		g.t.Fatal("the log was refused")
	}
}

// setLogging has it begin or end, as qemu does.
func (g *guest) setLogging(on bool) {
	g.t.Helper()
	f := g.features
	if on {
		f |= featLogAll
	}
	ok := g.must(setFeatures, u64(f))
	for _, q := range g.queues {
		ok = ok && g.must(setVringAddr, q.addrs(on))
	}
	if !ok {
		g.t.Fatal("logging was refused")
	}
}

// TestMark: every range marks its pages and no others, whatever its ends and those of the log are.
func TestMark(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		l := &dirtyLog{p: make([]byte, 4+4*rnd.IntN(6))}
		addr, n := rnd.Uint64N(220*logPage), rnd.Uint64N(100*logPage)
		switch rnd.IntN(8) {
		case 0:
			addr = ^uint64(0) - rnd.Uint64N(100) // ends beyond the last address, or there
		case 1:
			n = rnd.Uint64N(2)
		case 2:
			n = ^uint64(0) - addr
		}
		l.mark(addr, n)
		for page := range l.pages() {
			want := n > 0 && addr+n-1 >= addr && page >= addr/logPage && page <= (addr+n-1)/logPage
			if got := l.p[page/8]>>(page%8)&1 != 0; got != want {
				t.Fatalf("%#x bytes at %#x: page %d: %v, want %v", n, addr, page, got, want)
			}
		}
	}
	// A piece that lies in two regions, which are side by side here and not in the guest.
	mem := make([]byte, 4*logPage)
	tab := &table{regions: []mapped{
		{region: region{guest: 8 * logPage, size: 2 * logPage}, mem: mem[:2*logPage]},
		{region: region{guest: 40 * logPage, size: 2 * logPage}, mem: mem[2*logPage:]},
	}}
	l := &dirtyLog{p: make([]byte, 8)}
	tab.mark(l, mem[logPage+1:3*logPage])
	if want := uint64(1)<<9 | 1<<40; le.Uint64(l.p) != want {
		t.Errorf("pages %#x, want %#x", le.Uint64(l.p), want)
	}
	tab.mark(l, make([]byte, 10)) // of no region
	tab.markAll(l)
	if want := uint64(3)<<8 | 3<<40; le.Uint64(l.p) != want {
		t.Errorf("all: pages %#x, want %#x", le.Uint64(l.p), want)
	}
	if l.covers(tab) != true || (&dirtyLog{p: make([]byte, 4)}).covers(tab) {
		t.Error("which log covers the memory")
	}
}

// TestLogged: exactly the pages that a request writes are marked, while logging is on.
func TestLogged(t *testing.T) {
	each(t, 8*mib, func(t *testing.T, r *rig) {
		g := newGuest(t, testAll|featIndirect|featEventIndex)
		g.connect(r.path)
		g.begin()
		l, next := newFrontLog(t, logSize), newFrontLog(t, logSize)
		q := g.queues[1]
		ring := func() map[int]bool { // where the next request has its used ring and its status
			return map[int]bool{q.base + 0x2000: true, q.base + 0x3000 + q.slot%4*0x1000: true}
		}
		with := func(all map[int]bool, pages ...int) map[int]bool {
			for _, p := range pages {
				all[p] = true
			}
			return all
		}
		check := func(what string, l *frontLog, want map[int]bool) {
			t.Helper()
			m := g.ask(getVringBase, state(1, 0)) // the device has done all that it does for the request
			at := le.Uint32(m.body[4:])
			if got := l.take(); !maps.Equal(got, want) {
				t.Errorf("%s: pages %x, want %x", what, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
			}
			if !g.must(setVringBase, state(1, at)) || !g.must(setVringKick, u64(1), q.kick) {
				t.Fatal("the queue does not begin again")
			}
			l.take() // where it wants to be kicked
		}
		done := func(s byte, _ uint32) {
			t.Helper()
			if s != statusOK {
				t.Errorf("status %d", s)
			}
		}
		done(q.do(blkIn, 0, false, piece{dataArea, 4096}))
		check("before there is a log", l, map[int]bool{})
		g.setLog(l)
		done(q.do(blkIn, 0, false, piece{dataArea, 4096}))
		check("before it is asked for", l, map[int]bool{})
		g.setLogging(true)
		l.take()
		want := with(ring(), dataArea, dataArea+4096)
		done(q.do(blkIn, 0, false, piece{dataArea + 100, 4096}))
		check("read in one piece", l, want)
		want = with(ring(), mib-4096, mib, 2*mib+8192)
		done(q.do(blkIn, 0, true, piece{mib - 512, 1024}, piece{2*mib + 8192, 512}))
		check("read in pieces, across regions", l, want)
		want = ring()
		done(q.do(blkOut, 0, false, piece{dataArea, 4096}))
		check("write", l, want)
		want = with(ring(), dataArea)
		done(q.do(blkGetID, 0, false, piece{dataArea, 20}))
		check("identity", l, want)
		want = ring()
		done(q.do(blkFlush, 0, false))
		check("flush", l, want)
		want = with(ring(), dataArea)
		if s, _ := q.do(blkIn, 1<<40, false, piece{dataArea, 4096}); s != statusIOErr {
			t.Errorf("a read beyond the end: status %d", s)
		}
		check("a read that fails", l, want)
		g.setLog(next)
		l.take()
		next.take()
		want = with(ring(), dataArea)
		done(q.do(blkIn, 0, false, piece{dataArea, 512}))
		if got := l.take(); len(got) != 0 {
			t.Errorf("in the log before: %x", slices.Sorted(maps.Keys(got)))
		}
		check("in another log", next, want)
		g.setLogging(false)
		next.take()
		done(q.do(blkIn, 0, false, piece{dataArea, 512}))
		if got := next.take(); len(got) != 0 {
			t.Errorf("when it is not wanted any more: %x", slices.Sorted(maps.Keys(got)))
		}
		g.c.Close()
	})
}

// TestCopied moves memory as qemu does: all of it once, then what is marked, while the guest reads; what has been copied at the end is what the guest has.
func TestCopied(t *testing.T) {
	each(t, 8*mib, func(t *testing.T, r *rig) {
		r.m.f.Data(func(p []byte) {
			for i := range p {
				p[i] = byte(i>>9) | 1
			}
		})
		g := newGuest(t, testAll|featEventIndex)
		g.connect(r.path)
		g.begin()
		stop := make(chan struct{})
		ended := make(chan int)
		for _, q := range g.queues {
			go func() {
				rnd := rand.New(rand.NewPCG(uint64(q.index), 4))
				n := 0
				for ; ; n++ {
					select {
					case <-stop:
						ended <- n
						return
					default:
					}
					// Each queue has its half of the data.
					at := dataArea + q.index*mib + rnd.IntN(mib-64<<10)
					q.submit(blkIn, rnd.Uint64N(8*mib/sector-100), []piece{{at, 512 * (1 + rnd.IntN(100))}}, false)
					head, _ := q.wait()
					if s := q.status(int(head / 4)); s != statusOK {
						t.Errorf("status %d", s)
					}
				}
			}()
		}
		dst := make([]byte, memSize)
		copied := 0
		sync := func(l *frontLog) {
			for at := range l.take() {
				copy(dst[at:][:logPage], g.mem[at:]) // the device writes meanwhile
				copied++
			}
		}
		for range 3 { // the last time it counts
			l := newFrontLog(t, logSize)
			g.setLog(l)
			g.setLogging(true)
			copy(dst, g.mem)
			for range 20 {
				sync(l)
				time.Sleep(time.Millisecond)
			}
			other := newFrontLog(t, logSize)
			g.setLog(other)
			sync(l)
			for range 20 {
				sync(other)
				time.Sleep(time.Millisecond)
			}
			g.setLogging(false)
			sync(other)
		}
		l := newFrontLog(t, logSize)
		g.setLog(l)
		g.setLogging(true)
		copy(dst, g.mem)
		for n := 0; n < 20 || copied == 0 && n < 60_000; n++ { // on a busy machine it takes until a request ends
			sync(l)
			time.Sleep(time.Millisecond)
		}
		close(stop)
		requests := <-ended + <-ended
		for i := range g.queues {
			g.ask(getVringBase, state(i, 0))
		}
		sync(l)
		if !bytes.Equal(dst[dataArea:], g.mem[dataArea:]) {
			t.Error("data were not copied as they are")
		}
		for _, q := range g.queues {
			if !bytes.Equal(dst[q.base+0x2000:][:0x1000], q.used()[:0x1000]) {
				t.Errorf("the used ring of queue %d was not copied as it is", q.index)
			}
			for slot := range 4 {
				if at := q.base + 0x3000 + slot*0x1000 + 16; dst[at] != g.mem[at] {
					t.Errorf("queue %d: status %d was copied as %d, is %d", q.index, slot, dst[at], g.mem[at])
				}
			}
		}
		t.Logf("%d requests, %d pages copied again", requests, copied)
		if requests == 0 || copied == 0 {
			t.Error("nothing was done meanwhile")
		}
		g.c.Close()
	})
}

// TestLogLast: queues that begin while a guest is being moved take nothing before there is a log, also not after they were stopped and begun again.
func TestLogLast(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	g := newGuest(t, testAll)
	plain := g.features
	g.features |= featLogAll
	g.connect(r.path)
	g.begin()
	q := g.queues[0]
	for i := range 2 {
		slot := q.submit(blkIn, 0, []piece{{dataArea, 4096}}, false)
		time.Sleep(20 * time.Millisecond)
		if q.status(slot) != 0xff {
			t.Fatal("a request was done that could not be logged")
		}
		l := newFrontLog(t, logSize)
		g.setLog(l)
		if q.wait(); q.status(slot) != statusOK {
			t.Errorf("status %d", q.status(slot))
		}
		at := le.Uint32(g.ask(getVringBase, state(0, 0)).body[4:])
		if got := l.take(); !got[dataArea] || !got[q.base+0x2000] || !got[q.base+0x3000+slot*0x1000] || len(got) != 3 {
			t.Errorf("round %d: pages %x", i, slices.Sorted(maps.Keys(got)))
		}
		g.ask(getVringBase, state(1, 0)) // the front end lets go of its log now
		for i := range g.queues {
			if !g.must(setVringBase, state(i, at*uint32(1-i))) || !g.must(setVringKick, u64(uint64(i)), g.queues[i].kick) {
				t.Fatal("the queues do not begin again")
			}
		}
	}
	slot := q.submit(blkIn, 0, []piece{{dataArea, 4096}}, false)
	if !g.must(setFeatures, u64(plain)) {
		t.Error("features were refused")
	}
	if q.wait(); q.status(slot) != statusOK {
		t.Errorf("without logging: status %d", q.status(slot))
	}
	g.c.Close()
}

// TestHostileLogs: logs that are not there, too small, or elsewhere are refused, and one whose addresses are nonsense harms nobody.
func TestHostileLogs(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.connect(r.path)
	l := newFrontLog(t, logSize+16)
	size := uint64(logSize + 16)
	if !g.must(setLogBase, l.log(8, 0), l.fd) { // before there is memory, who knows
		t.Error("a small log was refused before there is memory")
	}
	g.begin()
	read, write, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(read)
	defer unix.Close(write)
	for what, f := range map[string]func() bool{
		"to be logged in one that is too small": func() bool { return g.must(setFeatures, u64(g.features|featLogAll)) },
		"a log beyond its file":                 func() bool { return g.must(setLogBase, l.log(size+1, 0), l.fd) },
		"a log behind its file":                 func() bool { return g.must(setLogBase, l.log(size, 8), l.fd) },
		"a log far away":                        func() bool { return g.must(setLogBase, l.log(size, 1<<63), l.fd) },
		"a log at an odd place":                 func() bool { return g.must(setLogBase, l.log(size-8, 1), l.fd) },
		"an endless log":                        func() bool { return g.must(setLogBase, l.log(1<<63, 0), l.fd) },
		"a log of nothing":                      func() bool { return g.must(setLogBase, l.log(0, 0), l.fd) },
		"a log too small for the memory":        func() bool { return g.must(setLogBase, l.log(logSize-8, 0), l.fd) },
		"a log without a descriptor":            func() bool { return g.must(setLogBase, l.log(size, 0)) },
		"a log with two":                        func() bool { return g.must(setLogBase, l.log(size, 0), l.fd, l.fd) },
		"a log in a pipe":                       func() bool { return g.must(setLogBase, l.log(size, 0), read) },
		"a log told of in a few bytes":          func() bool { return g.must(setLogBase, u64(size), l.fd) },
	} {
		if f() {
			t.Errorf("%s was taken", what)
		}
	}
	g.setLogging(false) // the small log is dropped
	if g.must(setFeatures, u64(g.features|featLogAll)) {
		t.Error("to be logged nowhere, while queues run, was taken")
	}
	if m := g.ask(setLogBase, l.log(logSize, 8), l.fd); le.Uint64(m.body) != 0 { // at an offset
		t.Error("a log was refused")
	}
	g.setLogging(true)
	larger := g.table()
	le.PutUint64(larger[8+32:], 1<<40) // the second region is far away in the guest
	if g.must(setMemTable, larger, g.fd, g.fd) {
		t.Error("memory that the log does not cover was taken")
	}
	q := g.queues[0]
	for _, at := range []uint64{1 << 63, ^uint64(0), ^uint64(0) - 7, (guestLow + memSize), 0} {
		addr := q.addrs(true)
		le.PutUint64(addr[32:], at)
		if !g.must(setVringAddr, addr) {
			t.Error("an address was refused")
		}
		l.take()
		if s, _ := q.do(blkIn, 0, false, piece{dataArea, 4096}); s != statusOK {
			t.Errorf("status %d", s)
		}
	}
	if l.p[0]|l.p[1]|l.p[2]|l.p[3] == 0 && bytes.Count(l.p, []byte{0}) == len(l.p) {
		t.Error("nothing was marked")
	}
	g.c.Close()
	r.idle()
	// A log that is refused, by a front end that does not ask how it went, ends the connection.
	g.connect(r.path)
	if err := g.say(setLogBase, 0, l.log(0, 0), l.fd); err != nil {
		t.Fatal(err)
	}
	if m, err := g.h.read(); err == nil {
		t.Errorf("it was answered: %+v", m)
	}
	g.c.Close()
}

func pipe() (read, write int, err error) {
	var p [2]int
	err = unix.Pipe2(p[:], unix.O_CLOEXEC)
	return p[0], p[1], err
}

// TestKilledWhileLogging: who serves after a kill counts all memory as written, since what the other has marked may not have been seen; who only goes on does not.
func TestKilledWhileLogging(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.features |= featLogAll
	g.connect(r.path)
	g.begin()
	l := newFrontLog(t, logSize)
	g.setLog(l)
	for i := range g.queues {
		g.ask(getVringBase, state(i, 0))
	}
	if got := l.take(); len(got) != 0 {
		t.Errorf("at its begin %d pages are marked", len(got))
	}
	g.c.Close() // as good as killed
	r.idle()
	g.connect(r.path)
	g.begin()
	l = newFrontLog(t, logSize)
	g.setLog(l)
	g.ask(getVringBase, state(0, 0))
	if got := l.take(); len(got) != memSize/logPage {
		t.Errorf("after a kill %d pages are marked, want all %d", len(got), memSize/logPage)
	}
	if !g.must(setVringBase, state(0, 0)) || !g.must(setVringKick, u64(0), g.queues[0].kick) {
		t.Fatal("the queue does not begin again")
	}
	g.ask(getVringBase, state(0, 0))
	if got := l.take(); len(got) != 0 {
		t.Errorf("when a queue goes on %d pages are marked", len(got))
	}
	g.c.Close()
}

// TestHeld: the image is open while a queue runs. When the front end hears that the last has ended, all has been flushed and given back.
func TestHeld(t *testing.T) {
	each(t, mib, func(t *testing.T, r *rig) {
		opens := func() int {
			r.m.mu.Lock()
			defer r.m.mu.Unlock()
			return r.m.opens
		}
		g := newGuest(t, testAll)
		g.connect(r.path)
		g.ask(getConfig, append(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0), 8), 0), make([]byte, 8)...))
		if opens() != 0 {
			t.Error("the image was opened before a queue began")
		}
		g.begin()
		for i := range 3 {
			slot := g.queues[0].submit(blkOut, uint64(8*i), []piece{{dataArea, 4096}}, false)
			if s, _ := g.queues[1].do(blkOut, 512, false, piece{dataArea, 4096}); s != statusOK {
				t.Errorf("status %d", s)
			}
			g.ask(getVringBase, state(1, 0))
			if r.m.f.Released() != i || opens() != i+1 {
				t.Errorf("round %d: given back %d times, opened %d times", i, r.m.f.Released(), opens())
			}
			g.ask(getVringBase, state(0, 0))
			if s := g.queues[0].status(slot); s != statusOK || r.m.f.Released() != i+1 || r.m.f.Unflushed() != 0 {
				t.Errorf("round %d: status %d, given back %d times, %d writes unflushed", i, s, r.m.f.Released(), r.m.f.Unflushed())
			}
			g.queues[0].wait()
			for j, q := range g.queues {
				if !g.must(setVringBase, state(j, uint32(q.availIdx))) || !g.must(setVringKick, u64(uint64(j)), q.kick) {
					t.Fatal("the queues do not begin again")
				}
			}
		}
		g.c.Close()
		r.idle()
		if r.m.f.Released() != opens() {
			t.Errorf("given back %d times, opened %d times", r.m.f.Released(), opens())
		}
	})
}

// TestLost: what is found lost when the last queue ends the guest's next flush is told of, once.
func TestLost(t *testing.T) {
	m := &image{f: blocktest.New(mib)}
	r := serve(t, m, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	if s, _ := g.queues[0].do(blkOut, 0, false, piece{dataArea, 4096}); s != statusOK {
		t.Fatal(s)
	}
	var fail atomic.Bool
	fail.Store(true)
	m.f.Fault(func(what string, _, _ int64) error {
		if what == "flush" && fail.Swap(false) {
			return fserr.IO
		}
		return nil
	})
	g.ask(getVringBase, state(1, 0))
	if err := g.say(getVringBase, 0, state(0, 0)); err != nil {
		t.Fatal(err)
	}
	if a, err := g.h.read(); err == nil {
		t.Errorf("the end of the last queue was answered, though the flush failed: %+v", a)
	}
	g.c.Close()
	r.idle()
	g.connect(r.path)
	g.begin()
	for i, want := range []byte{statusIOErr, statusOK} {
		if s, _ := g.queues[0].do(blkFlush, 0, false); s != want {
			t.Errorf("flush %d: status %d, want %d", i, s, want)
		}
	}
	g.c.Close()
}
