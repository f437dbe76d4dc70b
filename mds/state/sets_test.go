package state

import "testing"

// TestSets: equal sets are one as long as there are not too many, others never are, and the table is bounded.
func TestSets(t *testing.T) {
	var s sets
	set := func(n uint32) replicaSet {
		return replicaSet{norm: 3, servers: [MaxReplicas]uint32{n%97 + 1, n/97%97 + 1, n/97/97 + 1}}
	}
	for round := range 6 {
		for n := range uint32(1000) {
			a := s.find(set(n))
			if *a != set(n) {
				t.Fatalf("set %d is found as %v", n, *a)
			}
			if s.find(set(n)) != a {
				t.Fatalf("set %d is another one at once", n)
			}
		}
		t.Logf("round %d: table of %d", round, len(s.table))
	}
	shared := map[*replicaSet]bool{}
	for range 10 {
		for n := range uint32(1000) {
			shared[s.find(set(n))] = true
		}
	}
	if len(shared) > 1300 {
		t.Errorf("1,000 sets, looked for 10 times, are %d", len(shared))
	}
	for n := range uint32(4 * maxSets) {
		s.find(set(n))
	}
	if len(s.table) != maxSets {
		t.Errorf("table of %d, want %d", len(s.table), maxSets)
	}
}
