package perf

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// WriteText prints the result for people.
func (res *Result) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; ran %s", res.Options.Describe(), res.Elapsed.Round(time.Millisecond))
	if r := res.Ramp; r != nil {
		fmt.Fprintf(&b, " after a ramp of %s, which does not count: %s operations, mean %s, p99 %s", r.Elapsed.Round(time.Millisecond), humanize.Comma(r.Total.Count),
			ShortDuration(r.Total.Latency.Mean), ShortDuration(r.Total.Latency.P99))
	}
	b.WriteByte('\n')
	if res.Stopped != "" {
		fmt.Fprintf(&b, "ended early: %s\n", res.Stopped)
	}
	b.WriteByte('\n')

	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tcount\tIOPS\tMiB/s\tmean\tp50\tp90\tp99\tp99.9\tmax\t")
	for _, k := range res.Kinds() {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.Name, humanize.Comma(k.Count), humanize.Comma(int64(k.IOPS)),
			strconv.FormatFloat(k.MiBs, 'f', 1, 64), k.Latency.cells())
	}
	if res.StartLag != nil {
		fmt.Fprintf(t, "start lag\t\t\t\t%s\n", res.StartLag.cells())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := res.writeHosts(&b); err != nil {
		return err
	}
	res.writeSteady(&b)
	if res.ClonedBy != "" {
		fmt.Fprintf(&b, "\ncloned by %s\n", res.ClonedBy)
	}
	res.writeCPU(&b)
	res.writeFaults(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// Describe says in words what the options ask for.
func (o Options) Describe() string {
	var b strings.Builder
	if o.Replay != "" {
		return o.Replay
	}
	if o.Metadata != "" {
		o.setDefaults()
		mix, _ := o.Metadata.parse() // Validate has parsed it
		fmt.Fprintf(&b, "%s on %s: depth %d, %s of %s files%s", mix, o.Target, o.QD, o.jobs(), humanize.Comma(int64(o.Files)), o.rate())
		return b.String()
	}
	if o.CloneOf != "" {
		fmt.Fprintf(&b, "clones of %s on %s: %s", o.CloneOf, o.Target, o.jobs())
		return b.String()
	}
	fmt.Fprintf(&b, "%s%s on %s: blocks of %s, depth %d, %s of %s, engine %s", o.RW, o.mix(), o.Target,
		humanize.IBytes(uint64(o.BlockSize)), o.QD, o.jobs(), humanize.IBytes(uint64(o.Size)), o.Engine)
	if o.Dist != "" && o.Dist != Uniform {
		fmt.Fprintf(&b, ", blocks %s", o.Dist)
	}
	return b.String() + o.rate()
}

func (o *Options) rate() string {
	if o.Rate == 0 {
		return ""
	}
	return fmt.Sprintf(", %s operations a second (%s)", humanize.Comma(int64(o.Rate)), o.Arrival)
}

// mix is the share of reads where there are both.
func (o *Options) mix() string {
	if o.RW != RandRW {
		return ""
	}
	return fmt.Sprintf(" (%d %% reads)", o.ReadPercent)
}

func (o *Options) jobs() string {
	jobs := strconv.Itoa(o.Jobs) + " jobs"
	if o.Jobs == 1 {
		jobs = "1 job"
	}
	if n := o.Share.Hosts; n > 1 {
		return fmt.Sprintf("%s on each of %d hosts,", jobs, n)
	}
	return jobs
}

func (l Latency) cells() string {
	var b strings.Builder
	for _, d := range []time.Duration{l.Mean, l.P50, l.P90, l.P99, l.P999, l.Max} {
		b.WriteString(ShortDuration(d) + "\t")
	}
	return b.String()
}

func ShortDuration(d time.Duration) string {
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if d >= unit.d-unit.d/2000 { // what would round up to it
			v, decimals := float64(d)/float64(unit.d), 0
			for limit := 99.95; decimals < 2 && v < limit; limit /= 10 {
				decimals++
			}
			return strconv.FormatFloat(v, 'f', decimals, 64) + unit.name
		}
	}
	return strconv.Itoa(int(d)) + "ns"
}

// when says in words when an error came.
func (e ErrorCount) when() string {
	first, last := e.First.Round(time.Millisecond), e.Last.Round(time.Millisecond)
	switch {
	case e.Last == 0:
		return ""
	case first == last:
		return fmt.Sprintf(" (after %v)", first)
	}
	return fmt.Sprintf(" (from %v to %v)", first, last)
}

// writeFaults prints what went wrong, and what was verified.
func (res *Result) writeFaults(b *strings.Builder) {
	if res.Missed > 0 {
		fmt.Fprintf(b, "\n%s operations were due and could not be started: the target does not keep up with the rate at this depth\n", humanize.Comma(res.Missed))
	}
	if res.Stuck > 0 {
		fmt.Fprintf(b, "\n%s operations never ended\n", humanize.Comma(res.Stuck))
		for _, s := range res.StuckOps {
			fmt.Fprintf(b, "  %v\n", s)
		}
	}
	for _, path := range res.Removed {
		fmt.Fprintf(b, "\n%s is not there any more: it was removed, replaced or unmounted, and operations went to what is no longer reachable\n", path)
	}
	if len(res.Errors) > 0 {
		b.WriteString("\nerrors:\n")
		for _, e := range res.Errors {
			fmt.Fprintf(b, "  %s x %s: %s%s\n", humanize.Comma(e.Count), e.Op, e.Error, e.when())
		}
	}
	v := res.Verify
	if v == nil {
		return
	}
	what := "blocks"
	if res.Options.Metadata != "" {
		what = "names"
	}
	fmt.Fprintf(b, "\nverified %s %s", humanize.Comma(v.Checked), what)
	if v.ReadBack != "" {
		fmt.Fprintf(b, " (read back: %s)", v.ReadBack)
	}
	if v.Faults() == 0 {
		b.WriteString(": all as they should be\n")
		return
	}
	fmt.Fprintf(b, ": %d lost, %d old, %d torn, %d misplaced, %d duplicated, %d corrupt\n", v.Lost, v.Old, v.Torn, v.Misplaced, v.Duplicated, v.Corrupt)
	for _, f := range v.First {
		fmt.Fprintf(b, "  %s\n", f)
	}
}
