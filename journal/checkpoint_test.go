package journal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"varve/internal/id"
)

func state(n int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), n/16) }

func writeState(n int) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(state(n))
		return err
	}
}

func TestCheckpoints(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	if _, _, err := j.OpenCheckpoint(100); !errors.Is(err, ErrNotFound) {
		t.Fatalf("none: want ErrNotFound, got %v", err)
	}
	var want []Position
	for i, n := range []int{0, 16, 3 << 20} {
		mustAppend(t, j, records(id.Index(i*10+1), id.Index(i*10+10)))
		want = append(want, j.Last())
		ok(t, j.WriteCheckpoint(j.Last(), writeState(n)))
	}
	got, err := j.Checkpoints()
	ok(t, err)
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Fatalf("want %+v, got %+v", want, got)
	}
	for _, tt := range []struct {
		at   id.Index
		pos  Position
		size int
	}{{10, want[0], 0}, {19, want[0], 0}, {20, want[1], 16}, {29, want[1], 16}, {30, want[2], 3 << 20}, {1 << 40, want[2], 3 << 20}} {
		pos, r, err := j.OpenCheckpoint(tt.at)
		ok(t, err)
		data, err := io.ReadAll(r)
		ok(t, err)
		ok(t, r.Close())
		if pos != tt.pos || !bytes.Equal(data, state(tt.size)) {
			t.Fatalf("at %d: want %+v and %d bytes, got %+v and %d", tt.at, tt.pos, tt.size, pos, len(data))
		}
	}
	if _, _, err := j.OpenCheckpoint(9); !errors.Is(err, ErrNotFound) {
		t.Fatalf("below the first: want ErrNotFound, got %v", err)
	}
}

func TestCheckpointRefused(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	refused := errors.New("refused")
	err := j.WriteCheckpoint(j.Last(), func(w io.Writer) error {
		w.Write(state(4 << 20))
		return refused
	})
	if !errors.Is(err, refused) {
		t.Fatalf("want %v, got %v", refused, err)
	}
	if got := files(t, o.Dir); len(got) != 1 {
		t.Fatalf("want the segment only, got %v", got)
	}
	mustAppend(t, j, records(1, 1)) // the journal goes on
}

func TestReset(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 5))
	r, err := j.Reader(4)
	ok(t, err)
	defer r.Close()
	at := Position{Index: 20, Raft: 60, Chain: [16]byte{9}, Time: 20000}
	ok(t, j.WriteCheckpoint(at, writeState(32)))
	ok(t, j.Reset(at))
	ok(t, j.Reset(at)) // again does nothing
	if err := j.Reset(Position{Index: 3}); err == nil {
		t.Fatal("reset went back")
	}
	mustAppend(t, j, records(21, 40))

	for _, want := range []id.Index{4, 5, 0, 21, 22} {
		rec, err := r.Next()
		var gap *GapError
		if want == 0 {
			if !errors.As(err, &gap) || gap.Last != 5 || gap.Next != 21 {
				t.Fatalf("want a gap from 5 to 21, got %+v, %v", rec, err)
			}
			continue
		}
		ok(t, err)
		wantRecord(t, rec, record(want))
	}
	for i := id.Index(6); i <= 20; i++ {
		var gap *GapError
		if _, err := j.Reader(i); !errors.As(err, &gap) || gap.Next != 21 {
			t.Fatalf("reader at %d: want a gap, got %v", i, err)
		}
		if _, _, err := j.ReadRaw(i, 100); !errors.As(err, &gap) {
			t.Fatalf("raw at %d: want a gap, got %v", i, err)
		}
	}
	if data, next, err := j.ReadRaw(1, 1<<20); err != nil || next != 6 || len(data) == 0 {
		t.Fatalf("raw before the gap: got %d bytes, next %d, %v", len(data), next, err)
	}
	ok(t, j.Close())
	j = mustOpen(t, o)
	defer j.Close()
	wantAll(t, j, 21, 40)
	rep, err := Verify(o, nil)
	ok(t, err)
	if rep.Gaps != 1 || rep.Records != 25 {
		t.Fatalf("report: got %+v", rep)
	}
}

// TestResetInterrupted opens a journal whose process died between checkpoint and Reset.
func TestResetInterrupted(t *testing.T) {
	for _, had := range []id.Index{0, 5} {
		o := testOptions(t.TempDir())
		j := mustOpen(t, o)
		mustAppend(t, j, records(1, had))
		at := Position{Index: 20, Raft: 60, Chain: [16]byte{9}, Time: 20000}
		ok(t, j.WriteCheckpoint(at, writeState(32)))
		ok(t, j.Close())
		if _, err := Verify(o, nil); err != nil {
			t.Fatalf("had %d: %v", had, err)
		}
		j = mustOpen(t, o)
		if j.Last() != at {
			t.Fatalf("had %d: want %+v, got %+v", had, at, j.Last())
		}
		if had == 0 && j.First() != 21 {
			t.Fatalf("want 21 as first, got %d", j.First())
		}
		mustAppend(t, j, records(21, 22))
		wantAll(t, j, 21, 22)
		ok(t, j.Close())
		if rep, err := Verify(o, nil); err != nil || rep.Gaps != 1 {
			t.Fatalf("had %d: got %+v, %v", had, rep, err)
		}
	}
}

func TestCheckpointDamagedWhileRead(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	mustAppend(t, j, records(1, 1))
	ok(t, j.WriteCheckpoint(j.Last(), writeState(32)))
	mustAppend(t, j, records(2, 2))
	ok(t, j.WriteCheckpoint(j.Last(), writeState(1<<20)))
	path := filepath.Join(o.Dir, checkpointName(2))
	data, err := os.ReadFile(path)
	ok(t, err)
	for _, cut := range []int{0, 1, ckptTrailer, 1 << 19} {
		bad := bytes.Clone(data[:len(data)-cut])
		if cut == 0 {
			bad[1<<19]++
		}
		ok(t, os.WriteFile(path, bad, 0o600))
		n := 0
		ok(t, j.ReadCheckpoint(2, func(at Position, r io.Reader) error {
			n++
			if at.Index == 1 {
				data, err := io.ReadAll(r)
				ok(t, err)
				if !bytes.Equal(data, state(32)) {
					t.Fatalf("checkpoint at 1: got %d bytes", len(data))
				}
			}
			return nil
		}))
		if n != 2 {
			t.Fatalf("%d bytes cut: want the older checkpoint to be read as well, read %d", cut, n)
		}
		_, r, err := j.OpenCheckpoint(2)
		ok(t, err)
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes cut: want ErrCorrupt, got %v", cut, err)
		}
		ok(t, r.Close())
	}
}
