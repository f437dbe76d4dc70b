package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// sample is one measurement.
type sample struct {
	Value float64       `json:"value"`            // in the row's unit
	P50   time.Duration `json:"p50_ns,omitempty"` // of data operations
	P99   time.Duration `json:"p99_ns,omitempty"`
	CPU   time.Duration `json:"cpu_ns,omitempty"` // of the serving processes, per operation
	// Servers is the part of chunk and metadata servers, where that of the mount is told apart: then CPU is the mount's.
	Servers time.Duration `json:"servers_cpu_ns,omitempty"`
}

// row holds all samples of one figure by target.
type row struct {
	Name    string              `json:"name"`
	Unit    string              `json:"unit"`
	Samples map[string][]sample `json:"samples"`
}

type table struct {
	targets []target
	rows    []*row
}

func newTable(targets []target) *table { return &table{targets: targets} }

func (t *table) add(name, unit, target string, s sample) {
	i := slices.IndexFunc(t.rows, func(r *row) bool { return r.Name == name })
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, &row{Name: name, Unit: unit, Samples: make(map[string][]sample)})
	}
	t.rows[i].Samples[target] = append(t.rows[i].Samples[target], s)
}

// median of the samples by value.
func median(s []sample) sample {
	if len(s) == 0 {
		return sample{}
	}
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b sample) int {
		switch {
		case a.Value < b.Value:
			return -1
		case a.Value > b.Value:
			return 1
		}
		return 0
	})
	return s[len(s)/2]
}

// print writes a Markdown table: a column for each target that was sampled, the ratio of the last to the first, p99 and CPU of the last.
func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	first, last := t.targets[0].name, t.targets[len(t.targets)-1].name
	names := []string{first}
	for _, r := range t.rows {
		for name := range r.Samples {
			if name != last && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	names = append(names, last)
	fmt.Fprintf(tw, "| figure\t| unit\t")
	for _, n := range names {
		fmt.Fprintf(tw, "| %s\t", n)
	}
	fmt.Fprintf(tw, "| ratio\t| %s p99\t| %s CPU per op\t|\n| ---\t| ---\t", last, last)
	for range len(names) + 3 {
		fmt.Fprintf(tw, "| --:\t")
	}
	fmt.Fprintln(tw, "|")
	for _, r := range t.rows {
		fmt.Fprintf(tw, "| %s\t| %s\t", r.Name, r.Unit)
		for _, n := range names {
			value := ""
			if s := r.Samples[n]; len(s) > 0 {
				value = humanize.Comma(int64(median(s).Value))
			}
			fmt.Fprintf(tw, "| %s\t", value)
		}
		a, b := median(r.Samples[first]), median(r.Samples[last])
		p99 := ""
		if b.P99 > 0 {
			p99 = b.P99.Round(time.Microsecond).String()
		}
		fmt.Fprintf(tw, "| %.2f\t| %s\t| %s\t|\n", b.Value/max(a.Value, 1), p99, b.CPU.Round(time.Microsecond))
	}
	tw.Flush()
}

// printAll writes a Markdown table with a row for each figure and target, and how the first target does against it.
func (t *table) printAll(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	first := t.targets[0].name
	fmt.Fprintf(tw, "| figure\t| on\t| unit\t| median\t| p99\t| daemons' CPU per op\t| samples\t| %s is so many times\t|\n| ---\t| ---\t| ---\t| --:\t| --:\t| --:\t| --:\t| --:\t|\n", first)
	for _, r := range t.rows {
		for _, x := range t.targets {
			s := r.Samples[x.name]
			if len(s) == 0 {
				fmt.Fprintf(tw, "| %s\t| %s\t| \t| \t| \t| \t| 0\t| \t|\n", r.Name, x.name)
				continue
			}
			m := median(s)
			fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %v\t| %v\t| %d\t| %.2f\t|\n", r.Name, x.name, r.Unit, humanize.Comma(int64(m.Value)),
				m.P99.Round(time.Microsecond), m.CPU.Round(100*time.Nanosecond), len(s), median(r.Samples[first]).Value/max(m.Value, 1))
		}
	}
	tw.Flush()
}
