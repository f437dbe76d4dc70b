package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"varve/perf"
	"varve/perf/profile"
	"varve/perf/report"
)

// runCompare does the same profiles on several mounts, whatever serves them, and prints their medians side by side. What makes it fair: the same
// files, laid out by the same program; the page cache dropped before every sample; one mount at a time, in an order that turns by one each
// round; medians; and the CPU of every storage daemon that is known (perf/cpu.go), so that a system cannot buy its speed unseen.
func runCompare(ctx context.Context, o options, args []string) error {
	targets, err := compareTargets(args)
	if err != nil {
		return err
	}
	t := newTable(targets)
	var all []report.Run
	out := o.out
	for _, name := range strings.Split(o.profiles, ",") {
		p, err := profile.Find(name)
		if err != nil {
			return err
		}
		p = p.Scale(o.times, o.sizes)
		for round := range o.rounds {
			for k := range targets {
				x := targets[(k+round)%len(targets)]
				dropCaches()
				res, err := p.Run(ctx, "mount:"+x.dir, nil)
				if err != nil {
					return err
				}
				if ctx.Err() != nil {
					fmt.Println("interrupted; what was measured until then:")
					return printCompare(t, all, out)
				}
				for _, ph := range res.Phases {
					for _, g := range ph.Groups {
						what := fmt.Sprintf("%s: %s, %s", p.Name, ph.Name, g.Name)
						if g.Result == nil || !g.Result.OK() {
							fmt.Printf("%s on %s, round %d: failed: %s%s\n", what, x.name, round+1, g.Error, stoppedBy(g.Result))
							continue
						}
						t.add(what, "ops/s", x.name, sample{Value: g.Result.Total.IOPS, P99: g.Result.Total.Latency.P99, CPU: daemons(g.Result)})
						all = append(all, report.Run{Name: fmt.Sprintf("%s.%02d.%s.%s.%s", x.name, round+1, p.Name, ph.Name, g.Name), Result: g.Result})
					}
				}
				fmt.Printf("%s, round %d of %d, %s: done\n", p.Name, round+1, o.rounds, x.name)
			}
		}
	}
	return printCompare(t, all, out)
}

func stoppedBy(r *perf.Result) string {
	if r == nil {
		return ""
	}
	return r.Stopped
}

// daemons is the CPU for an operation of all but the generator.
func daemons(r *perf.Result) (sum time.Duration) {
	for _, p := range r.CPU {
		if p.PID != os.Getpid() {
			sum += p.PerOp
		}
	}
	return sum
}

func compareTargets(args []string) ([]target, error) {
	var targets []target
	seen := map[string]bool{}
	for _, a := range args {
		name, dir, ok := strings.Cut(a, "=")
		if !ok || name == "" || strings.ContainsAny(name, "/ ") || seen[name] {
			return nil, fmt.Errorf("%q: want NAME=DIR, each name once", a)
		}
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return nil, errors.Join(fmt.Errorf("%s: %s is not a directory", name, dir), err)
		}
		seen[name] = true
		targets = append(targets, target{name: name, dir: dir})
	}
	if len(targets) < 2 {
		return nil, errors.New("want two mounts or more, each as NAME=DIR")
	}
	return targets, nil
}

// printCompare prints the table, and writes the runs where they are wanted.
func printCompare(t *table, all []report.Run, out string) error {
	fmt.Println()
	t.printAll(os.Stdout)
	if out == "" {
		return nil
	}
	for _, r := range all {
		target, run, _ := strings.Cut(r.Name, ".")
		if err := r.Result.WriteDir(filepath.Join(out, target, run)); err != nil {
			return err
		}
	}
	fmt.Printf("\nruns are below %s: varve perf compare %s/NAME %s/NAME, varve perf report ...\n", out, out, out)
	return nil
}
