package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/perf"
)

// TestPerfTrace: traces of other programs are shown, converted and replayed.
func TestPerfTrace(t *testing.T) {
	dir := t.TempDir()
	data, err := filepath.Abs(filepath.Join("..", "..", "perf", "trace", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(data, "fio3.log")
	if out := must(t, dir, "perf", "trace", "show", log); !strings.Contains(out, "fio iolog version 3: 22 operations") || !strings.Contains(out, "two.img") {
		t.Errorf("show printed\n%s", out)
	}
	if out := must(t, dir, "perf", "trace", "show", "--ops", filepath.Join(data, "blkparse.txt")); strings.Count(out, "\n") != 6 || !strings.Contains(out, "trim") {
		t.Errorf("show --ops printed\n%s", out)
	}
	must(t, dir, "perf", "trace", "convert", log, "log.capture", "--to", "varve")
	if out := must(t, dir, "perf", "trace", "convert", "log.capture", "log.fio", "--to", "fio2", "--dir", "files"); !strings.Contains(out, "4 operations") {
		t.Errorf("convert printed %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "log.fio")); err != nil || !strings.Contains(string(b), filepath.Join(dir, "files", "one.img")+" add") {
		t.Errorf("%v\n%s", err, b)
	}
	var res perf.ReplayResult
	if out := must(t, dir, "perf", "replay", "log.capture", "--target", "mount:.", "--speed", "max", "--map", "two.img=other/2", "--fill", "--out", "result", "--json"); json.Unmarshal([]byte(out), &res) != nil {
		t.Fatalf("replay printed %s", out)
	}
	if !res.OK() || res.Done != 18 || res.Replayed.Read.Count == 0 {
		t.Errorf("%+v", res)
	}
	for _, f := range []string{"varve-replay/one.img", "other/2", "result/replay.txt", "result/replayed/result.json"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	if out := must(t, dir, "perf", "replay", log, "--target", "null"); !strings.Contains(out, "18 of 18 operations") || !strings.Contains(out, "began late") {
		t.Errorf("replay printed\n%s", out)
	}
	for _, c := range []struct {
		args string
		want int
	}{
		{"perf capture", exitUsage},
		{"perf capture .", exitUsage},
		{"perf capture missing", exitFailed},
		{"perf capture . --path [", exitUsage},
		{"perf capture . --for -1s", exitUsage},
		{"perf replay log.capture", exitUsage},
		{"perf replay log.capture --target cs:1.2.3.4", exitUsage},
		{"perf replay log.capture --target null --speed 0", exitUsage},
		{"perf replay log.capture --target null --map x", exitUsage},
		{"perf replay missing --target null", exitFailed},
		{"perf replay log.capture --target mount:missing", exitFailed},
		{"perf trace show result", exitFailed},
		{"perf trace convert log.capture x --to what", exitUsage},
	} {
		_, errs, code := varve(t, dir, strings.Fields(c.args)...)
		if code != c.want || strings.Count(errs, "\n") != 1 {
			t.Errorf("varve %q: exit code %d and %q, want %d and one line", c.args, code, errs, c.want)
		}
	}
}
