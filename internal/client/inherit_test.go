package client

import (
	"errors"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// TestInherit: a flush under the next session covers what was written under the one before and not flushed, if it is told to, and says
// if that is gone.
func TestInherit(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, c, "a")
	lose := func() *File { // the session, and returns the file opened anew
		t.Helper()
		w.expire(uint64(c.Session()))
		if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 0, false); fserr.Of(err) != fserr.Stale {
			t.Fatalf("write under a lost session: %v", err)
		}
		return open(t, c, f, true)
	}
	flushes := func() (n [4]int) {
		for s := id.ServerID(1); s <= 3; s++ {
			w.cs[s].set(func() { n[s] = w.cs[s].flushes })
		}
		return n
	}
	write(t, f, fill(4096, 1), 0)
	write(t, f, fill(4096, 1), chunk.Size)
	g := lose()
	before := flushes()
	if err := g.Fsync(t.Context(), true); err != nil || flushes() != before {
		t.Fatalf("nothing was written under this session: %v, flushes %v, %v before", err, flushes(), before)
	}
	g.Inherit(f)
	g.Inherit(g) // of no effect
	if err := g.Fsync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	after := flushes()
	for s := 1; s <= 3; s++ {
		if after[s] != before[s]+2 {
			t.Errorf("cs%d flushed %d chunks, want 2", s, after[s]-before[s])
		}
	}
	if err := g.Fsync(t.Context(), true); err != nil || flushes() != after {
		t.Errorf("flushed again: %v", err)
	}

	f = g
	write(t, f, fill(4096, 3), 0)
	g = lose()
	g.Inherit(f)
	powerLoss(w, g, 0)
	if err := g.Fsync(t.Context(), true); !errors.Is(err, fserr.IO) {
		t.Errorf("every replica lost power before the flush: %v", err)
	}
	if err := g.Fsync(t.Context(), true); err != nil {
		t.Error(err)
	}
}

// TestAdopt: a flush covers what another client wrote and never flushed, once.
func TestAdopt(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	a := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, a, "a")
	write(t, f, fill(4096, 1), 0)
	write(t, f, fill(4096, 1), 3*chunk.Size)
	if err := f.Flush(t.Context()); err != nil { // the size
		t.Fatal(err)
	}
	w.expire(uint64(a.Session()))
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	g := open(t, c, f, true)
	flushes := func() (n int) {
		w.cs[2].set(func() { n = w.cs[2].flushes })
		return n
	}
	before := flushes()
	for range 2 {
		if err := g.Fsync(t.Context(), true); err != nil || flushes() != before {
			t.Fatalf("%v, flushes %d, %d before", err, flushes(), before)
		}
	}
	if err := g.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Fsync(t.Context(), true); err != nil || flushes() != before+2 {
			t.Errorf("%v, flushes %d, %d before; want two chunks flushed once", err, flushes(), before)
		}
	}
}
