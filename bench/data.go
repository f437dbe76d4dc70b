package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// job is one row of fio.
type job struct {
	name  string
	args  []string
	bytes bool // the figure is MiB/s, not IOPS
}

var jobs = []job{
	{name: "random read 4k QD1", args: []string{"--rw=randread", "--bs=4k", "--iodepth=1"}},
	{name: "random read 4k QD32", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}},
	{name: "random write 4k QD1", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}},
	{name: "random write 4k QD32", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}},
	{name: "random write 4k QD1, fsync each", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}},
	{name: "sequential read 1M QD8", args: []string{"--rw=read", "--bs=1m", "--iodepth=8"}, bytes: true},
	{name: "sequential write 1M QD8", args: []string{"--rw=write", "--bs=1m", "--iodepth=8"}, bytes: true},
}

// result is what is read of fio's JSON.
type result struct {
	Jobs []struct {
		Read, Write direction
		User        float64 `json:"usr_cpu"` // percent of the job's run time
		System      float64 `json:"sys_cpu"`
		Runtime     float64 `json:"job_runtime"` // ms
	} `json:"jobs"`
}

type direction struct {
	IOPS    float64     `json:"iops"`
	BW      float64     `json:"bw_bytes"`
	Total   float64     `json:"total_ios"`
	Runtime float64     `json:"runtime"` // ms
	Latency percentiles `json:"clat_ns"`
	Whole   percentiles `json:"lat_ns"` // where asked for
}

type percentiles struct {
	Percentile map[string]float64 `json:"percentile"` // nanoseconds
}

// fioFile is the name of the file that fio works on, in each directory.
const fioFile = "fio.data"

func benchData(ctx context.Context, o options, targets []target, t *table) error {
	for _, tg := range targets {
		fmt.Printf("filling %s of fio's file on %s\n", o.size, tg.name)
		if _, err := fio(ctx, o, tg, "--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		for _, j := range jobs {
			if !strings.Contains(j.name, o.only) {
				continue
			}
			for i := range targets {
				tg := targets[(i+round)%len(targets)]
				dropCaches()
				cpu := tg.cpu()
				args := append([]string{"--time_based", "--runtime=" + fmt.Sprint(o.duration.Seconds())}, j.args...)
				r, err := fio(ctx, o, tg, args...)
				if err != nil {
					return err
				}
				cpu = tg.cpu() - cpu
				d := r.Jobs[0].Read
				if d.Total == 0 {
					d = r.Jobs[0].Write
				}
				s := sample{Value: d.IOPS, P99: time.Duration(d.Latency.Percentile["99.000000"])}
				if j.bytes {
					s.Value = d.BW / (1 << 20)
				}
				if d.Total > 0 {
					s.CPU = time.Duration(float64(cpu) / d.Total)
				}
				t.add(j.name, unit(j.bytes), tg.name, s)
				fmt.Printf("round %d  %-34s %-6s %10.0f %s\n", round+1, j.name, tg.name, s.Value, unit(j.bytes))
			}
		}
	}
	for _, tg := range targets {
		if err := os.Remove(filepath.Join(tg.dir, fioFile)); err != nil {
			return err
		}
	}
	return nil
}

func unit(bytes bool) string {
	if bytes {
		return "MiB/s"
	}
	return "ops/s"
}

// fio runs one job on a target's file, with direct I/O.
func fio(ctx context.Context, o options, tg target, args ...string) (*result, error) {
	all := append([]string{"--name=bench", "--filename=" + filepath.Join(tg.dir, fioFile), "--size=" + o.size,
		"--direct=1", "--randrepeat=0", "--output-format=json"}, args...)
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--ioengine=") }) {
		all = append(all, "--ioengine=libaio")
	}
	cmd := exec.CommandContext(ctx, "fio", all...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("fio %s on %s: %w\n%s", strings.Join(args, " "), tg.name, err, out)
	}
	r := new(result)
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:] // fio may print a note first
	}
	if err := json.Unmarshal(out, r); err != nil {
		return nil, fmt.Errorf("fio's answer: %w", err)
	}
	if len(r.Jobs) != 1 {
		return nil, fmt.Errorf("fio reported %d jobs, want 1", len(r.Jobs))
	}
	return r, nil
}
