package netcheck

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// What is taken for bad, or worth a warning.
const (
	clockWarn, clockBad   = 100 * time.Millisecond, time.Second
	slowBad               = 100e6 / 8 // bytes/s: a link below 100 Mbit/s is no storage network
	slowShare             = 0.25      // of the median of all pairs, or of the speed of the slower interface
	asymmetry             = 0.5       // the slower way by the faster one
	lateFactor            = 10        // times the median of all pairs
	lateLeast             = time.Millisecond
	lateBad               = 50 * time.Millisecond
	lossWarn, lossBad     = 0.02, 0.10
	lossLeast             = 500        // segments, below which a loss says nothing
	speedWarn, speedBad   = 1000, 1000 // Mbit/s: at most, below
	payloadShare          = 0.94       // of a link's bits that are payload at best
	fullDuplex, interfacE = "full", "interface"
)

// Judge fills in the verdicts and problems of what was measured. It looks at nothing else.
func Judge(r *Report) {
	j := judge{r: r}
	for i := range r.Pairs {
		r.Pairs[i].Verdict = OK
	}
	j.members()
	j.clocks()
	j.pairs()
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return strings.Compare(string(a.Verdict), string(b.Verdict)) }) // bad first
}

type judge struct{ r *Report }

func (j *judge) add(v Verdict, where, what, do string) {
	j.r.Problems = append(j.r.Problems, Problem{v, where, what, do})
}

func (j *judge) members() {
	mtus := map[uint32][]string{}
	for i := range j.r.Members {
		m := &j.r.Members[i]
		if m.Failed != "" {
			j.add(Bad, m.Name, m.Failed, "see whether it runs, with varve stat, and whether "+m.Addr+" can be reached")
		}
		where := m.Name
		if m.Interface != "" {
			where += " " + m.Interface
		}
		switch {
		case m.SpeedMbit == 0:
		case m.SpeedMbit < speedBad:
			j.add(Bad, where, fmt.Sprintf("%d Mbit/s link", m.SpeedMbit), "see what the interface and the switch have agreed on, and the cable; 10 Gbit/s or more is wanted")
		case m.SpeedMbit <= speedWarn:
			j.add(Warn, where, fmt.Sprintf("%d Gbit/s link", m.SpeedMbit/1000), "it is slower than one SSD, and repair takes long; 10 Gbit/s or more is wanted")
		}
		if m.Duplex != "" && m.Duplex != "full" && m.Duplex != "unknown" {
			j.add(Bad, where, m.Duplex+" duplex", "have both ends negotiate, or set both to full duplex")
		}
		for _, w := range m.Warnings {
			j.add(Warn, where, w, "see varve stat and the interface's settings")
		}
		if m.MTU != 0 && m.Interface != "lo" {
			mtus[m.MTU] = append(mtus[m.MTU], m.Name)
		}
	}
	if len(mtus) > 1 {
		var parts []string
		for _, mtu := range sortedKeys(mtus) {
			parts = append(parts, fmt.Sprintf("%d at %s", mtu, few(mtus[mtu])))
		}
		j.add(Warn, "interfaces", "different MTUs: "+strings.Join(parts, ", "), "set one MTU on all interfaces and switches of the storage network")
	}
}

