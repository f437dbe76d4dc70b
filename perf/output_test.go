package perf

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestWriteDir: what is written says what was measured, and can be read again, histograms included.
func TestWriteDir(t *testing.T) {
	res := mustRun(t, Options{Target: "mount:" + t.TempDir(), RW: RandRW, Size: 1 << 20, QD: 2, FsyncEvery: 16, Duration: 2200 * time.Millisecond, Rate: 2000})
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := res.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	back, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"read", "write", "fsync"} {
		a, b := res.Curve(op), back.Curve(op)
		if len(a) == 0 || !reflect.DeepEqual(a, b) {
			t.Errorf("%s: %d points, read back %d", op, len(a), len(b))
		}
	}
	if back.Total != res.Total || !reflect.DeepEqual(back.Series, res.Series) {
		t.Errorf("read back %+v with %d seconds, want %+v with %d", back.Total, len(back.Series), res.Total, len(res.Series))
	}
	for _, s := range res.Series {
		if s.Reads+s.Writes > 0 && (s.P50 <= 0 || s.P99 < s.P50 || s.Slowest < s.P99*98/100) { // in a second of a busy disk nothing may end
			t.Errorf("second %d: p50 %v, p99 %v, slowest %v", s.Second, s.P50, s.P99, s.Slowest)
		}
	}
	rows := func(name string) [][]string {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		all, err := csv.NewReader(f).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return all
	}
	if n := len(rows(SeriesFile)); n != len(res.Series)+1 {
		t.Errorf("%d lines for %d seconds", n, len(res.Series))
	}
	if n := len(rows(CurveFile)); n < 10 {
		t.Errorf("a curve of %d lines", n)
	}
	log, err := os.ReadFile(filepath.Join(dir, LogFile))
	if err != nil || !strings.Contains(string(log), "Tag=fsync,2.0") || !strings.Contains(string(log), "#[StartTime:") {
		t.Errorf("%v: %.300s", err, log)
	}
	if err := os.Remove(filepath.Join(dir, LogFile)); err != nil {
		t.Fatal(err)
	}
	if back, err = ReadDir(dir); err != nil || back.Curve("read") != nil {
		t.Errorf("without histograms: %v", err)
	}
	if _, err := ReadDir(t.TempDir()); err == nil {
		t.Error("an empty directory was read")
	}
}

// TestProgress: every second is told, with what ended in it.
func TestProgress(t *testing.T) {
	tries(t, func() error {
		var all []Progress
		res, err := RunWith(t.Context(), Options{Duration: 2500 * time.Millisecond, Rate: 1000}, func(p Progress) { all = append(all, p) })
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 || all[1].Elapsed != 2*time.Second || all[0].IOPS != res.Series[0].Reads || all[0].P99 == 0 {
			return fmt.Errorf("%+v of %+v", all, res.Series)
		}
		return nil
	})
}
