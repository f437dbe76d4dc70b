package mds

import (
	"testing"

	"varve/internal/wire/msg"
)

// TestWritable: who opens a file, or has it alone again, is told since when nobody was let write to it.
func TestWritable(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	keep := func(cl *testClient, w msg.Want) {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		cl.fn = func(*msg.Callback) *msg.CallbackReply { return &msg.CallbackReply{Keep: w} }
	}
	ino := a.create("f", true).Attr.Ino
	keep(a, msg.Want_WANT_NONE)
	first := b.must(b.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ})).GetOpen()
	if first.Writable == 0 || first.Writable > first.Lease {
		t.Fatalf("the first grant of all: writable %d, lease %d", first.Writable, first.Lease)
	}
	keep(b, msg.Want_WANT_READ)
	own := a.must(a.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})).GetOpen()
	if own.WritableBefore > first.Lease || own.Writable != own.Lease || own.Lease <= first.Lease {
		t.Fatalf("a grant for writing after %d: %v", first.Lease, own)
	}
	again := a.must(a.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_WRITE})).GetOpen()
	if again.WritableBefore != 0 || again.Writable != own.Lease {
		t.Errorf("a grant that was there already: writable %d, before %d, want %d and 0", again.Writable, again.WritableBefore, own.Lease)
	}
	a.must(a.change(&msg.Release{Ino: ino, Lease: own.Lease}))
	c.eventually("the reader to be told that it is alone", func() bool { return b.calls(msg.Callback_UPGRADE) > 0 })
	b.mu.Lock()
	for _, cb := range b.got {
		if cb.Kind == msg.Callback_UPGRADE && cb.Writable != own.Lease {
			t.Errorf("the reader is told %d, want %d", cb.Writable, own.Lease)
		}
	}
	b.mu.Unlock()
	next := a.must(a.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ})).GetOpen()
	if next.WritableBefore != own.Lease || next.Writable != own.Lease || next.Lease <= own.Lease {
		t.Errorf("a grant for reading after %d: %v", own.Lease, next)
	}
}
