package state

import (
	"slices"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// Records are never changed once they are in a tree: Apply replaces them, so whoever got one may keep it.

// Inode is a file of any type. Its size in memory is 80 bytes; what few files have is behind one pointer.
type Inode struct {
	Ino    id.Ino
	Parent id.Ino // directory: the parent (root: itself); others: the directory of the first name, for its policy
	Size   uint64
	Atime  int64
	Mtime  int64
	Ctime  int64
	Btime  int64
	UID    uint32
	GID    uint32
	mode   uint16 // type<<12 | permission bits; bit 15: unsettled
	links  uint16 // names of what is not a directory
	count  uint32 // regular file: chunks; directory: subdirectories
	rare   *rare
}

const (
	unsettledBit = 1 << 15
	typeShift    = 12
	permMask     = 0o7777
)

// rare holds what most inodes do not have.
type rare struct {
	rdev   uint32
	target string
	xattrs []Xattr // by name
	policy Policy
	punch  PendingPunch
	punchy bool
}

func (r *rare) empty() bool {
	return r.rdev == 0 && r.target == "" && len(r.xattrs) == 0 && r.policy == Policy{} && !r.punchy
}

// Xattr is one extended attribute.
type Xattr struct{ Name, Value string }

// PendingPunch is a tail that a truncate left: bytes [From, chunk.Size) of the chunk at Index.
type PendingPunch struct{ Index, From uint32 }

// Type returns what kind of file it is.
func (n *Inode) Type() msg.FileType { return msg.FileType(n.mode >> typeShift & 7) }

// IsDir reports whether it is a directory.
func (n *Inode) IsDir() bool { return n.Type() == msg.FileType_DIRECTORY }

// IsRegular reports whether it is a regular file.
func (n *Inode) IsRegular() bool { return n.Type() == msg.FileType_REGULAR }

// Perm returns the low 12 bits of the mode.
func (n *Inode) Perm() uint32 { return uint32(n.mode) & permMask }

// Unsettled reports whether replicas of its chunks may differ because its writer died.
func (n *Inode) Unsettled() bool { return n.mode&unsettledBit != 0 }

// Nlink returns the number of links: of a directory 2 and one for each subdirectory.
func (n *Inode) Nlink() uint32 {
	if n.IsDir() {
		return 2 + n.count
	}
	return uint32(n.links)
}

// Chunks returns how many chunks a regular file has, 0 for others.
func (n *Inode) Chunks() uint32 {
	if n.IsRegular() {
		return n.count
	}
	return 0
}

// Rdev returns the device number of a device file.
func (n *Inode) Rdev() uint32 {
	if n.rare == nil {
		return 0
	}
	return n.rare.rdev
}

// Target returns where a symlink points to.
func (n *Inode) Target() string {
	if n.rare == nil {
		return ""
	}
	return n.rare.target
}

// Xattrs returns the extended attributes by name. The caller must not change them.
func (n *Inode) Xattrs() []Xattr {
	if n.rare == nil {
		return nil
	}
	return n.rare.xattrs
}

// Xattr returns one extended attribute.
func (n *Inode) Xattr(name string) (string, bool) {
	x := n.Xattrs()
	if i, ok := findXattr(x, name); ok {
		return x[i].Value, true
	}
	return "", false
}

func findXattr(x []Xattr, name string) (int, bool) {
	return slices.BinarySearchFunc(x, name, func(a Xattr, name string) int {
		switch {
		case a.Name < name:
			return -1
		case a.Name > name:
			return 1
		}
		return 0
	})
}

// OwnPolicy returns the policy set on this inode itself.
func (n *Inode) OwnPolicy() Policy {
	if n.rare == nil {
		return Policy{}
	}
	return n.rare.policy
}

// Punch returns the tail that must be punched before anybody gets a lease.
func (n *Inode) Punch() (PendingPunch, bool) {
	if n.rare == nil {
		return PendingPunch{}, false
	}
	return n.rare.punch, n.rare.punchy
}

// Attr returns the attributes as they go over the wire.
func (n *Inode) Attr() *msg.Attr {
	return &msg.Attr{
		Ino: uint64(n.Ino), Type: n.Type(), Perm: n.Perm(), Nlink: n.Nlink(), Uid: n.UID, Gid: n.GID, Rdev: n.Rdev(),
		Size: n.Size, Blocks: n.blocks(),
		Atime: n.Atime, Mtime: n.Mtime, Ctime: n.Ctime, Btime: n.Btime,
	}
}

// blocks is the space that the file takes, in units of 512 bytes, as far as the chunks tell: they are sparse, so it is at most that,
// and never more than the size.
func (n *Inode) blocks() uint64 {
	return min((n.Size+chunk.BlockSize-1)/chunk.BlockSize*chunk.BlockSize, uint64(n.Chunks())*chunk.Size) / 512
}

// withRare returns a copy of n whose rare part f has changed.
func (n *Inode) withRare(f func(*rare)) *Inode {
	c := *n
	var r rare
	if n.rare != nil {
		r = *n.rare
	}
	f(&r)
	c.rare = nil
	if !r.empty() {
		c.rare = &r
	}
	return &c
}

// Dentry is one name in a directory.
type Dentry struct {
	Parent id.Ino
	Ino    id.Ino
	Cookie uint64 // index of the event that made it << 1 | side, so that an exchange makes two
	Name   string
	Type   msg.FileType // of the inode, which never changes
}

// MaxReplicas is the largest number of replicas of a chunk, joining ones included.
const MaxReplicas = 5

// Chunk is a replicated piece of a file. Its size in memory is 32 bytes: chunks with equal replica sets share those.
type Chunk struct {
	ID  id.ChunkID
	Ino id.Ino
	at  uint64      // epoch << indexBits | index in the file
	set *replicaSet // is not changed
}

const (
	joiningBit = 1 << 31
	indexBits  = 24
	indexMask  = 1<<indexBits - 1
	maxEpoch   = 1<<(64-indexBits) - 1
)

// replicaSet is where a chunk is and should be.
type replicaSet struct {
	norm    uint32
	servers [MaxReplicas]uint32 // in-sync first, each in the order in which it became what it is; 0 ends
}

// Replica is one member of a chunk's replica set.
type Replica struct {
	Server  id.ServerID
	Joining bool
}

// Index returns which chunk of the file it is.
func (c *Chunk) Index() uint32 { return uint32(c.at & indexMask) }

// Epoch returns the number of its replica set.
func (c *Chunk) Epoch() id.Epoch { return id.Epoch(c.at >> indexBits) }

// Norm returns how many in-sync replicas it should have.
func (c *Chunk) Norm() int { return int(c.set.norm) }

// Len returns the number of replicas, joining ones included.
func (c *Chunk) Len() int {
	r := c.set
	return r.len()
}

// Replica returns the i-th replica, i < Len. In-sync ones come first, in an order that does not change
// while they stay; the first orders shared writes.
func (c *Chunk) Replica(i int) Replica {
	r := c.set
	return r.at(i)
}

// Find returns the replica on the server.
func (c *Chunk) Find(server id.ServerID) (Replica, bool) {
	r := c.set
	return r.find(server)
}

// InSync returns the number of in-sync replicas.
func (c *Chunk) InSync() int {
	r := c.set
	return r.inSync()
}

// Joining returns the number of joining replicas.
func (c *Chunk) Joining() int {
	r := c.set
	return r.len() - r.inSync()
}

// Degraded reports whether the planner has work with it.
func (c *Chunk) Degraded() bool {
	r := c.set
	n := r.inSync()
	return n < int(r.norm) || n < r.len()
}

// with returns a copy of c with the epoch and the set.
func (s *State) with(c *Chunk, epoch id.Epoch, r replicaSet) *Chunk {
	return &Chunk{ID: c.ID, Ino: c.Ino, at: uint64(epoch)<<indexBits | c.at&indexMask, set: s.sets.find(r)}
}

func (r *replicaSet) len() int {
	n := 0
	for n < MaxReplicas && r.servers[n] != 0 {
		n++
	}
	return n
}

func (r *replicaSet) inSync() int {
	n := 0
	for n < MaxReplicas && r.servers[n] != 0 && r.servers[n]&joiningBit == 0 {
		n++
	}
	return n
}

func (r *replicaSet) at(i int) Replica {
	v := r.servers[i]
	return Replica{Server: id.ServerID(v &^ joiningBit), Joining: v&joiningBit != 0}
}

func (r *replicaSet) find(server id.ServerID) (Replica, bool) {
	for i := range r.len() {
		if x := r.at(i); x.Server == server {
			return x, true
		}
	}
	return Replica{}, false
}

// remove removes the server.
func (r *replicaSet) remove(server id.ServerID) {
	k := 0
	for _, v := range r.servers {
		if v != 0 && id.ServerID(v&^joiningBit) != server {
			r.servers[k] = v
			k++
		}
	}
	clear(r.servers[k:])
}

// add adds the server as the last of its kind. There must be room.
func (r *replicaSet) add(server id.ServerID, joining bool) {
	n, at, v := r.len(), r.inSync(), uint32(server)
	if joining {
		at, v = n, v|joiningBit
	}
	copy(r.servers[at+1:n+1], r.servers[at:n])
	r.servers[at] = v
}

// Lease is a session's right to a file.
type Lease struct {
	Ino     id.Ino
	Session id.SessionID
	Want    msg.Want
	Index   id.Index // of the event that granted it, its number
}

// Session is a client's connection to the cluster, or the record that it was fenced.
type Session struct {
	ID     id.SessionID
	Host   string
	PID    uint32
	Mount  string
	Nonce  string
	Opened id.Index
	Time   int64 // when it was opened
	Fenced bool  // it is over, and chunk servers must refuse it
}

// Result is the remembered outcome of a request that made an event.
type Result struct {
	Seq   uint64
	Ino   id.Ino   // the inode it was about, 0 if none
	Index id.Index // of its event
	Value uint64   // Append: the offset of the reserved range
}

// Server is a chunk server, a member or retired.
type Server struct {
	ID      id.ServerID
	UUID    string // 16 bytes
	Addr    string
	Host    string
	Rack    string
	Tier    uint32
	Added   id.Index
	Retired bool
	Mode    event.ServerMode_Mode // of a member
}

const lastMode = event.ServerMode_DRAINED

// TakesData reports whether new data may be put on the server.
func (r *Server) TakesData() bool { return !r.Retired && r.Mode == event.ServerMode_ACTIVE }

// Leaving reports whether what the server has is to be moved to others.
func (r *Server) Leaving() bool {
	return !r.Retired && (r.Mode == event.ServerMode_DRAINING || r.Mode == event.ServerMode_REMOVING || r.Mode == event.ServerMode_DRAINED)
}

// status is what checkpoints and digests say of Retired and Mode: 0 active, 1 retired, else the mode + 1. Before there were modes it was 0 or 1.
func (r *Server) status() uint64 {
	switch {
	case r.Retired:
		return 1
	case r.Mode == event.ServerMode_ACTIVE:
		return 0
	}
	return uint64(r.Mode) + 1
}

// withStatus returns r with what status has said.
func (r *Server) withStatus(v uint64) *Server {
	if r.Retired = v == 1; v > 1 {
		r.Mode = event.ServerMode_Mode(v - 1)
	}
	return r
}

// Meta is a metadata server.
type Meta struct {
	ID   id.MetaID
	UUID string // 16 bytes
	Addr string
}

// Setting is one ConfigSet that holds.
type Setting struct{ Key, Value string }
