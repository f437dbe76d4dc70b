package store

import (
	"bytes"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// eventually waits until ok, for a long time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// fillChunks makes n chunks with a megabyte in the first and in the third extent.
func fillChunks(t testing.TB, s *Store, n int) {
	t.Helper()
	p := random(rand.New(rand.NewSource(5)), 1<<20)
	for c := id.ChunkID(1); c <= id.ChunkID(n); c++ {
		must(t, s.Create(c, 1))
		must(t, write(s, c, 1, 0, p))
		must(t, write(s, c, 1, 2*chunk.ExtentSize, p))
	}
}

// A pass finds every bad block, in chunks that are in memory and in those that are not, which it leaves where they are.
func TestScrubFinds(t *testing.T) {
	kindsOfBad(t, func(t *testing.T, o Options, spoil func(id.ChunkID, uint32), _ fserr.Code) {
		o.ScrubDelay = -1
		s := mustOpen(t, o)
		fillChunks(t, s, 5)
		must(t, s.Close())
		spoil(1, 7)
		spoil(2, 2*pageSums+255)
		spoil(2, 2*pageSums+3)
		spoil(5, 0)
		s = mustOpen(t, o)
		_, err := read(s, 5, 1, 4096, 4096) // into memory
		must(t, err)
		must(t, s.SetScrub(maxScrubRate, true))
		eventually(t, "the end of a pass", func() bool { return s.ScrubStat().Passes == 1 })
		if got, want := badOf(s), "1/7 2/2051 2/2303 5/0"; got != want {
			t.Fatalf("in quarantine: %s, want %s", got, want)
		}
		st := s.ScrubStat()
		if st.Found != 4 || st.Chunks != 5 || st.Bytes < 10<<20 || st.Running || st.Passed.IsZero() {
			t.Fatalf("%+v", st)
		}
		if n := len(s.open); n != 1 {
			t.Fatalf("%d chunks are in memory after the pass, want 1", n)
		}
		// Nothing new in a second pass.
		must(t, s.SetScrub(-1, true))
		eventually(t, "the end of the second pass", func() bool { return s.ScrubStat().Passes == 2 })
		if st := s.ScrubStat(); st.Found != 0 || st.Rate != maxScrubRate {
			t.Fatalf("%+v", st)
		}
		must(t, s.Close())
		s = mustOpen(t, o)
		if st := s.ScrubStat(); st.Passes != 2 || st.Passed.IsZero() || st.Rate != maxScrubRate {
			t.Fatalf("after a restart: %+v", st)
		}
		must(t, s.Close())
	})
}

// A pass goes on after a restart where it was, and keeps to its rate.
func TestScrubResumes(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.ScrubDelay = -1
		s := mustOpen(t, o)
		const chunks, rate = 6, 4 << 20
		fillChunks(t, s, chunks)
		must(t, s.Close())
		flip(t, o, chunks, 0, 5)
		start := time.Now()
		s = mustOpen(t, o)
		must(t, s.SetScrub(rate, true))
		begun := s.ScrubStat().Begun
		eventually(t, "two chunks", func() bool { return s.ScrubStat().Chunks >= 2 })
		if st := s.ScrubStat(); time.Since(start).Seconds() < 0.5*float64(st.Bytes-1<<20)/rate {
			t.Errorf("%d bytes after %v at a rate of %d bytes/s", st.Bytes, time.Since(start), rate)
		}
		must(t, s.SetScrub(1<<20, false)) // the pass is not to end before the store is closed
		must(t, s.Close())
		s = mustOpen(t, o)
		st := s.ScrubStat()
		if !st.Running || st.Chunks < 2 || st.Chunks == chunks || !st.Begun.Equal(begun) || st.Done < 0.2 || st.Done > 1 {
			t.Fatalf("after a restart: %+v", st)
		}
		must(t, s.SetScrub(maxScrubRate, false))
		eventually(t, "the end of the pass", func() bool { return s.ScrubStat().Passes == 1 })
		if st = s.ScrubStat(); st.Found != 1 || st.Chunks != chunks || st.Bytes > chunks*(2<<20+metaSize)+2<<20 {
			t.Fatalf("at the end: %+v", st)
		}
		// Off stays off.
		must(t, s.SetScrub(0, true))
		must(t, s.Close())
		s = mustOpen(t, o)
		if st := s.ScrubStat(); st.Rate != 0 || !st.Running {
			t.Fatalf("%+v", st)
		}
		must(t, s.Close())
	})
}

