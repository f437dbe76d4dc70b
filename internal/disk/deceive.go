package disk

import (
	"io"
	"maps"
	"math/rand"
	"path/filepath"
	"slices"
)

// Fate is what becomes of an operation that a disk reports as done. The zero value is that it was done.
type Fate struct {
	// Lost: it never happened. A sync that is lost leaves what it should have covered to the next one, or to Crash.
	Lost bool
	// Path, if set, is the file in which a write lands instead, at Off. It must be there.
	Path string
	Off  int64
}

// Deceive has fn decide about writes, syncs and syncs of directories that the disk says it did. fn must not use the disk. Nil ends it,
// and so do Crash and Kill.
func (d *Faulty) Deceive(fn func(Op) Fate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deceive = fn
}

// fate asks what becomes of an operation.
func (d *Faulty) fate(kind OpKind, path string, off int64, n int) Fate {
	if d.deceive == nil {
		return Fate{}
	}
	return d.deceive(Op{Kind: kind, Path: path, Off: off, Len: n, N: d.ops})
}

// astray writes p where a fate says.
func (d *Faulty) astray(x Fate, p []byte) {
	n := d.live[filepath.Clean(x.Path)]
	if n == nil || n.dir {
		panic("disk: fate of a write: no file " + x.Path)
	}
	d.used -= int64(len(n.live.pages)) * pageSize
	n.write(p, x.Off)
	d.used += int64(len(n.live.pages)) * pageSize
}

// Place is one page of a file.
type Place struct {
	Path string
	Off  int64
}

// Stray makes of each write that was not synced, with probability p, one that lands at another page that some file has, whole. Call it
// right before Crash. It returns where they landed.
func (d *Faulty) Stray(rng *rand.Rand, p float64) (landed []Place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.places()
	var stray []change
	for _, path := range slices.Sorted(maps.Keys(d.live)) {
		n := d.live[path]
		n.changes = slices.DeleteFunc(n.changes, func(c change) bool {
			if c.kind != OpWrite || rng.Float64() >= p {
				return false
			}
			stray = append(stray, c)
			return true
		})
	}
	if len(all) == 0 {
		return nil
	}
	for _, c := range stray {
		at := all[rng.Intn(len(all))]
		n := d.live[at.Path]
		for i, data := range c.parts() {
			n.stable.write(data, at.Off+int64(i)*pageSize) // whatever Crash does with the rest
		}
		landed = append(landed, at)
	}
	return landed
}

// Clone returns a disk with the same contents, on which no process has anything open.
func (d *Faulty) Clone() *Faulty {
	d.mu.Lock()
	defer d.mu.Unlock()
	to := &Faulty{capacity: d.capacity, used: d.used}
	to.init()
	same := make(map[*node]*node)
	clone := func(n *node) *node {
		if same[n] == nil {
			same[n] = &node{dir: n.dir, live: n.live.clone(), stable: n.stable.clone(), changes: slices.Clone(n.changes)}
		}
		return same[n]
	}
	for path, n := range d.live {
		to.live[path] = clone(n)
	}
	for path, n := range d.stable {
		to.stable[path] = clone(n)
	}
	for dir, ops := range d.pending {
		ops = slices.Clone(ops)
		for i := range ops {
			if ops[i].node != nil {
				ops[i].node = clone(ops[i].node)
			}
		}
		to.pending[dir] = ops
	}
	return to
}

// clone returns a copy, which shares its pages until one of the two changes them.
func (c *content) clone() content {
	c.shared = true
	return *c
}

// Places returns every page that some file has, in order.
func (d *Faulty) Places() (all []Place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.places()
}

func (d *Faulty) places() (all []Place) {
	for _, path := range slices.Sorted(maps.Keys(d.live)) {
		for _, at := range slices.Sorted(maps.Keys(d.live[path].live.pages)) {
			all = append(all, Place{path, at * pageSize})
		}
	}
	return all
}

var _ DataFinder = (*faultyFile)(nil)

// NextData implements DataFinder.
func (f *faultyFile) NextData(off int64) (from, to int64, err error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	at := slices.Sorted(maps.Keys(f.n.live.pages))
	i, _ := slices.BinarySearch(at, off/pageSize)
	if i == len(at) {
		return 0, 0, io.EOF
	}
	j := i + 1
	for j < len(at) && at[j] == at[j-1]+1 {
		j++
	}
	return max(off, at[i]*pageSize), (at[j-1] + 1) * pageSize, nil
}
