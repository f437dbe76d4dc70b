package mds

import (
	"errors"
	"strings"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// corrupt changes the record of an inode behind the back of the server.
func corrupt(t *testing.T, s *Server, ino uint64) {
	t.Helper()
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	n, ok := s.fsm.state.Inode(id.Ino(ino))
	if !ok {
		t.Fatalf("inode %d is not there", ino)
	}
	n.Size ^= 1 << 33
}

// ended waits until the server has stopped and returns why.
func (c *testCluster) ended(i int) error {
	c.t.Helper()
	s := c.servers[i]
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		c.t.Fatalf("server %d goes on", i)
	}
	c.set(i, nil)
	return s.Run()
}

func TestDivergedServerStops(t *testing.T) {
	for _, leads := range []bool{false, true} {
		name := map[bool]string{false: "follower", true: "leader"}[leads]
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3, func(o *Options) { o.SessionLease = time.Minute })
			k := newClient(c)
			ino := k.create("a", false).Attr.Ino
			k.create("b", false)
			bad := c.leaderIndex()
			if !leads {
				bad = (bad + 1) % 3
			}
			c.eventually("all to have the file", func() bool {
				return c.servers[bad].fsm.index() == c.leader().fsm.index()
			})
			before := c.servers[bad].fsm.index()
			corrupt(t, c.servers[bad], ino)
			perm := uint32(0o600)
			chmod := k.must(k.change(&msg.SetAttr{Ino: ino, Perm: &perm}))
			for i := range 20 {
				k.create(strings.Repeat("x", i+1), false)
			}
			err := c.ended(bad)
			var d *divergence
			if !errors.Is(err, errDiverged) || !errors.As(err, &d) {
				t.Fatalf("it stopped because of %v", err)
			}
			if d.first <= before || d.first > d.index || d.first > before+10 {
				t.Errorf("it began at %d, says the server; the record was changed at %d, chmod answered %v: %v", d.first, before, chmod.Attr, err)
			}
			if !strings.Contains(err.Error(), "make-mds --rebuild") {
				t.Errorf("it does not say what to do: %v", err)
			}
			// The others go on, with what was written.
			k.create("after", false)
			for i, s := range c.servers {
				if i != bad && s.Leads() == false && s.fsm.halted.Load() != nil {
					t.Errorf("server %d stopped as well", i)
				}
			}
			if a := k.must(k.read(&msg.GetAttr{Ino: ino})).Attr; a.Size != 0 || a.Perm != perm {
				t.Errorf("attributes of the file: %v", a)
			}
			// It does not start from its own directory again.
			_, err = Open(c.options(bad))
			if !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "--rebuild") || !strings.Contains(err.Error(), "digest") {
				t.Errorf("opened again: %v", err)
			}
		})
	}
}

// TestDigestsGoIntoTheLog: one after an interval with events, none without.
func TestDigestsGoIntoTheLog(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.DigestInterval, o.SessionLease = 100*time.Millisecond, time.Minute })
	k := newClient(c)
	k.create("a", false)
	agreed := func() id.Index {
		low := ^id.Index(0)
		for _, s := range c.servers {
			_, a := s.fsm.remembered()
			low = min(low, a)
		}
		return low
	}
	settled := func() id.Index {
		var at id.Index
		c.eventually("digests to cover all events", func() bool {
			_, changed := c.leader().fsm.newest()
			at = agreed()
			return at >= changed
		})
		return at
	}
	settled()
	index := c.leader().fsm.index()
	time.Sleep(500 * time.Millisecond)
	if again := c.leader().fsm.index(); again > index+1 { // one may have been under way
		t.Errorf("index %d, without a change %d", index, again)
	}
	k.create("b", false)
	if at := settled(); at <= index {
		t.Errorf("agreed at %d, before the last change at %d", at, index)
	}
}

// TestUndecidedDivergence: when no majority agrees, nobody stops, since nobody knows who is wrong.
func TestUndecidedDivergence(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.SessionLease = time.Minute })
	k := newClient(c)
	ino := k.create("a", false).Attr.Ino
	i := c.leaderIndex()
	c.kill((i + 1) % 3)
	other := c.servers[(i+2)%3]
	c.eventually("the follower to have the file", func() bool { return other.fsm.index() == c.leader().fsm.index() })
	corrupt(t, other, ino)
	perm := uint32(0o600)
	k.must(k.change(&msg.SetAttr{Ino: ino, Perm: &perm}))
	time.Sleep(500 * time.Millisecond)
	k.create("b", false)
	if c.servers[i].fsm.halted.Load() != nil || other.fsm.halted.Load() != nil {
		t.Fatal("a server stopped, though it cannot be known which is wrong")
	}
	// The third tells.
	c.start((i + 1) % 3)
	if err := c.ended((i + 2) % 3); !errors.Is(err, errDiverged) {
		t.Errorf("it stopped because of %v", err)
	}
	k.create("c", false)
}

func TestSumsRemember(t *testing.T) {
	var d sums
	for i := id.Index(10); i < 10+maxSums+5; i++ {
		d.note(i, state.Sum{byte(i), byte(i >> 8), byte(i >> 16)}, &event.Event{})
	}
	last := id.Index(10 + maxSums + 4)
	for _, i := range []id.Index{15, 16, last} {
		if sum, ok := d.at(i); !ok || sum != (state.Sum{byte(i), byte(i >> 8), byte(i >> 16)}) {
			t.Errorf("sum at %d: %x %v", i, sum, ok)
		}
	}
	for _, i := range []id.Index{0, 10, 14, last + 1} {
		if _, ok := d.at(i); ok {
			t.Errorf("a sum at %d", i)
		}
	}
	own, _ := d.at(last)
	if err := d.compare(&event.Digest{Index: uint64(last), Digest: own[:], Kind: state.DigestSum}); err != nil || d.agreed != last {
		t.Errorf("the same digest: %v, agreed at %d", err, d.agreed)
	}
	own[3] ^= 1
	var v *divergence
	if err := d.compare(&event.Digest{Index: uint64(last), Digest: own[:], Kind: state.DigestSum}); !errors.As(err, &v) || v.agreed != last {
		t.Errorf("another digest: %v", err)
	}
	if err := d.compare(&event.Digest{Index: 3, Digest: own[:], Kind: state.DigestSum}); err != nil {
		t.Errorf("a digest at a forgotten index: %v", err)
	}
	d.reset()
	if _, ok := d.at(last); ok {
		t.Error("a sum of a state that was replaced")
	}
}
