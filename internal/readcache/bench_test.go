package readcache

import (
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// hit is a cache in a directory that has one block.
func hit(t testing.TB) (f *File, b Blocks, buf []byte) {
	c, err := Open(Options{Dir: t.TempDir(), Bytes: MinBytes, Cluster: testCluster, Logger: quiet, Witness: newVault()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f = c.File(1)
	f.Opened(0, 5, true)
	b = Blocks{Chunk: one.chunk, First: one.block}
	f.Fill(b, contentOf(one, 1), nil)
	for end := time.Now().Add(time.Minute); c.filled.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	return f, b, disk.AlignedBuffer(chunk.BlockSize)
}

// TestHitAllocatesNothing: nor does an invalidation of what is not there.
func TestHitAllocatesNothing(t *testing.T) {
	f, b, buf := hit(t)
	var op Op
	missed := 0
	n := testing.AllocsPerRun(200, func() {
		if !f.Begin(&op, b, buf) {
			missed++
			return
		}
		if n, err := op.Do(); !op.Finish(n, err) {
			missed++
		}
		f.Invalidate(b, 1<<20, chunk.BlockSize)
	})
	if n != 0 || missed != 0 {
		t.Errorf("%v allocations, %d misses", n, missed)
	}
}

// BenchmarkHit is what the cache adds to a read of its disk: without the disk.
func BenchmarkHit(b *testing.B) {
	f, at, buf := hit(b)
	var op Op
	if !f.Begin(&op, at, buf) {
		b.Fatal("a miss")
	}
	n, err := op.Do()
	op.Finish(n, err)
	b.SetBytes(chunk.BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		if !f.Begin(&op, at, buf) || !op.Finish(len(buf), nil) {
			b.Fatal("a miss")
		}
	}
}

// BenchmarkInvalidate is what a write of 4 KiB pays that is not cached.
func BenchmarkInvalidate(b *testing.B) {
	f, at, _ := hit(b)
	b.ReportAllocs()
	for b.Loop() {
		f.Invalidate(at, 1<<20, chunk.BlockSize)
	}
}
