package client

import (
	"math/rand/v2"
	"testing"
	"time"
)

// net is a client that writes 4 MiB at a time, 4 at once, at one rate in parallel and another relayed, in bytes/s.
type netModel struct {
	u                 uplink
	now               time.Duration
	parallel, relayed float64
}

// run writes for d and returns how much of what was written was relayed.
func (m *netModel) run(d time.Duration, noise float64, rng *rand.Rand) float64 {
	const depth, size = 4, 4 << 20
	type op struct {
		t   ticket
		end time.Duration
	}
	var queue []op
	bytes, relayed := 0.0, 0.0
	free := m.now // when the uplink is
	for end := m.now + d; m.now < end; {
		for len(queue) < depth {
			t := m.u.begin(m.now)
			rate := m.parallel
			if t.relayed {
				rate = m.relayed
			}
			rate *= 1 + noise*(2*rng.Float64()-1)
			free = max(free, m.now) + time.Duration(size/rate*float64(time.Second))
			queue = append(queue, op{t, free})
		}
		o := queue[0]
		queue = queue[1:]
		m.now = max(m.now, o.end)
		m.u.end(m.now, o.t, size)
		bytes += size
		if o.t.relayed {
			relayed += size
		}
	}
	return relayed / bytes
}

// TestUplinkPolicy: with the uplink as the limit nearly all large writes are relayed, without it hardly any, and when that changes the
// policy follows.
func TestUplinkPolicy(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name              string
		parallel, relayed float64
		least, most       float64 // share that is relayed in the long run
	}{
		{"uplink of 10 Gbit/s is no limit", 200 * mib, 160 * mib, 0, 0.03},
		{"equal", 100 * mib, 100 * mib, 0, 0.03},
		{"a little better", 100 * mib, 110 * mib, 0, 0.03},
		{"uplink of 1 Gbit/s, three replicas", 39 * mib, 117 * mib, 0.9, 1},
		{"uplink of 1 Gbit/s, two replicas", 58 * mib, 110 * mib, 0.9, 1},
		{"relaying is broken", 100 * mib, 1 * mib, 0, 0.03},
	} {
		for _, noise := range []float64{0, 0.15} {
			rng := rand.New(rand.NewPCG(1, 2))
			m := &netModel{parallel: tc.parallel, relayed: tc.relayed, now: time.Hour}
			m.run(20*time.Second, noise, rng)
			if got := m.run(4*time.Minute, noise, rng); got < tc.least || got > tc.most {
				t.Errorf("%s, noise %v: %.3f of the bytes are relayed, want %v to %v", tc.name, noise, got, tc.least, tc.most)
			}
			// A neighbour fills the uplink, or leaves it.
			m.parallel, m.relayed = 39*mib, 117*mib
			m.run(6*time.Minute, noise, rng)
			if got := m.run(time.Minute, noise, rng); got < 0.8 {
				t.Errorf("%s, noise %v, then a full uplink: %.3f of the bytes are relayed", tc.name, noise, got)
			}
			m.parallel, m.relayed = 200*mib, 160*mib
			m.run(6*time.Minute, noise, rng)
			if got := m.run(time.Minute, noise, rng); got > 0.1 {
				t.Errorf("%s, noise %v, then a free uplink: %.3f of the bytes are relayed", tc.name, noise, got)
			}
		}
	}
}

// TestUplinkMeasuresStreamsOnly: single writes, however large, measure nothing, and nothing is tried with them.
func TestUplinkMeasuresStreamsOnly(t *testing.T) {
	var u uplink
	now := time.Duration(0)
	for range 1000 {
		k := u.begin(now)
		if k.relayed {
			t.Fatal("relayed without a measurement")
		}
		now += 10 * time.Millisecond
		u.end(now, k, 1<<20)
		now += time.Second
	}
	// A trial that nothing comes of ends.
	u = uplink{}
	fill := func() ticket {
		k := u.begin(now)
		for range 26 {
			now += 20 * time.Millisecond
			u.end(now, k, 1<<20)
		}
		return u.begin(now)
	}
	if k := fill(); !k.relayed {
		t.Fatal("after a measured window the other way is tried")
	}
	now += windowMax + 1
	if k := u.begin(now); k.relayed {
		t.Fatal("the trial goes on though nobody writes")
	}
	if n, on := u.count(); n != 1 || on {
		t.Fatalf("%d relayed, preferred %t", n, on)
	}
}
