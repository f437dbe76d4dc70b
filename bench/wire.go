package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"varve/perf"
)

// wireFiles is how many files each session looks at.
const wireFiles = 100

// runWire asks the leader with many sessions at once, each with one request under way: what varve perf run does with --target mds:ADDR --meta.
func runWire(ctx context.Context, o options) (err error) {
	o.cs = max(o.cs, 1)
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return err
	}
	defer func() { err = c.stop(err) }()
	st, err := c.status(ctx)
	if err != nil {
		return err
	}
	servers, err := c.pids()
	if err != nil {
		return err
	}
	fmt.Printf("%d MDS on this machine, %d sessions with one request each under way, %v each\n\n", o.mds, o.clients, o.duration)
	fmt.Printf("| operation | ops/s | p50 | p99 | CPU of the servers per op | of the generator |\n| --- | --: | --: | --: | --: | --: |\n")
	for _, row := range []struct {
		name  string
		mix   perf.Mix
		files int
	}{
		{"create, durable", "create", 1 << 20}, {"lookup", "lookup", wireFiles}, {"getattr", "stat", wireFiles}, {"list", "list", wireFiles},
		{"rename, durable", "rename", wireFiles}, {"delete and create, durable", "delete:1,create:1", 2 * wireFiles},
	} {
		res, err := perf.Run(ctx, perf.Options{
			Target: "mds:" + st.Leader, Label: "bench", Metadata: row.mix, Files: row.files, Jobs: o.clients, Duration: o.duration,
		})
		if err != nil {
			return fmt.Errorf("%s: %w", row.name, err)
		}
		if !res.OK() || res.Total.Count == 0 {
			return fmt.Errorf("%s: %w", row.name, errors.Join(errors.New(res.Stopped), fmt.Errorf("%+v", res.Errors)))
		}
		var used, own time.Duration
		for _, p := range res.CPU {
			switch {
			case p.PID == os.Getpid():
				own += p.PerOp
			case servers[p.PID]:
				used += p.PerOp
			}
		}
		l := res.Total.Latency
		fmt.Printf("| %s | %s | %v | %v | %v | %v |\n", row.name, humanize.Comma(int64(res.Total.IOPS)), l.P50.Round(time.Microsecond), l.P99.Round(time.Microsecond),
			used.Round(100*time.Nanosecond), own.Round(100*time.Nanosecond))
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// pids returns the processes of the cluster.
func (c *cluster) pids() (map[int]bool, error) {
	files, err := filepath.Glob(filepath.Join(c.run(), "*.pid"))
	if err != nil {
		return nil, err
	}
	out := map[int]bool{}
	for _, f := range files {
		pid, err := readPID(f)
		if err != nil {
			return nil, err
		}
		out[pid] = true
	}
	return out, nil
}
