// Package state is the cluster's metadata: B-trees that the events of the log build up, one by one.
//
// Start with New or Read, then Apply every event in the order of the log. Read with the accessors.
// Write makes a checkpoint (format.go), Digest names the whole state in 32 bytes, Check verifies that
// the trees agree with one another.
//
// The package is pure and takes no lock. Apply and Clone must not run at the same time as anything else
// on the same State; accessors may run together. A Clone may be read while the original goes on. Records
// that accessors return are never changed and may be kept.
//
// Two states that applied the same events are equal, and have the same Digest; nothing depends on
// the clock, on the order of maps or on when checkpoints were taken.
//
// Rules that are not visible in one event:
//   - An inode without names lives while a session holds a lease on it, then its chunks become garbage
//     of each server that has a replica, joining ones included. A dropped replica is not garbage: it may be
//     worth rebuilding from.
//   - A chunk's norm is the effective policy of its file when it was allocated, until a PolicySet
//     on the file or on a directory that it inherits from, or a change of the default.
//   - The outcome of a request is remembered until its session has acknowledged it, for at most
//     MaxResults requests of a session.
package state

import (
	"varve/internal/id"
	"varve/internal/invariant"
	"varve/internal/wire/msg"

	"github.com/zeebo/xxh3"
)

// MaxResults is the number of outcomes that are remembered for one session; the oldest are forgotten.
const MaxResults = 4096

type leaseKey struct {
	session id.SessionID
	ino     id.Ino
}

type garbageKey struct {
	server id.ServerID
	chunk  id.ChunkID
}

type degradedKey struct {
	sync  uint8
	chunk id.ChunkID
}

// fileLocks are the locks on one inode; replaced, never changed.
type fileLocks struct {
	ino   id.Ino
	posix []Lock
	flock []Lock
}

// owned is a token: what carries the state's current one is not shared with a clone.
type owned struct{ _ byte }

// results are the remembered outcomes of one session, by seq. Apply changes them in place while owner
// is the state's, else it copies them.
type results struct {
	session id.SessionID
	owner   *owned
	floor   uint64 // outcomes up to it are forgotten
	list    []Result
	// What the digest counts of this: of the floor, and of each outcome. It is here so that to forget costs no hash.
	floorSum xxh3.Uint128
	sums     []xxh3.Uint128
}

// State is the metadata at one index.
type State struct {
	index   id.Index
	cluster id.Cluster
	name    string

	inodes   *table[Inode]
	dentries *tree[name]   // by directory and hash of the name
	cookies  *listing      // of dentries, by (parent, cookie)
	heads    *table[Chunk] // first chunks of files, by ino
	chunks   *tree[*Chunk] // the others, by (ino, index)
	byID     *table[Chunk]
	leases   *tree[Lease] // by (ino, session)
	sessions *table[Session]
	results  *table[results]
	locks    *tree[*fileLocks]
	garbage  *garbageLists
	servers  *table[Server]
	metas    *tree[*Meta]
	config   *tree[Setting]
	notes    *tree[note]
	security *Security // nil: the cluster has none
	certs    *tree[*Cert]

	// Derived from the above, not part of the digest.
	held      *tree[leaseKey] // leases by session
	orphans   *tree[id.Ino]   // inodes without names
	unsettled *tree[id.Ino]
	punching  *tree[id.Ino]
	degraded  *tree[degradedKey]
	surplus   *tree[id.ChunkID] // with more in-sync replicas than their norm
	writers   *tree[granted]    // notes of writers by age
	joining   int               // joining replicas
	policy    Policy            // the default

	// Highest numbers used.
	lastIno     id.Ino
	lastChunk   id.ChunkID
	lastSession id.SessionID
	lastServer  id.ServerID
	lastMeta    id.MetaID

	total     total // of the digest, without the cluster's record
	known     *[knownSums]knownSum
	suspended bool // total is not kept
	sets      sets
	scratch   []byte   // where change.go encodes records
	freed     []*Chunk // room for those that one event frees

	owner *owned
}

