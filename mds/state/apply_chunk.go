package state

import (
	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/event"
)

// truncate frees the chunks of n beyond size, marks the tail of one that size cuts into, which puncher is to punch, and returns
// n as it is then, but for the size.
func (s *State) truncate(n *Inode, size uint64, puncher id.SessionID) *Inode {
	if !n.IsRegular() || size > chunk.MaxFileSize {
		s.misfit("truncate: %v %v to %d bytes", n.Type(), n.Ino, size)
	}
	index, from := uint32(size/chunk.Size), uint32(size%chunk.Size)
	keep := index
	if from != 0 {
		keep++
	}
	if n.Chunks() > 0 {
		freed := s.freeFrom(n.Ino, keep)
		c := *n
		c.count -= freed
		n = &c
	}
	punch, pending := n.Punch()
	if pending && punch.Index >= keep {
		pending = false
	}
	if _, ok := s.Chunk(n.Ino, index); ok && from != 0 {
		if pending && punch.Index != index {
			s.misfit("truncate of %v to %d: the tail of chunk %d is not punched yet", n.Ino, size, punch.Index)
		}
		if !pending || from < punch.From {
			punch = PendingPunch{Index: index, From: from}
		}
		pending = true
		s.dropNote(notePuncher, uint64(n.Ino))
		if puncher != 0 {
			s.putNote(note{what: notePuncher, key: uint64(n.Ino), value: uint64(puncher)})
		}
	}
	return s.setPunch(n, punch, pending)
}

// setPunch returns n with that pending punch, and keeps the index of such inodes.
func (s *State) setPunch(n *Inode, p PendingPunch, pending bool) *Inode {
	if old, ok := n.Punch(); ok == pending && (!ok || old == p) {
		return n
	}
	if pending {
		s.punching.ReplaceOrInsert(n.Ino)
	} else {
		s.punching.Delete(n.Ino)
		s.dropNote(notePuncher, uint64(n.Ino))
		p = PendingPunch{}
	}
	return n.withRare(func(r *rare) { r.punch, r.punchy = p, pending })
}

func (s *State) punchDone(ino id.Ino) {
	n := s.must(ino, "punch done")
	s.putInode(s.setPunch(n, PendingPunch{}, false))
}

func (s *State) settled(ino id.Ino) {
	c := *s.must(ino, "settled")
	c.mode &^= unsettledBit
	s.putInode(&c)
	s.unsettled.Delete(ino)
}

// freeFrom frees the chunks of the file from index first on and returns how many there were.
func (s *State) freeFrom(ino id.Ino, first uint32) uint32 {
	list := s.freed[:0]
	s.Chunks(ino, first, maxChunks, func(c *Chunk) bool {
		list = append(list, c)
		return true
	})
	if s.freed = list; cap(list) > 1024 {
		s.freed = nil
	}
	for _, c := range list {
		s.dropChunk(c)
		for i := range c.Len() {
			s.discard(c.Replica(i).Server, c.ID)
		}
	}
	return uint32(len(list))
}

// discard makes the chunk garbage of the server, unless that is retired.
func (s *State) discard(server id.ServerID, c id.ChunkID) {
	if r, ok := s.Server(server); ok && !r.Retired {
		s.addGarbage(garbageKey{server, c})
	}
}

// account keeps what is derived from chunks, for one that comes (1) or goes (-1).
func (s *State) account(c *Chunk, n int) {
	r := c.set
	sync, all := r.inSync(), r.len()
	s.joining += n * (all - sync)
	if sync > int(r.norm) {
		if n > 0 {
			s.surplus.ReplaceOrInsert(c.ID)
		} else {
			s.surplus.Delete(c.ID)
		}
	}
	if sync >= int(r.norm) && sync == all { // as Degraded
		return
	}
	k := degradedKey{sync: uint8(sync), chunk: c.ID}
	if n > 0 {
		s.degraded.ReplaceOrInsert(k)
	} else {
		s.degraded.Delete(k)
	}
}

