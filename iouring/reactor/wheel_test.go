package reactor

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestWheel drives the wheel and a list side by side: what fires, and when, must be the same.
func TestWheel(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var w wheel
		w.init()
		w.now = []uint64{0, 1<<30 - 5000, 1<<24 - 100, 1<<36 - 7}[r.IntN(4)]
		now := w.now
		const n = 50
		timers := make([]Timer, n)
		due := make([]uint64, n) // 0: not set
		fired := 0
		for i := range timers {
			timers[i].Fire = func() {
				if due[i] == 0 || due[i] > now {
					t.Fatalf("seed %d: timer %d fired at %d, due at %d", seed, i, now, due[i])
				}
				due[i] = 0
				fired++
			}
		}
		for range 500 {
			switch i := r.IntN(n); r.IntN(4) {
			case 0, 1:
				d := uint64(1) << r.IntN(26)
				due[i] = now + 1 + r.Uint64N(d)
				w.set(&timers[i], due[i])
			case 2:
				due[i] = 0
				w.stop(&timers[i])
			case 3:
				next, any := w.next()
				var first uint64
				for _, d := range due {
					if d != 0 && (first == 0 || d < first) {
						first = d
					}
				}
				if any != (first != 0) || any && next > first {
					t.Fatalf("seed %d: next is %d (%v), the first timer is due at %d", seed, next, any, first)
				}
				now += r.Uint64N(uint64(1) << r.IntN(27))
				w.advance(now)
				for i, d := range due {
					if d != 0 && d <= now {
						t.Fatalf("seed %d: timer %d was due at %d, it is %d", seed, i, d, now)
					}
				}
			}
			set := 0
			for i := range timers {
				if timers[i].Set() != (due[i] != 0) {
					t.Fatalf("seed %d: timer %d set: %v, due %d", seed, i, timers[i].Set(), due[i])
				}
				if timers[i].Set() {
					set++
				}
			}
			if set != w.count {
				t.Fatalf("seed %d: %d timers are set, the wheel counts %d", seed, set, w.count)
			}
		}
		if fired == 0 {
			t.Errorf("seed %d: nothing fired", seed)
		}
	}
}

// TestWheelFar sets what is later than one turn of the wheel.
func TestWheelFar(t *testing.T) {
	var w wheel
	w.init()
	fired := false
	timer := Timer{Fire: func() { fired = true }}
	const far = 3<<30 + 12345
	w.set(&timer, far)
	for steps := 0; !fired; steps++ {
		next, any := w.next()
		if !any || next > far || steps > 100 {
			t.Fatalf("step %d: next %d, %v; the timer is due at %d", steps, next, any, far)
		}
		w.advance(next)
		if fired != (next == far) {
			t.Fatalf("fired %v at %d", fired, next)
		}
	}
}

func BenchmarkWheel(b *testing.B) {
	var w wheel
	w.init()
	timer := Timer{Fire: func() {}}
	b.ReportAllocs()
	for b.Loop() {
		w.set(&timer, w.now+uint64(10*time.Second/tick))
		w.stop(&timer)
	}
}
