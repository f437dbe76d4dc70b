package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

var localJobs = []job{
	{name: "random read 4k QD1", args: []string{"--rw=randread", "--bs=4k", "--iodepth=1"}},
	{name: "random read 4k QD32", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}},
	{name: "sequential read 1M QD8", args: []string{"--rw=read", "--bs=1m", "--iodepth=8"}, bytes: true},
}

// runLocal reads one file through two mounts of a cluster on this machine: one goes to the chunk servers over the network, the other one around it.
func runLocal(ctx context.Context, o options) (err error) {
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return err
	}
	defer func() { err = c.stop(err) }()
	far, end, err := c.mountFar(ctx, filepath.Join(o.dir, "far"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	disk := filepath.Join(o.dir, "local")
	if err := os.MkdirAll(disk, 0o755); err != nil {
		return err
	}
	targets := []target{
		{name: "disk", dir: disk, cpu: func() time.Duration { return 0 }},
		far,
		{name: "local", dir: c.mounts[0], cpu: far.cpu},
	}
	for _, tg := range targets[:2] { // both mounts show the same file
		if _, err := fio(ctx, o, tg, "--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"); err != nil {
			return err
		}
	}
	t := newTable(targets)
	for round := range o.rounds {
		for _, j := range localJobs {
			for i := range targets {
				tg := targets[(i+round)%len(targets)]
				dropCaches()
				cpu := tg.cpu()
				r, err := fio(ctx, o, tg, append([]string{"--readonly", "--time_based", "--runtime=" + fmt.Sprint(o.duration.Seconds())}, j.args...)...)
				if err != nil {
					return err
				}
				cpu = tg.cpu() - cpu
				k := &r.Jobs[0]
				cpu += time.Duration((k.User + k.System) / 100 * k.Runtime * float64(time.Millisecond)) // fio's own, with what the kernel did for it
				s := sample{Value: k.Read.IOPS, P99: time.Duration(k.Read.Latency.Percentile["99.000000"]), CPU: time.Duration(float64(cpu) / max(k.Read.Total, 1))}
				if j.bytes {
					s.Value = k.Read.BW / (1 << 20)
				}
				t.add(j.name, unit(j.bytes), tg.name, s)
				fmt.Printf("round %d  %-24s %-8s %10.0f %s  %v CPU per op\n", round+1, j.name, tg.name, s.Value, unit(j.bytes), s.CPU.Round(100*time.Nanosecond))
			}
		}
	}
	fmt.Printf("\n%d CS, replicas %s, all on this machine; medians of %d rounds; CPU is that of all servers, mounts and fio\n\n", o.cs, o.replicas, o.rounds)
	printLocal(os.Stdout, t)
	return nil
}

// mountFar mounts the cluster once more, so that it is read over the network.
func (c *cluster) mountFar(ctx context.Context, dir string) (tg target, end func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return tg, nil, err
	}
	cmd := exec.Command(c.varve, "-c", filepath.Join(c.data, "cluster"), "mount", "-f", "-o", "local=off", dir)
	if err := cmd.Start(); err != nil {
		return tg, nil, err
	}
	end = func() error {
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}
	if err := mounted(ctx, dir); err != nil {
		return tg, nil, errors.Join(err, end())
	}
	return target{name: "network", dir: dir, pid: cmd.Process.Pid, cpu: func() time.Duration { return c.cpu() + pidTime(cmd.Process.Pid) }}, end, nil
}

func printLocal(w io.Writer, t *table) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| figure\t| unit\t| disk\t| over the network\t| local\t| ratio\t| p99\t| local p99\t| CPU per op\t| local CPU per op\t|")
	fmt.Fprintln(tw, "| ---\t| ---\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t|")
	us := func(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/1e3) }
	for _, r := range t.rows {
		disk, far, near := median(r.Samples["disk"]), median(r.Samples["network"]), median(r.Samples["local"])
		n := func(s sample) string { return humanize.Comma(int64(s.Value)) }
		fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %s\t| %.2f\t| %s\t| %s\t| %s\t| %s\t|\n", r.Name, r.Unit, n(disk), n(far), n(near), near.Value/max(far.Value, 1),
			us(far.P99), us(near.P99), us(far.CPU), us(near.CPU))
	}
	tw.Flush()
}
