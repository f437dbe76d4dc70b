package fuse

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// zeroFS is a Backend that costs nothing: each open file is a terabyte that swallows writes.
type zeroFS struct{ *memFS }

type zeroHandle struct{ memHandle }

func (zeroFS) Open(context.Context, *msg.Cred, id.Ino, bool, bool) (Handle, error) {
	return &zeroHandle{}, nil
}

func (*zeroHandle) ReadAt(_ context.Context, p []byte, _ int64) (int, error) { return len(p), nil }
func (*zeroHandle) WriteAt(_ context.Context, p []byte, off int64, _ bool) (int, int64, error) {
	return len(p), off + int64(len(p)), nil
}
func (*zeroHandle) Release(context.Context) error { return nil }

// discard is a transport that forgets answers.
type discard struct{ memory []byte }

var _ transport = (*discard)(nil)

func (d *discard) room(_ *request, n int) []byte           { return d.memory[:n] }
func (d *discard) send(*request, syscall.Errno, int) error { return nil }
func (d *discard) run(func(*request)) error                { return errUnmounted }
func (d *discard) notify(int32, ...[]byte) error           { return nil }
func (d *discard) close()                                  {}
func (d *discard) free()                                   {}

// benchRequest is one READ or WRITE of size bytes through a Session without a kernel.
func benchRequest(tb testing.TB, op opcode, size int) (one func()) {
	s, _ := fakeSession(tb, newMemFS())
	s.files.add(&file{handle: &zeroHandle{}, ino: 2, write: true})
	s.via = &discard{make([]byte, maxWrite)}
	data := []byte(nil)
	if op == opWrite {
		data = make([]byte, size)
	}
	message := encode(op, 2, 2, u64(1), u64(0), u32(size), u32(0), u64(0), u64(0), data)
	return func() {
		if err := feed(s, message); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestServeAllocs bounds what the hot path allocates: the context of the request, the closure of its goroutine
// and nothing that grows with the data.
func TestServeAllocs(t *testing.T) {
	for _, op := range []opcode{opRead, opWrite} {
		one := benchRequest(t, op, maxWrite/2)
		if n := testing.AllocsPerRun(200, one); n > 3 {
			t.Errorf("%v: %v allocations, want at most 3", op, n)
		}
	}
}

func BenchmarkServe(b *testing.B) {
	for _, op := range []opcode{opRead, opWrite} {
		b.Run(fmt.Sprintf("op=%v/size=4096", op), func(b *testing.B) {
			one := benchRequest(b, op, 4096)
			b.ReportAllocs()
			b.SetBytes(4096)
			for b.Loop() {
				one()
			}
		})
	}
}

// BenchmarkKernel is fio on a mount whose Backend costs nothing: what is left is the kernel and this package. VARVE_BENCH_SECONDS is how long
// each load runs, 3 by default. CPU is that of the process that serves the mount.
func BenchmarkKernel(b *testing.B) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		b.Skip("fio is not installed")
	}
	seconds := cmp.Or(os.Getenv("VARVE_BENCH_SECONDS"), "3")
	for _, c := range []struct {
		rw, bs      string
		depth, jobs int
	}{
		{"randread", "4k", 1, 1}, {"randread", "4k", 1, 2}, {"randread", "4k", 32, 1}, {"randread", "4k", 32, 2},
		{"randwrite", "4k", 1, 1}, {"randwrite", "4k", 32, 1}, {"randwrite", "4k", 32, 2},
		{"read", "1m", 1, 1}, {"read", "1m", 8, 1}, {"read", "1m", 8, 2}, {"write", "1m", 1, 1}, {"write", "1m", 8, 1},
	} {
		for _, w := range []struct {
			transport Transport
			loops     int
		}{{Readers, 0}, {Dev, 1}, {Dev, 2}, {Uring, 1}, {Uring, 2}} {
			b.Run(fmt.Sprintf("rw=%s/bs=%s/depth=%d/jobs=%d/transport=%s/loops=%d", c.rw, c.bs, c.depth, c.jobs, w.transport, w.loops), func(b *testing.B) {
				_, dir := way{transport: w.transport}.mount(b, &hotZero{zeroFS: zeroFS{newMemFS()}}, func(o *Options) { o.Loops = w.loops })
				if err := guestCommand(b.Context(), "sized", dir).Run(); err != nil { // else fio would fill it
					b.Fatal(err)
				}
				for b.Loop() {
					before := cpuTime(b)
					out, err := exec.Command(fio, "--name=x", "--filename="+filepath.Join(dir, "f"), "--size=1g", "--direct=1",
						"--ioengine=libaio", "--time_based", "--runtime="+seconds, "--fallocate=none", "--overwrite=0", "--group_reporting",
						"--rw="+c.rw, "--bs="+c.bs, fmt.Sprintf("--iodepth=%d", c.depth), fmt.Sprintf("--numjobs=%d", c.jobs),
						"--output-format=json").Output()
					if err != nil {
						b.Fatalf("fio: %v", err)
					}
					used := cpuTime(b) - before
					var result struct {
						Jobs []struct {
							Read, Write struct {
								IOPS float64
								Ops  float64 `json:"total_ios"`
							}
						}
					}
					if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) != 1 {
						b.Fatalf("fio said: %v, %s", err, out)
					}
					j := result.Jobs[0]
					b.ReportMetric(j.Read.IOPS+j.Write.IOPS, "iops")
					b.ReportMetric(float64(used.Nanoseconds())/1000/(j.Read.Ops+j.Write.Ops), "cpu-µs/op")
				}
			})
		}
	}
}
