package state

import (
	"cmp"
	"slices"
	"testing"

	"varve/internal/id"

	"pgregory.net/rapid"
)

// TestGarbageLists compares the lists with a set: chunks that come and go on a few servers, clones that go on apart.
func TestGarbageLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			lists *garbageLists
			model map[garbageKey]bool
		}
		all := []*version{{newGarbageLists(), map[garbageKey]bool{}}}
		span := rapid.SampledFrom([]uint64{5, 200, 1 << 62}).Draw(t, "span")
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			v := all[rapid.IntRange(0, len(all)-1).Draw(t, "version")]
			chunk := rapid.Uint64Range(1, span).Draw(t, "chunk")
			server := id.ServerID(rapid.IntRange(1, 4).Draw(t, "server"))
			drop := rapid.Bool().Draw(t, "drop")
			for range rapid.IntRange(1, 100).Draw(t, "run") {
				k := garbageKey{server, id.ChunkID(chunk)}
				if v.lists.Has(k) != v.model[k] {
					t.Fatalf("%v is there: %v", k, v.lists.Has(k))
				}
				if drop {
					if v.lists.Drop(k) != v.model[k] {
						t.Fatalf("drop of %v: was there: %v", k, v.model[k])
					}
					delete(v.model, k)
				} else {
					if v.lists.Add(k) == v.model[k] {
						t.Fatalf("add of %v: was there: %v", k, v.model[k])
					}
					v.model[k] = true
				}
				chunk++
			}
			if len(all) < 4 && rapid.Bool().Draw(t, "clone") {
				model := map[garbageKey]bool{}
				for k := range v.model {
					model[k] = true
				}
				all = append(all, &version{v.lists.Clone(), model})
			}
		}
		for i, v := range all {
			var want, got []garbageKey
			for k := range v.model {
				want = append(want, k)
			}
			slices.SortFunc(want, func(a, b garbageKey) int {
				return cmp.Or(cmp.Compare(a.server, b.server), cmp.Compare(a.chunk, b.chunk))
			})
			v.lists.Ascend(func(k garbageKey) bool { got = append(got, k); return true })
			if !slices.Equal(got, want) || v.lists.Len() != len(want) {
				t.Fatalf("version %d: %v, counted %d, want %v", i, got, v.lists.Len(), want)
			}
			for server := id.ServerID(1); server <= 4; server++ {
				n := 0
				v.lists.Of(server, func(id.ChunkID) bool { n++; return n < 10 })
				if m := len(slices.DeleteFunc(slices.Clone(want), func(k garbageKey) bool { return k.server != server })); n != min(m, 10) {
					t.Fatalf("version %d: %d chunks of %v, want %d", i, n, server, min(m, 10))
				}
			}
		}
	})
}
