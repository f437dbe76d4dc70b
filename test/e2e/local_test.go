package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

// registers are the blocks of a file as atomic registers: each write of a block carries a number, counted up.
type registers struct {
	t                    *testing.T
	started, ended, seen [48]atomic.Int64
	stop                 atomic.Bool
	reads, writes        atomic.Int64
}

const registerSize = 4096

func openDirect(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag|unix.O_DIRECT, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// write writes blocks whose number is w modulo n until stop.
func (g *registers) write(f *os.File, w, n int) {
	r := rand.New(rand.NewPCG(uint64(w), 1))
	p := disk.AlignedBuffer(registerSize)
	for !g.stop.Load() {
		at := r.IntN(len(g.started)/n)*n + w
		v := g.started[at].Add(1)
		for i := 0; i < len(p); i += 16 {
			binary.LittleEndian.PutUint64(p[i:], uint64(v))
			binary.LittleEndian.PutUint64(p[i+8:], uint64(at))
		}
		if _, err := f.WriteAt(p, int64(at)*registerSize); err != nil {
			g.t.Errorf("write %d of block %d: %v", v, at, err)
			g.stop.Store(true)
			return
		}
		g.ended[at].Store(v)
		g.writes.Add(1)
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
	}
}

// read reads runs of blocks until stop. None may be older than the last write that had ended, or what was read of it, before the read began.
func (g *registers) read(f *os.File, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	p := disk.AlignedBuffer(4 * registerSize)
	for !g.stop.Load() {
		count := 1 + r.IntN(4)
		first := r.IntN(len(g.started) - count + 1)
		var least [4]int64
		for i := range count {
			least[i] = max(g.ended[first+i].Load(), g.seen[first+i].Load())
		}
		if n, err := f.ReadAt(p[:count*registerSize], int64(first)*registerSize); err != nil || n != count*registerSize {
			g.t.Errorf("read [%d, +%d): %d bytes, %v", first, count, n, err)
			g.stop.Store(true)
			return
		}
		g.reads.Add(1)
		for i := range count {
			b, at := p[i*registerSize:][:registerSize], first+i
			v := int64(binary.LittleEndian.Uint64(b))
			for k := 0; k < len(b); k += 16 {
				if int64(binary.LittleEndian.Uint64(b[k:])) != v || v != 0 && binary.LittleEndian.Uint64(b[k+8:]) != uint64(at) {
					g.t.Errorf("block %d is torn, or another one: % x", at, b[:32])
					g.stop.Store(true)
					return
				}
			}
			if most := g.started[at].Load(); v < least[i] || v > most {
				g.t.Errorf("block %d reads as write %d, want one from %d to %d", at, v, least[i], most)
				g.stop.Store(true)
				return
			}
			for old := g.seen[at].Load(); old < v && !g.seen[at].CompareAndSwap(old, v); {
				old = g.seen[at].Load()
			}
		}
	}
}

var localCount = regexp.MustCompile(`without the network" reads=(\d+)`)

// TestLocalReads has mounts read around the network while their file is written through one or two of them, and servers are stopped with
// SIGSTOP and killed with SIGKILL: no read is ever older than a write that had returned.
func TestLocalReads(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 3, 1, "3:2")
	// Mounts of our own, whose logs say at the end how much went around the network.
	own := func(name, options string) (dir, log string, end func() int) {
		dir, log = filepath.Join(t.TempDir(), name), filepath.Join(t.TempDir(), name+".log")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c.must(30*time.Second, "-c", c.name(), "mount", "-o", options, "-l", log, dir)
		gone := false
		umount := func() {
			if !gone {
				gone = true
				if _, err := c.varve(30*time.Second, "umount", dir); err != nil {
					c.varve(30*time.Second, "umount", "--lazy", dir)
				}
			}
		}
		t.Cleanup(umount)
		return dir, log, func() (n int) {
			umount()
			c.wait(time.Minute, "the log of "+name+" to end", func() error {
				b, err := os.ReadFile(log)
				if err != nil {
					return err
				}
				m := localCount.FindSubmatch(b)
				if m == nil {
					return fmt.Errorf("no count in %q", b)
				}
				n, err = strconv.Atoi(string(m[1]))
				return err
			})
			return n
		}
	}
	a, _, endA := own("a", "local=on")
	b, _, endB := own("b", "local=on")
	n, _, _ := own("n", "local=off")
	// told is how many reads around the network the leader knows of.
	told := func(mount string) uint64 {
		if st, err := c.status(); err == nil {
			for _, one := range st.Sessions {
				if one.Mount == mount && one.Local != nil {
					return one.Local.Reads
				}
			}
		}
		return 0
	}
	for phase, mounts := range [][]string{{a}, {a, b, n}} {
		g := &registers{t: t}
		name := fmt.Sprintf("registers%d", phase)
		w := openDirect(t, filepath.Join(mounts[0], name), os.O_RDWR|os.O_CREATE)
		if _, err := w.WriteAt(disk.AlignedBuffer(len(g.started)*registerSize), 0); err != nil {
			t.Fatal(err)
		}
		files := []*os.File{w}
		for _, m := range mounts[1:] {
			files = append(files, openDirect(t, filepath.Join(m, name), os.O_RDWR))
		}
		var wg sync.WaitGroup
		for i, f := range files {
			wg.Go(func() { g.write(f, i, len(files)) })
			for k := range 3 {
				wg.Go(func() { g.read(f, uint64(10*i+k)) })
			}
		}
		enough := func() bool {
			return g.reads.Load() > 0 && g.writes.Load() > 0 && told(a) > 100 && (phase == 0 || told(b) > 0)
		}
		end := time.Now().Add(soak(t, 12*time.Second))
		for round := 0; !g.stop.Load() && (time.Now().Before(end) || time.Now().Before(end.Add(2*time.Minute)) && !enough()); round++ {
			cs := fmt.Sprintf("cs%d", 1+round%3)
			time.Sleep(time.Second)
			if round%2 == 0 {
				resume := c.pause(cs)
				time.Sleep(1500 * time.Millisecond)
				resume()
			} else {
				c.waitRestart(cs, c.kill(cs))
			}
			c.wait(3*time.Minute, "the cluster to be healthy", func() error {
				if g.stop.Load() {
					return nil
				}
				return c.healthy()
			})
		}
		g.stop.Store(true)
		wg.Wait()
		t.Logf("%d mounts: %d writes, %d reads", len(mounts), g.writes.Load(), g.reads.Load())
		if g.reads.Load() == 0 || g.writes.Load() == 0 {
			t.Error("nothing was read or written")
		}
		for _, f := range files {
			f.Close()
		}
	}
	c.checkReplicas(3)
	once := openDirect(t, filepath.Join(a, "registers0"), os.O_RDONLY)
	defer once.Close()
	c.wait(time.Minute, "varve stat to tell of local reads", func() error {
		if _, err := once.ReadAt(disk.AlignedBuffer(registerSize), 0); err != nil { // a server that was killed last is found by a read
			return err
		}
		st, err := c.status()
		if err != nil {
			return err
		}
		for _, one := range st.Sessions {
			if one.Mount == a && one.Local != nil && one.Local.Reads > 100 && one.Local.Servers > 0 {
				return nil
			}
		}
		return fmt.Errorf("%v", st.Sessions)
	})
	once.Close()
	got := []int{endA(), endB()}
	t.Logf("of all reads %d of the one mount and %d of the other went around the network", got[0], got[1])
	if got[0] < 100 || got[1] == 0 {
		t.Error("too few to say anything")
	}
}
