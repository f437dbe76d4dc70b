// Command bench measures a mounted varve cluster beside the local directory under it, in one run, and prints a table
// with ratios: fio for data, its own loops for metadata, CPU of all varve processes per operation.
//
//	go run ./bench [--part metadata] [--rounds 3] [--for 5s] [--size 1g] [--mds 3] [--cs 3] [--json FILE]
//	go run ./bench --part cs [--rounds 3] [--for 5s] [--size 1g]
//	go run ./bench --part local [--rounds 3] [--for 5s] [--size 1g]
//	go run ./bench mds [--clients 256] [--for 5s]
//	go run ./bench failover [--kills 50]
//	go run ./bench compare [--profiles vm-oltp,backup-stream] [--rounds 3] [--json DIR] NAME=DIR NAME=DIR...
//
// The second measures one chunk server with a bare client, beside fio on the same disk and a bare TCP stream. The third reads through
// a mount that goes around the network to chunk servers on its host, and one that does not. The next asks the metadata
// servers themselves, with many sessions and without a mount. The last kills the leader with SIGKILL again
// and again while files are made through a mount, says how long nothing was served, and looks whether every file that was acknowledged is there, once.
// compare does the same profiles of varve perf on several mounts, of any storage systems.
//
// The machine's own disk bounds everything, and machines drift: trust the ratios, which come from neighbouring
// samples. Each figure is the median of the rounds; targets alternate within a round and caches are dropped before each sample.
// It needs root, fio, and some room in the temporary directory, where it keeps both the cluster and the local files.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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
	flag.StringVar(&o.only, "only", "", "run only the rows whose name contains this")
	flag.StringVar(&o.part, "part", "all", "all (data and metadata), data, metadata, cs or local")
	flag.IntVar(&o.entries, "entries", 100_000, "entries of the directory that is listed; 0: none is")
	flag.IntVar(&o.clients, "clients", 256, "mds: sessions, each with one request under way")
	flag.IntVar(&o.kills, "kills", 50, "failover: how often the leader is killed")
	flag.StringVar(&o.profiles, "profiles", "vm-mixed-70-30,fsync-heavy", "compare: profiles of varve perf, by name or file")
	flag.Float64Var(&o.times, "scale-time", 1, "compare: make the profiles' times so many times longer")
	flag.Float64Var(&o.sizes, "scale-size", 1, "compare: make the profiles' sizes so many times larger")
	bench := run
	args := os.Args[1:]
	if len(args) > 0 {
		if other, ok := map[string]func(context.Context, options) error{"mds": runWire, "failover": runFailover}[args[0]]; ok {
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
		fmt.Fprintf(os.Stderr, "bench: what is %q? Want mds, failover, compare or nothing, then flags\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := inDir(ctx, o, bench); err != nil {
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
	if _, err := exec.LookPath("fio"); err != nil && o.part != "metadata" {
		return fmt.Errorf("needs fio (apt-get install fio): %w", err)
	}
	switch o.part {
	case "cs":
		return runCS(ctx, o)
	case "local":
		return runLocal(ctx, o)
	case "generator":
		return runGenerator(ctx, o)
	}
	local := filepath.Join(o.dir, "local")
	if err := os.MkdirAll(local, 0o755); err != nil {
		return err
	}
	c, err := startCluster(ctx, o, 2)
	if err != nil {
		return err
	}
	defer func() { err = c.stop(err) }()
	targets := []target{
		{name: "local", dir: local, cold: local, cpu: func() time.Duration { return 0 }},
		{name: "varve", dir: c.mounts[0], cold: c.mounts[1], cpu: c.cpu},
	}
	t := newTable(targets)
	parts := map[string]func(context.Context, options, []target, *table) error{"data": benchData, "metadata": benchMetadata}
	for _, name := range []string{"data", "metadata"} {
		bench := parts[name]
		if o.part != "all" && o.part != name {
			continue
		}
		if err := bench(ctx, o, targets, t); err != nil {
			if ctx.Err() == nil {
				return err
			}
			fmt.Println("interrupted; what was measured until then:")
			break
		}
	}
	fmt.Printf("\n%d MDS, %d CS, replicas %s, all on this machine; medians of %d rounds\n\n", o.mds, o.cs, o.replicas, o.rounds)
	t.print(os.Stdout)
	if o.out == "" {
		return nil
	}
	b, err := json.MarshalIndent(t.rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, b, 0o644)
}

func dropCaches() {
	_ = exec.Command("sync").Run()
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200) // best effort: a container may not be allowed to
}
