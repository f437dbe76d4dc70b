package vhost

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"varve/internal/block/blocktest"
	"varve/iouring/reactor"
)

// TestHostile: whatever a guest puts into its queues, or a front end says, nothing outside of the guest's memory is touched, the other queue goes on, and the next front
// end is served.
func TestHostile(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, nil)
	head := uint64(guestLow + 0x3000)
	for what, f := range map[string]func(q *ring){
		"a head beyond the ring": func(q *ring) { q.offer(ringSize) },
		"an index far ahead":     func(q *ring) { q.availIdx += 100; q.offer(0) },
		"a loop": func(q *ring) {
			put(q.desc(), 0, head, 16, descNext, 1)
			put(q.desc(), 1, head, 16, descNext, 0)
			q.offer(0)
		},
		"a next beyond the table":  func(q *ring) { put(q.desc(), 0, head, 16, descNext, 999); q.offer(0) },
		"memory that is not there": func(q *ring) { put(q.desc(), 0, 1<<40, 16, 0, 0); q.offer(0) },
		"memory below":             func(q *ring) { put(q.desc(), 0, 0, 16, 0, 0); q.offer(0) },
		"memory that ends":         func(q *ring) { put(q.desc(), 0, guestLow+memSize-8, 16, 0, 0); q.offer(0) },
		"memory that wraps":        func(q *ring) { put(q.desc(), 0, 1<<64-8, 16, 0, 0); q.offer(0) },
		"much memory":              func(q *ring) { put(q.desc(), 0, guestLow, 1<<32-1, 0, 0); q.offer(0) },
		"no status":                func(q *ring) { put(q.desc(), 0, head, 16, 0, 0); q.offer(0) },
		"no head":                  func(q *ring) { put(q.desc(), 0, head, 16, descWrite, 0); q.offer(0) },
		"memory to read behind memory to fill": func(q *ring) {
			put(q.desc(), 0, head, 16, descWrite|descNext, 1)
			put(q.desc(), 1, head, 16, 0, 0)
			q.offer(0)
		},
		"an indirect table in an indirect table": func(q *ring) {
			put(q.desc(), 0, head, 16, descIndirect, 0)
			put(q.g.mem[0x3000:], 0, head, 16, descIndirect, 0)
			q.offer(0)
		},
		"an indirect table of odd length": func(q *ring) { put(q.desc(), 0, head, 17, descIndirect, 0); q.offer(0) },
		"an indirect table of nothing":    func(q *ring) { put(q.desc(), 0, head, 0, descIndirect, 0); q.offer(0) },
		"an indirect table elsewhere":     func(q *ring) { put(q.desc(), 0, 1<<50, 160, descIndirect, 0); q.offer(0) },
		"an indirect table that goes on":  func(q *ring) { put(q.desc(), 0, head, 16, descIndirect|descNext, 1); q.offer(0) },
		"an indirect loop": func(q *ring) {
			put(q.desc(), 0, head, 16, descIndirect, 0)
			put(q.g.mem[0x3000:], 0, head, 16, descNext, 0)
			q.offer(0)
		},
	} {
		t.Run(what, func(t *testing.T) {
			g := newGuest(t, testAll|featIndirect)
			g.connect(r.path)
			g.begin()
			f(g.queues[0])
			if s, _ := g.queues[1].do(blkIn, 0, false, piece{dataArea, 4096}); s != statusOK {
				t.Errorf("the other queue: status %d", s)
			}
			g.ask(getVringBase, state(0, 0))
			if load32(g.queues[0].used(), 0) != 0 {
				t.Error("a request that breaks the rules has ended")
			}
			g.c.Close()
			r.idle()
		})
	}
	// The same head twice while it is under way.
	hung := make(chan struct{})
	r.m.f.Gate(func(context.Context, string) error { <-hung; return nil })
	g := newGuest(t, testAll)
	g.connect(r.path)
	g.begin()
	slot := g.queues[0].submit(blkOut, 0, []piece{{dataArea, 512}}, false)
	g.queues[0].offer(uint16(slot * 4))
	close(hung)
	g.ask(getVringBase, state(0, 0))
	if n := load32(g.queues[0].used(), 0) >> 16; n > 2 {
		t.Errorf("%d requests have ended", n)
	}
	g.c.Close()
	r.idle()
}

