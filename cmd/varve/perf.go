package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"varve/perf"
	"varve/perf/profile"

	"github.com/spf13/cobra"
)

// perfFlags are the flags of perf run that are not an option of the load as they stand.
type perfFlags struct {
	o          perf.Options
	rw         string
	engine     string
	bs         string
	size       string
	outDir     string
	profile    string
	times      float64
	budget     time.Duration
	percentile float64
	steady     bool
	hosts      hostFlags
	window     perf.Steady
	sizes      float64
}

func (a *app) perfCommand() *cobra.Command {
	return groupCommand("perf", "Generate load and measure it", a.perfRunCommand(), a.perfAgentCommand(), a.perfCaptureCommand(), a.perfReplayCommand(), a.perfTraceCommand(), a.perfLayersCommand(), a.perfListCommand(), a.perfShowCommand(), a.perfReportCommand(), a.perfCompareCommand())
}

func (a *app) perfRunCommand() *cobra.Command {
	f := &perfFlags{}
	cmd := &cobra.Command{
		Use: "run", Short: "Read and write a target, and report how fast it was", Args: noArgs,
		Long: "Read and write a target, and report how fast it was.\n\n" +
			"Below mount:DIR each job has a file varve-perf.N, which is kept for the next run; in file:PATH, which may be a\n" +
			"block device, and in an export of an NBD server each has a part, and writing destroys what is there. At cs:IP:PORT, one chunk server, each has chunks that\n" +
			"belong to no file and are removed at the end, so nothing is destroyed.\n\n" +
			"With --meta each job works in a directory of its own, varve-perf-names.N, below mount:DIR, in a cluster:NAME/PATH, or in a directory\n" +
			"of the cluster that mds:IP:PORT belongs to: there each job is a session of its own, which asks the leader each time. A\n" +
			"directory begins empty if its files are only created, half full if they are also used, and else full.\n\n" +
			"Ctrl-C ends the run and reports what ran.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.profile != "" {
				return a.perfProfile(cmd, f)
			}
			return a.perfRun(cmd, f)
		},
	}
	fl, o := cmd.Flags(), &f.o
	fl.StringVar(&o.Target, "target", "", "mount:DIR, file:PATH, cluster:NAME/PATH (a directory, without a mount), cs:IP:PORT (a chunk server), "+
		"mds:IP:PORT[,...][/PATH] (metadata without a mount, with --meta), nbd:URI (an NBD server: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH) "+
		"or null (the generator alone)")
	f.loadFlags(cmd, 30*time.Second, "2g", 2)
	fl.DurationVar(&f.budget, "budget", 0, "look for the highest rate at which this latency holds, with a run of --for at each rate")
	fl.Float64Var(&f.percentile, "budget-percentile", 99, "with --budget: of how many of the operations, in percent")
	f.hosts.add(cmd)
	fl.BoolVar(&f.steady, "steady", false, "end when the load has settled, as SNIA's Performance Test Specification defines steady state, or after --for at the latest")
	fl.IntVar(&f.window.Rounds, "steady-rounds", perf.SteadyRounds, "with --steady: how many rounds it must hold")
	fl.DurationVar(&f.window.Round, "steady-round", perf.SteadyRound, "with --steady: how long a round is, in whole seconds")
	fl.Float64Var(&f.window.Range, "steady-range", perf.SteadyRange, "with --steady: by how much the throughput of rounds may differ, in percent of their average")
	fl.Float64Var(&f.window.Slope, "steady-slope", perf.SteadySlope, "with --steady: by how much it may rise or fall over these rounds, in percent")
	fl.StringVar(&f.profile, "profile", "", "a load made of several, instead of the flags above: a name of perf list, a YAML file, or a job file of fio (.fio)")
	fl.Float64Var(&f.times, "scale-time", 1, "with --profile: make its times so many times longer")
	fl.Float64Var(&f.sizes, "scale-size", 1, "with --profile: make its sizes so many times larger")
	fl.StringVar(&f.outDir, "out", "", "also write the result to this directory: text, JSON, CSV, HdrHistogram log; see perf report")
	return cmd
}