func (s *State) chunkAlloc(b *event.ChunkAlloc) {
	n := *s.must(id.Ino(b.Ino), "alloc")
	if !n.IsRegular() {
		s.misfit("alloc: inode %v is a %v", n.Ino, n.Type())
	}
	if b.Norm == 0 || b.Norm > MaxReplicas {
		s.misfit("alloc for %v: norm %d", n.Ino, b.Norm)
	}
	for _, e := range b.Chunks {
		if e.Index >= maxChunks || e.Id == 0 || e.Epoch == 0 || e.Epoch > maxEpoch || len(e.Servers) == 0 || len(e.Servers) > MaxReplicas {
			s.misfit("alloc for %v: chunk %d with id %d on %v", n.Ino, e.Index, e.Id, e.Servers)
		}
		r := replicaSet{norm: b.Norm}
		for _, v := range e.Servers {
			s.mustServer(id.ServerID(v))
			if _, twice := r.find(id.ServerID(v)); twice {
				s.misfit("alloc for %v: chunk %d twice on %d", n.Ino, e.Index, v)
			}
			r.add(id.ServerID(v), false)
		}
		c := &Chunk{ID: id.ChunkID(e.Id), Ino: n.Ino, at: e.Epoch<<indexBits | uint64(e.Index), set: s.sets.find(r)}
		s.addChunk(c)
		s.lastChunk = max(s.lastChunk, c.ID)
		n.count++
	}
	s.putInode(&n)
}

func (s *State) replicaDrop(b *event.ReplicaDrop) {
	for _, e := range b.Chunks {
		old, ok := s.Chunk(id.Ino(b.Ino), e.Index)
		if !ok {
			s.misfit("replica drop: inode %d has no chunk %d", b.Ino, e.Index)
		}
		r := *old.set
		x, ok := r.find(id.ServerID(b.Server))
		if !ok || !x.Joining && r.inSync() == 1 {
			s.misfit("replica drop: %d from chunk %v, which has %d in sync, %v", b.Server, old.ID, r.inSync(), r.servers)
		}
		r.remove(x.Server)
		s.replaceChunk(old, s.with(old, s.nextEpoch(old, e.Epoch, "replica drop"), r))
	}
}

// nextEpoch returns the next epoch of c, which has to be the given one.
func (s *State) nextEpoch(c *Chunk, epoch uint64, what string) id.Epoch {
	next := c.Epoch() + 1
	if uint64(next) != epoch || next > maxEpoch {
		s.misfit("%s: chunk %v: next epoch is %v, want %d", what, c.ID, next, epoch)
	}
	return next
}

func (s *State) mustChunk(c uint64, what string) *Chunk {
	old, ok := s.ChunkByID(id.ChunkID(c))
	if !ok {
		s.misfit("%s: chunk %v does not exist", what, id.ChunkID(c))
	}
	return old
}

func (s *State) replicaJoin(b *event.ReplicaJoin) {
	old, server := s.mustChunk(b.Chunk, "replica join"), id.ServerID(b.Server)
	s.mustServer(server)
	r := *old.set
	r.remove(server)
	if r.inSync() == 0 || r.len() == MaxReplicas {
		s.misfit("replica join: %v to chunk %v: %v", server, old.ID, r.servers)
	}
	r.add(server, true)
	s.replaceChunk(old, s.with(old, s.nextEpoch(old, b.Epoch, "replica join"), r))
}

func (s *State) replicaSync(b *event.ReplicaSync) {
	old, server := s.mustChunk(b.Chunk, "replica sync"), id.ServerID(b.Server)
	r := *old.set
	x, ok := r.find(server)
	if !ok || !x.Joining || uint64(old.Epoch()) != b.Epoch {
		s.misfit("replica sync: %v at epoch %d: chunk %v has epoch %v, %v", server, b.Epoch, old.ID, old.Epoch(), r.servers)
	}
	r.remove(server)
	r.add(server, false)
	s.replaceChunk(old, s.with(old, old.Epoch(), r))
}

func (s *State) replicaAccept(b *event.ReplicaAccept) {
	old, server := s.mustChunk(b.Chunk, "replica accept"), id.ServerID(b.Server)
	r := *old.set
	if x, ok := r.find(server); !ok || x.Joining {
		s.misfit("replica accept: %v is not in sync with chunk %v: %v", server, old.ID, r.servers)
	}
	epoch := s.nextEpoch(old, b.Epoch, "replica accept")
	s.replaceChunk(old, s.with(old, epoch, r))
	s.putNote(note{what: noteLost, key: uint64(old.ID), value: uint64(epoch)})
}

