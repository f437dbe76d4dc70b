package secure

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

type closed struct {
	net.Conn
	n *int
}

func (c closed) Close() error { *c.n++; return nil }

func addr(a, b int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(a >> 8), byte(a), byte(b)}) }

// TestCrowd: who makes room for whom.
func TestCrowd(t *testing.T) {
	c := newCrowd(8, 4)
	now, ended := time.Unix(1e9, 0), 0
	enter := func(from netip.Addr) (*guest, bool) {
		g := &guest{nc: closed{n: &ended}, from: from, since: now}
		return g, c.enter(g)
	}
	flood, quiet := addr(0, 1), addr(0, 2)
	q, ok := enter(quiet)
	if !ok {
		t.Fatal("an empty room is full")
	}
	for range 4 {
		if _, ok := enter(flood); !ok {
			t.Fatal("refused below the limit")
		}
	}
	if _, ok := enter(flood); ok || ended != 0 {
		t.Error("one that is young made room for another one of the same source")
	}
	now = now.Add(settled)
	if _, ok := enter(flood); !ok || ended != 1 {
		t.Errorf("%v, %d ended: want the oldest of the same source to make room", ok, ended)
	}
	for n := range 20 {
		now = now.Add(settled)
		if _, ok := enter(addr(1, n)); !ok {
			t.Error("no room for another source")
		}
		if len(c.all) > 8 {
			t.Fatalf("%d connections, limit 8", len(c.all))
		}
		if _, in := c.all[q]; !in && n < 5 {
			t.Error("the one that was there first made room, and another source had more")
		}
	}
	for g := range c.all {
		c.leave(g)
		c.leave(g)
	}
	if len(c.all)+len(c.count) != 0 {
		t.Errorf("%d connections, %d sources are left of nothing", len(c.all), len(c.count))
	}
}

// TestAcquaintances: strangers use up what strangers have, and nothing of those who have been let in.
func TestAcquaintances(t *testing.T) {
	a := newAcquaintances()
	now := time.Unix(1e9, 0)
	a.now = func() time.Time { return now }
	member := addr(9, 9)
	if known, ok := a.try(member); known || !ok {
		t.Fatal(known, ok)
	}
	a.met(member, true)
	tries := 0
	for range 10_000 {
		if _, ok := a.try(addr(1, 1)); ok {
			tries++
		}
	}
	if tries != strangerBurst {
		t.Errorf("%d tries of one source at once, want %d", tries, strangerBurst)
	}
	if _, ok := a.try(addr(1, 2)); !ok {
		t.Error("one source keeps another out")
	}
	for n := range 3 * maxAddresses {
		if _, ok := a.try(addr(n/250+300, n%250)); ok {
			tries++
		}
	}
	if tries > strangersBurst {
		t.Errorf("%d tries of all at once, limit %d", tries, strangersBurst)
	}
	if len(a.strangers) > maxAddresses {
		t.Errorf("%d addresses are kept, limit %d", len(a.strangers), maxAddresses)
	}
	for range 10 * knownBurst { // who is let in each time can go on
		known, ok := a.try(member)
		if !known || !ok {
			t.Fatalf("a member is kept out: %v %v", known, ok)
		}
		a.met(member, true)
	}
	now = now.Add(knownFor)
	if known, _ := a.try(member); known {
		t.Error("known for ever")
	}
	now = now.Add(time.Minute)
	for range 10 * strangerBurst { // nor do those who are let in use up what strangers have
		if _, ok := a.try(addr(2, 2)); !ok {
			t.Fatal("kept out")
		}
		a.met(addr(2, 2), true)
	}
	for n := range 3 * maxAddresses {
		a.met(addr(n/250+300, n%250), false)
	}
	if len(a.known) > maxAddresses {
		t.Errorf("%d addresses are known, limit %d", len(a.known), maxAddresses)
	}
}
