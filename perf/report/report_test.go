package report

import (
	"bytes"
	"fmt"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/perf"
)

// ran is a short run that was written to a directory and loaded from it.
func ran(t *testing.T, name string, o perf.Options) Run {
	t.Helper()
	res, err := perf.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := res.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	runs, err := Load(dir)
	if err != nil || len(runs) != 1 || runs[0].Name != name {
		t.Fatalf("%v: %v", err, runs)
	}
	return runs[0]
}

// TestWriteDir draws real runs. VARVE_REPORT_DIR keeps the pictures, for a look at them.
func TestWriteDir(t *testing.T) {
	o := perf.Options{Target: "mount:" + t.TempDir(), RW: perf.RandRW, Size: 1 << 20, QD: 2, FsyncEvery: 64, Duration: 2200 * time.Millisecond, Rate: 3000}
	runs := []Run{ran(t, "a <b>", o)}
	o.Rate, o.Arrival = 6000, perf.Poisson
	runs = append(runs, ran(t, "b", o))
	dir := os.Getenv("VARVE_REPORT_DIR")
	if dir == "" {
		dir = t.TempDir()
	}
	paths, err := WriteDir(dir, "two runs", runs, "a <b>", "b", Compare(runs[:1], runs[1:]))
	if err != nil || len(paths) != 4 {
		t.Fatalf("%v: %v", err, paths)
	}
	html, err := os.ReadFile(filepath.Join(dir, PageFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a &lt;b&gt;", "randrw (50 % reads)", "operations of seconds", "too few samples", "load generator", "</svg>", "99.9"} {
		if !strings.Contains(string(html), want) {
			t.Errorf("%q is not in the page", want)
		}
	}
	for _, bad := range []string{"<b>)", "a <b>", "<?xml", "src=", "http-equiv", "<script"} {
		if strings.Contains(string(html), bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	for _, name := range []string{"throughput.png", "latency.png", "distribution.png"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(bytes.NewReader(b))
		if err != nil || img.Bounds().Dx() < 1000 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		colours := map[any]bool{}
		for y := range img.Bounds().Dy() {
			for x := range img.Bounds().Dx() {
				colours[img.At(x, y)] = true
			}
		}
		if len(colours) < 20 { // text and curves have many
			t.Errorf("%s: %d colours", name, len(colours))
		}
	}
}

// TestLoad: a directory of runs is all of them, and equal names are told apart.
func TestLoad(t *testing.T) {
	root := t.TempDir()
	res, err := perf.Run(t.Context(), perf.Options{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"x/1", "x/2", "y/x"} {
		if err := res.WriteDir(filepath.Join(root, d)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "x", "other"), 0o755); err != nil {
		t.Fatal(err)
	}
	runs, err := Load(filepath.Join(root, "x"), filepath.Join(root, "y", "x"), filepath.Join(root, "y", "x"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range runs {
		names = append(names, r.Name)
	}
	if got := fmt.Sprint(names); got != "[x/1 x/2 x x (2)]" {
		t.Error(got)
	}
	if _, err := Load(root); err == nil {
		t.Error("a directory without runs was loaded")
	}
}

// made is a run whose seconds have so many operations, give or take noise.
func made(rng *rand.Rand, mean, noise float64) Run {
	res := &perf.Result{Elapsed: 60 * time.Second}
	for i := range 60 {
		n := int64(mean + noise*rng.NormFloat64())
		res.Series = append(res.Series, perf.Second{Second: i, Reads: n, Bytes: n * 4096, P50: time.Second / time.Duration(n), P99: 3 * time.Second / time.Duration(n)})
	}
	res.Total.IOPS = mean + noise*rng.NormFloat64()
	res.Total.MiBs = res.Total.IOPS / 256
	return Run{Name: "made", Result: res}
}

// TestCompare: a difference that is there is found with its sign, and one that is not is hardly ever claimed.
func TestCompare(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, tc := range []struct {
		b    float64
		want Verdict
	}{{11_000, Better}, {9_000, Worse}} {
		for _, c := range Compare([]Run{made(rng, 10_000, 500)}, []Run{made(rng, tc.b, 500)}) {
			if c.Verdict != tc.want || c.Low > tc.b/10_000-1 && c.Figure == "operations of seconds" {
				t.Errorf("10000 to %v: %v", tc.b, c)
			}
		}
	}
	claims, all := 0, 0
	for range 40 {
		for _, c := range Compare([]Run{made(rng, 10_000, 500)}, []Run{made(rng, 10_000, 500)}) {
			all++
			if c.Verdict != Unsettled {
				claims++
			}
		}
	}
	if claims > all/8 {
		t.Errorf("%d of %d comparisons of equals claim a difference", claims, all)
	}
	var a, b []Run
	for range 5 {
		a, b = append(a, made(rng, 10_000, 100)), append(b, made(rng, 10_800, 100))
	}
	got := Compare(a, b)
	if got[0].Figure != "operations of runs" || got[0].Samples != [2]int{5, 5} || got[0].Verdict != Better || got[0].Change < 0.05 || got[0].Change > 0.11 {
		t.Errorf("%v", got[0])
	}
	if c := Compare([]Run{{Result: &perf.Result{}}}, []Run{{Result: &perf.Result{}}}); len(c) != 0 {
		t.Errorf("nothing compared: %v", c)
	}
}
