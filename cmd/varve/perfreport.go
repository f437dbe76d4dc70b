package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"varve/perf/report"

	"github.com/spf13/cobra"
)

func (a *app) perfReportCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "report DIR...", Short: "Draw what perf run --out has measured: a page, and pictures", Args: cobra.MinimumNArgs(1),
		Long: "Draw what perf run --out has measured: report.html, which needs no other file, and its pictures as PNG. Several runs are drawn\n" +
			"into one picture. A directory of directories stands for all the runs in it.",
		RunE: func(_ *cobra.Command, dirs []string) error {
			runs, err := report.Load(dirs...)
			if err != nil {
				return err
			}
			if to == "" {
				to = dirs[0]
			}
			return a.writeReport(to, runs, "", "", nil)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the directory to write to; default: the first DIR")
	return cmd
}

func (a *app) writeReport(to string, runs []report.Run, x, y string, c []report.Comparison) error {
	var names []string
	for _, r := range runs {
		names = append(names, r.Name)
	}
	title := strings.Join(names, ", ")
	if len(title) > 120 {
		title = fmt.Sprintf("%d runs", len(runs))
	}
	paths, err := report.WriteDir(to, title, runs, x, y, c)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Files []string `json:"files"`
		}{paths})
	}
	for _, r := range runs {
		fmt.Fprintf(a.out, "# %s\n", r.Name)
		if err := r.Result.WriteText(a.out); err != nil {
			return err
		}
		fmt.Fprintln(a.out)
	}
	_, err = fmt.Fprintln(a.out, strings.Join(paths, "\n"))
	return err
}

func (a *app) perfCompareCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "compare A B", Short: "Tell whether B was faster than A, and how sure that is", Args: cobra.ExactArgs(2),
		Long: "Tell whether B was faster than A, and how sure that is. Each is what perf run --out made, or a directory of such directories. With\n" +
			"four runs or more on each side, runs are compared, which tells more than the seconds of one.",
		RunE: func(_ *cobra.Command, dirs []string) error {
			x, err := report.Load(dirs[0])
			if err != nil {
				return err
			}
			y, err := report.Load(dirs[1])
			if err != nil {
				return err
			}
			c := report.Compare(x, y)
			if len(c) == 0 {
				return fmt.Errorf("%s and %s have nothing to compare: runs of less than a second?", dirs[0], dirs[1])
			}
			if to != "" {
				all, err := report.Load(dirs...)
				if err != nil {
					return err
				}
				nameA, nameB := filepath.Base(filepath.Clean(dirs[0])), filepath.Base(filepath.Clean(dirs[1]))
				if _, err := report.WriteDir(to, nameB+" against "+nameA, all, nameA, nameB, c); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(c)
			}
			if x[0].Result.Options.Describe() != y[0].Result.Options.Describe() {
				fmt.Fprintf(a.out, "A: %s\nB: %s\n\n", x[0].Result.Options.Describe(), y[0].Result.Options.Describe())
			}
			rows := [][]string{{"figure", "A", "B", "unit", "change", "95 % interval", "p", "samples", "B is"}}
			for _, c := range c {
				rows = append(rows, []string{c.Figure, fmt.Sprintf("%.4g", c.A), fmt.Sprintf("%.4g", c.B), c.Unit, fmt.Sprintf("%+.1f %%", 100*c.Change),
					fmt.Sprintf("%+.1f to %+.1f %%", 100*c.Low, 100*c.High), fmt.Sprintf("%.3f", c.P), fmt.Sprintf("%d, %d", c.Samples[0], c.Samples[1]), string(c.Verdict)})
			}
			return a.table(rows)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "also write a page and pictures to this directory")
	return cmd
}
