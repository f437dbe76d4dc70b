package throttle

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"varve/internal/id"
)

const factor = 6

func members(n int) (out []id.ServerID) {
	for i := range n {
		out = append(out, id.ServerID(i+1))
	}
	return out
}

// met returns what was waited for each server, in milliseconds; 0: it was not asked.
func met(ms ...int) (out []Met) {
	for i, n := range ms {
		if n > 0 {
			out = append(out, Met{id.ServerID(i + 1), 100, time.Duration(n) * time.Millisecond})
		}
	}
	return out
}

// run takes n looks and returns the servers that are slow then.
func run(w *Watch, n int, servers int, m []Met) (slow []id.ServerID) {
	for range n {
		w.Step(members(servers), m, factor)
	}
	for _, s := range members(servers) {
		if w.Slow(s) != "" {
			slow = append(slow, s)
		}
	}
	return slow
}

func TestWatch(t *testing.T) {
	for name, tc := range map[string]struct {
		servers, looks int
		met            []Met
		want           []id.ServerID
	}{
		"all alike":             {3, 20, met(10, 12, 11), nil},
		"one is late":           {3, slowAfter, met(2, 100, 2), members(2)[1:]},
		"not for long":          {3, slowAfter - 1, met(2, 100, 2), nil},
		"late, but not by much": {3, 20, met(20, 100, 20), nil},
		"late, but fast":        {3, 20, met(1, 25, 1), nil},
		"nothing to compare":    {3, 20, met(2, 100, 0), nil},
		"two servers":           {2, 20, met(2, 500), nil},
		"all are late":          {3, 20, met(500, 600, 550), nil},
		"two of three":          {3, 20, met(2, 500, 600), nil}, // who of them is late cannot be told
		"two of six":            {6, 20, met(2, 500, 2, 2, 600, 2), []id.ServerID{2, 5}},
		"three of eight":        {8, 20, met(2, 500, 2, 2, 600, 2, 700, 2), []id.ServerID{5, 7}},
	} {
		if got := run(new(Watch), tc.looks, tc.servers, tc.met); !slices.Equal(got, tc.want) {
			t.Errorf("%s: slow are %v, want %v", name, got, tc.want)
		}
	}
}

// TestWatchRecovers: a slow server is not slow any more when it answered in time for a while, or was asked no more; and is again when it is late again.
func TestWatchRecovers(t *testing.T) {
	for _, after := range [][]Met{met(2, 3, 2), met(2, 0, 2)} {
		w := new(Watch)
		if slow := run(w, slowAfter, 3, met(2, 300, 2)); len(slow) != 1 || !strings.Contains(w.Slow(2), "300ms") {
			t.Fatalf("slow: %v, %s", slow, w.Slow(2))
		}
		if slow := run(w, calmAfter-1, 3, after); len(slow) != 1 {
			t.Errorf("not slow any more too early")
		}
		if slow := run(w, 1, 3, after); len(slow) != 0 {
			t.Errorf("still slow: %v", slow)
		}
		if slow := run(w, 1, 3, met(2, 300, 2)); len(slow) != 0 {
			t.Errorf("slow at once: %v", slow)
		}
		if slow := run(w, slowAfter, 3, met(2, 300, 2)); len(slow) != 1 {
			t.Errorf("slow again: %v", slow)
		}
	}
}

// TestWatchBounds: at most a third is slow, who leaves is forgotten, changes are told once, and with a factor of 0 nobody is slow.
func TestWatchBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := new(Watch)
		state := map[id.ServerID]bool{}
		for range rapid.IntRange(1, 80).Draw(t, "looks") {
			var list []id.ServerID
			var all []Met
			for s := id.ServerID(1); s <= 9; s++ {
				if rapid.IntRange(0, 30).Draw(t, "member") > 0 {
					list = append(list, s)
				}
				all = append(all, Met{s, rapid.Uint64Range(0, 10).Draw(t, "requests"), time.Duration(rapid.SampledFrom([]int{1, 2, 50, 900}).Draw(t, "ms")) * time.Millisecond})
			}
			f := rapid.SampledFrom([]int{factor, factor, factor, factor, 0}).Draw(t, "factor")
			was := 0
			for _, s := range list {
				if state[s] {
					was++
				}
			}
			for _, s := range w.Step(list, all, f) {
				state[s] = !state[s]
			}
			slow := 0
			for s := id.ServerID(1); s <= 9; s++ {
				if !slices.Contains(list, s) {
					state[s] = false
				}
				if w.Slow(s) != "" {
					slow++
				}
				if (w.Slow(s) != "") != state[s] {
					t.Fatalf("%v: slow %q, told %v", s, w.Slow(s), state[s])
				}
			}
			if slow > max(len(list)/maxSlowShare, was) || f == 0 && slow > 0 {
				t.Fatalf("%d of %d are slow, factor %d", slow, len(list), f)
			}
		}
	})
}
