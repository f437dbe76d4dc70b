package state

import "varve/internal/id"

// garbageLists are the chunks that servers may delete: for each server a table of their numbers, since to find a place in one tree of
// all took a fifth of the time of what frees and deletes chunks. It clones in constant time, as tree does, and what holds of that holds here.
type garbageLists struct {
	servers *table[garbageList]
	n       int
	owner   *owned
}

// garbageList is what one server may delete. Nobody changes one whose owner is another than the state's: it is shared with a clone.
type garbageList struct {
	server id.ServerID
	owner  *owned
	ids    *table[inList]
}

// inList stands for a number that is there.
type inList struct{ _ byte }

var present inList

func newGarbageLists() *garbageLists {
	return &garbageLists{servers: newTable[garbageList](), owner: new(owned)}
}

// Clone returns the same lists.
func (g *garbageLists) Clone() *garbageLists {
	c := &garbageLists{servers: g.servers.Clone(), n: g.n, owner: new(owned)}
	g.owner = new(owned)
	return c
}

func (g *garbageLists) Len() int { return g.n }

// Has reports whether the chunk is on the server's list.
func (g *garbageLists) Has(k garbageKey) bool {
	l, ok := g.servers.Get(uint64(k.server))
	if !ok {
		return false
	}
	_, ok = l.ids.Get(uint64(k.chunk))
	return ok
}

// own returns the list of a server that may be changed, nil if there is none and none is to be made.
func (g *garbageLists) own(server id.ServerID, make bool) *garbageList {
	l, ok := g.servers.Get(uint64(server))
	switch {
	case !ok && !make:
		return nil
	case !ok:
		l = &garbageList{server, g.owner, newTable[inList]()}
	case l.owner == g.owner:
		return l
	default:
		l = &garbageList{server, g.owner, l.ids.fork()}
	}
	g.servers.Put(uint64(server), l)
	return l
}

// Add puts the chunk on the server's list. It reports false if it is there.
func (g *garbageLists) Add(k garbageKey) bool {
	if _, there := g.own(k.server, true).ids.Put(uint64(k.chunk), &present); there {
		return false
	}
	g.n++
	return true
}

// Drop takes the chunk off the server's list. It reports whether it was there.
func (g *garbageLists) Drop(k garbageKey) bool {
	l := g.own(k.server, false)
	if l == nil {
		return false
	}
	if _, ok := l.ids.Delete(uint64(k.chunk)); !ok {
		return false
	}
	if g.n--; l.ids.Len() == 0 {
		g.servers.Delete(uint64(k.server))
	}
	return true
}

// Ascend calls fn for each chunk of each list, by server and chunk, until fn returns false.
func (g *garbageLists) Ascend(fn func(garbageKey) bool) {
	g.servers.Ascend(0, func(l *garbageList) bool { return l.ascend(fn) })
}

func (l *garbageList) ascend(fn func(garbageKey) bool) bool {
	return l.ids.ascendKeys(func(chunk uint64) bool { return fn(garbageKey{l.server, id.ChunkID(chunk)}) })
}

// LenOf counts the chunks on the server's list.
func (g *garbageLists) LenOf(server id.ServerID) int {
	if l, ok := g.servers.Get(uint64(server)); ok {
		return l.ids.Len()
	}
	return 0
}

// Of calls fn for each chunk on the server's list, by number, until fn returns false.
func (g *garbageLists) Of(server id.ServerID, fn func(id.ChunkID) bool) {
	if l, ok := g.servers.Get(uint64(server)); ok {
		l.ids.ascendKeys(func(chunk uint64) bool { return fn(id.ChunkID(chunk)) })
	}
}
