package client

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

const (
	cacheShards  = 64
	cacheStamps  = 4096
	evictScan    = 64              // records looked at in one shard before the next one is tried
	evictShards  = 2 * cacheShards // and shards, by one insertion
	kernelMargin = 250 * time.Millisecond
)

// metaCache holds what the leader has granted this session: attributes by inode, and names by directory. The zero till says
// that nothing may be used.
//
// Invariant: what is served was true at the metadata server at some moment between the arrival of the question and the
// answer. It follows from these rules:
//   - An answer of the leader is kept only if, between the sending of its request and the moment it is put here, no META
//     callback named its inode, no change of our own to the same thing was completed, and nothing was dropped (floor).
//     The check and the insertion are under the lock of the shard; who makes a stamp does so before taking that lock.
//   - While a change of our own is under way, what it changes is not served (busy): it may be committed already.
//   - Its answer updates what is held, and of two answers the one with the higher index counts.
//   - Nothing is served after till.
//
// A shard's lock is also the gate for what the kernel may keep: Hold checks, under the read lock, that what is about to be
// written is what is held, and keeps the lock until it is written. A callback that has dropped something therefore knows
// that no older answer is written afterwards.
type metaCache struct {
	till  atomic.Int64  // boot time, ns
	seq   atomic.Uint64 // stamps
	floor atomic.Uint64 // answers to what was asked before it are not kept
	wild  atomic.Int32  // changes of our own under way that change an inode we cannot name
	total atomic.Int64  // attributes and names held
	hand  atomic.Uint32 // next shard to evict from
	limit int64

	called  stamps // last META of an inode
	changed stamps // last change of our own to the attributes of an inode
	named   stamps // last change of our own to a name
	shards  [cacheShards]cacheShard
}

// stamps are the last moments of something, by hash: two things in one bucket only make us keep less.
type stamps [cacheStamps]atomic.Uint64

type cacheShard struct {
	mu   sync.RWMutex
	m    map[id.Ino]*record
	busy map[id.Ino]*busy
	ring []*record // all of m
	hand int       // of the CLOCK over ring
	_    [40]byte  // keeps locks apart
}

// record is what is held of one inode. It is changed under its shard's lock.
type record struct {
	ino    id.Ino
	slot   int         // in ring
	used   atomic.Bool // since the hand passed
	attr   *msg.Attr   // nil if not held; never changed, only replaced
	index  uint64      // of the answer that attr came with
	names  *names      // nil if not held
	parent uint64      // of a directory; 0 if not known
}

func (r *record) weight() int64 {
	n := int64(0)
	if r.attr != nil {
		n++
	}
	if r.names != nil {
		n += 1 + int64(len(r.names.m))
	}
	return n
}

func (m *metaCache) init(limit int) {
	m.limit = int64(limit)
	for i := range m.shards {
		m.shards[i].m = make(map[id.Ino]*record)
		m.shards[i].busy = make(map[id.Ino]*busy)
	}
}

func hashIno(ino id.Ino) uint64 { return uint64(ino) * 0x9e3779b97f4a7c15 }

func hashName(dir id.Ino, name []byte) uint64 {
	h := hashIno(dir)
	for _, b := range name {
		h = (bits.RotateLeft64(h, 5) ^ uint64(b)) * 0x517cc1b727220a95
	}
	return h
}

func (m *metaCache) shard(ino id.Ino) *cacheShard { return &m.shards[hashIno(ino)>>58%cacheShards] }

func (s *stamps) at(hash uint64) *atomic.Uint64 { return &s[hash>>40%cacheStamps] }

// now is the moment at which a request is sent.
func (m *metaCache) now() uint64 { return m.seq.Load() }

// stamp notes that something has happened to what has the hash.
func (m *metaCache) stamp(s *stamps, hash uint64) {
	b, n := s.at(hash), m.seq.Add(1)
	for old := b.Load(); old < n && !b.CompareAndSwap(old, n); old = b.Load() {
	}
}

