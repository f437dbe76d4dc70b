package iouring_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

func newRing(t testing.TB, o iouring.Options) *iouring.Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := iouring.New(o)
	if errors.Is(err, iouring.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestReadWrite writes a file through the ring in random order, syncs, punches, and reads it back, in each mode.
func TestReadWrite(t *testing.T) {
	for _, plain := range []bool{false, true} {
		r := newRing(t, iouring.Options{Entries: 16, Plain: plain})
		t.Log("mode:", r.Mode())
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const blocks, size = 100, 4096
		want := make([]byte, blocks*size)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		fd := int(f.Fd())
		all(t, r, blocks, func(i int) error {
			return r.Write(fd, bytes.Clone(want[i*size:(i+1)*size]), int64(i)*size, uint64(i))
		}, size)
		all(t, r, 1, func(int) error { return r.Sync(fd, 0) }, 0)
		all(t, r, 1, func(int) error { return r.Punch(fd, 3*size, 2*size, 0) }, 0)
		clear(want[3*size : 5*size])
		got := make([]byte, len(want))
		all(t, r, blocks, func(i int) error { return r.Read(fd, got[i*size:(i+1)*size], int64(i)*size, uint64(i)) }, size)
		if !bytes.Equal(got, want) {
			t.Error("what was read differs from what was written")
		}
	}
}

// all does n operations through the ring, as many at once as fit, and expects each exactly once.
func all(t *testing.T, r *iouring.Ring, n int, queue func(int) error, bytes int) {
	t.Helper()
	seen := make([]bool, n)
	var done []iouring.Completion
	for next, ended := 0, 0; ended < n; {
		for next < n {
			err := queue(next)
			if errors.Is(err, iouring.ErrFull) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			next++
		}
		runtime.GC() // buffers must survive it
		if err := r.Submit(1); err != nil {
			t.Fatal(err)
		}
		done = r.Reap(done[:0], n)
		for _, c := range done {
			if c.Err != nil || c.N != bytes || seen[c.Data] {
				t.Fatalf("completion %+v, want %d bytes, seen before: %v", c, bytes, seen[c.Data])
			}
			seen[c.Data] = true
			ended++
		}
	}
	if r.Pending() != 0 {
		t.Errorf("%d operations pending after all ended", r.Pending())
	}
}

func TestErrors(t *testing.T) {
	r := newRing(t, iouring.Options{Entries: 4})
	if err := r.Read(-1, make([]byte, 10), 0, 7); err != nil {
		t.Fatal(err)
	}
	if err := r.Submit(1); err != nil {
		t.Fatal(err)
	}
	if c := r.Reap(nil, 10); len(c) != 1 || c[0].Data != 7 || c[0].Err != unix.EBADF {
		t.Errorf("read of a bad descriptor: %+v, want EBADF", c)
	}
	for i := range 4 {
		if err := r.Nop(uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Nop(9); !errors.Is(err, iouring.ErrFull) {
		t.Errorf("fifth of four entries: %v, want ErrFull", err)
	}
	if err := r.Submit(5); !errors.Is(err, unix.EINVAL) {
		t.Errorf("wait for five of four: %v, want EINVAL", err)
	}
	if err := r.Read(0, nil, 0, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("empty read: %v, want EINVAL", err)
	}
	if _, err := iouring.New(iouring.Options{Entries: 3}); err == nil {
		t.Error("three entries were accepted")
	}
}

// TestCloseUnderWay closes a ring with operations that were submitted and not reaped.
func TestCloseUnderWay(t *testing.T) {
	r := newRing(t, iouring.Options{})
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := r.Read(p[0], make([]byte, 8), 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.Submit(0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(p[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Nop(0); !errors.Is(err, unix.EBADF) {
		t.Errorf("operation on a closed ring: %v, want EBADF", err)
	}
}

func TestHotPathAllocates(t *testing.T) {
	r := newRing(t, iouring.Options{})
	done := make([]iouring.Completion, 0, 8)
	if n := testing.AllocsPerRun(1000, func() {
		if err := errors.Join(r.Nop(1), r.Submit(1)); err != nil {
			t.Fatal(err)
		}
		done = r.Reap(done[:0], 8)
	}); n != 0 {
		t.Errorf("%v allocations for each operation, want none", n)
	}
}

func BenchmarkNop(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run("batch="+string(rune('0'+batch/10))+string(rune('0'+batch%10)), func(b *testing.B) {
			r := newRing(b, iouring.Options{})
			done := make([]iouring.Completion, 0, batch)
			b.ReportAllocs()
			for b.Loop() {
				for i := range batch {
					if err := r.Nop(uint64(i)); err != nil {
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
