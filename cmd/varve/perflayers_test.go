package main

import (
	"encoding/json"
	"slices"
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
	measure := func(args ...string) {
		t.Helper()
		for range 6 { // a busy machine may do nothing in so short a time
			layers = nil
			run(&layers, append([]string{"layers", "--mount", "mnt", "--disk", ".", "--for", "200ms", "--rounds", "1"}, args...)...)
			if !slices.ContainsFunc(layers, func(l perf.LayerResult) bool { return l.Error == "" && l.IOPS <= 0 }) {
				return
			}
		}
	}
	measure("--size", "1m", "--qd", "2", "--rw", "randrw")
	names := ""
	for _, l := range layers {
		names += l.Name + " "
		if l.Error != "" || l.IOPS <= 0 || l.Mean <= 0 {
			t.Errorf("%+v", l)
		}
	}
	if names != "generator disk chunk server core client mount " {
		t.Fatalf("layers %s", names)
	}
	chunkServer := layers[2].Target
	measure("--meta", "create:1,stat:2,list:1,rename:1,delete:1", "--qd", "2", "--files", "40")
	for i, name := range []string{"generator", "disk", "metadata servers", "core client", "mount"} {
		if i >= len(layers) || layers[i].Name != name || layers[i].Error != "" || layers[i].IOPS <= 0 {
			t.Fatalf("on names: %+v, want %s", layers, name)
		}
	}
	mds := layers[2].Target
	var meta perf.Result
	run(&meta, "run", "--target", mds, "--meta", "create:2,stat:1,lookup:2,list:1,rename:2,delete:2", "--files", "100", "--qd", "4", "--jobs", "3", "--for", "0s", "--verify")
	if !meta.OK() || meta.Total.Count != 300 || meta.Verify.ReadBack != "done" || len(meta.Others) != 6 {
		t.Errorf("%+v", meta)
	}
	if left := must(t, dir, append(cluster, "run", "--target", mds+"/varve-perf-names.0", "--meta", "list", "--for", "100ms")...); !strings.Contains(left, "list") {
		t.Errorf("a directory below: %s", left)
	}
	var res perf.Result
	run(&res, "run", "--target", "cluster:/", "--size", "1m", "--qd", "4", "--for", "0s", "--rw", "randrw", "--verify", "--fsync", "8")
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
	cs := strings.TrimPrefix(chunkServer, "cs:")
	if _, errs, code = varve(t, dir, append(cluster, "run", "--target", "mds:"+cs, "--meta", "stat")...); code == 0 || !strings.Contains(errs, "is it a metadata server?") {
		t.Errorf("a chunk server: %d, %s", code, errs)
	}
}
