package state

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"varve/internal/invariant"

	"github.com/zeebo/xxh3"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encoder builds blocks. A checkpoint's are written, and its records counted; those of a digest are hashed.
type encoder struct {
	w     io.Writer // nil: only the digest is wanted
	sum   hash.Hash // nil: of no interest
	buf   []byte
	rec   []byte // of the sum
	total total  // of the records so far, with w
	err   error
}

func (e *encoder) count(b []byte) {
	e.rec = b
	e.total.add(xxh3.Hash128(b))
}

func (e *encoder) u(v uint64)  { e.buf = binary.AppendUvarint(e.buf, v) }
func (e *encoder) i(v int64)   { e.buf = binary.AppendVarint(e.buf, v) }
func (e *encoder) kind(k byte) { e.buf = append(e.buf, k) }

func (e *encoder) str(v string) {
	e.u(uint64(len(v)))
	e.buf = append(e.buf, v...)
}

func (e *encoder) flag(v bool) {
	if v {
		e.buf = append(e.buf, 1)
	} else {
		e.buf = append(e.buf, 0)
	}
}

// end ends a record; it reports whether to go on.
func (e *encoder) end() bool {
	if len(e.buf) >= blockTarget {
		e.flush()
	}
	return e.err == nil
}

func (e *encoder) flush() {
	if len(e.buf) == 0 || e.err != nil {
		return
	}
	if len(e.buf) > maxBlock {
		invariant.Failf("checkpoint: block of %d bytes", len(e.buf))
	}
	if e.sum != nil {
		e.sum.Write(e.buf)
	}
	e.frame(uint32(len(e.buf)), e.buf)
	e.buf = e.buf[:0]
}

func (e *encoder) frame(length uint32, body []byte) {
	if e.w == nil {
		return
	}
	var h [8]byte
	binary.LittleEndian.PutUint32(h[:], length)
	binary.LittleEndian.PutUint32(h[4:], crc32.Checksum(body, castagnoli))
	e.write(h[:])
	e.write(body)
}

func (e *encoder) write(p []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(p)
	}
}

// Digest names the state: SHA-256 over its canonical encoding (see format.go). It reads all of the state.
func (s *State) Digest() [sha256.Size]byte {
	e := &encoder{sum: sha256.New(), buf: make([]byte, 0, blockTarget+1024)}
	s.encode(e)
	return [sha256.Size]byte(e.sum.Sum(nil))
}

// ErrChanged is what Write returns if the records do not add up to the digest that was kept with every event: one changed
// without, so the memory is damaged, or there is a bug.
var ErrChanged = errors.New("state: a record changed without an event")

// Write writes a checkpoint of the state, one block at a time. The error is that of w, or wraps ErrChanged; then nobody can read
// what was written.
func (s *State) Write(w io.Writer) error {
	e := &encoder{w: w, buf: make([]byte, 0, blockTarget+1024), rec: make([]byte, 0, 1024)}
	var h [headerSize]byte
	copy(h[:], magic)
	binary.LittleEndian.PutUint32(h[8:], version)
	e.write(h[:])
	s.encode(e)
	kept, counted := s.Sum(), s.finish(e.total)
	if e.err == nil && kept != counted {
		return fmt.Errorf("checkpoint at index %d: digest %x was kept, records have %x: %w", s.index, kept, counted, ErrChanged)
	}
	e.frame(0, counted[:])
	return e.err
}

func (s *State) encode(e *encoder) {
	e.kind(kindCluster)
	e.u(uint64(s.index))
	e.buf = append(e.buf, s.cluster[:]...)
	e.str(s.name)
	e.u(uint64(s.lastIno))
	e.u(uint64(s.lastChunk))
	e.u(uint64(s.lastSession))
	e.u(uint64(s.lastServer))
	e.u(uint64(s.lastMeta))
	s.config.Ascend(e.setting)
	s.metas.Ascend(e.meta)
	s.servers.Ascend(0, e.server)
	s.sessions.Ascend(0, e.session)
	s.inodes.Ascend(0, e.inode)
	if e.w != nil {
		s.cookies.Ascend(e.dentry)
	} else {
		s.Names(e.dentry)
	}
	s.eachChunk(e.chunk)
	s.leases.Ascend(e.lease)
	s.results.Ascend(0, e.results)
	s.locks.Ascend(e.locks)
	s.garbage.Ascend(e.garbage)
	s.notes.Ascend(e.note)
	s.securities(e.security)
	s.certs.Ascend(e.cert)
	e.flush()
}

func (e *encoder) setting(c Setting) bool {
	if e.w != nil {
		e.count(sumSetting(e.rec, c))
	}
	e.kind(kindSetting)
	e.str(c.Key)
	e.str(c.Value)
	return e.end()
}

func (e *encoder) meta(m *Meta) bool {
	if e.w != nil {
		e.count(sumMeta(e.rec, m))
	}
	e.kind(kindMeta)
	e.u(uint64(m.ID))
	e.str(m.UUID)
	e.str(m.Addr)
	return e.end()
}

