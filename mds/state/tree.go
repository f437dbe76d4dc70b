package state

import "slices"

// maxItems bounds the records of a node; minItems is when a node is joined with its neighbour, or takes from it.
const (
	maxItems = 63
	minItems = 20
)

// tree is a B-tree that clones in constant time: nodes are shared until one side changes them. It is google/btree (the model of
// its tests) but for its memory: that one keeps room for 64 records in every node, and leaves all nodes half full when keys come in
// order, as they do here. This one splits a node where a run ends, and keeps little room beyond what is used.
//
// What holds of google/btree holds here: one goroutine changes, and nobody reads meanwhile; clones are independent of each other.
type tree[T any] struct {
	less  func(a, b T) bool
	root  *treeNode[T]
	n     int
	owner *owned // nodes that have it are not shared
}

type treeNode[T any] struct {
	owner *owned
	items []T
	kids  []*treeNode[T] // none in a leaf, else one more than items
}

func newTree[T any](less func(a, b T) bool) *tree[T] { return &tree[T]{less: less, owner: new(owned)} }

// Clone returns a tree with the same records.
func (t *tree[T]) Clone() *tree[T] {
	c := *t
	t.owner, c.owner = new(owned), new(owned)
	return &c
}

func (t *tree[T]) Len() int { return t.n }

// search returns where v is in the sorted items, or where it would be.
func (t *tree[T]) search(items []T, v T) (int, bool) {
	low, high := 0, len(items)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if t.less(v, items[mid]) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	if low > 0 && !t.less(items[low-1], v) {
		return low - 1, true
	}
	return low, false
}

// Get returns the record with the key of v.
func (t *tree[T]) Get(v T) (T, bool) {
	for n := t.root; n != nil; {
		i, found := t.search(n.items, v)
		if found {
			return n.items[i], true
		}
		if n.kids == nil {
			break
		}
		n = n.kids[i]
	}
	var zero T
	return zero, false
}

// Has reports whether there is a record with the key of v.
func (t *tree[T]) Has(v T) bool {
	_, ok := t.Get(v)
	return ok
}

// own returns n, or a copy that t may change.
func (t *tree[T]) own(n *treeNode[T]) *treeNode[T] {
	if n.owner == t.owner {
		return n
	}
	c := &treeNode[T]{owner: t.owner, items: tight(n.items)}
	if n.kids != nil {
		c.kids = tight(n.kids)
	}
	return c
}

// roomy rounds a capacity up to what the allocator would give for pointers anyway.
func roomy(n int) int { return (n + 3) &^ 3 }

// tight returns a copy of s with little room.
func tight[E any](s []E) []E {
	c := make([]E, len(s), roomy(len(s)))
	copy(c, s)
	return c
}

// insertAt is slices.Insert of one element that makes room for an eighth more at a time.
func insertAt[E any](s []E, i int, v E) []E {
	if len(s) < cap(s) {
		s = s[:len(s)+1]
		copy(s[i+1:], s[i:])
		s[i] = v
		return s
	}
	c := make([]E, len(s)+1, roomy(len(s)+1+len(s)/8))
	copy(c, s[:i])
	c[i] = v
	copy(c[i+1:], s[i:])
	return c
}

// removeAt is slices.Delete of one element that gives back room when half of it is unused.
func removeAt[E any](s []E, i int) []E {
	s = slices.Delete(s, i, i+1)
	if cap(s) >= 16 && len(s) < cap(s)/2 {
		s = tight(s)
	}
	return s
}

// ReplaceOrInsert puts v in, and returns the record that it replaces.
func (t *tree[T]) ReplaceOrInsert(v T) (T, bool) {
	if t.root == nil {
		t.root = &treeNode[T]{owner: t.owner}
	}
	t.root = t.own(t.root)
	old, replaced, last := t.insert(t.root, v)
	if !replaced {
		t.n++
	}
	if left := t.root; len(left.items) > maxItems {
		mid, right := t.split(left, last)
		t.root = &treeNode[T]{owner: t.owner, items: []T{mid}, kids: []*treeNode[T]{left, right}}
	}
	return old, replaced
}

// insert puts v below n; last tells that n, if it grew, grew at its end.
func (t *tree[T]) insert(n *treeNode[T], v T) (old T, replaced, last bool) {
	i, found := t.search(n.items, v)
	if found {
		old, n.items[i] = n.items[i], v
		return old, true, false
	}
	last = i == len(n.items)
	if n.kids == nil {
		n.items = insertAt(n.items, i, v)
		return old, false, last
	}
	kid := n.kids[i]
	if kid.owner != t.owner {
		kid = t.own(kid)
		n.kids[i] = kid
	}
	old, replaced, end := t.insert(kid, v)
	if len(kid.items) > maxItems {
		mid, right := t.split(kid, end)
		n.items = insertAt(n.items, i, mid)
		n.kids = insertAt(n.kids, i+1, right)
	}
	return old, replaced, last
}

