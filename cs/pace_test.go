package cs

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestPacer: what goes by keeps to the rate, whatever its size and however many wait; a new rate holds for those that wait already.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		p := new(pacer)
		start := time.Now()
		for range 100 {
			if err := p.wait(t.Context(), mib); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(start) != 0 {
			t.Errorf("took %v without a rate", time.Since(start))
		}
		p.set(10 * mib)
		var wg sync.WaitGroup
		run := func(n int) time.Duration {
			start := time.Now()
			for range 4 {
				wg.Go(func() {
					for range n / 4 {
						if err := p.wait(t.Context(), mib); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			return time.Since(start)
		}
		if took := run(100); took < 9500*time.Millisecond || took > 10500*time.Millisecond {
			t.Errorf("100 MiB at 10 MiB/s took %v", took)
		}
		time.AfterFunc(5*time.Second, func() { p.set(50 * mib) })
		if took := run(300); took < 9500*time.Millisecond || took > 10800*time.Millisecond {
			t.Errorf("50 MiB at 10 MiB/s and 250 at 50 took %v", took)
		}
		time.Sleep(time.Second)
		_ = p.wait(t.Context(), 100*mib)
		p.set(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if p.wait(ctx, mib) == nil {
			t.Error("went by at a byte a second")
		}
	})
}

// TestNICUse: the busier direction counts, as a part of the interface's speed; what has no speed says nothing.
func TestNICUse(t *testing.T) {
	dir := t.TempDir()
	set := func(name string, v int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strconv.Itoa(v)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "statistics"), 0o700); err != nil {
		t.Fatal(err)
	}
	set("speed", 1000)
	n := nicUse{dir: dir}
	now := time.Now()
	look := func(rx, tx int) uint32 {
		set("statistics/rx_bytes", rx)
		set("statistics/tx_bytes", tx)
		now = now.Add(500 * time.Millisecond)
		return n.use(now)
	}
	if got := look(1e9, 1e9); got != 0 {
		t.Errorf("%d at first", got)
	}
	if got := look(1e9+1e6, 1e9+50e6); got != 800 {
		t.Errorf("50 MB in half a second on 1 Gbit/s: %d permille", got)
	}
	if got := look(0, 0); got != 0 {
		t.Errorf("%d after the counters began anew", got)
	}
	set("speed", -1)
	if got := look(1e9, 1e9); got != 0 {
		t.Errorf("%d without a speed", got)
	}
	if n := newNICUse("127.0.0.1:80"); n.dir != "" || n.use(now) != 0 {
		t.Errorf("loopback is %+v", n)
	}
}
