package store

import (
	"bytes"
	"errors"
	"maps"
	"math/rand"
	"testing"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

func FuzzHeader(f *testing.F) {
	b := make([]byte, slotSize)
	h := header{cluster: testCluster, chunk: 9, rec: repl.Record{Epoch: 3, State: repl.Unclean}, sequence: 7}
	h.pages[15] = 1
	h.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(b, make([]byte, slotSize)...)[:slotSize]
		if _, err := decodeHeader(b); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		seal(b) // so that what is behind the checksum is reached too
		h, err := decodeHeader(b)
		if err != nil {
			if h != (header{}) {
				t.Fatal("a partial value came with an error")
			}
			return
		}
		again := make([]byte, slotSize)
		if h.encode(again); !bytes.Equal(again, b) {
			t.Fatalf("%+v does not encode to what it was decoded from", h)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(record{kind: kindMark, marks: 5, chunk: 77}.append(nil, 3, 4), uint64(3), uint64(4))
	f.Fuzz(func(t *testing.T, b []byte, position, generation uint64) {
		b = append(b, make([]byte, recordSize)...)[:recordSize]
		r, err := decodeRecord(b, position, generation)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || r != (record{}) {
				t.Fatal(r, err)
			}
			return
		}
		if again := r.append(nil, position, generation); !bytes.Equal(again, b) {
			t.Fatalf("%+v does not encode to what it was decoded from", r)
		}
	})
}

func TestSpan(t *testing.T) {
	for lo := range uint32(chunk.Extents) {
		for hi := lo; hi < chunk.Extents; hi++ {
			for i := range uint32(chunk.Extents) {
				if got, want := span(lo, hi).has(i), lo <= i && i <= hi; got != want {
					t.Fatalf("span(%d, %d) has %d: %t", lo, hi, i, got)
				}
			}
		}
	}
}

// A torn record ends what is believed but for later marks.
func TestRegionWithGap(t *testing.T) {
	b := make([]byte, regionSize)
	encodeRegionHeader(b, testCluster, 6)
	at := b[slotSize:][:0]
	for i, r := range []record{
		{kindMark, 1, 10}, {kindMark, 2, 11}, {kindUnmark, 1, 10}, {kindMark, 4, 12}, {kindUnmark, 2, 11}, {kindMark, 8, 13},
	} {
		at = r.append(at, uint64(i), 6)
	}
	b[slotSize+3*recordSize+8]++
	g, err := decodeRegion(b)
	if err != nil || g.records != 3 || !g.gap || !maps.Equal(g.active, map[id.ChunkID]extents{11: 2, 13: 8}) {
		t.Fatalf("%+v %v", g, err)
	}
}

// The log goes round its two regions and survives crashes wherever it is: what was marked and not
// unmarked is active, and nothing is that was never marked.
func TestActivityGoesRound(t *testing.T) {
	d := new(disk.Faulty)
	must(t, d.MkdirAll("/d"))
	rng := rand.New(rand.NewSource(1))
	model, ever := map[id.ChunkID]extents{}, map[id.ChunkID]extents{}
	for range 4 {
		a, _, err := openActivity(d, "/d", testCluster, nil)
		must(t, err)
		for c, x := range model {
			if a.active[c]&x != x {
				t.Fatalf("chunk %v: %016b is active, want %016b", c, a.active[c], x)
			}
		}
		for c, x := range a.active {
			if x&^ever[c] != 0 {
				t.Fatalf("chunk %v: %016b is active, only %016b ever was", c, x, ever[c])
			}
		}
		model = maps.Clone(a.active)
		generation, stop := a.generation, rng.Intn(20000)+35000
		for range stop {
			c, x := id.ChunkID(rng.Intn(50)+1), extents(1<<rng.Intn(chunk.Extents))
			if rng.Intn(2) == 0 {
				must(t, a.mark(c, x))
				model[c] |= x
				ever[c] |= x
			} else {
				a.unmark(c, x)
				model[c] &^= x
			}
		}
		if a.generation == generation {
			t.Fatal("the log did not go round")
		}
		d.Crash(rng)
	}
}
