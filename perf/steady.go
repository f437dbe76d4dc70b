package perf

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Steady says when a load has settled, as SNIA's Solid State Storage Performance Test Specification does (2.0.2, section 2.1.24, "steady state"): over a
// window of rounds the highest and the lowest throughput differ by at most Range of their average, and the straight line that fits
// them best rises or falls by at most Slope of it.
type Steady struct {
	Rounds int           `json:"rounds,omitempty"` // of the window; 0: it is not looked for
	Round  time.Duration `json:"round_ns,omitempty"`
	Range  float64       `json:"range_percent,omitempty"`
	Slope  float64       `json:"slope_percent,omitempty"`
}

// Defaults of Steady, those of the specification but for the length of a round, which is a minute there.
const (
	SteadyRounds = 5
	SteadyRound  = 5 * time.Second
	SteadyRange  = 20.0
	SteadySlope  = 10.0

	maxSteadyRounds = 1000
)

// steadyRounds is how many of the newest rounds a result has.
const steadyRounds = 1000

func (s *Steady) setDefaults() {
	if s.Rounds == 0 {
		return
	}
	if s.Round == 0 {
		s.Round = SteadyRound
	}
	if s.Range == 0 {
		s.Range = SteadyRange
	}
	if s.Slope == 0 {
		s.Slope = SteadySlope
	}
}

func (s *Steady) window() time.Duration { return time.Duration(s.Rounds) * s.Round }

func (s *Steady) validate(o *Options) error {
	if *s == (Steady{}) {
		return nil
	}
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("steady state: "+format, args...))
		}
	}
	check(s.Rounds >= 2 && s.Rounds <= maxSteadyRounds, "%d rounds: want 2 to %d", s.Rounds, maxSteadyRounds)
	check(s.Round >= time.Second && s.Round%time.Second == 0 && s.Round <= maxDuration, "a round of %v: want whole seconds", s.Round)
	check(s.Range > 0 && s.Range <= 1000, "range %v %%: want more than 0", s.Range)
	check(s.Slope > 0 && s.Slope <= 1000, "slope %v %%: want more than 0", s.Slope)
	check(o.Ramp%time.Second == 0, "a ramp of %v: want whole seconds", o.Ramp)
	check(len(faults) > 0 || o.Duration >= s.window(), "a window of %v does not fit into %v", s.window(), o.Duration)
	return errors.Join(faults...)
}

// SteadyResult says whether the load settled, and what it did then.
type SteadyResult struct {
	Reached bool `json:"reached"`
	// At is the end of the window in which it had settled, or of the last one that was looked at, since the start of the load.
	At time.Duration `json:"at_ns"`
	// Range and Slope are those of that window, in percent of the average.
	Range float64 `json:"range_percent"`
	Slope float64 `json:"slope_percent"`
	// Rounds are the operations a second of each round, from the end of the ramp on; of a long run the newest.
	Rounds []float64 `json:"rounds"`
	// Window is what was done in the window, nil if there was none.
	Window *Operations `json:"window,omitempty"`
}

// steadyWatch is fed with the operations of each second of a run.
type steadyWatch struct {
	s       Steady
	ramp    time.Duration
	seconds time.Duration // of the round
	sum     int64
	res     SteadyResult
}

func newSteadyWatch(o *Options) *steadyWatch {
	if o.Steady.Rounds == 0 {
		return nil
	}
	return &steadyWatch{s: o.Steady, ramp: o.Ramp}
}

// add takes the operations of the second that ended at at, and reports whether the load has settled by then. Each second is added once,
// in order.
func (w *steadyWatch) add(at time.Duration, operations int64) bool {
	if w == nil || w.res.Reached || at <= w.ramp {
		return w != nil && w.res.Reached
	}
	w.sum += operations
	if w.seconds += time.Second; w.seconds < w.s.Round {
		return false
	}
	w.res.Rounds = append(w.res.Rounds, float64(w.sum)/w.seconds.Seconds())
	if len(w.res.Rounds) > steadyRounds {
		w.res.Rounds = w.res.Rounds[1:]
	}
	w.sum, w.seconds = 0, 0
	w.res.At = at
	if n := len(w.res.Rounds); n >= w.s.Rounds {
		w.res.Range, w.res.Slope = settled(w.res.Rounds[n-w.s.Rounds:])
		w.res.Reached = w.res.Range <= w.s.Range && w.res.Slope <= w.s.Slope
	}
	return w.res.Reached
}

// settled returns by how much rounds differ, and by how much the line that fits them rises or falls from the first to the last, in percent of
// their average. Rounds in which nothing was done have not settled.
func settled(rounds []float64) (span, slope float64) {
	n := float64(len(rounds))
	low, high, sum := math.Inf(1), math.Inf(-1), 0.0
	for _, v := range rounds {
		low, high, sum = min(low, v), max(high, v), sum+v
	}
	average := sum / n
	if average <= 0 {
		return math.MaxFloat64, math.MaxFloat64 // JSON knows no infinity
	}
	var xy, xx float64
	for i, v := range rounds {
		x := float64(i) - (n-1)/2
		xy, xx = xy+x*(v-average), xx+x*x
	}
	return 100 * (high - low) / average, 100 * math.Abs(xy/xx) * (n - 1) / average
}

// result returns what was found, with the figures of the window from the histograms of its seconds.
func (w *steadyWatch) result(sum *recorder) *SteadyResult {
	if w == nil {
		return nil
	}
	res := w.res
	if len(res.Rounds) < w.s.Rounds {
		return &res
	}
	all := newHistogram()
	var bytes int64
	for i := int((res.At - w.s.window()) / time.Second); i < int(res.At/time.Second); i++ {
		if h := sum.work(i); h != nil {
			all.Merge(h)
		}
		bytes += sum.secondOf(i).bytes
	}
	res.Window = operations(all, bytes, w.s.window())
	return &res
}

func (res *Result) writeSteady(b *strings.Builder) {
	s := res.Steady
	if s == nil {
		return
	}
	o := res.Options.Steady
	switch {
	case s.Reached:
		fmt.Fprintf(b, "\nsteady state reached after %v: ", s.At)
	case len(s.Rounds) < o.Rounds:
		fmt.Fprintf(b, "\nsteady state not reached: %d of the %d rounds that a window has\n", len(s.Rounds), o.Rounds)
		return
	default:
		fmt.Fprintf(b, "\nsteady state not reached in %v: ", s.At)
	}
	figure := func(v float64) string {
		if v >= 1e6 {
			return "without end"
		}
		return humanize.FtoaWithDigits(v, 1) + " %"
	}
	fmt.Fprintf(b, "over the last %d rounds of %v throughput differs by %s (limit %v %%) and its trend is %s (limit %v %%)\n",
		o.Rounds, o.Round, figure(s.Range), o.Range, figure(s.Slope), o.Slope)
	if s.Window != nil {
		fmt.Fprintf(b, "in that window: %s IOPS, %.1f MiB/s, mean %s, p50 %s, p99 %s\n", humanize.Comma(int64(s.Window.IOPS)), s.Window.MiBs,
			ShortDuration(s.Window.Latency.Mean), ShortDuration(s.Window.Latency.P50), ShortDuration(s.Window.Latency.P99))
	}
}
