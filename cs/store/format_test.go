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

// A missing record ends what is believed but for later marks, and one that no loss of power leaves so is damage.
func TestRegionWithGap(t *testing.T) {
	b := make([]byte, regionSize)
	encodeRegionHeader(b, testCluster, 6)
	at := b[slotSize:][:0]
	for i, r := range []record{
		{kindMark, 1, 10}, {kindMark, 2, 11}, {kindUnmark, 1, 10}, {kindMark, 4, 12}, {kindUnmark, 2, 11}, {kindMark, 8, 13},
	} {
		at = r.append(at, uint64(i), 6)
	}
	want := map[id.ChunkID]extents{11: 2, 13: 8}
	slot := func(i int) []byte { return b[slotSize+i*recordSize:][:recordSize] }
	for _, change := range []func([]byte){
		func(p []byte) { p[8]++ },
		func(p []byte) { clear(p) },
		func(p []byte) { record{kindMark, 4, 12}.append(p[:0], 3, 5) },
		func(p []byte) { record{kindMark, 4, 12}.append(p[:0], 4, 6) },
		func(p []byte) { record{kindMark, 4, 12}.append(p[:0], 3, 8) },
	} {
		change(slot(3))
		g, err := decodeRegion(b)
		if err != nil || g.records != 3 || !g.gap || !errors.Is(g.damage, ErrCorrupt) || !maps.Equal(g.active, want) {
			t.Fatalf("%+v %v", g, err)
		}
	}
	// A whole sector that is missing may never have been written.
	clear(slot(3))
	copy(b[slotSize+512:], record{kindMark, 8, 13}.append(nil, sectorRecords, 6))
	clear(slot(4))
	clear(slot(5))
	if g, err := decodeRegion(b); err != nil || g.records != 3 || !g.gap || g.damage != nil || !maps.Equal(g.active, want) {
		t.Fatalf("%+v %v", g, err)
	}
	slot(7)[0]++ // of an end that looks like one
	if g, err := decodeRegion(b); err != nil || !errors.Is(g.damage, ErrCorrupt) {
		t.Fatalf("%+v %v", g, err)
	}
}

// A header of the log that the disk lost, or that something else was written over, loses no mark.
func TestActivityWithoutHeader(t *testing.T) {
	for name, damage := range map[string]func(head []byte){
		"overwritten":   func(head []byte) { copy(head, random(rand.New(rand.NewSource(1)), slotSize)) },
		"never written": func(head []byte) { encodeRegionHeader(head, testCluster, 1) },
		"zeros":         func(head []byte) { clear(head) },
	} {
		d := new(disk.Faulty)
		must(t, d.MkdirAll("/d"))
		a, _, err := openActivity(d, "/d", testCluster, nil) // generation 2
		must(t, err)
		must(t, a.mark(7, 1))
		d.Kill()
		a, _, err = openActivity(d, "/d", testCluster, nil)
		must(t, err)
		must(t, a.mark(8, 2)) // generation 3 only
		a.unmark(7, 1)
		must(t, a.sync())
		d.Kill()
		f, err := d.Open("/d/active.log", disk.ReadWrite)
		must(t, err)
		head := make([]byte, slotSize)
		_, err = f.ReadAt(head, int64(a.generation%2)*regionSize)
		must(t, err)
		damage(head)
		_, err = f.WriteAt(head, int64(a.generation%2)*regionSize)
		must(t, err)
		d.Kill()
		a, rebuilt, err := openActivity(d, "/d", testCluster, nil)
		must(t, err)
		if rebuilt || a.active[8] != 2 || a.active[7] != 1 {
			t.Errorf("%s: rebuilt %t, active %v", name, rebuilt, a.active)
		}
		d.Kill()
		// With its first records as well there is nothing to go by.
		f, err = d.Open("/d/active.log", disk.ReadWrite)
		must(t, err)
		_, err = f.WriteAt(random(rand.New(rand.NewSource(2)), slotSize+recordSize), int64(a.generation%2)*regionSize)
		must(t, err)
		d.Kill()
		a, rebuilt, err = openActivity(d, "/d", testCluster, []id.ChunkID{7, 8, 9})
		must(t, err)
		if !rebuilt || len(a.active) != 3 || a.active[9] != allExtents {
			t.Errorf("%s, and records: rebuilt %t, active %v", name, rebuilt, a.active)
		}
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