// keepable reports whether an answer about ino, asked for at start, may be kept as far as callbacks are concerned.
// Preconditions: the shard's lock is held.
func (m *metaCache) keepable(ino id.Ino, start uint64) bool {
	return start >= m.floor.Load() && m.called.at(hashIno(ino)).Load() <= start
}

// usable reports whether anything may be served.
func (m *metaCache) usable() bool {
	till := m.till.Load()
	return till != 0 && bootTime() < till
}

// extend takes the answer to a renewal that was sent at a boot time. It reports whether the lease had ended before that: the
// leader may have gone on without us, so that all was dropped, and the kernel must drop what it has too.
func (m *metaCache) extend(sent int64, lease time.Duration) (lapsed bool) {
	till := m.till.Load()
	if lapsed = till != 0 && bootTime() >= till; lapsed {
		m.drop()
	}
	if lease <= 0 {
		m.till.Store(0)
		return lapsed
	}
	m.till.Store(sent + int64(lease))
	return lapsed
}

// drop forgets everything. Answers to what was asked before are not kept.
func (m *metaCache) drop() {
	m.till.Store(0)
	m.floor.Store(m.seq.Add(1))
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for _, r := range s.ring {
			m.total.Add(-r.weight())
		}
		clear(s.m)
		clear(s.ring)
		s.ring, s.hand = s.ring[:0], 0
		s.mu.Unlock()
	}
}

// recall forgets what a META callback names.
func (m *metaCache) recall(attrs, dirs []uint64) {
	for _, list := range [...][]uint64{attrs, dirs} {
		for _, n := range list {
			m.stamp(&m.called, hashIno(id.Ino(n)))
		}
	}
	for _, n := range attrs {
		m.forget(id.Ino(n), true, false)
	}
	for _, n := range dirs {
		m.forget(id.Ino(n), false, true)
	}
}

// forget drops the attributes or the names of an inode.
func (m *metaCache) forget(ino id.Ino, attr, dir bool) {
	s := m.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.m[ino]
	if r == nil {
		return
	}
	m.total.Add(-r.weight())
	r.parent = 0
	if attr {
		r.attr = nil
	}
	if dir {
		r.names = nil
	}
	m.total.Add(r.weight())
	s.tidy(r)
}

// tidy removes a record that holds nothing.
func (s *cacheShard) tidy(r *record) {
	if r.attr == nil && r.names == nil {
		s.remove(r)
	}
}

func (s *cacheShard) remove(r *record) {
	last := s.ring[len(s.ring)-1]
	s.ring[r.slot], last.slot = last, r.slot
	s.ring[len(s.ring)-1] = nil
	s.ring = s.ring[:len(s.ring)-1]
	delete(s.m, r.ino)
}

// need returns the record, made if it is not there.
func (s *cacheShard) need(ino id.Ino) *record {
	r := s.m[ino]
	if r == nil {
		r = &record{ino: ino, slot: len(s.ring)}
		s.m[ino] = r
		s.ring = append(s.ring, r)
	}
	return r
}

// touch notes that a record was used, without writing to its cache line each time.
func (r *record) touch() {
	if !r.used.Load() {
		r.used.Store(true)
	}
}

// trim evicts until the limit is kept, or enough was looked at. No lock is held.
func (m *metaCache) trim() {
	for range evictShards {
		if m.total.Load() <= m.limit {
			return
		}
		s := &m.shards[m.hand.Add(1)%cacheShards]
		s.mu.Lock()
		for range min(evictScan, len(s.ring)) {
			if m.total.Load() <= m.limit || len(s.ring) == 0 {
				break
			}
			s.hand %= len(s.ring)
			r := s.ring[s.hand]
			if r.used.Swap(false) {
				s.hand++
				continue
			}
			m.total.Add(-r.weight())
			s.remove(r)
		}
		s.mu.Unlock()
	}
}

