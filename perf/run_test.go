package perf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/iouring"

	"golang.org/x/sys/unix"
)

// engines runs a test with each engine that the kernel has.
func engines(t *testing.T, f func(t *testing.T, e Engine)) {
	for _, e := range []Engine{Sync, URing} {
		t.Run("engine="+string(e), func(t *testing.T) {
			if _, err := chooseEngine(target{}, e); errors.Is(err, iouring.ErrUnavailable) {
				t.Skip(err)
			}
			f(t, e)
		})
	}
}

func mustRun(t *testing.T, o Options) *Result {
	t.Helper()
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestRunOnce(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		for _, rw := range patterns {
			for _, target := range []string{"mount:" + t.TempDir(), "file:" + filepath.Join(t.TempDir(), "image")} {
				o := Options{Target: target, RW: rw, Engine: e, Size: 1<<20 + 100, QD: 4, Jobs: 2, FsyncEvery: 10, Verify: true, Seed: 5}
				res := mustRun(t, o)
				if !res.OK() || res.Total.Count != 2*256 || res.Total.Bytes != 2<<20 {
					t.Errorf("%s on %s: %d operations, %d bytes, %+v, %q", rw, target, res.Total.Count, res.Total.Bytes, res.Errors, res.Stopped)
				}
				if rw.writes() != (res.Write != nil && res.Fsync != nil) || rw.reads() != (res.Read != nil) {
					t.Errorf("%s: read %v, write %v, fsync %v", rw, res.Read, res.Write, res.Fsync)
				}
				if res.Fsync != nil && res.Fsync.Count > res.Write.Count/10 {
					t.Errorf("%s: %d fsyncs for %d writes", rw, res.Fsync.Count, res.Write.Count)
				}
				if v := res.Verify; v.Checked == 0 || rw.writes() != (v.ReadBack == "done") {
					t.Errorf("%s: %+v", rw, v)
				}
				var sum int64
				for _, s := range res.Series {
					sum += s.Reads + s.Writes
				}
				if sum != res.Total.Count {
					t.Errorf("%s: the series has %d operations, the total %d", rw, sum, res.Total.Count)
				}
			}
		}
	})
}

func TestRunDirect(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		dir := t.TempDir()
		f, err := disk.OS{}.Open(filepath.Join(dir, "probe"), disk.ReadWrite|disk.Create|disk.Direct)
		if err != nil {
			t.Skipf("no direct I/O here: %v", err)
		}
		f.Close()
		res := mustRun(t, Options{Target: "mount:" + dir, RW: RandRW, Engine: e, Size: 1 << 20, QD: 8, Direct: true, Verify: true})
		if !res.OK() || res.Total.Count != 256 {
			t.Errorf("%+v", res)
		}
	})
}

func TestDurationAndPercentiles(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		tries(t, func() error {
			res := mustRun(t, Options{Engine: e, QD: 4, Jobs: 2, Duration: 1100 * time.Millisecond})
			l := res.Total.Latency
			if !res.OK() || res.Elapsed < 1100*time.Millisecond || res.Elapsed > 5*time.Second || len(res.Series) < 2 {
				return fmt.Errorf("%v, %q, %d seconds", res.Elapsed, res.Stopped, len(res.Series))
			}
			if l.P50 <= 0 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max || l.Mean <= 0 || l.Mean > l.Max {
				t.Errorf("%+v", l)
			}
			if res.Total.IOPS < 1000 {
				return fmt.Errorf("%v operations a second on nothing", res.Total.IOPS)
			}
			return nil
		})
	})
}

// tries measures until nothing is wrong, but not for ever: a machine that stands still by itself is in what is measured.
func tries(t *testing.T, measure func() error) {
	t.Helper()
	for try := 1; ; try++ {
		err := measure()
		if err == nil {
			return
		}
		if try == 6 {
			t.Fatal(err)
		}
		t.Logf("try %d: %v", try, err)
	}
}

