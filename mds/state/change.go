package state

import (
	"slices"

	"varve/internal/id"

	"github.com/zeebo/xxh3"
)

// Every change of a record that the digest covers goes through one of these, which keep the sum.

func (s *State) plus(b []byte) {
	s.scratch = b
	s.total.add(xxh3.Hash128(b))
}

func (s *State) minus(b []byte) {
	s.scratch = b
	s.total.sub(xxh3.Hash128(b))
}

// knownSums is the number of inodes whose hash is kept for their next change: the directories in use, and the files that were
// made or changed last, which have most of the changes.
const knownSums = 1024

// knownSum is the hash of one inode's record.
type knownSum struct {
	of   *Inode
	hash xxh3.Uint128
}

// Suspend has the digest no longer kept with every event, for who applies many and wants it only of the last: a tenth of the time of Apply. Sum
// computes it from all records then. Resume has it kept again.
func (s *State) Suspend() { s.suspended = true }

// Resume counts every record once, and keeps the digest with every event from here on.
func (s *State) Resume() {
	if !s.suspended {
		return
	}
	s.suspended, s.known = false, nil
	var all []*results
	s.results.Ascend(0, func(r *results) bool { all = append(all, r); return true })
	for _, r := range all {
		if r.owner != s.owner { // a clone has it too
			r = r.copy(s.owner)
			s.results.Put(uint64(r.session), r)
		}
		r.recount()
	}
	s.total = s.count()
}

// counted reports whether the digest is kept.
func (s *State) counted() bool { return !s.suspended }

// putInode puts n in the place of the inode with its number, which it returns.
func (s *State) putInode(n *Inode) (*Inode, bool) {
	old, ok := s.inodes.Put(uint64(n.Ino), n)
	if s.suspended {
		return old, ok
	}
	if ok {
		s.total.sub(s.inodeHash(old))
	}
	s.scratch = sumInode(s.scratch, n)
	if s.known == nil {
		s.known = new([knownSums]knownSum)
	}
	k := &s.known[n.Ino%knownSums]
	k.of, k.hash = n, xxh3.Hash128(s.scratch)
	s.total.add(k.hash)
	return old, ok
}

// inodeHash returns the hash of a record. One that is known is that of the same record, since records do not change.
func (s *State) inodeHash(n *Inode) xxh3.Uint128 {
	if s.known != nil {
		if k := &s.known[n.Ino%knownSums]; k.of == n {
			return k.hash
		}
	}
	s.scratch = sumInode(s.scratch, n)
	return xxh3.Hash128(s.scratch)
}

func (s *State) dropInode(n *Inode) {
	if old, ok := s.inodes.Delete(uint64(n.Ino)); ok && s.counted() {
		s.total.sub(s.inodeHash(old))
	}
}

// addName adds a dentry.
func (s *State) addName(d *Dentry) {
	if old, ok := s.dentries.ReplaceOrInsert(nameOf(d)); ok {
		s.misfit("%q in %v for inode %v: the name is there, for inode %v", d.Name, d.Parent, d.Ino, old.d.Ino)
	}
	if !s.cookies.Insert(d) {
		s.misfit("%q in %v for inode %v: cookie %d is used", d.Name, d.Parent, d.Ino, d.Cookie)
	}
	if s.counted() {
		s.plus(sumDentry(s.scratch, d))
	}
}

func (s *State) dropName(d *Dentry) {
	s.dentries.Delete(nameOf(d))
	if !s.cookies.Delete(d) {
		s.misfit("%q in %v for inode %v: cookie %d is not in the listing", d.Name, d.Parent, d.Ino, d.Cookie)
	}
	if s.counted() {
		s.minus(sumDentry(s.scratch, d))
	}
}

// addChunk adds a chunk whose place in the file and whose id are free.
func (s *State) addChunk(c *Chunk) {
	if old, ok := s.setChunk(c); ok {
		s.misfit("alloc for %v: chunk %d is there, %v", c.Ino, c.Index(), old.ID)
	}
	if old, ok := s.byID.Put(uint64(c.ID), c); ok {
		s.misfit("alloc for %v: id %v is used, by inode %v", c.Ino, c.ID, old.Ino)
	}
	s.account(c, 1)
	if s.counted() {
		s.plus(sumChunk(s.scratch, c))
	}
}

func (s *State) dropChunk(c *Chunk) {
	s.unsetChunk(c)
	s.byID.Delete(uint64(c.ID))
	s.dropNote(noteLost, uint64(c.ID))
	s.account(c, -1)
	if s.counted() {
		s.minus(sumChunk(s.scratch, c))
	}
}

// replaceChunk puts c in the place of old.
func (s *State) replaceChunk(old, c *Chunk) {
	s.account(old, -1)
	if s.counted() {
		s.minus(sumChunk(s.scratch, old))
	}
	s.setChunk(c)
	s.byID.Put(uint64(c.ID), c)
	s.account(c, 1)
	if s.counted() {
		s.plus(sumChunk(s.scratch, c))
	}
}