// New returns the empty state at index 0. The first event is ClusterInit.
func New() *State {
	return &State{
		inodes:   newTable[Inode](),
		dentries: newTree(lessName),
		cookies:  newListing(),
		heads:    newTable[Chunk](),
		chunks:   newTree(lessAt),
		byID:     newTable[Chunk](),
		leases: newTree(func(a, b Lease) bool {
			return a.Ino < b.Ino || a.Ino == b.Ino && a.Session < b.Session
		}),
		sessions: newTable[Session](),
		results:  newTable[results](),
		locks:    newTree(func(a, b *fileLocks) bool { return a.ino < b.ino }),
		garbage:  newGarbageLists(),
		servers:  newTable[Server](),
		metas:    newTree(func(a, b *Meta) bool { return a.ID < b.ID }),
		config:   newTree(func(a, b Setting) bool { return a.Key < b.Key }),
		notes:    newTree(lessNote),
		certs:    newTree(lessCert),
		held: newTree(func(a, b leaseKey) bool {
			return a.session < b.session || a.session == b.session && a.ino < b.ino
		}),
		orphans:   newTree(func(a, b id.Ino) bool { return a < b }),
		unsettled: newTree(func(a, b id.Ino) bool { return a < b }),
		punching:  newTree(func(a, b id.Ino) bool { return a < b }),
		degraded: newTree(func(a, b degradedKey) bool {
			return a.sync < b.sync || a.sync == b.sync && a.chunk < b.chunk
		}),
		surplus: newTree(func(a, b id.ChunkID) bool { return a < b }),
		writers: newTree(lessGranted),
		policy:  defaultPolicy,
		owner:   new(owned),
	}
}

func lessAt(a, b *Chunk) bool {
	return a.Ino < b.Ino || a.Ino == b.Ino && a.at&indexMask < b.at&indexMask
}

// Clone returns a view of the state as it is now, in constant time. The clone is for reading only.
func (s *State) Clone() *State {
	c := *s
	c.inodes, c.dentries, c.cookies = s.inodes.Clone(), s.dentries.Clone(), s.cookies.Clone()
	c.heads = s.heads.Clone()
	c.chunks, c.byID, c.leases = s.chunks.Clone(), s.byID.Clone(), s.leases.Clone()
	c.sessions, c.results, c.locks = s.sessions.Clone(), s.results.Clone(), s.locks.Clone()
	c.garbage, c.servers, c.metas = s.garbage.Clone(), s.servers.Clone(), s.metas.Clone()
	c.config, c.held, c.orphans = s.config.Clone(), s.held.Clone(), s.orphans.Clone()
	c.notes, c.certs = s.notes.Clone(), s.certs.Clone()
	c.unsettled, c.punching, c.degraded = s.unsettled.Clone(), s.punching.Clone(), s.degraded.Clone()
	c.surplus, c.writers = s.surplus.Clone(), s.writers.Clone()
	s.owner, c.owner = new(owned), new(owned)
	c.scratch, c.freed, c.known, c.sets = nil, nil, nil, sets{} // s goes on writing there
	return &c
}

// Index returns the index of the last event applied.
func (s *State) Index() id.Index { return s.index }

// Cluster returns the UUID and the name of the cluster; zero before ClusterInit.
func (s *State) Cluster() (id.Cluster, string) { return s.cluster, s.name }

// NextIno returns the lowest inode number that was never used. The others alike.
func (s *State) NextIno() id.Ino           { return s.lastIno + 1 }
func (s *State) NextChunk() id.ChunkID     { return s.lastChunk + 1 }
func (s *State) NextSession() id.SessionID { return s.lastSession + 1 }
func (s *State) NextServer() id.ServerID   { return s.lastServer + 1 }
func (s *State) NextMeta() id.MetaID       { return s.lastMeta + 1 }

