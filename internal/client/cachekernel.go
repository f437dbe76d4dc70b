package client

import (
	"context"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// MetaNotifier is a Notifier that makes the kernel forget names and attributes, and returns when it will not use them
// again. The calls take no lock that an operation may hold while it waits for a metadata server.
type MetaNotifier interface {
	// ForgetMeta drops the attributes of inodes and the names in directories.
	ForgetMeta(attrs, dirs []id.Ino)
	// ForgetAttrs drops the attributes of inodes that this mount itself has changed.
	ForgetAttrs(inos []id.Ino)
	// ForgetAllMeta drops all names and attributes.
	ForgetAllMeta()
}

func (c *Client) metaNotifier() MetaNotifier {
	n := c.notifier.Load()
	if n == nil {
		return nil
	}
	m, _ := (*n).(MetaNotifier)
	return m
}

// forgetAttrs is for after a change of our own: an answer with what was true before it may be on its way into the kernel.
func (c *Client) forgetAttrs(inos []id.Ino) {
	if n := c.metaNotifier(); n != nil {
		n.ForgetAttrs(inos)
	}
}

// dropMeta forgets every grant, here and in the kernel.
func (c *Client) dropMeta() {
	c.cache.drop()
	if n := c.metaNotifier(); n != nil {
		n.ForgetAllMeta()
	}
}

// meta carries out a META callback.
func (c *Client) meta(cb *msg.Callback) {
	c.cache.recall(cb.Attrs, cb.Names)
	n := c.metaNotifier()
	if n == nil {
		return
	}
	attrs, dirs := make([]id.Ino, len(cb.Attrs)), make([]id.Ino, len(cb.Names))
	for i, ino := range cb.Attrs {
		attrs[i] = id.Ino(ino)
	}
	for i, ino := range cb.Names {
		dirs[i] = id.Ino(ino)
	}
	n.ForgetMeta(attrs, dirs)
}

// Hold says for how long the kernel may keep an answer that is about to be written to it: a, and with a parent that name is a
// there, or not there if a is nil. Nothing of it is taken back before Unhold, which is called with the same arguments.
func (c *Client) Hold(parent id.Ino, name []byte, a *msg.Attr) (entry, attr time.Duration) {
	return c.cache.hold(parent, name, a)
}

// Unhold ends Hold.
func (c *Client) Unhold(parent id.Ino, a *msg.Attr) { c.cache.unhold(parent, a) }

// lookup answers from the cache; ok is false if the leader must be asked. Nothing is checked: a caller whose rights the kernel has
// not checked asks the leader. A mount has default_permissions, so for it the kernel checks the right to search, by
// attributes of the directory that it has under the same lease.
func (c *Client) lookup(cred *msg.Cred, parent id.Ino, name []byte) (a *msg.Attr, err error, ok bool) {
	if !cred.GetChecked() || !c.cache.usable() || string(name) == "." || string(name) == ".." {
		return nil, nil, false
	}
	d, known := c.cache.name(parent, name)
	switch {
	case !known:
		return nil, nil, false
	case d == nil:
		return nil, fserr.NotExist, true
	}
	a = c.cache.attr(id.Ino(d.Ino))
	return a, nil, a != nil
}

const (
	dirPage      = 8192 // entries asked for at once: with the longest names and attributes still below the limit of a frame
	aheadMisses  = 4    // lookups in one directory that were not answered from the cache, before a page of it is fetched
	aheadAgain   = 64   // and at least so many after the whole directory was
	aheadTimeout = 10 * time.Second
)

// ahead is the reading of a directory, with attributes, for whoever looks up one name after another in it.
type ahead struct {
	misses  int // since the last page
	need    int // misses that the next page takes; 0 is aheadMisses
	cookie  uint64
	running bool
}

// missed notes that the leader had to be asked for a name, and fetches a page of the directory when that happens often.
func (c *Client) missed(dir id.Ino) {
	m := &c.cache
	s := m.shard(dir)
	s.mu.Lock()
	r := s.m[dir]
	if r == nil || r.names == nil {
		s.mu.Unlock()
		return
	}
	n := r.names
	a := &n.ahead
	a.misses++
	if a.running || a.misses < max(a.need, aheadMisses) || m.total.Load() > m.limit*3/4 {
		s.mu.Unlock()
		return
	}
	a.running, a.misses = true, 0
	cookie := a.cookie
	s.mu.Unlock()
	if !c.background(func() { c.fetchAhead(dir, n, cookie) }) {
		return // the client is closed
	}
}

func (c *Client) fetchAhead(dir id.Ino, n *names, cookie uint64) {
	ctx, cancel := context.WithTimeout(c.ctx, aheadTimeout)
	defer cancel()
	reply, err := c.do(ctx, nil, &msg.MetaRequest{Cred: &msg.Cred{Checked: true}, Op: &msg.MetaRequest_ReadDir{ReadDir: &msg.ReadDir{
		Ino: uint64(dir), Cookie: cookie, Max: dirPage, Plus: true}}})
	s := c.cache.shard(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &n.ahead
	a.running = false
	r := reply.GetReadDir()
	switch {
	case err != nil || r.GetEnd() || len(r.GetEntries()) == 0:
		a.cookie, a.need = 0, max(aheadAgain, len(n.m)/8)
	default:
		a.cookie, a.need = r.Entries[len(r.Entries)-1].Cookie, aheadMisses
	}
}
