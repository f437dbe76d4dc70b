package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"varve/perf"
	"varve/perf/profile"

	"github.com/spf13/cobra"
)

func (a *app) perfProfile(cmd *cobra.Command, f *perfFlags) error {
	for _, name := range []string{"for", "rw", "meta", "files", "mix", "bs", "qd", "jobs", "size", "rate", "arrival", "dist", "fsync", "verify", "direct", "engine", "seed", "budget",
		"ramp", "settle", "max-errors", "steady", "host"} {
		if cmd.Flags().Changed(name) {
			return usagef("--%s and --profile: the profile says that", name)
		}
	}
	if f.times <= 0 || f.sizes <= 0 {
		return usagef("--scale-time %v, --scale-size %v: want more than 0", f.times, f.sizes)
	}
	if f.o.Target == "" {
		return usagef("which target? Give --target mount:DIR")
	}
	p, err := profile.Find(f.profile)
	if err != nil {
		return usagef("%w", err)
	}
	if f.times != 1 || f.sizes != 1 {
		p = p.Scale(f.times, f.sizes)
	}
	if f.outDir != "" {
		if err := os.MkdirAll(f.outDir, 0o755); err != nil { // before the run, which would be in vain
			return err
		}
	}
	res, err := p.Run(cmd.Context(), f.o.Target, a.profileProgress())
	if err != nil {
		return err
	}
	if err := a.perfResult(res, f.outDir); err != nil {
		return err
	}
	if !res.OK() {
		return fmt.Errorf("%s on %s: some operations failed; see the report", p.Name, res.Target)
	}
	return nil
}

// profileProgress shows a line a second for each group, if standard error is a terminal.
func (a *app) profileProgress() func(phase, group string, p perf.Progress) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) {
		return nil
	}
	var mu sync.Mutex
	return func(phase, group string, p perf.Progress) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(f, "%s, %s: %v: %v\n", phase, group, p.Elapsed, p)
	}
}

func (a *app) perfListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the profiles that come with varve", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := profile.Builtin()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(all)
			}
			rows := [][]string{{"profile", "takes", "what it is"}}
			for _, p := range all {
				var d time.Duration
				more := ""
				for _, ph := range p.Phases {
					d += time.Duration(ph.For)
					if ph.Once {
						more = " and more" // as long as the target needs
					}
				}
				rows = append(rows, []string{p.Name, d.String() + more, p.About})
			}
			return a.table(rows)
		},
	}
}

func (a *app) perfShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show PROFILE", Short: "Print a profile, as a file to begin from", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if a.json {
				p, err := profile.Find(args[0])
				if err != nil {
					return err
				}
				return a.printJSON(p)
			}
			text, err := profile.Text(strings.TrimSuffix(args[0], ".yaml"))
			if err != nil {
				return err
			}
			_, err = a.out.Write(text)
			return err
		},
	}
}