// TestOpenLoopRate is a target that keeps up.
func TestOpenLoopRate(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		tries(t, func() error {
			res := mustRun(t, Options{Engine: e, QD: 4, Jobs: 2, Rate: 400, Duration: 500 * time.Millisecond})
			if res.Total.Count < 150 || res.Total.Count > 200 || res.Total.Count+res.Missed != 200 {
				return fmt.Errorf("%d operations and %d missed, want 200", res.Total.Count, res.Missed)
			}
			if res.StartLag == nil || res.StartLag.P50 > 50*time.Millisecond {
				return fmt.Errorf("%+v", res.StartLag)
			}
			return nil
		})
	})
}

// TestOpenLoopOverload is a target that cannot keep up: latency counts from when the operations were due.
func TestOpenLoopOverload(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		tries(t, func() error {
			res := mustRun(t, Options{Engine: e, QD: 2, Rate: 1e9, Duration: 200 * time.Millisecond})
			if res.Missed == 0 || res.StartLag == nil || res.StartLag.Max < 100*time.Millisecond || res.Total.Latency.P50 < 20*time.Millisecond {
				return fmt.Errorf("missed %d, lag %+v, latency %+v", res.Missed, res.StartLag, res.Total.Latency)
			}
			return nil
		})
	})
}

func TestCancel(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		for name, o := range map[string]Options{
			"closed loop":    {Duration: time.Hour, Target: "mount:" + t.TempDir(), RW: RandWrite, Verify: true},
			"open loop":      {Duration: time.Hour, Rate: 50},
			"open loop idle": {Duration: time.Hour, Rate: 0.001, Jobs: 2, RW: Write},
		} {
			o.Engine, o.QD = e, 4
			var res *Result
			var begin time.Time
			for span := 150 * time.Millisecond; res == nil || res.Total.Count == 0 && span < 10*time.Second; span *= 2 { // a busy machine has hardly begun by then
				ctx, cancel := context.WithTimeout(t.Context(), span)
				begin = time.Now().Add(span)
				var err error
				res, err = Run(ctx, o)
				cancel()
				if err != nil {
					t.Fatal(err)
				}
			}
			if res.Stopped != cancelled || !res.OK() || time.Since(begin) > 20*time.Second || res.Total.Count == 0 {
				t.Errorf("%s: %d operations, %q after %v", name, res.Total.Count, res.Stopped, time.Since(begin))
			}
			if o.Verify && res.Verify.ReadBack != cancelled {
				t.Errorf("%s: read back %q", name, res.Verify.ReadBack)
			}
		}
	})
}

func TestDiskFull(t *testing.T) {
	engines(t, func(t *testing.T, e Engine) {
		res := mustRun(t, Options{Target: "file:/dev/full", RW: Write, Engine: e, QD: 4, Duration: time.Minute})
		if !strings.HasPrefix(res.Stopped, "disk full: write: ") || len(res.Errors) != 1 || res.Errors[0].Error != unix.ENOSPC.Error() || res.OK() {
			t.Errorf("%q, %+v", res.Stopped, res.Errors)
		}
	})
}

