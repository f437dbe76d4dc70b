package perf

import (
	"sync"
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
	series *series // where latencies go
	// before, unless it is nil, takes the operations that began before ramp; errors and what was verified stay here. It is guarded by mu of the recorder
	// that it belongs to.
	before  *recorder
	ramp    time.Duration
	flights []flight // operations under way, by the worker's slots

	mu      sync.Mutex
	closed  bool
	latency [opKinds]*hdrhistogram.Histogram // of the operations that ended in the second at
	at      int
	lag     *hdrhistogram.Histogram // open loop: from due to started
	bytes   [opKinds]int64
	errors  map[errorKind]*failures
	seconds []second
	last    time.Duration // end of the last operation
	verify  VerifyResult
}

type errorKind struct {
	op   opKind
	text string
}

// failures are how often an operation failed in one way, and when first and last since the start of the run.
type failures struct {
	count       int64
	first, last time.Duration
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
	slot    int           // of the worker
	started time.Duration // since the start of the run
	ended   time.Duration
	bytes   int64
	err     error
	fault   *Fault
	checked bool // the contents were compared
}

func (r *recorder) add(x outcome) {
	from := x.started
	if x.op.due > 0 { // open loop
		from = min(x.op.due, x.started)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if x.checked {
		r.verify.Checked++
		r.verify.add(x.fault)
	}
	if r.before != nil && from < r.ramp && x.err == nil {
		r.before.count(x, from)
		return
	}
	r.count(x, from)
}

// count takes an operation that was due, or began, at from. The caller holds r.mu.
func (r *recorder) count(x outcome, from time.Duration) {
	r.last = max(r.last, x.ended)
	if now := int(min(x.ended, maxDuration) / time.Second); now > r.at {
		r.flush()
		r.at = now
	}
	s := r.second(int(x.ended / time.Second))
	if x.err != nil {
		s.errors++
		r.fail(errorKind{x.op.kind, x.err.Error()}, 1, x.ended)
		return
	}
	if x.op.due > 0 {
		record(&r.lag, x.started-from)
	}
	latency := x.ended - from
	record(&r.latency[x.op.kind], latency)
	r.bytes[x.op.kind] += x.bytes
	s.ops[x.op.kind]++
	s.bytes += x.bytes
	s.slow = max(s.slow, latency)
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

func (r *recorder) fail(k errorKind, n int64, at time.Duration) { r.failures(k, failures{n, at, at}) }

func (r *recorder) failures(k errorKind, f failures) {
	if r.errors == nil {
		r.errors = map[errorKind]*failures{}
	}
	if _, known := r.errors[k]; !known && len(r.errors) >= maxErrorKinds {
		k.text = "other errors"
	}
	have := r.errors[k]
	if have == nil {
		r.errors[k] = &f
		return
	}
	have.count += f.count
	have.first, have.last = min(have.first, f.first), max(have.last, f.last)
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
	if r.before != nil {
		if sum.before == nil {
			sum.before = &recorder{series: r.before.series}
		}
		sum.ramp = r.ramp
		r.before.close(sum.before)
	}
	r.flush()
	for k := range r.bytes {
		sum.bytes[k] += r.bytes[k]
	}
	merge(&sum.lag, r.lag)
	for k, f := range r.errors {
		sum.failures(k, *f)
	}
	for i, s := range r.seconds {
		sum.second(i).add(&s)
	}
	sum.last = max(sum.last, r.last)
	sum.verify.merge(&r.verify)
}

func (s *second) add(from *second) {
	for k := range s.ops {
		s.ops[k] += from.ops[k]
	}
	s.bytes += from.bytes
	s.errors += from.errors
	s.slow = max(s.slow, from.slow)
}

// secondOf returns all that ended in the i-th second, the ramp included. Nobody may change r meanwhile, or the caller holds its locks.
func (r *recorder) secondOf(i int) (s second) {
	for ; r != nil; r = r.before {
		if i < len(r.seconds) {
			s.add(&r.seconds[i])
		}
	}
	return s
}

// work returns the latencies of reads and writes of the i-th second, the ramp included; nil if there are none.
func (r *recorder) work(i int) (h *hdrhistogram.Histogram) {
	for ; r != nil; r = r.before {
		merge(&h, r.series.work(i))
	}
	return h
}

// merge adds one histogram to another, which is made where it is nil.
func merge(to **hdrhistogram.Histogram, from *hdrhistogram.Histogram) {
	if from == nil {
		return
	}
	if *to == nil {
		*to = newHistogram()
	}
	(*to).Merge(from)
}
