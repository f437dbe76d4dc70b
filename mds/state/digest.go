package state

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"varve/internal/id"

	"github.com/zeebo/xxh3"
)

// Sum is the digest that is kept with every change: see format.go. It costs nothing to ask for.
type Sum [16]byte

// Kinds of digests, as in a Digest event.
const (
	DigestSHA256 = 0 // of the whole canonical encoding
	DigestSum    = 1
)

// total adds up the hashes of records modulo 2^128, so that the order in which they came does not matter.
type total struct{ hi, lo uint64 }

func (t *total) add(h xxh3.Uint128) {
	var carry uint64
	t.lo, carry = bits.Add64(t.lo, h.Lo, 0)
	t.hi, _ = bits.Add64(t.hi, h.Hi, carry)
}

func (t *total) sub(h xxh3.Uint128) {
	var borrow uint64
	t.lo, borrow = bits.Sub64(t.lo, h.Lo, 0)
	t.hi, _ = bits.Sub64(t.hi, h.Hi, borrow)
}

// Sum returns the digest of the state, in constant time unless it is suspended.
func (s *State) Sum() Sum {
	if s.suspended {
		return s.Recount()
	}
	return s.finish(s.total)
}

// Recount computes the sum anew from every record. It differs from Sum only if a record changed behind Apply's back.
func (s *State) Recount() Sum { return s.finish(s.count()) }

func (s *State) count() total {
	var t total
	var b []byte
	s.config.Ascend(func(c Setting) bool { b = sumSetting(b, c); t.add(xxh3.Hash128(b)); return true })
	s.metas.Ascend(func(m *Meta) bool { b = sumMeta(b, m); t.add(xxh3.Hash128(b)); return true })
	s.servers.Ascend(0, func(r *Server) bool { b = sumServer(b, r); t.add(xxh3.Hash128(b)); return true })
	s.sessions.Ascend(0, func(x *Session) bool { b = sumSession(b, x); t.add(xxh3.Hash128(b)); return true })
	s.inodes.Ascend(0, func(n *Inode) bool { b = sumInode(b, n); t.add(xxh3.Hash128(b)); return true })
	s.cookies.Ascend(func(d *Dentry) bool { b = sumDentry(b, d); t.add(xxh3.Hash128(b)); return true })
	s.eachChunk(func(c *Chunk) bool { b = sumChunk(b, c); t.add(xxh3.Hash128(b)); return true })
	s.leases.Ascend(func(l Lease) bool { b = sumLease(b, l); t.add(xxh3.Hash128(b)); return true })
	s.locks.Ascend(func(f *fileLocks) bool { b = sumLocks(b, f); t.add(xxh3.Hash128(b)); return true })
	s.garbage.Ascend(func(k garbageKey) bool { b = sumGarbage(b, k); t.add(xxh3.Hash128(b)); return true })
	s.notes.Ascend(func(n note) bool { b = sumNote(b, n); t.add(xxh3.Hash128(b)); return true })
	s.securities(func(v *Security) bool { b = sumSecurity(b, v); t.add(xxh3.Hash128(b)); return true })
	s.certs.Ascend(func(c *Cert) bool { b = sumCert(b, c); t.add(xxh3.Hash128(b)); return true })
	s.results.Ascend(0, func(r *results) bool {
		b = sumFloor(b, r)
		t.add(xxh3.Hash128(b))
		for _, v := range r.list {
			b = sumResult(b, r.session, v)
			t.add(xxh3.Hash128(b))
		}
		return true
	})
	return t
}

// finish adds the record of the cluster, which changes with every event.
func (s *State) finish(t total) Sum {
	var room [128]byte
	t.add(xxh3.Hash128(sumCluster(room[:], cluster{s})))
	var out Sum
	binary.BigEndian.PutUint64(out[:], t.hi)
	binary.BigEndian.PutUint64(out[8:], t.lo)
	return out
}

// The records of the sum, each appended to b[:0].

func words(b []byte, v ...uint64) []byte {
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func str(b []byte, v string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(v)))
	return append(b, v...)
}

