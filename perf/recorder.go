package perf

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms: 1 ns to an hour with two significant digits (1 % of a value), 37 KiB each.
const (
	maxLatency = time.Hour
	digits     = 2
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(maxLatency), digits)
}

// maxErrorKinds bounds the kinds of errors that are counted apart.
const maxErrorKinds = 32

// recorder keeps what was measured by one worker, or of all of them. It may be used by several goroutines at once; a closed
// one takes nothing more, so that a worker that hangs in the kernel cannot change a result that was handed out.
type recorder struct {
	series *series      // where latencies go
	busy   atomic.Int64 // operations under way

	mu      sync.Mutex
	closed  bool
	latency [opKinds]*hdrhistogram.Histogram // of the operations that ended in the second at
	at      int
	lag     *hdrhistogram.Histogram // open loop: from due to started
	bytes   [opKinds]int64
	errors  map[errorKind]int64
	seconds []second
	last    time.Duration // end of the last operation
	verify  VerifyResult
}

type errorKind struct {
	op   opKind
	text string
}

// second is what ended in one second of the run.
type second struct {
	ops    [opKinds]int64
	bytes  int64
	errors int64
	slow   time.Duration // the highest latency
}

// done is how many operations that count ended.
func (s *second) done() (n int64) {
	for k, ops := range s.ops {
		if opKind(k).counts() {
			n += ops
		}
	}
	return n
}

// outcome is how one operation went.
type outcome struct {
	op      op
	started time.Duration // since the start of the run
	ended   time.Duration
	bytes   int64
	err     error
	fault   *Fault
	checked bool // the contents were compared
}

func (r *recorder) add(x outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.last = max(r.last, x.ended)
	if now := int(min(x.ended, maxDuration) / time.Second); now > r.at {
		r.flush()
		r.at = now
	}
	s := r.second(int(x.ended / time.Second))
	if x.err != nil {
		s.errors++
		r.fail(errorKind{x.op.kind, x.err.Error()}, 1)
		return
	}
	from := x.started
	if x.op.due > 0 { // open loop
		from = min(x.op.due, x.started)
		record(&r.lag, x.started-from)
	}
	latency := x.ended - from
	record(&r.latency[x.op.kind], latency)
	r.bytes[x.op.kind] += x.bytes
	s.ops[x.op.kind]++
	s.bytes += x.bytes
	s.slow = max(s.slow, latency)
	if x.checked {
		r.verify.Checked++
		r.verify.add(x.fault)
	}
}

// flush hands the latencies of the second at to the series.
func (r *recorder) flush() {
	for k, h := range r.latency {
		if h != nil && h.TotalCount() > 0 {
			r.series.add(r.at, opKind(k), h)
			h.Reset()
		}
	}
}

func record(h **hdrhistogram.Histogram, d time.Duration) {
	if *h == nil {
		*h = newHistogram()
	}
	_ = (*h).RecordValue(int64(min(max(d, 1), maxLatency))) // cannot be out of range
}

func (r *recorder) fail(k errorKind, n int64) {
	if r.errors == nil {
		r.errors = map[errorKind]int64{}
	}
	if _, known := r.errors[k]; !known && len(r.errors) >= maxErrorKinds {
		k.text = "other errors"
	}
	r.errors[k] += n
}

// second returns the i-th second, the last possible one for what is later.
func (r *recorder) second(i int) *second {
	i = min(i, int(maxDuration/time.Second))
	for len(r.seconds) <= i {
		r.seconds = append(r.seconds, second{})
	}
	return &r.seconds[i]
}

// close ends the recorder, and adds what it has to sum.
func (r *recorder) close(sum *recorder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.flush()
	for k := range r.bytes {
		sum.bytes[k] += r.bytes[k]
	}
	merge(&sum.lag, r.lag)
	for k, n := range r.errors {
		sum.fail(k, n)
	}
	for i, s := range r.seconds {
		to := sum.second(i)
		for k := range s.ops {
			to.ops[k] += s.ops[k]
		}
		to.bytes += s.bytes
		to.errors += s.errors
		to.slow = max(to.slow, s.slow)
	}
	sum.last = max(sum.last, r.last)
	sum.verify.merge(&r.verify)
}

func merge(to **hdrhistogram.Histogram, from *hdrhistogram.Histogram) {
	if from == nil {
		return
	}
	if *to == nil {
		*to = newHistogram()
	}
	(*to).Merge(from)
}
