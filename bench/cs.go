package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/perf"
)

// What a chunk server has to reach, as a share of fio on the same disk and of a bare TCP stream. From data in the device's cache
// enoughReads are enough, since there fio is bound by nothing.
const (
	shareOfFio  = 0.8
	shareOfTCP  = 0.8
	enoughReads = 120_000
)

// csRow is one figure of one chunk server: what fio does with the disk, and what a bare client gets.
type csRow struct {
	name  string
	rw    perf.RW
	bs    int64
	depth int
	bar   func(fio, tcp, cs float64) string // says whether the figure is what it has to be; nil: it has to be nothing
}

const smallBlock, largeBlock = 4 << 10, 1 << 20

var csRows = []csRow{
	{name: "random read 4k QD1", rw: perf.RandRead, bs: smallBlock, depth: 1},
	{name: "random read 4k QD32", rw: perf.RandRead, bs: smallBlock, depth: 32, bar: func(fio, _, cs float64) string {
		return reached(cs, min(shareOfFio*fio, enoughReads))
	}},
	{name: "random write 4k QD32", rw: perf.RandWrite, bs: smallBlock, depth: 32},
	{name: "read 1M QD8", rw: perf.Read, bs: largeBlock, depth: 8, bar: func(_, tcp, cs float64) string {
		return reached(cs, shareOfTCP*tcp)
	}},
	{name: "write 1M QD8", rw: perf.Write, bs: largeBlock, depth: 8},
}

func reached(have, want float64) string {
	verdict := "reached"
	if have < want {
		verdict = "missed"
	}
	return fmt.Sprintf("%s: %s", humanize.Comma(int64(want)), verdict)
}

func (r csRow) large() bool { return r.bs == largeBlock }

// csFigures are the samples of a row, or of the stream.
type csFigures struct {
	Name   string   `json:"name"`
	Unit   string   `json:"unit"`
	Fio    []sample `json:"fio,omitempty"`
	TCP    []sample `json:"tcp,omitempty"`    // CPU: of both ends, for 1 MiB
	Server []sample `json:"server,omitempty"` // CPU: of the chunk server, for an operation
	// Client is the CPU of this process, which asks and checks the checksums, for an operation.
	Client []time.Duration `json:"client_cpu_ns,omitempty"`
}

// runCS measures one chunk server, a process of its own, with a bare client: no FUSE, no core client, no metadata server on
// the way. In the same rounds fio does the same to a file of the same filesystem, and a TCP connection streams over loopback.
func runCS(ctx context.Context, o options) (err error) {
	o.mds, o.cs, o.replicas = 1, 1, "1:1"
	size, err := parseSize(o.size)
	if err != nil {
		return err
	}
	c, err := startCluster(ctx, o, 1)
	if err != nil {
		return err
	}
	defer func() { err = c.stop(err) }()
	addr, err := c.chunkServer(ctx)
	if err != nil {
		return err
	}
	st, err := c.status(ctx)
	if err != nil {
		return err
	}
	where := c.where(st)
	pid, err := readPID(filepath.Join(c.run(), "cs1.pid"))
	if err != nil {
		return err
	}
	local := target{name: "fio", dir: o.dir}
	fmt.Printf("filling %s of fio's file\n", o.size)
	if _, err := fio(ctx, o, local, "--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"); err != nil {
		return err
	}
	figures := make([]csFigures, len(csRows))
	for round := range o.rounds {
		for i, r := range csRows {
			f := &figures[i]
			if f.Name, f.Unit = r.name, unit(r.large()); !strings.Contains(r.name, o.only) {
				continue
			}
			steps := []func() error{
				func() error { return f.sampleFio(ctx, o, local, r) },
				func() error { return f.sampleTCP(ctx, o, r) },
				func() error { return f.sampleServer(ctx, o, r, addr, where, pid, size) },
			}
			for n := range steps {
				if err := steps[(n+round)%len(steps)](); err != nil {
					return err
				}
			}
			fmt.Printf("round %d  %-22s fio %10.0f  TCP %7.0f  chunk server %10.0f %s\n",
				round+1, r.name, last(f.Fio), last(f.TCP), last(f.Server), f.Unit)
		}
	}
	fmt.Printf("\n1 chunk server, one connection, all on this machine; medians of %d rounds of %v\n\n", o.rounds, o.duration)
	printCS(os.Stdout, figures)
	if o.out == "" {
		return nil
	}
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, b, 0o644)
}