// Inode returns the inode with the number.
func (s *State) Inode(ino id.Ino) (*Inode, bool) { return s.inodes.Get(uint64(ino)) }

// Inodes calls fn for each inode from the number after on, in order, until fn returns false.
func (s *State) Inodes(after id.Ino, fn func(*Inode) bool) {
	if after+1 != 0 {
		s.inodes.Ascend(uint64(after+1), fn)
	}
}

// Dentry returns the name in the directory. "." and ".." are not dentries.
func (s *State) Dentry(parent id.Ino, name string) (*Dentry, bool) {
	return findName(s.dentries, parent, name)
}

// Dentries calls fn for each name in the directory with a cookie above after, in the order of cookies,
// until fn returns false. Names that stay keep their place, whatever comes and goes.
func (s *State) Dentries(parent id.Ino, after uint64, fn func(*Dentry) bool) {
	if after+1 == 0 {
		return
	}
	s.cookies.From(parent, after+1, func(d *Dentry) bool {
		return d.Parent == parent && fn(d)
	})
}

// Empty reports whether the directory has no names.
func (s *State) Empty(parent id.Ino) bool {
	empty := true
	s.Dentries(parent, 0, func(*Dentry) bool { empty = false; return false })
	return empty
}

// Chunk returns the chunk at the index of the file; false is a hole.
func (s *State) Chunk(ino id.Ino, index uint32) (*Chunk, bool) {
	if index == 0 {
		return s.heads.Get(uint64(ino))
	}
	if s.chunks.Len() == 0 {
		return nil, false
	}
	return s.chunks.Get(&Chunk{Ino: ino, at: uint64(index)})
}

// Chunks calls fn for each chunk of the file in [first, first+count), until fn returns false.
func (s *State) Chunks(ino id.Ino, first, count uint32, fn func(*Chunk) bool) {
	if first >= maxChunks || count == 0 {
		return
	}
	if first == 0 {
		if c, ok := s.heads.Get(uint64(ino)); ok && !fn(c) {
			return
		}
	}
	end := min(uint64(first)+uint64(count), maxChunks)
	if end == 1 || s.chunks.Len() == 0 {
		return
	}
	s.chunks.AscendGreaterOrEqual(&Chunk{Ino: ino, at: uint64(first)}, func(c *Chunk) bool {
		return c.Ino == ino && uint64(c.Index()) < end && fn(c)
	})
}

// ChunkByID returns the chunk with the id.
func (s *State) ChunkByID(c id.ChunkID) (*Chunk, bool) { return s.byID.Get(uint64(c)) }

// AllChunks calls fn for each chunk with an id above after, by id, until fn returns false.
func (s *State) AllChunks(after id.ChunkID, fn func(*Chunk) bool) {
	if after+1 != 0 {
		s.byID.Ascend(uint64(after+1), fn)
	}
}

// ChunksOf calls fn for each chunk with a replica on the server, by id. It looks at every chunk there
// is (no index by server is kept, for its memory), so it is for rare work and clones.
func (s *State) ChunksOf(server id.ServerID, fn func(*Chunk) bool) {
	want := uint32(server)
	s.byID.Ascend(0, func(c *Chunk) bool {
		for _, v := range c.set.servers {
			if v&^joiningBit == want && v != 0 {
				return fn(c)
			}
		}
		return true
	})
}

// Degraded calls fn for each chunk with fewer in-sync replicas than its norm or with joining ones, those with
// fewest in sync first, then by id.
func (s *State) Degraded(fn func(*Chunk) bool) { s.DegradedFrom(0, 0, fn) }

// DegradedFrom is Degraded from the chunk on that has so many replicas in sync, or what would come after it.
func (s *State) DegradedFrom(sync int, chunk id.ChunkID, fn func(*Chunk) bool) {
	s.degraded.AscendGreaterOrEqual(degradedKey{uint8(sync), chunk}, func(k degradedKey) bool {
		return fn(s.indexed(k.chunk))
	})
}

