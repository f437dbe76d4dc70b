package perf

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Layer is one way to the data.
type Layer struct {
	Name   string `json:"name"`
	Target string `json:"target"`
}

// LayerResult is what a layer reached: medians of its runs.
type LayerResult struct {
	Layer
	IOPS    float64       `json:"iops"`
	MiBs    float64       `json:"mib_per_s"`
	Mean    time.Duration `json:"mean_ns"`
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	CPU     time.Duration `json:"cpu_ns"`     // for an operation, of the generator and all daemons that are seen
	Daemons time.Duration `json:"daemons_ns"` // of these without the generator
	Error   string        `json:"error,omitempty"`
}

// Layers runs the load of o on every layer, rounds times in turns, so that what changes with time touches all of them alike. A layer that fails says so
// in its result.
func Layers(ctx context.Context, o Options, layers []Layer, rounds int, began func(Layer, int)) ([]LayerResult, error) {
	if rounds < 1 || rounds > 100 {
		return nil, fmt.Errorf("%d rounds: want 1 to 100", rounds)
	}
	out := make([]LayerResult, len(layers))
	runs := make([][]*Result, len(layers))
	for i, l := range layers {
		out[i].Layer = l
		own := o
		own.Target = l.Target
		if err := own.Validate(); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Name, err)
		}
	}
	for round := range rounds {
		for k := range layers {
			i := (k + round) % len(layers) // nobody is always first
			if ctx.Err() != nil || out[i].Error != "" {
				continue
			}
			if began != nil {
				began(layers[i], round)
			}
			own := o
			own.Target = layers[i].Target
			res, err := Run(ctx, own)
			switch {
			case err != nil:
				out[i].Error = err.Error()
			case ctx.Err() != nil: // cut off: not a sample
			case !res.OK():
				out[i].Error = "operations failed"
				if res.Stopped != "" {
					out[i].Error = res.Stopped
				}
			default:
				runs[i] = append(runs[i], res)
			}
		}
	}
	for i := range out {
		out[i].medians(runs[i])
	}
	return out, nil
}

// medians fills in what the runs reached.
func (l *LayerResult) medians(runs []*Result) {
	if len(runs) == 0 {
		if l.Error == "" {
			l.Error = "not run"
		}
		return
	}
	l.IOPS = medianOf(runs, func(r *Result) float64 { return r.Total.IOPS })
	l.MiBs = medianOf(runs, func(r *Result) float64 { return r.Total.MiBs })
	for _, f := range []struct {
		to *time.Duration
		of func(*Result) time.Duration
	}{
		{&l.Mean, func(r *Result) time.Duration { return r.Total.Latency.Mean }},
		{&l.P50, func(r *Result) time.Duration { return r.Total.Latency.P50 }},
		{&l.P99, func(r *Result) time.Duration { return r.Total.Latency.P99 }},
		{&l.CPU, func(r *Result) time.Duration { return r.cpuPerOp(true) }},
		{&l.Daemons, func(r *Result) time.Duration { return r.cpuPerOp(false) }},
	} {
		*f.to = medianOf(runs, f.of)
	}
}

func medianOf[T float64 | time.Duration](runs []*Result, of func(*Result) T) T {
	var v []T
	for _, r := range runs {
		v = append(v, of(r))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// GeneratorCPU is the CPU that this process used for an operation.
func (res *Result) GeneratorCPU() time.Duration { return res.cpuPerOp(true) - res.cpuPerOp(false) }

// cpuPerOp is the CPU for an operation of all processes that were seen, with or without the generator.
func (res *Result) cpuPerOp(generator bool) (sum time.Duration) {
	for _, p := range res.CPU {
		if generator || p.Name != generatorName {
			sum += p.PerOp
		}
	}
	return sum
}