// last returns the newest value, 0 if there is none.
func last(s []sample) float64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].Value
}

// chunkServer returns the address of the cluster's first chunk server.
func (c *cluster) chunkServer(ctx context.Context) (string, error) {
	st, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	uuid, err := hex.DecodeString(strings.ReplaceAll(st.UUID, "-", ""))
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	network, err := secure.FromDir(c.clusterDir())
	if err != nil {
		return "", err
	}
	conn, _, err := wire.Dial(ctx, st.Leader, &msg.Hello{Cluster: uuid, Role: msg.Hello_ADMIN}, nil, wire.Options{Class: wire.ClassMeta, Network: network})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	reply := new(msg.StatusReply)
	code, err := conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, reply)
	if err = errors.Join(err, code.Err()); err != nil {
		return "", err
	}
	if len(reply.Servers) == 0 {
		return "", errors.New("the cluster has no chunk servers")
	}
	return reply.Servers[0].Addr, nil
}

func (f *csFigures) sampleFio(ctx context.Context, o options, tg target, r csRow) error {
	dropCaches()
	res, err := fio(ctx, o, tg, "--ioengine=io_uring", "--time_based", "--runtime="+fmt.Sprint(o.duration.Seconds()),
		"--rw="+string(r.rw), "--bs="+fmt.Sprint(r.bs), "--iodepth="+fmt.Sprint(r.depth))
	if err != nil {
		return err
	}
	d := res.Jobs[0].Read
	if d.Total == 0 {
		d = res.Jobs[0].Write
	}
	s := sample{Value: d.IOPS, P99: time.Duration(d.Latency.Percentile["99.000000"])}
	if r.large() {
		s.Value = d.BW / (1 << 20)
	}
	f.Fio = append(f.Fio, s)
	return nil
}

// sampleTCP streams over loopback, if the row is one of large blocks.
func (f *csFigures) sampleTCP(ctx context.Context, o options, r csRow) error {
	if !r.large() {
		return nil
	}
	s, err := stream(ctx, o.duration)
	f.TCP = append(f.TCP, s)
	return err
}

// stream sends 1 MiB after the other over a connection to this very process.
func stream(ctx context.Context, d time.Duration) (sample, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return sample{}, err
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return sample{}, err
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		return sample{}, err
	}
	defer in.Close()
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	start, cpu := time.Now(), ownTime()
	sent := make(chan error, 1)
	go func() {
		p := make([]byte, largeBlock)
		for time.Since(start) < d {
			if _, err := out.Write(p); err != nil {
				sent <- err
				return
			}
		}
		sent <- out.Close()
	}()
	p, total := make([]byte, largeBlock), 0
	for {
		n, err := io.ReadFull(in, p)
		total += n
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			return sample{}, err
		}
	}
	elapsed, mib := time.Since(start), float64(total)/largeBlock
	return sample{Value: mib / elapsed.Seconds(), CPU: time.Duration(float64(ownTime()-cpu) / max(mib, 1))}, errors.Join(ctx.Err(), <-sent)
}

