package perf

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// TestSearch finds what a queue can do whose latencies are known: those of M/M/1, whose p-th percentile is -ln(1-p)/(service rate - rate).
func TestSearch(t *testing.T) {
	b := Budget{99, 10 * time.Millisecond}
	for _, service := range []float64{1000, 48_000, 3e6} {
		for _, first := range []float64{0, 10, 1e6} {
			queue := func(rate float64) (Step, *Result, error) {
				s := Step{Rate: rate, Latency: time.Hour}
				if rate < service {
					s.Latency = time.Duration(-math.Log(0.01) / (service - rate) * 1e9)
				}
				s.Held = s.Latency <= b.Latency
				return s, &Result{}, nil
			}
			f, err := search(t.Context(), first, b, queue, nil)
			want := service + math.Log(0.01)/b.Latency.Seconds()
			if err != nil || f.Rate > want || f.Rate < want/searchFine || f.Best == nil || len(f.Steps) > 40 {
				t.Errorf("service %v from %v: %v after %d steps, want just below %v: %v", service, first, f.Rate, len(f.Steps), want, err)
			}
		}
	}
	never := func(rate float64) (Step, *Result, error) { return Step{Rate: rate}, nil, nil }
	if f, err := search(t.Context(), 0, b, never, nil); err != nil || f.Rate != 0 || f.Best != nil || len(f.Steps) > 10 {
		t.Errorf("what never holds: %+v, %v", f, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	f, err := search(ctx, 0, b, func(rate float64) (Step, *Result, error) {
		if n++; n == 3 {
			cancel()
		}
		return Step{Rate: rate, Held: true}, &Result{}, nil
	}, nil)
	if err != nil || f.Stopped != cancelled || f.Rate != 200 {
		t.Errorf("cancelled: %+v, %v", f, err)
	}
	if _, err := search(t.Context(), 0, b, func(float64) (Step, *Result, error) { return Step{}, nil, errors.New("gone") }, nil); err == nil {
		t.Error("a target that is not there")
	}
}

// TestSearchReal searches on the null target, which holds what the generator can do.
func TestSearchReal(t *testing.T) {
	var told int
	var f *Found
	var err error
	for range 10 { // a machine that stands still may hold no rate at all
		told = 0
		f, err = Search(t.Context(), Options{Duration: 60 * time.Millisecond, Rate: 5000, QD: 16}, Budget{50, 50 * time.Millisecond}, func(Step) { told++ })
		if err != nil || f.Rate > 0 {
			break
		}
	}
	if err != nil || f.Rate <= 0 || told != len(f.Steps) || f.Best == nil || f.Best.Total.Count == 0 { // a busy machine may hold less than the first rate
		t.Fatalf("%v: %+v", err, f)
	}
	var b strings.Builder
	if err := f.WriteText(&b); err != nil || !strings.Contains(b.String(), "p50 within 50ms: up to") {
		t.Errorf("%v: %s", err, b.String())
	}
	for _, bad := range []Budget{{0, 1}, {100, 1}, {99, 0}} {
		if _, err := Search(t.Context(), Options{Duration: 1}, bad, nil); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
