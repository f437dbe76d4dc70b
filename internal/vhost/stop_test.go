package vhost

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/block/blocktest"
	"varve/internal/fserr"
	"varve/iouring/reactor"
)

// TestEndless: a guest that fills a queue as fast as it is emptied does not keep the front end waiting, which wants to stop that.
func TestEndless(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	q := g.queues[0]
	slot := q.submit(99, 0, nil, false) // it ends at once
	q.wait()
	for i := range ringSize {
		le.PutUint16(q.avail()[4+2*i:], uint16(slot*4))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	wg.Go(func() {
		for n := 0; ; n++ {
			used := load32(q.used(), 0) >> 16
			store32(q.avail(), 0, (used+ringSize-1)<<16)
			if n == 0 {
				var one [8]byte
				one[0] = 1
				_, _ = unix.Write(q.kick, one[:])
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for deadline := time.Now().Add(time.Minute); load32(q.used(), 0)>>16 == 1; time.Sleep(time.Millisecond) { // until the guest has come to it
		if time.Now().After(deadline) {
			t.Fatal("no request of the endless ones has ended")
		}
	}
	for range 100 {
		if !g.must(setVringEnable, state(0, 1)) {
			t.Fatal("refused")
		}
	}
	g.ask(getVringBase, state(0, 0))
	end()
	g.c.Close()
	r.idle()
}

// TestTurns: a queue gives its thread away after a number of requests, and goes on then.
func TestTurns(t *testing.T) {
	loops, err := block.StartLoops(block.LoopOptions{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = block.CloseLoops(context.Background(), loops) }()
	g := newGuest(t, testAll)
	d := &device{s: &Server{log: nil}, size: memSize}
	d.features.Store(testAll)
	d.table = &table{regions: []mapped{{region: region{guest: guestLow, size: memSize, user: userBase}, mem: g.mem}}}
	d.table.refs.Store(1 << 40)
	q := newQueue(d, &loop{Loop: loops[0]}, 0)
	const avail, used, head = 0x8000, 0xa000, 0xe000
	q.num, q.addr, q.kick = maxQueueSize, ringAddr{desc: userBase, avail: userBase + avail, used: userBase + used}, g.queues[0].kick
	put(g.mem, 0, guestLow+head, blkHead, descNext, 1)
	put(g.mem, 1, guestLow+head+blkHead, 1, descWrite, 0)
	le.PutUint32(g.mem[head:], 99)          // it ends at once
	store32(g.mem, avail, maxQueueSize<<16) // all of them are the same
	done := func() uint32 { return load32(g.mem, used) >> 16 }
	q.l.do(func() {
		if err := q.start(); err != nil {
			t.Error(err)
		}
		if n := done(); n != maxTurn {
			t.Errorf("%d requests are done at once, want %d", n, maxTurn)
		}
	})
	for deadline := time.Now().Add(time.Minute); done() < maxQueueSize; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are done, and no more", done())
		}
	}
	ended := make(chan struct{})
	q.l.do(func() { q.stop(func() { close(ended) }) })
	<-ended
}

// TestBase: the place where a queue is to be read from is the answer if it is stopped before it has begun.
func TestBase(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.connect(r.path)
	if !g.must(setVringBase, state(1, 57)) {
		t.Fatal("refused")
	}
	if m := g.ask(getVringBase, state(1, 0)); le.Uint32(m.body[4:]) != 57 {
		t.Errorf("base %d, want 57", le.Uint32(m.body[4:]))
	}
	g.c.Close()
	r.idle()
}

// TestGivenUp: a server that is told to stop while the cluster does not answer tells the guest nothing of what it gives up; the next one does that again.
func TestGivenUp(t *testing.T) {
	m := &image{f: blocktest.New(mib)}
	r := serve(t, m, reactor.Auto, nil)
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	q := g.queues[0]
	hung := make(chan struct{}, ringSize)
	m.f.Gate(func(ctx context.Context, what string) error {
		if what != "write" {
			return nil
		}
		hung <- struct{}{}
		<-ctx.Done()
		return fserr.Interrupted
	})
	copy(g.mem[dataArea:], bytes.Repeat([]byte{7}, 4096))
	slot := q.submit(blkOut, 8, []piece{{dataArea, 4096}}, false)
	<-hung
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := r.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	if s := q.status(slot); s != 0xff || load32(q.used(), 0) != 0 {
		t.Errorf("the guest is told status %d of a write that was given up", s)
	}
	g.c.Close()
	m.f.Gate(nil)
	r2 := serve(t, m, reactor.Auto, nil)
	g.connect(r2.path)
	g.begin()
	if head, _ := q.wait(); head != uint32(slot*4) || q.status(slot) != statusOK {
		t.Errorf("head %d, status %d", head, q.status(slot))
	}
	m.f.Data(func(p []byte) {
		if !bytes.Equal(p[4096:8192], bytes.Repeat([]byte{7}, 4096)) {
			t.Error("it was not done again")
		}
	})
	g.c.Close()
}
