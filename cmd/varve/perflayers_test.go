package main

import (
	"encoding/json"
	"strings"
	"testing"

	"varve/perf"
)

// TestPerfLayers: the same load on every layer of a cluster, and a verified one on the core client.
func TestPerfLayers(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	devUp(t, dir, "--cs", "2", "--replicas", "2:1")
	cluster := []string{"-c", "data/cluster", "--json", "perf"}
	run := func(into any, args ...string) {
		t.Helper()
		if out := must(t, dir, append(cluster, args...)...); json.Unmarshal([]byte(out), into) != nil {
			t.Fatalf("%q printed %s", args, out)
		}
	}
	var layers []perf.LayerResult
	run(&layers, "layers", "--mount", "mnt", "--disk", ".", "--size", "1m", "--qd", "2", "--for", "200ms", "--rounds", "1", "--rw", "randrw")
	names := ""
	for _, l := range layers {
		names += l.Name + " "
		if l.Error != "" || l.IOPS <= 0 || l.Mean <= 0 {
			t.Errorf("%+v", l)
		}
	}
	if names != "generator disk chunk server core client mount " {
		t.Errorf("layers %s", names)
	}
	var res perf.Result
	run(&res, "run", "--target", "cluster:/", "--size", "1m", "--qd", "4", "--for", "300ms", "--rw", "randrw", "--verify", "--fsync", "8")
	if !res.OK() || res.Verify == nil || res.Verify.Checked == 0 || res.Fsync == nil {
		t.Errorf("%+v", res)
	}
	if out := must(t, dir, "dev", "status", "--dir", "data"); out == "" {
		t.Error("no status")
	}
	_, errs, code := varve(t, dir, append(cluster, "run", "--target", "cluster:/none/such", "--for", "100ms")...)
	if code == 0 || !strings.Contains(errs, "none") {
		t.Errorf("a directory that is not there: %d, %s", code, errs)
	}
}
