package perf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNames: every kind of operation on names is done on a mounted directory, counted by kind, and leaves what was acknowledged.
func TestNames(t *testing.T) {
	dir := t.TempDir()
	o := Options{Target: "mount:" + dir, Jobs: 2, QD: 3, Files: 300, Verify: true, FsyncEvery: 40,
		Metadata: "create:2,stat:3,lookup:3,list:1,rename:2,delete:2"}
	res := mustRun(t, o)
	if !res.OK() || res.Total.Count != 2*300 || res.Verify.ReadBack != "done" || res.Verify.Checked == 0 || res.Fsync == nil {
		t.Fatalf("%+v, %+v", res, res.Verify)
	}
	sum := int64(0)
	for _, k := range res.Others {
		sum += k.Count
	}
	if !res.OK() || len(res.Others) != 6 || sum != res.Total.Count || res.Read != nil || res.Write != nil {
		t.Errorf("%+v, %q, %+v", res.Others, res.Stopped, res.Errors)
	}
	perSecond := int64(0)
	for _, s := range res.Series {
		perSecond += s.Done()
	}
	if perSecond != sum {
		t.Errorf("the series has %d operations of %d", perSecond, sum)
	}
	out := t.TempDir()
	if err := res.WriteDir(out); err != nil {
		t.Fatal(err)
	}
	back, err := ReadDir(out)
	if err != nil || len(back.Curve("rename")) == 0 || !slices.EqualFunc(back.Others, res.Others, func(a, b Kind) bool { return a == b }) {
		t.Errorf("%v: read back %+v", err, back.Others)
	}
	var text strings.Builder
	if err := res.WriteText(&text); err != nil || !strings.Contains(text.String(), "lookup") || !strings.Contains(text.String(), "300 files") ||
		!strings.Contains(text.String(), "names") {
		t.Errorf("%v:\n%s", err, &text)
	}
}

