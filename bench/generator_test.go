package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"varve/perf"
)

// TestMedianRanks compares with tables of the sign test: the ranks, from 1, between which the median lies with 95 %.
func TestMedianRanks(t *testing.T) {
	for n, want := range map[int][2]int{1: {1, 1}, 5: {1, 5}, 6: {1, 6}, 9: {2, 8}, 12: {3, 10}, 18: {5, 14}, 20: {6, 15}, 100: {40, 61}} {
		if lo, hi := medianRanks(n); lo+1 != want[0] || hi+1 != want[1] {
			t.Errorf("%d samples: %d to %d, want %d to %d", n, lo+1, hi+1, want[0], want[1])
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		r    ratio
		want string
	}{
		{ratio{0.9, 1.02, 1.5}, "holds"}, {ratio{0.9, 1.05, 1.5}, "open"}, {ratio{1.04, 1.05, 1.06}, "above"}, {ratio{0.5, 0.6, 0.7}, "below"},
	} {
		if got := near(c.r, nearRate); got != c.want {
			t.Errorf("%+v: %s, want %s", c.r, got, c.want)
		}
	}
	p := pairs{Name: "x"}
	for i := range 7 {
		p.Fio = append(p.Fio, reach{IOPS: float64(100 * (i + 1)), P50: 1000, P99: 2000, CPU: 500})
		p.Ours = append(p.Ours, reach{IOPS: float64(101 * (i + 1)), P50: 1000, P99: 3000, CPU: 800})
	}
	var b strings.Builder
	printPairs(&b, []*pairs{&p})
	for _, want := range []string{"| 1.01  | 1.01 to 1.01 | 0.97 to 1.03 | holds |", "| 1.50  | 1.50 to 1.50 | 0.90 to 1.10 | above |", "| 1.60  | 1.60 to 1.60 | 1.5 at most  | above |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, b.String())
		}
	}
}

func TestLimitTable(t *testing.T) {
	tab := &limitTable{Layers: []string{layerDisk, layerTCP, layerCS}}
	r := loadRows[0]
	for _, x := range []struct {
		l    limitLayer
		iops []float64
	}{
		{limitLayer{name: layerDisk}, []float64{90, 100, 500}}, {limitLayer{name: layerTCP}, []float64{80, 80}},
		{limitLayer{name: layerCS, limits: []string{layerDisk, layerTCP}}, []float64{40, 40, 10}},
	} {
		for _, v := range x.iops {
			tab.add(r, x.l, layerSample{IOPS: v, P50: time.Microsecond})
		}
	}
	tab.finish()
	c := tab.Rows[0].Layers[layerCS]
	if c.Limit != layerTCP || c.OfLimit != 0.5 || c.OfDisk != 0.4 || c.Median.IOPS != 40 {
		t.Errorf("%+v", c)
	}
	var text, csv bytes.Buffer
	tab.print(&text)
	if err := tab.writeCSV(&csv); err != nil || !strings.Contains(text.String(), "0.50 of TCP (0.40)") {
		t.Errorf("%v\n%s", err, text.String())
	}
	if want := "random read 4k QD1,ops/s,chunk server,40.0,1.000,0.000,0.000,3,TCP,0.5000,0.4000\n"; !strings.HasSuffix(csv.String(), want) {
		t.Errorf("%s\nwant at the end: %s", csv.String(), want)
	}
}

func TestExchange(t *testing.T) {
	for _, r := range []loadRow{{rw: perf.RandRead, bs: smallBlock, qd: 1}, {rw: perf.Write, bs: largeBlock, qd: 32}} {
		x, err := exchange(t.Context(), r, 50*time.Millisecond)
		if err != nil || x.IOPS <= 0 || x.P50 <= 0 || x.P99 < x.P50 {
			t.Errorf("%+v, %v", x, err)
		}
	}
}

func TestNoop(t *testing.T) {
	n := newNoop("f", 1<<30)
	for _, off := range []int64{0, noopMemory - 3} { // the second goes round the end
		if wrote, end, err := n.WriteAt(t.Context(), []byte("abcdef"), off, false); wrote != 6 || end != off+6 || err != nil {
			t.Errorf("write at %d: %d, %d, %v", off, wrote, end, err)
		}
		p := make([]byte, 6)
		if read, err := n.ReadAt(t.Context(), p, off); read != 6 || err != nil || string(p) != "abcdef" {
			t.Errorf("read at %d: %d, %q, %v", off, read, p, err)
		}
	}
}
