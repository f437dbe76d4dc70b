package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/internal/disk"
	"varve/internal/id"
)

// smallJournal makes a journal with sealed segments of several blocks, one that is full and not sealed, one in both forms, the last
// one, and two checkpoints, and closes it. Every record but those of the last append is known to be stable to a later one.
func smallJournal(t testing.TB) Options {
	t.Helper()
	o := testOptions(t.TempDir())
	o.blockBytes = 150
	j := mustOpen(t, o)
	j.o.SegmentBytes = 600
	for i := id.Index(1); i <= 16; i++ {
		mustAppend(t, j, records(i, i))
		ok(t, j.Sync())
		if i%6 == 0 {
			ok(t, j.WriteCheckpoint(j.Last(), func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "state at %d", i)
				return err
			}))
		}
		if len(j.segments) == 4 && j.segments[1].seal == nil {
			ok(t, j.seal(j.segments[0], nil))
			path := j.segments[1].path
			data, err := os.ReadFile(path)
			ok(t, err)
			ok(t, j.seal(j.segments[1], nil))
			ok(t, os.WriteFile(path, data, 0o600))
		}
	}
	for i, want := range []bool{true, true, false, false} {
		if got := i < len(j.segments) && j.segments[i].seal != nil; got != want {
			t.Fatalf("segment %d of %d: sealed: want %v, got %v", i, len(j.segments), want, got)
		}
	}
	if n := j.segments[1].seal.blocks; n < 2 {
		t.Fatalf("want several blocks, got %d", n)
	}
	ok(t, j.Close())
	return o
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	ok(t, err)
	return paths
}

// TestTornTail cuts the last record at every byte, or makes its end zeros or noise.
func TestTornTail(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 3))
	before := j.Last()
	start := int(j.active().size)
	mustAppend(t, j, records(4, 4))
	ok(t, j.Close())
	path := filepath.Join(o.Dir, segmentName(1))
	whole, err := os.ReadFile(path)
	ok(t, err)
	for _, fill := range []string{"cut", "zeros", "noise"} {
		for cut := start; cut < len(whole); cut++ {
			data := slices.Clone(whole)
			switch fill {
			case "cut":
				data = data[:cut]
			case "zeros":
				clear(data[cut:])
			case "noise":
				for i := cut; i < len(data); i++ {
					data[i] ^= byte(i*i) | 1
				}
			}
			ok(t, os.WriteFile(path, data, 0o600))
			if bytes.Equal(data, whole) {
				continue // the tail was zeros already
			}

			ro := o
			ro.ReadOnly = true
			j := mustOpen(t, ro)
			if j.Last() != before {
				t.Fatalf("%s at %d, read-only: want %+v, got %+v", fill, cut, before, j.Last())
			}
			wantAll(t, j, 1, 3)
			j.Close()
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%s at %d: read-only open changed the file", fill, cut)
			}

			j = mustOpen(t, o)
			if j.Last() != before {
				t.Fatalf("%s at %d: want %+v, got %+v", fill, cut, before, j.Last())
			}
			mustAppend(t, j, records(4, 6))
			wantAll(t, j, 1, 6)
			ok(t, j.Close())
			if rep, err := Verify(o, nil); err != nil || rep.Records != 6 || rep.Torn != 0 {
				t.Fatalf("%s at %d: after appending again: got %+v, %v", fill, cut, rep, err)
			}
		}
	}
}

// TestTornTails cuts a segment of several records, none of them known to be stable, at every byte, and puts garbage behind it.
func TestTornTails(t *testing.T) {
	d := new(disk.Faulty) // on which a sync costs nothing
	o := testOptions("journal")
	o.FS = d
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 5))
	ok(t, j.Close())
	path := filepath.Join(o.Dir, segmentName(1))
	f, err := d.Open(path, disk.ReadWrite)
	ok(t, err)
	defer f.Close()
	size, err := f.Size()
	ok(t, err)
	whole := make([]byte, size)
	ok(t, readFull(path, f, whole, 0))
	ends := []int{headerSize}
	for i := id.Index(1); i <= 5; i++ {
		r := record(i)
		ends = append(ends, ends[i-1]+int(recordSize(&r)))
	}
	try := func(data []byte, want id.Index, what string, n int) {
		t.Helper()
		ok(t, f.Truncate(0))
		_, err := f.WriteAt(data, 0)
		ok(t, err)
		j, err := Open(o)
		if err != nil {
			t.Fatalf("%s %d: %v", what, n, err)
		}
		defer j.Close()
		if j.Last().Index != want {
			t.Fatalf("%s %d: want %d as the last record, got %d", what, n, want, j.Last().Index)
		}
		mustAppend(t, j, records(want+1, 6))
		wantAll(t, j, 1, 6)
	}
	for cut := headerSize; cut <= len(whole); cut++ {
		n := 0
		for ends[n+1] <= cut && n < 4 {
			n++
		}
		if cut == len(whole) {
			n = 5
		}
		try(whole[:cut], id.Index(n), "cut to", cut)
	}
	rng := rand.New(rand.NewSource(1))
	for n := 1; n < 5000; n += 37 {
		garbage := make([]byte, n)
		if n%2 == 0 {
			rng.Read(garbage)
		}
		try(slices.Concat(whole, garbage), 5, "garbage behind", n)
	}
	// The beginning of a record that never came, and a length that is far too large.
	next := record(6)
	try(slices.Concat(whole, appendBody(nil, &next)), 5, "half a record", 0)
	try(slices.Concat(whole, []byte{0xff, 0xff, 0xff, 0xff}), 5, "length", 0)
}

