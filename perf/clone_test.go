package perf

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestClone: clones are made of another group's file, equal to it, and the result says how, how many and how large.
func TestClone(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, Options{Target: "mount:" + dir, Label: "golden", RW: Write, BlockSize: 64 << 10, Size: 1<<20 + 64<<10})
	o := Options{Target: "mount:" + dir, Label: "vm", CloneOf: "golden", Jobs: 3, Verify: true}
	for _, d := range []time.Duration{0, time.Minute} { // the second time over the first ones
		o.Duration = d
		res := mustRun(t, o)
		if !res.OK() || res.Total.Count != 3 || res.Total.Bytes != 3*(1<<20+64<<10) || len(res.Others) != 1 || res.Others[0].Name != "clone" ||
			res.ClonedBy == "" || res.Verify.Checked != 3*(256+16) || res.Verify.ReadBack != "done" {
			t.Fatalf("%+v, %+v", res, res.Verify)
		}
		var text strings.Builder
		if err := res.WriteText(&text); err != nil || !strings.Contains(text.String(), "cloned by "+res.ClonedBy) {
			t.Errorf("%v:\n%s", err, &text)
		}
	}
	golden, err := os.ReadFile(filepath.Join(dir, "varve-perf.golden.0"))
	if err != nil {
		t.Fatal(err)
	}
	clone, err := os.ReadFile(filepath.Join(dir, "varve-perf.vm.2"))
	if err != nil || !bytes.Equal(clone, golden) || bytes.Count(golden, []byte{0}) > len(golden)/2 {
		t.Errorf("%v: a clone of %d bytes of %d", err, len(clone), len(golden))
	}
	if res := mustRun(t, Options{CloneOf: "golden", Jobs: 3}); !res.OK() || res.Total.Count != 3 || res.ClonedBy != "" {
		t.Errorf("on nothing: %+v", res)
	}
	for want, o := range map[string]Options{
		"varve-perf.none.0":   {Target: "mount:" + dir, CloneOf: "none"},
		"wants mount:DIR":     {Target: "file:/x", CloneOf: "golden"},
		"label of other":      {Target: "mount:" + dir, CloneOf: "vm", Label: "vm"},
		"a job makes one":     {Target: "mount:" + dir, CloneOf: "golden", QD: 2},
		"made by system call": {Target: "mount:" + dir, CloneOf: "golden", Engine: URing},
	} {
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
}

// TestCloneWays: each way that works here makes an equal file, and one that does not leaves the next a clean start.
func TestCloneWays(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "varve-perf.golden.0")
	want := make([]byte, 3<<20+777)
	newPool(1).fill(want, 1)
	if err := os.WriteFile(from, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for n, name := range []string{byReflink, byRange, byCopy} {
		f, err := openClone(dir, n, &Options{Label: "vm", CloneOf: "golden"})
		if err != nil {
			t.Fatal(err)
		}
		c := f.clone
		to, err := os.Create(c.to)
		if err != nil {
			t.Fatal(err)
		}
		err = []func(int) error{c.reflink, c.copyRange, c.copy}[n](int(to.Fd()))
		if closeErr := to.Close(); closeErr != nil {
			t.Fatal(closeErr)
		}
		got, readErr := os.ReadFile(c.to)
		switch {
		case err != nil && !unsupported(err) || err != nil && name == byCopy:
			t.Errorf("%s: %v", name, err)
		case err != nil:
			t.Logf("%s: not here: %v", name, err)
		case readErr != nil || !bytes.Equal(got, want):
			t.Errorf("%s: %v, or other bytes", name, readErr)
		}
		if err := f.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestCloneVerify: a clone that is not what its original is, is found, and a failed one is taken away.
func TestCloneVerify(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "varve-perf.golden.0"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openClone(dir, 0, &Options{Label: "vm", CloneOf: "golden"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if err := f.clone.do(); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(f.clone.to, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("x"), 50_000); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	r := new(recorder)
	if err := f.clone.verify(0, r, func(int64) {}); err != nil || r.verify.Corrupt != 1 || r.verify.Checked != 25 || r.verify.First[0].Block != 12 {
		t.Errorf("%v: %+v", err, r.verify)
	}
	if err := f.clone.do(); !errors.Is(err, os.ErrExist) {
		t.Errorf("a clone over another file: %v", err)
	}
}
