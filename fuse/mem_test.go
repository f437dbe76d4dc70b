package fuse

import (
	"bytes"
	"context"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// memFS is a Backend in memory, as plain as it can be: one lock, maps.
type memFS struct {
	mu      sync.Mutex
	changed *sync.Cond // locks were given back
	inodes  map[id.Ino]*memInode
	last    id.Ino
	cookie  uint64

	opens, releases, largest atomic.Int64
	stalled                  chan struct{} // gets one element for each read of the file "stall" that has begun
	notifier                 Notifier
}

type memInode struct {
	attr    *msg.Attr
	parent  id.Ino
	names   map[string]*memName
	target  []byte
	xattrs  map[string][]byte
	pages   map[int64][]byte
	locks   []*msg.Lock
	stalled bool
}

type memName struct {
	ino    id.Ino
	cookie uint64
}

var (
	_ Backend        = (*memFS)(nil)
	_ NotifierSetter = (*memFS)(nil)
)

func newMemFS() *memFS {
	m := &memFS{inodes: make(map[id.Ino]*memInode), last: id.Root, stalled: make(chan struct{}, 64)}
	m.changed = sync.NewCond(&m.mu)
	m.inodes[id.Root] = m.newInode(id.Root, msg.FileType_DIRECTORY, 0o755)
	return m
}

func (m *memFS) SetNotifier(n Notifier) { m.notifier = n }

func (m *memFS) newInode(ino id.Ino, t msg.FileType, perm uint32) *memInode {
	now := time.Now().UnixNano()
	n := &memInode{
		attr:  &msg.Attr{Ino: uint64(ino), Type: t, Perm: perm, Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now},
		names: make(map[string]*memName), xattrs: make(map[string][]byte), pages: make(map[int64][]byte),
	}
	if t == msg.FileType_DIRECTORY {
		n.attr.Nlink = 2
	}
	return n
}

func (m *memFS) dir(ino id.Ino) (*memInode, error) {
	n := m.inodes[ino]
	if n == nil {
		return nil, fserr.Stale
	}
	if n.attr.Type != msg.FileType_DIRECTORY {
		return nil, fserr.NotDir
	}
	return n, nil
}

func (m *memFS) child(parent id.Ino, name []byte) (*memInode, error) {
	d, err := m.dir(parent)
	if err != nil {
		return nil, err
	}
	e := d.names[string(name)]
	if e == nil {
		return nil, fserr.NotExist
	}
	return m.inodes[e.ino], nil
}

func (m *memFS) Lookup(_ context.Context, _ *msg.Cred, parent id.Ino, name []byte) (*msg.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.child(parent, name)
	if err != nil {
		return nil, err
	}
	return dup(n.attr), nil
}

func (m *memFS) put(d *memInode, name []byte, ino id.Ino) {
	m.cookie++
	d.names[string(name)] = &memName{ino, m.cookie}
}

func (m *memFS) Create(_ context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(id.Ino(req.Parent))
	if err != nil {
		return nil, nil, err
	}
	if d.names[string(req.Name)] != nil {
		return nil, nil, fserr.Exist
	}
	m.last++
	n := m.newInode(m.last, req.Type, req.Perm)
	n.attr.Uid, n.attr.Gid, n.attr.Rdev = cred.Uid, cred.Gid, req.Rdev
	n.target, n.parent = bytes.Clone(req.Target), id.Ino(req.Parent)
	n.stalled = string(req.Name) == "stall"
	if req.Type == msg.FileType_SYMLINK {
		n.attr.Size = uint64(len(req.Target))
	}
	m.inodes[m.last] = n
	m.put(d, req.Name, m.last)
	if !req.Open {
		return dup(n.attr), nil, nil
	}
	return dup(n.attr), m.handle(n), nil
}

func (m *memFS) handle(n *memInode) Handle {
	m.opens.Add(1)
	return &memHandle{m, n}
}

func (m *memFS) Link(_ context.Context, _ *msg.Cred, ino, parent id.Ino, name []byte) (*msg.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(parent)
	if err != nil {
		return nil, err
	}
	if d.names[string(name)] != nil {
		return nil, fserr.Exist
	}
	n := m.inodes[ino]
	if n == nil {
		return nil, fserr.Stale
	}
	n.attr.Nlink++
	m.put(d, name, ino)
	return dup(n.attr), nil
}

func (m *memFS) Remove(_ context.Context, _ *msg.Cred, parent id.Ino, name []byte, dir bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.child(parent, name)
	if err != nil {
		return err
	}
	if isDir := n.attr.Type == msg.FileType_DIRECTORY; dir && !isDir {
		return fserr.NotDir
	} else if !dir && isDir {
		return fserr.IsDir
	}
	if len(n.names) > 0 {
		return fserr.NotEmpty
	}
	n.attr.Nlink--
	delete(m.inodes[parent].names, string(name)) // the inode stays in the map: a leak, for simplicity
	return nil
}

func (m *memFS) Rename(_ context.Context, _ *msg.Cred, req *msg.Rename) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, err := m.dir(id.Ino(req.Parent))
	if err != nil {
		return err
	}
	to, err := m.dir(id.Ino(req.NewParent))
	if err != nil {
		return err
	}
	src, dst := from.names[string(req.Name)], to.names[string(req.NewName)]
	switch {
	case src == nil || req.Exchange && dst == nil:
		return fserr.NotExist
	case req.NoReplace && dst != nil:
		return fserr.Exist
	case req.Exchange:
		src.ino, dst.ino = dst.ino, src.ino
		return nil
	}
	delete(from.names, string(req.Name))
	m.put(to, req.NewName, src.ino)
	return nil
}

