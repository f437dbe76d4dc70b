package perf

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/dustin/go-humanize"

	"varve/internal/capture"
	"varve/perf/trace"
)

// ReplayResult is what a replay measured, beside what was recorded.
type ReplayResult struct {
	Source string  `json:"source"`
	Format string  `json:"format"`
	Target string  `json:"target"`
	Speed  float64 `json:"speed"` // 0: as fast as possible
	Steps  int     `json:"operations"`
	Done   int64   `json:"done"`
	// Length is from when the first operation of those replayed began to when the last one ended, as it was recorded; Wanted is that at this speed, 0
	// for as fast as possible; Elapsed is what it took.
	Length  time.Duration `json:"length_ns"`
	Wanted  time.Duration `json:"wanted_ns"`
	Elapsed time.Duration `json:"elapsed_ns"`
	// Slip is by how much operations began later than they should have; nil for as fast as possible. It is not part of latencies.
	Slip    *Latency  `json:"slip,omitempty"`
	Short   int64     `json:"short_reads,omitempty"` // reads that brought less than then
	LeftOut []LeftOut `json:"left_out,omitempty"`
	// Recorded is what the same operations did then; nil if the trace does not say.
	Recorded *Result `json:"recorded,omitempty"`
	Replayed *Result `json:"replayed"`
}

// slipped is by how much operations began late.
type slipped struct{ h *hdrhistogram.Histogram }

func (s *slipped) add(d time.Duration) { record(&s.h, max(d, 0)) }

func trimmed(s *step) bool { return s.x.Kind == capture.Trim }

func speedText(speed float64) string {
	if speed == 0 {
		return "as fast as possible"
	}
	return fmt.Sprintf("speed %g", speed)
}

// result sums up a replay that has ended.
func (r *replay) result(t *trace.Trace, res *Result) *ReplayResult {
	out := &ReplayResult{
		Source: r.o.Source, Format: t.Format, Target: r.o.Target, Speed: r.o.Speed, Steps: len(r.p.steps), Length: r.p.length, Elapsed: res.Elapsed,
		Short: r.short.Load(), LeftOut: r.p.leftOut, Replayed: res,
	}
	for _, k := range res.Kinds() {
		out.Done += k.Count
	}
	if r.o.Speed > 0 {
		out.Wanted = time.Duration(float64(out.Length) / r.o.Speed)
		r.mu.Lock()
		if r.slip.h != nil {
			slip := latencyOf(r.slip.h)
			out.Slip = &slip
		}
		r.mu.Unlock()
	}
	if t.Timed {
		out.Recorded = r.p.recorded(t, r.o.Source)
	}
	return out
}

// recorded is the result that the operations of the plan had when they were recorded.
func (p *plan) recorded(t *trace.Trace, source string) *Result {
	ends := make([]*step, len(p.steps))
	for i := range ends {
		ends[i] = &p.steps[i]
	}
	end := func(s *step) time.Duration { return s.at + s.x.Took }
	slices.SortFunc(ends, func(a, b *step) int { return cmp.Compare(end(a), end(b)) })
	all := new(series)
	rec, sum := &recorder{series: all}, &recorder{series: all}
	for _, s := range ends {
		x := outcome{op: op{kind: s.kind}, started: s.at, ended: end(s)}
		if s.kind == opRead || s.kind == opWrite {
			x.bytes = int64(s.x.Done)
		}
		rec.add(x)
	}
	rec.close(sum)
	started := t.Started
	if started.Unix() < 0 { // a trace that does not say when it was
		started = time.Unix(0, 0)
	}
	return newResult(&Options{Target: "recorded", Replay: filepath.Base(source) + " as it was recorded"}, started.Add(p.steps[0].x.Begin), p.length, sum)
}

// OK reports whether all was replayed and no operation failed. A cancelled replay is not at fault.
func (res *ReplayResult) OK() bool { return res.Replayed.OK() }

// WriteText prints the result for people.
func (res *ReplayResult) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s) on %s, %s: %s of %s operations in %v", filepath.Base(res.Source), res.Format, res.Target, speedText(res.Speed),
		humanize.Comma(res.Done), humanize.Comma(int64(res.Steps)), res.Elapsed.Round(time.Millisecond))
	switch {
	case res.Wanted > 0:
		fmt.Fprintf(&b, ", which is %.1f %% of the %v that it should take", 100*res.Elapsed.Seconds()/res.Wanted.Seconds(), res.Wanted.Round(time.Millisecond))
	case res.Elapsed > 0:
		fmt.Fprintf(&b, "; it had taken %v, so %.1f times as fast", res.Length.Round(time.Millisecond), res.Length.Seconds()/res.Elapsed.Seconds())
	}
	b.WriteString("\n")
	if s := res.Replayed.Stopped; s != "" {
		fmt.Fprintf(&b, "ended early: %s\n", s)
	}
	b.WriteString("\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\t\tcount\tMiB\tmean\tp50\tp90\tp99\tp99.9\tmax\t")
	for k := range opKinds {
		for _, side := range []struct {
			name string
			res  *Result
		}{{"recorded", res.Recorded}, {"replayed", res.Replayed}} {
			if side.res == nil {
				continue
			}
			for _, x := range side.res.Kinds() {
				if x.Name == k.String() {
					fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t%s\n", x.Name, side.name, humanize.Comma(x.Count), float64(x.Bytes)/(1<<20), x.Latency.cells())
				}
			}
		}
	}
	if res.Slip != nil {
		fmt.Fprintf(t, "began late\treplayed\t\t\t%s\n", res.Slip.cells())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	res.Replayed.writeCPU(&b)
	res.Replayed.writeFaults(&b)
	if res.Short > 0 {
		fmt.Fprintf(&b, "\n%s reads brought fewer bytes than when they were recorded: the files were larger then\n", humanize.Comma(res.Short))
	}
	if len(res.LeftOut) > 0 {
		b.WriteString("\nleft out:\n")
		for _, l := range res.LeftOut {
			fmt.Fprintf(&b, "  %s x %s: %s\n", humanize.Comma(int64(l.Count)), l.Op, l.Why)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// The files of a directory that ReplayResult.WriteDir makes, beside the directories recorded and replayed, each of which is as Result.WriteDir makes it.
const (
	ReplayFile     = "replay.json"
	ReplayTextFile = "replay.txt"
)

// WriteDir writes the result to a directory, which it makes; its two parts can be compared and drawn as other runs can.
func (res *ReplayResult) WriteDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{
		writeFile(filepath.Join(dir, ReplayFile), func(w io.Writer) error {
			enc := json.NewEncoder(w)
			enc.SetIndent("", "  ")
			return enc.Encode(res)
		}),
		writeFile(filepath.Join(dir, ReplayTextFile), res.WriteText),
		res.Replayed.WriteDir(filepath.Join(dir, "replayed")),
	}
	if res.Recorded != nil {
		errs = append(errs, res.Recorded.WriteDir(filepath.Join(dir, "recorded")))
	}
	return errors.Join(errs...)
}
