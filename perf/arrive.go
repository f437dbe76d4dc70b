package perf

import (
	"math"
	"math/rand/v2"
	"time"
)

// Arrival says how the operations of an open loop come.
type Arrival string

// Arrivals.
const (
	Fixed   Arrival = "fixed"   // at equal distances; the jobs take turns
	Poisson Arrival = "poisson" // at random, independent of one another
)

// arrivals are the moments at which the operations of one job are due.
type arrivals struct {
	due   time.Duration // of the next operation, since the start of the run; never 0
	mean  float64       // nanoseconds between two
	exact float64       // due before it was rounded
	rng   *rand.PCG     // Poisson
}

// newArrivals are those of a job, which is numbered among the jobs of all hosts.
func newArrivals(o *Options, job int) *arrivals {
	a := &arrivals{mean: max(float64(time.Second)*float64(o.allJobs())/o.Rate, 1)}
	if o.Arrival == Poisson {
		a.rng = rand.NewPCG(o.Seed^0xa771, uint64(job))
		a.next()
	} else {
		a.exact = a.mean * float64(job) / float64(o.allJobs())
	}
	a.due = max(time.Duration(a.exact), 1)
	return a
}

// next goes on to the operation after.
func (a *arrivals) next() {
	gap := a.mean
	if a.rng != nil {
		gap *= -math.Log(1 - float64(a.rng.Uint64()>>11)/(1<<53)) // of (0, 1]
	}
	a.exact += gap
	a.due = max(time.Duration(a.exact), 1)
}

// before returns how many operations are due before a moment, at most so many. It does not change a.
func (a *arrivals) before(at time.Duration, most int64) (n int64) {
	b := *a
	if a.rng != nil {
		rng := *a.rng
		b.rng = &rng
	} else if b.due < at { // the same without counting
		n = min(int64((float64(at)-b.exact)/b.mean), most)
		b.exact += float64(n) * b.mean
		b.due = max(time.Duration(b.exact), 1)
	}
	for ; n < most && b.due < at; n++ {
		b.next()
	}
	return n
}
