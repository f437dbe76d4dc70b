package boottime

import (
	"sync"
	"testing"
	"time"
)

// host is a host with clocks that the test moves.
type host struct {
	mono, slept, day time.Duration
	step             time.Duration // that a look takes
	calls            int
	calling          func()
}

func (h *host) look() (day, mono time.Duration) {
	h.mono += h.step
	return h.day + h.mono, h.mono
}

func (h *host) call() time.Duration {
	h.calls++
	h.mono += h.step
	now := h.mono + h.slept
	if h.calling != nil {
		h.calling()
	}
	return now
}

// sleep has the host sleep: both clocks are put forward at once.
func (h *host) sleep(d time.Duration) { h.slept += d; h.day += d }

func newHost() (*host, *reader) {
	h := &host{mono: time.Hour, slept: 3 * time.Hour, day: 1e6 * time.Hour, step: 50}
	return h, &reader{look: h.look, call: h.call}
}

// want reads the clock, which must be right to the microsecond.
func (h *host) want(t *testing.T, r *reader, after string) {
	t.Helper()
	from := h.mono + h.slept
	got := r.read()
	if to := h.mono + h.slept; got < from-time.Microsecond || got > to+time.Microsecond {
		t.Errorf("%s: %v, want %v to %v", after, got, from, to)
	}
}

func TestReader(t *testing.T) {
	h, r := newHost()
	h.want(t, r, "the first")
	for range 1000 {
		h.mono += 10 * time.Microsecond
		h.want(t, r, "soon")
	}
	if h.calls != 1 {
		t.Errorf("%d system calls for 1,001 times within %v", h.calls, fresh)
	}
	h.sleep(time.Minute)
	h.want(t, r, "after a sleep")
	h.day -= 5 * time.Hour
	h.want(t, r, "after the clock of the day was put back")
	h.sleep(time.Minute)
	h.day += 7 * time.Hour
	h.want(t, r, "after a sleep and a step")
	h.mono += 2 * fresh
	h.sleep(time.Minute)
	h.day -= time.Minute
	h.want(t, r, "after a sleep and a step that hides it, later")
}

// TestReaderDuringCall has the host sleep just before and just after the system call.
func TestReaderDuringCall(t *testing.T) {
	h, r := newHost()
	h.want(t, r, "the first")
	h.mono += 2 * fresh
	h.calling = func() { h.sleep(time.Minute); h.calling = nil }
	_ = r.read() // the call was before the sleep
	h.want(t, r, "after a sleep between the call and the look")

	h.mono += 2 * fresh
	real, slept := r.call, false
	r.call = func() time.Duration {
		if !slept {
			slept = true
			h.sleep(time.Minute)
		}
		return real()
	}
	h.want(t, r, "after a sleep between the look and the call")
	h.want(t, r, "and once more")
}

// TestReaderInterrupted keeps nothing of a system call that took long.
func TestReaderInterrupted(t *testing.T) {
	h, r := newHost()
	h.calling = func() { h.mono += time.Second }
	if got, most := r.read(), h.mono+h.slept; got > most || r.last.Load() != nil {
		t.Errorf("%v, want at most %v, and nothing kept (%v)", got, most, r.last.Load())
	}
	if h.calls != tries {
		t.Errorf("%d system calls, want %d", h.calls, tries)
	}
	h.calling = nil
	h.want(t, r, "when it goes on")
}

// TestReaderForward: a distance is measured a little wrong each time, but the time does not go back.
func TestReaderForward(t *testing.T) {
	h, r := newHost()
	for i := range 1000 {
		before := r.read()
		late := time.Duration(i%7) * time.Microsecond
		h.calling = func() { h.mono += late }
		h.mono += fresh / 3
		if after := r.read(); after < before {
			t.Fatalf("%v after %v", after, before)
		}
	}
}

// TestNowForward: no goroutine reads a time before one that another has read before it.
func TestNowForward(t *testing.T) {
	var mu sync.Mutex
	var last time.Duration
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
				mu.Lock()
				now := Now()
				if now < last {
					t.Errorf("%v after %v", now, last)
				}
				last = now
				mu.Unlock()
			}
		})
	}
	all.Wait()
	const wrong = 5 * time.Second
	from, now, to := call(), Now(), call()
	if now < from-wrong || now > to+wrong {
		t.Errorf("the kernel says %v to %v, Now %v", from, to, now)
	}
}