func (s *State) putLease(l Lease) {
	if old, ok := s.leases.ReplaceOrInsert(l); ok {
		if s.counted() {
			s.minus(sumLease(s.scratch, old))
		}
	}
	if s.counted() {
		s.plus(sumLease(s.scratch, l))
	}
}

func (s *State) delLease(l Lease) {
	if old, ok := s.leases.Delete(l); ok {
		if s.counted() {
			s.minus(sumLease(s.scratch, old))
		}
	}
}

func (s *State) addGarbage(k garbageKey) {
	if s.garbage.Add(k) {
		if s.counted() {
			s.plus(sumGarbage(s.scratch, k))
		}
	}
}

func (s *State) dropGarbage(k garbageKey) {
	if s.garbage.Drop(k) {
		if s.counted() {
			s.minus(sumGarbage(s.scratch, k))
		}
	}
}

// putLocks puts f in the place of the locks on its inode; no locks leave no record.
func (s *State) putLocks(f *fileLocks) {
	s.delLocks(f)
	if len(f.posix)+len(f.flock) > 0 {
		s.locks.ReplaceOrInsert(f)
		if s.counted() {
			s.plus(sumLocks(s.scratch, f))
		}
	}
}

func (s *State) delLocks(f *fileLocks) {
	if old, ok := s.locks.Delete(f); ok {
		if s.counted() {
			s.minus(sumLocks(s.scratch, old))
		}
	}
}

func (s *State) putSession(x *Session) (*Session, bool) {
	old, ok := s.sessions.Put(uint64(x.ID), x)
	if ok {
		if s.counted() {
			s.minus(sumSession(s.scratch, old))
		}
	}
	if s.counted() {
		s.plus(sumSession(s.scratch, x))
	}
	return old, ok
}

func (s *State) dropSession(x *Session) {
	if old, ok := s.sessions.Delete(uint64(x.ID)); ok {
		if s.counted() {
			s.minus(sumSession(s.scratch, old))
		}
	}
}

func (s *State) addResults(r *results) {
	s.results.Put(uint64(r.session), r)
	s.countFloor(r)
}

// countFloor adds the record of the floor of r.
func (s *State) countFloor(r *results) {
	if s.suspended {
		return
	}
	s.scratch = sumFloor(s.scratch, r)
	r.floorSum = xxh3.Hash128(s.scratch)
	s.total.add(r.floorSum)
}

// addResult adds an outcome as the i-th of r, which must be owned.
func (s *State) addResult(r *results, i int, v Result) {
	var h xxh3.Uint128
	if s.counted() {
		s.scratch = sumResult(s.scratch, r.session, v)
		h = xxh3.Hash128(s.scratch)
	}
	r.list, r.sums = slices.Insert(r.list, i, v), slices.Insert(r.sums, i, h)
	s.total.add(h)
}

func (s *State) dropResults(session id.SessionID) {
	old, ok := s.results.Delete(uint64(session))
	if !ok {
		return
	}
	s.total.sub(old.floorSum)
	for _, h := range old.sums {
		s.total.sub(h)
	}
}

// forget drops the outcomes of r, which must be owned, up to seq.
func (s *State) forget(r *results, seq uint64) {
	if seq <= r.floor {
		return
	}
	s.total.sub(r.floorSum)
	r.floor = seq
	s.countFloor(r)
	i, found := r.find(seq)
	if found {
		i++
	}
	for _, h := range r.sums[:i] {
		s.total.sub(h)
	}
	r.drop(i)
}

func (s *State) putServer(r *Server) (*Server, bool) {
	old, ok := s.servers.Put(uint64(r.ID), r)
	if ok {
		if s.counted() {
			s.minus(sumServer(s.scratch, old))
		}
	}
	if s.counted() {
		s.plus(sumServer(s.scratch, r))
	}
	return old, ok
}

func (s *State) putMeta(m *Meta) (*Meta, bool) {
	old, ok := s.metas.ReplaceOrInsert(m)
	if ok {
		if s.counted() {
			s.minus(sumMeta(s.scratch, old))
		}
	}
	if s.counted() {
		s.plus(sumMeta(s.scratch, m))
	}
	return old, ok
}

func (s *State) dropMeta(m *Meta) bool {
	old, ok := s.metas.Delete(m)
	if ok {
		if s.counted() {
			s.minus(sumMeta(s.scratch, old))
		}
	}
	return ok
}

func (s *State) putSetting(c Setting) {
	s.dropSetting(c.Key)
	s.config.ReplaceOrInsert(c)
	if s.counted() {
		s.plus(sumSetting(s.scratch, c))
	}
}

func (s *State) dropSetting(key string) {
	if old, ok := s.config.Delete(Setting{Key: key}); ok {
		if s.counted() {
			s.minus(sumSetting(s.scratch, old))
		}
	}
}