// TestEIO writes where no memory is: the kernel answers EIO, and the run goes on until too many fail.
func TestEIO(t *testing.T) {
	res := mustRun(t, Options{Target: "file:/proc/self/mem", RW: RandWrite, Engine: Sync, QD: 2, Size: 32 << 10, Duration: time.Minute})
	if len(res.Errors) != 1 || res.Errors[0].Error != unix.EIO.Error() || res.Errors[0].Count < maxErrors || !strings.Contains(res.Stopped, "operations failed") {
		t.Errorf("%q, %+v", res.Stopped, res.Errors)
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	for want, o := range map[string]Options{
		"want mount:DIR":      {Target: "cloud:9"},
		"pattern":             {RW: "sideways"},
		"engine":              {Engine: "steam"},
		"block size":          {BlockSize: -1},
		"multiple of 512":     {BlockSize: 1000, Direct: true},
		"jobs":                {Jobs: maxJobs + 1},
		"at most 4096":        {Jobs: 64, QD: 128},
		"duration":            {Duration: -1},
		"rate":                {Rate: -1},
		"twice as many":       {Target: "mount:" + dir, Verify: true, Size: 8 << 10, QD: 2},
		"no such file":        {Target: "mount:" + dir + "/none"},
		"is not a directory":  {Target: "mount:/dev/null"},
		"is a directory":      {Target: "file:" + dir},
		"keeps nothing to ve": {Verify: true, Target: "null"},
	} {
		_, err := Run(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", o, err, want)
		}
	}
	err := Options{RW: "sideways", Engine: "steam", Jobs: -1}.Validate()
	if n := strings.Count(err.Error(), "\n"); n != 2 {
		t.Errorf("not all faults at once: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("refused runs left %v, %v", entries, err)
	}
}

// TestReadBackFinds damages a file in every way between writing and reading back.
func TestReadBackFinds(t *testing.T) {
	o := &Options{Target: "mount:" + t.TempDir(), RW: RandWrite, Verify: true, Size: 64 << 10}
	o.setDefaults()
	tgt, err := parseTarget(o.Target)
	if err != nil {
		t.Fatal(err)
	}
	f, err := tgt.open(t.Context(), 0, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	j := newJob(o, 0, f, newPool(1), 1)
	buffer := make([]byte, 64<<10)
	if err := j.layOut(func(int64) error { return nil }, buffer); err != nil {
		t.Fatal(err)
	}
	old := append([]byte(nil), buffer...)
	if err := j.layOut(func(int64) error { return nil }, buffer); err != nil {
		t.Fatal(err)
	}
	put := func(block int64, p []byte) {
		if err := f.transfer(opWrite, p, block*4096); err != nil {
			t.Fatal(err)
		}
	}
	put(1, make([]byte, 4096))
	put(3, old[3*4096:4*4096])
	put(5, old[5*4096:5*4096+512])
	put(7, buffer[8*4096:9*4096])
	put(9, []byte("rot"))

	r := &recorder{series: new(series)}
	if how := readBack(t.Context(), o, []*job{j}, r); how != "done" {
		t.Error(how)
	}
	v := r.verify
	if v.Checked != 16 || v.Lost != 1 || v.Old != 1 || v.Torn != 1 || v.Misplaced != 1 || v.Corrupt != 1 {
		t.Errorf("%+v", v)
	}
	for i, want := range []FaultKind{Lost, Old, Torn, Misplaced, Corrupt} {
		if f := v.First[i]; f.Kind != want || f.Block != int64(2*i+1) || f.Offset != int64(2*i+1)*4096 {
			t.Errorf("%s", f)
		}
	}
	if err := unix.Ftruncate(f.fd, 60<<10); err != nil { // the last block cannot be read
		t.Fatal(err)
	}
	r = &recorder{series: new(series)}
	readBack(t.Context(), o, []*job{j}, r)
	if r.verify.Checked != 15 || len(r.errors) != 1 {
		t.Errorf("checked %d, %v", r.verify.Checked, r.errors)
	}
}

// TestStuck gives up on an operation that never ends.
func TestStuck(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{o: &Options{}, ctx: ctx, grace: 10 * time.Millisecond}
	var hung sync.WaitGroup
	hung.Add(1)
	defer hung.Done()
	cancel()
	if l.wait(&hung, nil) {
		t.Error("waited for what never ends")
	}
	r, sum := &recorder{series: new(series)}, &recorder{}
	r.close(sum)
	r.add(outcome{op: op{kind: opRead}, ended: 1}) // ends after all
	if r.latency[opRead] != nil {
		t.Error("a closed recorder recorded")
	}
}

func TestReport(t *testing.T) {
	res := mustRun(t, Options{Target: "mount:" + t.TempDir(), RW: RandRW, Size: 1 << 20, QD: 2, Verify: true, FsyncEvery: 16, Rate: 1e6})
	res.Stopped, res.Missed, res.Stuck = "disk full: write: no space", 1234, 2
	res.Errors = []ErrorCount{{Op: "write", Error: "no space", Count: 3}}
	res.Verify.add(&Fault{Kind: Torn, Path: "/x", Offset: 4096, Block: 1, Detail: "why"})
	var b strings.Builder
	if err := res.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"randrw (50 % reads) on mount:", "ended early: disk full", "p99.9", "start lag", "fsync", "1,234 operations were due",
		"2 operations never ended", "3 x write: no space", "0 lost, 0 old, 1 torn", "/x at 4096: torn (job 0, block 1): why",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, b.String())
		}
	}
	text, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(text, &back); err != nil || back.Total != res.Total || back.Options != res.Options {
		t.Errorf("%v: %s", err, text)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ns", 999: "999ns", 1234: "1.23µs", 12345: "12.3µs", 999_900: "1.00ms", 123456789: "123ms", 61 * time.Second: "61.0s",
	} {
		if got := ShortDuration(d); got != want {
			t.Errorf("%d: got %s, want %s", d, got, want)
		}
	}
}

