// Command bench measures a varve cluster beside what it is made of and what bounds it, in one run, and prints tables with ratios.
//
//	go run ./bench [--part limits|metadata] [--rounds 3] [--for 5s] [--size 1g] [--mds 3] [--cs 3] [--out DIR]
//	go run ./bench --part generator [--rounds 3] [--for 5s] [--size 1g]
//	go run ./bench --part data [--rounds 3] [--for 5s] [--size 1g]
//	go run ./bench --part cs [--rounds 3] [--for 5s] [--size 1g]
//	go run ./bench --part local [--rounds 3] [--for 5s] [--size 1g]
//	go run ./bench mds [--clients 256] [--for 5s]
//	go run ./bench failover [--kills 50]
//	go run ./bench compare [--profiles vm-oltp,backup-stream] [--rounds 3] [--json DIR] NAME=DIR NAME=DIR...
//
// The first does the same loads on the local disk, a bare TCP connection and a FUSE mount with nothing behind it, which are the limits, and on
// one chunk server, the core client, a mount, and a mount that reads around the network; then metadata on a mount and on the local directory. The second
// holds the load generator itself against fio on one file, and says how fast it is alone.
//
// data is fio on a mount and on the local directory. cs measures one chunk server with a bare client, beside fio on the same disk and a bare TCP stream.
// local reads through a mount that goes around the network to chunk servers on its host, and one that does not. mds asks the metadata
// servers themselves, with many sessions and without a mount. failover kills the leader with SIGKILL again
// and again while files are made through a mount, says how long nothing was served, and looks whether every file that was acknowledged is there, once.
// compare does the same profiles of varve perf on several mounts, of any storage systems.
//
// The machine's own disk bounds everything, and machines drift: trust the ratios, which come from neighbouring
// samples. Each figure is the median of the rounds; targets take turns within a round.
// It needs root, fio for some parts, and some room in the temporary directory, where it keeps both the cluster and the local files.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	size     string
	mds, cs  int
	replicas string
	dir      string
	out      string
	outDir   string
	only     string
	part     string
	entries  int
	clients  int
	kills    int
	profiles string
	times    float64
	sizes    float64
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "samples of each figure, of which the median is printed")
	flag.DurationVar(&o.duration, "for", 5*time.Second, "length of each fio sample")
	flag.StringVar(&o.size, "size", "1g", "size of fio's file, fully written before the first sample")
	flag.IntVar(&o.mds, "mds", 3, "metadata servers")
	flag.IntVar(&o.cs, "cs", 3, "chunk servers")
	flag.StringVar(&o.replicas, "replicas", "3:2", "replicas NORM:MIN")
	flag.StringVar(&o.dir, "dir", "", "where to keep the cluster and the local files (default: a temporary directory)")
	flag.StringVar(&o.out, "json", "", "also write every sample to this file (compare: every run to this directory)")
	flag.StringVar(&o.outDir, "out", "", "also write text, JSON and CSV to this directory (parts all, limits, metadata and data)")
	flag.StringVar(&o.only, "only", "", "run only the rows whose name contains this")
	flag.StringVar(&o.part, "part", "all", "all (limits, mount and metadata), limits, mount, metadata, data, cs, local or generator")
	flag.IntVar(&o.entries, "entries", 100_000, "entries of the directory that is listed; 0: none is")
	flag.IntVar(&o.clients, "clients", 256, "mds: sessions, each with one request under way")
	flag.IntVar(&o.kills, "kills", 50, "failover: how often the leader is killed")
	flag.StringVar(&o.profiles, "profiles", "vm-mixed-70-30,fsync-heavy", "compare: profiles of varve perf, by name or file")
	flag.Float64Var(&o.times, "scale-time", 1, "compare: make the profiles' times so many times longer")
	flag.Float64Var(&o.sizes, "scale-size", 1, "compare: make the profiles' sizes so many times larger")
	bench := run
	args := os.Args[1:]
	if len(args) > 0 && args[0] == noopVerb {
		serve(args[1:])
		return
	}
	if len(args) > 0 {
		if other, ok := map[string]func(context.Context, options) error{"mds": runWire, "failover": runFailover, "repair": runRepair}[args[0]]; ok {
			bench, args = other, args[1:]
		}
	}
	comparing := len(args) > 0 && args[0] == "compare"
	if comparing {
		args = args[1:]
	}
	_ = flag.CommandLine.Parse(args) // exits by itself
	if comparing {
		bench = func(ctx context.Context, o options) error { return runCompare(ctx, o, flag.Args()) }
	} else if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: what is %q? Want mds, failover, repair, compare or nothing, then flags\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := inDir(ctx, o, bench); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// serve is the process of a mount with nothing behind it.
