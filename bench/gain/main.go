//go:build gain

package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// serverEnv has this program be a server: KIND or KIND,upload.
const serverEnv = "VARVE_BENCH_GAIN_SERVER"

// stallTimeout is how long an operation may take before the client gives up on the server.
const stallTimeout = 15 * time.Second

// scene is one thing that is measured.
type scene struct {
	name   string
	upload bool
	conns  int
}

var scenes = []scene{
	{"echo 64 B, 1 connection", false, 1},
	{"echo 64 B, 64 connections", false, 64},
	{"upload 1 MiB, 1 connection", true, 1},
	{"upload 1 MiB, 8 connections", true, 8},
}

// figure is one sample.
type figure struct {
	rate     float64 // operations a second
	p50, p99 time.Duration
	longest  time.Duration
	cpu      time.Duration // of the server, for an operation
}

func main() {
	if kind := os.Getenv(serverEnv); kind != "" {
		name, _, upload := strings.Cut(kind, ",")
		if err := serve(name, upload); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 3, "samples of each figure, of which the median is printed")
	duration := flag.Duration("for", 2*time.Second, "length of each sample")
	flag.Parse()
	if err := compare(*rounds, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "gain:", err)
		os.Exit(1)
	}
}

func compare(rounds int, d time.Duration) error {
	samples := map[string][]figure{}
	for range rounds {
		for _, s := range scenes {
			for _, kind := range kinds {
				f, err := sample(kind, s, d)
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s, %s: %v\n", s.name, kind, err) // the others are measured all the same
					continue
				}
				key := s.name + kind
				samples[key] = append(samples[key], f)
			}
		}
	}
	fmt.Printf("medians of %d rounds of %v; server and client share this machine's CPUs\n\n", rounds, d)
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| what\t| server\t| ops/s\t| of net\t| p50\t| p99\t| longest\t| server CPU per op\t|\n| ---\t| ---\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t|")
	for _, s := range scenes {
		base := median(samples[s.name+kinds[0]])
		for _, kind := range kinds {
			f := median(samples[s.name+kind])
			if f.rate == 0 {
				fmt.Fprintf(tw, "| %s\t| %s\t| failed\t|\t|\t|\t|\t|\t|\n", s.name, kind)
				continue
			}
			round := func(d time.Duration) time.Duration { return d.Round(100 * time.Nanosecond) }
			fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %.2f\t| %v\t| %v\t| %v\t| %v\t|\n", s.name, kind, humanize.Comma(int64(f.rate)), f.rate/max(base.rate, 1),
				round(f.p50), round(f.p99), f.longest.Round(time.Microsecond), round(f.cpu))
		}
	}
	return tw.Flush()
}

// median by rate.
func median(all []figure) figure {
	if len(all) == 0 {
		return figure{}
	}
	slices.SortFunc(all, func(a, b figure) int { return int(a.rate - b.rate) })
	return all[len(all)/2]
}

// sample starts a server and has clients ask it.
func sample(kind string, s scene, d time.Duration) (f figure, err error) {
	self, err := os.Executable()
	if err != nil {
		return f, err
	}
	what := kind
	if s.upload {
		what += ",upload"
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverEnv+"="+what)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return f, err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return f, err
	}
	if err := cmd.Start(); err != nil {
		return f, err
	}
	defer func() {
		in.Close()
		timer := time.AfterFunc(2*time.Second, func() { _ = cmd.Process.Kill() }) // gain may not end by itself
		defer timer.Stop()
		_ = cmd.Wait()
	}()
	out := bufio.NewScanner(pipe)
	line := func() string { out.Scan(); return out.Text() }
	addr := line()
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return f, fmt.Errorf("the server did not start: %q", addr)
	}
	used := func() time.Duration {
		fmt.Fprintln(in)
		n, _ := strconv.ParseInt(line(), 10, 64) // 0 of a server that is gone, which the clients notice
		return time.Duration(n)
	}
	before := used()
	times, err := load(addr, s, d)
	if err != nil {
		return f, err
	}
	slices.Sort(times)
	n := len(times)
	return figure{
		rate: float64(n) / d.Seconds(), p50: times[n/2], p99: times[n*99/100], longest: times[n-1],
		cpu: (used() - before) / time.Duration(n),
	}, nil
}

// load has as many clients as the scene says, each with one operation under way, and returns how long each operation took.
func load(addr string, s scene, d time.Duration) (all []time.Duration, err error) {
	var mu sync.Mutex
	var work sync.WaitGroup
	conns := make([]net.Conn, s.conns)
	for i := range conns {
		if conns[i], err = net.DialTimeout("tcp", addr, stallTimeout); err != nil {
			return nil, err
		}
		defer conns[i].Close()
	}
	end := time.Now().Add(d)
	for _, c := range conns {
		work.Go(func() {
			times, cerr := ask(c, s.upload, end)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			err = errors.Join(err, cerr)
		})
	}
	work.Wait()
	if err == nil && len(all) == 0 {
		err = errors.New("nothing was answered")
	}
	return all, err
}

func ask(c net.Conn, upload bool, end time.Time) (times []time.Duration, err error) {
	send, receive := make([]byte, 64), make([]byte, 64)
	if upload {
		send, receive = make([]byte, uploadSize), make([]byte, len(ack))
	}
	if err := c.SetDeadline(end.Add(stallTimeout)); err != nil {
		return nil, err
	}
	for time.Now().Before(end) {
		start := time.Now()
		if _, err := c.Write(send); err != nil {
			return times, err
		}
		if _, err := io.ReadFull(c, receive); err != nil {
			return times, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}