// attr returns the attributes of an inode, or nil if they must be asked for.
func (m *metaCache) attr(ino id.Ino) *msg.Attr {
	s := m.shard(ino)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return m.attrLocked(s, ino)
}

func (m *metaCache) attrLocked(s *cacheShard, ino id.Ino) *msg.Attr {
	r := s.m[ino]
	if r == nil || r.attr == nil || m.wild.Load() > 0 {
		return nil
	}
	if b := s.busy[ino]; b != nil && b.attr > 0 {
		return nil
	}
	r.touch()
	return r.attr
}

// learnAttr keeps attributes that the leader granted in an answer to what was asked at start.
func (m *metaCache) learnAttr(a *msg.Attr, index, start uint64) {
	ino := id.Ino(a.Ino)
	s := m.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !m.keepable(ino, start) || m.changed.at(hashIno(ino)).Load() > start || a.Nlink == 0 {
		return
	}
	m.putAttr(s, a, index)
}

// putAttr replaces what is held of an inode, unless that is newer.
func (m *metaCache) putAttr(s *cacheShard, a *msg.Attr, index uint64) {
	r := s.need(id.Ino(a.Ino))
	if r.attr == nil {
		m.total.Add(1)
	} else if r.index > index {
		return
	}
	r.attr, r.index = a, index
}

// fresh makes the attributes of an inode that are held another object with the same contents, so that Hold recognizes no answer
// that was made before.
func (m *metaCache) fresh(ino id.Ino) {
	s := m.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.m[ino]; r != nil && r.attr != nil {
		r.attr = cloneAttr(r.attr)
	}
}

func cloneAttr(a *msg.Attr) *msg.Attr {
	return &msg.Attr{Ino: a.Ino, Type: a.Type, Perm: a.Perm, Nlink: a.Nlink, Uid: a.Uid, Gid: a.Gid, Rdev: a.Rdev, Size: a.Size,
		Blocks: a.Blocks, Atime: a.Atime, Mtime: a.Mtime, Ctime: a.Ctime, Btime: a.Btime}
}

// hold returns how long the kernel may keep what is about to be written to it: a, and with a parent that name is a there, or
// nothing if a is nil. It keeps the read locks that unhold gives back.
func (m *metaCache) hold(parent id.Ino, name []byte, a *msg.Attr) (entry, attr time.Duration) {
	first, second := m.gates(parent, a)
	first.mu.RLock()
	if second != nil {
		second.mu.RLock()
	}
	till := m.till.Load()
	if till == 0 {
		return 0, 0
	}
	left := time.Duration(till-bootTime()) - kernelMargin
	if left <= 0 {
		return 0, 0
	}
	if a != nil && m.attrLocked(m.shard(id.Ino(a.Ino)), id.Ino(a.Ino)) == a {
		attr = left
	}
	// An entry without its attributes would let the kernel check permissions by old ones.
	if parent != 0 && (a == nil || attr > 0) {
		d, known := m.nameLocked(m.shard(parent), parent, name)
		if known && (a == nil && d == nil || a != nil && d != nil && d.Ino == a.Ino) {
			entry = left
		}
	}
	return entry, attr
}

func (m *metaCache) unhold(parent id.Ino, a *msg.Attr) {
	first, second := m.gates(parent, a)
	if second != nil {
		second.mu.RUnlock()
	}
	first.mu.RUnlock()
}

// gates returns the shards that an answer is about, in the order in which they are locked.
func (m *metaCache) gates(parent id.Ino, a *msg.Attr) (first, second *cacheShard) {
	switch {
	case a == nil:
		return m.shard(parent), nil
	case parent == 0:
		return m.shard(id.Ino(a.Ino)), nil
	}
	x, y := hashIno(parent)>>58%cacheShards, hashIno(id.Ino(a.Ino))>>58%cacheShards
	if x == y {
		return &m.shards[x], nil
	}
	return &m.shards[min(x, y)], &m.shards[max(x, y)]
}
