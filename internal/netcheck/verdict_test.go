package netcheck

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// fine returns a report in which nothing is wrong, of so many members.
func fine(n int) *Report {
	r := &Report{}
	for i := range n {
		r.Members = append(r.Members, Node{Name: fmt.Sprint("cs", i+1), Interface: "eth0", MTU: 9000, SpeedMbit: 25000, Duplex: "full", Clock: true, DoubtNS: 50e3,
			ClockNS: int64(i) * 1e6})
	}
	for i := range n {
		for k := range n {
			if i != k {
				r.Pairs = append(r.Pairs, Pair{from: i, to: k, From: r.Members[i].Name, To: r.Members[k].Name, BytesPerS: 2.5e9, LeastUS: 40, MedianUS: 60, P99US: 200,
					TCP: true, Segments: 100000, Retransmits: 10, PathMTU: 9000, LocalMTU: 9000})
			}
		}
	}
	return r
}

func (r *Report) pair(from, to int) *Pair {
	i := slices.IndexFunc(r.Pairs, func(p Pair) bool { return p.from == from && p.to == to })
	return &r.Pairs[i]
}

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(r *Report)
		worst  Verdict
		want   []string // parts of the problems, in order
	}{
		{"fine", func(*Report) {}, OK, nil},
		{"one alone", func(r *Report) { *r = Report{Members: r.Members[:1]} }, OK, nil},
		{"nobody", func(r *Report) { *r = Report{} }, OK, nil},
		{"gone", func(r *Report) { r.Members[1].Failed = "does not answer: refused" }, Bad, []string{"bad cs2: does not answer"}},
		{"a slow link", func(r *Report) { r.Members[1].SpeedMbit = 1000 }, Warn, []string{"warn cs2 eth0: 1 Gbit/s link"}},
		{"a very slow link", func(r *Report) { r.Members[1].SpeedMbit = 100 }, Bad, []string{"bad cs2 eth0: 100 Mbit/s link"}},
		{"half duplex", func(r *Report) { r.Members[0].Duplex = "half" }, Bad, []string{"bad cs1 eth0: half duplex"}},
		{"a warning of the host", func(r *Report) { r.Members[2].Warnings = []string{"bond0: one slave is down"} }, Warn, []string{"warn cs3 eth0: bond0: one slave is down"}},
		{"another MTU", func(r *Report) {
			r.Members[2].MTU = 1500
			for i := range r.Pairs {
				if p := &r.Pairs[i]; p.from == 2 || p.to == 2 {
					p.PathMTU = 1500
					p.LocalMTU = r.Members[p.from].MTU
				}
			}
		}, Warn, []string{"warn interfaces: different MTUs: 1500 at cs3, 9000 at cs1, cs2, cs4"}},
		{"a clock ahead", func(r *Report) { r.Members[3].ClockNS = 3e9 }, Bad, []string{"bad cs4: clock 3s ahead of the others'"}},
		{"a clock behind", func(r *Report) { r.Members[0].ClockNS = -200e6 }, Warn, []string{"warn cs1: clock 201ms behind of the others'"}},
		{"a clock in doubt", func(r *Report) { r.Members[3].ClockNS, r.Members[3].DoubtNS = 3e9, 4e9 }, OK, nil},
		{"a clock that is not known", func(r *Report) { r.Members[3].ClockNS, r.Members[3].Clock = 3e9, false }, OK, nil},
		{"asymmetric", func(r *Report) { r.pair(0, 1).BytesPerS = 1e9 }, Warn, []string{"warn cs1 -> cs2: asymmetric throughput: 8.0 Gbit/s, and 20.0 Gbit/s the other way"}},
		{"slow", func(r *Report) { r.pair(0, 1).BytesPerS, r.pair(1, 0).BytesPerS = 500e6, 500e6 }, Bad,
			[]string{"bad cs1 -> cs2: throughput 4.0 Gbit/s, the median of all is 20.0 Gbit/s", "bad cs2 -> cs1: throughput 4.0"}},
		{"very slow", func(r *Report) {
			*r = Report{Members: r.Members[:2], Pairs: []Pair{{to: 1, From: "cs1", To: "cs2", BytesPerS: 2.5e6}}}
		}, Bad,
			[]string{"bad cs1 -> cs2: throughput 20.0 Mbit/s"}},
		{"all slow for their links", func(r *Report) {
			for i := range r.Pairs {
				r.Pairs[i].BytesPerS = 300e6
			}
			r.Pairs = r.Pairs[:1]
		}, Warn, []string{"warn cs1 -> cs2: throughput 2.4 Gbit/s on links of 25.0 Gbit/s"}},
		{"at the rate that was given", func(r *Report) {
			r.Rate = 10e6
			for i := range r.Pairs {
				r.Pairs[i].BytesPerS = 9.9e6
			}
		}, OK, nil},
		{"late", func(r *Report) { r.pair(1, 2).MedianUS = 2000 }, Warn, []string{"warn cs2 -> cs3: latency 2ms, 33 times the median"}},
		{"very late", func(r *Report) { r.pair(1, 2).MedianUS = 80e3 }, Bad, []string{"bad cs2 -> cs3: latency 80ms"}},
		{"a small path", func(r *Report) { r.pair(2, 3).PathMTU = 1500 }, Bad, []string{"bad cs3 -> cs4: path MTU 1500 but the interfaces say 9000"}},
		{"a hole", func(r *Report) { r.pair(2, 3).PathMTU, r.pair(2, 3).Hole = 1500, true }, Bad, []string{"and what is larger vanishes without a word"}},
		{"loss", func(r *Report) { r.pair(2, 3).Retransmits = 3000 }, Warn, []string{"warn cs3 -> cs4: 3.0 % of packets sent again (3000 of 100000)"}},
		{"much loss", func(r *Report) { r.pair(2, 3).Retransmits = 30000 }, Bad, []string{"bad cs3 -> cs4: 30.0 % of packets"}},
		{"loss of a few", func(r *Report) { r.pair(2, 3).Retransmits, r.pair(2, 3).Segments = 30, 100 }, OK, nil},
		{"a pair that was not measured", func(r *Report) { r.pair(0, 3).Failed = "connect: refused" }, Bad, []string{"bad cs1 -> cs4: not measured: connect: refused"}},
		{"because one is gone", func(r *Report) {
			r.pair(0, 3).Failed, r.Members[3].Failed = "cs4 stopped answering", "stopped answering"
		}, Bad, []string{"bad cs4: stopped answering"}},
		{"two at once, the worse first", func(r *Report) { r.Members[0].SpeedMbit, r.Members[1].ClockNS = 1000, 9e9 }, Bad, []string{"bad cs2: clock 9s", "warn cs1 eth0: 1 Gbit/s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := fine(4)
			tc.change(r)
			Judge(r)
			var got []string
			for _, p := range r.Problems {
				got = append(got, fmt.Sprintf("%s %s: %s", p.Verdict, p.Where, p.What))
				if p.Do == "" {
					t.Errorf("%s: it is not said what to do", p.What)
				}
			}
			ok := len(got) == len(tc.want) && r.Worst() == tc.worst
			for i := range tc.want {
				ok = ok && strings.Contains(got[i], tc.want[i])
			}
			if !ok {
				t.Errorf("worst is %s, problems\n%s\nwant %s\n%s", r.Worst(), strings.Join(got, "\n"), tc.worst, strings.Join(tc.want, "\n"))
			}
		})
	}
	r := fine(3)
	r.pair(0, 1).Failed = "x"
	r.pair(1, 2).MedianUS = 2000
	Judge(r)
	if a, b, c := r.pair(0, 1).Verdict, r.pair(1, 2).Verdict, r.pair(2, 1).Verdict; a != Bad || b != Warn || c != OK {
		t.Errorf("verdicts of pairs: %s, %s, %s", a, b, c)
	}
}

func TestBits(t *testing.T) {
	for in, want := range map[float64]string{0: "0 bit/s", 100: "800 bit/s", 1000: "8.0 kbit/s", 2.5e6: "20.0 Mbit/s", 125e6: "1.0 Gbit/s", 12.5e9: "100 Gbit/s"} {
		if got := Bits(in); got != want {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
	if got := round(1234567 * time.Nanosecond); got != time.Millisecond {
		t.Errorf("rounded %v", got)
	}
}
