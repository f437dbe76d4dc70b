package client

import (
	"cmp"
	"slices"
	"sync"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// tree is a namespace of directories and empty files, and the leader's side of leases on it: who was granted what is called
// back before a change, and nothing of it is granted until that is done.
type tree struct {
	w        *world
	page     int        // entries of a ReadDir answer at most
	changing sync.Mutex // one change at a time

	mu     sync.Mutex
	nodes  map[uint64]*treeNode
	frozen map[uint64]bool                // being changed
	attrs  map[uint64]map[uint64]struct{} // inode -> sessions that were granted it
	names  map[uint64]map[uint64]struct{}
	asked  map[string]int // requests, by kind
}

type treeNode struct {
	attr   msg.Attr
	parent uint64
	names  map[string]*msg.Dirent
}

func newTree(w *world) *tree {
	t := &tree{w: w, page: 100, nodes: map[uint64]*treeNode{}, frozen: map[uint64]bool{}, attrs: map[uint64]map[uint64]struct{}{},
		names: map[uint64]map[uint64]struct{}{}, asked: map[string]int{}}
	t.nodes[1] = &treeNode{attr: msg.Attr{Ino: 1, Type: msg.FileType_DIRECTORY, Perm: 0o755, Nlink: 2}, parent: 1, names: map[string]*msg.Dirent{}}
	w.tree, w.cacheMs = t, 60_000
	return t
}

func (t *tree) count(kind string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked[kind]
}

func (t *tree) attr(ino uint64) *msg.Attr { return cloneAttr(&t.nodes[ino].attr) }

func (t *tree) grant(table map[uint64]map[uint64]struct{}, ino, session uint64) bool {
	if t.frozen[ino] {
		return false
	}
	if table[ino] == nil {
		table[ino] = map[uint64]struct{}{}
	}
	table[ino][session] = struct{}{}
	return true
}

// carryOut does what it knows of.
func (t *tree) carryOut(req *msg.MetaRequest, reply *msg.MetaReply) (fserr.Code, bool) {
	reply.Grant = new(msg.Grant)
	s := req.Session
	t.mu.Lock()
	defer t.mu.Unlock()
	t.w.mu.Lock()
	reply.Index = t.w.index
	t.w.mu.Unlock()
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup:
		t.asked["lookup"]++
		d := t.nodes[op.Lookup.Parent]
		if d == nil {
			return fserr.NotExist, true
		}
		reply.Grant.Names = t.grant(t.names, op.Lookup.Parent, s)
		e := d.names[string(op.Lookup.Name)]
		if e == nil {
			return fserr.NotExist, true
		}
		reply.Attr, reply.Grant.Attr = t.attr(e.Ino), t.grant(t.attrs, e.Ino, s)
	case *msg.MetaRequest_GetAttr:
		t.asked["getattr"]++
		if t.nodes[op.GetAttr.Ino] == nil {
			return fserr.NotExist, true
		}
		reply.Attr, reply.Grant.Attr = t.attr(op.GetAttr.Ino), t.grant(t.attrs, op.GetAttr.Ino, s)
	case *msg.MetaRequest_ReadDir:
		t.asked["readdir"]++
		d := t.nodes[op.ReadDir.Ino]
		if d == nil {
			return fserr.NotExist, true
		}
		reply.Grant.Names, reply.Grant.Entries = t.grant(t.names, op.ReadDir.Ino, s), op.ReadDir.Plus
		reply.Result = &msg.MetaReply_ReadDir{ReadDir: t.list(d, op.ReadDir, s)}
	default:
		return t.change(req, reply)
	}
	return fserr.OK, true
}

func (t *tree) list(d *treeNode, op *msg.ReadDir, session uint64) *msg.ReadDirReply {
	r := &msg.ReadDirReply{Parent: d.parent, End: true}
	page := t.page
	if session == 0 {
		page = len(d.names) // the test's own look
	}
	var all []*msg.Dirent
	for _, e := range d.names {
		if e.Cookie > op.Cookie {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *msg.Dirent) int { return cmp.Compare(a.Cookie, b.Cookie) })
	if most := min(page, int(op.Max)); len(all) > most {
		all, r.End = all[:most], false
	}
	for _, e := range all {
		x := &msg.Dirent{Ino: e.Ino, Type: e.Type, Name: e.Name, Cookie: e.Cookie}
		if op.Plus {
			x.Attr, x.Once = t.attr(e.Ino), !t.grant(t.attrs, e.Ino, session)
		}
		r.Entries = append(r.Entries, x)
	}
	return r
}

