package profile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"varve/perf"

	"github.com/dustin/go-humanize"
)

// Result is what a profile measured.
type Result struct {
	Profile string        `json:"profile"`
	Target  string        `json:"target"`
	Phases  []PhaseResult `json:"phases"`
}

// PhaseResult is what one phase measured.
type PhaseResult struct {
	Name   string        `json:"name"`
	Groups []GroupResult `json:"groups"`
}

// GroupResult is what one group measured in one phase.
type GroupResult struct {
	Name   string       `json:"name"`
	Result *perf.Result `json:"result,omitempty"`
	Error  string       `json:"error,omitempty"` // why nothing was measured
}

// names reports whether all groups work on names, which needs no files.
func (p *Profile) names() bool {
	for _, ph := range p.Phases {
		for _, g := range ph.Groups {
			if g.Metadata == "" {
				return false
			}
		}
	}
	return true
}

// Run does the profile on a target, mount:DIR or null, or mds:ADDR if all its groups work on names, a phase after the other. progress, unless it is nil, is told every second what
// the groups did. Where ctx ends, or a group fails, the phases after that one are left out, and the Result has what ran.
func (p *Profile) Run(ctx context.Context, target string, progress func(phase, group string, _ perf.Progress)) (*Result, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if target != "null" && !strings.HasPrefix(target, "mount:") && !(strings.HasPrefix(target, "mds:") && p.names()) {
		return nil, fmt.Errorf("target %q: a profile wants mount:DIR or null, as its groups have files of their own, or mds:ADDR if they only work on names", target)
	}
	res := &Result{Profile: p.Name, Target: target}
	for _, ph := range p.Phases {
		out := PhaseResult{Name: ph.Name, Groups: make([]GroupResult, len(ph.Groups))}
		for _, g := range ph.Groups { // one after the other: the groups shall begin together
			if g.Clone != "" {
				continue
			}
			_ = perf.Prepare(ctx, g.options(target, time.Duration(ph.For))) // the run says what is wrong
		}
		var all sync.WaitGroup
		for i, g := range ph.Groups {
			all.Go(func() {
				var tell func(perf.Progress)
				if progress != nil {
					tell = func(x perf.Progress) { progress(ph.Name, g.Name, x) }
				}
				r, err := perf.RunWith(ctx, g.options(target, time.Duration(ph.For)), tell)
				out.Groups[i] = GroupResult{Name: g.Name, Result: r}
				if err != nil {
					out.Groups[i].Error = err.Error()
				}
			})
		}
		all.Wait()
		res.Phases = append(res.Phases, out)
		if ctx.Err() != nil || !out.ok() {
			break
		}
	}
	return res, nil
}

func (p *PhaseResult) ok() bool {
	for _, g := range p.Groups {
		if g.Error != "" || !g.Result.OK() {
			return false
		}
	}
	return true
}

// OK reports whether every group did all it was told to.
func (res *Result) OK() bool {
	for _, p := range res.Phases {
		if !p.ok() {
			return false
		}
	}
	return true
}

// WriteText prints the result for people.
func (res *Result) WriteText(w io.Writer) error {
	for _, p := range res.Phases {
		for _, g := range p.Groups {
			if _, err := fmt.Fprintf(w, "# %s, %s: ", p.Name, g.Name); err != nil {
				return err
			}
			if g.Result == nil {
				fmt.Fprintf(w, "%s\n\n", g.Error)
				continue
			}
			if err := g.Result.WriteText(w); err != nil {
				return err
			}
			fmt.Fprintln(w)
		}
	}
	return res.writeSummary(w)
}

// writeSummary prints a line for each kind of operation of each group: what the phases took, and their rates.
func (res *Result) writeSummary(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "phase\tgroup\toperation\tcount\ttook\trate\tp50\tp99")
	for _, p := range res.Phases {
		for _, g := range p.Groups {
			if g.Result == nil {
				fmt.Fprintf(t, "%s\t%s\tnot measured\n", p.Name, g.Name)
				continue
			}
			for _, k := range g.Result.Kinds() {
				rate := humanize.CommafWithDigits(k.IOPS, 1) + "/s"
				if k.Bytes > 0 {
					rate += fmt.Sprintf(", %.1f MiB/s", k.MiBs)
				}
				name := k.Name
				if g.Result.ClonedBy != "" {
					name += " by " + g.Result.ClonedBy
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, g.Name, name, humanize.Comma(k.Count), perf.ShortDuration(g.Result.Elapsed), rate,
					perf.ShortDuration(k.Latency.P50), perf.ShortDuration(k.Latency.P99))
			}
		}
	}
	return t.Flush()
}

// WriteDir writes a directory for each group of each phase, in the order in which they ran, for perf/report.
func (res *Result) WriteDir(dir string) error {
	var errs []error
	for i, p := range res.Phases {
		for _, g := range p.Groups {
			if g.Result != nil {
				errs = append(errs, g.Result.WriteDir(filepath.Join(dir, fmt.Sprintf("%02d-%s.%s", i+1, p.Name, g.Name))))
			}
		}
	}
	return errors.Join(errs...)
}
