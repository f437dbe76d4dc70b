package state

import (
	"slices"
	"sort"

	"varve/internal/id"
)

// listing holds the dentries of all directories in the order of readdir: by directory, then by cookie. It is a B-tree whose records are
// in the leaves only. Nodes above have the place at which each of their children begins beside the pointer, so that a
// search reads one leaf and a few of its dentries, not one dentry for every comparison. To remove a dentry reads none at all: it is
// known, and looked for by its address. It clones and keeps room as tree does, and what holds of that holds here.
type listing struct {
	root  *listNode
	n     int
	owner *owned
}

// listPlace is where a dentry is in the order.
type listPlace struct {
	parent id.Ino
	cookie uint64
}

type listNode struct {
	owner *owned
	items []*Dentry   // of a leaf
	kids  []*listNode // none in a leaf
	from  []listPlace // of each child: nothing in it is below, and nothing in those before it is not; the first one's is not used
}

func newListing() *listing { return &listing{owner: new(owned)} }

func placeOf(d *Dentry) listPlace { return listPlace{d.Parent, d.Cookie} }

func (p listPlace) below(q listPlace) bool {
	return p.parent < q.parent || p.parent == q.parent && p.cookie < q.cookie
}

// Clone returns a listing with the same records.
func (t *listing) Clone() *listing {
	c := *t
	t.owner, c.owner = new(owned), new(owned)
	return &c
}

func (t *listing) Len() int { return t.n }

// kid returns which child of n has the records at p.
func (n *listNode) kid(p listPlace) int {
	low, high := 1, len(n.from)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if p.below(n.from[mid]) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low - 1
}

// find returns the first item of a leaf that is not below p.
func (n *listNode) find(p listPlace) int {
	return sort.Search(len(n.items), func(i int) bool { return !placeOf(n.items[i]).below(p) })
}

func (n *listNode) len() int { return max(len(n.items), len(n.kids)) }

func (t *listing) own(n *listNode) *listNode {
	if n.owner == t.owner {
		return n
	}
	c := &listNode{owner: t.owner}
	if n.kids == nil {
		c.items = tight(n.items)
	} else {
		c.kids, c.from = tight(n.kids), tight(n.from)
	}
	return c
}

// Insert puts d in. It reports false if its place is taken.
func (t *listing) Insert(d *Dentry) bool {
	if t.root == nil {
		t.root = &listNode{owner: t.owner}
	}
	t.root = t.own(t.root)
	ok, last := t.insert(t.root, d, placeOf(d))
	if !ok {
		return false
	}
	t.n++
	if left := t.root; left.len() > maxItems {
		right, from := t.split(left, last)
		t.root = &listNode{owner: t.owner, kids: []*listNode{left, right}, from: []listPlace{{}, from}}
	}
	return true
}

// insert puts d below n; last tells that n grew at its end.
func (t *listing) insert(n *listNode, d *Dentry, p listPlace) (ok, last bool) {
	if n.kids == nil {
		i := len(n.items)
		if i > 0 && !placeOf(n.items[i-1]).below(p) {
			if i = n.find(p); placeOf(n.items[i]) == p {
				return false, false
			}
		}
		last = i == len(n.items)
		n.items = insertAt(n.items, i, d)
		return true, last
	}
	i := n.kid(p)
	kid := n.kids[i]
	if kid.owner != t.owner {
		kid = t.own(kid)
		n.kids[i] = kid
	}
	ok, end := t.insert(kid, d, p)
	last = i == len(n.kids)-1
	if kid.len() > maxItems {
		right, from := t.split(kid, end)
		n.kids = insertAt(n.kids, i+1, right)
		n.from = insertAt(n.from, i+1, from)
	}
	return ok, last && end
}

// split leaves the lower part in n and returns the upper one and where it begins. A node that grew at its end keeps all it can.
func (t *listing) split(n *listNode, last bool) (*listNode, listPlace) {
	cut := n.len() / 2
	if last {
		cut = n.len() - 1
	}
	right := &listNode{owner: t.owner}
	if n.kids == nil {
		right.items = tight(n.items[cut:])
		n.items = tight(n.items[:cut])
		return right, placeOf(right.items[0])
	}
	right.kids, right.from = tight(n.kids[cut:]), tight(n.from[cut:])
	n.kids, n.from = tight(n.kids[:cut]), tight(n.from[:cut])
	return right, right.from[0]
}