// loadFlags adds the flags that say what the load is, with these defaults.
func (f *perfFlags) loadFlags(cmd *cobra.Command, duration time.Duration, size string, jobs int) {
	fl, o := cmd.Flags(), &f.o
	fl.DurationVar(&o.Duration, "for", duration, "how long; 0: as many operations as there are blocks")
	fl.StringVar(&f.rw, "rw", string(perf.RandRead), "read, write, randread, randwrite or randrw")
	fl.StringVar((*string)(&o.Metadata), "meta", "", "operations on names instead of reads and writes, and how often each: of create, stat, lookup, list, rename and delete,\n"+
		"such as create:10,stat:80,delete:10, or one of them")
	fl.IntVar(&o.Files, "files", 0, "with --meta: files of each job at most (default 1000)")
	fl.IntVar(&o.ReadPercent, "mix", 50, "share of reads of randrw in percent")
	fl.StringVar(&f.bs, "bs", "4k", "bytes of an operation; k, m and g are powers of 1024")
	fl.IntVar(&o.QD, "qd", 32, "operations under way in each job")
	fl.IntVar(&o.Jobs, "jobs", jobs, "jobs")
	fl.StringVar(&f.size, "size", size, "bytes that each job works on")
	fl.Float64Var(&o.Rate, "rate", 0, "operations a second of all jobs, whether or not the target keeps up (open loop); 0: as many as it takes")
	fl.StringVar((*string)(&o.Arrival), "arrival", "", "with --rate: fixed (evenly, the default) or poisson (at random, as from many independent users)")
	fl.StringVar((*string)(&o.Dist), "dist", "", "blocks of a random pattern: uniform (the default), zipf:THETA such as zipf:0.99, or hot:BLOCKS:OPERATIONS "+
		"in percent such as hot:10:90")
	fl.IntVar(&o.FsyncEvery, "fsync", 0, "fdatasync after as many writes of a job; 0: never")
	fl.BoolVar(&o.Verify, "verify", false, "write blocks that say what they are, check those that are read, and read all back at the end")
	fl.BoolVar(&o.NoLocal, "no-local", false, "with a target cluster:...: read over the network also from chunk servers on this host, as a mount with local=off does")
	fl.BoolVar(&o.Repeat, "repeat", false, "write the same bytes again and again, instead of other ones each time")
	fl.BoolVar(&o.Direct, "direct", false, "go past the page cache (O_DIRECT)")
	fl.StringVar(&f.engine, "engine", string(perf.Auto), "auto, sync or uring")
	fl.Uint64Var(&o.Seed, "seed", 0, "of the random order")
	fl.DurationVar(&o.Ramp, "ramp", 0, "how long the load runs before --for begins; its figures do not count, and are shown apart")
	fl.DurationVar(&o.Settle, "settle", time.Minute, "how long to wait at the end for operations that do not end, and anywhere else for a step that stands still")
	fl.IntVar(&o.MaxErrors, "max-errors", 1000, "end after as many failed operations")
}

// dataFlags say how data is read and written.
var dataFlags = []string{"rw", "mix", "bs", "size", "dist", "direct", "engine"}

// options are the options of the load that the flags ask for.
func (f *perfFlags) options(cmd *cobra.Command) (perf.Options, error) {
	o := f.o
	if o.Target == "" {
		return o, errors.New("which target? Give --target mount:DIR, file:PATH, cluster:NAME/PATH, cs:IP:PORT, mds:IP:PORT[,...][/PATH], nbd:URI or null")
	}
	if o.Metadata != "" {
		for _, name := range dataFlags {
			if cmd.Flags().Changed(name) {
				return o, fmt.Errorf("--%s and --meta: operations on names have none", name)
			}
		}
		o.ReadPercent = 0
		return o, o.Validate()
	}
	o.RW, o.Engine = perf.RW(f.rw), perf.Engine(f.engine)
	if o.RW != perf.RandRW {
		o.ReadPercent = 0
	}
	if f.steady {
		o.Steady = f.window
	}
	var errs [2]error
	o.BlockSize, errs[0] = parseBytes("--bs", f.bs)
	o.Size, errs[1] = parseBytes("--size", f.size)
	if err := errors.Join(errs[:]...); err != nil {
		return o, err
	}
	return o, o.Validate()
}

