package main

import (
	"fmt"
	"os"
	"strconv"

	"varve/perf"
	"varve/perf/trace"

	"github.com/spf13/cobra"
)

func (a *app) perfReplayCommand() *cobra.Command {
	o := perf.ReplayOptions{}
	var speed, outDir string
	cmd := &cobra.Command{
		Use: "replay FILE", Short: "Do again what perf capture has recorded, and compare", Args: exactArgs("FILE"),
		Long: "Do again what perf capture has recorded: at the times at which it was done, faster, or as fast as possible; an operation never begins before\n" +
			"those of the same open file have ended that had ended when it began. Writes write random bytes, since a capture holds no data. What is\n" +
			"printed compares recorded and replayed latencies, and says by how much operations began late.\n\n" +
			"Below mount:DIR the files are made as DIR/varve-replay/PATH, as large as they were, and are kept for the next time; --map puts one in another\n" +
			"place, where what is there is OVERWRITTEN. In file:PATH, which may be a block device, and in an NBD server's export, both OVERWRITTEN, they lie one after the other.\n\n" + traceFormats,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Speed, err = parseSpeed(speed); err != nil {
				return err
			}
			o.Source = args[0]
			return a.perfReplay(cmd, o, outDir)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Target, "target", "", "mount:DIR (any filesystem), file:PATH, cluster:NAME/PATH (a directory, without a mount), nbd:URI or null (the generator alone)")
	f.StringVar(&speed, "speed", "1", "1: as it was; 4: four times as fast; max: as fast as possible")
	f.IntVar(&o.Depth, "depth", 256, "operations under way at most")
	f.StringArrayVar(&o.Map, "map", nil, "OLD=NEW: use NEW, below the target, for a captured file, or for all of a captured directory")
	f.BoolVar(&o.Fill, "fill", false, "first write what will be read; else new files have holes there, which are read faster than data")
	f.BoolVar(&o.Direct, "direct", false, "go past the page cache (O_DIRECT), where offset and length allow it")
	f.StringVar(&outDir, "out", "", "also write the result to this directory, for perf compare and perf report: recorded and replayed are directories of it")
	return cmd
}

func parseSpeed(s string) (float64, error) {
	if s == "max" {
		return 0, nil
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v > 0) {
		return 0, usagef("--speed %q: want a number above 0, or max", s)
	}
	return v, nil
}

func (a *app) perfReplay(cmd *cobra.Command, o perf.ReplayOptions, outDir string) error {
	if o.Target == "" {
		return usagef("which target? Give --target mount:DIR, file:PATH, cluster:NAME/PATH, nbd:URI or null")
	}
	where := perf.Options{Target: o.Target}
	if err := a.clusterTarget(&where); err != nil {
		return err
	}
	o.Cluster = where.Cluster
	if err := o.Validate(); err != nil {
		return usagef("%w", err)
	}
	t, err := trace.Load(o.Source)
	if err != nil {
		return err
	}
	if t.Damaged > 0 {
		fmt.Fprintf(a.err, "varve: %s is damaged; what can be read of it is replayed\n", o.Source)
	}
	if outDir != "" {
		if err := os.MkdirAll(outDir, 0o755); err != nil { // before the run, which would be in vain
			return err
		}
	}
	progress, done := a.perfProgress(o.Takes(t))
	res, err := perf.Replay(cmd.Context(), o, t, progress)
	done()
	if err != nil {
		return err
	}
	if err := a.perfResult(res, outDir); err != nil {
		return err
	}
	if !res.OK() {
		if s := res.Replayed.Stopped; s != "" {
			return fmt.Errorf("%s: the replay ended early: %s", res.Target, s)
		}
		return fmt.Errorf("%s: some operations failed; see the report", res.Target)
	}
	return nil
}
