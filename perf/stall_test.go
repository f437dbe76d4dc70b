package perf

import (
	"math"
	"testing"
	"time"
)

// TestStall has a server stop for one second. In an open loop every operation that was due in that second waits for its end, so a quarter
// of those of four seconds take between nothing and a second, evenly: percentiles above the 75th rise in a straight line to a second. In a
// closed loop one operation waits and the others are never begun: the percentiles do not show that anything happened.
func TestStall(t *testing.T) {
	const seconds, rate = 4, 500
	run := func(t *testing.T, o Options) *Result {
		t.Parallel()
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
	for _, arrival := range []Arrival{Fixed, Poisson} {
		t.Run(string(arrival), func(t *testing.T) {
			res := run(t, Options{QD: 1024, Rate: rate, Arrival: arrival})
			if n := res.Total.Count; math.Abs(float64(n)-seconds*rate) > 250 || res.Missed > rate/4 { // the last may come too late to be started
				t.Errorf("%d operations, %d missed", n, res.Missed)
			}
			h := res.latencies.all()
			for _, at := range []struct{ percentile, want float64 }{{80, 0.2}, {90, 0.6}, {95, 0.8}, {99, 0.96}, {99.9, 0.996}} {
				// A busy machine may add to what theory says, and takes little away.
				if got := time.Duration(h.ValueAtPercentile(at.percentile)).Seconds(); got < at.want-0.1 || got > at.want+0.3 {
					t.Errorf("p%v is %.3f s, want %.3f", at.percentile, got, at.want)
				}
			}
			if p := res.Total.Latency.P50; p > 300*time.Millisecond {
				t.Errorf("p50 %v", p)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		if res := run(t, Options{QD: 1}); res.Total.Latency.P99 > 100*time.Millisecond || res.Total.Latency.Max < 900*time.Millisecond {
			t.Errorf("%+v", res.Total.Latency)
		}
	})
}
