package store

import (
	"math/rand"
	"testing"

	"varve/cs/repl"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// TestLostPower: what is unclean after the death of a process has not lost power, until the machine boots anew; then it has, however often
// the process dies, until every chunk is in order again.
func TestLostPower(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	rng := rand.New(rand.NewSource(1))
	o.Boot = "one"
	s := mustOpen(t, o)
	open := func(boot string, lost bool) {
		t.Helper()
		d.Kill()
		o.Boot = boot
		s = mustOpen(t, o)
		if s.LostPower() != lost {
			t.Fatalf("boot %q: lost power %t, want %t", boot, s.LostPower(), lost)
		}
	}
	must(t, s.Create(1, 1))
	must(t, s.Create(2, 1))
	open("two", true) // chunks are there, of which nothing is known yet
	s.List(0, 10)
	s.noteBoot()
	if s.LostPower() {
		t.Fatal("every chunk is in order")
	}
	must(t, write(s, 1, 1, 0, random(rng, 4096)))
	open("two", false)
	open("three", true)
	open("three", true)
	s.List(0, 10)
	s.noteBoot()
	if !s.LostPower() {
		t.Fatal("a chunk is unclean")
	}
	must(t, s.AcceptAt(1, 4))
	if _, e, st, err := s.Table(1); err != nil || e != 4 || st != repl.Serving {
		t.Fatalf("epoch %v, %v, %v", e, st, err)
	}
	s.noteBoot()
	must(t, s.Close())
	open("three", false)
	o.Boot = ""
	d.Kill()
	if s = mustOpen(t, o); !s.LostPower() {
		t.Fatal("without an id nobody knows")
	}
}

// TestCopiedReplicaOutlivesItsServer: a replica whose rebuild was complete when its server died is unclean, so that it can become the truth
// if all others are gone; one whose rebuild was not is joining, and cannot.
func TestCopiedReplicaOutlivesItsServer(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	rng := rand.New(rand.NewSource(1))
	p := random(rng, 4096)
	for c := id.ChunkID(1); c <= 2; c++ {
		must(t, s.Join(c, 3))
		must(t, write(s, c, 3, 0, p))
	}
	must(t, s.Flush(1, 3))
	must(t, s.Complete(1, 3))
	must(t, s.Complete(1, 3))
	must(t, write(s, 1, 3, 4096, p))
	if _, err := read(s, 1, 3, 0, 4096); fserr.Of(err) != fserr.NotReady {
		t.Fatalf("read before the promotion: %v", err)
	}
	d.Kill()
	s = mustOpen(t, o)
	infos, _ := s.List(0, 9)
	if infos[0] != (Info{1, 3, repl.Unclean}) || infos[1] != (Info{2, 3, repl.Lost}) {
		t.Fatalf("%+v", infos)
	}
	wantCode(t, s.AcceptAt(2, 4), fserr.NotReady)
	must(t, s.AcceptAt(1, 4))
	if _, err := read(s, 1, 4, 4096, 4096); err != nil {
		t.Fatal(err)
	}
}
