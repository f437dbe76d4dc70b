package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"varve/perf"
)

// What the generator has to be, beside fio on the same file, and alone.
const (
	nearRate = 0.03 // IOPS differ by so much at most
	nearTime = 0.10 // p50 and p99
	moreCPU  = 1.5  // at most so many times fio's CPU for an operation

	// ceilingOver is how many times what any target here delivers the generator has to start when operations take no time.
	ceilingOver = 5
)

// turn is how long fio and the generator work before it is the other's turn: short, so that what else the machine does hits both.
const turn = 500 * time.Millisecond

// reach is what one of them reached in one turn.
type reach struct {
	IOPS float64       `json:"iops"`
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`
	CPU  time.Duration `json:"cpu_ns"` // for an operation
}

// pairs are the turns of one row: those of the same index follow one another.
type pairs struct {
	Name string  `json:"name"`
	Fio  []reach `json:"fio"`
	Ours []reach `json:"generator"`
}

// ratio is the generator's figure as a multiple of fio's: the median of the turns' ratios, and between what it is with 95 % confidence.
type ratio struct{ lo, mid, hi float64 }

func (p *pairs) ratio(of func(reach) float64) ratio {
	var v []float64
	for i := range p.Fio {
		if f := of(p.Fio[i]); f > 0 {
			v = append(v, of(p.Ours[i])/f)
		}
	}
	if len(v) == 0 {
		return ratio{}
	}
	slices.Sort(v)
	lo, hi := medianRanks(len(v))
	return ratio{v[lo], (v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[hi]}
}

// medianRanks returns the ranks of n sorted samples between which the median lies with a confidence of 95 %, or all, if they are too few: as many
// as not are above the median, so the number above it is binomial.
func medianRanks(n int) (lo, hi int) {
	p, tail := 1.0, 0.0 // of 2^-n times the binomial coefficients
	for range n {
		p /= 2
	}
	for k := 0; k < n/2; k++ {
		if tail += p; tail > 0.025 {
			break
		}
		lo = k + 1
		p *= float64(n-k) / float64(k+1)
	}
	lo = max(lo-1, 0)
	return lo, n - 1 - lo
}

// near says whether a ratio is within a bound of 1.
func near(r ratio, by float64) string { return verdict(r, 1-by, 1+by) }

// verdict says whether a ratio is between two bounds. Where the turns differ too much to tell, it says that.
func verdict(r ratio, lo, hi float64) string {
	switch {
	case r.mid >= lo && r.mid <= hi:
		return "holds"
	case r.hi >= lo && r.lo <= hi:
		return "open"
	case r.mid > hi:
		return "above"
	}
	return "below"
}

// runGenerator compares the load generator with fio on one file, with direct I/O and the same options, and measures what it does where operations
// take no time.
func runGenerator(ctx context.Context, o options) error {
	size, err := parseSize(o.size)
	if err != nil {
		return err
	}
	local := target{name: "local", dir: o.dir}
	path := filepath.Join(o.dir, fioFile)
	fmt.Printf("filling %s of fio's file\n", o.size)
	if _, err := fio(ctx, o, local, "--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"); err != nil {
		return err
	}
	defer os.Remove(path)
	turns := max(int(time.Duration(o.rounds)*o.duration/turn), 1)
	var all []*pairs
	for _, r := range loadRows {
		if !strings.Contains(r.name, o.only) {
			continue
		}
		p := &pairs{Name: r.name}
		for i := range turns {
			steps := []func() error{
				func() error { return p.sampleFio(ctx, o, local, r) },
				func() error { return p.sampleOurs(ctx, path, r, size) },
			}
			if i%2 == 1 {
				slices.Reverse(steps)
			}
			for _, step := range steps {
				if err := step(); err != nil {
					return err
				}
			}
		}
		all = append(all, p)
		fmt.Printf("%-22s %d turns of %v each\n", r.name, turns, turn)
	}
	fmt.Printf("\nthe load generator as a multiple of fio's io_uring engine on the same file: medians of %d pairs of turns, and their 95 %% confidence\n\n", turns)
	printPairs(os.Stdout, all)
	null, err := ceilings(ctx, o, os.Stdout, all)
	if err != nil || o.out == "" {
		return err
	}
	b, err := json.MarshalIndent(struct {
		Pairs []*pairs  `json:"pairs"`
		Null  []ceiling `json:"null"`
	}{all, null}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, b, 0o644)
}

// sampleFio has fio do a turn. Its latency is the whole one (lat), from when the operation was made, as ours is; it would include how long fio takes to
// change what it writes, so both write the same again.
func (p *pairs) sampleFio(ctx context.Context, o options, tg target, r loadRow) error {
	res, err := fio(ctx, o, tg, "--ioengine=io_uring", "--registerfiles=1", "--fixedbufs=1", "--norandommap", "--scramble_buffers=0", "--thread", "--time_based",
		fmt.Sprintf("--runtime=%dms", turn.Milliseconds()), "--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99",
		"--rw="+string(r.rw), "--bs="+fmt.Sprint(r.bs), "--iodepth="+fmt.Sprint(r.qd))
	if err != nil {
		return err
	}
	j := res.Jobs[0]
	d := j.Read
	if d.Total == 0 {
		d = j.Write
	}
	if d.Total == 0 {
		return fmt.Errorf("fio: %s: nothing was done in %v", r.name, turn)
	}
	at := func(p string) time.Duration { return time.Duration(d.Whole.Percentile[p]) }
	p.Fio = append(p.Fio, reach{d.IOPS, at("50.000000"), at("99.000000"), time.Duration((j.User + j.System) / 100 * d.Runtime * 1e6 / d.Total)})
	return nil
}

// sampleOurs has the generator do a turn.
func (p *pairs) sampleOurs(ctx context.Context, path string, r loadRow, size int64) error {
	res, err := perf.Run(ctx, perf.Options{
		Target: "file:" + path, RW: r.rw, BlockSize: r.bs, QD: r.qd, Jobs: 1, Size: size, Duration: turn, Direct: true, Repeat: true, Engine: perf.URing,
		Seed: uint64(time.Now().UnixNano()),
	})
	if err != nil {
		return err
	}
	if !res.OK() || res.Stopped != "" {
		return fmt.Errorf("%s by the generator: %s %+v", r.name, res.Stopped, res.Errors)
	}
	p.Ours = append(p.Ours, reach{res.Total.IOPS, res.Total.Latency.P50, res.Total.Latency.P99, res.GeneratorCPU()})
	return nil
}

var reachFigures = []struct {
	name string
	of   func(reach) float64
	says func(ratio) string
}{
	{"IOPS", func(r reach) float64 { return r.IOPS }, func(r ratio) string { return near(r, nearRate) }},
	{"p50", func(r reach) float64 { return float64(r.P50) }, func(r ratio) string { return near(r, nearTime) }},
	{"p99", func(r reach) float64 { return float64(r.P99) }, func(r ratio) string { return near(r, nearTime) }},
	{"CPU per op", func(r reach) float64 { return float64(r.CPU) }, func(r ratio) string { return verdict(r, 0, moreCPU) }},
}

func printPairs(w io.Writer, all []*pairs) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| figure\t| of\t| fio\t| generator\t| ratio\t| 95 %\t| has to be\t| so\t|\n| ---\t| ---\t| --:\t| --:\t| --:\t| --:\t| ---\t| ---\t|")
	want := map[string]string{"IOPS": "0.97 to 1.03", "p50": "0.90 to 1.10", "p99": "0.90 to 1.10", "CPU per op": "1.5 at most"}
	for _, p := range all {
		for _, f := range reachFigures {
			r := p.ratio(f.of)
			show := func(s []reach) string {
				v := medianOf(s, f.of)
				if f.name == "IOPS" {
					return humanize.Comma(int64(v))
				}
				return perf.ShortDuration(time.Duration(v))
			}
			fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %.2f\t| %.2f to %.2f\t| %s\t| %s\t|\n", p.Name, f.name, show(p.Fio), show(p.Ours), r.mid, r.lo, r.hi, want[f.name], f.says(r))
		}
	}
	tw.Flush()
	fmt.Fprintln(w, "\n\"open\": the median is outside, but the turns differ too much to tell")
}

func medianOf[T any](s []T, of func(T) float64) float64 {
	v := make([]float64, len(s))
	for i := range s {
		v[i] = of(s[i])
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// ceiling is what the generator does where operations take no time.
type ceiling struct {
	Depth int     `json:"depth"`
	RW    perf.RW `json:"rw"`
	Reach []reach `json:"samples"`
	// Target is the most that anything measured here delivers at that depth; 0: nothing was.
	Target float64 `json:"most_of_a_target"`
}

// ceilings measures the generator alone: one job, blocks of 4 KiB, each operation a round through the kernel that does nothing. Beside it stands
// the most that the file delivered above: no target of this machine delivers more.
func ceilings(ctx context.Context, o options, w io.Writer, all []*pairs) ([]ceiling, error) {
	var out []ceiling
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\nthe generator alone, one job: medians of %d\n\n", o.rounds)
	fmt.Fprintf(tw, "| figure\t| ops/s\t| p99\t| CPU per op\t| the file's most\t| is so many times\t| has to be %d\t|\n| ---\t| --:\t| --:\t| --:\t| --:\t| --:\t| ---\t|\n", ceilingOver)
	for _, r := range loadRows {
		if r.bs != smallBlock || !strings.Contains(r.name, o.only) {
			continue
		}
		c := ceiling{Depth: r.qd, RW: r.rw}
		for range o.rounds {
			res, err := perf.Run(ctx, perf.Options{Target: "null", RW: r.rw, QD: r.qd, Jobs: 1, Duration: 2 * turn, Engine: perf.URing})
			if err != nil {
				return nil, err
			}
			c.Reach = append(c.Reach, reach{res.Total.IOPS, res.Total.Latency.P50, res.Total.Latency.P99, res.GeneratorCPU()})
		}
		for _, p := range all {
			if p.Name == r.name {
				iops := func(r reach) float64 { return r.IOPS }
				c.Target = max(medianOf(p.Fio, iops), medianOf(p.Ours, iops))
			}
		}
		have := medianOf(c.Reach, func(r reach) float64 { return r.IOPS })
		times := have / max(c.Target, 1)
		says := "reached"
		if times < ceilingOver {
			says = "missed"
		}
		fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %s\t| %.0f\t| %s\t|\n", r.name, humanize.Comma(int64(have)),
			perf.ShortDuration(time.Duration(medianOf(c.Reach, func(r reach) float64 { return float64(r.P99) }))),
			perf.ShortDuration(time.Duration(medianOf(c.Reach, func(r reach) float64 { return float64(r.CPU) }))), humanize.Comma(int64(c.Target)), times, says)
		out = append(out, c)
	}
	return out, tw.Flush()
}
