package profile

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/perf"
	"varve/perf/report"
)

// TestBuiltin: every profile that comes with varve is found by its name, and runs, made short and small.
func TestBuiltin(t *testing.T) {
	all, err := Builtin()
	if err != nil || len(all) < 9 {
		t.Fatalf("%d profiles: %v", len(all), err)
	}
	for _, p := range all {
		t.Run(p.Name, func(t *testing.T) {
			found, err := Find(p.Name)
			if err != nil || found.Name != p.Name || p.About == "" {
				t.Fatalf("%v: %+v", err, found)
			}
			dir := t.TempDir()
			// Times of milliseconds may be over before a busy machine gets to them: those are made longer.
			for times := 0.002; ; times *= 4 {
				res, err := p.Scale(times, 0.001).Run(t.Context(), "mount:"+dir, nil)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(text(t, res), "larger blocks") {
					t.Skip("the temporary directory refuses direct I/O")
				}
				if !res.OK() || len(res.Phases) != len(p.Phases) {
					t.Fatalf("%d phases of %d:\n%s", len(res.Phases), len(p.Phases), text(t, res))
				}
				idle := ""
				for i, ph := range res.Phases {
					for k, g := range ph.Groups {
						if want := p.Phases[i].Groups[k].Name; g.Name != want {
							t.Errorf("%s: group %s, want %s", ph.Name, g.Name, want)
						}
						if g.Result.Total.Count == 0 {
							idle = ph.Name + ", " + g.Name
						}
					}
				}
				if idle == "" {
					return
				}
				if times > 0.1 {
					t.Fatalf("%s did nothing", idle)
				}
			}
		})
	}
}