// change does an operation that changes something: check, call back, apply. t.mu is held, but not meanwhile.
func (t *tree) change(req *msg.MetaRequest, reply *msg.MetaReply) (fserr.Code, bool) {
	var attrs, dirs []uint64
	var apply func(index uint64)
	t.mu.Unlock()
	t.changing.Lock()
	defer t.changing.Unlock()
	t.mu.Lock()
	touched := func(inos ...uint64) {
		for _, ino := range inos {
			if n := t.nodes[ino]; n != nil && (reply.Attr == nil || reply.Attr.Ino != ino) {
				reply.Touched = append(reply.Touched, t.attr(ino))
			}
		}
	}
	step := func(n *treeNode, index uint64) { n.attr.Mtime, n.attr.Ctime = int64(index), int64(index) }
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Create:
		t.asked["create"]++
		d, name := t.nodes[op.Create.Parent], string(op.Create.Name)
		switch {
		case d == nil:
			return fserr.NotExist, true
		case op.Create.Open:
			return 0, false
		case d.names[name] != nil:
			return fserr.Exist, true
		}
		attrs, dirs = []uint64{op.Create.Parent}, []uint64{op.Create.Parent}
		apply = func(index uint64) {
			n := &treeNode{attr: msg.Attr{Ino: 1000 + index, Type: op.Create.Type, Perm: op.Create.Perm, Nlink: 1, Ctime: int64(index)}, parent: op.Create.Parent}
			if op.Create.Type == msg.FileType_DIRECTORY {
				n.names, n.attr.Nlink = map[string]*msg.Dirent{}, 2
				d.attr.Nlink++
				reply.Grant.NewNames = t.grant(t.names, n.attr.Ino, req.Session)
			}
			t.nodes[n.attr.Ino] = n
			d.names[name] = &msg.Dirent{Ino: n.attr.Ino, Type: op.Create.Type, Name: []byte(name), Cookie: index << 1}
			step(d, index)
			reply.Attr, reply.Grant.Attr = t.attr(n.attr.Ino), t.grant(t.attrs, n.attr.Ino, req.Session)
			reply.Grant.Names = t.grant(t.names, op.Create.Parent, req.Session)
			touched(op.Create.Parent)
		}
	case *msg.MetaRequest_Remove:
		t.asked["remove"]++
		d, name := t.nodes[op.Remove.Parent], string(op.Remove.Name)
		if d == nil || d.names[name] == nil {
			return fserr.NotExist, true
		}
		n := t.nodes[d.names[name].Ino]
		if len(n.names) > 0 {
			return fserr.NotEmpty, true
		}
		attrs, dirs = []uint64{op.Remove.Parent, n.attr.Ino}, []uint64{op.Remove.Parent}
		apply = func(index uint64) {
			delete(d.names, name)
			step(d, index)
			t.unlink(n, d, index)
			reply.Attr = cloneAttr(&n.attr)
			touched(op.Remove.Parent)
		}
	case *msg.MetaRequest_Rename:
		t.asked["rename"]++
		r := op.Rename
		from, to := t.nodes[r.Parent], t.nodes[r.NewParent]
		if from == nil || to == nil || from.names[string(r.Name)] == nil {
			return fserr.NotExist, true
		}
		e, other := from.names[string(r.Name)], to.names[string(r.NewName)]
		n := t.nodes[e.Ino]
		attrs, dirs = []uint64{r.Parent, r.NewParent, e.Ino}, []uint64{r.Parent, r.NewParent}
		if other != nil {
			if t.nodes[other.Ino].names != nil || n.names != nil || other.Ino == e.Ino {
				return fserr.Exist, true
			}
			attrs = append(attrs, other.Ino)
		}
		apply = func(index uint64) {
			if other != nil {
				t.unlink(t.nodes[other.Ino], to, index)
			}
			delete(from.names, string(r.Name))
			to.names[string(r.NewName)] = &msg.Dirent{Ino: e.Ino, Type: e.Type, Name: []byte(string(r.NewName)), Cookie: index << 1}
			n.parent, n.attr.Ctime = r.NewParent, int64(index)
			step(from, index)
			step(to, index)
			reply.Attr, reply.Grant.Attr = t.attr(e.Ino), true
			reply.Grant.Attr = t.grant(t.attrs, e.Ino, req.Session)
			reply.Grant.Names = t.grant(t.names, r.Parent, req.Session) && t.grant(t.names, r.NewParent, req.Session)
			touched(r.Parent)
			if r.NewParent != r.Parent {
				touched(r.NewParent)
			}
		}
	case *msg.MetaRequest_SetAttr:
		t.asked["setattr"]++
		n := t.nodes[op.SetAttr.Ino]
		if n == nil {
			return fserr.NotExist, true
		}
		attrs = []uint64{op.SetAttr.Ino}
		apply = func(index uint64) {
			n.attr.Ctime = int64(index)
			if op.SetAttr.Perm != nil {
				n.attr.Perm = *op.SetAttr.Perm
			}
			reply.Attr, reply.Grant.Attr = t.attr(op.SetAttr.Ino), t.grant(t.attrs, op.SetAttr.Ino, req.Session)
		}
	default:
		return 0, false
	}
	t.recall(req.Session, attrs, dirs)
	t.w.mu.Lock()
	t.w.index++
	reply.Index = t.w.index
	t.w.mu.Unlock()
	for _, ino := range append(attrs, dirs...) {
		delete(t.frozen, ino)
	}
	apply(reply.Index)
	return fserr.OK, true
}

func (t *tree) unlink(n, d *treeNode, index uint64) {
	n.attr.Ctime = int64(index)
	if n.names != nil {
		d.attr.Nlink--
		n.attr.Nlink = 0
	} else {
		n.attr.Nlink--
	}
	if n.attr.Nlink == 0 {
		delete(t.nodes, n.attr.Ino)
	}
}

// recall freezes what is to be changed and calls the others back. t.mu is not held meanwhile.
func (t *tree) recall(session uint64, attrs, dirs []uint64) {
	calls := map[uint64]*msg.Callback{}
	at := func(s uint64) *msg.Callback {
		if calls[s] == nil {
			calls[s] = &msg.Callback{Kind: msg.Callback_META}
		}
		return calls[s]
	}
	for _, ino := range attrs {
		t.frozen[ino] = true
		for s := range t.attrs[ino] {
			if s != session {
				at(s).Attrs = append(at(s).Attrs, ino)
				delete(t.attrs[ino], s)
			}
		}
	}
	for _, ino := range dirs {
		t.frozen[ino] = true
		for s := range t.names[ino] {
			if s != session {
				at(s).Names = append(at(s).Names, ino)
				delete(t.names[ino], s)
			}
		}
	}
	t.mu.Unlock()
	for s, cb := range calls {
		t.w.call(s, cb)
	}
	t.mu.Lock()
}
