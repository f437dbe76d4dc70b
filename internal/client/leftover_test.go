package client

import (
	"bytes"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire"
)

// leaveBehind has an append of 2 MiB fail that has put the first one past the end of the file.
func leaveBehind(t *testing.T, w *world, f *File) {
	t.Helper()
	for _, cs := range w.cs {
		cs.set(func() {
			cs.before = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
				if typ == wire.Write && r.Offset >= maxPiece {
					return fserr.NoSpace
				}
				return fserr.OK
			}
		})
	}
	if _, _, err := f.WriteAt(t.Context(), fill(2*maxPiece, 3), 0, true); fserr.Of(err) != fserr.NoSpace {
		t.Fatal(err)
	}
	for _, cs := range w.cs {
		cs.set(func() { cs.before = nil })
	}
	if !bytes.Contains(w.cs[1].content(f.Ino(), 0, 100<<10), fill(2*maxPiece, 3)[50000:60000]) {
		t.Fatal("the append has left nothing")
	}
}

// TestTruncateKeepsLeftoversInMind: who makes the file longer after an append has failed, or sets the size that it has, as after ENOSPC, does not find what that
// has left when the file grows over it later.
func TestTruncateKeepsLeftoversInMind(t *testing.T) {
	for _, longer := range []int64{0, 700} {
		w := newWorld(t, 1, 1, 1, 1)
		f := create(t, w.dial(t, nil), "a")
		want := fill(5000, 1)
		write(t, f, want, 0)
		leaveBehind(t, w, f)
		if err := f.Truncate(t.Context(), 5000+longer); err != nil {
			t.Fatal(err)
		}
		write(t, f, fill(100, 2), 200<<10)
		want = append(append(want, make([]byte, 200<<10-5000)...), fill(100, 2)...)
		if got := read(t, f, 0, len(want)+1); !bytes.Equal(got, want) {
			t.Errorf("made longer by %d: other bytes than were written", longer)
		}
	}
}
