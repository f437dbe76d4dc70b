package state

import (
	"varve/internal/id"
	"varve/internal/invariant"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// Apply makes the state what it is after ev, the next event of the log, and sets ev.Index. It cannot
// fail: an event that does not fit is a bug, and panics with what differs.
func (s *State) Apply(ev *event.Event) {
	s.index++
	ev.Index = uint64(s.index)
	if _, ok := ev.Body.(*event.Event_ClusterInit); ok != (s.index == 1) {
		s.misfit("cluster init: only the first event is it, got %s", event.Kind(ev))
	}
	switch b := ev.Body.(type) {
	case *event.Event_ClusterInit:
		s.clusterInit(ev, b.ClusterInit)
	case *event.Event_SessionOpen:
		s.sessionOpen(ev, b.SessionOpen)
	case *event.Event_SessionClose:
		s.sessionClose(b.SessionClose)
	case *event.Event_SessionForgotten:
		s.sessionForgotten(b.SessionForgotten)
	case *event.Event_Create:
		s.create(ev, b.Create)
	case *event.Event_Link:
		s.link(ev, b.Link)
	case *event.Event_Remove:
		s.remove(ev, b.Remove)
	case *event.Event_Rename:
		s.rename(ev, b.Rename)
	case *event.Event_SetAttr:
		s.setAttr(ev, b.SetAttr)
	case *event.Event_SetXattr:
		s.setXattr(ev, b.SetXattr)
	case *event.Event_RemoveXattr:
		s.removeXattr(ev, b.RemoveXattr)
	case *event.Event_LeaseSet:
		s.leaseSet(ev, b.LeaseSet)
	case *event.Event_LockSet:
		s.lockSet(b.LockSet)
	case *event.Event_PolicySet:
		s.policySet(ev, b.PolicySet)
	case *event.Event_ChunkAlloc:
		s.chunkAlloc(b.ChunkAlloc)
	case *event.Event_ReplicaDrop:
		s.replicaDrop(b.ReplicaDrop)
	case *event.Event_ReplicaJoin:
		s.replicaJoin(b.ReplicaJoin)
	case *event.Event_ReplicaSync:
		s.replicaSync(b.ReplicaSync)
	case *event.Event_ServerLost:
		s.dropServer(id.ServerID(b.ServerLost.Server))
	case *event.Event_Purged:
		s.purged(b.Purged)
	case *event.Event_PunchDone:
		s.punchDone(id.Ino(b.PunchDone.Ino))
	case *event.Event_Settled:
		s.settled(id.Ino(b.Settled.Ino))
	case *event.Event_ReplicaAccept:
		s.replicaAccept(b.ReplicaAccept)
	case *event.Event_BadBlocks:
		// It is there to be read; nothing changes.
	case *event.Event_ServerAdd:
		s.serverAdd(b.ServerAdd)
	case *event.Event_ServerUpdate:
		s.serverUpdate(b.ServerUpdate)
	case *event.Event_ServerRetire:
		s.serverRetire(id.ServerID(b.ServerRetire.Id))
	case *event.Event_ServerMode:
		s.serverMode(b.ServerMode)
	case *event.Event_MetaAdd:
		s.metaAdd(b.MetaAdd)
	case *event.Event_MetaUpdate:
		s.metaUpdate(b.MetaUpdate)
	case *event.Event_MetaRemove:
		s.metaRemove(id.MetaID(b.MetaRemove.Id))
	case *event.Event_ConfigSet:
		s.configSet(b.ConfigSet)
	case *event.Event_SecuritySet:
		s.securitySet(b.SecuritySet)
	case *event.Event_CertIssue:
		s.certIssue(b.CertIssue)
	case *event.Event_CertRevoke:
		s.certRevoke(b.CertRevoke)
	case *event.Event_Digest:
		// The server compares it; nothing changes.
	default:
		s.misfit("event without a known body: a newer version wrote it, or it is empty")
	}
	s.remember(ev)
}

// misfit stops the process: an event does not fit the state.
func (s *State) misfit(format string, args ...any) {
	invariant.Failf("event %d: "+format, append([]any{uint64(s.index)}, args...)...)
}

// must returns the inode, which has to exist.
func (s *State) must(ino id.Ino, what string) *Inode {
	n, ok := s.inodes.Get(uint64(ino))
	if !ok {
		s.misfit("%s: inode %v does not exist", what, ino)
	}
	return n
}

// mustDir returns the directory, which has to exist.
func (s *State) mustDir(ino id.Ino, what string) *Inode {
	n := s.must(ino, what)
	if !n.IsDir() {
		s.misfit("%s: inode %v is a %v, not a directory", what, ino, n.Type())
	}
	return n
}

// mustName returns the dentry, which has to exist and name ino.
func (s *State) mustName(parent id.Ino, name string, ino id.Ino, what string) *Dentry {
	d, ok := findName(s.dentries, parent, name)
	if !ok || d.Ino != ino {
		s.misfit("%s: %q in %v: want inode %v, got %+v", what, name, parent, ino, d)
	}
	return d
}

func (s *State) clusterInit(ev *event.Event, b *event.ClusterInit) {
	if len(b.Uuid) != len(s.cluster) {
		s.misfit("cluster init: uuid of %d bytes", len(b.Uuid))
	}
	copy(s.cluster[:], b.Uuid)
	s.name = b.Name
	s.putInode(&Inode{
		Ino: id.Root, Parent: id.Root, Atime: ev.Time, Mtime: ev.Time, Ctime: ev.Time, Btime: ev.Time,
		UID: b.Uid, GID: b.Gid, mode: modeOf(msg.FileType_DIRECTORY, b.Perm),
	})
	s.lastIno = id.Root
}

func modeOf(t msg.FileType, perm uint32) uint16 { return uint16(t)<<typeShift | uint16(perm&permMask) }

// cookie returns the readdir cookie of a name made by this event.
func (s *State) cookie(side uint64) uint64 { return uint64(s.index)<<1 | side }

// touchDir records that names in the directory changed; subdirs is how many more subdirectories it has.
func (s *State) touchDir(dir *Inode, time int64, subdirs int) {
	c := *dir
	c.Mtime, c.Ctime = time, time
	c.count = uint32(int(c.count) + subdirs)
	s.putInode(&c)
}

func (s *State) create(ev *event.Event, b *event.Create) {
	parent, ino, typ := id.Ino(b.Parent), id.Ino(b.Ino), msg.FileType(b.Type)
	dir := s.mustDir(parent, "create")
	if typ < msg.FileType_REGULAR || typ > msg.FileType_SOCKET || ino == 0 {
		s.misfit("create: inode %v of type %v", ino, typ)
	}
	n := &Inode{
		Ino: ino, Parent: parent, Atime: ev.Time, Mtime: ev.Time, Ctime: ev.Time, Btime: ev.Time,
		UID: b.Uid, GID: b.Gid, mode: modeOf(typ, b.Perm),
	}
	if b.Rdev != 0 || len(b.Target) > 0 {
		n.rare = &rare{rdev: b.Rdev, target: string(b.Target)}
		n.Size = uint64(len(b.Target))
	}
	subdirs := 0
	if n.IsDir() {
		subdirs = 1
	} else {
		n.links = 1
	}
	if old, ok := s.putInode(n); ok {
		s.misfit("create: inode %v exists as %v", ino, old.Type())
	}
	s.lastIno = max(s.lastIno, ino)
	s.addName(&Dentry{Parent: parent, Ino: ino, Cookie: s.cookie(0), Name: string(b.Name), Type: typ})
	s.touchDir(dir, ev.Time, subdirs)
	if b.Want != 0 {
		s.setLease(ino, id.SessionID(ev.Cause.GetSession()), msg.Want(b.Want))
	}
}

func (s *State) link(ev *event.Event, b *event.Link) {
	dir, n := s.mustDir(id.Ino(b.Parent), "link"), s.must(id.Ino(b.Ino), "link")
	if n.IsDir() || n.links == 0 || n.links == maxLinks {
		s.misfit("link: inode %v is a %v with %d links", n.Ino, n.Type(), n.links)
	}
	s.addName(&Dentry{Parent: dir.Ino, Ino: n.Ino, Cookie: s.cookie(0), Name: string(b.Name), Type: n.Type()})
	s.touchDir(dir, ev.Time, 0)
	c := *n
	c.links++
	c.Ctime = ev.Time
	s.putInode(&c)
}

func (s *State) remove(ev *event.Event, b *event.Remove) {
	dir, ino := s.mustDir(id.Ino(b.Parent), "remove"), id.Ino(b.Ino)
	s.dropName(s.mustName(dir.Ino, string(b.Name), ino, "remove"))
	n := s.must(ino, "remove")
	if n.IsDir() != b.Dir {
		s.misfit("remove: inode %v is a %v, dir is %v", ino, n.Type(), b.Dir)
	}
	s.touchDir(dir, ev.Time, -dirs(n))
	s.unlinked(n, ev.Time)
}

// dirs returns 1 for a directory and 0 for others.
func dirs(n *Inode) int {
	if n.IsDir() {
		return 1
	}
	return 0
}

// unlinked records that n has one name less.
func (s *State) unlinked(n *Inode, time int64) {
	if n.IsDir() {
		if !s.Empty(n.Ino) {
			s.misfit("directory %v removed: not empty", n.Ino)
		}
		s.deleteInode(n)
		return
	}
	if n.links == 1 && !s.anyLease(n.Ino) {
		s.deleteInode(n)
		return
	}
	c := *n
	c.links--
	c.Ctime = time
	s.putInode(&c)
	if c.links == 0 {
		s.orphans.ReplaceOrInsert(c.Ino)
	}
}

// reap deletes the inode if it has neither names nor holders.
func (s *State) reap(n *Inode) {
	if n.Nlink() == 0 && !s.anyLease(n.Ino) {
		s.deleteInode(n)
	}
}

func (s *State) anyLease(ino id.Ino) bool {
	found := false
	if s.leases.Len() > 0 {
		s.Leases(ino, func(Lease) bool { found = true; return false })
	}
	return found
}

// deleteInode removes all that belongs to n but names and leases, of which there are none.
func (s *State) deleteInode(n *Inode) {
	if n.Chunks() > 0 {
		s.freeFrom(n.Ino, 0)
	}
	s.dropInode(n)
	if s.locks.Len() > 0 {
		s.delLocks(&fileLocks{ino: n.Ino})
	}
	if n.Nlink() == 0 {
		s.orphans.Delete(n.Ino)
	}
	if n.Unsettled() {
		s.unsettled.Delete(n.Ino)
	}
	if _, ok := n.Punch(); ok {
		s.punching.Delete(n.Ino)
		s.dropNote(notePuncher, uint64(n.Ino))
	}
	if n.IsRegular() {
		s.dropNote(noteWriter, uint64(n.Ino))
	}
}

func (s *State) rename(ev *event.Event, b *event.Rename) {
	from, to := id.Ino(b.Parent), id.Ino(b.NewParent)
	n := s.must(id.Ino(b.Ino), "rename")
	old := s.mustName(from, string(b.Name), n.Ino, "rename")
	s.dropName(old)
	var other *Inode
	if b.Replaced != 0 {
		other = s.must(id.Ino(b.Replaced), "rename onto")
		s.dropName(s.mustName(to, string(b.NewName), other.Ino, "rename onto"))
	} else if b.Exchange {
		s.misfit("rename: exchange of %v with nothing", n.Ino)
	}
	s.addName(&Dentry{Parent: to, Ino: n.Ino, Cookie: s.cookie(0), Name: string(b.NewName), Type: n.Type()})
	// Directories gain and lose "..", in this order: what leaves, what comes.
	leave, come := -dirs(n), dirs(n)
	if b.Exchange {
		s.addName(&Dentry{Parent: from, Ino: other.Ino, Cookie: s.cookie(1), Name: string(b.Name), Type: other.Type()})
		leave, come = leave+dirs(other), come-dirs(other)
		s.moved(other, to, from, ev.Time)
	} else if other != nil {
		come -= dirs(other)
	}
	s.moved(n, from, to, ev.Time)
	if from == to {
		s.touchDir(s.mustDir(from, "rename"), ev.Time, leave+come)
	} else {
		s.touchDir(s.mustDir(from, "rename"), ev.Time, leave)
		s.touchDir(s.mustDir(to, "rename"), ev.Time, come)
	}
	if other != nil && !b.Exchange {
		s.unlinked(s.must(other.Ino, "rename onto"), ev.Time)
	}
	if from != to {
		s.reaches(n, to)
		if b.Exchange {
			s.reaches(other, from)
		}
	}
}

// reaches checks that a directory that moved into another is still below the root.
func (s *State) reaches(n *Inode, dir id.Ino) {
	if !n.IsDir() {
		return
	}
	for up := dir; up != id.Root; up = s.must(up, "rename").Parent {
		if up == n.Ino {
			s.misfit("rename: directory %v into %v, which is below it", n.Ino, dir)
		}
	}
}

// moved records that the name of n in the directory from is now in to.
func (s *State) moved(n *Inode, from, to id.Ino, time int64) {
	c := *s.must(n.Ino, "rename")
	c.Ctime = time
	if c.Parent == from {
		c.Parent = to
	}
	s.putInode(&c)
}

// maxLinks is the largest number of names of an inode.
const maxLinks = 65000

func (s *State) setAttr(ev *event.Event, b *event.SetAttr) {
	n := s.must(id.Ino(b.Ino), "set attributes")
	if b.Size != nil && *b.Size < n.Size {
		n = s.truncate(n, *b.Size, id.SessionID(b.Puncher))
	}
	c := *n
	if b.Perm != nil {
		c.mode = c.mode&^permMask | uint16(*b.Perm)&permMask
	}
	if b.Uid != nil {
		c.UID = *b.Uid
	}
	if b.Gid != nil {
		c.GID = *b.Gid
	}
	if b.Size != nil {
		c.Size = *b.Size
	}
	if b.Atime != nil {
		c.Atime = *b.Atime
	}
	if b.Mtime != nil {
		c.Mtime = *b.Mtime
	}
	c.Ctime = ev.Time
	s.putInode(&c)
}

func (s *State) setXattr(ev *event.Event, b *event.SetXattr) {
	n := s.must(id.Ino(b.Ino), "set xattr").withRare(func(r *rare) {
		x := Xattr{Name: string(b.Name), Value: string(b.Value)}
		list := append([]Xattr(nil), r.xattrs...)
		if i, ok := findXattr(list, x.Name); ok {
			list[i] = x
		} else {
			list = append(list[:i:i], append([]Xattr{x}, list[i:]...)...)
		}
		r.xattrs = list
	})
	if b.Perm != nil {
		n.mode = n.mode&^permMask | uint16(*b.Perm)&permMask
	}
	n.Ctime = ev.Time
	s.putInode(n)
}

func (s *State) removeXattr(ev *event.Event, b *event.RemoveXattr) {
	n := s.must(id.Ino(b.Ino), "remove xattr").withRare(func(r *rare) {
		i, ok := findXattr(r.xattrs, string(b.Name))
		if !ok {
			s.misfit("remove xattr %q of %v: it has none", b.Name, b.Ino)
		}
		r.xattrs = append(r.xattrs[:i:i], r.xattrs[i+1:]...)
	})
	n.Ctime = ev.Time
	s.putInode(n)
}

func (s *State) policySet(ev *event.Event, b *event.PolicySet) {
	p := Policy{Norm: b.Norm, Min: b.Min, Tier: uint8(b.Tier), Domain: Domain(b.Domain), Prefer: b.Prefer}
	if !p.Valid() || b.Tier > AnyTier || b.Domain > uint32(Room) {
		s.misfit("policy of %d: %+v", b.Ino, b)
	}
	old := s.must(id.Ino(b.Ino), "set policy")
	n := old.withRare(func(r *rare) { r.policy = p })
	n.Ctime = ev.Time
	s.putInode(n)
	if own := old.OwnPolicy(); own.Norm != p.Norm || own.Min != p.Min || own == p {
		s.renorm(n.Ino)
	}
}

// renorm gives the chunks at and below ino that inherit from it their new norm.
func (s *State) renorm(ino id.Ino) {
	queue := []id.Ino{ino}
	for len(queue) > 0 {
		n, ok := s.Inode(queue[len(queue)-1])
		queue = queue[:len(queue)-1]
		if !ok {
			continue
		}
		if n.Chunks() > 0 {
			s.setNorm(n.Ino, s.Policy(n.Ino).Norm)
		}
		if !n.IsDir() {
			continue
		}
		s.Dentries(n.Ino, 0, func(d *Dentry) bool {
			if c, ok := s.Inode(d.Ino); ok && c.Parent == n.Ino && c.OwnPolicy().Norm == 0 {
				queue = append(queue, d.Ino)
			}
			return true
		})
	}
}

func (s *State) setNorm(ino id.Ino, norm uint32) {
	var list []*Chunk
	s.Chunks(ino, 0, maxChunks, func(c *Chunk) bool {
		if c.Norm() != int(norm) {
			list = append(list, c)
		}
		return true
	})
	for _, old := range list {
		r := *old.set
		r.norm = norm
		s.replaceChunk(old, s.with(old, old.Epoch(), r))
	}
}

func (s *State) configSet(b *event.ConfigSet) {
	if b.Value == "" {
		s.dropSetting(b.Key)
	} else {
		s.putSetting(Setting{Key: b.Key, Value: b.Value})
	}
	if b.Key == ConfigReplicas {
		s.policy = s.configPolicy()
		s.renorm(id.Root)
	}
}

// configPolicy returns the default policy that the settings say.
func (s *State) configPolicy() Policy {
	if p, ok := ParsePolicy(s.Config(ConfigReplicas)); ok {
		return p
	}
	return defaultPolicy
}