// dropServer takes the server out of the replica sets in which another one is in sync.
func (s *State) dropServer(server id.ServerID) {
	s.mustServer(server)
	var list []*Chunk
	s.ChunksOf(server, func(c *Chunk) bool {
		if r, _ := c.Find(server); r.Joining || c.InSync() > 1 {
			list = append(list, c)
		}
		return true
	})
	for _, old := range list {
		r := *old.set
		r.remove(server)
		s.replaceChunk(old, s.with(old, s.nextEpoch(old, uint64(old.Epoch())+1, "server lost"), r))
	}
}

func (s *State) purged(b *event.Purged) {
	for _, c := range b.Chunks {
		s.dropGarbage(garbageKey{id.ServerID(b.Server), id.ChunkID(c)})
	}
}

func (s *State) mustServer(server id.ServerID) *Server {
	r, ok := s.Server(server)
	if !ok {
		s.misfit("%v does not exist", server)
	}
	return r
}

func (s *State) serverAdd(b *event.ServerAdd) {
	r := &Server{ID: id.ServerID(b.Id), UUID: string(b.Uuid), Addr: b.Addr, Host: b.Host, Rack: b.Rack, Tier: b.Tier, Added: s.index}
	if b.Id == 0 || b.Id >= joiningBit {
		s.misfit("add %v: no such id", r.ID)
	}
	if old, ok := s.putServer(r); ok {
		s.misfit("add %v: it is there, at %s", r.ID, old.Addr)
	}
	s.lastServer = max(s.lastServer, r.ID)
}

func (s *State) serverUpdate(b *event.ServerUpdate) {
	r := *s.mustServer(id.ServerID(b.Id))
	r.Addr, r.Host, r.Rack, r.Tier = b.Addr, b.Host, b.Rack, b.Tier
	s.putServer(&r)
}

func (s *State) serverMode(b *event.ServerMode) {
	r := *s.mustServer(id.ServerID(b.Id))
	if b.Mode < 0 || b.Mode > lastMode || r.Retired {
		s.misfit("%v is to be %v, retired %v", r.ID, b.Mode, r.Retired)
	}
	if b.Since < 0 || b.Until < 0 || b.Until > 0 && b.Mode != event.ServerMode_STANDBY {
		s.misfit("%v is to be %v since %d until %d", r.ID, b.Mode, b.Since, b.Until)
	}
	r.Mode = b.Mode
	s.putServer(&r)
	s.noteMode(r.ID, b.Since, b.Until)
}

// noteMode keeps since when and until when a server is used as it is; 0: not known, no end.
func (s *State) noteMode(server id.ServerID, since, until int64) {
	for _, n := range []note{{noteMode, uint64(server), uint64(since)}, {noteUntil, uint64(server), uint64(until)}} {
		if n.value == 0 {
			s.dropNote(n.what, n.key)
		} else {
			s.putNote(n)
		}
	}
}

func (s *State) serverRetire(server id.ServerID) {
	r := *s.mustServer(server)
	r.Retired, r.Mode = true, event.ServerMode_ACTIVE
	s.putServer(&r)
	s.noteMode(server, 0, 0)
	s.dropServer(server)
	for _, c := range s.Garbage(server, s.garbage.Len()) {
		s.dropGarbage(garbageKey{server, c})
	}
}

func (s *State) metaAdd(b *event.MetaAdd) {
	m := &Meta{ID: id.MetaID(b.Id), UUID: string(b.Uuid), Addr: b.Addr}
	if m.ID == 0 {
		s.misfit("add %v: no such id", m.ID)
	}
	if old, ok := s.putMeta(m); ok {
		s.misfit("add %v: it is there, at %s", m.ID, old.Addr)
	}
	s.lastMeta = max(s.lastMeta, m.ID)
}

func (s *State) metaUpdate(b *event.MetaUpdate) {
	old, ok := s.Meta(id.MetaID(b.Id))
	if !ok {
		s.misfit("update mds%d: it does not exist", b.Id)
	}
	m := *old
	m.Addr = b.Addr
	s.putMeta(&m)
}

func (s *State) metaRemove(meta id.MetaID) {
	if !s.dropMeta(&Meta{ID: meta}) {
		s.misfit("remove %v: it does not exist", meta)
	}
}