// ownTime is the CPU time of this process.
func ownTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (f *csFigures) sampleServer(ctx context.Context, o options, r csRow, addr, where string, pid int, size int64) error {
	dropCaches()
	w := watchCPU(func() time.Duration { return pidTime(pid) })
	res, err := perf.Run(ctx, perf.Options{
		Target: "cs:" + addr, Cluster: where, RW: r.rw, BlockSize: r.bs, QD: r.depth, Jobs: 1, Size: size, Duration: o.duration, Seed: uint64(time.Now().UnixNano()),
	})
	w.stop()
	if err != nil {
		return err
	}
	if !res.OK() || res.Stopped != "" {
		return fmt.Errorf("%s at the chunk server: %s %+v", r.name, res.Stopped, res.Errors)
	}
	server, client := w.during(res.Started, res.Started.Add(res.Elapsed))
	per := func(d time.Duration) time.Duration { return d / time.Duration(max(res.Total.Count, 1)) }
	s := sample{Value: res.Total.IOPS, P99: res.Total.Latency.P99, CPU: per(server)}
	if r.large() {
		s.Value = res.Total.MiBs
	}
	f.Server = append(f.Server, s)
	f.Client = append(f.Client, per(client))
	return nil
}

// cpuWatch notes the CPU time of those who serve and of this process again and again, since a run lays its data out before it begins.
type cpuWatch struct {
	end  chan struct{}
	done sync.WaitGroup
	seen []cpuMark
}

type cpuMark struct {
	at             time.Time
	server, client time.Duration
}

func watchCPU(servers func() time.Duration) *cpuWatch {
	w := &cpuWatch{end: make(chan struct{})}
	w.done.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			w.seen = append(w.seen, cpuMark{time.Now(), servers(), ownTime()})
			select {
			case <-tick.C:
			case <-w.end:
				return
			}
		}
	})
	return w
}

func (w *cpuWatch) stop() {
	close(w.end)
	w.done.Wait()
}

// during returns the CPU time of both between two moments.
func (w *cpuWatch) during(from, to time.Time) (server, client time.Duration) {
	at := func(t time.Time) cpuMark {
		i, _ := slices.BinarySearchFunc(w.seen, t, func(m cpuMark, t time.Time) int { return m.at.Compare(t) })
		return w.seen[min(i, len(w.seen)-1)]
	}
	a, b := at(from), at(to)
	return b.server - a.server, b.client - a.client
}

func printCS(w io.Writer, figures []csFigures) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| figure\t| unit\t| fio io_uring\t| TCP\t| chunk server\t| of fio\t| of TCP\t| p99\t| server CPU per op\t| client CPU per op\t| has to be\t|")
	fmt.Fprintln(tw, "| ---\t| ---\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| --:\t| ---\t|")
	number := func(v float64) string {
		if v == 0 {
			return ""
		}
		return humanize.Comma(int64(v))
	}
	share := func(a, b float64) string {
		if b == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", a/b)
	}
	for i, f := range figures {
		if len(f.Server) == 0 {
			continue
		}
		fio, tcp, cs, bar := median(f.Fio).Value, median(f.TCP).Value, median(f.Server), ""
		if csRows[i].bar != nil {
			bar = csRows[i].bar(fio, tcp, cs.Value)
		}
		client := slices.Clone(f.Client)
		slices.Sort(client)
		us := func(d time.Duration) string { return fmt.Sprintf("%.1f µs", float64(d)/1e3) }
		fmt.Fprintf(tw, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", f.Name, f.Unit, number(fio), number(tcp), number(cs.Value),
			share(cs.Value, fio), share(cs.Value, tcp), cs.P99.Round(time.Microsecond), us(cs.CPU), us(client[len(client)/2]), bar)
	}
	tw.Flush()
}

// parseSize reads fio's form of a size: a number with k, m or g.
func parseSize(s string) (int64, error) {
	shift := map[byte]int{'k': 10, 'm': 20, 'g': 30}[s[len(s)-1]|0x20]
	digits := s
	if shift > 0 {
		digits = s[:len(s)-1]
	}
	n, err := strconv.ParseInt(digits, 10, 40)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("--size %q: want a number such as 512m or 1g", s)
	}
	return n << shift, nil
}
