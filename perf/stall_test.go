package perf

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"
)

// TestStall has a server stop for one second. In an open loop every operation that was due in that second waits for its end, so a quarter
// of those of four seconds take between nothing and a second, evenly: percentiles above the 75th rise in a straight line to a second. In a
// closed loop one operation waits and the others are never begun: the percentiles do not show that anything happened.
//
// A machine that stands still by itself meanwhile adds to this: then it is measured again.
func TestStall(t *testing.T) {
	const seconds, rate = 4, 500
	run := func(t *testing.T, o Options) *Result {
		m := newMemoryServer(t)
		o.Target, o.Size, o.Duration, o.RW = m.target(), 1<<20, seconds*time.Second, RandWrite
		stop := time.AfterFunc(seconds*time.Second/2, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			time.Sleep(time.Second)
		})
		defer stop.Stop()
		return mustRun(t, o)
	}
	measure := func(t *testing.T, o Options, wrong func(*Result) error) {
		t.Parallel()
		tries(t, func() error { return wrong(run(t, o)) })
	}
	for _, arrival := range []Arrival{Fixed, Poisson} {
		t.Run(string(arrival), func(t *testing.T) {
			measure(t, Options{QD: 1024, Rate: rate, Arrival: arrival}, func(res *Result) error {
				var errs []error
				if n := res.Total.Count; math.Abs(float64(n)-seconds*rate) > 250 || res.Missed > rate/4 { // the last may come too late to be started
					errs = append(errs, fmt.Errorf("%d operations, %d missed", n, res.Missed))
				}
				h := res.latencies.all()
				for _, at := range []struct{ percentile, want float64 }{{80, 0.2}, {90, 0.6}, {95, 0.8}, {99, 0.96}, {99.9, 0.996}} {
					// A busy machine may add to what theory says, and takes little away.
					if got := time.Duration(h.ValueAtPercentile(at.percentile)).Seconds(); got < at.want-0.1 || got > at.want+0.3 {
						errs = append(errs, fmt.Errorf("p%v is %.3f s, want %.3f", at.percentile, got, at.want))
					}
				}
				if p := res.Total.Latency.P50; p > 300*time.Millisecond {
					errs = append(errs, fmt.Errorf("p50 %v", p))
				}
				return errors.Join(errs...)
			})
		})
	}
	t.Run("closed", func(t *testing.T) {
		measure(t, Options{QD: 1}, func(res *Result) error {
			if l := res.Total.Latency; l.P99 > 100*time.Millisecond || l.Max < 900*time.Millisecond {
				return fmt.Errorf("%+v", l)
			}
			return nil
		})
	})
}
