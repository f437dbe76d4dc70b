package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
	"varve/internal/hot"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// benchWorldEnv says that the process is the servers of a benchmark, and of which kind.
const benchWorldEnv = "VARVE_BENCH_WORLD"

// benchFileSize is the length of the file that a benchmark reads and writes.
const benchFileSize = 16 << 20

// TestBenchWorld is no test: it serves a benchmark of another process until its standard input ends. Writes are not stored, so that the client is what
// is measured.
func TestBenchWorld(t *testing.T) {
	kind := os.Getenv(benchWorldEnv)
	if kind == "" {
		t.Skip("serves BenchmarkHot in a process of its own")
	}
	w := newWorld(t, 1, 3, 3, 1)
	if kind == "local" {
		for _, s := range w.cs {
			serveNear(t, s)
		}
	}
	fmt.Printf("world %s\n", w.servers[0].addr)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		nullStore(w)
	}
}

// benchWorld starts the servers and returns the file of a client.
func benchWorld(b *testing.B, kind string) *File {
	cmd := exec.Command(os.Args[0], "-test.run", "^TestBenchWorld$")
	cmd.Env = append(os.Environ(), benchWorldEnv+"="+kind)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	lines := bufio.NewReader(out)
	addr := ""
	for addr == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		addr, _ = strings.CutPrefix(strings.TrimSpace(line), "world ")
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	c, err := Dial(b.Context(), Options{Cluster: testCluster, Addrs: []string{addr}, Logger: quiet(), NoLocal: kind != "local"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	_, f, err := c.Create(b.Context(), nil, &msg.Create{Parent: 1, Name: []byte("a"), Type: msg.FileType_REGULAR, Open: true})
	if err != nil {
		b.Fatal(err)
	}
	if _, _, err := f.WriteAt(b.Context(), fill(benchFileSize, 1), 0, false); err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Fprintln(in, "no more is stored"); err != nil {
		b.Fatal(err)
	}
	if kind == "local" {
		p := make([]byte, 4096)
		for end := time.Now().Add(10 * time.Second); c.LocalStats().Reads == 0; {
			if _, err := f.ReadAt(b.Context(), p, 0); err != nil || time.Now().After(end) {
				b.Fatalf("nothing was read around the network: %v", err)
			}
		}
	}
	return f
}

// BenchmarkHot compares the goroutine's way with that of a reactor, for the same requests to the same servers, three replicas. CPU and allocations are the
// client's.
func BenchmarkHot(b *testing.B) {
	for _, kind := range []string{"network", "local"} {
		b.Run("from="+kind, func(b *testing.B) { benchHot(b, kind, benchWorld(b, kind)) })
	}
}

func benchHot(b *testing.B, kind string, f *File) {
	for _, write := range []bool{false, true} {
		if write && kind == "local" {
			continue
		}
		for _, size := range []int{4096, 1 << 20} {
			for _, qd := range []int{1, 32 * 4096 / min(size, 16<<10)} { // 1 MiB: no two on the same blocks
				for _, way := range []string{"goroutine", "reactor"} {
					b.Run(fmt.Sprintf("write=%t/size=%d/qd=%d/way=%s", write, size, qd, way), func(b *testing.B) {
						b.SetBytes(int64(size))
						if way == "reactor" {
							benchReactor(b, f, write, size, qd)
						} else {
							benchGoroutines(b, f, write, size, qd)
						}
					})
				}
			}
		}
	}
}

// benchCost reports the client's CPU and allocations for an operation.
func benchCost(b *testing.B, run func()) {
	var before, after unix.Rusage
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	run()
	b.StopTimer()
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	runtime.ReadMemStats(&m1)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e3/float64(b.N), "us-cpu/op")
	b.ReportMetric(float64(m1.Mallocs-m0.Mallocs)/float64(b.N), "mallocs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func benchOffset(i int64, size int) int64 {
	return i * 7919 % (benchFileSize / int64(size)) * int64(size) // in no sequence
}

func benchGoroutines(b *testing.B, f *File, write bool, size, qd int) {
	var next atomic.Int64
	benchCost(b, func() {
		var wg sync.WaitGroup
		for range qd {
			wg.Go(func() {
				p := disk.AlignedBuffer(size)
				for {
					i := next.Add(1)
					if i > int64(b.N) {
						return
					}
					var err error
					if write {
						_, _, err = f.WriteAt(context.Background(), p, benchOffset(i, size), false)
					} else {
						_, err = f.ReadAt(context.Background(), p, benchOffset(i, size))
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// benchJob keeps one operation under way on a reactor.
type benchJob struct {
	b     *testing.B
	f     *File
	s     hot.Seat
	write bool
	p     []byte
	next  *int64 // of the loop's thread
	left  *int
	done  chan struct{}
	l     *reactor.Loop
	slow  *atomic.Int64
}

// Ended implements hot.Ender.
func (j *benchJob) Ended(n int, err error) {
	if err != nil || n != len(j.p) {
		j.b.Errorf("%d, %v", n, err)
	}
	j.go1()
}

// go1 begins the next operation.
func (j *benchJob) go1() {
	if *j.next++; *j.next > int64(j.b.N) {
		if *j.left--; *j.left == 0 {
			close(j.done)
		}
		return
	}
	off := benchOffset(*j.next, len(j.p))
	if j.write && j.f.BeginWrite(j.s, j.p, off, j) || !j.write && j.f.BeginRead(j.s, j.p, off, j) {
		return
	}
	j.slow.Add(1)
	go func() {
		var err error
		if j.write {
			_, _, err = j.f.WriteAt(context.Background(), j.p, off, false)
		} else {
			_, err = j.f.ReadAt(context.Background(), j.p, off)
		}
		j.l.Do(func() { j.Ended(len(j.p), err) })
	}()
}

func benchReactor(b *testing.B, f *File, write bool, size, qd int) {
	c := f.in.s.c
	l, err := reactor.Start(reactor.Options{Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	s, err := c.Sit(l)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		c.Leave(s)
		l.Close(context.Background())
	}()
	loc, _ := f.in.lookup(0)
	for ready := false; !ready; time.Sleep(time.Millisecond) { // connections
		all := make(chan bool)
		l.Do(func() {
			ok := true
			for i := range loc.replicas {
				ok = c.seat(s).ready(f.in.s.servers.server(&loc.replicas[i])) != nil && ok
			}
			all <- ok
		})
		ready = <-all
	}
	var slow atomic.Int64
	next, left := int64(0), qd
	done := make(chan struct{})
	jobs := make([]*benchJob, qd)
	for i := range jobs {
		jobs[i] = &benchJob{b: b, f: f, s: s, write: write, p: disk.AlignedBuffer(size), next: &next, left: &left, done: done, l: l, slow: &slow}
	}
	benchCost(b, func() {
		l.Do(func() {
			for _, j := range jobs {
				j.go1()
			}
		})
		<-done
	})
	if n := slow.Load(); n > int64(b.N)/100 {
		b.Logf("%d of %d went on in goroutines", n, b.N)
	}
}
