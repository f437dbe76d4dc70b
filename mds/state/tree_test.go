package state

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/btree"
	"pgregory.net/rapid"
)

type pair struct{ key, value uint64 }

func lessPair(a, b pair) bool { return a.key < b.key }

// checkTree verifies the shape of a tree and returns its records.
func checkTree(t *rapid.T, x *tree[pair]) []pair {
	depth := -1
	var walk func(n *treeNode[pair], level int)
	walk = func(n *treeNode[pair], level int) {
		if len(n.items) == 0 || len(n.items) > maxItems {
			t.Fatalf("node of %d items", len(n.items))
		}
		if n.kids == nil {
			if depth < 0 {
				depth = level
			}
			if depth != level {
				t.Fatalf("leaves on levels %d and %d", depth, level)
			}
			return
		}
		if len(n.kids) != len(n.items)+1 {
			t.Fatalf("%d items, %d children", len(n.items), len(n.kids))
		}
		for _, k := range n.kids {
			walk(k, level+1)
		}
	}
	if x.root != nil {
		walk(x.root, 0)
	}
	var all []pair
	x.Ascend(func(v pair) bool { all = append(all, v); return true })
	if len(all) != x.Len() || !slices.IsSortedFunc(all, func(a, b pair) int {
		if a.key < b.key {
			return -1
		}
		return 1
	}) {
		t.Fatalf("%d records, counted %d, or out of order", len(all), x.Len())
	}
	return all
}

func records(m *btree.BTreeG[pair]) []pair {
	var all []pair
	m.Ascend(func(v pair) bool { all = append(all, v); return true })
	return all
}

// TestTree compares tree and table with google/btree: random changes, runs of keys in order, clones that go on apart.
func TestTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			tree  *tree[pair]
			table *table[pair]
			model *btree.BTreeG[pair]
		}
		all := []version{{newTree(lessPair), newTable[pair](), btree.NewG(4, lessPair)}}
		span := rapid.SampledFrom([]uint64{50, 3000, 1 << 63}).Draw(t, "span")
		value := uint64(0)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			v := all[rapid.IntRange(0, len(all)-1).Draw(t, "version")]
			at, n := rapid.Uint64Range(0, span).Draw(t, "key"), rapid.IntRange(1, 300).Draw(t, "run")
			stride := rapid.SampledFrom([]uint64{1, 3, 64, 1 << 33}).Draw(t, "stride")
			what := rapid.IntRange(0, 3).Draw(t, "what")
			for range n {
				value++
				p := pair{at, value}
				switch what {
				case 0, 1:
					a, ok1 := v.tree.ReplaceOrInsert(p)
					b, ok2 := v.table.Put(p.key, &pair{p.key, p.value})
					m, ok3 := v.model.ReplaceOrInsert(p)
					if ok1 != ok3 || ok2 != ok3 || ok3 && (a != m || *b != m) {
						t.Fatalf("put %v replaced %v %v, %v %v, want %v %v", p, a, ok1, b, ok2, m, ok3)
					}
				case 2:
					a, ok1 := v.tree.Delete(p)
					b, ok2 := v.table.Delete(p.key)
					m, ok3 := v.model.Delete(p)
					if ok1 != ok3 || ok2 != ok3 || ok3 && (a != m || *b != m) {
						t.Fatalf("delete %v took %v %v, %v %v, want %v %v", p, a, ok1, b, ok2, m, ok3)
					}
				case 3:
					a, ok1 := v.tree.Get(p)
					b, ok2 := v.table.Get(p.key)
					m, ok3 := v.model.Get(p)
					if ok1 != ok3 || ok2 != ok3 || ok3 && (a != m || *b != m) {
						t.Fatalf("get %v is %v %v, %v %v, want %v %v", p, a, ok1, b, ok2, m, ok3)
					}
				}
				at += stride
			}
			from := rapid.Uint64Range(0, span).Draw(t, "from")
			var a, b, m []pair
			take := func(to *[]pair) func(pair) bool {
				return func(p pair) bool { *to = append(*to, p); return len(*to) < 100 }
			}
			v.tree.AscendGreaterOrEqual(pair{key: from}, take(&a))
			v.table.Ascend(from, func(p *pair) bool { return take(&b)(*p) })
			v.model.AscendGreaterOrEqual(pair{key: from}, take(&m))
			if !slices.Equal(a, m) || !slices.Equal(b, m) {
				t.Fatalf("from %d on: %v, %v, want %v", from, a, b, m)
			}
			if len(all) < 4 && rapid.Bool().Draw(t, "clone") {
				all = append(all, version{v.tree.Clone(), v.table.Clone(), v.model.Clone()})
			}
		}
		for i, v := range all {
			want := records(v.model)
			if got := checkTree(t, v.tree); !slices.Equal(got, want) {
				t.Fatalf("tree of version %d: %v, want %v", i, got, want)
			}
			var got []pair
			v.table.Ascend(0, func(p *pair) bool { got = append(got, *p); return true })
			if !slices.Equal(got, want) || v.table.Len() != len(want) {
				t.Fatalf("table of version %d: %v, want %v", i, got, want)
			}
		}
	})
}

func BenchmarkTree(b *testing.B) {
	for _, n := range []int{1 << 16, 1 << 20} {
		b.Run(fmt.Sprintf("op=get/kind=table/n=%d", n), func(b *testing.B) {
			t := newTable[pair]()
			for i := range n {
				t.Put(uint64(i), &pair{uint64(i), 0})
			}
			i := uint64(0)
			for b.Loop() {
				i += 7919
				t.Get(i % uint64(n))
			}
		})
		b.Run(fmt.Sprintf("op=get/kind=tree/n=%d", n), func(b *testing.B) {
			t := newTree(lessPair)
			for i := range n {
				t.ReplaceOrInsert(pair{uint64(i), 0})
			}
			i := uint64(0)
			for b.Loop() {
				i += 7919
				t.Get(pair{i % uint64(n), 0})
			}
		})
	}
}