// TestRearranged removes, repeats and swaps whole records, in a sealed and in the last segment.
func TestRearranged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(recs [][]byte) [][]byte
	}{
		{"remove first", func(r [][]byte) [][]byte { return r[1:] }},
		{"remove middle", func(r [][]byte) [][]byte { return slices.Delete(r, 1, 2) }},
		{"repeat", func(r [][]byte) [][]byte { return slices.Insert(r, 1, r[0]) }},
		{"repeat last", func(r [][]byte) [][]byte { return append(r, r[len(r)-1]) }},
		{"swap", func(r [][]byte) [][]byte { r[0], r[1] = r[1], r[0]; return r }},
		{"forge", func(r [][]byte) [][]byte { // a valid record with another payload
			rec := frameRecord(r[1])
			rec.Payload = slices.Clone(rec.Payload)
			rec.Payload[0]++
			b := appendBody(nil, &rec)
			r[1] = appendTrailer(b, 0, 0, newChainer().next(frameChain(r[0]), b))
			return r
		}},
	} {
		for _, which := range []string{"first", "last"} {
			t.Run(tt.name+" in "+which+" segment", func(t *testing.T) {
				o := testOptions(t.TempDir())
				j := mustOpen(t, o)
				j.o.SegmentBytes = 900
				mustAppend(t, j, records(1, 3))
				ok(t, j.begin(j.last, false))
				mustAppend(t, j, records(4, 6))
				ok(t, j.Close())
				path := filepath.Join(o.Dir, segmentName(1))
				if which == "last" {
					path = filepath.Join(o.Dir, segmentName(4))
				}
				data, err := os.ReadFile(path)
				ok(t, err)
				var recs [][]byte
				for rest := data[headerSize:]; len(rest) > 0; {
					n, err := frameSize("", 0, rest)
					ok(t, err)
					recs = append(recs, rest[:n])
					rest = rest[n:]
				}
				ok(t, os.WriteFile(path, bytes.Join(append([][]byte{data[:headerSize]}, tt.change(recs)...), nil), 0o600))
				if rep, err := Verify(o, nil); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("want ErrCorrupt, got %+v, %v", rep, err)
				}
			})
		}
	}
}

// TestDamageBelowStable checks that recovery does not cut off records that had been synced.
func TestDamageBelowStable(t *testing.T) {
	for _, synced := range []bool{true, false} {
		o := testOptions(t.TempDir())
		j := mustOpen(t, o)
		mustAppend(t, j, records(1, 4))
		if synced {
			ok(t, j.Sync())
		}
		mustAppend(t, j, records(5, 6))
		ok(t, j.Close())
		path := filepath.Join(o.Dir, segmentName(1))
		data, err := os.ReadFile(path)
		ok(t, err)
		data[headerSize] ^= 0x40 // the length of record 1
		ok(t, os.WriteFile(path, data, 0o600))
		j, err = Open(o)
		if synced && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("synced: want ErrCorrupt, got %v", err)
		}
		if !synced {
			ok(t, err)
			if j.Last() != (Position{}) {
				t.Fatalf("not synced: want an empty journal, got %+v", j.Last())
			}
			ok(t, j.Close())
		}
	}
}

// TestCheckpointHoldsRecords checks that a journal is not recovered to before its newest checkpoint.
func TestCheckpointHoldsRecords(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 4))
	ok(t, j.WriteCheckpoint(j.Last(), func(io.Writer) error { return nil }))
	ok(t, j.Close())
	path := filepath.Join(o.Dir, segmentName(1))
	ok(t, os.Truncate(path, headerSize+recOverhead))
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("want ErrCorrupt, got %v", err)
	}
	if _, err := Verify(o, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("verify: want ErrCorrupt, got %v", err)
	}
}
