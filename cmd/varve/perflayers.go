package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"varve/perf"

	"github.com/spf13/cobra"
)

// clusterTarget fills in where the cluster of a target cluster:NAME/PATH is; without a NAME it is the one that -c means.
func (a *app) clusterTarget(o *perf.Options) error {
	if kind, _, _ := strings.Cut(o.Target, ":"); (kind == "cs" || kind == "mds") && a.cluster != "" {
		d, err := a.readCluster() // servers of a secured cluster answer only its members
		if err == nil {
			o.Cluster = d.where()
		}
		return err
	}
	rest, ok := strings.CutPrefix(o.Target, "cluster:")
	if !ok {
		return nil
	}
	name, _, ok := strings.Cut(rest, "/")
	if !ok {
		return usagef("target %q: want cluster:NAME/PATH, or cluster:/PATH for the cluster of -c", o.Target)
	}
	b := *a
	if name != "" {
		b.cluster = name
	}
	d, err := b.readCluster()
	if err != nil {
		return err
	}
	o.Cluster = d.where()
	return nil
}

func (a *app) perfLayersCommand() *cobra.Command {
	f := &perfFlags{}
	var mount, disk string
	var rounds int
	cmd := &cobra.Command{
		Use: "layers", Short: "Do the same load at every layer of a cluster, to see which layer costs what", Args: noArgs,
		Long: "Do the same load on nothing, on a file of a local directory, on one chunk server (with --meta: the metadata servers), on the\n" +
			"core client without a mount, and on a mount, in turns, and print what each reaches, and how much more it\n" +
			"takes than the layer above it in the table. Processes on other hosts are not in the CPU; reads of the core client and of a mount go around\n" +
			"the network to chunk servers on this host, unless --no-local and the mount's local=off say otherwise.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.o.Target = "null"
			o, err := f.options(cmd)
			if err != nil {
				return usagef("%w", err)
			}
			layers, err := a.layers(cmd.Context(), &o, mount, disk)
			if err != nil {
				return err
			}
			var began func(perf.Layer, int)
			if e, ok := a.err.(*os.File); ok && isTerminal(e) {
				began = func(l perf.Layer, round int) { fmt.Fprintf(e, "\r\x1b[Kround %d of %d: %s", round+1, rounds, l.Name) }
				defer fmt.Fprint(e, "\r\x1b[K")
			}
			out, err := perf.Layers(cmd.Context(), o, layers, rounds, began)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			fmt.Fprintf(a.out, "%s, %v each, medians of %d\n\n", strings.Replace(o.Describe(), " on "+o.Target, "", 1), o.Duration, rounds)
			rows := [][]string{{"layer", "target", "IOPS", "MiB/s", "mean", "p50", "p99", "CPU an operation", "of it daemons", "p50 more", "CPU more"}}
			var below *perf.LayerResult
			for _, l := range out {
				if l.Error != "" {
					rows = append(rows, []string{l.Name, l.Target, l.Error})
					continue
				}
				row := []string{l.Name, l.Target, fmt.Sprintf("%.0f", l.IOPS), fmt.Sprintf("%.1f", l.MiBs), perf.ShortDuration(l.Mean),
					perf.ShortDuration(l.P50), perf.ShortDuration(l.P99), perf.ShortDuration(l.CPU), perf.ShortDuration(l.Daemons)}
				if below != nil {
					row = append(row, signedDuration(l.P50-below.P50), signedDuration(l.CPU-below.CPU))
				}
				rows, below = append(rows, row), &l
			}
			return a.table(rows)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&mount, "mount", "", "a mount of the cluster; without it that layer is left out")
	fl.StringVar(&disk, "disk", "", "a directory on a local disk like the servers'; without it that layer is left out")
	fl.IntVar(&rounds, "rounds", 3, "how often each layer runs")
	f.loadFlags(cmd, 5*time.Second, "256m", 1)
	return cmd
}

// signedDuration is a difference for people.
func signedDuration(d time.Duration) string {
	if d < 0 {
		return "-" + perf.ShortDuration(-d)
	}
	return "+" + perf.ShortDuration(d)
}

// layers are those of the cluster that can be reached from here.
func (a *app) layers(ctx context.Context, o *perf.Options, mount, disk string) ([]perf.Layer, error) {
	layers := []perf.Layer{{Name: "generator", Target: "null"}}
	if disk != "" {
		layers = append(layers, perf.Layer{Name: "disk", Target: "mount:" + disk})
	}
	d, err := a.readCluster()
	if err != nil {
		return nil, err
	}
	st, err := d.leaderStatus(ctx)
	if err != nil {
		return nil, err
	}
	var servers []string
	for _, s := range st.Servers {
		if s.State == "live" {
			servers = append(servers, s.Addr)
		}
	}
	if len(servers) == 0 {
		return nil, errors.New("no chunk server is live; see varve list-services")
	}
	addr := servers[0]
	for _, s := range servers { // one on this host, if there is one
		if ip, _, err := net.SplitHostPort(s); err == nil && net.ParseIP(ip).IsLoopback() {
			addr = s
			break
		}
	}
	o.Target = "cluster:/"
	if err := a.clusterTarget(o); err != nil {
		return nil, err
	}
	below := perf.Layer{Name: "chunk server", Target: "cs:" + addr}
	if o.Metadata != "" {
		below = perf.Layer{Name: "metadata servers", Target: "mds:" + st.Leader}
	}
	layers = append(layers, below, perf.Layer{Name: "core client", Target: "cluster:/"})
	if mount != "" {
		layers = append(layers, perf.Layer{Name: "mount", Target: "mount:" + filepath.Clean(mount)})
	}
	return layers, nil
}
