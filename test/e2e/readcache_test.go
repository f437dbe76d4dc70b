package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
	"varve/test/fsx"
)

// cachedMount is a mount with a read cache, in a process of its own that can be killed.
type cachedMount struct {
	c     *cluster
	dir   string
	cache string
	cmd   *exec.Cmd
}

func (c *cluster) cachedMount() *cachedMount {
	c.t.Helper()
	base := c.t.TempDir()
	m := &cachedMount{c: c, dir: filepath.Join(base, "m"), cache: filepath.Join(base, "cache")}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { // whatever has failed: nobody waits for a mount that is left
		if m.cmd != nil {
			c.varve(30*time.Second, "umount", "--lazy", m.dir)
			m.cmd.Process.Kill()
			m.cmd.Wait()
		}
	})
	m.mount()
	return m
}

func (m *cachedMount) mount() {
	m.c.t.Helper()
	options := fmt.Sprintf("cache=%s,cachesize=64,transport=%s", m.cache, wayOf(m.c.t).transport)
	m.cmd = exec.Command(varveBinary, "-c", m.c.name(), "mount", "-f", "-o", options, m.dir)
	if err := m.cmd.Start(); err != nil {
		m.c.t.Fatal(err)
	}
	m.c.wait(60*time.Second, "the mount with a cache", func() error {
		_, err := os.Stat(filepath.Join(m.dir, ".varve.info", "version"))
		return err
	})
}

// umount unmounts, and waits for the process.
func (m *cachedMount) umount() {
	m.c.t.Helper()
	m.c.must(30*time.Second, "umount", m.dir)
	if err := m.cmd.Wait(); err != nil {
		m.c.t.Error(err)
	}
	m.cmd = nil
}

// kill kills the process that serves the mount, and takes away what is left of it.
func (m *cachedMount) kill() {
	m.c.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.c.t.Fatal(err)
	}
	m.cmd.Wait()
	m.c.must(30*time.Second, "umount", "--lazy", m.dir)
	m.cmd = nil
}

type cacheStats struct {
	Dir     string `json:"dir"`
	State   string `json:"state"`
	Hits    uint64 `json:"hits"`
	Misses  uint64 `json:"misses"`
	Filled  uint64 `json:"filled_blocks"`
	Damaged uint64 `json:"checksum_errors"`
	Limit   int64  `json:"limit_bytes"`
}

func (m *cachedMount) stats() (st cacheStats) {
	m.c.t.Helper()
	if err := json.Unmarshal([]byte(m.c.must(20*time.Second, "cache", "stat", m.dir, "--json")), &st); err != nil {
		m.c.t.Fatal(err)
	}
	if !strings.HasPrefix(st.State, "on") {
		m.c.t.Errorf("state of the read cache: %s", st.State)
	}
	return st
}

// readBlocks reads n blocks of a file past the page cache, each after another that does not follow it, and compares them with what they should hold.
func readBlocks(t *testing.T, path string, want []byte) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := disk.AlignedBuffer(blockSize)
	blocks := len(want) / blockSize
	for i := range blocks {
		at := i * 389 % blocks // a prime
		if n, err := unix.Pread(fd, buf, int64(at)*blockSize); n != blockSize || err != nil {
			t.Fatalf("read block %d of %s: %d, %v", at, path, n, err)
		}
		if !bytes.Equal(buf, want[at*blockSize:][:blockSize]) {
			t.Fatalf("block %d of %s has wrong bytes", at, path)
		}
	}
}

