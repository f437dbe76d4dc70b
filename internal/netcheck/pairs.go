package netcheck

import (
	"cmp"
	"slices"
)

// pair is one way to measure: indices of members.
type pair struct{ from, to int }

// choose returns the pairs to measure, all of them or most; each pair of hosts comes before a second one of the same hosts, and every host
// early. hosts are the members' hosts by index; a member that is none has "". Members of one host are not paired, unless there is no other. can reports whether a pair
// is possible at all.
func choose(hosts []string, most int, can func(pair) bool) (pairs []pair, all int) {
	distinct := map[string]bool{}
	for _, h := range hosts {
		if h != "" {
			distinct[h] = true
		}
	}
	type ranked struct {
		pair
		round int // how many pairs of the same hosts come before
		apart int
	}
	var list []ranked
	seen := map[[2]string]int{}
	n := len(hosts)
	// By distance in the circle of members: after each lap every member has been once at either end.
	for d := 1; d < n; d++ {
		for i := range n {
			p := pair{i, (i + d) % n}
			a, b := hosts[p.from], hosts[p.to]
			if a == "" || b == "" || a == b && len(distinct) > 1 || !can(p) {
				continue
			}
			k := [2]string{a, b}
			list = append(list, ranked{p, seen[k], d})
			seen[k]++
		}
	}
	slices.SortStableFunc(list, func(a, b ranked) int { return cmp.Or(cmp.Compare(a.round, b.round), cmp.Compare(a.apart, b.apart)) })
	all = len(list)
	if most > 0 && len(list) > most {
		list = list[:most]
	}
	for _, r := range list {
		pairs = append(pairs, r.pair)
	}
	return pairs, all
}

// next returns the index of the first pair whose hosts are both idle, -1 if there is none.
func next(pairs []pair, hosts []string, busy map[string]bool) int {
	return slices.IndexFunc(pairs, func(p pair) bool { return !busy[hosts[p.from]] && !busy[hosts[p.to]] })
}