// TestAllocs: the generator does not disturb what it measures.
func TestAllocs(t *testing.T) {
	o := &Options{RW: RandRW}
	o.setDefaults()
	l := &load{o: o, ctx: t.Context(), start: time.Now()}
	j, r := newJob(o, 0, &file{fd: -1}, newPool(1), 1), &recorder{series: new(series), flights: make([]flight, 1)}
	j.until = time.Hour
	p := make([]byte, 4096)
	once := func() {
		x, _ := j.next()
		j.prepare(x, p)
		l.finish(j, r, outcome{op: x, ended: l.now()}, p)
	}
	for range 100 {
		once()
	}
	if n := testing.AllocsPerRun(1000, once); n != 0 {
		t.Errorf("%v allocations an operation", n)
	}
}

// BenchmarkOperation is the generator's own work for one operation, without any engine.
func BenchmarkOperation(b *testing.B) {
	for _, o := range []*Options{{RW: RandRead}, {RW: RandWrite}, {RW: RandWrite, BlockSize: 1 << 20}, {RW: RandWrite, Verify: true}, {RW: RandRead, Dist: "zipf:0.99"}} {
		o.setDefaults()
		b.Run(fmt.Sprintf("rw=%s/bs=%d/dist=%s/verify=%v", o.RW, o.BlockSize, o.Dist, o.Verify), func(b *testing.B) {
			l := &load{o: o, ctx: b.Context(), start: time.Now()}
			j, r := newJob(o, 0, &file{fd: -1}, newPool(1), 1), &recorder{series: new(series), flights: make([]flight, 1)}
			j.until = time.Hour
			p := make([]byte, o.BlockSize)
			j.ready(p, 0)
			b.ReportAllocs()
			for b.Loop() {
				x, _ := j.next()
				j.prepare(x, p)
				l.finish(j, r, outcome{op: x, ended: l.now()}, p)
			}
		})
	}
}

// BenchmarkNull is the ceiling of the generator: how many operations a second it could start if they took no time.
func BenchmarkNull(b *testing.B) {
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"engine=sync/qd=1/jobs=1", Options{Engine: Sync}},
		{"engine=sync/qd=16/jobs=1", Options{Engine: Sync, QD: 16}},
		{"engine=uring/qd=32/jobs=1", Options{Engine: URing, QD: 32}},
		{"engine=uring/qd=32/jobs=2", Options{Engine: URing, QD: 32, Jobs: 2}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.o.Size = 200_000 * 4096
				res, err := Run(b.Context(), c.o)
				if err != nil {
					b.Skip(err)
				}
				b.ReportMetric(res.Total.IOPS, "ops/s")
			}
		})
	}
}
