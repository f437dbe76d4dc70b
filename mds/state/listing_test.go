package state

import (
	"cmp"
	"slices"
	"testing"

	"varve/internal/id"

	"pgregory.net/rapid"
)

// checkListing verifies the shape of a listing and returns its records.
func checkListing(t *rapid.T, x *listing) []*Dentry {
	depth := -1
	var walk func(n *listNode, level int, low, high listPlace)
	walk = func(n *listNode, level int, low, high listPlace) {
		if n.len() > maxItems {
			t.Fatalf("node of %d", n.len())
		}
		if n.kids == nil {
			if depth < 0 {
				depth = level
			}
			if depth != level {
				t.Fatalf("leaves on levels %d and %d", depth, level)
			}
			for _, d := range n.items {
				if p := placeOf(d); p.below(low) || !p.below(high) {
					t.Fatalf("%v in the leaf for %v to %v", p, low, high)
				}
			}
			return
		}
		if len(n.kids) != len(n.from) || len(n.items) != 0 {
			t.Fatalf("%d items, %d children, %d places", len(n.items), len(n.kids), len(n.from))
		}
		for i, k := range n.kids {
			l, h := low, high
			if i > 0 {
				l = n.from[i]
			}
			if i+1 < len(n.kids) {
				h = n.from[i+1]
			}
			walk(k, level+1, l, h)
		}
	}
	if x.root != nil {
		walk(x.root, 0, listPlace{}, listPlace{1<<64 - 1, 1<<64 - 1})
	}
	var all []*Dentry
	x.Ascend(func(d *Dentry) bool { all = append(all, d); return true })
	if len(all) != x.Len() || !slices.IsSortedFunc(all, byPlace) {
		t.Fatalf("%d records, counted %d, or out of order", len(all), x.Len())
	}
	return all
}

func byPlace(a, b *Dentry) int {
	return cmp.Or(cmp.Compare(a.Parent, b.Parent), cmp.Compare(a.Cookie, b.Cookie))
}

// TestListing compares a listing with a sorted slice: directories that grow at their ends as they do, runs that go, places taken,
// clones that go on apart.
func TestListing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			list  *listing
			model []*Dentry
		}
		all := []*version{{list: newListing()}}
		dirs := rapid.SampledFrom([]uint64{1, 3, 500}).Draw(t, "directories")
		cookie := uint64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			v := all[rapid.IntRange(0, len(all)-1).Draw(t, "version")]
			dir, n := rapid.Uint64Range(1, dirs).Draw(t, "directory"), rapid.IntRange(1, 400).Draw(t, "run")
			roam := rapid.Bool().Draw(t, "roam")
			what := rapid.IntRange(0, 4).Draw(t, "what")
			at := 0
			if len(v.model) > 0 {
				at = rapid.IntRange(0, len(v.model)-1).Draw(t, "at")
			}
			for range n {
				switch {
				case what < 3:
					cookie++
					d := &Dentry{Parent: id.Ino(dir), Cookie: cookie}
					if !v.list.Insert(d) {
						t.Fatalf("%v is taken", placeOf(d))
					}
					i, _ := slices.BinarySearchFunc(v.model, d, byPlace)
					v.model = slices.Insert(slices.Clip(v.model), i, d)
					if v.list.Insert(&Dentry{Parent: d.Parent, Cookie: d.Cookie}) || v.list.Delete(&Dentry{Parent: d.Parent, Cookie: d.Cookie}) {
						t.Fatalf("%v twice, or removed by another of its place", placeOf(d))
					}
					if roam {
						dir = dir%dirs + 1
					}
				case len(v.model) > 0:
					at %= len(v.model)
					d := v.model[at]
					if !v.list.Delete(d) || v.list.Delete(d) {
						t.Fatalf("%v not removed, or twice", placeOf(d))
					}
					v.model = slices.Delete(slices.Clone(v.model), at, at+1)
				}
			}
			from := listPlace{id.Ino(rapid.Uint64Range(0, dirs+1).Draw(t, "parent")), rapid.Uint64Range(0, cookie+1).Draw(t, "from")}
			i, _ := slices.BinarySearchFunc(v.model, &Dentry{Parent: from.parent, Cookie: from.cookie}, byPlace)
			var got []*Dentry
			v.list.From(from.parent, from.cookie, func(d *Dentry) bool { got = append(got, d); return len(got) < 100 })
			if want := v.model[i:min(i+100, len(v.model))]; !slices.Equal(got, want) {
				t.Fatalf("from %v on: %d records, want %d", from, len(got), len(want))
			}
			if len(all) < 4 && rapid.Bool().Draw(t, "clone") {
				all = append(all, &version{v.list.Clone(), slices.Clone(v.model)})
			}
		}
		for i, v := range all {
			if got := checkListing(t, v.list); !slices.Equal(got, v.model) {
				t.Fatalf("version %d: %d records, want %d", i, len(got), len(v.model))
			}
		}
	})
}
