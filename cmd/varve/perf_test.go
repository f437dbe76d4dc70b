package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

func TestPerfRun(t *testing.T) {
	dir := t.TempDir()
	file := "file:" + filepath.Join(dir, "load")
	out := must(t, dir, "perf", "run", "--target", file, "--rw", "randwrite", "--bs", "4k", "--size", "1m", "--qd", "4", "--jobs", "1",
		"--for", "0s", "--verify", "--json")
	if !json.Valid([]byte(out)) {
		t.Errorf("--json printed %q", out)
	}
	if text := must(t, dir, "perf", "run", "--target", "null", "--for", "100ms"); !strings.Contains(text, "IOPS") {
		t.Errorf("the table has no IOPS:\n%s", text)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"perf", "run"}, exitUsage},
		{[]string{"perf", "run", "--target", "null", "--bs", "4x"}, exitUsage},
		{[]string{"perf", "run", "--target", "mount:" + filepath.Join(dir, "missing"), "--for", "100ms"}, exitFailed},
	} {
		_, errs, code := varve(t, dir, c.args...)
		if code != c.want || strings.Count(errs, "\n") != 1 {
			t.Errorf("varve %q: exit code %d and %q, want %d and one line", c.args, code, errs, c.want)
		}
	}
}
