package perf

import (
	"testing"
)

func TestCheck(t *testing.T) {
	const size, run = 4096, 77
	words := newPool(1)
	block := func(s stamp) []byte {
		p := make([]byte, size)
		words.seal(p, s)
		return p
	}
	mine := func(seq uint64) []byte { return block(stamp{run: run, job: 3, block: 9, seq: seq}) }
	mix := func(a, b []byte) []byte { return append(append([]byte(nil), a[:1024]...), b[1024:]...) }
	flipped := mine(5)
	flipped[700]++
	acked := want{run: run, job: 3, block: 9, lo: 5, hi: 5}
	unsure := want{run: run, job: 3, block: 9, lo: 5, hi: 7}   // writes 6 and 7 failed
	failed := want{run: run, job: 3, block: 9, lo: 0, hi: 4}   // no write ever succeeded
	unknown := want{run: run, job: 3, block: 9, lo: 0, hi: 0}  // not written by this run
	earlier := block(stamp{run: 70, job: 3, block: 9, seq: 5}) // of another run
	zeros := make([]byte, size)

	for _, c := range []struct {
		name string
		p    []byte
		w    want
		want FaultKind
	}{
		{"as acknowledged", mine(5), acked, ""},
		{"never written", zeros, acked, Lost},
		{"the write before", mine(4), acked, Old},
		{"of an earlier run", earlier, acked, Old},
		{"half of each write", mix(mine(4), mine(5)), acked, Torn},
		{"half written", mix(mine(5), zeros), acked, Torn},
		{"half of an earlier run", mix(mine(5), earlier), acked, Torn},
		{"of another block", block(stamp{run: run, job: 3, block: 8, seq: 5}), acked, Misplaced},
		{"of another job", block(stamp{run: run, job: 2, block: 9, seq: 5}), acked, Misplaced},
		{"shifted by a sector", append(append([]byte(nil), mine(5)[512:]...), mine(5)[:512]...), acked, Misplaced},
		{"a bit flipped", flipped, acked, Corrupt},
		{"a write that was never begun", mine(8), acked, Corrupt},
		{"failed write absent", mine(5), unsure, ""},
		{"failed write present", mine(7), unsure, ""},
		{"failed write present in part", mix(mine(5), mine(6)), unsure, ""},
		{"older than acknowledged beside a failed write", mix(mine(5), mine(4)), unsure, Torn},
		{"only write failed", zeros, failed, ""},
		{"only write failed in part", mix(mine(4), zeros), failed, ""},
		{"old file under a failed write", earlier, failed, ""},
		{"unknown and intact", earlier, unknown, ""},
		{"unknown and empty", zeros, unknown, ""},
		{"unknown and torn", mix(earlier, zeros), unknown, Torn},
		{"unknown and foreign", words[:size], unknown, Corrupt},
	} {
		got, detail, _ := check(c.p, c.w)
		if got != c.want || (got == "") != (detail == "") {
			t.Errorf("%s: got %q (%s), want %q", c.name, got, detail, c.want)
		}
	}
}

func TestBlocksDiffer(t *testing.T) {
	words, seen := newPool(1), map[string]bool{}
	p := make([]byte, 512)
	for seq := range uint64(1000) {
		words.seal(p, stamp{block: int64(seq % 7), seq: seq})
		seen[string(p[stampSize:])] = true
	}
	if len(seen) < 990 {
		t.Errorf("%d different contents in 1000 writes", len(seen))
	}
}

func FuzzCheck(f *testing.F) {
	p := make([]byte, 1024)
	newPool(1).seal(p, stamp{run: 1, job: 2, block: 3, seq: 4})
	f.Add(p, uint64(4), uint64(4))
	f.Add(make([]byte, 512), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, p []byte, lo, hi uint64) {
		p = p[:len(p)/sectorSize*sectorSize]
		if len(p) == 0 || lo > hi {
			return
		}
		check(p, want{run: 1, job: 2, block: 3, lo: lo, hi: hi})
		newPool(2).seal(p, stamp{run: 1, job: 2, block: 3, seq: hi})
		if kind, detail, _ := check(p, want{run: 1, job: 2, block: 3, lo: lo, hi: hi}); kind != "" {
			t.Errorf("%s: %s", kind, detail)
		}
	})
}

// TestRenew: each write of a block is another, page by page, unless it is to be the same.
func TestRenew(t *testing.T) {
	o := &Options{RW: RandWrite, BlockSize: 3 * pageSize}
	o.setDefaults()
	j := newJob(o, 0, &file{fd: -1}, newPool(1), 1)
	p := make([]byte, o.BlockSize)
	j.ready(p, 0)
	seen := map[string]bool{}
	for seq := range uint64(100) {
		j.prepare(op{kind: opWrite, seq: seq + 1}, p)
		for at := 0; at < len(p); at += pageSize {
			if page := string(p[at : at+pageSize]); seen[page] {
				t.Fatalf("write %d has a page that was there before", seq+1)
			} else {
				seen[page] = true
			}
		}
	}
	o.Repeat = true
	before := string(p)
	if j.prepare(op{kind: opWrite, seq: 101}, p); string(p) != before {
		t.Error("the same again is not the same")
	}
}
