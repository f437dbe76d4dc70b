package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"varve/perf"

	"golang.org/x/perf/benchmath"
)

// Comparison says how one figure of side B differs from that of side A.
type Comparison struct {
	Figure string `json:"figure"`
	Unit   string `json:"unit"`
	// A and B are medians of the samples; Samples is how many each side has.
	A       float64 `json:"a"`
	B       float64 `json:"b"`
	Samples [2]int  `json:"samples"`
	// Change is B/A - 1; with 95 % confidence it is between Low and High (bootstrap).
	Change float64 `json:"change"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	// P is the probability of such a difference between samples of one source (Mann-Whitney U test).
	P       float64 `json:"p"`
	Verdict Verdict `json:"verdict"`
}

// Verdict is what a comparison shows.
type Verdict string

// Verdicts.
const (
	Better    Verdict = "better"
	Worse     Verdict = "worse"
	Unsettled Verdict = "no difference shown"
	TooFew    Verdict = "too few samples"
)

const (
	confidence = 0.95
	// fewSamples is below what no test can tell anything at that confidence: of three against three the least p is 0.1.
	fewSamples = 4
	resamples  = 4000
	// warmUp is the share of a run's seconds that does not count.
	warmUp = 0.1
)

// Compare compares the figures of two sides, each of one run or of several alike. Of several runs, fewSamples or more on each side, every run is a sample, which
// is the better way: seconds of one run depend on one another, and what differs from run to run is not in them.
func Compare(a, b []Run) []Comparison {
	var out []Comparison
	for _, f := range figures {
		if len(a) >= fewSamples && len(b) >= fewSamples {
			x, y := perRun(a, f.run), perRun(b, f.run)
			if len(x) > 0 && len(y) > 0 {
				out = append(out, compare(f.name+" of runs", f.unit, f.higher, x, y))
			}
			continue
		}
		if f.second == nil {
			continue
		}
		x, y := perSecond(a, f.second), perSecond(b, f.second)
		if len(x) > 0 && len(y) > 0 {
			out = append(out, compare(f.name+" of seconds", f.unit, f.higher, x, y))
		}
	}
	return out
}

// figures are what is compared; each returns NaN where a run has none.
var figures = []struct {
	name, unit string
	higher     bool // is better
	run        func(*perf.Result) float64
	second     func(perf.Second) float64
}{
	{"operations", "/s", true,
		func(r *perf.Result) float64 { return r.Total.IOPS },
		func(s perf.Second) float64 { return float64(s.Done()) }},
	{"throughput", "MiB/s", true,
		func(r *perf.Result) float64 { return r.Total.MiBs },
		func(s perf.Second) float64 { return float64(s.Bytes) / (1 << 20) }},
	{"p50", "µs", false,
		func(r *perf.Result) float64 { return positive(float64(r.Total.Latency.P50) / 1e3) },
		func(s perf.Second) float64 { return positive(float64(s.P50) / 1e3) }},
	{"p99", "µs", false,
		func(r *perf.Result) float64 { return positive(float64(r.Total.Latency.P99) / 1e3) },
		func(s perf.Second) float64 { return positive(float64(s.P99) / 1e3) }},
	{"CPU of the daemons", "µs/op", false, daemonCPU, nil},
}

func positive(v float64) float64 {
	if v > 0 {
		return v
	}
	return math.NaN()
}

// daemonCPU is what all processes but the generator used for an operation.
func daemonCPU(r *perf.Result) float64 {
	sum := 0.0
	for _, p := range r.CPU {
		if p.Name != "load generator" {
			sum += float64(p.PerOp) / 1e3
		}
	}
	return positive(sum)
}

func perRun(runs []Run, of func(*perf.Result) float64) (out []float64) {
	for _, r := range runs {
		if v := of(r.Result); !math.IsNaN(v) {
			out = append(out, v)
		}
	}
	return out
}

func perSecond(runs []Run, of func(perf.Second) float64) (out []float64) {
	for _, r := range runs {
		all := slices.DeleteFunc(slices.Clone(whole(r.Result)), func(s perf.Second) bool { return s.Ramp })
		for _, s := range all[int(float64(len(all))*warmUp):] {
			if v := of(s); !math.IsNaN(v) {
				out = append(out, v)
			}
		}
	}
	return out
}

func compare(figure, unit string, higher bool, a, b []float64) Comparison {
	c := Comparison{Figure: figure, Unit: unit, A: median(a), B: median(b), Samples: [2]int{len(a), len(b)}, P: 1, Verdict: TooFew}
	c.Change = c.B/c.A - 1
	c.Low, c.High = bootstrap(a, b)
	if min(len(a), len(b)) < fewSamples {
		return c
	}
	test := benchmath.AssumeNothing.Compare(benchmath.NewSample(slices.Clone(a), &benchmath.DefaultThresholds), benchmath.NewSample(slices.Clone(b), &benchmath.DefaultThresholds))
	c.P = test.P
	switch shown := c.P < 1-confidence && (c.Low > 0 || c.High < 0); {
	case !shown:
		c.Verdict = Unsettled
	case c.Change > 0 == higher:
		c.Verdict = Better
	default:
		c.Verdict = Worse
	}
	return c
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// bootstrap returns the interval of the change of medians. The same samples give the same interval.
func bootstrap(a, b []float64) (low, high float64) {
	rng := rand.New(rand.NewPCG(1, 2))
	draw := func(from, to []float64) float64 {
		for i := range to {
			to[i] = from[rng.IntN(len(from))]
		}
		return median(to)
	}
	x, y := make([]float64, len(a)), make([]float64, len(b))
	changes := make([]float64, resamples)
	for i := range changes {
		changes[i] = draw(b, y)/draw(a, x) - 1
	}
	slices.Sort(changes)
	tail := int(resamples * (1 - confidence) / 2)
	return changes[tail], changes[resamples-1-tail]
}

// String is a line for people.
func (c Comparison) String() string {
	return fmt.Sprintf("%s: %.4g to %.4g %s, %+.1f %% (%+.1f to %+.1f), p %.3f: %s", c.Figure, c.A, c.B, c.Unit, 100*c.Change, 100*c.Low, 100*c.High, c.P, c.Verdict)
}
