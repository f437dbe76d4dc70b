package client

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// TestWriteBehindTwice: bytes that are written behind again, before they were written, are what they were written last, whatever was written beside them
// meanwhile.
func TestWriteBehindTwice(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	_, f := behindOf(t, w, nil)
	const n = 1000
	want := make([]byte, 4*n)
	for round, places := range [][]int{{1, 0, 1}, {2, 3, 1, 2, 3, 1}, {3, 1, 2, 0, 3, 2, 1, 0}} {
		for i, at := range places {
			p := fill(n, byte(10*round+i))
			if !later(t, f, p, int64(at*n)) {
				t.Fatalf("round %d: write %d was not taken", round, i)
			}
			copy(want[at*n:], p)
		}
		b := &f.in.behind
		b.mu.Lock()
		for i, p := range b.parts {
			for _, o := range b.parts[:i] {
				if p.overlaps(o.off, o.end()) {
					t.Errorf("round %d: [%d, %d) and [%d, %d) are to be written, in any order", round, o.off, o.end(), p.off, p.end())
				}
			}
		}
		b.mu.Unlock()
		end := 2 * n
		if round > 0 {
			end = 4 * n
		}
		same(t, f, 0, want[:end])
	}
}

// TestWriteBehindOverLeftovers: what an append that failed has left past the end of the file is not part of it when a write further on is taken to be
// carried out later.
func TestWriteBehindOverLeftovers(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	_, f := behindOf(t, w, nil)
	leaveBehind(t, w, f)
	later(t, f, fill(100, 2), 3*maxPiece)
	same(t, f, 0, make([]byte, 3*maxPiece))
	same(t, f, 3*maxPiece, fill(100, 2))
}

// TestWriteBehindAtTheEnd: who goes on for a client, or opens the file after it was closed, finds what was written behind, though its size has been reported
// already, as by an fsync that was under way when it was written.
func TestWriteBehindAtTheEnd(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c, f := behindOf(t, w, nil)
	reported := func(p []byte) {
		t.Helper()
		if !later(t, f, p, 0) {
			t.Fatal("was not taken")
		}
		if err := f.in.flushAttr(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	reported(fill(5000, 1))
	d := handOver(t, w, c)
	g := restoreFile(t, d, f)
	d.Restored()
	same(t, g, 0, fill(5000, 1))

	w = newWorld(t, 1, 1, 1, 1)
	c, f = behindOf(t, w, nil)
	reported(fill(5000, 2))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, open(t, w.dial(t, nil), f, false), 0, fill(5000, 2))
}

// TestWriteBehindWhileItIsCut: a write that comes while the file is cut is before that or after it: it is not seen to go with it, and to come back.
func TestWriteBehindWhileItIsCut(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c, f := behindOf(t, w, nil)
	later(t, f, fill(100, 1), 0)
	var taken atomic.Bool
	w.setBefore(func(req *msg.MetaRequest) (fserr.Code, bool) {
		if s := req.GetSetAttr(); s != nil && !s.Flush {
			taken.Store(f.WriteBehind(fill(50, 2), 0))
		}
		return fserr.OK, false
	})
	if err := f.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	w.setBefore(nil)
	a, err := c.GetAttr(t.Context(), f.Ino())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if b, err := c.GetAttr(t.Context(), f.Ino()); err != nil || a.Size != b.Size {
		t.Errorf("%d bytes long, and then %d, %v; taken %t", a.Size, b.Size, err, taken.Load())
	}
	if !later(t, f, fill(50, 2), 0) {
		t.Error("nothing is taken any more")
	}
	same(t, f, 0, fill(50, 2))
}

// TestWriteBehindStepByStep compares with a model after each step of one who writes, behind and not, beside what he has written and over it, appends, cuts, makes
// longer, punches, flushes and reads, and whose mount goes on in another program now and then.
func TestWriteBehindStepByStep(t *testing.T) {
	const unit, units, steps = 500, 40, 600
	w := newWorld(t, 1, 2, 2, 1)
	rnd := rand.New(rand.NewPCG(5, 6))
	c, f := behindOf(t, w, nil)
	var model []byte
	put := func(p []byte, off int) {
		if end := off + len(p); end > len(model) {
			model = append(model, make([]byte, end-len(model))...)
		}
		copy(model[off:], p)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	taken := 0
	for n := range steps {
		at, size := rnd.IntN(units)*unit, (1+rnd.IntN(4))*unit
		p := fill(size, byte(rnd.Uint32()))
		switch k := rnd.IntN(40); {
		case k < 20:
			if later(t, f, p, int64(at)) {
				taken++
			}
			put(p, at)
		case k < 22:
			write(t, f, p, int64(at))
			put(p, at)
		case k < 24:
			_, end, err := f.WriteAt(t.Context(), p, 0, true)
			must(err)
			put(p, len(model))
			if end != int64(len(model)) {
				t.Fatalf("step %d: appended up to %d, want %d", n, end, len(model))
			}
		case k < 25: // fails when a part of it is there
			leaveBehind(t, w, f)
		case k < 28:
			must(f.Truncate(t.Context(), int64(at)))
			put(nil, at)
			clear(model[at:])
			model = model[:at]
		case k < 29:
			must(f.Fallocate(t.Context(), 0, int64(at), int64(size)))
			put(nil, at+size)
		case k < 31:
			must(f.Fallocate(t.Context(), 3, int64(at), int64(size)))
			if at < len(model) {
				clear(model[at:min(at+size, len(model))])
			}
		case k < 34:
			must(f.Fsync(t.Context(), rnd.IntN(2) == 0))
		case k < 35:
			must(c.sess.Load().flushAll(t.Context()))
		case k < 36:
			must(f.in.flushAttr(t.Context(), false))
		case k < 37 && n%4 == 0:
			d := handOver(t, w, c)
			g := restoreFile(t, d, f)
			d.Restored()
			d.o.WriteBehind = c.o.WriteBehind
			c, f = d, g
		default:
			got := read(t, f, int64(at), size)
			if want := model[min(at, len(model)):min(at+size, len(model))]; !bytes.Equal(got, want) {
				t.Fatalf("step %d: [%d, +%d): %d bytes, want %d, or others", n, at, size, len(got), len(want))
			}
		}
		if a, err := c.GetAttr(t.Context(), f.Ino()); err != nil || a.Size != uint64(len(model)) {
			t.Fatalf("step %d: %d bytes long, want %d, %v", n, a.GetSize(), len(model), err)
		}
	}
	must(f.Flush(t.Context()))
	same(t, f, 0, model)
	if taken < steps/4 {
		t.Errorf("only %d writes were taken", taken)
	}
}