func sortedKeys(m map[uint32][]string) []uint32 {
	var keys []uint32
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// few names some and counts the rest.
func few(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// clocks compares each clock with the one in the middle, so that the one that is wrong is named.
func (j *judge) clocks() {
	var all []time.Duration
	for i := range j.r.Members {
		if m := &j.r.Members[i]; m.Clock {
			all = append(all, m.ahead())
		}
	}
	if len(all) < 2 {
		return
	}
	slices.Sort(all)
	middle := all[(len(all)-1)/2]
	for i := range j.r.Members {
		m := &j.r.Members[i]
		if !m.Clock {
			continue
		}
		d := m.ahead() - middle
		sure := d.Abs() - time.Duration(m.DoubtNS)
		v := Warn
		switch {
		case sure >= clockBad:
			v = Bad
		case sure < clockWarn:
			continue
		}
		word := "ahead"
		if d < 0 {
			word = "behind"
		}
		j.add(v, m.Name, fmt.Sprintf("clock %s %s of the others'", round(d.Abs()), word), "correct it: run chrony or systemd-timesyncd on every host")
	}
}

func round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

func (j *judge) pairs() {
	var rates, latencies []float64
	rate := map[[2]int]float64{}
	for i := range j.r.Pairs {
		if p := &j.r.Pairs[i]; p.Failed == "" {
			rates, latencies = append(rates, p.BytesPerS), append(latencies, p.MedianUS)
			rate[[2]int{p.from, p.to}] = p.BytesPerS
		}
	}
	slices.Sort(rates)
	slices.Sort(latencies)
	for i := range j.r.Pairs {
		p := &j.r.Pairs[i]
		if p.Failed != "" {
			p.Verdict = Bad
			gone := j.r.Members[p.from].Failed != "" || j.r.Members[p.to].Failed != ""
			if !gone { // which is said already
				j.add(Bad, p.name(), "not measured: "+p.Failed, "see whether a firewall is between them, and the log of "+p.From)
			}
			continue
		}
		say := func(v Verdict, what, do string) {
			if p.Verdict != Bad {
				p.Verdict = v
			}
			j.add(v, p.name(), what, do)
		}
		j.throughput(p, median(rates), rate, say)
		j.latency(p, median(latencies), say)
		j.path(p, say)
		if p.TCP && p.Segments >= lossLeast && p.loss() >= lossWarn {
			v := Warn
			if p.loss() >= lossBad {
				v = Bad
			}
			say(v, fmt.Sprintf("%.1f %% of packets sent again (%d of %d)", 100*p.loss(), p.Retransmits, p.Segments),
				"look for errors and drops at the interfaces (ip -s link) and the switch: cables, full queues, a link that others fill")
		}
	}
}

func (p *Pair) name() string { return p.From + " -> " + p.To }

func median(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

func (j *judge) throughput(p *Pair, middle float64, rate map[[2]int]float64, say func(v Verdict, what, do string)) {
	limit := math.Inf(1)
	if j.r.Rate > 0 {
		limit = float64(j.r.Rate)
	}
	speed := min(speedOf(&j.r.Members[p.from]), speedOf(&j.r.Members[p.to]))
	const look = "look at the links and ports between them: what they have agreed on, errors, who else uses them"
	switch {
	case p.BytesPerS < min(slowBad, limit*asymmetry):
		say(Bad, "throughput "+Bits(p.BytesPerS), look)
	case p.BytesPerS < slowShare*middle:
		say(Bad, fmt.Sprintf("throughput %s, the median of all is %s", Bits(p.BytesPerS), Bits(middle)), look)
	case !math.IsInf(speed, 1) && p.BytesPerS < slowShare*min(payloadShare*speed, limit):
		say(Warn, fmt.Sprintf("throughput %s on links of %s", Bits(p.BytesPerS), Bits(speed)), look+"; or the processors are busy")
	}
	if back, ok := rate[[2]int{p.to, p.from}]; ok && p.BytesPerS < asymmetry*back && back > 0 {
		say(Warn, fmt.Sprintf("asymmetric throughput: %s, and %s the other way", Bits(p.BytesPerS), Bits(back)), look)
	}
}

// speedOf returns the speed of a member's link in bytes/s.
func speedOf(m *Node) float64 {
	if m.SpeedMbit == 0 {
		return math.Inf(1)
	}
	return float64(m.SpeedMbit) * 1e6 / 8
}

func (j *judge) latency(p *Pair, middle float64, say func(v Verdict, what, do string)) {
	took := time.Duration(p.MedianUS * 1e3)
	switch {
	case took >= lateBad:
		say(Bad, fmt.Sprintf("latency %v", round(took)), "a storage network answers within a millisecond: look for a full link, a long way, a host that is overloaded")
	case took >= lateLeast && p.MedianUS >= lateFactor*middle:
		say(Warn, fmt.Sprintf("latency %v, %.0f times the median", round(took), p.MedianUS/max(middle, 1)), "look for a full link, another way than the others take, a host that is overloaded")
	}
}

func (j *judge) path(p *Pair, say func(v Verdict, what, do string)) {
	if p.PathMTU == 0 {
		return
	}
	want := p.LocalMTU
	if m := j.r.Members[p.to].MTU; m != 0 && (want == 0 || m < want) {
		want = m
	}
	want = min(want, maxMTU)
	if want == 0 || p.PathMTU >= want {
		return
	}
	what := fmt.Sprintf("path MTU %d but the interfaces say %d", p.PathMTU, want)
	if p.Hole {
		say(Bad, what+", and what is larger vanishes without a word", "set the MTU alike on all interfaces and switches between them, and let ICMP through")
		return
	}
	say(Bad, what, "set the MTU alike on all interfaces and switches between them")
}

// Bits returns bytes/s as bits a second, for people.
func Bits(bytesPerS float64) string {
	b := bytesPerS * 8
	for _, u := range []struct {
		at   float64
		name string
	}{{1e9, "Gbit/s"}, {1e6, "Mbit/s"}, {1e3, "kbit/s"}} {
		if b >= u.at {
			if b >= 100*u.at {
				return fmt.Sprintf("%.0f %s", b/u.at, u.name)
			}
			return fmt.Sprintf("%.1f %s", b/u.at, u.name)
		}
	}
	return fmt.Sprintf("%.0f bit/s", b)
}
