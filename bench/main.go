// Command bench measures a mounted varve cluster beside the local directory under it, in one run, and prints a table
// with ratios: fio for data, its own loops for metadata, CPU of all varve processes per operation.
//
//	go run ./bench [--rounds 3] [--for 5s] [--size 1g] [--mds 3] [--cs 3] [--json FILE]
//
// The machine's own disk bounds everything, and machines drift: trust the ratios, which come from neighbouring
// samples. Each figure is the median of the rounds; targets alternate within a round and caches are dropped before each sample.
// It needs root, fio, and some room in the temporary directory, where it keeps both the cluster and the local files.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
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
	flag.StringVar(&o.out, "json", "", "also write every sample to this file")
	flag.StringVar(&o.only, "only", "", "run only the rows whose name contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// target is a directory under test.
type target struct {
	name string
	dir  string
	cpu  func() time.Duration // CPU time of the processes that serve it, so far
}

func run(ctx context.Context, o options) (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root to mount; run it as root")
	}
	if _, err := exec.LookPath("fio"); err != nil {
		return fmt.Errorf("needs fio (apt-get install fio): %w", err)
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "varve-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.dir)
	}
	local, mount, data := filepath.Join(o.dir, "local"), filepath.Join(o.dir, "mnt"), filepath.Join(o.dir, "data")
	if err := os.MkdirAll(local, 0o755); err != nil {
		return err
	}
	varve := filepath.Join(o.dir, "varve")
	if err := command(ctx, "go", "build", "-o", varve, "varve/cmd/varve"); err != nil {
		return err
	}
	if err := command(ctx, varve, "dev", "up", "-d", "--procs", "--dir", data, "--mount", mount,
		"--mds", strconv.Itoa(o.mds), "--cs", strconv.Itoa(o.cs), "--replicas", o.replicas); err != nil {
		return err
	}
	defer func() {
		down, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, command(down, varve, "dev", "down", "--dir", data))
	}()
	targets := []target{
		{name: "local", dir: local, cpu: func() time.Duration { return 0 }},
		{name: "varve", dir: mount, cpu: func() time.Duration { return processTime(filepath.Join(data, "run")) }},
	}
	t := newTable(targets)
	for _, bench := range []func(context.Context, options, []target, *table) error{benchData, benchMetadata} {
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

// command runs a program and adds what it printed to the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return nil
}

// processTime adds up the user and system time of the processes whose pid files are in dir.
func processTime(dir string) (total time.Duration) {
	pids, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
	for _, path := range pids {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(after)
		if len(f) < 13 {
			continue
		}
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		total += time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
	}
	return total
}

func dropCaches() {
	_ = exec.Command("sync").Run()
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200) // best effort: a container may not be allowed to
}
