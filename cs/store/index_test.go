package store

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"

	"varve/cs/repl"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// onDisk returns what the header of a chunk says, and whether it is readable.
func onDisk(t testing.TB, o Options, c id.ChunkID) (repl.Record, bool) {
	t.Helper()
	f, err := o.FS.Open((&Store{o: o}).pathOf(c), disk.ReadOnly)
	must(t, err)
	defer f.Close()
	b := make([]byte, 2*slotSize)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	h, err := newestHeader(b)
	return h.rec, err == nil
}

// Whatever the index tells after a crash is what the headers say.
func TestIndexIsRight(t *testing.T) {
	told := 0
	for seed := range int64(12) {
		rng := rand.New(rand.NewSource(seed))
		d := new(disk.Faulty)
		o := testOptions(d, "/d")
		s := mustOpen(t, o)
		epoch := id.Epoch(1)
		for round := range 6 {
			for c, e := range s.chunks {
				if e.known && e.indexed {
					told++
					if rec, ok := onDisk(t, o, c); !ok || rec != e.rec {
						t.Fatalf("seed %d, round %d: the index says %+v of chunk %v, its header %+v", seed, round, e.rec, c, rec)
					}
				}
			}
			left := rng.Intn(400) + 5
			if rng.Intn(3) > 0 {
				d.Inject(func(disk.Op) error {
					if left--; left < 0 {
						return disk.ErrPowerOff
					}
					return nil
				})
			}
			for range rng.Intn(40) {
				c := id.ChunkID(rng.Intn(6) + 1)
				epoch++
				switch rng.Intn(8) {
				case 0:
					_ = s.Create(c, epoch)
				case 1:
					_ = s.Delete(c)
				case 2:
					_ = s.Adopt(c, epoch)
				case 3:
					if s.Join(c, epoch) == nil && rng.Intn(2) == 0 {
						_ = s.Promote(c, epoch)
					}
				case 4:
					_ = s.Accept(c)
				case 5:
					_, _ = s.Settle(2)
				default:
					if e := s.find(c); e != nil {
						_ = write(s, c, e.rep.Epoch, uint32(rng.Intn(10000)), []byte("x"))
					}
				}
			}
			s.Close()
			if rng.Intn(3) == 0 {
				d.Kill()
			} else {
				d.Crash(rng)
			}
			s = mustOpen(t, o)
		}
		must(t, s.Close())
	}
	if told == 0 {
		t.Fatal("the index never told of a chunk")
	}
}

// After a clean stop nothing of the chunk files is read before somebody wants a chunk, and only what changed is after a crash.
func TestStartReadsNoChunks(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	for c := id.ChunkID(1); c <= 40; c++ {
		must(t, s.Create(c, id.Epoch(c)))
	}
	must(t, s.Close())
	start := func(want int) *Store {
		t.Helper()
		opened := make(map[string]bool)
		d.Inject(func(op disk.Op) error {
			if op.Kind == disk.OpOpen && strings.HasSuffix(op.Path, ".chk") {
				opened[op.Path] = true
			}
			return nil
		})
		s := mustOpen(t, o)
		infos, more := s.List(0, 100)
		d.Inject(nil)
		if len(infos) != 40 || more {
			t.Fatalf("%d chunks listed", len(infos))
		}
		for i, in := range infos {
			if in.State != repl.Serving || in.ID != id.ChunkID(i+1) || in.Epoch < id.Epoch(in.ID) {
				t.Fatalf("%+v", in)
			}
		}
		if len(opened) != want {
			t.Fatalf("%d chunk files were opened at the start, want %d", len(opened), want)
		}
		return s
	}
	s = start(0)
	must(t, s.Adopt(7, 100))
	must(t, s.Adopt(7, 101))
	must(t, s.Adopt(9, 100))
	must(t, s.Delete(40))
	must(t, s.Create(40, 50)) // the same id again
	d.Kill()
	s = start(3)
	must(t, s.Close())
	must(t, start(0).Close())
}

// A damaged index, or log of it, is removed, and the headers are read.
func TestDamagedIndex(t *testing.T) {
	for _, name := range []string{"index 3", "index 4100", "index.log 40", "index.log 3", "gone index", "gone index.log"} {
		t.Run(name, func(t *testing.T) {
			d := new(disk.Faulty)
			o := testOptions(d, "/d")
			s := mustOpen(t, o)
			must(t, s.Create(1, 7))
			must(t, s.Create(2, 7))
			must(t, s.Close())
			s = mustOpen(t, o)
			must(t, s.Adopt(1, 8))
			must(t, s.Adopt(2, 8))
			d.Kill()
			var file string
			var off int64
			if n, _ := fmt.Sscanf(name, "%s %d", &file, &off); n == 2 {
				must(t, d.Flip("/d/"+file, off))
			} else {
				must(t, d.Remove("/d/"+strings.TrimPrefix(name, "gone ")))
			}
			for range 2 {
				s = mustOpen(t, o)
				infos, _ := s.List(0, 10)
				if len(infos) != 2 || infos[0].Epoch != 8 || infos[1].Epoch != 8 {
					t.Fatalf("%+v", infos)
				}
				must(t, s.Close())
			}
			must(t, d.Flip("/d/chunks/01/0000000000000001.chk", 40))
			must(t, d.Flip("/d/chunks/01/0000000000000001.chk", slotSize+40))
			s = mustOpen(t, o)
			// The index does not know that the header is gone. Whoever wants the chunk finds out, and so does the leader then.
			_, err := read(s, 1, 8, 0, 4096)
			wantCode(t, err, fserr.IO)
			if bad := s.BadChunks(5); len(bad) != 1 || bad[0] != 1 {
				t.Fatal(bad)
			}
			must(t, s.Close())
			s = mustOpen(t, o)
			if infos, _ := s.List(0, 10); infos[0].State != repl.Lost || infos[1].State != repl.Serving {
				t.Fatalf("%+v", infos)
			}
			must(t, s.Join(1, 9))
			must(t, s.Promote(1, 9))
			if bad := s.BadChunks(5); len(bad) != 0 {
				t.Fatal(bad)
			}
			must(t, s.Close())
		})
	}
}

// A header that changed behind the store's back counts.
func TestIndexIsNotBelievedAgainstAHeader(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := mustOpen(t, o)
		must(t, s.Create(1, 7))
		must(t, s.Close())
		f, err := o.FS.Open((&Store{o: o}).pathOf(1), disk.ReadWrite)
		must(t, err)
		b := make([]byte, 2*slotSize)
		_, err = f.ReadAt(b, 0)
		must(t, err)
		h, err := newestHeader(b)
		must(t, err)
		h.rec.Epoch, h.sequence = 9, h.sequence+1
		h.encode(b)
		_, err = f.WriteAt(b[:slotSize], int64((h.sequence-1)%2)*slotSize)
		must(t, err)
		must(t, f.Close())
		s = mustOpen(t, o)
		err = write(s, 1, 7, 0, []byte("x"))
		wantCode(t, err, fserr.StaleEpoch)
		must(t, write(s, 1, 9, 0, []byte("x")))
		must(t, s.Close())
	})
}
