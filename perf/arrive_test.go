package perf

import (
	"math"
	"testing"
	"time"
)

// TestArrivals: as many operations are due as the rate says, evenly or as Poisson's distribution has them, and those not given out are
// counted exactly.
func TestArrivals(t *testing.T) {
	for _, kind := range []Arrival{Fixed, Poisson} {
		o := &Options{Rate: 10_000, Jobs: 3, Arrival: kind, Seed: 5}
		const end = 20 * time.Second
		var counts [2000]float64 // operations in each 10 ms
		total := int64(0)
		for job := range o.Jobs {
			a := newArrivals(o, job)
			want := newArrivals(o, job).before(end, math.MaxInt64)
			if got := newArrivals(o, job).before(end, 100); got != 100 {
				t.Errorf("%s: %d of at most 100", kind, got)
			}
			n, last := int64(0), time.Duration(0)
			for ; a.due < end; a.next() {
				if a.due < last {
					t.Fatalf("%s: %v after %v", kind, a.due, last)
				}
				last = a.due
				counts[a.due/(end/2000)]++
				if n++; n%50_000 == 0 {
					if left := a.before(end, math.MaxInt64); left != want-n+1 {
						t.Errorf("%s: after %d operations %d are left, want %d", kind, n-1, left, want-n+1)
					}
				}
			}
			if n != want {
				t.Errorf("%s: %d operations, before says %d", kind, n, want)
			}
			total += n
		}
		if math.Abs(float64(total)-200_000) > 2500 {
			t.Errorf("%s: %d operations in %v", kind, total, end)
		}
		mean, variance := float64(total)/2000, 0.0
		for _, c := range counts {
			variance += (c - mean) * (c - mean) / 2000
		}
		// The variance of Poisson's distribution is its mean.
		if ratio := variance / mean; kind == Fixed && ratio > 0.05 || kind == Poisson && (ratio < 0.85 || ratio > 1.15) {
			t.Errorf("%s: variance %.2f times the mean", kind, ratio)
		}
	}
}
