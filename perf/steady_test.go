package perf

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSettled: range and slope are those of the specification's definition, worked out by hand.
func TestSettled(t *testing.T) {
	for _, c := range []struct {
		rounds      []float64
		span, slope float64
	}{
		{[]float64{100, 100, 100, 100, 100}, 0, 0},
		{[]float64{90, 110, 90, 110, 100}, 20, 8}, // slope 2 a round
		{[]float64{80, 90, 100, 110, 120}, 40, 40},
		{[]float64{120, 110, 100, 90, 80}, 40, 40},
		{[]float64{100, 140, 100, 60, 100}, 80, 32},
		{[]float64{50, 150}, 100, 100},
	} {
		span, slope := settled(c.rounds)
		if math.Abs(span-c.span) > 1e-9 || math.Abs(slope-c.slope) > 1e-9 {
			t.Errorf("%v: range %v and slope %v, want %v and %v", c.rounds, span, slope, c.span, c.slope)
		}
	}
	if span, _ := settled([]float64{0, 0}); span < 1e6 {
		t.Errorf("what stands still has a range of %v", span)
	}
}

// TestSteadyWatch: a load that slows down and then holds is steady at the end of the first window that holds, not earlier, and the ramp is not looked at.
func TestSteadyWatch(t *testing.T) {
	o := Options{Ramp: 3 * time.Second, Steady: Steady{Rounds: 5, Round: 2 * time.Second}}
	o.setDefaults()
	w := newSteadyWatch(&o)
	speed := func(second int) int64 { return int64(1000 + 9000*math.Exp(-float64(second)/5)) }
	for second := range 1000 {
		n := speed(second)
		if second < 3 {
			n = 1 << 40
		}
		if w.add(time.Duration(second+1)*time.Second, n) {
			break
		}
	}
	rounds := w.res.Rounds
	if !w.res.Reached || w.res.At != o.Ramp+time.Duration(len(rounds))*2*time.Second {
		t.Fatalf("%+v", w.res)
	}
	for end := 5; end <= len(rounds); end++ { // as told by the definition
		span, slope := settled(rounds[end-5 : end])
		if held := span <= 20 && slope <= 10; held != (end == len(rounds)) {
			t.Errorf("window %v of %v: range %v, slope %v", end, rounds, span, slope)
		}
	}
	if (*steadyWatch)(nil).add(time.Second, 1) || (*steadyWatch)(nil).result(nil) != nil {
		t.Error("nobody looks for a steady state, and it is there")
	}
}

// TestRampAndSteady: operations of the ramp are shown apart, those after it are as many as they should be, and the load ends when it has settled.
func TestRampAndSteady(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		t.Parallel()
		const rate = 400
		res := mustRun(t, Options{
			Engine: e, QD: 4, Rate: rate, Ramp: time.Second, Duration: time.Minute, Steady: Steady{Rounds: 2, Round: time.Second, Range: 50, Slope: 50},
		})
		s := res.Steady
		if !res.OK() || s == nil || !s.Reached || s.At < 3*time.Second || s.At > 30*time.Second || len(s.Rounds) < 2 || s.Window == nil {
			t.Fatalf("%q, %+v", res.Stopped, s)
		}
		if res.Elapsed < s.At-time.Second || res.Elapsed > s.At+20*time.Second {
			t.Errorf("steady at %v, measured for %v", s.At, res.Elapsed)
		}
		if n := res.Ramp.Total.Count; n < rate-1 || n > rate+1 || res.Ramp.Elapsed != time.Second {
			t.Errorf("%d operations in the ramp, want %d", n, rate)
		}
		if n := float64(s.Window.Count); n < 1 || n > 2*rate*3 { // a busy machine is late, and makes up for it
			t.Errorf("%v operations in the window", n)
		}
		var sum int64
		for i, x := range res.Series {
			if x.Ramp != (i == 0) {
				t.Errorf("second %d: ramp %v", i, x.Ramp)
			}
			sum += x.Reads
		}
		if sum != res.Total.Count+res.Ramp.Total.Count {
			t.Errorf("the series has %d operations, total and ramp %d and %d", sum, res.Total.Count, res.Ramp.Total.Count)
		}
		dir := filepath.Join(t.TempDir(), "out")
		if err := res.WriteDir(dir); err != nil {
			t.Fatal(err)
		}
		back, err := ReadDir(dir)
		if err != nil || !reflect.DeepEqual(res.Curve("read"), back.Curve("read")) || back.Ramp.Total != res.Ramp.Total || back.Steady.At != s.At {
			t.Errorf("%v: read back %+v", err, back)
		}
		var text strings.Builder
		if err := res.WriteText(&text); err != nil || !strings.Contains(text.String(), "steady state reached after") || !strings.Contains(text.String(), "ramp of 1s") {
			t.Errorf("%v\n%s", err, &text)
		}
	})
}

