package crash

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/perf"
)

const (
	// hogEnv has this program fill the page cache from the file of that name until it is killed.
	hogEnv  = "VARVE_CRASH_HOG"
	hogSize = 1 << 30

	// The server's memory, and the limit of the cgroup in which it runs with the hog: what is beyond is for the kernel's buffers of sockets and
	// for the hog's own, small, needs.
	serverMemory = 256 << 20
	groupLimit   = 352 << 20
)

// runHog writes and reads a file through the page cache, which takes all memory that the cgroup lets it have.
func runHog(path string) int {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p := make([]byte, 1<<20)
	for n := int64(0); ; n++ {
		at := n * int64(len(p)) % hogSize
		if n < hogSize>>20 || n%8 == 0 {
			_, err = f.WriteAt(p, at)
		} else {
			_, err = f.ReadAt(p, at)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

// TestMemory runs a server in a cgroup with a hard limit, together with a process that fills the page cache, under clients that write and read
// as much as they can. The server stays within what it was given, is not killed, and goes on serving.
func TestMemory(t *testing.T) {
	needRoot(t, "sh", "go")
	dir := t.TempDir()
	g := newMemGroup(t, groupLimit)
	binary := filepath.Join(dir, "varve")
	if out, err := exec.Command("go", "build", "-o", binary, "varve/cmd/varve").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	l := newLeader(t)
	store := filepath.Join(dir, "cs")
	makeServer(t, l, store, "")
	l.forget()
	server := start(t, nil, append(g.enter(), binary, "cs", "-r", store, "--memory", strconv.Itoa(serverMemory))...)
	addr, _ := l.waitServing(t, server)

	alone := memoryLoad(t, addr, 2*time.Second)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pressed := g.pressed()
	hog := start(t, []string{hogEnv + "=" + filepath.Join(dir, "hog")}, append(g.enter(), self)...)
	wait(t, "the limit to be hit", func() bool { return g.pressed() > pressed || hog.dead() })
	beside := memoryLoad(t, addr, 4*time.Second)
	for end := time.Now().Add(patience); beside.mib < alone.mib/50 && time.Now().Before(end); { // the disk may have stood still
		beside = memoryLoad(t, addr, 4*time.Second)
	}

	peak := peakMemory(t, server)
	t.Logf("server of %d MiB in a cgroup of %d MiB: resident at most %d MiB; the limit was hit %d times", serverMemory>>20, groupLimit>>20, peak>>20, g.pressed()-pressed)
	t.Logf("4 clients, 1 MiB, half reads: %s alone, %s beside the hog", alone, beside)
	switch {
	case g.kills() > 0 || server.dead():
		t.Errorf("%d processes were killed for want of memory:\n%s", g.kills(), server.out)
	case hog.dead():
		t.Errorf("the hog ended:\n%s", hog.out)
	case peak > serverMemory:
		t.Errorf("the server took %d bytes, and may take %d", peak, serverMemory)
	case beside.mib < alone.mib/50:
		t.Errorf("%s beside the hog, %s alone", beside, alone)
	}
	hog.kill()
	server.stop(t)
}

// loadResult is what clients got.
type loadResult struct {
	mib float64 // a second
	p99 time.Duration
}

func (r loadResult) String() string {
	return fmt.Sprintf("%.0f MiB/s (p99 %v)", r.mib, r.p99.Round(time.Millisecond))
}

// memoryLoad has four clients write and read at once.
func memoryLoad(t *testing.T, addr string, d time.Duration) (sum loadResult) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var mu sync.Mutex
	var work sync.WaitGroup
	for n := range 4 {
		work.Go(func() {
			res, err := perf.Run(ctx, perf.Options{
				Target: "cs:" + addr, RW: perf.RandRW, BlockSize: 1 << 20, QD: 32, Size: 64 << 20, Duration: d, Seed: uint64(n), Verify: true,
			})
			if err != nil {
				t.Error(err)
				return
			}
			if !res.OK() || res.Stopped != "" {
				t.Errorf("client %d: %q, %+v, %+v", n, res.Stopped, res.Errors, res.Verify)
			}
			mu.Lock()
			defer mu.Unlock()
			sum.mib += res.Total.MiBs
			sum.p99 = max(sum.p99, res.Total.Latency.P99)
		})
	}
	work.Wait()
	return sum
}

// peakMemory is the most that a process ever had resident, in bytes, without what it shares with files.
func peakMemory(t *testing.T, p *process) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
