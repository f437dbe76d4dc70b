package fuse

import (
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/capture"
)

// BenchmarkCapture is what it costs to capture a mount: fio's 4k reads at depth 32 on a Backend that costs nothing, with a capture and without in
// turns, medians of five. The CPU is that of the mount and of the one who takes, compresses and writes the records, who is in this process.
func BenchmarkCapture(b *testing.B) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		b.Skip("fio is not installed")
	}
	s, dir := testMount(b, zeroFS{newMemFS()}, nil)
	load := func() (iops, cpu float64) {
		before := cpuTime(b)
		out, err := exec.Command(fio, "--name=x", "--filename="+filepath.Join(dir, "f"), "--size=1g", "--direct=1", "--ioengine=libaio", "--time_based", "--runtime=2",
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
		return iops, float64(used) / (kib / 4)
	}
	var rates, costs [2][]float64
	var records, dropped uint64
	const rounds = 5
	for b.Loop() {
		for round := range 2 * rounds {
			on := (round + round/2) % 2 // off on on off off on ...
			end := func() {}
			if on == 1 {
				end = captureAll(b, s, &records, &dropped)
			}
			iops, cpu := load()
			end()
			rates[on], costs[on] = append(rates[on], iops), append(costs[on], cpu)
		}
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(median(rates[0]), "off-iops")
	b.ReportMetric(median(rates[1]), "on-iops")
	b.ReportMetric(median(rates[1])/median(rates[0]), "iops-ratio")
	b.ReportMetric(median(costs[0]), "off-cpu-ns/op")
	b.ReportMetric(median(costs[1]), "on-cpu-ns/op")
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

// captureAll captures a mount to nowhere until end is called.
func captureAll(b *testing.B, s *Session, records, dropped *uint64) (end func()) {
	c, err := capture.Dial(s.mount.conn)
	if err != nil {
		b.Fatal(err)
	}
	w, err := capture.NewWriter(io.Discard, capture.Header{Started: c.Started})
	if err != nil {
		b.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			r, err := c.Next()
			if err != nil {
				break
			}
			if err := w.Add(&r); err != nil {
				b.Error(err)
			}
		}
		st, err := w.Close(capture.Stats{Dropped: c.Dropped})
		if err != nil {
			b.Error(err)
		}
		*records += st.Records
		*dropped += st.Dropped
	})
	return func() {
		if err := c.Stop(); err != nil {
			b.Error(err)
		}
		all.Wait()
		c.Close()
	}
}

func cpuTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
