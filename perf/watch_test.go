package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNeverAnswered: operations that do not end are reported with what they wait for, and the layers after them run.
func TestNeverAnswered(t *testing.T) {
	t.Parallel()
	m := newMemoryServer(t)
	m.mu.Lock()
	m.silent = true
	m.mu.Unlock()
	for name, d := range map[string]time.Duration{"until its time is over": 100 * time.Millisecond, "until all blocks are done": 0} {
		settle := 300 * time.Millisecond
		tries(t, func() error { // a busy machine may need longer to begin
			o := Options{Target: m.target(), QD: 3, Size: 1 << 20, Duration: d, Settle: settle}
			settle *= 2
			res, err := Run(t.Context(), o)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if res.OK() || res.Stuck != 3 || len(res.StuckOps) != 3 {
				return fmt.Errorf("%s: %d stuck, %+v", name, res.Stuck, res)
			}
			for _, s := range res.StuckOps {
				if s.Op != "read" || s.Offset%4096 != 0 || s.For < o.Settle || !strings.Contains(s.Waits, m.listener.Addr().String()) {
					t.Errorf("%s: %v", name, s)
				}
			}
			if want := fmt.Sprintf("3 operations did not end within %v, the first: read at ", o.Settle); !strings.Contains(res.Stopped, want) {
				t.Errorf("%s: %q", name, res.Stopped)
			}
			return nil
		})
	}
	layers := []Layer{{"hangs", m.target()}, {"works", "null"}, {"works too", "mount:" + t.TempDir()}}
	settle := 200 * time.Millisecond
	tries(t, func() error { // a busy machine may need longer to begin
		out, err := Layers(t.Context(), Options{Size: 1 << 20, Duration: 50 * time.Millisecond, Settle: settle}, layers, 2, nil)
		settle *= 2
		if err != nil || !strings.Contains(out[0].Error, "waits for the answer of the chunk server") || out[1].IOPS <= 0 || out[2].IOPS <= 0 {
			return fmt.Errorf("%v: %+v", err, out)
		}
		return nil
	})
}

// TestBounded: what goes on may take its time, what stands still is given up with its name, and ctx ends either after the grace.
func TestBounded(t *testing.T) {
	t.Parallel()
	const short = 4 * time.Second // more than a busy machine stands still
	hang := make(chan struct{})
	defer close(hang)
	begin := time.Now()
	err := bounded(t.Context(), short, time.Hour, func(w *watch) error {
		for i := range 7 {
			w.step("step %d", i)
			time.Sleep(short / 3)
		}
		return errors.New("its own")
	})
	if err == nil || err.Error() != "its own" || time.Since(begin) < 2*short {
		t.Error(err)
	}
	stop := func(w *watch) error { w.step("step %d", 7); <-hang; return nil }
	if err = bounded(t.Context(), short, time.Hour, stop); err == nil || !strings.Contains(err.Error(), "step 7 does not end") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err = bounded(ctx, time.Hour, short, stop); err == nil || !strings.Contains(err.Error(), "step 7 does not end") {
		t.Error(err)
	}
}

// TestRemoved: files that were removed or replaced while the load ran are told.
func TestRemoved(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(path string) error{
		"removed":  os.Remove,
		"replaced": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "varve-perf.1")
		l, err := Open(t.Context(), Options{Target: "mount:" + dir, RW: RandWrite, Size: 1 << 20, Jobs: 2, Duration: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := do(path); err != nil {
			t.Fatal(err)
		}
		res := l.Run(t.Context(), Hooks{})
		var text strings.Builder
		if err := res.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		if res.OK() || len(res.Removed) != 1 || res.Removed[0] != path || res.Total.Count == 0 || !strings.Contains(text.String(), path+" is not there any more") {
			t.Errorf("%s: %v\n%s", name, res.Removed, &text)
		}
	}
}

// TestMaxErrors: a run ends after as many errors as it is told, and says when they came.
func TestMaxErrors(t *testing.T) {
	t.Parallel()
	res := mustRun(t, Options{Target: "file:/proc/self/mem", RW: RandWrite, Engine: Sync, Size: 32 << 10, Duration: time.Minute, MaxErrors: 5})
	if len(res.Errors) != 1 || res.Errors[0].Count < 5 || res.Errors[0].Count > 10 || res.Errors[0].First <= 0 || res.Errors[0].Last < res.Errors[0].First {
		t.Errorf("%q, %+v", res.Stopped, res.Errors)
	}
	if !strings.HasPrefix(res.Stopped, "5 operations failed") {
		t.Errorf("%q", res.Stopped)
	}
}

func TestKernelFunction(t *testing.T) {
	for name, want := range map[string]string{"0": "the kernel", "request_wait_answer": "FUSE", "rpc_wait_bit_killable": "NFS", "pipe_read": "kernel: pipe_read"} {
		if got := kernelFunction(name); !strings.Contains(got, want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}
