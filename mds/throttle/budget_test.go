package throttle

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const mib = 1 << 20

var limits = Limits{Least: mib, Most: 1 << 30}

// guests returns a sample with guests at work, as both views have it.
func guests(p99 time.Duration, copied uint64) Sample {
	return Sample{Guests: [Views]Guests{{Requests: 1000, P99: p99}, {Requests: 1000, P99: p99 / 2}, {Requests: 900, P99: 3 * p99}}, Copied: copied}
}

func step(b *Budget, n int, s Sample, l Limits) {
	for range n {
		b.Step(s, l)
	}
}

// plant is a cluster in which what guests wait grows with what repair copies: twice as long at full.
type plant struct {
	base time.Duration
	full float64 // bytes a second
	rng  *rand.Rand
}

func (p plant) p99(rate uint64) time.Duration {
	noise := 1 + 0.1*(p.rng.Float64()-0.5)
	return time.Duration(float64(p.base) * (1 + float64(rate)/p.full) * noise)
}

// TestBudgetConverges: with guests at work repair comes to about the rate at which they wait as much longer as is tolerated, from whatever
// rate that is, and they hardly ever wait half as long again.
func TestBudgetConverges(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := plant{base: time.Duration(200+rng.IntN(20000)) * time.Microsecond, full: float64(16*mib) * float64(int(1)<<rng.IntN(8)), rng: rng}
		b := new(Budget)
		for range 30 {
			b.Step(guests(p.p99(0), 0), limits)
		}
		over, sum := 0, 0.0
		const looks = 300
		for i := range looks {
			took := p.p99(b.Rate())
			b.Step(guests(took, b.Rate()), limits)
			if i < looks/3 {
				continue
			}
			if took > p.base*3/2 {
				over++
			}
			sum += float64(b.Rate())
		}
		mean, best := sum/(looks*2/3), 0.3*p.full
		if over > looks/50 || mean < 0.4*min(best, float64(limits.Most)) || mean > 1.3*best {
			t.Errorf("seed %d, full at %.0f MiB/s: %d of %d looks were half as long again; %.1f MiB/s on average, %.1f would do", seed, p.full/mib, over, looks*2/3, mean/mib, best/mib)
		}
	}
}

// TestBudgetIdle: without guests repair comes to its most within seconds.
func TestBudgetIdle(t *testing.T) {
	b := new(Budget)
	step(b, 6, Sample{Copied: mib}, limits)
	if b.Rate() != limits.Most || b.Held() != "" {
		t.Errorf("%d, held: %s", b.Rate(), b.Held())
	}
}

// TestBudgetComesBack: when guests go, the rate is soon at its most again.
func TestBudgetComesBack(t *testing.T) {
	b := new(Budget)
	step(b, 20, guests(time.Millisecond, 0), limits)
	step(b, 30, guests(4*time.Millisecond, mib), limits)
	if b.Rate() > 2*limits.Least || !strings.Contains(b.Held(), "guests wait longer") {
		t.Fatalf("%d, held: %s", b.Rate(), b.Held())
	}
	step(b, settling+12, Sample{Copied: mib}, limits)
	if b.Rate() != limits.Most {
		t.Errorf("%d a while after the guests went", b.Rate())
	}
}

// TestBudgetLearns: who begins in the middle of a repair first finds out what guests usually wait.
func TestBudgetLearns(t *testing.T) {
	b := new(Budget)
	for range probing {
		if b.Step(guests(2*time.Millisecond, mib), limits) != limits.Least || b.Held() == "" {
			t.Fatalf("rate %d before anything is known", b.Rate())
		}
	}
	step(b, 3, guests(2*time.Millisecond, mib), limits)
	if b.Usual(0) != 2*time.Millisecond || b.Rate() <= limits.Least {
		t.Errorf("usual %v, rate %d", b.Usual(0), b.Rate())
	}
}

// TestBudgetFollows: when guests wait longer although hardly anything is copied, that becomes what is usual, and repair goes on.
func TestBudgetFollows(t *testing.T) {
	b := new(Budget)
	step(b, 20, guests(time.Millisecond, 0), limits)
	for i := range 300 {
		if b.Step(guests(4*time.Millisecond, mib), limits) > 4*limits.Least {
			t.Logf("after %d looks", i)
			return
		}
	}
	t.Errorf("rate %d, usual %v", b.Rate(), b.Usual(0))
}

// TestBudgetPressure: each kind of pressure lowers the rate, and is said.
func TestBudgetPressure(t *testing.T) {
	for want, s := range map[string]Sample{
		"memory is short":     {Memory: 950, Copied: 1},
		"a link is full":      {Link: 990, Copied: 1},
		"heartbeats are late": {Heartbeat: time.Second, Copied: 1},
	} {
		b := new(Budget)
		step(b, 10, Sample{Copied: mib}, limits)
		before := b.Rate()
		b.Step(s, limits)
		if b.Rate() > before/2 || !strings.Contains(b.Held(), want) {
			t.Errorf("%s: rate %d after %d, held: %s", want, b.Rate(), before, b.Held())
		}
		step(b, 100, s, limits)
		if b.Rate() != limits.Least {
			t.Errorf("%s: rate %d at last", want, b.Rate())
		}
	}
}

// TestBudgetBounds: whatever is met, the rate stays within its limits, and the same answers come again.
func TestBudgetBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := new(Budget), new(Budget)
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			s := Sample{
				Memory: rapid.Uint32Range(0, 1100).Draw(t, "memory"), Link: rapid.Uint32Range(0, 1100).Draw(t, "link"),
				Heartbeat: time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "heartbeat")), Copied: rapid.Uint64Range(0, 3).Draw(t, "copied"),
			}
			for i := range s.Guests {
				s.Guests[i] = Guests{rapid.Uint64Range(0, 100).Draw(t, "requests"), time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "p99"))}
			}
			l := Limits{rapid.Uint64Range(0, 1<<32).Draw(t, "least"), rapid.Uint64Range(0, 1<<34).Draw(t, "most")}
			rate := a.Step(s, l)
			if most := max(l.Most, 1); rate > most || rate < min(max(l.Least, 1), most) {
				t.Fatalf("rate %d with limits %+v", rate, l)
			}
			if b.Step(s, l) != rate || a.Held() != b.Held() {
				t.Fatal("the same looks give another rate")
			}
		}
	})
}
