package perf

import (
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Sample is what a load did in one second, with all that is needed to add it to those of other seconds and other hosts.
type Sample struct {
	Second   int         `json:"second"` // since the start of the load, from 0
	Measured SamplePart  `json:"measured"`
	Ramp     *SamplePart `json:"ramp,omitempty"` // what began before the end of the ramp; nil if nothing did
	// Failures are the errors since the start of the load.
	Failures []ErrorCount `json:"failures,omitempty"`
	// StartLag is that of the whole load, in one of its samples.
	StartLag Histogram `json:"start_lag,omitzero"`
}

// SamplePart is the operations of a second, by their kinds, such as "read".
type SamplePart struct {
	Counts  map[string]int64     `json:"counts,omitempty"`
	Bytes   int64                `json:"bytes,omitempty"` // of reads and writes
	Errors  int64                `json:"errors,omitempty"`
	Slowest time.Duration        `json:"slowest_ns,omitempty"`
	Latency map[string]Histogram `json:"latency,omitempty"`
}

// Histogram is a histogram of times in nanoseconds; in JSON it is in HdrHistogram's compressed format. It may hold none.
type Histogram struct{ h *hdrhistogram.Histogram }

// MarshalJSON implements json.Marshaler.
func (h Histogram) MarshalJSON() ([]byte, error) {
	if h.h == nil {
		return []byte("null"), nil
	}
	b, err := h.h.Encode(hdrhistogram.V2CompressedEncodingCookieBase) // base64
	if err != nil {
		return nil, err
	}
	return json.Marshal(string(b))
}

// UnmarshalJSON implements json.Unmarshaler.
func (h *Histogram) UnmarshalJSON(b []byte) (err error) {
	defer func() { // the library trusts what it decodes
		if recover() != nil {
			err = errors.New("not a histogram")
		}
	}()
	var s *string
	if err = json.Unmarshal(b, &s); err != nil || s == nil {
		return err
	}
	h.h, err = hdrhistogram.Decode([]byte(*s))
	return err
}

// IsZero reports whether there is no histogram.
func (h Histogram) IsZero() bool { return h.h == nil }

// part returns what ended in the i-th second. The caller holds the locks of the recorders.
func part(i int, s *series, recorders ...*recorder) *SamplePart {
	var sum second
	for _, r := range recorders {
		if r != nil && i < len(r.seconds) {
			sum.add(&r.seconds[i])
		}
	}
	p := &SamplePart{Bytes: sum.bytes, Errors: sum.errors, Slowest: sum.slow}
	for k, n := range sum.ops {
		if n == 0 {
			continue
		}
		if p.Counts == nil {
			p.Counts, p.Latency = map[string]int64{}, map[string]Histogram{}
		}
		name := opKind(k).String()
		p.Counts[name] = n
		if h := s.second(i, opKind(k)); h != nil {
			p.Latency[name] = Histogram{h}
		}
	}
	if p.Counts == nil && p.Errors == 0 {
		return nil
	}
	return p
}

// sample returns the i-th second of a closed recorder.
func (r *recorder) sample(i int) *Sample {
	s := &Sample{Second: i}
	if p := part(i, r.series, r); p != nil {
		s.Measured = *p
	}
	if r.before != nil {
		s.Ramp = part(i, r.before.series, r.before)
	}
	return s
}

// Samples are all seconds of a run that this process measured.
func (res *Result) Samples() iter.Seq[*Sample] {
	return func(yield func(*Sample) bool) {
		for i := range res.Series {
			s := res.sum.sample(i)
			if i == 0 {
				s.StartLag = Histogram{res.sum.lag}
			}
			if !yield(s) {
				return
			}
		}
	}
}

// work is how many operations ended, fsyncs left out.
func (p *SamplePart) work() (n int64) {
	if p == nil {
		return 0
	}
	for k := range opKinds {
		if k.counts() {
			n += p.Counts[k.String()]
		}
	}
	return n
}

// Work is how many operations ended in the second, fsyncs left out and the ramp included.
func (s *Sample) Work() int64 { return s.Measured.work() + s.Ramp.work() }

// Progress says the same for people.
func (s *Sample) Progress() Progress {
	p := Progress{Elapsed: time.Duration(s.Second+1) * time.Second, IOPS: s.Work(), Bytes: s.Measured.Bytes}
	var all *hdrhistogram.Histogram
	for _, part := range []*SamplePart{&s.Measured, s.Ramp} {
		if part != nil {
			for k := range opKinds {
				if k.counts() {
					merge(&all, part.Latency[k.String()].h)
				}
			}
		}
	}
	if s.Ramp != nil {
		p.Bytes += s.Ramp.Bytes
	}
	if all != nil {
		p.P50, p.P99 = time.Duration(all.ValueAtPercentile(50)), time.Duration(all.ValueAtPercentile(99))
	}
	for _, f := range s.Failures {
		p.Errors += f.Count
	}
	return p
}

// Add adds what another host did in the same second.
func (s *Sample) Add(x *Sample) {
	s.Measured.add(&x.Measured)
	if x.Ramp != nil {
		if s.Ramp == nil {
			s.Ramp = new(SamplePart)
		}
		s.Ramp.add(x.Ramp)
	}
	s.Failures = addErrors(s.Failures, x.Failures)
}

func (p *SamplePart) add(x *SamplePart) {
	p.Bytes += x.Bytes
	p.Errors += x.Errors
	p.Slowest = max(p.Slowest, x.Slowest)
	if p.Counts == nil {
		p.Counts, p.Latency = map[string]int64{}, map[string]Histogram{}
	}
	for k, n := range x.Counts {
		p.Counts[k] += n
	}
	for k, h := range x.Latency {
		sum := p.Latency[k].h
		merge(&sum, h.h)
		p.Latency[k] = Histogram{sum}
	}
}

// Gather adds up samples of seconds and hosts. It belongs to one goroutine.
type Gather struct {
	o      Options
	sum    *recorder
	steady *steadyWatch
}

// NewGather returns one for loads of these options.
func NewGather(o Options) *Gather {
	o.setDefaults()
	g := &Gather{o: o, sum: &recorder{series: new(series)}, steady: newSteadyWatch(&o)}
	if o.Ramp > 0 {
		g.sum.ramp, g.sum.before = o.Ramp, &recorder{series: new(series)}
	}
	return g
}

// Add adds a sample. Its Failures are not: each has those of all samples before it.
func (g *Gather) Add(s *Sample) {
	if s.Second < 0 || s.Second > int(maxDuration/time.Second) {
		return
	}
	g.sum.addPart(s.Second, &s.Measured)
	if g.sum.before != nil && s.Ramp != nil {
		g.sum.before.addPart(s.Second, s.Ramp)
	}
	merge(&g.sum.lag, s.StartLag.h)
}

func (r *recorder) addPart(i int, p *SamplePart) {
	s := second{bytes: p.Bytes, errors: p.Errors, slow: p.Slowest}
	for k := range opKinds {
		name := k.String()
		s.ops[k] = p.Counts[name]
		if h := p.Latency[name].h; h != nil && h.TotalCount() > 0 {
			r.series.add(i, k, h)
		}
	}
	if work := s.ops[opRead] + s.ops[opWrite]; work > 0 { // all of one size
		for _, k := range []opKind{opRead, opWrite} {
			r.bytes[k] += p.Bytes / work * s.ops[k]
		}
	}
	r.second(i).add(&s)
}

// Settled is told how many operations all hosts did in a second, each second once and in order, and reports whether the load has settled by its end. It
// does not need the samples.
func (g *Gather) Settled(second int, operations int64) bool {
	return g.steady.add(time.Duration(second+1)*time.Second, operations)
}

// Result returns what all of them measured together, in a load that began at start and took so long with its ramp. What is not in samples is
// not in it: errors, what was verified, CPU.
func (g *Gather) Result(start time.Time, elapsed time.Duration) *Result {
	res := newResult(&g.o, start, elapsed, g.sum)
	res.Steady = g.steady.result(g.sum)
	return res
}
