package perf

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEveryFault plants hundreds of faults of every kind at random among thousands of blocks: each is found, named rightly and counted once,
// and without them nothing is found.
func TestEveryFault(t *testing.T) {
	const size, blocks, jobs, each = 4096, 2048, 2, 100
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(seed, 5))
		l, err := Open(t.Context(), Options{Target: "mount:" + t.TempDir(), RW: RandWrite, Verify: true, Size: size * blocks, Jobs: jobs})
		if err != nil {
			t.Fatal(err)
		}
		nothing := func(int64) error { return nil }
		buffer := make([]byte, layoutChunk)
		var old, now [jobs][]byte
		for i, j := range l.jobs {
			for _, to := range []*[]byte{&old[i], &now[i]} {
				if err := j.layOut(nothing, buffer); err != nil {
					t.Fatal(err)
				}
				*to = make([]byte, size*blocks)
				if _, err := unix.Pread(j.file.fd, *to, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		back := func() VerifyResult {
			r := &recorder{series: new(series)}
			if how := readBack(t.Context(), &l.o, l.jobs, r); how != "done" {
				t.Fatal(how)
			}
			return r.verify
		}
		// Blocks that are read before they are changed have been seen; of half of them that must not matter.
		type place struct{ job, block int }
		var free []place
		for job := range jobs {
			for b := range blocks {
				free = append(free, place{job, b})
			}
		}
		rng.Shuffle(len(free), func(i, k int) { free[i], free[k] = free[k], free[i] })
		take := func() (p place) { p, free = free[0], free[1:]; return p }
		content := func(from *[jobs][]byte, p place) []byte {
			return append([]byte(nil), from[p.job][p.block*size:][:size]...)
		}
		put := func(p place, b []byte) {
			if _, err := unix.Pwrite(l.jobs[p.job].file.fd, b, int64(p.block*size)); err != nil {
				t.Fatal(err)
			}
		}
		var again []place // for old writes that come back after newer ones have been read
		for range each {
			p := take()
			again = append(again, p)
			if f := l.jobs[p.job].compare(int64(p.block), content(&now, p)); f != nil {
				t.Fatal(f)
			}
		}
		if seed == 0 { // nothing is wrong yet; afterwards all has been seen, and what is old has come back
			if v := back(); v.Faults() != 0 || v.Checked != jobs*blocks {
				t.Fatalf("without faults: %+v", v)
			}
		}
		for range each {
			put(take(), make([]byte, size)) // lost
			p := take()
			put(p, content(&old, p)) // old
			p = take()
			torn, other := content(&now, p), content(&old, p)
			if rng.IntN(2) == 0 {
				clear(other)
			}
			cut := sectorSize * (1 + rng.IntN(size/sectorSize-1))
			copy(torn[cut:], other[cut:])
			put(p, torn)
			p, q := take(), take() // two writes that went to each other's place
			put(p, content(&now, q))
			put(q, content(&now, p))
			p = take() // shifted
			b := content(&now, p)
			shift := sectorSize * (1 + rng.IntN(size/sectorSize-1))
			put(p, append(b[shift:], b[:shift]...))
			p, q = take(), take() // a write that is also where it belongs
			put(p, content(&now, q))
			p = take()
			b = content(&now, p)
			b[rng.IntN(size)] ^= 1 << rng.IntN(8)
			put(p, b)
		}
		for _, p := range again {
			put(p, content(&old, p))
		}
		want := VerifyResult{Lost: each, Old: each, Torn: each, Misplaced: 3 * each, Duplicated: 2 * each, Corrupt: each}
		if seed == 0 {
			want.Old, want.Duplicated = 0, 3*each
		}
		v := back()
		if v.Lost != want.Lost || v.Old != want.Old || v.Torn != want.Torn || v.Misplaced != want.Misplaced || v.Duplicated != want.Duplicated || v.Corrupt != want.Corrupt ||
			v.Checked != jobs*blocks || v.Faults() != 9*each {
			t.Errorf("seed %d: found %+v, planted %+v", seed, v, want)
		}
		if v := back(); v.Faults() != 0 {
			t.Errorf("seed %d: found again: %+v", seed, v)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNoFault: thousands of operations that overlap in time and place are found right.
func TestNoFault(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		res := mustRun(t, Options{Target: "mount:" + t.TempDir(), Engine: e, RW: RandRW, Verify: true, Size: 2 << 20, QD: 16, Jobs: 2, FsyncEvery: 64, Dist: "zipf:0.9"})
		if v := res.Verify; !res.OK() || v.Faults() != 0 || v.Checked < 600 {
			t.Errorf("%+v", v)
		}
	})
}
