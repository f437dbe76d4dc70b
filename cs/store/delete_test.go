package store

import (
	"testing"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// TestDeleteUpTo: a chunk whose epoch is above the one up to which it goes stays, also one of which no header was read yet.
func TestDeleteUpTo(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(7, 3))
	check := func(upTo id.Epoch, want bool) {
		t.Helper()
		if stays, err := s.DeleteUpTo(7, upTo); err != nil || stays != want {
			t.Fatalf("up to %v: stays %t, %v", upTo, stays, err)
		}
		if there := s.Count() == 1; there != want {
			t.Fatalf("up to %v: there %t", upTo, there)
		}
	}
	check(2, true)
	must(t, s.Close())
	s = mustOpen(t, o)
	check(2, true)
	must(t, s.Join(7, 4)) // meanwhile
	check(3, true)
	check(4, false)
	check(4, false)
	must(t, s.Create(7, 1))
	check(0, false)
	must(t, s.Create(7, 1))
	must(t, s.Close())
	// What cannot be read is of no use.
	s = mustOpen(t, o)
	must(t, s.Close())
	for off := range int64(2 * slotSize) {
		if err := d.Flip("/d/chunks/07/0000000000000007.chk", off); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, o)
	defer s.Close()
	wantCode(t, s.Flush(7, 1), fserr.IO)
	check(1, false)
}
