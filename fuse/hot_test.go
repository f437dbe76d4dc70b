package fuse

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/hot"
	"varve/iouring/reactor"
)

// TestHotAllocs has reads and writes begun and ended on a reactor, without a kernel: nothing may be allocated for one.
func TestHotAllocs(t *testing.T) {
	h := &hotZero{zeroFS: zeroFS{newMemFS()}}
	s, _ := fakeSession(t, h)
	l, err := reactor.Start(reactor.Options{Buffers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(context.Background())
	seat, err := h.Sit(l)
	if err != nil {
		t.Fatal(err)
	}
	s.files.add(&file{handle: &hotZeroHandle{h: h}, ino: 2, write: true})
	s.via = &discard{make([]byte, maxWrite)}
	one := &loop{s: s, l: l, seat: seat, seated: true}
	s.loops = []*loop{one}
	for _, op := range []opcode{opRead, opWrite} {
		message := encode(op, 2, 2, u64(1), u64(4096), u32(4096), u32(0), u64(0), u32(0), u32(0))
		if op == opWrite {
			message = append(message, make([]byte, 4096)...)
			le.PutUint32(message, uint32(len(message)))
		}
		var allocs float64
		done := make(chan struct{})
		l.Do(func() {
			defer close(done)
			allocs = testing.AllocsPerRun(1000, func() {
				r := newRequest()
				r.via = s.via
				var args []byte
				r.header, args, err = parseHeader(message)
				if err == nil {
					r.fixed, r.rest, err = split(r.op, args)
				}
				if err != nil || s.atOnce(r) || !s.begin(one, r) {
					t.Errorf("%v was not begun: %v", op, err)
					return
				}
				h.seats[seat].end()
			})
		})
		<-done
		if allocs >= 1 { // under the race detector pools forget some of what they are given
			t.Errorf("%v: %v allocations", op, allocs)
		}
	}
	if under := s.hotUnderWay(); len(under) != 0 {
		t.Errorf("under way: %v", under)
	}
	for _, st := range s.Stats() {
		if st.Count != 1001 || st.Bytes != 1001*4096 || st.Errors != 0 {
			t.Errorf("counted %+v", st)
		}
	}
	if got := s.budget.requests.Load(); got != defaultMaxRequests {
		t.Errorf("%d requests of the budget left, want %d", got, defaultMaxRequests)
	}
}

// TestNoSeat mounts a backend that cannot sit on a reactor: goroutines do everything.
func TestNoSeat(t *testing.T) {
	needKernel(t)
	h := newHotFS()
	s, dir := way{transport: Dev}.mount(t, failSit{h}, nil)
	runGuest(t, "make", dir)
	if n := h.reads.Load() + h.writes.Load(); n != 0 || s.Conn().Transport != Dev {
		t.Errorf("%d operations were begun, transport %s", n, s.Conn().Transport)
	}
}

// TestBudget takes and gives from many goroutines.
func TestBudget(t *testing.T) {
	var b budget
	const requests, bytes, workers = 4, 1000, 16
	b.init(requests, bytes)
	var under, used, tries atomic.Int64
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range 300 {
				cost := (w*31 + i*17) % bytes
				if w%4 == 0 {
					if !b.try(cost) {
						continue
					}
					tries.Add(1)
				} else if !b.take(cost, func() {}) {
					t.Error("closed")
				}
				if n, u := under.Add(1), used.Add(int64(cost)); n > requests || u > bytes {
					t.Errorf("%d requests of %d bytes under way", n, u)
				}
				under.Add(-1)
				used.Add(-int64(cost))
				b.give(cost)
			}
		})
	}
	all.Wait()
	if b.requests.Load() != requests || b.bytes.Load() != bytes {
		t.Errorf("%d requests, %d bytes left", b.requests.Load(), b.bytes.Load())
	}
	for range requests {
		b.take(1, func() {})
	}
	waits := make(chan struct{})
	refused := make(chan bool)
	go func() { refused <- !b.take(1, func() { close(waits) }) }()
	<-waits
	b.close()
	if !<-refused || b.try(1) {
		t.Error("taken from a budget that is closed")
	}
}

// checkHot says what did not go on on the loops.
func (h *hotFS) checkHot(t *testing.T) {
	t.Helper()
	if h.reads.Load() == 0 || h.writes.Load() == 0 || h.refuse.Load() == 0 {
		t.Errorf("%d reads and %d writes were to be begun, %d not", h.reads.Load(), h.writes.Load(), h.refuse.Load())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seats) != testLoops || h.left != testLoops {
		t.Errorf("%d loops sat, %d left, want %d", len(h.seats), h.left, testLoops)
	}
}

// TestHotPanic: a Backend that ends an operation with more than was asked for breaks an invariant.
func TestHotPanic(t *testing.T) {
	s, _ := fakeSession(t, newMemFS())
	r := newRequest()
	r.via, r.began = s.via, time.Now()
	var args []byte
	r.header, args, _ = parseHeader(encode(opRead, 2, 2, u64(1), u64(0), u32(10), u32(0), u64(0), u64(0)))
	r.fixed, r.rest, _ = split(r.op, args)
	l := &loop{s: s}
	l.add(r)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	hot.Ender(r).Ended(11, nil)
}