func bit(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

func sumCluster(b []byte, c cluster) []byte {
	s := c.s
	b = words(b[:0], kindCluster, uint64(s.index), uint64(s.lastIno), uint64(s.lastChunk), uint64(s.lastSession), uint64(s.lastServer),
		uint64(s.lastMeta))
	return str(append(b, s.cluster[:]...), s.name)
}

func sumSetting(b []byte, c Setting) []byte {
	return str(str(words(b[:0], kindSetting), c.Key), c.Value)
}

func sumMeta(b []byte, m *Meta) []byte {
	return str(str(words(b[:0], kindMeta, uint64(m.ID)), m.UUID), m.Addr)
}

func sumServer(b []byte, r *Server) []byte {
	b = words(b[:0], kindServer, uint64(r.ID), uint64(r.Tier), uint64(r.Added), r.status())
	return str(str(str(str(b, r.UUID), r.Addr), r.Host), r.Rack)
}

func sumSession(b []byte, x *Session) []byte {
	b = words(b[:0], kindSession, uint64(x.ID), uint64(x.PID), uint64(x.Opened), uint64(x.Time), bit(x.Fenced))
	return str(str(str(b, x.Host), x.Mount), x.Nonce)
}

func sumInode(b []byte, n *Inode) []byte {
	if cap(b) < 80 {
		b = make([]byte, 0, 256)
	}
	b = b[:80]
	le := binary.LittleEndian
	le.PutUint64(b[0:], kindInode|uint64(n.mode)<<16|uint64(n.links)<<32|bit(n.rare != nil)<<8)
	le.PutUint64(b[8:], uint64(n.UID)|uint64(n.GID)<<32)
	le.PutUint64(b[16:], uint64(n.Ino))
	le.PutUint64(b[24:], uint64(n.Parent))
	le.PutUint64(b[32:], n.Size)
	le.PutUint64(b[40:], uint64(n.Atime))
	le.PutUint64(b[48:], uint64(n.Mtime))
	le.PutUint64(b[56:], uint64(n.Ctime))
	le.PutUint64(b[64:], uint64(n.Btime))
	le.PutUint64(b[72:], uint64(n.count))
	r := n.rare
	if r == nil {
		return b
	}
	b = words(b, uint64(r.rdev), r.policy.packed(), uint64(r.policy.Min), bit(r.punchy), uint64(r.punch.Index),
		uint64(r.punch.From), uint64(len(r.xattrs)))
	b = str(b, r.target)
	for _, x := range r.xattrs {
		b = str(str(b, x.Name), x.Value)
	}
	if r.policy.Prefer != "" {
		b = str(b, r.policy.Prefer)
	}
	return b
}

func sumDentry(b []byte, d *Dentry) []byte {
	if cap(b) < 32+255 {
		b = make([]byte, 0, 32+256)
	}
	b = b[:32]
	le := binary.LittleEndian
	le.PutUint64(b[0:], kindDentry|uint64(d.Type)<<8)
	le.PutUint64(b[8:], uint64(d.Parent))
	le.PutUint64(b[16:], uint64(d.Ino))
	le.PutUint64(b[24:], d.Cookie)
	return append(b, d.Name...)
}

func sumChunk(b []byte, c *Chunk) []byte {
	b = append(b[:0], make([]byte, 32+4*MaxReplicas)...)
	r := c.set
	le := binary.LittleEndian
	le.PutUint64(b[0:], kindChunk|uint64(r.norm)<<32|(c.at&indexMask)<<40)
	le.PutUint64(b[8:], uint64(c.Ino))
	le.PutUint64(b[16:], uint64(c.ID))
	le.PutUint64(b[24:], uint64(c.Epoch()))
	for i, v := range r.servers {
		le.PutUint32(b[32+4*i:], v)
	}
	return b
}

func sumLease(b []byte, l Lease) []byte {
	return words(b[:0], kindLease, uint64(l.Ino), uint64(l.Session), uint64(l.Want), uint64(l.Index))
}

// sumFloor is the record of a session's floor, of three words; sumResult, of six, is that of one outcome.
func sumFloor(b []byte, r *results) []byte {
	return words(b[:0], kindResults, uint64(r.session), r.floor)
}

func sumResult(b []byte, session id.SessionID, v Result) []byte {
	return words(b[:0], kindResults, uint64(session), v.Seq, uint64(v.Ino), uint64(v.Index), v.Value)
}

func sumLocks(b []byte, f *fileLocks) []byte {
	b = words(b[:0], kindLocks, uint64(f.ino))
	for _, list := range [][]Lock{f.posix, f.flock} {
		b = words(b, uint64(len(list)))
		for _, l := range list {
			b = words(b, uint64(l.Owner.Session), l.Owner.Number, uint64(l.PID), bit(l.Write), l.Start, l.End)
		}
	}
	return b
}

func sumGarbage(b []byte, k garbageKey) []byte {
	return words(b[:0], kindGarbage, uint64(k.server), uint64(k.chunk))
}

// DigestOf returns the digest of the kind, as in a Digest event.
func (s *State) DigestOf(kind uint32) ([]byte, error) {
	switch kind {
	case DigestSHA256:
		d := s.Digest()
		return d[:], nil
	case DigestSum:
		d := s.Sum()
		return d[:], nil
	}
	return nil, fmt.Errorf("a digest of kind %d, which this version does not know", kind)
}
