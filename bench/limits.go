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
)

// loadRow is a load that is done at every layer, and by fio and the generator on one file.
type loadRow struct {
	name string
	rw   perf.RW
	bs   int64
	qd   int
}

var loadRows = []loadRow{
	{"random read 4k QD1", perf.RandRead, smallBlock, 1},
	{"random read 4k QD32", perf.RandRead, smallBlock, 32},
	{"random write 4k QD1", perf.RandWrite, smallBlock, 1},
	{"random write 4k QD32", perf.RandWrite, smallBlock, 32},
	{"read 1M QD1", perf.Read, largeBlock, 1},
	{"read 1M QD32", perf.Read, largeBlock, 32},
	{"write 1M QD1", perf.Write, largeBlock, 1},
	{"write 1M QD32", perf.Write, largeBlock, 32},
}

func (r loadRow) unit() string { return unit(r.bs == largeBlock) } // blocks of 1 MiB a second are MiB/s

func (r loadRow) reads() bool { return r.rw == perf.Read || r.rw == perf.RandRead }

// The layers, from below. Each has limits: what it cannot be faster than, since it is made of them.
const (
	layerDisk  = "disk"
	layerTCP   = "TCP"
	layerNoop  = "no-op FUSE"
	layerCS    = "chunk server"
	layerCore  = "core client"
	layerMount = "mount"
	layerLocal = "mount, local reads"
)

// limitLayer is one way to the data.
type limitLayer struct {
	name   string
	target string   // of perf; "" for TCP
	mount  string   // that it goes through
	limits []string // layers below, of which the slowest is the limit
	reads  bool     // is of reads only
	pid    int      // that serves it beside the cluster's, 0: none
	daemon bool     // the cluster serves it
}

// layerSample is what a layer reached once.
type layerSample struct {
	IOPS float64       `json:"iops"`
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`
	CPU  time.Duration `json:"cpu_ns"` // of all that took part, for an operation
}

// runLimits does the same loads on every layer of a cluster, and on what it is made of: the disk, a bare TCP connection, and a FUSE mount with nothing
// behind it.
func runLimits(ctx context.Context, o options) (t *limitTable, err error) {
	size, err := parseSize(o.size)
	if err != nil {
		return nil, err
	}
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return nil, err
	}
	defer func() { err = c.stop(err) }()
	layers, end, err := c.limitLayers(ctx, o, size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	st, err := c.status(ctx)
	if err != nil {
		return nil, err
	}
	where := c.where(st)
	t = &limitTable{
		Rounds: o.rounds, Each: o.duration, MDS: o.mds, CS: o.cs, Replicas: o.replicas, Size: size, Began: time.Now().UTC().Truncate(time.Second), Load: loadAverage(),
	}
	for _, l := range layers {
		t.Layers = append(t.Layers, l.name)
	}
	for round := range o.rounds {
		for _, r := range loadRows {
			if !strings.Contains(r.name, o.only) {
				continue
			}
			fmt.Printf("round %d  %-22s", round+1, r.name)
			for i := range layers {
				l := layers[(i+round)%len(layers)]
				if l.reads && !r.reads() {
					continue
				}
				x, err := c.sampleLayer(ctx, o, l, r, where, size)
				if err != nil {
					if ctx.Err() != nil {
						fmt.Println(" interrupted")
						return t, nil
					}
					return t, fmt.Errorf("%s at %s: %w", r.name, l.name, err)
				}
				t.add(r, l, x)
				fmt.Printf("  %s %.0f", l.name, x.IOPS)
			}
			fmt.Println(" ", r.unit())
		}
	}
	return t, nil
}

// limitLayers are the layers of a cluster; end takes back what was mounted for them.
func (c *cluster) limitLayers(ctx context.Context, o options, size int64) (layers []limitLayer, end func() error, err error) {
	local := filepath.Join(o.dir, "local")
	if err := os.MkdirAll(local, 0o755); err != nil {
		return nil, nil, err
	}
	addr, err := c.chunkServer(ctx)
	if err != nil {
		return nil, nil, err
	}
	far, endFar, err := c.mountFar(ctx, filepath.Join(o.dir, "far"))
	if err != nil {
		return nil, nil, err
	}
	empty := filepath.Join(o.dir, "noop")
	pid, endNoop, err := mountNoop(ctx, empty, "varve-perf.limits.0", size)
	if err != nil {
		return nil, nil, errors.Join(err, endFar())
	}
	return []limitLayer{
		{name: layerDisk, target: "mount:" + local},
		{name: layerTCP},
		{name: layerNoop, target: "mount:" + empty, mount: empty, pid: pid},
		{name: layerCS, target: "cs:" + addr, limits: []string{layerDisk, layerTCP}, daemon: true},
		{name: layerCore, target: "cluster:/", limits: []string{layerCS}, daemon: true},
		{name: layerMount, target: "mount:" + far.dir, mount: far.dir, limits: []string{layerCore, layerNoop}, pid: far.pid, daemon: true},
		{name: layerLocal, target: "mount:" + c.mounts[0], mount: c.mounts[0], limits: []string{layerDisk, layerNoop}, reads: true, daemon: true},
	}, func() error { return errors.Join(endFar(), endNoop()) }, nil
}

// sampleLayer does one load at one layer.
func (c *cluster) sampleLayer(ctx context.Context, o options, l limitLayer, r loadRow, where string, size int64) (layerSample, error) {
	if l.name == layerTCP {
		return exchange(ctx, r, o.duration)
	}
	po := perf.Options{
		Target: l.target, Label: "limits", RW: r.rw, BlockSize: r.bs, QD: r.qd, Jobs: 1, Size: size, Duration: o.duration, Direct: true, Seed: uint64(time.Now().UnixNano()),
	}
	if strings.HasPrefix(l.target, "cluster:") {
		po.Cluster, po.Label, po.NoLocal = where, "core", true // the mounts hold a lease of their file
	} else if strings.HasPrefix(l.target, "cs:") {
		po.Cluster = where
	}
	if l.mount != "" { // else it were the directory below
		if err := isMounted(l.mount); err != nil {
			return layerSample{}, err
		}
	}
	used := func() (d time.Duration) {
		if l.daemon {
			d = c.cpu()
		}
		if l.pid != 0 {
			d += pidTime(l.pid)
		}
		return d
	}
	w := watchCPU(used)
	res, err := perf.Run(ctx, po)
	w.stop()
	if err != nil {
		return layerSample{}, err
	}
	if ctx.Err() != nil {
		return layerSample{}, ctx.Err()
	}
	if !res.OK() || res.Stopped != "" {
		return layerSample{}, fmt.Errorf("%s %+v", res.Stopped, res.Errors)
	}
	servers, _ := w.during(res.Started, res.Started.Add(res.Elapsed))
	return layerSample{
		IOPS: res.Total.IOPS, P50: res.Total.Latency.P50, P99: res.Total.Latency.P99, CPU: res.GeneratorCPU() + servers/time.Duration(max(res.Total.Count, 1)),
	}, nil
}

// loadAverage is that of the last minute, "" where it is not known.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