func (e *encoder) server(r *Server) bool {
	if e.w != nil {
		e.count(sumServer(e.rec, r))
	}
	e.kind(kindServer)
	e.u(uint64(r.ID))
	e.str(r.UUID)
	e.str(r.Addr)
	e.str(r.Host)
	e.str(r.Rack)
	e.u(uint64(r.Tier))
	e.u(uint64(r.Added))
	e.u(r.status())
	return e.end()
}

func (e *encoder) session(x *Session) bool {
	if e.w != nil {
		e.count(sumSession(e.rec, x))
	}
	e.kind(kindSession)
	e.u(uint64(x.ID))
	e.str(x.Host)
	e.u(uint64(x.PID))
	e.str(x.Mount)
	e.str(x.Nonce)
	e.u(uint64(x.Opened))
	e.i(x.Time)
	e.flag(x.Fenced)
	return e.end()
}

func (e *encoder) inode(n *Inode) bool {
	if e.w != nil {
		e.count(sumInode(e.rec, n))
	}
	e.kind(kindInode)
	e.u(uint64(n.Ino))
	e.u(uint64(n.mode))
	e.u(uint64(n.Parent))
	e.u(n.Size)
	e.i(n.Atime)
	e.i(n.Mtime)
	e.i(n.Ctime)
	e.i(n.Btime)
	e.u(uint64(n.UID))
	e.u(uint64(n.GID))
	e.u(uint64(n.links))
	e.u(uint64(n.count))
	e.flag(n.rare != nil)
	if r := n.rare; r != nil {
		e.u(uint64(r.rdev))
		e.str(r.target)
		e.u(r.policy.packed())
		e.u(uint64(r.policy.Min))
		e.flag(r.punchy)
		e.u(uint64(r.punch.Index))
		e.u(uint64(r.punch.From))
		e.u(uint64(len(r.xattrs)))
		for _, x := range r.xattrs {
			e.str(x.Name)
			e.str(x.Value)
		}
		if r.policy.Prefer != "" {
			e.str(r.policy.Prefer)
		}
	}
	return e.end()
}

func (e *encoder) dentry(d *Dentry) bool {
	if e.w != nil {
		e.count(sumDentry(e.rec, d))
	}
	e.kind(kindDentry)
	e.u(uint64(d.Parent))
	e.str(d.Name)
	e.u(uint64(d.Ino))
	e.u(d.Cookie)
	e.u(uint64(d.Type))
	return e.end()
}

func (e *encoder) chunk(c *Chunk) bool {
	if e.w != nil {
		e.count(sumChunk(e.rec, c))
	}
	e.kind(kindChunk)
	e.u(uint64(c.Ino))
	e.u(uint64(c.Index()))
	e.u(uint64(c.ID))
	e.u(uint64(c.Epoch()))
	e.u(uint64(c.Norm()))
	e.u(uint64(c.Len()))
	for i := range c.Len() {
		r := c.Replica(i)
		e.u(uint64(r.Server))
		e.flag(r.Joining)
	}
	return e.end()
}

func (e *encoder) lease(l Lease) bool {
	if e.w != nil {
		e.count(sumLease(e.rec, l))
	}
	e.kind(kindLease)
	e.u(uint64(l.Ino))
	e.u(uint64(l.Session))
	e.u(uint64(l.Want))
	e.u(uint64(l.Index))
	return e.end()
}

func (e *encoder) results(r *results) bool {
	e.kind(kindResults)
	e.u(uint64(r.session))
	e.u(r.floor)
	e.u(uint64(len(r.list)))
	if e.w != nil {
		e.count(sumFloor(e.rec, r))
	}
	for _, v := range r.list {
		if e.w != nil {
			e.count(sumResult(e.rec, r.session, v))
		}
		e.u(v.Seq)
		e.u(uint64(v.Ino))
		e.u(uint64(v.Index))
		e.u(v.Value)
	}
	return e.end()
}

func (e *encoder) locks(f *fileLocks) bool {
	if e.w != nil {
		e.count(sumLocks(e.rec, f))
	}
	e.kind(kindLocks)
	e.u(uint64(f.ino))
	for _, list := range [][]Lock{f.posix, f.flock} {
		e.u(uint64(len(list)))
		for _, l := range list {
			e.u(uint64(l.Owner.Session))
			e.u(l.Owner.Number)
			e.u(uint64(l.PID))
			e.flag(l.Write)
			e.u(l.Start)
			e.u(l.End)
		}
	}
	return e.end()
}

func (e *encoder) garbage(k garbageKey) bool {
	if e.w != nil {
		e.count(sumGarbage(e.rec, k))
	}
	e.kind(kindGarbage)
	e.u(uint64(k.server))
	e.u(uint64(k.chunk))
	return e.end()
}
