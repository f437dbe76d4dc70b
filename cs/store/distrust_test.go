package store

import (
	"bytes"
	"math/rand"
	"testing"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// TestDistrust loses writes behind the store's back, as a lost journal does: no block is served before a rebuild, and the checksums
// are those of what is on the disk.
func TestDistrust(t *testing.T) {
	fsys := new(disk.Faulty)
	o := testOptions(fsys, "/d")
	rng := rand.New(rand.NewSource(1))
	s := mustOpen(t, o)
	old, lost := random(rng, chunk.BlockSize), random(rng, chunk.BlockSize)
	for c := id.ChunkID(1); c <= 3; c++ {
		must(t, s.Create(c, 5))
		must(t, write(s, c, 5, 0, old))
		must(t, write(s, c, 5, chunk.ExtentSize, lost))
	}
	must(t, s.Close())
	for c := id.ChunkID(1); c <= 3; c++ {
		f, err := fsys.Open(s.pathOf(c), disk.ReadWrite)
		must(t, err)
		_, err = f.WriteAt(old, place(chunk.ExtentSize/chunk.BlockSize)) // the newer write never came here
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	for range 2 { // again, as after an interruption
		n, err := Distrust(o)
		must(t, err)
		if n != 3 {
			t.Fatalf("%d chunks, want 3", n)
		}
	}
	s = mustOpen(t, o)
	defer s.Close()
	infos, _ := s.List(0, 10)
	for _, i := range infos {
		if i.State != repl.Lost || i.Epoch != 5 {
			t.Fatalf("chunk %v is %v at epoch %v, want lost at 5", i.ID, i.State, i.Epoch)
		}
	}
	_, err := read(s, 1, 5, 0, chunk.BlockSize)
	wantCode(t, err, fserr.NotReady)
	must(t, s.Join(1, 6))
	sums, _, _, err := s.Table(1)
	must(t, err)
	if want := chunk.Sum(old); sums[0] != want || sums[chunk.ExtentSize/chunk.BlockSize] != want {
		t.Fatalf("checksums %08x and %08x, want those of what is on the disk, %08x", sums[0], sums[chunk.ExtentSize/chunk.BlockSize], want)
	}
	if _, err := s.RepairWrite(1, 6, chunk.ExtentSize/chunk.BlockSize, lost, chunk.AppendSums(nil, 0, lost)); err != nil {
		t.Fatal(err)
	}
	must(t, s.Promote(1, 6))
	got, err := read(s, 1, 6, chunk.ExtentSize, chunk.BlockSize)
	must(t, err)
	if !bytes.Equal(got, lost) {
		t.Fatal("the repaired block differs")
	}
}

// TestDistrustTable is for more chunks than the activity log takes: the checksums are made at once.
func TestDistrustTable(t *testing.T) {
	fsys := new(disk.Faulty)
	o := testOptions(fsys, "/d")
	s := mustOpen(t, o)
	rng := rand.New(rand.NewSource(1))
	old := random(rng, chunk.BlockSize)
	must(t, s.Create(1, 1))
	must(t, write(s, 1, 1, 0, random(rng, chunk.BlockSize)))
	must(t, s.Close())
	f, err := fsys.Open(s.pathOf(1), disk.ReadWrite)
	must(t, err)
	_, err = f.WriteAt(old, dataOffset)
	must(t, err)
	d := &Store{o: s.o}
	must(t, d.distrustFile(f, 1, newStage(), true))
	must(t, f.Close())
	s = mustOpen(t, o)
	defer s.Close()
	sums, _, st, err := s.Table(1)
	must(t, err)
	if st != repl.Lost || sums[0] != chunk.Sum(old) || sums[1] != chunk.Hole {
		t.Fatalf("%v, checksums %08x and %08x, want lost, %08x and a hole", st, sums[0], sums[1], chunk.Sum(old))
	}
}