// The scrub waits for guests, but not for ever.
func TestScrubWaitsForGuests(t *testing.T) {
	o := testOptions(new(disk.Faulty), "/d")
	var busy atomic.Bool
	o.ScrubDelay, o.Busy = -1, busy.Load
	busy.Store(true)
	s := mustOpen(t, o)
	fillChunks(t, s, 2)
	start := time.Now()
	must(t, s.SetScrub(32<<20, true)) // 32 ms a megabyte, of which there are 4
	eventually(t, "that it waits", func() bool { return s.ScrubStat().Waiting })
	eventually(t, "the end of the pass", func() bool { return s.ScrubStat().Passes == 1 })
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("the pass took %v beside guests, 125 ms at its full rate", took)
	}
	must(t, s.Close())
}

// Writes, punches, eviction and settling beside the scrub are no bit rot.
func TestScrubBesideWrites(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.ScrubDelay, o.SettleEvery, o.MaxOpen, o.MaxActive = -1, time.Millisecond, 3, 2
		s := mustOpen(t, o)
		const chunks = 8
		for c := id.ChunkID(1); c <= chunks; c++ {
			must(t, s.Create(c, 1))
		}
		must(t, s.SetScrub(maxScrubRate, true))
		stop := make(chan struct{})
		var work sync.WaitGroup
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					if !s.ScrubStat().Running {
						if err := s.SetScrub(-1, true); err != nil {
							t.Error(err)
						}
					}
				}
			}
		})
		for w := range 3 {
			work.Go(func() {
				rng := rand.New(rand.NewSource(int64(w)))
				for range 120 {
					c, off := id.ChunkID(rng.Intn(chunks)+1), uint32(rng.Intn(64))*chunk.BlockSize
					p := bytes.Repeat([]byte{byte(rng.Intn(256))}, rng.Intn(3*chunk.BlockSize)+1)
					var err error
					switch rng.Intn(4) {
					case 0:
						err = s.Punch(c, 1, off, off+uint32(len(p)))
					case 1:
						_, err = read(s, c, 1, off, chunk.BlockSize)
					default:
						err = write(s, c, 1, off+7, p)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		eventually(t, "two passes", func() bool { return s.ScrubStat().Passes >= 2 })
		close(stop)
		work.Wait()
		if got := badOf(s); got != "" {
			t.Fatalf("in quarantine: %s", got)
		}
		must(t, s.Close())
	})
}

// The space of the chunks is what the filesystem says, also after punches, evictions and a crash.
func TestUsageIsExact(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.CountAfter = 1
		s := mustOpen(t, o)
		exact := func(when string) {
			t.Helper()
			var u Usage
			eventually(t, "count of the chunks", func() bool {
				var err error
				u, err = s.Usage()
				must(t, err)
				return u.Uncounted == 0
			})
			var want int64
			for _, c := range s.ids {
				fi, err := o.FS.Stat(s.pathOf(c))
				must(t, err)
				n, ok := disk.Allocated(fi)
				if !ok {
					t.Fatal("the size is not known")
				}
				want += n
			}
			if u.Allocated != uint64(want) || u.Chunks != len(s.ids) {
				t.Fatalf("%s: %d bytes of %d chunks are allocated, the files say %d of %d", when, u.Allocated, u.Chunks, want, len(s.ids))
			}
			if u.Reserved == 0 || u.Free == 0 || u.Total < u.Free+u.Reserved {
				t.Fatalf("%s: %+v", when, u)
			}
		}
		exact("empty")
		fillChunks(t, s, 12) // more than are open at once
		exact("after writes")
		before, err := s.Usage()
		must(t, err)
		must(t, s.Punch(3, 1, 0, 1<<20))
		must(t, s.Punch(12, 1, 0, 1<<20))
		exact("after punches")
		if after, err := s.Usage(); err != nil || before.Allocated-after.Allocated != 2<<20 {
			t.Fatalf("two holes of a megabyte gave back %d bytes, %v", before.Allocated-after.Allocated, err)
		}
		must(t, s.Delete(1))
		must(t, s.Delete(11))
		must(t, s.Delete(10))
		must(t, s.Join(10, 2))
		exact("after deletions")
		if d, ok := o.FS.(*disk.Faulty); ok {
			must(t, write(s, 5, 1, 4<<20, make([]byte, 1<<20)))
			d.PowerOff()
			s.Close()
			d.Crash(rand.New(rand.NewSource(1)))
			s = mustOpen(t, o)
			exact("after a crash")
		}
		must(t, s.Close())
		s = mustOpen(t, o)
		exact("after a restart")
		must(t, s.Close())
	})
}