// TestReadCache: a mount with a read cache has what other mounts write, and what it has read before it was unmounted, or killed while it
// wrote, is there, and right.
func TestReadCache(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 3, 1, "3:2")
	m := c.cachedMount()
	t.Run("model", func(t *testing.T) {
		for _, mounts := range [][]string{{m.dir}, {m.dir, c.mounts[0]}} {
			if err := fsx.Run(fsx.Options{Dirs: mounts, Name: fmt.Sprintf("fsx%d", len(mounts)), Ops: ops(t, 20000) / 10, Seed: uint64(time.Now().UnixNano())}); err != nil {
				t.Fatal(err)
			}
		}
	})
	name := "image"
	const blocks = 1021
	data := make([]byte, blocks*blockSize)
	for i := range blocks {
		stamp(data[i*blockSize:][:blockSize], i, 1)
	}
	if err := os.WriteFile(filepath.Join(m.dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
	warm := func() {
		t.Helper()
		c.wait(time.Minute, "the blocks to be in the cache", func() error {
			before := m.stats()
			readBlocks(t, filepath.Join(m.dir, name), data) // again also what found no room in the queue
			if n := m.stats().Hits - before.Hits; n < blocks {
				return fmt.Errorf("%d of %d", n, blocks)
			}
			return nil
		})
	}
	hits := func(least uint64) {
		t.Helper()
		before := m.stats()
		readBlocks(t, filepath.Join(m.dir, name), data)
		after := m.stats()
		if n := after.Hits - before.Hits; n < least {
			t.Errorf("%d hits of %d reads, want %d", n, blocks, least)
		}
		if after.Damaged != 0 {
			t.Errorf("stats: %+v", after)
		}
	}
	warm()
	hits(blocks)

	// Moved and resized in use.
	moved := m.cache + "2"
	c.must(30*time.Second, "cache", "move", m.dir, moved)
	hits(blocks)
	c.must(30*time.Second, "cache", "resize", m.dir, "32")
	if st := m.stats(); st.Dir != moved || st.Limit > 32<<20 {
		t.Errorf("stats: %+v", st)
	}
	hits(blocks / 2) // and what the model left has its part
	c.must(30*time.Second, "cache", "resize", m.dir, "64")
	warm()
	m.cache = moved
	text, err := os.ReadFile(filepath.Join(m.dir, ".varve.info", "read_cache_info"))
	if err != nil || !strings.Contains(string(text), moved) {
		t.Errorf("%s, %v", text, err)
	}
	if names, err := os.ReadDir(m.dir); err != nil || len(names) == 0 || names[0].Name() == ".varve.info" {
		t.Errorf("the root lists %v, %v", names, err)
	}

	// Unmounted and mounted.
	m.umount()
	m.mount()
	hits(blocks * 9 / 10)

	// Killed while it writes.
	var stop atomic.Bool
	var wg sync.WaitGroup
	fd, err := unix.Open(filepath.Join(m.dir, name), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	touched := map[int]uint64{} // blocks that were written, by their last write
	var written atomic.Int64
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		buf := disk.AlignedBuffer(blockSize)
		for seq := uint64(2); !stop.Load(); seq++ {
			at := rng.IntN(blocks / 4)
			touched[at] = seq
			stamp(buf, at, seq)
			if _, err := unix.Pwrite(fd, buf, int64(at)*blockSize); err != nil {
				return // the mount is gone
			}
			written.Add(1)
		}
	})
	c.wait(time.Minute, "blocks to be written", func() error {
		if n := written.Load(); n < 10 {
			return fmt.Errorf("%d were", n)
		}
		return nil
	})
	m.kill()
	stop.Store(true)
	wg.Wait()
	unix.Close(fd)
	m.mount()
	now, err := os.ReadFile(filepath.Join(c.mounts[0], name)) // without a cache
	if err != nil || len(now) != len(data) {
		t.Fatal(len(now), err)
	}
	b := make([]byte, blockSize)
	for i := range blocks {
		got := now[i*blockSize:][:blockSize]
		seq := touched[i]
		stamp(b, i, max(seq, 1))
		if !bytes.Equal(got, b) && seq == 0 {
			t.Fatalf("block %d, which nobody wrote to, changed", i)
		}
	}
	data = now
	hits(uint64(blocks*9/10 - len(touched)))

	// Another mount writes, beside it and while it has the file closed.
	for i := range blocks {
		if i%3 == 0 {
			stamp(data[i*blockSize:][:blockSize], i, 1<<40)
		}
	}
	if err := os.WriteFile(filepath.Join(c.mounts[0], name), data, 0o644); err != nil {
		t.Fatal(err)
	}
	// The kernel tells of the end of a file after close(2). Who opens it before that holds it with one who writes, and has nothing of it in the cache until it is called back.
	c.wait(time.Minute, "the file to be closed", func() error {
		out, err := c.varve(40*time.Second, "-c", c.name(), "lease", "take", "/"+name)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	warm()
	hits(blocks)
	c.checkReplicas(3)
}
