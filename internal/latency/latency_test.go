package latency

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestBuckets: buckets follow one another without gaps, and a duration is in the one whose limits enclose it.
func TestBuckets(t *testing.T) {
	for i := range Buckets - 1 {
		end := limit(i)
		if b := bucket(end - time.Microsecond); b != i {
			t.Errorf("%v is in bucket %d, want %d", end-time.Microsecond, b, i)
		}
		if b := bucket(end); b != i+1 {
			t.Errorf("%v is in bucket %d, want %d", end, b, i+1)
		}
	}
	for d, want := range map[time.Duration]int{-1: 0, 0: 0, 15 * time.Microsecond: 0, time.Hour: Buckets - 1, 1<<63 - 1: Buckets - 1} {
		if b := bucket(d); b != want {
			t.Errorf("%v is in bucket %d, want %d", d, b, want)
		}
	}
}

// TestQuantile: quantiles are at most a quarter above those of the durations themselves, and never below.
func TestQuantile(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var r Recorder
		var all []time.Duration
		for range 1 + rng.IntN(2000) {
			d := time.Duration(rng.ExpFloat64()*float64(time.Millisecond)) + 16*time.Microsecond
			all = append(all, d)
			r.Add(d)
		}
		slices.Sort(all)
		counts := r.Take()
		if n := Count(counts); n != uint64(len(all)) {
			t.Fatalf("%d counted, want %d", n, len(all))
		}
		for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 1} {
			want := all[min(max(int(q*float64(len(all))+0.999999), 1), len(all))-1]
			if got := Quantile(counts, q); got < want || got > want*5/4+2*time.Microsecond {
				t.Errorf("quantile %v of %d: %v, want %v", q, len(all), got, want)
			}
		}
	}
	if Quantile(nil, 0.99) != 0 {
		t.Error("a quantile of nothing")
	}
}

// TestTakeAddsUp: what many goroutines count while it is taken is there once.
func TestTakeAddsUp(t *testing.T) {
	var r Recorder
	var sum []uint32
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				r.Add(time.Duration(i*(g+1)) * time.Microsecond)
			}
		})
	}
	for range 50 {
		sum = Add(sum, r.Take())
	}
	wg.Wait()
	if sum = Add(sum, r.Take()); Count(sum) != 20000 {
		t.Errorf("%d counted, want 20000", Count(sum))
	}
	if r.Take() != nil {
		t.Error("something is counted twice")
	}
	if got := Add(nil, make([]uint32, Buckets+5)); len(got) != Buckets {
		t.Errorf("%d buckets", len(got))
	}
	if n := testing.AllocsPerRun(100, func() { r.Add(time.Millisecond) }); n != 0 {
		t.Errorf("Add allocates %v times", n)
	}
}
