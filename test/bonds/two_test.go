package bonds

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"varve/test/netns"
)

// again runs the test in a namespace of its own, and reports whether this is that run.
func again(t *testing.T, limit time.Duration) bool {
	t.Helper()
	if os.Getenv(netns.Binary) != "" {
		netns.Hub(t)
		return true
	}
	if os.Getenv("VARVE_E2E") == "" {
		t.Skip("end-to-end tests run with VARVE_E2E=1 (make test)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	for _, tool := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs "+tool+": ", err)
		}
	}
	netns.Again(t, limit)
	return false
}

// soak reports whether there is time to measure, and nothing else on the machine.
func soak() bool { return os.Getenv("VARVE_SOAK") != "" }

// cut is a way to lose link s0, and how long throughput may take to go on over the other.
type cut struct {
	name     string
	down, up func(t *testing.T, a, b *host)
}

var cuts = map[string]cut{
	"read": {"its carrier is lost",
		func(t *testing.T, a, _ *host) { run(t, a.Space, "ip link set s0 down") },
		func(t *testing.T, a, _ *host) {
			run(t, a.Space, "ip link set s0 up") // with the queue that it had
		}},
	"write": {"nobody is told", silence(true), silence(false)},
}

func silence(on bool) func(*testing.T, *host, *host) {
	return func(t *testing.T, a, b *host) {
		for _, h := range []*host{a, b} {
			if err := h.bond.Cut("s0", on); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTwoLinks: one client and one server use both links between them, for reads and for writes; when one link is cut, by its carrier or such that nobody is
// told, they go on over the other, and over both when it is back; and no request fails.
//
// How fast that is counts in the long form only (VARVE_SOAK), which has the machine for itself, and cuts both ways for both.
func TestTwoLinks(t *testing.T) {
	if !again(t, 12*time.Minute) {
		return
	}
	a, b := join(t)
	name := b.cluster(t)
	for _, kind := range []string{"read", "write"} {
		if !soak() {
			two(t, a, b, name, kind, cuts[kind])
			continue
		}
		for _, c := range cuts {
			two(t, a, b, name, kind, c)
		}
	}
	const says = "bond0: balance-xor, hash layer3+4, 2 of 2 slaves usable, connections are spread by their ports"
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if out := b.varve(t, "-c", name, "stat"); strings.Contains(string(out), says) {
			break
		} else if time.Now().After(end) {
			t.Errorf("stat does not say %q:\n%s", says, out)
			break
		}
	}
}

const none = 0.1 * linkMbit

func two(t *testing.T, a, b *host, name, kind string, c cut, target ...string) {
	// full is what a link carries that carries all it can: the rest are headers, and pauses of a busy machine.
	measure, late, ratio, full, tries := time.Second, time.Minute, 1.7, 0.5*linkMbit, 40
	if soak() {
		measure, late, ratio, full, tries = 5*time.Second, time.Second, 1.9, 0.7*linkMbit, 1
	}
	both := func(r [2]float64) bool { return r[0] > full && r[1] > full }
	l := a.begin(t, b, name, kind, "", target...)
	defer l.stop()
	if at, err := l.until(time.Minute, both); err != nil {
		t.Fatalf("%s: after %v not both links are full", kind, at)
	}
	two := l.rate(measure)

	c.down(t, a, b)
	down, err := l.until(late, func(r [2]float64) bool { return r[1] > full })
	if err != nil {
		t.Errorf("%s: %v after link s0 was cut (%s) nothing goes on over s1", kind, down, c.name)
	}
	one := l.rate(measure)
	if one[0] > none {
		t.Errorf("%s: link s0 carries %.1f Mbit/s, though it is cut (%s)", kind, one[0], c.name)
	}

	c.up(t, a, b)
	up, err := l.until(late+2*time.Second, both) // what was dead is tried now and then, and its connections begin slowly
	if err != nil {
		t.Errorf("%s: %v after link s0 was back (%s) not both are used", kind, up, c.name)
	}
	for ; tries > 1 && two[0]+two[1] < ratio*(one[0]+one[1]); tries-- {
		two = l.rate(measure) // the machine was busy with something else
	}
	if r := (two[0] + two[1]) / (one[0] + one[1]); r < ratio {
		t.Errorf("%s: both links carry %.2f times what one does, want %.1f", kind, r, ratio)
	}
	t.Logf("%s: both links %.1f + %.1f Mbit/s, one %.1f + %.1f: %.2f times; cut (%s) it went on after %v, and over both %v after the link was back",
		kind, two[0], two[1], one[0], one[1], (two[0]+two[1])/(one[0]+one[1]), c.name, down.Round(time.Millisecond), up.Round(time.Millisecond))
}

// TestChance: without chosen ports the same client, which has three times as many connections then, uses both links at times, and at times less of them.
func TestChance(t *testing.T) {
	if !soak() && os.Getenv(netns.Binary) == "" {
		t.Skip("measures only: VARVE_SOAK=1")
	}
	if !again(t, 4*time.Minute) {
		return
	}
	a, b := join(t)
	name := b.cluster(t)
	const runs = 8
	for _, ports := range []string{"", "off"} {
		sum, worst := 0.0, 2.0
		for range runs {
			l := a.begin(t, b, name, "read", ports)
			if _, err := l.until(20*time.Second, func(r [2]float64) bool { return r[0]+r[1] > 0.7*linkMbit }); err != nil {
				t.Fatal("no load")
			}
			r := l.rate(2 * time.Second)
			l.stop()
			sum += (r[0] + r[1]) / linkMbit
			worst = min(worst, (r[0]+r[1])/linkMbit)
			t.Logf("ports %q: %.1f", ports, r)
		}
		t.Logf("ports %q: %.2f links' worth on average of %d clients, %.2f at worst", ports, sum/runs, runs, worst)
		switch {
		case ports == "" && worst < 1.7:
			t.Error("with chosen ports links are left unused")
		case ports != "" && worst > 1.7:
			t.Error("the kernel's ports do as well: then choosing them proves nothing")
		}
	}
}
