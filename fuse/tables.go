package fuse

import (
	"sync"

	"varve/internal/hot"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// node is what is kept of an inode that the kernel refers to.
type node struct {
	lookups uint64 // references the kernel holds; FORGET gives them back
	typ     msg.FileType
	perm    uint32 // as last seen in an answer: what the kernel believes too
	kept    int64  // boot time, ns: until then the kernel may believe attributes it was told
	uid     uint32
	gid     uint32
}

// nodes are the inodes that the kernel refers to. It has no limit of its own: the kernel's inode cache
// decides, and a node is small.
type nodes struct {
	mu sync.Mutex
	m  map[id.Ino]*node
}

func (t *nodes) init() {
	t.m = map[id.Ino]*node{id.Root: {lookups: 1, typ: msg.FileType_DIRECTORY}}
}

// looked notes that the kernel is told of a, which gives it one more reference.
func (t *nodes) looked(a *msg.Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.m[id.Ino(a.Ino)]
	if n == nil {
		n = new(node)
		t.m[id.Ino(a.Ino)] = n
	}
	n.lookups++
	n.typ, n.perm, n.uid, n.gid = a.Type, a.Perm, a.Uid, a.Gid
}

// seen notes newer attributes of a node.
func (t *nodes) seen(a *msg.Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.m[id.Ino(a.Ino)]; n != nil {
		n.typ, n.perm, n.uid, n.gid = a.Type, a.Perm, a.Uid, a.Gid
	}
}

// forget takes count references away.
func (t *nodes) forget(ino id.Ino, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.m[ino]
	if n == nil || ino == id.Root {
		return
	}
	if n.lookups > count {
		n.lookups -= count
		return
	}
	delete(t.m, ino)
}

// get returns a copy of what is known of ino; ok is false if that is nothing.
func (t *nodes) get(ino id.Ino) (n node, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.m[ino]; p != nil {
		return *p, true
	}
	return node{}, false
}

// keep notes until when the kernel may believe the attributes of ino that it is about to be told.
func (t *nodes) keep(ino id.Ino, till int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.m[ino]; n != nil {
		n.kept = max(n.kept, till)
	}
}

// believed returns the inodes of which the kernel may believe attributes at a boot time.
func (t *nodes) believed(now int64) []id.Ino {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []id.Ino
	for ino, n := range t.m {
		if n.kept > now {
			all = append(all, ino)
		}
	}
	return all
}

// size is the number of nodes.
func (t *nodes) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

// file is one open file, known to the kernel by its number.
type file struct {
	handle Handle
	hot    hot.File      // the handle, if it is one
	behind WriteBehinder // the handle, if it writes behind
	ino    id.Ino
	write  bool
	number uint64
}

// files are the open files by number. Number 0 is none.
type files struct {
	mu   sync.RWMutex
	m    map[uint64]*file
	last uint64
}

func (t *files) init() { t.m = make(map[uint64]*file) }

func (t *files) add(f *file) uint64 {
	f.know()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	f.number = t.last
	t.m[t.last] = f
	return t.last
}

// know finds out what the handle can do.
func (f *file) know() {
	f.hot, _ = f.handle.(hot.File)
	if b, ok := f.handle.(WriteBehinder); ok && b.WritesBehind() {
		f.behind = b
	}
}

func (t *files) get(fh uint64) *file {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[fh]
}

// take removes and returns a file. Whoever gets it releases it; nil if somebody else did.
func (t *files) take(fh uint64) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.m[fh]
	delete(t.m, fh)
	return f
}

// all returns the open files, in no order.
func (t *files) all() []*file {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*file, 0, len(t.m))
	for _, f := range t.m {
		out = append(out, f)
	}
	return out
}

// takeAll removes and returns all files.
func (t *files) takeAll() []*file {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*file, 0, len(t.m))
	for _, f := range t.m {
		out = append(out, f)
	}
	clear(t.m)
	return out
}

// size is the number of open files.
func (t *files) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m)
}