// split leaves the lower part in n and returns the record between and the upper part. A node that grew at its end
// keeps all it can, since the next records will come there too.
func (t *tree[T]) split(n *treeNode[T], last bool) (T, *treeNode[T]) {
	cut := len(n.items) / 2
	if last {
		cut = len(n.items) - 2
	}
	mid := n.items[cut]
	right := &treeNode[T]{owner: t.owner, items: tight(n.items[cut+1:])}
	n.items = tight(n.items[:cut])
	if n.kids != nil {
		right.kids = tight(n.kids[cut+1:])
		n.kids = tight(n.kids[:cut+1])
	}
	return mid, right
}

// Delete removes the record with the key of v, and returns it.
func (t *tree[T]) Delete(v T) (T, bool) {
	if t.n == 0 {
		var zero T
		return zero, false
	}
	t.root = t.own(t.root)
	old, ok := t.remove(t.root, v)
	if ok {
		t.n--
	}
	if r := t.root; len(r.items) == 0 {
		if r.kids == nil {
			t.root = nil
		} else {
			t.root = r.kids[0]
		}
	}
	return old, ok
}

func (t *tree[T]) remove(n *treeNode[T], v T) (T, bool) {
	i, found := t.search(n.items, v)
	if n.kids == nil {
		if !found {
			var zero T
			return zero, false
		}
		old := n.items[i]
		n.items = removeAt(n.items, i)
		return old, true
	}
	kid := n.kids[i]
	if kid.owner != t.owner {
		kid = t.own(kid)
		n.kids[i] = kid
	}
	if !found {
		old, ok := t.remove(kid, v)
		t.fill(n, i)
		return old, ok
	}
	old := n.items[i]
	n.items[i] = t.removeLast(kid)
	t.fill(n, i)
	return old, true
}

func (t *tree[T]) removeLast(n *treeNode[T]) T {
	i := len(n.items) - 1
	if n.kids == nil {
		old := n.items[i]
		n.items = removeAt(n.items, i)
		return old
	}
	kid := t.own(n.kids[i+1])
	n.kids[i+1] = kid
	old := t.removeLast(kid)
	t.fill(n, i+1)
	return old
}

// fill joins the i-th child of n with a neighbour if it has become small, or takes from the neighbour.
func (t *tree[T]) fill(n *treeNode[T], i int) {
	if len(n.kids[i].items) >= minItems {
		return
	}
	a := max(i-1, 0) // the pair a, a+1 has child i
	left, right := t.own(n.kids[a]), t.own(n.kids[a+1])
	n.kids[a], n.kids[a+1] = left, right
	switch {
	case len(left.items)+len(right.items) < maxItems:
		left.items = append(append(left.items, n.items[a]), right.items...)
		left.kids = append(left.kids, right.kids...)
		n.items = removeAt(n.items, a)
		n.kids = removeAt(n.kids, a+1)
	case len(left.items) < len(right.items):
		left.items = insertAt(left.items, len(left.items), n.items[a])
		n.items[a] = right.items[0]
		right.items = removeAt(right.items, 0)
		if left.kids != nil {
			left.kids = insertAt(left.kids, len(left.kids), right.kids[0])
			right.kids = removeAt(right.kids, 0)
		}
	default:
		end := len(left.items) - 1
		right.items = insertAt(right.items, 0, n.items[a])
		n.items[a] = left.items[end]
		left.items = removeAt(left.items, end)
		if left.kids != nil {
			right.kids = insertAt(right.kids, 0, left.kids[end+1])
			left.kids = removeAt(left.kids, end+1)
		}
	}
}

// Ascend calls fn for each record in order, until fn returns false.
func (t *tree[T]) Ascend(fn func(T) bool) {
	if t.root != nil {
		t.root.ascend(fn)
	}
}

func (n *treeNode[T]) ascend(fn func(T) bool) bool {
	for i, v := range n.items {
		if n.kids != nil && !n.kids[i].ascend(fn) || !fn(v) {
			return false
		}
	}
	return n.kids == nil || n.kids[len(n.items)].ascend(fn)
}

// AscendGreaterOrEqual is Ascend from the first record on that is not below from.
func (t *tree[T]) AscendGreaterOrEqual(from T, fn func(T) bool) {
	if t.root != nil {
		t.ascendFrom(t.root, from, fn)
	}
}

func (t *tree[T]) ascendFrom(n *treeNode[T], from T, fn func(T) bool) bool {
	i, found := t.search(n.items, from)
	if !found && n.kids != nil && !t.ascendFrom(n.kids[i], from, fn) {
		return false
	}
	for ; i < len(n.items); i++ {
		if !fn(n.items[i]) || n.kids != nil && !n.kids[i+1].ascend(fn) {
			return false
		}
	}
	return true
}