// Delete removes d, the same that Insert got. It reports whether it was there.
func (t *listing) Delete(d *Dentry) bool {
	if t.n == 0 {
		return false
	}
	t.root = t.own(t.root)
	if !t.remove(t.root, d, placeOf(d)) {
		return false
	}
	t.n--
	switch r := t.root; {
	case t.n == 0:
		t.root = nil
	case len(r.kids) == 1:
		t.root = r.kids[0]
	}
	return true
}

func (t *listing) remove(n *listNode, d *Dentry, p listPlace) bool {
	if n.kids == nil {
		i := slices.Index(n.items, d)
		if i < 0 {
			return false
		}
		n.items = removeAt(n.items, i)
		return true
	}
	i := n.kid(p)
	kid := n.kids[i]
	if kid.owner != t.owner {
		kid = t.own(kid)
		n.kids[i] = kid
	}
	ok := t.remove(kid, d, p)
	if kid.len() < minItems && len(n.kids) > 1 {
		t.fill(n, max(i-1, 0))
	}
	return ok
}

// fill joins the children a and a+1 of n, or has the smaller one take from the other.
func (t *listing) fill(n *listNode, a int) {
	left, right := t.own(n.kids[a]), t.own(n.kids[a+1])
	n.kids[a], n.kids[a+1] = left, right
	if right.kids != nil {
		right.from[0] = n.from[a+1]
	}
	switch {
	case left.len()+right.len() <= maxItems:
		left.items = append(left.items, right.items...)
		left.kids = append(left.kids, right.kids...)
		left.from = append(left.from, right.from...)
		n.kids = removeAt(n.kids, a+1)
		n.from = removeAt(n.from, a+1)
		return
	case right.kids == nil && left.len() < right.len():
		left.items = insertAt(left.items, len(left.items), right.items[0])
		right.items = removeAt(right.items, 0)
	case right.kids == nil:
		end := len(left.items) - 1
		right.items = insertAt(right.items, 0, left.items[end])
		left.items = removeAt(left.items, end)
	case left.len() < right.len():
		left.kids = insertAt(left.kids, len(left.kids), right.kids[0])
		left.from = insertAt(left.from, len(left.from), right.from[0])
		right.kids, right.from = removeAt(right.kids, 0), removeAt(right.from, 0)
	default:
		end := len(left.kids) - 1
		right.kids = insertAt(right.kids, 0, left.kids[end])
		right.from = insertAt(right.from, 0, left.from[end])
		left.kids, left.from = removeAt(left.kids, end), removeAt(left.from, end)
	}
	if right.kids == nil {
		n.from[a+1] = placeOf(right.items[0])
	} else {
		n.from[a+1] = right.from[0]
	}
}

// Ascend calls fn for each dentry in order, until fn returns false.
func (t *listing) Ascend(fn func(*Dentry) bool) {
	if t.root != nil {
		t.root.ascend(fn)
	}
}

func (n *listNode) ascend(fn func(*Dentry) bool) bool {
	for _, d := range n.items {
		if !fn(d) {
			return false
		}
	}
	for _, kid := range n.kids {
		if !kid.ascend(fn) {
			return false
		}
	}
	return true
}

// From is Ascend from the first dentry of the directory with at least that cookie on.
func (t *listing) From(parent id.Ino, cookie uint64, fn func(*Dentry) bool) {
	if t.root != nil {
		t.root.ascendFrom(listPlace{parent, cookie}, fn)
	}
}

func (n *listNode) ascendFrom(p listPlace, fn func(*Dentry) bool) bool {
	if n.kids == nil {
		for _, d := range n.items[n.find(p):] {
			if !fn(d) {
				return false
			}
		}
		return true
	}
	i := n.kid(p)
	if !n.kids[i].ascendFrom(p, fn) {
		return false
	}
	for _, kid := range n.kids[i+1:] {
		if !kid.ascend(fn) {
			return false
		}
	}
	return true
}