// TestNamesInPhases: one kind after the other, on the same files: what creates begins with nothing and ends with all, and what deletes leaves nothing.
func TestNamesInPhases(t *testing.T) {
	dir := t.TempDir()
	o := Options{Target: "mount:" + dir, Jobs: 2, QD: 2, Files: 50, Verify: true, Duration: time.Minute}
	files := func() int {
		all, err := filepath.Glob(filepath.Join(dir, "varve-perf-names.*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for _, step := range []struct {
		mix  Mix
		for_ time.Duration
		ops  int64 // 0: any
		left int
	}{
		{"create", time.Minute, 100, 100}, {"create", time.Minute, 100, 100}, {"rename", 0, 100, 100}, {"stat", 0, 100, 100},
		{"list", 0, 100, 100}, {"delete", time.Minute, 100, 0}, {"lookup", 0, 100, 100}, {"list:1,delete:9", time.Minute, 0, 0},
	} {
		o.Metadata, o.Duration = step.mix, step.for_
		res := mustRun(t, o)
		if n := files(); !res.OK() || res.Total.Count == 0 || step.ops > 0 && res.Total.Count != step.ops || n != step.left {
			t.Errorf("%s: %d operations, %d files left: %q, %+v", step.mix, res.Total.Count, n, res.Stopped, res.Errors)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v: %v are left", err, left)
	}
}

// TestNamesOpenLoop: what is due when nothing is left to do is not missed.
func TestNamesOpenLoop(t *testing.T) {
	o := Options{Target: "null", Metadata: "create", Files: 20, Rate: 2000, Arrival: Poisson, Duration: time.Minute}
	res := mustRun(t, o)
	if !res.OK() || res.Total.Count != 20 || res.Missed != 0 || res.StartLag == nil {
		t.Errorf("%d operations, %d missed, %q", res.Total.Count, res.Missed, res.Stopped)
	}
	o.Metadata, o.Duration, o.Rate = "create:1,delete:1", 300*time.Millisecond, 1000
	tries(t, func() error {
		res = mustRun(t, o)
		if got := res.Total.Count + res.Missed; !res.OK() || got < 200 || got > 400 || len(res.Others) != 2 {
			return fmt.Errorf("%d operations and missed, want some 300: %+v", got, res)
		}
		return nil
	})
}

// fakeDir is a directory in memory that does wrong what it is told to.
type fakeDir struct {
	mu    sync.Mutex
	names map[string]bool
	n     int
	fault func(n int, d *fakeDir, name string) error // of the n-th change; nil: it is done
}

func (d *fakeDir) change(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	if d.fault != nil {
		if err := d.fault(d.n, d, from+to); err != nil {
			if errors.Is(err, errPretend) {
				return nil
			}
			return err
		}
	}
	if from != "" {
		if !d.names[from] {
			return unix.ENOENT
		}
		delete(d.names, from)
	}
	if to != "" {
		if d.names[to] {
			return unix.EEXIST
		}
		d.names[to] = true
	}
	return nil
}

// errPretend has a fakeDir say that it did what it did not.
var errPretend = errors.New("pretend")

func (d *fakeDir) create(name string) (uint64, error) { return 1, d.change("", name) }
func (d *fakeDir) rename(from, to string) error       { return d.change(from, to) }
func (d *fakeDir) remove(name string) error           { return d.change(name, "") }
func (d *fakeDir) lookup(name string) error           { return d.stat(entry{}) }
func (d *fakeDir) stat(entry) error                   { return nil }
func (d *fakeDir) sync() error                        { return nil }
func (d *fakeDir) close() error                       { return nil }

func (d *fakeDir) list(each func(string, uint64)) (int, error) {
	d.mu.Lock()
	all := slices.Collect(maps.Keys(d.names))
	d.mu.Unlock()
	for _, n := range all {
		if each != nil {
			each(n, 0)
		}
	}
	return len(all), nil
}

// TestNamesVerify plants each fault once, and a failure whose outcome nobody knows, which is none.
func TestNamesVerify(t *testing.T) {
	for _, tc := range []struct {
		name  string
		mix   Mix
		fault func(n int, d *fakeDir, name string) error
		want  func(v *VerifyResult) int64
	}{
		{"none", "create:1,rename:1,delete:1", nil, nil},
		{"lost", "create", func(n int, _ *fakeDir, _ string) error { return pretendAt(n, 17) }, func(v *VerifyResult) int64 { return v.Lost }},
		{"still there", "delete", func(n int, _ *fakeDir, _ string) error { return pretendAt(n, 17+40) }, func(v *VerifyResult) int64 { return v.Old }},
		{"from nowhere", "create", func(n int, d *fakeDir, _ string) error {
			if n == 17 {
				d.names["f9999"] = true
			}
			return nil
		}, func(v *VerifyResult) int64 { return v.Corrupt }},
		{"unknown", "create", func(n int, d *fakeDir, name string) error {
			if n == 17 {
				d.names[name] = true
				return unix.EIO
			}
			if n == 18 {
				return unix.EIO
			}
			return nil
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Options{Target: "mount:x", Metadata: tc.mix, Files: 40, Verify: true}
			o.setDefaults()
			n, err := newNames(&o, &fakeDir{names: map[string]bool{"other": true}, fault: tc.fault}, "x")
			if err != nil {
				t.Fatal(err)
			}
			j := newJob(&o, 0, &file{fd: -1, names: n}, nil, 1)
			if err := n.prepare(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			res, stuck := measure(t.Context(), &o, []*job{j}, Hooks{})
			v := res.Verify
			wrong := int64(0)
			if tc.want != nil {
				wrong = 1
				if tc.want(v) != 1 {
					t.Errorf("%+v", v)
				}
			}
			if stuck || v.Faults() != wrong || v.ReadBack != "done" || v.Checked == 0 && tc.mix != "delete" {
				t.Errorf("%+v", v)
			}
		})
	}
}

func pretendAt(n, at int) error {
	if n == at {
		return errPretend
	}
	return nil
}

// TestNamesFill: filling a directory ends with the first error, and with its context.
func TestNamesFill(t *testing.T) {
	o := Options{Target: "mount:x", Metadata: "stat", Files: 1000}
	full := func(n int, _ *fakeDir, _ string) error {
		if n >= 100 {
			return unix.ENOSPC
		}
		return nil
	}
	d := &fakeDir{names: map[string]bool{}, fault: full}
	n, _ := newNames(&o, d, "x")
	if err := n.prepare(t.Context(), nil); !errors.Is(err, unix.ENOSPC) || d.n > 100+fillers {
		t.Errorf("%v after %d", err, d.n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d = &fakeDir{names: map[string]bool{}}
	n, _ = newNames(&o, d, "x")
	if err := n.prepare(ctx, nil); !errors.Is(err, context.Canceled) || d.n != 0 {
		t.Errorf("%v after %d", err, d.n)
	}
}

// TestNamesOptions: what makes no sense is refused with the words that say why.
func TestNamesOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"each once":                {Target: "null", Metadata: "stat,stat"},
		"chmod":                    {Target: "null", Metadata: "chmod:3"},
		"weight":                   {Target: "null", Metadata: "stat:0"},
		"twice as many":            {Target: "null", Metadata: "stat", Files: 10, QD: 8},
		"wants mount:DIR":          {Target: "file:/tmp/x", Metadata: "stat"},
		"no pattern":               {Target: "null", Metadata: "stat", RW: Read},
		"system calls":             {Target: "null", Metadata: "stat", Engine: URing},
		"has no data":              {Target: "mds:127.0.0.1:1"},
		"number of files":          {Target: "null", Files: 3},
		"keeps nothing":            {Target: "null", Metadata: "stat", Verify: true},
		"mds:IP:PORT[,...][/PATH]": {Target: "mds:", Metadata: "stat"},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want one with %q", o, err, want)
		}
	}
	if _, err := Run(t.Context(), Options{Target: "mds:127.0.0.1:1/a", Metadata: "stat"}); err == nil {
		t.Error("a metadata server that is not there was reached")
	}
	if w, err := Mix("stat:30,create:10").parse(); err != nil || w.String() != "create 25 %, stat 75 %" {
		t.Errorf("%v, %v", w, err)
	}
}