func serve(args []string) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serveNoop(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// target is a directory under test.
type target struct {
	name string
	dir  string
	cold string               // the same files, seen through caches that know nothing of them (a local directory's have to be dropped)
	cpu  func() time.Duration // CPU time of the processes that serve it, so far
	pid  int                  // of a mount that the cluster does not know of
}

// inDir gives bench a directory of its own, if none was named.
func inDir(ctx context.Context, o options, bench func(context.Context, options) error) (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root to mount; run it as root")
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "varve-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.dir)
	}
	return bench(ctx, o)
}

func run(ctx context.Context, o options) (err error) {
	needsFio := map[string]bool{"mount": true, "all": true, "data": true, "cs": true, "local": true, "generator": true}
	if _, err := exec.LookPath("fio"); err != nil && needsFio[o.part] {
		return fmt.Errorf("needs fio (apt-get install fio): %w", err)
	}
	switch o.part {
	case "cs":
		return runCS(ctx, o)
	case "local":
		return runLocal(ctx, o)
	case "generator":
		return runGenerator(ctx, o)
	case "all", "limits", "mount", "data", "metadata":
	default:
		return fmt.Errorf("--part %q: want all, limits, mount, metadata, data, cs, local or generator", o.part)
	}
	out := new(results)
	var texts []func(io.Writer)
	if o.part == "all" || o.part == "limits" {
		own := o
		if own.dir, err = os.MkdirTemp(o.dir, "limits-"); err != nil { // its cluster is not that of the next part
			return err
		}
		out.Limits, err = runLimits(ctx, own)
		if out.Limits == nil {
			return err
		}
		out.Limits.finish()
		texts = append(texts, out.Limits.print)
	}
	if (o.part == "all" || o.part == "mount") && ctx.Err() == nil && err == nil {
		own := o
		if own.dir, err = os.MkdirTemp(o.dir, "mount-"); err != nil {
			return err
		}
		var t *table
		if t, err = runMount(ctx, own); t != nil {
			out.Mount = t.rows
			texts = append(texts, func(w io.Writer) {
				fmt.Fprintf(w, "\n%d MDS, %d CS, replicas %s, all on this machine; medians of %d rounds of %v; CPU is that of an operation\n\n", o.mds, o.cs, o.replicas, o.rounds, o.duration)
				printMounts(w, t)
			})
		}
	}
	if o.part != "limits" && o.part != "mount" && ctx.Err() == nil && err == nil {
		var t *table
		if t, err = runTable(ctx, o); t != nil {
			out.Metadata = t.rows
			texts = append(texts, func(w io.Writer) {
				fmt.Fprintf(w, "\n%d MDS, %d CS, replicas %s, all on this machine; medians of %d rounds\n\n", o.mds, o.cs, o.replicas, o.rounds)
				t.print(w)
			})
		}
	}
	all := func(w io.Writer) {
		for _, text := range texts {
			text(w)
		}
	}
	fmt.Println()
	all(os.Stdout)
	if o.outDir != "" {
		err = errors.Join(err, out.writeDir(o.outDir, all))
	}
	if o.out == "" {
		return err
	}
	b, jerr := json.MarshalIndent(out, "", "  ")
	if o.part == "data" || o.part == "metadata" {
		b, jerr = json.MarshalIndent(out.Metadata, "", "  ")
	}
	return errors.Join(err, jerr, os.WriteFile(o.out, b, 0o644))
}

// runTable measures a mount beside a local directory: data by fio, or metadata.
func runTable(ctx context.Context, o options) (t *table, err error) {
	local := filepath.Join(o.dir, "local")
	if err := os.MkdirAll(local, 0o755); err != nil {
		return nil, err
	}
	c, err := startCluster(ctx, o, 2)
	if err != nil {
		return nil, err
	}
	defer func() { err = c.stop(err) }()
	targets := []target{
		{name: "local", dir: local, cold: local, cpu: func() time.Duration { return 0 }},
		{name: "varve", dir: c.mounts[0], cold: c.mounts[1], cpu: c.cpu},
	}
	t = newTable(targets)
	bench := benchMetadata
	if o.part == "data" {
		bench = benchData
	}
	if err := bench(ctx, o, targets, t); err != nil {
		if ctx.Err() == nil {
			return t, err
		}
		fmt.Println("interrupted; what was measured until then:")
	}
	return t, nil
}

func dropCaches() {
	_ = exec.Command("sync").Run()
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200) // best effort: a container may not be allowed to
}
