package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// mountRow is a job with what is expected of it: parts of what the local directory reaches in the same run.
type mountRow struct {
	job   job
	floor float64 // at least
	aim   float64
	read  bool // also from the read cache
}

// mountRows are the loads of virtual machines.
func mountRows() []mountRow {
	want := map[string]mountRow{
		"random read 4k QD1":              {floor: 0.65, aim: 0.9, read: true},
		"random read 4k QD32":             {floor: 0.6, aim: 0.9, read: true},
		"random write 4k QD1":             {},
		"random write 4k QD32":            {floor: 0.13, aim: 0.33},
		"random write 4k QD1, fsync each": {floor: 0.2, aim: 0.33},
		"sequential read 1M QD8":          {floor: 0.7, aim: 0.9},
		"sequential write 1M QD8":         {floor: 0.15, aim: 0.33},
	}
	rows := make([]mountRow, 0, len(jobs))
	for _, j := range jobs {
		r := want[j.name]
		r.job = j
		rows = append(rows, r)
	}
	return rows
}

// cacheFloor is the part of what the cache's own filesystem gives that a read from the cache is to reach.
const cacheFloor = 0.7

// extraMount is a mount beside those of the cluster.
type extraMount struct {
	target
	end func() error
}

// mountWith mounts the cluster once more, with options.
func (c *cluster) mountWith(ctx context.Context, name, dir, options string) (*extraMount, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd := exec.Command(c.varve, "-c", filepath.Join(c.data, "cluster"), "mount", "-f", "-o", options, dir)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	m := &extraMount{target: target{name: name, dir: dir, pid: pid, cpu: func() time.Duration { return pidTime(pid) }}}
	m.end = func() error { return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()) }
	if err := mounted(ctx, dir); err != nil {
		_ = m.end() // what it said is the reason
		return nil, fmt.Errorf("mount -o %s: %w: %s", options, err, stderr.String())
	}
	return m, nil
}

// runMount measures a mount by both transports, and reads from its cache, beside a local directory.
func runMount(ctx context.Context, o options) (t *table, err error) {
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return nil, err
	}
	defer func() { err = c.stop(err) }()
	local := filepath.Join(o.dir, "local")
	if err := os.MkdirAll(local, 0o755); err != nil {
		return nil, err
	}
	targets := []target{{name: "local", dir: local, cpu: func() time.Duration { return 0 }}}
	for _, transport := range []string{"dev", "uring"} {
		m, err := c.mountWith(ctx, transport, filepath.Join(o.dir, transport), "transport="+transport)
		if err != nil {
			fmt.Printf("without transport=%s: %v\n", transport, err)
			continue
		}
		defer func() { err = errors.Join(err, m.end()) }()
		targets = append(targets, m.target)
	}
	cached := filepath.Join(o.dir, "cached")
	m, merr := c.mountWith(ctx, "cache", cached, "local=off,cache="+filepath.Join(o.dir, "cache")+",cachesize=4096")
	if merr != nil {
		fmt.Printf("without a read cache: %v\n", merr)
	} else {
		defer func() { err = errors.Join(err, m.end()) }()
		targets = append(targets, m.target)
	}
	t = newTable(targets)
	if err := sampleMounts(ctx, o, c, targets, t); err != nil && ctx.Err() == nil {
		return t, err
	}
	return t, nil
}

func sampleMounts(ctx context.Context, o options, c *cluster, targets []target, t *table) error {
	for _, tg := range targets[:2] { // the mounts show the same file
		fmt.Printf("filling %s of fio's file on %s\n", o.size, tg.name)
		if _, err := fio(ctx, o, tg, "--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		for _, row := range mountRows() {
			if !strings.Contains(row.job.name, o.only) {
				continue
			}
			for i := range targets {
				tg := targets[(i+round)%len(targets)]
				if tg.name == "cache" && !row.read {
					continue
				}
				args := append([]string{"--time_based", "--runtime=" + fmt.Sprint(o.duration.Seconds())}, row.job.args...)
				if tg.name == "cache" { // warm, by as many reads as it may take to be believed
					if _, err := fio(ctx, o, tg, "--rw=randread", "--bs=4k", "--iodepth=32", "--loops=3", "--randrepeat=1", "--readonly"); err != nil {
						return err
					}
				}
				dropCaches()
				servers, mount := c.cpu(), tg.cpu()
				r, err := fio(ctx, o, tg, args...)
				if err != nil {
					return err
				}
				servers, mount = c.cpu()-servers, tg.cpu()-mount
				d := r.Jobs[0].Read
				if d.Total == 0 {
					d = r.Jobs[0].Write
				}
				s := sample{Value: d.IOPS, P50: time.Duration(d.Latency.Percentile["50.000000"]), P99: time.Duration(d.Latency.Percentile["99.000000"])}
				if row.job.bytes {
					s.Value = d.BW / (1 << 20)
				}
				if d.Total > 0 && tg.name != "local" {
					s.CPU, s.Servers = time.Duration(float64(mount)/d.Total), time.Duration(float64(servers)/d.Total)
				}
				t.add(row.job.name, unit(row.job.bytes), tg.name, s)
				fmt.Printf("round %d  %-34s %-6s %10.0f %s\n", round+1, row.job.name, tg.name, s.Value, unit(row.job.bytes))
			}
		}
	}
	return nil
}

// printMounts writes the table: what each target reached, as a part of what the local directory did, and what is expected.
func printMounts(w io.Writer, t *table) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| figure\t| on\t| unit\t| median\t| of local\t| floor\t| aim\t| p50\t| p99\t| mount's CPU\t| servers' CPU\t|\n| ---\t| ---\t| ---\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t|")
	rows := map[string]mountRow{}
	for _, r := range mountRows() {
		rows[r.job.name] = r
	}
	us := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f µs", float64(d)/1e3)
	}
	part := func(v float64) string {
		if v == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", v)
	}
	for _, r := range t.rows {
		base := median(r.Samples["local"]).Value
		for _, tg := range t.targets {
			if len(r.Samples[tg.name]) == 0 {
				continue
			}
			s := median(r.Samples[tg.name])
			floor, aim := rows[r.Name].floor, rows[r.Name].aim
			ratio := s.Value / max(base, 1)
			switch tg.name {
			case "local":
				floor, aim, ratio = 0, 0, 0
			case "cache":
				floor, aim = cacheFloor, 0
			}
			fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", r.Name, tg.name, r.Unit, humanize.Comma(int64(s.Value)),
				part(ratio), part(floor), part(aim), us(s.P50), us(s.P99), us(s.CPU), us(s.Servers))
		}
	}
	tw.Flush()
}
