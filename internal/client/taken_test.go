package client

import (
	"testing"

	"varve/internal/wire/msg"
)

// TestTaken: who had a file open under a session that was lost learns whether anybody else was let write to it since.
func TestTaken(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c, other := w.dial(t, nil), w.dial(t, nil)
	first := create(t, c, "a")
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	lose := func(f *File) {
		t.Helper()
		was := c.Session()
		w.expire(uint64(was))
		eventually(t, "another session", func() bool { return f.Lost() && c.Session() != was })
	}
	f := open(t, c, first, true)
	if f.Lost() || f.Taken(nil) {
		t.Error("a file is taken that nobody has lost")
	}
	lose(f)
	g := open(t, c, f, true)
	if g.Taken([]*File{f}) || g.Lost() {
		t.Error("nobody else has opened the file")
	}
	r := open(t, other, f, false)
	write(t, g, fill(4096, 1), 0)
	lose(g)
	h := open(t, c, f, true)
	if h.Taken([]*File{f, g}) {
		t.Error("somebody else has it open for reading alone")
	}
	lose(h)
	if err := r.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, open(t, other, f, true), fill(4096, 2), 0)
	if k := open(t, c, f, true); !k.Taken([]*File{h}) || !k.Taken([]*File{f, g, h}) {
		t.Error("somebody else has written to the file since")
	}
}

// TestTakenForgotten: that the metadata servers have forgotten when a file was granted, since many others were after it, does not count as another's grant.
func TestTakenForgotten(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	lose := func(f *File) {
		t.Helper()
		was := c.Session()
		w.expire(uint64(was))
		eventually(t, "another session", func() bool { return f.Lost() && c.Session() != was })
	}
	lose(f)
	g := open(t, c, f, true)
	if mode, _ := g.in.state(); mode != msg.Mode_EXCLUSIVE_WRITE {
		t.Fatalf("mode %v", mode)
	}
	others := func() (upTo uint64) { // are granted
		w.mu.Lock()
		defer w.mu.Unlock()
		w.index += 100
		w.inodes[uint64(g.in.ino)].writable = w.index
		return w.index
	}
	upTo := others()
	eventually(t, "a renewal", func() bool { return g.in.s.asOf.Load() >= upTo })
	lose(g)
	h := open(t, c, f, true)
	if h.Taken([]*File{g}) {
		t.Error("what was forgotten while the file was held counts as another's")
	}
	lose(h)
	others()
	if !open(t, c, f, true).Taken([]*File{h}) {
		t.Error("what came after does not")
	}
}