// TestNotSteady: what does not settle ends with its time, and says so.
func TestNotSteady(t *testing.T) {
	t.Parallel()
	res := mustRun(t, Options{Rate: 50, Arrival: Poisson, Duration: 2200 * time.Millisecond, Steady: Steady{Rounds: 2, Round: time.Second, Range: 1e-9, Slope: 1e-9}})
	if res.Steady.Reached || !res.OK() || len(res.Steady.Rounds) != 2 {
		t.Errorf("%q: %+v", res.Stopped, res.Steady)
	}
	for _, o := range []Options{
		{Ramp: time.Second}, {Ramp: -1, Duration: time.Second}, {Duration: time.Second, Steady: Steady{Rounds: 2}}, {Steady: Steady{Rounds: 1}},
		{Duration: time.Minute, Steady: Steady{Rounds: 2, Round: 1500 * time.Millisecond}}, {Duration: time.Minute, Steady: Steady{Range: 5}},
	} {
		if err := o.Validate(); err == nil {
			t.Errorf("%+v is let pass", o)
		}
	}
}

// TestSamples: samples of hosts, sent as JSON, add up to exactly what their loads measured.
func TestSamples(t *testing.T) {
	t.Parallel()
	o := Options{Target: "mount:" + t.TempDir(), RW: RandRW, Size: 1 << 20, QD: 2, Rate: 500, Ramp: time.Second, Duration: 1600 * time.Millisecond, FsyncEvery: 8, Share: Share{Hosts: 2}}
	g := NewGather(o)
	var all []*Result
	for host := range 2 {
		o.Share.Host = host
		res, samples, live := runSampled(t, o)
		all = append(all, res)
		for _, s := range samples {
			text, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			var back Sample
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			g.Add(&back)
		}
		if live[0].Progress().IOPS != live[0].Work() {
			t.Errorf("%+v", live)
		}
	}
	sum := g.Result(all[0].Started, all[0].Elapsed+time.Second)
	for _, kind := range []struct{ of func(*Result) *Operations }{
		{func(r *Result) *Operations { return &r.Total }}, {func(r *Result) *Operations { return r.Read }},
		{func(r *Result) *Operations { return r.Write }}, {func(r *Result) *Operations { return r.Fsync }},
		{func(r *Result) *Operations { return &r.Ramp.Total }},
	} {
		a, b, both := kind.of(all[0]), kind.of(all[1]), kind.of(sum)
		if both.Count != a.Count+b.Count || both.Bytes != a.Bytes+b.Bytes || both.Latency.Max != max(a.Latency.Max, b.Latency.Max) {
			t.Errorf("%+v and %+v add up to %+v", a, b, both)
		}
	}
	h := all[0].latencies.all()
	h.Merge(all[1].latencies.all())
	if want := time.Duration(h.ValueAtPercentile(99)); sum.Total.Latency.P99 != want {
		t.Errorf("p99 %v, of all operations %v", sum.Total.Latency.P99, want)
	}
	if sum.StartLag == nil || len(sum.Series) < 2 {
		t.Errorf("%+v", sum)
	}
	var h2 Histogram
	for _, bad := range []string{`"x"`, `"HISTFAAAAB14"`, `7`} {
		if h2.UnmarshalJSON([]byte(bad)) == nil {
			t.Errorf("%s is a histogram", bad)
		}
	}
}

func runSampled(t *testing.T, o Options) (res *Result, samples, live []*Sample) {
	t.Helper()
	tries(t, func() error { // a busy machine may be late to tell of a second
		l, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		live = nil
		res = l.Run(t.Context(), Hooks{Start: time.Now().Add(50 * time.Millisecond), Second: func(s *Sample) { live = append(live, s) }})
		if !res.OK() {
			t.Fatalf("%+v", res)
		}
		if len(live) != 2 || len(res.Series) < 2 || live[0].Work() != res.Series[0].Reads+res.Series[0].Writes {
			return fmt.Errorf("%d seconds were told: %+v", len(live), live)
		}
		return nil
	})
	return res, slices.Collect(res.Samples()), live
}
