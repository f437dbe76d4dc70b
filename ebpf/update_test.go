package ebpf

import (
	"errors"
	"strings"
	"testing"
)

// TestSet changes ports and marks of a classifier that counts on.
func TestSet(t *testing.T) {
	a, b := pair(t)
	c := attach(t, a, "v0", Options{Ports: map[uint16]Class{2510: 1, 2511: 2}, Priority: map[Class]uint32{1: 7}})
	send(t, a, b, "10.99.0.2:2510", 20000)
	if err := c.Set(Options{Ports: map[uint16]Class{2511: 2, 2512: 3}, Marks: map[uint8]Class{10: 4}, DSCP: map[Class]uint8{2: 10}}); err != nil {
		t.Fatal(err)
	}
	before, err := c.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if before[Key{1, Egress}].Bytes < 20000 {
		t.Errorf("Set has lost what was counted: %v", before)
	}
	send(t, a, b, "10.99.0.2:2510", 20000)
	send(t, a, b, "10.99.0.2:2512", 20000)
	after, err := c.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if after[Key{1, Egress}] != before[Key{1, Egress}] {
		t.Errorf("a port that was taken away is counted: %v, %v", before, after)
	}
	if after[Key{3, Egress}].Bytes < 20000 {
		t.Errorf("a port that came later is not counted: %v", after)
	}
	if err := c.Set(Options{Ports: map[uint16]Class{1: MaxClasses}}); err == nil {
		t.Error("a class that there is not was accepted")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(Options{}); err == nil {
		t.Error("Set after Close")
	}
}

// TestClean takes off what a process that died has left: queues and filters of ours, and nothing of others.
func TestClean(t *testing.T) {
	a, _ := pair(t)
	var left Left
	var err error
	clean := func() {
		t.Helper()
		a.do(func() { left, err = Clean("v0") })
		if err != nil {
			t.Fatal(err)
		}
	}
	clean()
	if left != (Left{}) {
		t.Errorf("cleaned %+v where nothing was", left)
	}
	shape(t, a, "v0", 100*mbit, []Share{{Class: 1, Guarantee: 10 * mbit}}) // closed after the test: the interface has lost it by then
	attach(t, a, "v0", Options{NoTCX: true})
	clean()
	if left != (Left{Queues: true, Filters: 2}) {
		t.Errorf("cleaned %+v, want queues and two filters", left)
	}
	if out := a.run(t, "tc qdisc show dev v0"); strings.Contains(out, "htb") {
		t.Errorf("left: %s", out)
	}
	clean()
	if left != (Left{}) {
		t.Errorf("cleaned twice: %+v", left)
	}
	a.run(t, "tc qdisc add dev v0 root handle 5: tbf rate 10mbit burst 32kb latency 50ms")
	clean()
	if out := a.run(t, "tc qdisc show dev v0"); !strings.Contains(out, "tbf 5:") || left.Queues {
		t.Errorf("an administrator's queue was touched: %+v, %s", left, out)
	}
	a.do(func() { _, err = Clean("nosuch") })
	if err == nil || errors.Is(err, ErrForeign) {
		t.Errorf("clean of what is not there: %v", err)
	}
}
