package waits

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWaits: what is short is not told; what is long is told once for all that wait for it, again after longer and longer, and at its end.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var out bytes.Buffer
		table := &Table{Log: slog.New(slog.NewTextHandler(lockedWriter{&mu, &out}, nil))}
		lines := func() []string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return strings.Split(strings.TrimSpace(out.String()), "\n")
		}
		short := table.For("something short")
		time.Sleep(first - time.Millisecond)
		short.End()
		short.End()
		a, b, c := table.For("the disk", "cs", 1), table.For("the disk", "cs", 1), table.For("the disk", "cs", 2)
		time.Sleep(first + time.Second)
		c.End()
		time.Sleep(10 * time.Second)
		a.End()
		b.End()
		time.Sleep(time.Hour)
		got := lines()
		want := []string{
			`level=WARN msg=waiting for="the disk" waited=2s requests=1 cs=1`, `level=WARN msg=waiting for="the disk" waited=2s requests=1 cs=2`,
			`level=INFO msg=waited for="the disk" waited=3s cs=2`,
			`level=WARN msg="still waiting" for="the disk" waited=4s requests=2 cs=1`, `level=WARN msg="still waiting" for="the disk" waited=8s requests=2 cs=1`,
			`level=INFO msg=waited for="the disk" waited=13s cs=1`,
		}
		if len(got) != len(want) {
			t.Fatalf("%d lines, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
		}
		seen := map[string]bool{}
		for _, line := range got {
			_, rest, _ := strings.Cut(line, " ")
			seen[rest] = true
		}
		for _, w := range want {
			if !seen[w] {
				t.Errorf("missing: %s in\n%s", w, strings.Join(got, "\n"))
			}
		}
		if len(table.told) != 0 {
			t.Errorf("%d are still told of", len(table.told))
		}
	})
	var none *Table
	none.For("nothing").End()
	new(Table).For("nothing").End()
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}
