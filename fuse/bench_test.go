package fuse

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
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

// BenchmarkKernel is fio on a mount whose Backend costs nothing: what is left is the kernel and this package.
func BenchmarkKernel(b *testing.B) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		b.Skip("fio is not installed")
	}
	for _, c := range []struct {
		rw, bs      string
		depth, jobs int
	}{
		{"randread", "4k", 1, 1}, {"randread", "4k", 32, 1}, {"randread", "4k", 32, 2}, {"randwrite", "4k", 32, 1},
		{"read", "1m", 8, 1}, {"write", "1m", 8, 1},
	} {
		b.Run(fmt.Sprintf("rw=%s/bs=%s/depth=%d/jobs=%d", c.rw, c.bs, c.depth, c.jobs), func(b *testing.B) {
			_, dir := testMount(b, zeroFS{newMemFS()}, nil)
			for b.Loop() {
				out, err := exec.Command(fio, "--name=x", "--filename="+filepath.Join(dir, "f"), "--size=1g", "--direct=1",
					"--ioengine=libaio", "--time_based", "--runtime=3", "--fallocate=none", "--overwrite=0", "--group_reporting",
					"--rw="+c.rw, "--bs="+c.bs, fmt.Sprintf("--iodepth=%d", c.depth), fmt.Sprintf("--numjobs=%d", c.jobs),
					"--output-format=terse", "--terse-version=3").Output()
				if err != nil {
					b.Fatalf("fio: %v", err)
				}
				// fio(1), terse output version 3: IOPS is the 8th field for reads and the 49th for writes.
				field := strings.Split(string(out), ";")
				var iops float64
				for _, i := range []int{7, 48} {
					if i < len(field) {
						var v float64
						fmt.Sscan(field[i], &v)
						iops += v
					}
				}
				b.ReportMetric(iops, "iops")
			}
		})
	}
}
