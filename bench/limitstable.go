package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"varve/perf"
)

// medianLayer is the median of the samples of a layer, each figure by itself.
func medianLayer(s []layerSample) layerSample {
	if len(s) == 0 {
		return layerSample{}
	}
	of := func(f func(layerSample) float64) float64 { return medianOf(s, f) }
	return layerSample{
		IOPS: of(func(x layerSample) float64 { return x.IOPS }),
		P50:  time.Duration(of(func(x layerSample) float64 { return float64(x.P50) })),
		P99:  time.Duration(of(func(x layerSample) float64 { return float64(x.P99) })),
		CPU:  time.Duration(of(func(x layerSample) float64 { return float64(x.CPU) })),
	}
}

// limitTable is what all layers reached.
type limitTable struct {
	Began    time.Time     `json:"began"`
	Load     string        `json:"load_average"` // when it began
	Rounds   int           `json:"rounds"`
	Each     time.Duration `json:"each_ns"`
	MDS      int           `json:"mds"`
	CS       int           `json:"cs"`
	Replicas string        `json:"replicas"`
	Size     int64         `json:"size"`
	Layers   []string      `json:"layers"`
	Rows     []*limitCells `json:"rows"`
}

// limitCells are the samples of one load.
type limitCells struct {
	Name   string             `json:"name"`
	Unit   string             `json:"unit"`
	Layers map[string]*cellOf `json:"layers"`
}

type cellOf struct {
	Median  layerSample   `json:"median"`
	Samples []layerSample `json:"samples"`
	Limit   string        `json:"limit,omitempty"` // the layer below that was slowest
	OfLimit float64       `json:"of_limit,omitempty"`
	OfDisk  float64       `json:"of_disk,omitempty"`
	limits  []string
}

func (t *limitTable) add(r loadRow, l limitLayer, x layerSample) {
	i := slices.IndexFunc(t.Rows, func(c *limitCells) bool { return c.Name == r.name })
	if i < 0 {
		i = len(t.Rows)
		t.Rows = append(t.Rows, &limitCells{Name: r.name, Unit: r.unit(), Layers: map[string]*cellOf{}})
	}
	cells := t.Rows[i].Layers
	if cells[l.name] == nil {
		cells[l.name] = &cellOf{limits: l.limits}
	}
	cells[l.name].Samples = append(cells[l.name].Samples, x)
	cells[l.name].Median = medianLayer(cells[l.name].Samples)
}

// finish compares each layer with its limit and with the disk.
func (t *limitTable) finish() {
	for _, row := range t.Rows {
		for name, c := range row.Layers {
			if disk := row.Layers[layerDisk]; disk != nil && name != layerDisk && disk.Median.IOPS > 0 {
				c.OfDisk = c.Median.IOPS / disk.Median.IOPS
			}
			least := 0.0
			for _, l := range c.limits {
				if b := row.Layers[l]; b != nil && b.Median.IOPS > 0 && (least == 0 || b.Median.IOPS < least) {
					least, c.Limit = b.Median.IOPS, l
				}
			}
			if least > 0 {
				c.OfLimit = c.Median.IOPS / least
			}
		}
	}
}

// print writes what each layer reached, as Markdown, and below it latencies and CPU.
func (t *limitTable) print(w io.Writer) {
	fmt.Fprintf(w, "%s, load average %s; %d MDS, %d CS, replicas %s, all on this machine; %s, direct I/O; medians of %d rounds of %v\n\n",
		t.Began.Format(time.RFC3339), t.Load, t.MDS, t.CS, t.Replicas, humanize.IBytes(uint64(t.Size)), t.Rounds, t.Each)
	t.grid(w, func(c *cellOf) string { return humanize.Comma(int64(c.Median.IOPS)) })
	fmt.Fprintf(w, "\nas a share of the slowest layer that it is made of; in brackets, of the disk\n\n")
	t.grid(w, func(c *cellOf) string {
		switch {
		case c.Limit != "":
			return fmt.Sprintf("%.2f of %s (%.2f)", c.OfLimit, c.Limit, c.OfDisk)
		case c.OfDisk > 0:
			return fmt.Sprintf("(%.2f)", c.OfDisk)
		}
		return ""
	})
	fmt.Fprintf(w, "\np50, p99; CPU of all that took part, for an operation\n\n")
	t.grid(w, func(c *cellOf) string {
		return fmt.Sprintf("%s, %s; %s", perf.ShortDuration(c.Median.P50), perf.ShortDuration(c.Median.P99), perf.ShortDuration(c.Median.CPU))
	})
}

// grid writes a row for each load and a column for each layer.
func (t *limitTable) grid(w io.Writer, cell func(*cellOf) string) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "| load\t| unit\t")
	for _, l := range t.Layers {
		fmt.Fprintf(tw, "| %s\t", l)
	}
	fmt.Fprint(tw, "|\n| ---\t| ---\t")
	for range t.Layers {
		fmt.Fprint(tw, "| --:\t")
	}
	fmt.Fprintln(tw, "|")
	for _, r := range t.Rows {
		fmt.Fprintf(tw, "| %s\t| %s\t", r.Name, r.Unit)
		for _, l := range t.Layers {
			text := ""
			if c := r.Layers[l]; c != nil {
				text = cell(c)
			}
			fmt.Fprintf(tw, "| %s\t", text)
		}
		fmt.Fprintln(tw, "|")
	}
	tw.Flush()
}

// writeCSV writes a line for each load and layer; times are in microseconds.
func (t *limitTable) writeCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"load", "unit", "layer", "value", "p50_us", "p99_us", "cpu_us", "samples", "limit", "of_limit", "of_disk"}) // Error tells
	us := func(d time.Duration) string { return strconv.FormatFloat(float64(d)/1e3, 'f', 3, 64) }
	share := func(v float64) string {
		if v == 0 {
			return ""
		}
		return strconv.FormatFloat(v, 'f', 4, 64)
	}
	for _, r := range t.Rows {
		for _, l := range t.Layers {
			if x := r.Layers[l]; x != nil {
				m := x.Median
				_ = c.Write([]string{
					r.Name, r.Unit, l, strconv.FormatFloat(m.IOPS, 'f', 1, 64), us(m.P50), us(m.P99), us(m.CPU), strconv.Itoa(len(x.Samples)), x.Limit, share(x.OfLimit), share(x.OfDisk),
				})
			}
		}
	}
	c.Flush()
	return c.Error()
}

// results is all that one run of bench measured.
type results struct {
	Limits   *limitTable `json:"limits,omitempty"`
	Mount    []*row      `json:"mount,omitempty"`
	Metadata []*row      `json:"metadata,omitempty"`
}

// writeDir writes results to a directory: report.txt for people, results.json for programs, limits.csv for spreadsheets.
func (x *results) writeDir(dir string, text func(io.Writer)) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := func(name string, write func(io.Writer) error) error {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	err := errors.Join(
		file("report.txt", func(w io.Writer) error { text(w); return nil }),
		file("results.json", func(w io.Writer) error {
			enc := json.NewEncoder(w)
			enc.SetIndent("", "  ")
			return enc.Encode(x)
		}),
	)
	if x.Limits != nil {
		err = errors.Join(err, file("limits.csv", x.Limits.writeCSV))
	}
	return err
}
