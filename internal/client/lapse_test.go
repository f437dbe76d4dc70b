package client

import (
	"bytes"
	"testing"

	"varve/internal/id"
)

// TestLapseForgetsLayouts: a session that was renewed after its lease was over goes on with its files, and asks again where chunks are: the
// metadata servers may have taken replicas out meanwhile without a word.
func TestLapseForgetsLayouts(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	s := c.sess.Load()
	gen := f.in.layoutGeneration() // of a question that is answered only afterwards
	w.mu.Lock()
	ch := w.inodes[uint64(f.Ino())].chunks[0]
	gone := id.ServerID(ch.Replicas[0].Server)
	ch.Replicas = ch.Replicas[1:]
	ch.Epoch++
	old := ch.Epoch
	for _, r := range ch.Replicas {
		k := w.cs[id.ServerID(r.Server)]
		k.set(func() { k.chunks[id.ChunkID(ch.Id)].epoch = id.Epoch(ch.Epoch) })
	}
	w.mu.Unlock()
	s.deadline.Store(bootTime() - 1)
	eventually(t, "a renewal after the lease", func() bool {
		if s.lapses.Load() == 0 && bootTime() < s.deadline.Load() {
			s.deadline.Store(bootTime() - 1) // a renewal had looked at the deadline before it was over, and moved it after
			return false
		}
		return s.lapses.Load() > 0 && bootTime() < s.deadline.Load()
	})
	if _, known := f.in.lookup(0); known {
		t.Error("the layout is still believed")
	}
	f.in.learnLayout(nil, gen)
	if now := f.in.layoutGeneration(); now == gen {
		t.Error("an answer to a question from before would be believed")
	}
	write(t, f, fill(4096, 2), 0)
	if got := read(t, f, 0, 8192); !bytes.Equal(got, append(fill(4096, 2), fill(8192, 1)[4096:]...)) {
		t.Error("what is read is not what was written")
	}
	loc, known := f.in.lookup(0)
	if !known || loc == nil || loc.has(gone) || loc.epoch != id.Epoch(old) {
		t.Errorf("layout afterwards: %+v", loc)
	}
	if c.sess.Load() != s {
		t.Error("another session")
	}
}
