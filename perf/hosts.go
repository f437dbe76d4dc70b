package perf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// HostResult is what one host did in a load of several.
type HostResult struct {
	Name string `json:"name"`           // as it was asked for
	Host string `json:"host,omitempty"` // as it calls itself
	// Lost says why the host's agent did not report to the end; empty if it did. Then what it told until then is in the result.
	Lost string `json:"lost,omitempty"`
	// ClockError is the most by which its start can have been off since clocks differ; Late is by how much it came too late besides.
	ClockError time.Duration `json:"clock_error_ns"`
	Late       time.Duration `json:"late_ns"`
	// Wall is by how much its wall clock is ahead of that of the asking host.
	Wall time.Duration `json:"wall_offset_ns"`
	// Result is what it measured, without Series.
	Result *Result `json:"result"`
}

// AddHost adds what a host measured to the result of all, in which its samples are already.
func (res *Result) AddHost(h HostResult) {
	res.Hosts = append(res.Hosts, h)
	r := h.Result
	res.Missed += r.Missed
	res.Stuck += r.Stuck
	for _, s := range r.StuckOps {
		if len(res.StuckOps) < maxStuck {
			s.Path = h.Name + ":" + s.Path
			res.StuckOps = append(res.StuckOps, s)
		}
	}
	for _, path := range r.Removed {
		res.Removed = append(res.Removed, h.Name+":"+path)
	}
	res.Errors = addErrors(res.Errors, r.Errors)
	for _, p := range r.CPU {
		p.Name = h.Name + ": " + p.Name
		p.PerOp = 0
		if res.Total.Count > 0 {
			p.PerOp = p.CPU / time.Duration(res.Total.Count)
		}
		res.CPU = append(res.CPU, p)
	}
	slices.SortStableFunc(res.CPU, func(a, b ProcessCPU) int { return cmp.Compare(b.CPU, a.CPU) })
	if v := r.Verify; v != nil {
		if res.Verify == nil {
			res.Verify = &VerifyResult{ReadBack: v.ReadBack}
		}
		if v.ReadBack != "done" {
			res.Verify.ReadBack = v.ReadBack
		}
		res.Verify.merge(v)
	}
	why := r.Stopped
	if h.Lost != "" {
		why = "its agent was lost: " + h.Lost
		res.Lost++
	}
	switch {
	case why == "":
	case why == cancelled && (res.Stopped == "" || res.Stopped == cancelled):
		res.Stopped = cancelled
	case res.Stopped == "" || res.Stopped == cancelled:
		res.Stopped = fmt.Sprintf("host %s: %s", h.Name, why)
		res.Gone = r.Gone
	}
}

// addErrors adds counts of errors by kind, the most frequent first.
func addErrors(all, more []ErrorCount) []ErrorCount {
	for _, e := range more {
		i := slices.IndexFunc(all, func(x ErrorCount) bool { return x.Op == e.Op && x.Error == e.Error })
		if i < 0 {
			all = append(all, e)
			continue
		}
		x := &all[i]
		x.Count += e.Count
		x.First, x.Last = min(x.First, e.First), max(x.Last, e.Last)
	}
	slices.SortStableFunc(all, func(a, b ErrorCount) int { return cmp.Compare(b.Count, a.Count) })
	return all
}

// writeHosts prints what each host did.
func (res *Result) writeHosts(b *strings.Builder) error {
	if len(res.Hosts) == 0 {
		return nil
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "host\tcount\tIOPS\tMiB/s\tmean\tp50\tp90\tp99\tp99.9\tmax\tbegan within\terrors\t")
	for _, h := range res.Hosts {
		var errors int64
		for _, e := range h.Result.Errors {
			errors += e.Count
		}
		o := h.Result.Total
		fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t%s%s\t%d\t\n", h.Name, humanize.Comma(o.Count), humanize.Comma(int64(o.IOPS)), o.MiBs, o.Latency.cells(),
			ShortDuration(h.Late+h.ClockError), errors)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, h := range res.Hosts {
		switch {
		case h.Lost != "":
			fmt.Fprintf(b, "host %s was lost after %v: %s; what it told until then is counted\n", h.Name, h.Result.Elapsed.Round(time.Second), h.Lost)
		case h.Result.Stopped != "" && h.Result.Stopped != cancelled:
			fmt.Fprintf(b, "host %s ended early: %s\n", h.Name, h.Result.Stopped)
		}
	}
	return nil
}
