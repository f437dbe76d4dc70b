package state

import (
	"cmp"
	"slices"

	"varve/internal/id"

	"github.com/zeebo/xxh3"
)

// name is a dentry in the index by name. Its key, half from the directory and half from a hash of the name, is beside the pointer, so
// that a search reads the nodes of the tree and, nearly always, one dentry. Names of a directory are together, in no order of use.
type name struct {
	key uint64
	d   *Dentry
}

func nameKey(parent id.Ino, s string) uint64 { return uint64(parent)<<32 | xxh3.HashString(s)>>32 }

func nameOf(d *Dentry) name { return name{nameKey(d.Parent, d.Name), d} }

func lessName(a, b name) bool {
	return a.key < b.key || a.key == b.key && compareNames(a.d, b.d.Parent, b.d.Name) < 0
}

func compareNames(d *Dentry, parent id.Ino, s string) int {
	return cmp.Or(cmp.Compare(d.Parent, parent), cmp.Compare(d.Name, s))
}

// findName is Get without a dentry to ask with.
func findName(t *tree[name], parent id.Ino, s string) (*Dentry, bool) {
	key := nameKey(parent, s)
	for n := t.root; n != nil; {
		low, high := 0, len(n.items)
		for low < high {
			mid := int(uint(low+high) >> 1)
			x := &n.items[mid]
			below := x.key < key
			if x.key == key {
				if x.d.Name == s && x.d.Parent == parent {
					return x.d, true
				}
				below = compareNames(x.d, parent, s) < 0
			}
			if below {
				low = mid + 1
			} else {
				high = mid
			}
		}
		if n.kids == nil {
			break
		}
		n = n.kids[low]
	}
	return nil, false
}

// Names calls fn for each name of every directory, by directory and name, until fn returns false. It sorts a directory at a
// time; Dentries is cheaper where the order of names does not matter.
func (s *State) Names(fn func(*Dentry) bool) {
	var dir []*Dentry
	flush := func() bool {
		slices.SortFunc(dir, func(a, b *Dentry) int { return cmp.Compare(a.Name, b.Name) })
		for _, d := range dir {
			if !fn(d) {
				return false
			}
		}
		dir = dir[:0]
		return true
	}
	more := true
	s.cookies.Ascend(func(d *Dentry) bool {
		if len(dir) > 0 && dir[0].Parent != d.Parent {
			more = flush()
		}
		if more {
			dir = append(dir, d)
		}
		return more
	})
	if more {
		flush()
	}
}