// Surplus calls fn for each chunk with more in-sync replicas than its norm, by id from the given one on, until fn returns false.
func (s *State) Surplus(from id.ChunkID, fn func(*Chunk) bool) {
	s.surplus.AscendGreaterOrEqual(from, func(k id.ChunkID) bool { return fn(s.indexed(k)) })
}

// indexed returns a chunk that an index has.
func (s *State) indexed(k id.ChunkID) *Chunk {
	c, ok := s.ChunkByID(k)
	if !ok {
		invariant.Failf("chunk %v is in an index: unknown", k)
	}
	return c
}

// Session returns the record of an open or fenced session.
func (s *State) Session(session id.SessionID) (*Session, bool) {
	return s.sessions.Get(uint64(session))
}

// Sessions calls fn for each session on record, fenced ones included, by id.
func (s *State) Sessions(fn func(*Session) bool) { s.sessions.Ascend(0, fn) }

// SessionByNonce returns the open session that was opened with the nonce.
func (s *State) SessionByNonce(nonce string) (*Session, bool) {
	var found *Session
	s.Sessions(func(x *Session) bool {
		if !x.Fenced && x.Nonce == nonce {
			found = x
		}
		return found == nil
	})
	return found, found != nil
}

// Outcome returns what is remembered of the request.
func (s *State) Outcome(session id.SessionID, seq uint64) (Result, bool) {
	r, ok := s.results.Get(uint64(session))
	if !ok {
		return Result{}, false
	}
	if i, ok := r.find(seq); ok {
		return r.list[i], true
	}
	return Result{}, false
}

// Acked returns up to which seq the outcomes of the session are forgotten: a request at or below that
// has no remembered outcome must not be done, since it may have been done before.
func (s *State) Acked(session id.SessionID) uint64 {
	if r, ok := s.results.Get(uint64(session)); ok {
		return r.floor
	}
	return 0
}

// Lease returns what the session holds the inode for.
func (s *State) Lease(ino id.Ino, session id.SessionID) (Lease, bool) {
	return s.leases.Get(Lease{Ino: ino, Session: session})
}

// Leases calls fn for each holder of the inode, by session.
func (s *State) Leases(ino id.Ino, fn func(Lease) bool) {
	s.leases.AscendGreaterOrEqual(Lease{Ino: ino}, func(l Lease) bool { return l.Ino == ino && fn(l) })
}

// LeasesOf calls fn for each lease of the session, by inode.
func (s *State) LeasesOf(session id.SessionID, fn func(Lease) bool) {
	s.held.AscendGreaterOrEqual(leaseKey{session: session}, func(k leaseKey) bool {
		if k.session != session {
			return false
		}
		l, ok := s.Lease(k.ino, session)
		if !ok {
			invariant.Failf("session %v holds inode %v: no lease", session, k.ino)
		}
		return fn(l)
	})
}

// Mode returns the mode in which the session holds the inode, which follows from all holders.
func (s *State) Mode(ino id.Ino, session id.SessionID) msg.Mode {
	h := s.Holders(ino)
	own, _ := s.Lease(ino, session)
	return h.Mode(own.Want)
}

// Holders counts who holds an inode.
type Holders struct{ Readers, Writers int }

// Holders counts the sessions that hold the inode.
func (s *State) Holders(ino id.Ino) Holders {
	var h Holders
	s.Leases(ino, func(l Lease) bool {
		h.Add(l.Want, 1)
		return true
	})
	return h
}

// Add counts n more holders of that want.
func (h *Holders) Add(want msg.Want, n int) {
	switch want {
	case msg.Want_WANT_READ:
		h.Readers += n
	case msg.Want_WANT_WRITE:
		h.Writers += n
	}
}

