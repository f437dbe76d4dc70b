package netcheck

import (
	"fmt"
	"slices"
	"testing"
)

func any2(pair) bool { return true }

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		name  string
		hosts []string
		most  int
		all   int
		pairs int
	}{
		{"nobody", nil, 0, 0, 0},
		{"one", []string{"a"}, 0, 0, 0},
		{"two", []string{"a", "b"}, 0, 2, 2},
		{"one host", []string{"a", "a", "a"}, 0, 6, 6},
		{"two on one of two hosts", []string{"a", "a", "b"}, 0, 4, 4},
		{"one that is gone", []string{"a", "", "b"}, 0, 2, 2},
		{"only gone ones", []string{"", ""}, 0, 0, 0},
		{"limited", []string{"a", "b", "c", "d"}, 5, 12, 5},
	} {
		pairs, all := choose(tc.hosts, tc.most, any2)
		if len(pairs) != tc.pairs || all != tc.all {
			t.Errorf("%s: %d pairs of %d, want %d of %d: %v", tc.name, len(pairs), all, tc.pairs, tc.all, pairs)
		}
		seen := map[pair]bool{}
		for _, p := range pairs {
			if p.from == p.to || seen[p] {
				t.Errorf("%s: pair %v of %v", tc.name, p, pairs)
			}
			seen[p] = true
		}
	}
}

// TestChooseFew: of 20 hosts with 12 servers each, as many pairs as there are hosts have each host send and receive once, and as many as there are pairs of
// hosts have each of these once.
func TestChooseFew(t *testing.T) {
	var hosts []string
	for i := range 240 {
		hosts = append(hosts, fmt.Sprint(i%20))
	}
	few, all := choose(hosts, 20, any2)
	sends, receives := map[string]int{}, map[string]int{}
	for _, p := range few {
		sends[hosts[p.from]]++
		receives[hosts[p.to]]++
	}
	if all != 240*228 || len(sends) != 20 || len(receives) != 20 {
		t.Errorf("%d possible, %d hosts send and %d receive", all, len(sends), len(receives))
	}
	each, _ := choose(hosts, 380, any2)
	ways := map[[2]string]int{}
	for _, p := range each {
		ways[[2]string{hosts[p.from], hosts[p.to]}]++
	}
	if len(ways) != 380 {
		t.Errorf("380 pairs of members are %d pairs of hosts", len(ways))
	}
}

// TestNext: no host is in two tests at once, and all pairs get their turn.
func TestNext(t *testing.T) {
	hosts := []string{"a", "a", "b", "c", "d"}
	left, all := choose(hosts, 0, any2)
	busy := map[string]bool{}
	var running []pair
	ended, most := 0, 0
	for len(left) > 0 || len(running) > 0 {
		if i := next(left, hosts, busy); i >= 0 {
			p := left[i]
			if busy[hosts[p.from]] || busy[hosts[p.to]] {
				t.Fatalf("pair %v while %v are busy", p, busy)
			}
			busy[hosts[p.from]], busy[hosts[p.to]] = true, true
			left = slices.Delete(left, i, i+1)
			running = append(running, p)
			most = max(most, len(running))
			continue
		}
		p := running[0]
		running = running[1:]
		delete(busy, hosts[p.from])
		delete(busy, hosts[p.to])
		ended++
	}
	if ended != all || most != 2 {
		t.Errorf("%d of %d pairs had their turn, %d at once", ended, all, most)
	}
}
