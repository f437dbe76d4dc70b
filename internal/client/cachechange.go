package client

import (
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// busy is what changes of our own that are under way may have done already. It outlives what is held, and connections.
type busy struct {
	attr     int                 // changes of the attributes
	names    map[string]*pending // of names
	readings []*reading
}

type pending struct {
	n        int
	conflict bool // several at once: nobody can tell which was the last
}

func (s *cacheShard) needBusy(ino id.Ino) *busy {
	b := s.busy[ino]
	if b == nil {
		b = new(busy)
		s.busy[ino] = b
	}
	return b
}

func (s *cacheShard) tidyBusy(ino id.Ino, b *busy) {
	if b.attr == 0 && len(b.names) == 0 && len(b.readings) == 0 {
		delete(s.busy, ino)
	}
}

// change is one change of our own, and what it touches.
type change struct {
	start uint64 // when it was first sent
	attrs []id.Ino
	names []nameIn
	wild  bool // it also changes an inode that we cannot name
	quiet bool // a change by writing: the kernel, which writes through us, holds no attributes of a file that is written
}

type nameIn struct {
	dir  id.Ino
	name []byte
}

// changeOf returns what a request changes.
func (m *metaCache) changeOf(req *msg.MetaRequest) *change {
	ch := new(change)
	attr := func(ino uint64) {
		if !slices.Contains(ch.attrs, id.Ino(ino)) {
			ch.attrs = append(ch.attrs, id.Ino(ino))
		}
	}
	name := func(dir uint64, name []byte) {
		attr(dir)
		ch.names = append(ch.names, nameIn{id.Ino(dir), name})
	}
	behind := func(dir uint64, name []byte) {
		d, known := m.name(id.Ino(dir), name)
		switch {
		case !known:
			ch.wild = true
		case d != nil:
			attr(d.Ino)
		}
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Create:
		name(op.Create.Parent, op.Create.Name)
	case *msg.MetaRequest_Link:
		attr(op.Link.Ino)
		name(op.Link.Parent, op.Link.Name)
	case *msg.MetaRequest_Remove:
		behind(op.Remove.Parent, op.Remove.Name)
		name(op.Remove.Parent, op.Remove.Name)
	case *msg.MetaRequest_Rename:
		r := op.Rename
		behind(r.Parent, r.Name)
		behind(r.NewParent, r.NewName)
		name(r.Parent, r.Name)
		name(r.NewParent, r.NewName)
	case *msg.MetaRequest_SetAttr:
		attr(op.SetAttr.Ino)
		ch.quiet = op.SetAttr.Flush
	case *msg.MetaRequest_SetXattr:
		attr(op.SetXattr.Ino)
	case *msg.MetaRequest_RemoveXattr:
		attr(op.RemoveXattr.Ino)
	case *msg.MetaRequest_SetPolicy:
		attr(op.SetPolicy.Ino)
	case *msg.MetaRequest_AllocChunk:
		attr(op.AllocChunk.Ino)
		ch.quiet = true
	case *msg.MetaRequest_WriteDone:
		attr(op.WriteDone.Ino)
		ch.quiet = true
	case *msg.MetaRequest_Append:
		attr(op.Append.Ino)
		ch.quiet = true
	}
	return ch
}

// begin marks what a change touches, before it is sent.
func (m *metaCache) begin(ch *change) {
	for _, ino := range ch.attrs {
		s := m.shard(ino)
		s.mu.Lock()
		s.needBusy(ino).attr++
		s.mu.Unlock()
	}
	for _, n := range ch.names {
		s := m.shard(n.dir)
		s.mu.Lock()
		b := s.needBusy(n.dir)
		if b.names == nil {
			b.names = make(map[string]*pending)
		}
		p := b.names[string(n.name)]
		if p == nil {
			p = new(pending)
			b.names[string(n.name)] = p
		}
		p.n++
		p.conflict = p.conflict || p.n > 1
		s.mu.Unlock()
	}
	if ch.wild {
		m.wild.Add(1)
	}
	ch.start = m.now()
}

// outcome of a change.
type changeResult uint8

const (
	changeDone    changeResult = iota
	changeRefused              // nothing was changed
	changeUnknown
)

// end takes the outcome of a change and returns whose attributes it has changed, which the kernel must forget.
func (m *metaCache) end(ch *change, req *msg.MetaRequest, reply *msg.MetaReply, result changeResult) []id.Ino {
	stale := ch.attrs
	if result == changeDone {
		if reply.Attr != nil && !slices.Contains(stale, id.Ino(reply.Attr.Ino)) && !isCreate(req) {
			stale = append(stale, id.Ino(reply.Attr.Ino))
		}
		for _, a := range reply.Touched {
			if !slices.Contains(stale, id.Ino(a.Ino)) {
				stale = append(stale, id.Ino(a.Ino))
			}
		}
	}
	for _, n := range ch.names {
		m.endName(ch, n, req, reply, result)
	}
	for i, ino := range stale {
		m.endAttr(ch, ino, i < len(ch.attrs), reply, result)
	}
	if result == changeDone && isCreate(req) && reply.Attr != nil {
		m.created(ch, req, reply)
	}
	if r := req.GetRename(); r != nil && result == changeDone && reply.Attr.GetType() == msg.FileType_DIRECTORY {
		parent := r.NewParent
		if r.Exchange {
			parent = 0
		}
		m.moved(id.Ino(reply.Attr.Ino), parent)
	}
	if ch.wild {
		m.wild.Add(-1)
	}
	if m.total.Load() > m.limit {
		m.trim()
	}
	if result == changeRefused || ch.quiet {
		return nil
	}
	return stale
}

func isCreate(req *msg.MetaRequest) bool {
	_, ok := req.Op.(*msg.MetaRequest_Create)
	return ok
}

// endAttr takes the attributes of one inode after a change.
func (m *metaCache) endAttr(ch *change, ino id.Ino, marked bool, reply *msg.MetaReply, result changeResult) {
	var a *msg.Attr
	granted := false
	if result == changeDone {
		a, granted = attrIn(reply, ino)
	}
	s := m.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if marked {
		b := s.busy[ino]
		b.attr--
		s.tidyBusy(ino, b)
	}
	if result == changeRefused {
		return
	}
	before := m.changed.at(hashIno(ino)).Load()
	m.stamp(&m.changed, hashIno(ino))
	r := s.m[ino]
	held := r != nil && r.attr != nil
	switch {
	case a != nil && a.Nlink > 0 && (held || granted && before <= ch.start && m.keepable(ino, ch.start)):
		m.putAttr(s, a, reply.Index) // whoever held it keeps it
	case held:
		r.attr = nil
		m.total.Add(-1)
		s.tidy(r)
	}
}

// attrIn finds the attributes of an inode in an answer, and reports whether it grants them.
func attrIn(reply *msg.MetaReply, ino id.Ino) (a *msg.Attr, granted bool) {
	if reply.Attr != nil && id.Ino(reply.Attr.Ino) == ino {
		return reply.Attr, reply.Grant.GetAttr()
	}
	for _, t := range reply.Touched {
		if id.Ino(t.Ino) == ino {
			return t, false
		}
	}
	return nil, false
}

// endName takes what a change made of a name.
func (m *metaCache) endName(ch *change, n nameIn, req *msg.MetaRequest, reply *msg.MetaReply, result changeResult) {
	var d *msg.Dirent
	known := false
	if result == changeDone {
		d, known = m.nameAfter(n, req, reply)
	}
	s := m.shard(n.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.busy[n.dir]
	p := b.names[string(n.name)]
	if p.n--; p.n == 0 {
		delete(b.names, string(n.name))
	}
	defer s.tidyBusy(n.dir, b)
	if result == changeRefused {
		return
	}
	m.stamp(&m.named, hashName(n.dir, n.name))
	for _, f := range b.readings {
		if f.changed == nil {
			f.changed = make(map[string]struct{})
		}
		f.changed[string(n.name)] = struct{}{}
	}
	keep := known && !p.conflict && m.keepable(n.dir, ch.start)
	r := s.m[n.dir]
	if r == nil || r.names == nil {
		if !keep || !reply.Grant.GetNames() {
			return
		}
		r = s.need(n.dir)
		r.names = newNames()
		m.total.Add(1)
	}
	m.total.Add(-r.weight())
	switch {
	case !keep: // others may have changed it since
		r.names.forget(n.name)
	case d == nil:
		r.names.unset(n.name)
	default:
		r.names.set(d)
	}
	m.total.Add(r.weight())
}

// nameAfter returns what a name means after a change, nil if it is gone. Cookies are those that mds/state gives: twice the index of the
// event.
func (m *metaCache) nameAfter(n nameIn, req *msg.MetaRequest, reply *msg.MetaReply) (d *msg.Dirent, known bool) {
	entry := func(a *msg.Attr) (*msg.Dirent, bool) {
		if a == nil || reply.Index == 0 {
			return nil, false
		}
		return &msg.Dirent{Ino: a.Ino, Type: a.Type, Name: slices.Clone(n.name), Cookie: reply.Index << 1}, true
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Create:
		if op.Create.Exclusive { // else it may have been there
			return entry(reply.Attr)
		}
	case *msg.MetaRequest_Link:
		return entry(reply.Attr)
	case *msg.MetaRequest_Remove:
		return nil, true
	case *msg.MetaRequest_Rename:
		r := op.Rename
		if r.Exchange || reply.Attr == nil {
			return nil, false
		}
		if id.Ino(r.NewParent) == n.dir && string(r.NewName) == string(n.name) {
			return entry(reply.Attr)
		}
		// A rename to another name of the same inode leaves both.
		return nil, reply.Attr.Nlink < 2 || reply.Attr.Type == msg.FileType_DIRECTORY
	}
	return nil, false
}

// created keeps what a create has granted of the new inode.
func (m *metaCache) created(ch *change, req *msg.MetaRequest, reply *msg.MetaReply) {
	if reply.Grant.GetAttr() {
		m.learnAttr(reply.Attr, reply.Index, ch.start)
	}
	ino := id.Ino(reply.Attr.Ino)
	if !reply.Grant.GetNewNames() || reply.Attr.Type != msg.FileType_DIRECTORY {
		return
	}
	s := m.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.m[ino]
	if !m.keepable(ino, ch.start) || s.busy[ino] != nil || r != nil && r.names != nil {
		return
	}
	if r == nil {
		r = s.need(ino)
	}
	r.names, r.parent = newNames(), req.GetCreate().GetParent()
	r.names.complete, r.names.ordered = true, true
	m.total.Add(1)
}

// moved notes where a directory is after a rename; 0 for not known.
func (m *metaCache) moved(ino id.Ino, parent uint64) {
	s := m.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.m[ino]; r != nil {
		r.parent = parent
	}
}
