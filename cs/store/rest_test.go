package store

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand"
	"path/filepath"
	"testing"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// TestLostActivityLogOfManyChunks: a store whose log is lost starts with every chunk unclean, also if it has more than a log can mark, and after
// each further crash, until they are settled.
func TestLostActivityLogOfManyChunks(t *testing.T) {
	was, kept := mostMarked, keepMarked
	mostMarked, keepMarked = 5, 2
	defer func() { mostMarked, keepMarked = was, kept }()
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	rng := rand.New(rand.NewSource(1))
	const n = 9
	data := make([][]byte, n+1)
	for c := id.ChunkID(1); c <= n; c++ {
		must(t, s.Create(c, 4))
		data[c] = random(rng, chunk.BlockSize)
		must(t, write(s, c, 4, 0, data[c]))
	}
	must(t, s.Close())
	must(t, d.Remove("/d/active.log"))
	unclean := func(want int) {
		t.Helper()
		infos, _ := s.List(0, 100)
		got := 0
		for _, i := range infos {
			if i.State == repl.Unclean {
				got++
			}
		}
		if len(infos) != n || got != want {
			t.Fatalf("%d of %d chunks are unclean, want %d of %d", got, len(infos), want, n)
		}
	}
	crash := func() {
		s.Abandon()
		d.Kill()
		s = mustOpen(t, o)
	}
	s = mustOpen(t, o)
	unclean(n)
	crash()
	unclean(n)
	// A block changed behind the table's back is taken as it is on the disk, in a listed chunk too.
	other := random(rng, chunk.BlockSize)
	f, err := d.Open(s.pathOf(n), disk.ReadWrite)
	must(t, err)
	_, err = f.WriteAt(other, dataOffset)
	must(t, err)
	data[n] = other
	for c := id.ChunkID(1); c <= n; c++ {
		must(t, s.Accept(c))
	}
	// A damaged list makes all of them unclean.
	must(t, d.Flip(filepath.Join("/d", restName), restHead+3))
	crash()
	unclean(n)
	if list, err := readRest(d, "/d", o.Cluster); err != nil || len(list) != n {
		t.Fatalf("%d chunks listed, %v", len(list), err)
	}
	for c := id.ChunkID(1); c <= n; c++ {
		must(t, s.Accept(c))
		p := data[c]
		got, err := read(s, c, 4, 0, chunk.BlockSize)
		must(t, err)
		if !bytes.Equal(got, p) {
			t.Fatalf("chunk %v holds other bytes", c)
		}
		must(t, write(s, c, 4, chunk.BlockSize, p))
	}
	must(t, s.Close())
	if _, err := d.Stat(filepath.Join("/d", restName)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the list is still there: %v", err)
	}
	if r, err := Check(t.Context(), o, CheckOptions{}); err != nil || r.Count != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	s = mustOpen(t, o)
	unclean(0)
	must(t, s.Close())
}
