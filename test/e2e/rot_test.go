package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
	"varve/perf"
)

// TestBitRot flips bits in the chunk files of one server while a mount reads and writes: in data all the time, and once, with the server
// killed, in headers and tables as well. What the mount returns is right all along.
func TestBitRot(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 1, "3:2")
	load := func(rw perf.RW, d time.Duration) *perf.Result {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		res, err := perf.Run(ctx, perf.Options{
			Target: "mount:" + c.mounts[0], RW: rw, ReadPercent: 80, Size: 24 << 20, QD: 8, Jobs: 2, Duration: d,
			FsyncEvery: 100, Verify: true, Direct: true, Engine: perf.Sync, Seed: uint64(time.Now().UnixNano()),
		})
		if err != nil {
			t.Fatal(err)
		}
		if !res.OK() || res.Stopped != "" {
			t.Fatalf("%s through the mount while bits rot: %q, %+v, %+v", rw, res.Stopped, res.Errors, res.Verify)
		}
		return res
	}
	load(perf.Write, 0)
	server := filepath.Join(c.dir, "cs1")
	files, err := filepath.Glob(filepath.Join(server, "chunks", "*", "*.chk"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no chunk files in %s: %v", server, err)
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	if err := rotAt(files[0], 1<<20, rng); err != nil {
		t.Skipf("no direct I/O here, so what is on the disk cannot be changed past the cache: %v", err)
	}

	ctx, stop := context.WithCancel(t.Context())
	flips, failed := 0, make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			// A block that a guest writes at this moment may be lost by more than one bit, which the checksum tells as well.
			at := 1<<20 + rng.Int64N(24<<20/4096)*4096
			if err := rotAt(files[rng.IntN(len(files))], at, rng); err != nil && !os.IsNotExist(err) {
				failed <- err
				return
			}
			flips++
			time.Sleep(2 * time.Millisecond)
		}
		failed <- nil
	}()
	res := load(perf.RandRW, 5*time.Second)
	stop()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bits of one replica flipped under load: %d reads through the mount, %d blocks verified, none wrong", flips, res.Read.Count, res.Verify.Checked)

	if err := rotAt(files[0], 1<<20, rng); err != nil { // one that nobody writes anew any more
		t.Fatal(err)
	}
	// A mount that was refused a block reads from other servers, so that few of them are found by reading, or none.
	c.must(30*time.Second, "-c", c.name(), "cs", "scrub", "cs1", "--rate", "1G", "--now")
	out := ""
	for end := time.Now().Add(30 * time.Second); !strings.Contains(out, "has bad blocks in"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("bad blocks are no events:\n%s", out)
		}
		out = c.must(30*time.Second, "-c", c.name(), "journal", "cat", "--type", "bad-blocks")
	}
	old := c.kill("cs1")
	for _, path := range files {
		for _, at := range []int64{rng.Int64N(2) * 4096, 8192 + rng.Int64N(16)*4096} { // a slot of the header, a page of the table
			if err := rotAt(path, at, rng); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	c.waitRestart("cs1", old)
	load(perf.Read, 0)
	load(perf.RandRW, 2*time.Second)
}

// rotAt inverts a bit of a page of a file, past the page cache.
func rotAt(path string, at int64, rng *rand.Rand) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p := disk.AlignedBuffer(4096)
	if _, err := f.ReadAt(p, at); err != nil {
		return fmt.Errorf("read at %d: %w", at, err)
	}
	p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
	_, err = f.WriteAt(p, at)
	return err
}
