package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/nbd/nbdtest"
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
	s := nbdtest.Start(t, nbdtest.Options{Name: "disk", TCP: true})
	if text := must(t, dir, "perf", "run", "--target", s.URI.String(), "--rw", "randrw", "--size", "512k", "--qd", "4", "--for", "0s", "--verify"); !strings.Contains(text, "all as they should be") {
		t.Errorf("on an NBD server:\n%s", text)
	}
	mount := "mount:" + dir
	if text := must(t, dir, "perf", "run", "--target", mount, "--meta", "create:1,stat:2,delete:1", "--files", "64", "--qd", "2", "--for", "0s", "--verify"); !strings.Contains(text, "names") {
		t.Errorf("on names:\n%s", text)
	}
	if text := must(t, dir, "perf", "run", "--target", mount, "--profile", "clone-and-run", "--scale-time", "0.005", "--scale-size", "0.001"); !strings.Contains(text, "clone by ") {
		t.Errorf("clones:\n%s", text)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"perf", "run", "--target", "null", "--meta", "stat", "--bs", "8k"}, exitUsage},
		{[]string{"perf", "run", "--target", "null", "--meta", "chmod"}, exitUsage},
		{[]string{"perf", "run", "--target", "nbd:somewhere"}, exitUsage},
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
