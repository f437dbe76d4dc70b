package pki

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestRefusals: who comes often is logged seldom, others beside him are logged, and what was left out is counted.
func TestRefusals(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	now := time.Unix(1e9, 0)
	r := Refusals{now: func() time.Time { return now }}
	lines := func() int { n := strings.Count(out.String(), "\n"); return n }
	for range 10_000 {
		r.Log(log, slog.LevelWarn, "connection refused", "10.0.0.1:77", "err", "x")
	}
	if lines() != 1 {
		t.Errorf("%d lines about one address, want 1", lines())
	}
	r.Log(log, slog.LevelWarn, "connection refused", "[::ffff:10.0.0.2]:5", "err", "x")
	if lines() != 2 || !strings.Contains(out.String(), "refused_without_a_line=9999") {
		t.Errorf("the line about another address does not count the others:\n%s", out.String())
	}
	out.Reset()
	for n := range 20_000 { // 20 s
		now = now.Add(time.Millisecond)
		r.Log(log, slog.LevelWarn, "connection refused", fmt.Sprintf("10.0.%d.%d:7", 1+n/250, n%250), "err", "x")
	}
	if n := lines(); n < 100 || n > refusalBurst+20*2+1 {
		t.Errorf("%d lines about many addresses in 20 s", n)
	}
	if len(r.last) > maxRefusers {
		t.Errorf("%d addresses are kept, limit %d", len(r.last), maxRefusers)
	}
	out.Reset()
	r.Log(log, slog.LevelDebug, "connection refused", "10.9.0.1:7")
	if out.Len() != 0 {
		t.Error("a line that the log does not want was written")
	}
}
