package iouring_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// The file that is read: VARVE_BENCH_DIR, else the directory of temporary files, else the one of the package; it must be on a
// filesystem that allows direct I/O.
const (
	benchBytes = 512 << 20
	benchBlock = 4096
)

// benchTime is how long each of the rounds of each way lasts.
func benchTime() (rounds int, each time.Duration) {
	rounds, each = 15, 300*time.Millisecond // short turns: what else the machine does hits all alike
	if n, err := strconv.Atoi(os.Getenv("VARVE_BENCH_ROUNDS")); err == nil && n > 0 {
		rounds = n
	}
	if d, err := time.ParseDuration(os.Getenv("VARVE_BENCH_TIME")); err == nil && d > 0 {
		each = d
	}
	return rounds, each
}

// benchFile makes the file, and opens it for direct I/O.
func benchFile(b *testing.B) *os.File {
	b.Helper()
	var faults []error
	for _, dir := range []string{os.Getenv("VARVE_BENCH_DIR"), os.TempDir(), "."} {
		if dir == "" {
			continue
		}
		name := filepath.Join(dir, fmt.Sprintf("iouring-bench-%d", os.Getpid()))
		f, err := makeBenchFile(name)
		if err == nil {
			b.Cleanup(func() { f.Close(); os.Remove(name) })
			return f
		}
		os.Remove(name)
		faults = append(faults, err)
	}
	b.Skip("no place for a file with direct I/O; set VARVE_BENCH_DIR:", errors.Join(faults...))
	return nil
}

func makeBenchFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return nil, err
	}
	p := aligned(1 << 20)
	copy(p, noise(len(p)))
	for off := int64(0); off < benchBytes && err == nil; off += int64(len(p)) {
		_, err = f.WriteAt(p, off)
	}
	if err = errors.Join(err, f.Sync()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// aligned is memory that begins at a page.
func aligned(n int) []byte {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return p
}

// speed is what one way of reading reached in one round.
type speed struct {
	iops float64
	cpu  time.Duration // of the process, for one operation
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs f, which returns how many operations it did.
func measure(f func() int) speed {
	start, cpu := time.Now(), cpuTime()
	n := f()
	d, c := time.Since(start), cpuTime()-cpu
	return speed{iops: float64(n) / d.Seconds(), cpu: c / time.Duration(max(n, 1))}
}

// ringReads reads random blocks through a ring with registered file and buffers.
func ringReads(b *testing.B, f *os.File, depth int, d time.Duration) speed {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := iouring.New(iouring.Options{Entries: 64, Files: 1, Buffers: uint32(depth), HandOver: 4})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	p := aligned(depth * benchBlock)
	defer unix.Munmap(p)
	bufs := make([][]byte, depth)
	for i := range bufs {
		bufs[i] = p[i*benchBlock : (i+1)*benchBlock]
		if err := r.SetBuffer(i, bufs[i]); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.SetFile(0, int(f.Fd())); err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	queue := func(i int) {
		off := rnd.Int64N(benchBytes/benchBlock) * benchBlock
		if _, err := r.ReadFixed(iouring.Fixed(0), bufs[i], off, i, uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
	return measure(func() int {
		n := 0
		for i := range depth {
			queue(i)
		}
		done := make([]iouring.Completion, 0, depth)
		for end := time.Now().Add(d); ; {
			if err := r.Submit(1); err != nil {
				b.Fatal(err)
			}
			done = r.Reap(done[:0], depth)
			for i := range done {
				if c := &done[i]; c.Err != nil || c.N != benchBlock {
					b.Fatalf("read: %+v", *c)
				}
				queue(int(done[i].Data))
			}
			if n += len(done); time.Now().After(end) {
				return n
			}
		}
	})
}

// preadReads reads random blocks with as many goroutines as depth.
func preadReads(b *testing.B, f *os.File, depth int, d time.Duration) speed {
	p := aligned(depth * benchBlock)
	defer unix.Munmap(p)
	fd := int(f.Fd())
	return measure(func() int {
		var n atomic.Int64
		var g sync.WaitGroup
		end := time.Now().Add(d)
		for i := range depth {
			g.Go(func() {
				buf, mine := p[i*benchBlock:(i+1)*benchBlock], int64(0)
				for time.Now().Before(end) {
					off := rand.Int64N(benchBytes/benchBlock) * benchBlock
					if m, err := unix.Pread(fd, buf, off); m != benchBlock || err != nil {
						b.Errorf("pread: %d, %v", m, err)
						break
					}
					mine++
				}
				n.Add(mine)
			})
		}
		g.Wait()
		return int(n.Load())
	})
}

// fioReads has fio read random blocks with its io_uring engine, file and buffers registered as above.
func fioReads(b *testing.B, fio string, f *os.File, depth int, d time.Duration) speed {
	cmd := exec.Command(fio, "--name=r", "--filename="+f.Name(), "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=io_uring",
		"--iodepth="+strconv.Itoa(depth), "--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()), "--fixedbufs=1", "--registerfiles=1",
		"--norandommap", "--randrepeat=0", "--thread", "--output-format=json")
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("fio: %v: %s", err, out)
	}
	var x struct {
		Jobs []struct {
			Read struct {
				IOPS    float64 `json:"iops"`
				Runtime float64 `json:"runtime"` // ms
				Total   float64 `json:"total_ios"`
			} `json:"read"`
			User   float64 `json:"usr_cpu"` // percent
			System float64 `json:"sys_cpu"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &x); err != nil || len(x.Jobs) != 1 || x.Jobs[0].Read.Total == 0 {
		b.Fatalf("fio's answer: %v: %s", err, out)
	}
	j := x.Jobs[0]
	cpu := (j.User + j.System) / 100 * j.Read.Runtime * 1e6 / j.Read.Total
	return speed{iops: j.Read.IOPS, cpu: time.Duration(cpu)}
}

// median of what the rounds reached, each figure by itself.
func median(s []speed) speed {
	iops, cpu := make([]float64, len(s)), make([]time.Duration, len(s))
	for i := range s {
		iops[i], cpu[i] = s[i].iops, s[i].cpu
	}
	slices.Sort(iops)
	slices.Sort(cpu)
	return speed{iops[len(s)/2], cpu[len(s)/2]}
}

// BenchmarkRandomRead compares 4 KiB random direct reads of one file: the ring, goroutines with pread, and fio. The ways take turns, and
// the medians of their rounds are compared.
func BenchmarkRandomRead(b *testing.B) {
	f := benchFile(b)
	fio, err := exec.LookPath("fio")
	if err != nil {
		b.Log("fio is not installed: without it")
	}
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("qd=%d", depth), func(b *testing.B) {
			rounds, each := benchTime()
			for b.Loop() {
				var ring, pread, theirs []speed
				ways := []func(){
					func() { ring = append(ring, ringReads(b, f, depth, each)) },
					func() { pread = append(pread, preadReads(b, f, depth, each)) },
				}
				if fio != "" {
					ways = append(ways, func() { theirs = append(theirs, fioReads(b, fio, f, depth, each)) })
				}
				for range rounds {
					for _, way := range ways {
						time.Sleep(200 * time.Millisecond) // a disk with a budget gives the same to all, as while fio starts
						way()
					}
					slices.Reverse(ways)
				}
				m := median(ring)
				b.ReportMetric(m.iops, "ring-iops")
				b.ReportMetric(float64(m.cpu.Nanoseconds())/1e3, "ring-cpu-µs/op")
				p := median(pread)
				b.ReportMetric(p.iops, "pread-iops")
				b.ReportMetric(float64(p.cpu.Nanoseconds())/1e3, "pread-cpu-µs/op")
				b.ReportMetric(m.iops/p.iops, "ring/pread")
				if fio != "" {
					t := median(theirs)
					b.ReportMetric(t.iops, "fio-iops")
					b.ReportMetric(float64(t.cpu.Nanoseconds())/1e3, "fio-cpu-µs/op")
					b.ReportMetric(m.iops/t.iops, "ring/fio")
				}
			}
		})
	}
}

// BenchmarkNop is the price of the ring itself, without any work.
func BenchmarkNop(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			runtime.LockOSThread()
			b.Cleanup(runtime.UnlockOSThread)
			r := newRing(b, iouring.Options{})
			done := make([]iouring.Completion, 0, batch)
			b.ReportAllocs()
			for b.Loop() {
				for i := range batch {
					if _, err := r.Nop(uint64(i)); err != nil {
						b.Fatal(err)
					}
				}
				if err := r.Submit(batch); err != nil {
					b.Fatal(err)
				}
				done = r.Reap(done[:0], batch)
			}
		})
	}
}

// BenchmarkWake is the way from another goroutine to the ring's owner and back over a channel.
func BenchmarkWake(b *testing.B) {
	for _, t := range []struct {
		name    string
		without iouring.Feature
	}{{"message", 0}, {"eventfd", iouring.SyncMsgRing}} {
		b.Run("by="+t.name, func(b *testing.B) {
			type ready struct {
				w   *iouring.Waker
				err error
			}
			start, seen, stopped := make(chan ready), make(chan struct{}), make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				r, err := iouring.New(iouring.Options{Without: t.without})
				if err != nil {
					start <- ready{err: err}
					return
				}
				w, err := r.NewWaker(1)
				start <- ready{w, err}
				for done := []iouring.Completion(nil); err == nil; {
					if err = r.Submit(1); err != nil {
						break
					}
					if done = r.Reap(done[:0], 8); len(done) > 0 {
						if _, ok := <-seen; !ok {
							err = r.Close()
							stopped <- err
							return
						}
					}
				}
				stopped <- err
			}()
			s := <-start
			if s.err != nil {
				b.Skip(s.err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := s.w.Wake(); err != nil {
					b.Fatal(err)
				}
				seen <- struct{}{}
			}
			close(seen)
			if err := s.w.Wake(); err != nil && !errors.Is(err, iouring.ErrClosed) {
				b.Fatal(err)
			}
			if err := <-stopped; err != nil {
				b.Fatal(err)
			}
		})
	}
}
