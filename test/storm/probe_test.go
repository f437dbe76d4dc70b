package storm

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// probeDir in the environment makes the test binary a probe of that directory. It is a process of its own, since one that has files of a
// mount open cannot start others while that stands still.
const probeDir = "VARVE_STORM_PROBE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(probeDir); dir != "" {
		if err := runProbe(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	probeBytes = 16 << 20
	probeEvery = 20 * time.Millisecond
)

// runProbe does one operation of each kind after the other, and says how many nanoseconds each took, until its input ends.
func runProbe(dir string) error {
	done := make(chan struct{})
	go func() { defer close(done); os.Stdin.Read(make([]byte, 1)) }()
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		return err
	}
	defer f.Close()
	block, off := make([]byte, 4096), int64(0)
	kinds := []struct {
		name string
		do   func() error
	}{
		{"write", func() error {
			off = rand.Int64N(probeBytes/4096) * 4096
			_, err := f.WriteAt(block, off)
			return err
		}},
		{"fsync", f.Sync},
		{"read", func() error { _, err := f.ReadAt(block, off); return err }},
		{"create", func() error {
			g, err := os.Create(filepath.Join(dir, "probe.new"))
			if err != nil {
				return err
			}
			return g.Close()
		}},
		{"unlink", func() error { return os.Remove(filepath.Join(dir, "probe.new")) }},
	}
	for {
		for _, k := range kinds {
			select {
			case <-done:
				return nil
			case <-time.After(probeEvery):
			}
			begin := time.Now()
			if err := k.do(); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			fmt.Println(k.name, int64(time.Since(begin)))
		}
	}
}

// probe is what the probe said.
type probe struct {
	mu    sync.Mutex
	worst map[string]time.Duration // since the last take
	all   map[string]time.Duration
	n     int
}

// run is an app.
func (p *probe) run(ctx, test context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(test, os.Args[0])
	cmd.Env = append(os.Environ(), probeDir+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { in.Close() })
	defer stop()
	last := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		last = lines.Text()
		kind, ns, _ := strings.Cut(last, " ")
		if n, err := strconv.ParseInt(ns, 10, 64); err == nil {
			p.note(kind, time.Duration(n))
		}
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%w: %s", err, last)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%d operations, longest: %v", p.n, words(p.all)), nil
}

func (p *probe) note(kind string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	p.worst[kind], p.all[kind] = max(p.worst[kind], d), max(p.all[kind], d)
}

// take returns the longest of each kind since the last call, those of a tenth of a second or more.
func (p *probe) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := words(p.worst)
	clear(p.worst)
	return s
}

func words(m map[string]time.Duration) string {
	var s []string
	for _, kind := range []string{"write", "fsync", "read", "create", "unlink"} {
		if d := m[kind]; d >= 100*time.Millisecond {
			s = append(s, fmt.Sprint(kind, " ", d.Round(10*time.Millisecond)))
		}
	}
	if len(s) == 0 {
		return "none took 0.1 s"
	}
	return strings.Join(s, ", ")
}
