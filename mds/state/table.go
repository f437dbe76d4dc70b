package state

import "math/bits"

// table holds records by a number, in its order: a radix tree of 64 branches a level that has no room for what is not there.
// Inodes and chunks live in it. Their numbers are given out one after the other, so its nodes are full, a record costs 9 bytes,
// and to find one touches a node for 6 bits of the highest number and no other record. It clones as tree does.
type table[T any] struct {
	root   *tableNode[T]
	levels uint // of nodes; numbers below 64^levels fit
	n      int
	owner  *owned
}

type tableNode[T any] struct {
	owner *owned
	used  uint64 // bit i: there is something for the value i of these 6 bits
	kids  []*tableNode[T]
	vals  []*T // on the lowest level
}

func newTable[T any]() *table[T] { return &table[T]{owner: new(owned)} }

// Clone returns a table with the same records.
func (t *table[T]) Clone() *table[T] {
	c := *t
	t.owner, c.owner = new(owned), new(owned)
	return &c
}

func (t *table[T]) Len() int { return t.n }

// branch returns the bit of key on a level, counted from the lowest, and how many things n has before it.
func (n *tableNode[T]) branch(key uint64, level uint) (bit uint64, at int) {
	bit = 1 << (key >> (6 * level) & 63)
	return bit, bits.OnesCount64(n.used & (bit - 1))
}

func (t *table[T]) fits(key uint64) bool { return t.levels > 0 && key>>(6*t.levels) == 0 }

// Get returns the record with the number.
func (t *table[T]) Get(key uint64) (*T, bool) {
	if !t.fits(key) {
		return nil, false
	}
	n := t.root
	for level := t.levels - 1; ; level-- {
		bit, at := n.branch(key, level)
		if n.used&bit == 0 {
			return nil, false
		}
		if level == 0 {
			return n.vals[at], true
		}
		n = n.kids[at]
	}
}

func (t *table[T]) own(n *tableNode[T]) *tableNode[T] {
	if n.owner == t.owner {
		return n
	}
	c := &tableNode[T]{owner: t.owner, used: n.used}
	if n.kids != nil {
		c.kids = tight(n.kids)
	}
	if n.vals != nil {
		c.vals = tight(n.vals)
	}
	return c
}

// Put puts v under the number, and returns the record that it replaces.
func (t *table[T]) Put(key uint64, v *T) (*T, bool) {
	for !t.fits(key) {
		if t.n == 0 {
			t.root = &tableNode[T]{owner: t.owner}
		} else {
			t.root = &tableNode[T]{owner: t.owner, used: 1, kids: []*tableNode[T]{t.root}}
		}
		t.levels++
	}
	t.root = t.own(t.root)
	n := t.root
	for level := t.levels - 1; level > 0; level-- {
		bit, at := n.branch(key, level)
		if n.used&bit == 0 {
			n.used |= bit
			n.kids = insertAt(n.kids, at, &tableNode[T]{owner: t.owner})
		} else if kid := n.kids[at]; kid.owner != t.owner {
			n.kids[at] = t.own(kid)
		}
		n = n.kids[at]
	}
	bit, at := n.branch(key, 0)
	if n.used&bit != 0 {
		old := n.vals[at]
		n.vals[at] = v
		return old, true
	}
	n.used |= bit
	n.vals = insertAt(n.vals, at, v)
	t.n++
	return nil, false
}

// Delete removes the record with the number, and returns it.
func (t *table[T]) Delete(key uint64) (*T, bool) {
	if !t.fits(key) {
		return nil, false
	}
	t.root = t.own(t.root)
	old := t.remove(t.root, key, t.levels-1)
	if old == nil {
		return nil, false
	}
	if t.n--; t.n == 0 {
		t.root, t.levels = nil, 0
	}
	return old, true
}

func (t *table[T]) remove(n *tableNode[T], key uint64, level uint) (old *T) {
	bit, at := n.branch(key, level)
	if n.used&bit == 0 {
		return nil
	}
	if level == 0 {
		old = n.vals[at]
		n.vals = removeAt(n.vals, at)
		n.used &^= bit
		return old
	}
	kid := n.kids[at]
	if kid.owner != t.owner {
		kid = t.own(kid)
		n.kids[at] = kid
	}
	old = t.remove(kid, key, level-1)
	if kid.used == 0 {
		n.kids = removeAt(n.kids, at)
		n.used &^= bit
	}
	return old
}

// Ascend calls fn for each record with a number from from on, in order, until fn returns false.
func (t *table[T]) Ascend(from uint64, fn func(*T) bool) {
	if t.n > 0 && t.fits(from) {
		t.root.ascend(from, t.levels-1, fn)
	}
}

func (n *tableNode[T]) ascend(from uint64, level uint, fn func(*T) bool) bool {
	bit, at := n.branch(from, level)
	if level == 0 {
		for _, v := range n.vals[at:] {
			if !fn(v) {
				return false
			}
		}
		return true
	}
	if n.used&bit != 0 {
		if !n.kids[at].ascend(from, level-1, fn) {
			return false
		}
		at++
	}
	for _, kid := range n.kids[at:] {
		if !kid.ascend(0, level-1, fn) {
			return false
		}
	}
	return true
}

// fork returns a table with the same records. t may not be changed any more; unlike Clone it leaves t alone, so others may read it meanwhile.
func (t *table[T]) fork() *table[T] {
	c := *t
	c.owner = new(owned)
	return &c
}

// ascendKeys calls fn for each number, in order, until fn returns false. It reports whether fn never did.
func (t *table[T]) ascendKeys(fn func(uint64) bool) bool {
	return t.n == 0 || t.root.keys(0, t.levels-1, fn)
}

func (n *tableNode[T]) keys(prefix uint64, level uint, fn func(uint64) bool) bool {
	at := 0
	for used := n.used; used != 0; used &= used - 1 {
		key := prefix<<6 | uint64(bits.TrailingZeros64(used))
		if level == 0 {
			if !fn(key) {
				return false
			}
			continue
		}
		if !n.kids[at].keys(key, level-1, fn) {
			return false
		}
		at++
	}
	return true
}