// TestFrontEnds: messages that break the protocol are refused or end the connection; a second front end is hung up on.
func TestFrontEnds(t *testing.T) {
	r := serve(t, &image{f: blocktest.New(mib)}, reactor.Auto, func(o *Options) { o.Patience = 50 * time.Millisecond })
	g := newGuest(t, testAll)
	g.connect(r.path)
	second, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	_ = second.SetDeadline(time.Now().Add(time.Minute))
	if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a second front end: %d, %v", n, err)
	}
	second.Close()
	bad := g.table()
	le.PutUint64(bad[16:], 1<<40) // a region beyond its file
	over := g.table()
	le.PutUint64(over[8+32:], guestLow) // two in one place
	for what, f := range map[string]func() bool{
		"features that were not offered": func() bool { return g.must(setFeatures, u64(1<<40)) },
		"memory beyond its file":         func() bool { return g.must(setMemTable, bad, g.fd, g.fd) },
		"memory over memory":             func() bool { return g.must(setMemTable, over, g.fd, g.fd) },
		"memory without descriptors":     func() bool { return g.must(setMemTable, g.table()) },
		"memory of no region":            func() bool { return g.must(setMemTable, make([]byte, 8)) },
		"a queue that there is not":      func() bool { return g.must(setVringNum, state(7, 16)) },
		"an odd size":                    func() bool { return g.must(setVringNum, state(0, 17)) },
		"a large size":                   func() bool { return g.must(setVringNum, state(0, 1<<15)) },
		"a kick before all":              func() bool { return g.must(setVringKick, u64(0), g.queues[0].kick) },
		"a kick without descriptor":      func() bool { return g.must(setVringKick, u64(0)) },
		"an unknown request":             func() bool { return g.must(200, nil) },
		"requests kept in a short file":  func() bool { return g.must(setInflightFD, inflightDesc{1 << 40, 0, 2, 16}.append(nil), g.fd) },
		"requests kept nowhere":          func() bool { return g.must(setInflightFD, inflightDesc{4096, 0, 2, 16}.append(nil)) },
	} {
		if f() {
			t.Errorf("%s was taken", what)
		}
	}
	g.begin() // it is none the worse
	if s, _ := g.queues[1].do(blkFlush, 0, false); s != statusOK {
		t.Error(s)
	}
	if !g.must(setMemTable, g.table(), g.fd, g.fd) { // while the queues run
		t.Error("another table was refused")
	}
	if s, _ := g.queues[1].do(blkIn, 0, false, piece{dataArea, 4096}); s != statusOK {
		t.Error(s)
	}
	g.c.Close()
	r.idle()
	for what, p := range map[string][]byte{
		"no version": {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "a long message": {1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1}, "half a message": {1, 0, 0},
	} {
		c, err := net.Dial("unix", r.path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		if len(p) < headSize {
			c.Close()
		} else if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: %d, %v", what, n, err)
		}
		c.Close()
		r.idle()
	}
}

// FuzzChain: chains of any bytes stay inside the guest's memory, end, and never take more than a request may have.
func FuzzChain(f *testing.F) {
	seed := make([]byte, 8*descSize)
	put(seed, 0, guestLow, 16, descNext, 1)
	put(seed, 1, guestLow+100, 512, descNext|descWrite, 2)
	put(seed, 2, guestLow+700, 1, descWrite, 0)
	f.Add(seed, uint16(0))
	put(seed, 3, guestLow, 64, descIndirect, 0)
	f.Add(seed, uint16(3))
	f.Fuzz(func(t *testing.T, p []byte, head uint16) {
		const num = 8
		mem := make([]byte, 64<<10)
		desc := mem[:num*descSize]
		copy(mem, p)
		tab := &table{regions: []mapped{
			{region: region{guest: guestLow, size: 32 << 10}, mem: mem[:32<<10]},
			{region: region{guest: guestLow + 40<<10, size: 16 << 10}, mem: mem[40<<10:][:16<<10]},
		}}
		var c chain
		if err := c.walk(tab, desc, num, head, true); err != nil {
			return
		}
		for i, list := range [][][]byte{c.out, c.in} {
			n := 0
			for _, q := range list {
				n += len(q)
				at := int(address(q) - address(mem))
				if len(q) == 0 || at < 0 || at+len(q) > len(mem) || at < 40<<10 && at+len(q) > 32<<10 || at+len(q) > 56<<10 {
					t.Fatalf("%d bytes at %d", len(q), at)
				}
			}
			if n != []int{c.nOut, c.nIn}[i] {
				t.Fatalf("%d bytes in pieces, %d counted", n, []int{c.nOut, c.nIn}[i])
			}
		}
	})
}

// FuzzMessages: payloads of any bytes are decoded or refused.
func FuzzMessages(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, p []byte) {
		if all, err := decodeMemory(p); err == nil && (len(all) == 0 || len(all) > maxRegions) {
			t.Errorf("%d regions", len(all))
		}
		_, _, _ = decodeState(p)
		_, _, _ = decodeAddr(p)
		_, _ = decodeU64(p)
		if d, err := decodeInflight(p); err == nil && !bytes.Equal(d.append(nil)[:20], p[:20]) {
			t.Errorf("%+v", d)
		}
		_, _ = descriptors(p)
	})
}