func (a *app) perfRun(cmd *cobra.Command, f *perfFlags) error {
	if err := a.clusterTarget(&f.o); err != nil {
		return err
	}
	o, err := f.options(cmd)
	if err != nil {
		return usagef("%w", err)
	}
	bonds, tcp := watchBonds(slog.Default())
	defer bonds.Close()
	o.Bonds, o.Network = bonds, tcp
	if f.outDir != "" {
		if err := os.MkdirAll(f.outDir, 0o755); err != nil { // before the run, which would be in vain
			return err
		}
	}
	if f.budget != 0 && len(f.hosts.hosts) > 0 {
		return usagef("--budget looks for a rate on one host: leave --host out")
	}
	if f.budget != 0 {
		return a.perfSearch(cmd, o, f)
	}
	progress, done := a.perfProgress(o.Ramp + o.Duration)
	var res *perf.Result
	if len(f.hosts.hosts) > 0 {
		res, err = a.perfHosts(cmd, o, &f.hosts, progress)
	} else {
		res, err = perf.RunWith(cmd.Context(), o, progress)
	}
	done()
	if err != nil {
		return err
	}
	if err := a.perfResult(res, f.outDir); err != nil {
		return err
	}
	if !res.OK() {
		return perfFault(res)
	}
	return nil
}

// perfResult prints what a run measured, and writes it to a directory if one is named.
func (a *app) perfResult(res interface {
	WriteDir(dir string) error
	WriteText(w io.Writer) error
}, dir string) error {
	if dir != "" {
		if err := res.WriteDir(dir); err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(res)
	}
	return res.WriteText(a.out)
}

// perfSearch looks for the highest rate at which a latency holds.
func (a *app) perfSearch(cmd *cobra.Command, o perf.Options, f *perfFlags) error {
	var step func(perf.Step)
	if f, ok := a.err.(*os.File); ok && isTerminal(f) {
		step = func(s perf.Step) { fmt.Fprintln(f, s) }
	}
	found, err := perf.Search(cmd.Context(), o, perf.Budget{Percentile: f.percentile, Latency: f.budget}, step)
	if err != nil {
		return err
	}
	if f.outDir != "" && found.Best != nil {
		if err := found.Best.WriteDir(f.outDir); err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(found)
	}
	return found.WriteText(a.out)
}

// perfFault says in one line what was wrong with a run, the worst first.
func perfFault(res *perf.Result) error {
	switch v := res.Verify; {
	case v != nil && v.Faults() > 0:
		return fmt.Errorf("%s: %d blocks do not hold what was written, the first: %s", res.Options.Target, v.Faults(), v.First[0])
	case res.Stopped != "" && res.Gone:
		return unreachablef("%s: the run ended early: %s", res.Options.Target, res.Stopped)
	case res.Stopped != "":
		return fmt.Errorf("%s: the run ended early: %s", res.Options.Target, res.Stopped)
	}
	if len(res.Removed) > 0 {
		return fmt.Errorf("%s: %s was removed, replaced or unmounted during the run", res.Options.Target, res.Removed[0])
	}
	return fmt.Errorf("%s: some operations failed; see the report", res.Options.Target)
}

// parseBytes reads the size that a flag has.
func parseBytes(flag, s string) (int64, error) {
	n, err := profile.ParseBytes(s)
	if err != nil {
		return 0, fmt.Errorf("%s %w", flag, err)
	}
	return int64(n), nil
}

// perfProgress shows what a run measures while it goes on, if standard error is a terminal. Call done when it is over.
func (a *app) perfProgress(total time.Duration) (progress func(perf.Progress), done func()) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) {
		return nil, func() {}
	}
	of := ""
	if total > 0 {
		of = " of " + total.String()
	}
	const clear = "\r\x1b[K"
	progress = func(p perf.Progress) { fmt.Fprintf(f, "%s%v%s: %v", clear, p.Elapsed, of, p) }
	return progress, func() { fmt.Fprint(f, clear) }
}
