package client

import (
	"cmp"
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// names are those of one directory, as granted.
type names struct {
	m        map[string]*msg.Dirent // absent for a name known not to be there. What it points to is never changed
	complete bool                   // a name that is not in m is not there
	// order has the names by cookie, without those known from lookups alone: all of them if ordered, else up to the cookie upto.
	// One that went is left as a mark without inode.
	order   []*msg.Dirent
	ordered bool
	upto    uint64
	gone    int
	ahead   ahead
}

// absent is a name that is known not to be there.
var absent = new(msg.Dirent)

func newNames() *names { return &names{m: make(map[string]*msg.Dirent)} }

// nameLocked looks a name up. known is false if the leader must be asked; d is nil for a name that is not there.
func (m *metaCache) nameLocked(s *cacheShard, dir id.Ino, name []byte) (d *msg.Dirent, known bool) {
	r := s.m[dir]
	if r == nil || r.names == nil {
		return nil, false
	}
	if b := s.busy[dir]; b != nil && b.names[string(name)] != nil {
		return nil, false
	}
	r.touch()
	d = r.names.m[string(name)]
	switch {
	case d == nil:
		return nil, r.names.complete
	case d.Ino == 0:
		return nil, true
	}
	return d, true
}

func (m *metaCache) name(dir id.Ino, name []byte) (d *msg.Dirent, known bool) {
	s := m.shard(dir)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return m.nameLocked(s, dir, name)
}

// set notes that a name is d now. Its cookie is 0 if it is known from a lookup.
func (n *names) set(d *msg.Dirent) {
	n.erase(n.m[string(d.Name)])
	n.m[string(d.Name)] = d
	last := uint64(0)
	if len(n.order) > 0 {
		last = n.order[len(n.order)-1].Cookie
	}
	switch {
	case d.Cookie == 0: // told by a lookup: where it stands in the order is not known
		n.complete = false
		n.disorder()
	case n.complete && n.ordered && d.Cookie > last:
		n.order = append(n.order, d)
	case n.complete || d.Cookie <= n.upto:
		n.disorder()
	}
}

// unset notes that a name is not there.
func (n *names) unset(name []byte) {
	n.erase(n.m[string(name)])
	if n.complete {
		delete(n.m, string(name))
	} else {
		n.m[string(name)] = absent
	}
}

// forget notes that nothing is known of a name.
func (n *names) forget(name []byte) {
	n.erase(n.m[string(name)])
	delete(n.m, string(name))
	n.complete = false
	n.disorder()
}

func (n *names) disorder() { n.order, n.ordered, n.upto, n.gone = nil, false, 0, 0 }

// erase takes an entry out of the order.
func (n *names) erase(d *msg.Dirent) {
	if d == nil || d.Cookie == 0 || len(n.order) == 0 {
		return
	}
	i, found := slices.BinarySearchFunc(n.order, d.Cookie, byCookie)
	if !found || n.order[i].Ino == 0 {
		return
	}
	n.order[i] = &msg.Dirent{Cookie: d.Cookie}
	if n.gone++; n.gone > len(n.order)/2 {
		n.order = slices.DeleteFunc(n.order, func(d *msg.Dirent) bool { return d.Ino == 0 })
		n.gone = 0
	}
}

func byCookie(d *msg.Dirent, cookie uint64) int { return cmp.Compare(d.Cookie, cookie) }

// sort makes the order of a complete directory.
func (n *names) sort() {
	n.order, n.gone = make([]*msg.Dirent, 0, len(n.m)), 0
	for _, d := range n.m {
		n.order = append(n.order, d)
	}
	slices.SortFunc(n.order, func(a, b *msg.Dirent) int { return cmp.Compare(a.Cookie, b.Cookie) })
	n.ordered = true
}

// finish makes a directory complete whose pages were all read.
func (n *names) finish() {
	for name, d := range n.m {
		if d.Cookie == 0 { // not there, or told by a lookup and not listed, so not there any more
			delete(n.m, name)
		}
	}
	n.complete = true
	n.disorder()
}

// readDir returns up to max entries after cookie, or nil if the leader must be asked.
func (m *metaCache) readDir(dir id.Ino, cookie uint64, max int) *msg.ReadDirReply {
	s := m.shard(dir)
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.m[dir]
	if r == nil || r.names == nil || r.parent == 0 && cookie == 0 {
		return nil
	}
	if b := s.busy[dir]; b != nil && len(b.names) > 0 {
		return nil
	}
	n := r.names
	if n.complete && !n.ordered {
		s.mu.RUnlock()
		s.mu.Lock()
		if r.names != nil && r.names.complete && !r.names.ordered {
			r.names.sort()
		}
		s.mu.Unlock()
		s.mu.RLock()
		if r.names != n || !n.ordered || s.m[dir] != r || s.busy[dir] != nil && len(s.busy[dir].names) > 0 {
			return nil
		}
	}
	if !n.complete && cookie >= n.upto {
		return nil
	}
	r.touch()
	i, found := slices.BinarySearchFunc(n.order, cookie, byCookie)
	if found {
		i++
	}
	reply := &msg.ReadDirReply{Parent: r.parent, Entries: make([]*msg.Dirent, 0, min(max, len(n.order)-i))}
	for ; i < len(n.order) && len(reply.Entries) < max; i++ {
		if n.order[i].Ino != 0 {
			reply.Entries = append(reply.Entries, n.order[i])
		}
	}
	if i == len(n.order) {
		reply.End = n.complete
		if !n.complete && len(reply.Entries) == 0 {
			return nil // all that was known is gone: what comes next must be asked for
		}
	}
	return reply
}

// learnName keeps what a lookup said: that a name is d, or with nil that it is not there.
func (m *metaCache) learnName(dir id.Ino, name []byte, d *msg.Dirent, start uint64) {
	s := m.shard(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !m.keepable(dir, start) || m.named.at(hashName(dir, name)).Load() > start {
		return
	}
	r := s.need(dir)
	m.total.Add(-r.weight())
	defer func() { m.total.Add(r.weight()) }()
	if r.names == nil {
		r.names = newNames()
	}
	n := r.names
	old := n.m[string(name)]
	switch {
	case d == nil && old != nil && old.Ino != 0:
		n.forget(name) // which is the newer one cannot be told
	case d == nil:
		n.unset(name)
	case old != nil && old.Ino == d.Ino:
	case n.complete || old != nil && old.Ino != 0:
		n.forget(name)
	default:
		n.m[string(name)] = d
	}
}

// reading is a ReadDir under way, and the names that our own changes have touched since it was sent: what it says of them may
// be old, and what is held is right.
type reading struct {
	dir     id.Ino
	changed map[string]struct{}
}

func (m *metaCache) beginReading(dir id.Ino) *reading {
	f := &reading{dir: dir}
	s := m.shard(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.needBusy(dir)
	b.readings = append(b.readings, f)
	return f
}

func (m *metaCache) endReading(f *reading) {
	s := m.shard(f.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.busy[f.dir]
	b.readings = slices.DeleteFunc(b.readings, func(o *reading) bool { return o == f })
	s.tidyBusy(f.dir, b)
}

// certain reports whether it is known what all these names are and where they stand. After some changes of ours it is not (names.forget),
// and a page that was read meanwhile does not tell either: it may be older.
func (n *names) certain(changed map[string]struct{}) bool {
	for name := range changed {
		if d := n.m[name]; d == nil || d.Ino != 0 && d.Cookie == 0 {
			return false
		}
	}
	return true
}

// learnPage keeps a page of a directory that was asked for after cookie. If it continues what is held from the start, the
// directory is complete when its end was read.
func (m *metaCache) learnPage(f *reading, cookie uint64, reply *msg.ReadDirReply, start uint64) {
	s := m.shard(f.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !m.keepable(f.dir, start) {
		return
	}
	r := s.need(f.dir)
	m.total.Add(-r.weight())
	defer func() { m.total.Add(r.weight()) }()
	if r.names == nil {
		r.names = newNames()
	}
	if reply.Parent != 0 {
		r.parent = reply.Parent
	}
	n := r.names
	if n.complete || int64(len(n.m)) > m.limit/2 {
		return
	}
	inLine := cookie <= n.upto && n.certain(f.changed)
	for _, d := range reply.Entries {
		if d.Cookie == 0 || d.Ino == 0 {
			inLine = false // no server says so
			continue
		}
		old, keep := n.m[string(d.Name)], d
		if _, ours := f.changed[string(d.Name)]; ours {
			if old == nil || old.Cookie != d.Cookie {
				continue // gone, or made again: then it stands further on
			}
		}
		if old != nil && old.Ino == d.Ino && old.Cookie == d.Cookie {
			keep = old
		} else {
			n.erase(old)
			if d.Attr != nil { // they are kept apart
				keep = &msg.Dirent{Ino: d.Ino, Type: d.Type, Name: d.Name, Cookie: d.Cookie}
			}
			n.m[string(d.Name)] = keep
		}
		if inLine && keep.Cookie > n.upto {
			n.order = append(n.order, keep)
		}
	}
	if !inLine {
		return
	}
	if len(reply.Entries) > 0 {
		n.upto = max(n.upto, reply.Entries[len(reply.Entries)-1].Cookie)
	}
	if reply.End {
		n.finish()
	}
}
