package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/dustin/go-humanize"
)

// Budget is a latency that must hold.
type Budget struct {
	Percentile float64       `json:"percentile"` // such as 99
	Latency    time.Duration `json:"latency_ns"`
}

func (b Budget) String() string { return fmt.Sprintf("p%v within %v", b.Percentile, b.Latency) }

// Step is one run of a search.
type Step struct {
	Rate    float64       `json:"rate"`
	Latency time.Duration `json:"latency_ns"` // at the budget's percentile
	Held    bool          `json:"held"`
	Why     string        `json:"why,omitempty"` // it did not
}

// Found is what a search found.
type Found struct {
	Budget Budget  `json:"budget"`
	Rate   float64 `json:"rate"` // the highest that held; 0 if none did
	Steps  []Step  `json:"steps"`
	Best   *Result `json:"best,omitempty"` // of the run at that rate
	// Stopped says why the search ended early.
	Stopped string `json:"stopped,omitempty"`
}

const (
	searchFirst = 100.0   // operations a second
	searchFine  = 1.05    // the search ends when it knows the rate to this factor
	searchSteps = 64      // at most
	searchShort = 0.98    // of the operations that were due must have been done
	searchTop   = maxRate // nothing is faster
)

// Search looks for the highest rate at which the budget holds, with runs of o.Duration each in an open loop: twice the rate while it holds,
// then ever smaller steps between what held and what did not. o.Rate, if given, is where it begins. step, unless it is nil, is told of every run.
func Search(ctx context.Context, o Options, b Budget, step func(Step)) (*Found, error) {
	if b.Percentile <= 0 || b.Percentile >= 100 || b.Latency <= 0 {
		return nil, fmt.Errorf("budget %v: want a percentile between 0 and 100 and a time above 0", b)
	}
	if o.Duration <= 0 {
		return nil, errors.New("a search wants a duration for each of its runs")
	}
	measure := func(rate float64) (Step, *Result, error) {
		o := o
		o.Rate = rate
		res, err := Run(ctx, o)
		if err != nil {
			return Step{}, nil, err
		}
		return judge(res, b), res, nil
	}
	return search(ctx, max(o.Rate, 0), b, measure, step)
}

// judge says whether a run held the budget.
func judge(res *Result, b Budget) Step {
	s := Step{Rate: res.Options.Rate}
	all := res.latencies.all()
	if all == nil || all.TotalCount() == 0 {
		s.Why = "nothing was done"
		return s
	}
	s.Latency = time.Duration(all.ValueAtPercentile(b.Percentile))
	done := all.TotalCount()
	switch {
	case !res.OK():
		s.Why = "operations failed"
	case float64(done) < searchShort*float64(done+res.Missed):
		s.Why = fmt.Sprintf("%s of %s operations could not be started", humanize.Comma(res.Missed), humanize.Comma(done+res.Missed))
	case s.Latency > b.Latency:
		s.Why = "too slow"
	default:
		s.Held = true
	}
	return s
}

func search(ctx context.Context, first float64, b Budget, measure func(float64) (Step, *Result, error), tell func(Step)) (*Found, error) {
	f := &Found{Budget: b}
	low, high := 0.0, math.Inf(1) // what held, what did not
	rate := first
	if rate == 0 {
		rate = searchFirst
	}
	for len(f.Steps) < searchSteps && low < searchTop && (math.IsInf(high, 1) || high > max(low, 1)*searchFine) {
		s, res, err := measure(rate)
		if err != nil {
			if len(f.Steps) == 0 {
				return nil, err
			}
			f.Stopped = err.Error()
			return f, nil
		}
		if ctx.Err() != nil {
			f.Stopped = cancelled
			return f, nil
		}
		if tell != nil {
			tell(s)
		}
		f.Steps = append(f.Steps, s)
		if s.Held {
			low, f.Rate, f.Best = rate, rate, res
		} else {
			high = rate
		}
		switch {
		case math.IsInf(high, 1):
			rate = min(low*2, searchTop)
		case low == 0:
			rate = high / 4
		default:
			rate = math.Sqrt(low * high)
		}
		if rate < 1 {
			break // not even one a second
		}
	}
	return f, nil
}

// WriteText prints what was found for people.
func (f *Found) WriteText(w io.Writer) error {
	if f.Stopped != "" {
		fmt.Fprintf(w, "ended early: %s\n", f.Stopped)
	}
	if f.Best == nil {
		_, err := fmt.Fprintf(w, "%v: at no rate\n", f.Budget)
		return err
	}
	fmt.Fprintf(w, "%v: up to %s operations a second. The run at that rate:\n\n", f.Budget, humanize.Comma(int64(f.Rate)))
	return f.Best.WriteText(w)
}

// String is a line for people.
func (s Step) String() string {
	if s.Held {
		return fmt.Sprintf("%s operations a second: %s, held", humanize.Comma(int64(s.Rate)), ShortDuration(s.Latency))
	}
	return fmt.Sprintf("%s operations a second: %s, not held: %s", humanize.Comma(int64(s.Rate)), ShortDuration(s.Latency), s.Why)
}
