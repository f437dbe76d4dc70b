package perf

import (
	"cmp"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what a run measured.
type Result struct {
	Options Options   `json:"options"` // with the defaults, and the engine that ran
	Started time.Time `json:"started"`
	// Elapsed is the time from the end of the ramp until the last operation ended or was given up.
	Elapsed time.Duration `json:"elapsed_ns"`
	// Stopped says why the run ended early; empty if it ended as told.
	Stopped string `json:"stopped,omitempty"`
	// Gone says that it ended since the target went away.
	Gone bool `json:"gone,omitempty"`

	Total Operations  `json:"total"` // all but fsyncs
	Read  *Operations `json:"read,omitempty"`
	Write *Operations `json:"write,omitempty"`
	Fsync *Operations `json:"fsync,omitempty"`
	// Others are operations on names and on whole files, a kind each.
	Others []Kind `json:"others,omitempty"`
	// ClonedBy says by which means files were cloned: FICLONE, copy_file_range, or read and write.
	ClonedBy string `json:"cloned_by,omitempty"`

	// Missed is the number of operations that were due (open loop) and could not be started before the end, because as many as
	// allowed were under way. Their latency is in no histogram.
	Missed int64 `json:"missed,omitempty"`
	// StartLag is by how much operations started later than due (open loop); it is part of their latency.
	StartLag *Latency      `json:"start_lag,omitempty"`
	Stuck    int64         `json:"stuck,omitempty"`            // operations that never ended
	StuckOps []StuckOp     `json:"stuck_operations,omitempty"` // the first of these, at most 16
	Errors   []ErrorCount  `json:"errors,omitempty"`
	Verify   *VerifyResult `json:"verify,omitempty"`
	Series   []Second      `json:"series"`
	// Removed are files that could not be reached by their names when the run ended: what was measured went to files that are no more.
	Removed []string `json:"removed,omitempty"`
	// Hosts is what each host did, if there were several, and Lost how many did not report to the end.
	Hosts []HostResult `json:"hosts,omitempty"`
	Lost  int          `json:"lost_hosts,omitempty"`
	// Ramp is what began before Options.Ramp was over; it is in nothing above but Errors, Verify and Series.
	Ramp   *RampResult   `json:"ramp,omitempty"`
	Steady *SteadyResult `json:"steady,omitempty"`
	// CPU is what the generator and the storage daemons on this host used, as far as they can be seen.
	CPU []ProcessCPU `json:"cpu,omitempty"`

	sum       *recorder // nil of a Result that was decoded
	latencies *series
	ramp      *series // nil without Options.Ramp
}

// RampResult is what the load did before it was measured.
type RampResult struct {
	Elapsed time.Duration `json:"elapsed_ns"`
	Total   Operations    `json:"total"` // all but fsyncs
	Kinds   []Kind        `json:"kinds,omitempty"`
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
	// First and Last are when it failed so, since the start of the load; both 0 if that is not known.
	First time.Duration `json:"first_ns,omitempty"`
	Last  time.Duration `json:"last_ns,omitempty"`
}

// Second is what ended in one second of the run.
type Second struct {
	Second  int           `json:"second"`         // since the start of the load, from 0
	Ramp    bool          `json:"ramp,omitempty"` // some of it is before the end of the ramp
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

// newResult returns the result of a run that ended so long after its start.
func newResult(o *Options, start time.Time, elapsed time.Duration, sum *recorder) *Result {
	res := &Result{Options: *o, Started: start.Round(0), Elapsed: max(elapsed-o.Ramp, 0), latencies: sum.series, sum: sum}
	var kinds [opKinds]*Operations
	res.Total, kinds = sum.operations(res.Elapsed)
	res.Read, res.Write, res.Fsync = kinds[opRead], kinds[opWrite], kinds[opSync]
	for k := opSync + 1; k < opKinds; k++ {
		if kinds[k] != nil {
			res.Others = append(res.Others, Kind{k.String(), *kinds[k]})
		}
	}
	if before := sum.before; before != nil {
		res.ramp = before.series
		res.Ramp = &RampResult{Elapsed: min(elapsed, o.Ramp)}
		res.Ramp.Total, kinds = before.operations(res.Ramp.Elapsed)
		for k, ops := range kinds {
			if ops != nil {
				res.Ramp.Kinds = append(res.Ramp.Kinds, Kind{opKind(k).String(), *ops})
			}
		}
	}
	if sum.lag != nil {
		lag := latencyOf(sum.lag)
		res.StartLag = &lag
	}
	n := len(sum.seconds)
	if sum.before != nil {
		n = max(n, len(sum.before.seconds))
	}
	for i := range n {
		s := sum.secondOf(i)
		x := Second{
			Second: i, Ramp: time.Duration(i)*time.Second < o.Ramp, Reads: s.ops[opRead], Writes: s.ops[opWrite], Fsyncs: s.ops[opSync],
			Others: s.done() - s.ops[opRead] - s.ops[opWrite], Errors: s.errors, Bytes: s.bytes, Slowest: s.slow,
		}
		if h := sum.work(i); h != nil {
			x.P50, x.P99 = time.Duration(h.ValueAtPercentile(50)), time.Duration(h.ValueAtPercentile(99))
		}
		res.Series = append(res.Series, x)
	}
	res.setErrors(sum)
	return res
}

// operations returns what all operations but fsyncs did in a time, and those of each kind.
func (r *recorder) operations(elapsed time.Duration) (all Operations, kinds [opKinds]*Operations) {
	var bytes int64
	for k, n := range r.bytes {
		bytes += n
		kinds[k] = operations(r.series.total[k], n, elapsed)
	}
	if ops := operations(r.series.all(), bytes, elapsed); ops != nil {
		all = *ops
	}
	return all, kinds
}

// setErrors takes the errors of sum, the most frequent first.
func (res *Result) setErrors(sum *recorder) { res.Errors = errorCounts(sum) }

func errorCounts(sum *recorder) (out []ErrorCount) {
	for k, f := range sum.errors {
		out = append(out, ErrorCount{Op: k.op.String(), Error: k.text, Count: f.count, First: f.first, Last: f.last})
	}
	slices.SortFunc(out, func(a, b ErrorCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Op, b.Op), cmp.Compare(a.Error, b.Error))
	})
	return out
}

// OK reports whether the run did all it was told to, without an error or a wrong block. A cancelled run is not at fault.
func (res *Result) OK() bool {
	return len(res.Errors) == 0 && res.Stuck == 0 && len(res.Removed) == 0 && res.Lost == 0 && (res.Stopped == "" || res.Stopped == cancelled) &&
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
