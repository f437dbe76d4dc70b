package fuse

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/capture"
)

// BenchmarkCapture is what it costs to capture a mount: fio's 4k reads at depth 32 on a Backend that costs nothing, with a capture and without in
// turns, medians of eleven. The other process takes, compresses and writes the records; its CPU is told apart.
func BenchmarkCapture(b *testing.B) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		b.Skip("fio is not installed")
	}
	s, dir := testMount(b, zeroFS{newMemFS()}, nil)
	load := func() (iops, cpu, ops float64) {
		before := cpuTime(b)
		out, err := exec.Command(fio, "--name=x", "--filename="+filepath.Join(dir, "f"), "--size=1g", "--direct=1", "--ioengine=libaio", "--time_based", "--runtime=1",
			"--fallocate=none", "--overwrite=0", "--rw=randread", "--bs=4k", "--iodepth=32", "--output-format=terse", "--terse-version=3").Output()
		if err != nil {
			b.Fatalf("fio: %v", err)
		}
		used := cpuTime(b) - before
		field := strings.Split(string(out), ";") // fio(1): bytes in KiB and IOPS of reads are the 6th and 8th
		kib, err1 := strconv.ParseFloat(field[5], 64)
		iops, err2 := strconv.ParseFloat(field[7], 64)
		if err1 != nil || err2 != nil || kib == 0 {
			b.Fatalf("fio printed %s", out)
		}
		return iops, float64(used) / (kib / 4), kib / 4
	}
	var rates, costs [2][]float64
	var takers []float64
	var records, dropped uint64
	const rounds = 11
	for b.Loop() {
		for round := range 2 * rounds {
			on := (round + round/2) % 2 // off on on off off on ...
			end := func() time.Duration { return 0 }
			if on == 1 {
				end = captureAll(b, s, dir, &records, &dropped)
			}
			iops, cpu, ops := load()
			if taken := end(); on == 1 {
				takers = append(takers, float64(taken)/ops)
			}
			rates[on], costs[on] = append(rates[on], iops), append(costs[on], cpu)
		}
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	// Of each pair that ran one after the other, since other load on the machine changes more slowly.
	var rate, cost []float64
	for i := range rates[0] {
		rate, cost = append(rate, rates[1][i]/rates[0][i]), append(cost, costs[1][i]/costs[0][i])
	}
	b.ReportMetric(median(rate), "iops-ratio")
	b.ReportMetric(median(cost), "cpu-ratio")
	b.ReportMetric(median(rates[0]), "off-iops")
	b.ReportMetric(median(rates[1]), "on-iops")
	b.ReportMetric(median(costs[0]), "off-cpu-ns/op")
	b.ReportMetric(median(costs[1]), "on-cpu-ns/op")
	b.ReportMetric(median(takers), "taker-cpu-ns/op")
	b.ReportMetric(float64(dropped)/float64(records+dropped), "dropped-share")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkServeCaptured is one READ through a Session without a kernel, with a capture and without.
func BenchmarkServeCaptured(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run("capture="+strconv.FormatBool(on), func(b *testing.B) {
			s, _ := fakeSession(b, newMemFS())
			s.files.add(&file{handle: &zeroHandle{}, ino: 2, write: true})
			s.via = &discard{make([]byte, maxWrite)}
			message := encode(opRead, 2, 2, u64(1), u64(0), u32(4096), u32(0), u64(0), u64(0))
			if on {
				defer follow(b, s)()
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := feed(s, message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// captureAll has another process capture a mount to nowhere until end is called, which returns the CPU that it used.
func captureAll(b *testing.B, s *Session, dir string, records, dropped *uint64) (end func() time.Duration) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	cmd := guestCommand(ctx, "capture", dir)
	var out strings.Builder
	cmd.Stdout = &out
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	for limit := time.Now().Add(20 * time.Second); s.capture.Load() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			b.Fatal("the capture does not begin")
		}
	}
	return func() time.Duration {
		defer cancel()
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatalf("%v: %s", err, &out)
		}
		var n, lost uint64
		if _, err := fmt.Sscan(out.String(), &n, &lost); err != nil {
			b.Fatalf("%v: %s", err, &out)
		}
		*records, *dropped = *records+n, *dropped+lost
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
}

// capture captures the mount until standard input is closed, writes the capture to nowhere, and prints how many records it had and were dropped.
func (g *guest) capture() {
	var st unix.Stat_t
	must(unix.Stat(g.dir, &st))
	c, err := capture.Dial(unix.Minor(st.Dev))
	must(err)
	defer c.Close()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = c.Stop()
	}()
	w, err := capture.NewWriter(io.Discard, capture.Header{Started: c.Started})
	must(err)
	for {
		r, err := c.Next()
		if err == io.EOF {
			break
		}
		must(err)
		must(w.Add(&r))
	}
	end, err := w.Close(capture.Stats{Dropped: c.Dropped})
	must(err)
	fmt.Println(end.Records, end.Dropped)
}

func cpuTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