func (m *memFS) ReadDir(_ context.Context, _ *msg.Cred, ino id.Ino, cookie uint64, most int, plus bool) (*msg.ReadDirReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(ino)
	if err != nil {
		return nil, err
	}
	reply := &msg.ReadDirReply{Parent: uint64(id.Root)}
	for name, e := range d.names {
		if e.cookie > cookie {
			n := m.inodes[e.ino]
			reply.Entries = append(reply.Entries, &msg.Dirent{Ino: uint64(e.ino), Type: n.attr.Type, Name: []byte(name), Cookie: e.cookie})
		}
	}
	sort.Slice(reply.Entries, func(i, j int) bool { return reply.Entries[i].Cookie < reply.Entries[j].Cookie })
	if len(reply.Entries) > most {
		reply.Entries = reply.Entries[:most]
	}
	if plus {
		for _, e := range reply.Entries {
			e.Attr = dup(m.inodes[id.Ino(e.Ino)].attr)
		}
	}
	return reply, nil
}

func (m *memFS) ReadLink(_ context.Context, ino id.Ino) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.inodes[ino].target), nil
}

func (m *memFS) GetAttr(_ context.Context, ino id.Ino) (*msg.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.inodes[ino]
	if n == nil {
		return nil, fserr.Stale
	}
	n.attr.Blocks = uint64(len(n.pages)) * pageSize / 512
	return dup(n.attr), nil
}

func (m *memFS) SetAttr(_ context.Context, _ *msg.Cred, req *msg.SetAttr) (*msg.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.inodes[id.Ino(req.Ino)]
	a := n.attr
	if req.KillPriv {
		a.Perm &^= 0o4000
		if a.Perm&0o010 != 0 {
			a.Perm &^= 0o2000
		}
	}
	if req.Perm != nil {
		a.Perm = *req.Perm
	}
	if req.Uid != nil {
		a.Uid = *req.Uid
	}
	if req.Gid != nil {
		a.Gid = *req.Gid
	}
	if req.Size != nil {
		n.truncate(*req.Size)
	}
	if req.Atime != nil {
		a.Atime = *req.Atime
	}
	if req.Mtime != nil {
		a.Mtime = *req.Mtime
	}
	if req.MtimeNow {
		a.Mtime = time.Now().UnixNano()
	}
	return dup(a), nil
}

func (m *memFS) GetXattr(_ context.Context, _ *msg.Cred, ino id.Ino, name []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.inodes[ino].xattrs[string(name)]
	if !ok {
		return nil, fserr.NoAttr
	}
	return bytes.Clone(v), nil
}

func (m *memFS) SetXattr(_ context.Context, _ *msg.Cred, req *msg.SetXattr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.inodes[id.Ino(req.Ino)].xattrs
	if _, ok := x[string(req.Name)]; ok && req.Create {
		return fserr.Exist
	} else if !ok && req.Replace {
		return fserr.NoAttr
	}
	x[string(req.Name)] = bytes.Clone(req.Value)
	return nil
}

func (m *memFS) ListXattr(_ context.Context, _ *msg.Cred, ino id.Ino) ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out [][]byte
	for name := range m.inodes[ino].xattrs {
		out = append(out, []byte(name))
	}
	return out, nil
}

func (m *memFS) RemoveXattr(_ context.Context, _ *msg.Cred, ino id.Ino, name []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.inodes[ino].xattrs[string(name)]; !ok {
		return fserr.NoAttr
	}
	delete(m.inodes[ino].xattrs, string(name))
	return nil
}

func (m *memFS) Access(context.Context, *msg.Cred, id.Ino, uint32) error { return nil }

func (m *memFS) StatFS(context.Context) (*msg.StatFSReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &msg.StatFSReply{Total: 1 << 40, Free: 1 << 39, Files: uint64(len(m.inodes)), NameMax: 255}, nil
}

func (m *memFS) Open(_ context.Context, _ *msg.Cred, ino id.Ino, _, trunc bool) (Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.inodes[ino]
	if n == nil {
		return nil, fserr.Stale
	}
	if trunc {
		n.truncate(0)
	}
	return m.handle(n), nil
}

// dup copies a message.
func dup[T proto.Message](m T) T { return proto.Clone(m).(T) }
