package perf

import (
	"cmp"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what a run measured.
type Result struct {
	Options Options       `json:"options"` // with the defaults, and the engine that ran
	Started time.Time     `json:"started"`
	Elapsed time.Duration `json:"elapsed_ns"` // until the last operation ended or was given up
	// Stopped says why the run ended early; empty if it ended as told.
	Stopped string `json:"stopped,omitempty"`

	Total Operations  `json:"total"` // all but fsyncs
	Read  *Operations `json:"read,omitempty"`
	Write *Operations `json:"write,omitempty"`
	Fsync *Operations `json:"fsync,omitempty"`
	// Others are operations on names and on whole files, a kind each.
	Others []Kind `json:"others,omitempty"`

	// Missed is the number of operations that were due (open loop) and could not be started before the end, because as many as
	// allowed were under way. Their latency is in no histogram.
	Missed int64 `json:"missed,omitempty"`
	// StartLag is by how much operations started later than due (open loop); it is part of their latency.
	StartLag *Latency      `json:"start_lag,omitempty"`
	Stuck    int64         `json:"stuck,omitempty"` // operations that never ended
	Errors   []ErrorCount  `json:"errors,omitempty"`
	Verify   *VerifyResult `json:"verify,omitempty"`
	Series   []Second      `json:"series"`
	// CPU is what the generator and the storage daemons on this host used, as far as they can be seen.
	CPU []ProcessCPU `json:"cpu,omitempty"`

	latencies *series
}

// Operations is what operations of one kind did.
type Operations struct {
	Count   int64   `json:"count"`
	Bytes   int64   `json:"bytes"`
	IOPS    float64 `json:"iops"`
	MiBs    float64 `json:"mib_per_s"`
	Latency Latency `json:"latency"`
}

// Kind is what the operations of one kind did.
type Kind struct {
	Name string `json:"op"`
	Operations
}

// Kinds returns what the run did, a kind of operation after the other.
func (res *Result) Kinds() []Kind {
	var out []Kind
	for k, ops := range []*Operations{res.Read, res.Write, res.Fsync} {
		if ops != nil {
			out = append(out, Kind{opKind(k).String(), *ops})
		}
	}
	return append(out, res.Others...)
}

// Latency is how long operations took; all but Mean and Max within 1 %.
type Latency struct {
	Mean time.Duration `json:"mean_ns"`
	P50  time.Duration `json:"p50_ns"`
	P90  time.Duration `json:"p90_ns"`
	P99  time.Duration `json:"p99_ns"`
	P999 time.Duration `json:"p99_9_ns"`
	Max  time.Duration `json:"max_ns"`
}

// ErrorCount is how often an operation failed in one way.
type ErrorCount struct {
	Op    string `json:"op"`
	Error string `json:"error"`
	Count int64  `json:"count"`
}

// Second is what ended in one second of the run.
type Second struct {
	Second  int           `json:"second"` // from 0
	Reads   int64         `json:"reads"`
	Writes  int64         `json:"writes"`
	Fsyncs  int64         `json:"fsyncs,omitempty"`
	Others  int64         `json:"others,omitempty"` // operations on names and on whole files
	Errors  int64         `json:"errors,omitempty"`
	Bytes   int64         `json:"bytes"`
	P50     time.Duration `json:"p50_ns,omitempty"` // of all but fsyncs
	P99     time.Duration `json:"p99_ns,omitempty"`
	Slowest time.Duration `json:"slowest_ns"`
}

// Done is how many operations ended, fsyncs left out.
func (s Second) Done() int64 { return s.Reads + s.Writes + s.Others }

func newResult(o *Options, start time.Time, elapsed time.Duration, sum *recorder) *Result {
	res := &Result{Options: *o, Started: start.Round(0), Elapsed: elapsed}
	total := &sum.series.total
	var bytes int64
	for _, n := range sum.bytes {
		bytes += n
	}
	if ops := operations(sum.series.all(), bytes, elapsed); ops != nil {
		res.Total = *ops
	}
	res.Read = operations(total[opRead], sum.bytes[opRead], elapsed)
	res.Write = operations(total[opWrite], sum.bytes[opWrite], elapsed)
	res.Fsync = operations(total[opSync], 0, elapsed)
	for k := opSync + 1; k < opKinds; k++ {
		if ops := operations(total[k], sum.bytes[k], elapsed); ops != nil {
			res.Others = append(res.Others, Kind{k.String(), *ops})
		}
	}
	if sum.lag != nil {
		lag := latencyOf(sum.lag)
		res.StartLag = &lag
	}
	for i, s := range sum.seconds {
		x := Second{
			Second: i, Reads: s.ops[opRead], Writes: s.ops[opWrite], Fsyncs: s.ops[opSync],
			Others: s.done() - s.ops[opRead] - s.ops[opWrite], Errors: s.errors, Bytes: s.bytes, Slowest: s.slow,
		}
		if h := sum.series.work(i); h != nil {
			x.P50, x.P99 = time.Duration(h.ValueAtPercentile(50)), time.Duration(h.ValueAtPercentile(99))
		}
		res.Series = append(res.Series, x)
	}
	res.latencies = sum.series
	res.setErrors(sum)
	return res
}

// setErrors takes the errors of sum, the most frequent first.
func (res *Result) setErrors(sum *recorder) {
	res.Errors = nil
	for k, n := range sum.errors {
		res.Errors = append(res.Errors, ErrorCount{Op: k.op.String(), Error: k.text, Count: n})
	}
	slices.SortFunc(res.Errors, func(a, b ErrorCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Op, b.Op), cmp.Compare(a.Error, b.Error))
	})
}

// OK reports whether the run did all it was told to, without an error or a wrong block. A cancelled run is not at fault.
func (res *Result) OK() bool {
	return len(res.Errors) == 0 && res.Stuck == 0 && (res.Stopped == "" || res.Stopped == cancelled) &&
		(res.Verify == nil || res.Verify.Faults() == 0)
}

func operations(h *hdrhistogram.Histogram, bytes int64, elapsed time.Duration) *Operations {
	if h == nil || h.TotalCount() == 0 {
		return nil
	}
	seconds := max(elapsed, 1).Seconds()
	return &Operations{
		Count: h.TotalCount(), Bytes: bytes,
		IOPS: float64(h.TotalCount()) / seconds, MiBs: float64(bytes) / seconds / (1 << 20), Latency: latencyOf(h),
	}
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	at := func(percent float64) time.Duration { return time.Duration(h.ValueAtPercentile(percent)) }
	return Latency{
		Mean: time.Duration(h.Mean()), P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: time.Duration(h.Max()),
	}
}