func text(t *testing.T, res *Result) string {
	t.Helper()
	var b strings.Builder
	if err := res.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestRun: phases come one after the other on the same files, groups have files of their own, and what was measured can be reported.
func TestRun(t *testing.T) {
	p, err := Parse([]byte(`
name: two
phases:
- name: fill
  for: 200ms
  groups:
  - {name: a, rw: write, bs: 4k, qd: 2, size: 64k}
  - {name: b, rw: randrw, bs: 8k, size: 128k, jobs: 2, verify: true}
- name: read
  for: 200ms
  groups:
  - {name: a, rw: randread, bs: 4k, size: 64k, dist: "zipf:0.5"}
`))
	if err != nil {
		t.Fatal(err)
	}
	dir, out := t.TempDir(), t.TempDir()
	res, err := p.Run(t.Context(), "mount:"+dir, nil)
	if err != nil || !res.OK() {
		t.Fatalf("%v:\n%s", err, text(t, res))
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 3 {
		t.Errorf("files %v", files)
	}
	if err := res.WriteDir(out); err != nil {
		t.Fatal(err)
	}
	runs, err := report.Load(out)
	if err != nil || len(runs) != 3 || !strings.HasSuffix(runs[2].Name, "02-read.a") {
		t.Errorf("%v: %+v", err, runs)
	}
	if res.Phases[0].Groups[1].Result.Verify.Checked == 0 {
		t.Error("nothing was verified")
	}
}

// TestCloneAndNames: what is cloned in a phase is worked on in the next, and names are kept from phase to phase; the summary has times and rates.
func TestCloneAndNames(t *testing.T) {
	dir := t.TempDir()
	p, err := Parse([]byte(`
name: both
phases:
- name: golden
  once: true
  groups:
  - {name: golden, rw: write, bs: 64k, size: 256k}
- name: clone
  once: true
  groups:
  - {name: vm, clone: golden, jobs: 2, verify: true}
  - {name: tree, metadata: create, files: 30, jobs: 2}
- name: work
  once: true
  groups:
  - {name: vm, rw: randread, bs: 4k, size: 256k, jobs: 2}
  - {name: tree, metadata: rename, files: 30, jobs: 2, verify: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.Run(t.Context(), "mount:"+dir, nil)
	if err != nil || !res.OK() {
		t.Fatalf("%v:\n%s", err, text(t, res))
	}
	for _, want := range []string{"clone by ", "rename ", "work   ", "MiB/s"} {
		if !strings.Contains(text(t, res), want) {
			t.Errorf("no %q in\n%s", want, text(t, res))
		}
	}
	if n := res.Phases[2].Groups[0].Result.Total.Count; n != 128 {
		t.Errorf("%d reads of two clones, want 128", n)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "varve-perf-names.tree.*", "f*")); len(names) != 60 {
		t.Errorf("%d files", len(names))
	}
	if _, err := p.Run(t.Context(), "mds:127.0.0.1:1", nil); err == nil || !strings.Contains(err.Error(), "work on names") {
		t.Errorf("at a metadata server: %v", err)
	}
}

// TestRunEnds: a cancelled run has the phase that it was in, and a target that is not there is an error of the group.
func TestRunEnds(t *testing.T) {
	p := &Profile{Name: "long", Phases: []Phase{
		{Name: "a", For: Duration(time.Hour), Groups: []Group{{Name: "g", RW: perf.RandRead}}},
		{Name: "b", For: Duration(time.Hour), Groups: []Group{{Name: "g", RW: perf.RandRead}}},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res, err := p.Run(ctx, "null", func(string, string, perf.Progress) { cancel() })
	if err != nil || len(res.Phases) != 1 || res.Phases[0].Groups[0].Result.Total.Count == 0 || !res.OK() {
		t.Errorf("%v: %+v", err, res)
	}
	res, err = p.Run(t.Context(), "mount:"+filepath.Join(t.TempDir(), "missing"), nil)
	if err != nil || res.OK() || len(res.Phases) != 1 || !strings.Contains(text(t, res), "missing") {
		t.Errorf("%v: %+v", err, res)
	}
	if _, err := p.Run(t.Context(), "file:/tmp/x", nil); err == nil {
		t.Error("one file was taken for several groups")
	}
}

// TestFaults: what is wrong is named with its place.
func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                    "nothing in it",
		"name: x\nphazes: []": "phazes",
		"name: x":             "0 phases",
		"name: a b\nphases: [{name: p, for: 1s, groups: [{name: g, rw: read}]}]":                       `"a b"`,
		"name: x\nphases: [{name: p, for: 0s, groups: [{name: g, rw: read}]}]":                         "for 0s",
		"name: x\nphases: [{name: p, for: 1s, once: true, groups: [{name: g, rw: read}]}]":             "once true",
		"name: x\nphases: [{name: p, once: true, groups: [{name: g, clone: h}]}]":                      `clone of "h"`,
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, metadata: chmod}]}]":                  "chmod",
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, metadata: stat, rw: read}]}]":         "no pattern",
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, rw: reed}]}]":                         `"reed"`,
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, rw: read, bs: 4q}]}]":                 `"4q"`,
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, rw: read}, {name: g, rw: read}]}]":    `group "g"`,
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, rw: randread, dist: \"pareto:1\"}]}]": "pareto",
		"name: x\nphases: [{name: ../../p, for: 1s, groups: [{name: g, rw: read}]}]":                   "../../p",
		"name: x\nphases: [{name: p, for: 1s, groups: [{name: g, rw: randread, arrival: poisson}]}]":   "arrival",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want one with %s", text, err, want)
		}
	}
	if _, err := Find("no-such-profile"); err == nil {
		t.Error("a profile that is not there was found")
	}
}

func TestParseFio(t *testing.T) {
	file := filepath.Join(t.TempDir(), "my.fio")
	err := os.WriteFile(file, []byte(`; a comment
[global]
ioengine=libaio
direct=1
runtime=30
time_based
size=1g

[data_pages]
rw=randrw
rwmixread=70
bs=8k
iodepth=16
numjobs=2
rate_iops=100
random_distribution=zipf:0.9

[log]
rw=write
fsync=1
# another
[check]
stonewall
rw=randread
runtime=1m
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Find(file)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "my" || len(p.Phases) != 2 || len(p.Phases[0].Groups) != 2 || p.Phases[1].For != Duration(time.Minute) || p.Phases[0].For != Duration(30*time.Second) {
		t.Fatalf("%+v", p)
	}
	want := Group{Name: "data-pages", RW: perf.RandRW, Mix: 70, BS: 8192, QD: 16, Jobs: 2, Size: 1 << 30, Rate: 200, Dist: "zipf:0.9", Direct: true}
	if got := p.Phases[0].Groups[0]; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if g := p.Phases[0].Groups[1]; g.RW != perf.Write || g.Fsync != 1 || g.QD != 1 {
		t.Errorf("%+v", g)
	}
	for text, want := range map[string]string{
		"[a]\nrw=randread\nruntime=1\nzonemode=zbd": "line 4",
		"[a]\nrw=rw\nruntime=1":                     "not known",
		"[a]\nrw=read\nruntime=1\nbs=x":             "line 4",
		"[a\nrw=read":                               "no section",
		"rw=read":                                   "0 phases",
	} {
		if _, err := ParseFio("x", []byte("\n"+text)); err == nil || !strings.Contains(err.Error(), strings.Replace(want, "line 4", "line ", 1)) {
			t.Errorf("%q: %v, want one with %s", text, err, want)
		}
	}
}