// Mode returns the mode of a session that is among the holders with want.
func (h Holders) Mode(want msg.Want) msg.Mode {
	switch {
	case want == msg.Want_WANT_NONE:
		return msg.Mode_MODE_NONE
	case h.Writers == 0:
		return msg.Mode_SHARED_READ
	case h.Writers+h.Readers == 1:
		return msg.Mode_EXCLUSIVE_WRITE
	}
	return msg.Mode_SHARED_WRITE
}

// Locks returns the locks on the inode, of the kind asked for, by start.
func (s *State) Locks(ino id.Ino, flock bool) []Lock {
	f, ok := s.locks.Get(&fileLocks{ino: ino})
	switch {
	case !ok:
		return nil
	case flock:
		return f.flock
	}
	return f.posix
}

// Server returns the record of a chunk server, retired or not.
func (s *State) Server(server id.ServerID) (*Server, bool) {
	return s.servers.Get(uint64(server))
}

// Servers calls fn for each chunk server, retired ones included, by id.
func (s *State) Servers(fn func(*Server) bool) { s.servers.Ascend(0, fn) }

// Meta returns the record of a metadata server.
func (s *State) Meta(meta id.MetaID) (*Meta, bool) { return s.metas.Get(&Meta{ID: meta}) }

// Metas calls fn for each metadata server, by id.
func (s *State) Metas(fn func(*Meta) bool) { s.metas.Ascend(fn) }

// Garbage returns up to limit chunks that the server may delete, by id.
func (s *State) Garbage(server id.ServerID, limit int) []id.ChunkID {
	var out []id.ChunkID
	s.garbage.Of(server, func(c id.ChunkID) bool {
		if len(out) >= limit {
			return false
		}
		out = append(out, c)
		return true
	})
	return out
}

// GarbageOf counts the chunks that the server is still to delete.
func (s *State) GarbageOf(server id.ServerID) int { return s.garbage.LenOf(server) }

// IsGarbage reports whether the chunk is on the server's garbage list.
func (s *State) IsGarbage(server id.ServerID, c id.ChunkID) bool {
	return s.garbage.Has(garbageKey{server, c})
}

// Orphans calls fn for each inode that has no name and lives by its leases, by number.
func (s *State) Orphans(fn func(id.Ino) bool) { s.orphans.Ascend(fn) }

// Unsettled calls fn for each unsettled inode, by number.
func (s *State) Unsettled(fn func(id.Ino) bool) { s.unsettled.Ascend(fn) }

// Punching calls fn for each inode with a pending punch, by number.
func (s *State) Punching(fn func(id.Ino) bool) { s.punching.Ascend(fn) }

// Config returns the value of a setting, "" if it is not set.
func (s *State) Config(key string) string {
	c, _ := s.config.Get(Setting{Key: key})
	return c.Value
}

// Settings calls fn for each setting, by key.
func (s *State) Settings(fn func(Setting) bool) { s.config.Ascend(fn) }

// Counts are the sizes of the trees.
type Counts struct {
	Inodes, Dentries, Chunks, Degraded, Surplus, Joining, Garbage, Sessions, Leases, Orphans, Unsettled, Punching int
}

// Counts returns how many there are of everything, in constant time.
func (s *State) Counts() Counts {
	return Counts{
		Inodes: s.inodes.Len(), Dentries: s.dentries.Len(), Chunks: s.byID.Len(), Degraded: s.degraded.Len(), Surplus: s.surplus.Len(),
		Joining: s.joining, Garbage: s.garbage.Len(), Sessions: s.sessions.Len(), Leases: s.leases.Len(),
		Orphans: s.orphans.Len(), Unsettled: s.unsettled.Len(), Punching: s.punching.Len(),
	}
}

// UnderMin counts the chunks with fewer in-sync replicas than their file's minimum. It looks at every
// degraded chunk.
func (s *State) UnderMin() int {
	n := 0
	s.Degraded(func(c *Chunk) bool {
		if c.InSync() < int(s.Policy(c.Ino).Min) {
			n++
		}
		return true
	})
	return n
}
