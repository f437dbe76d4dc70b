package state

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// Limits of what a record may hold, so that a decoder never allocates by a number it was given.
const (
	maxString = 1 << 20
	maxList   = 1 << 20
)

// decoder takes records out of the body of one block.
type decoder struct {
	s    *State
	buf  []byte
	bad  string // what is wrong, "" while all is well
	last byte   // kind of the record before

	version uint32
	runs    struct { // the newest key of each kind
		settings run[Setting]
		metas    run[*Meta]
		servers  run[id.ServerID]
		sessions run[id.SessionID]
		inodes   run[id.Ino]
		dentries run[*Dentry]
		chunks   run[*Chunk]
		leases   run[Lease]
		results  run[id.SessionID]
		locks    run[*fileLocks]
		garbage  run[garbageKey]
		notes    run[note]
		certs    run[*Cert]
	}
}

// run is the newest of keys that have to rise.
type run[T any] struct {
	key T
	any bool
}

func (r *run[T]) next(d *decoder, v T, less func(a, b T) bool) {
	if r.any && !less(r.key, v) {
		d.fail("keys out of order")
	}
	r.key, r.any = v, true
}

func (d *decoder) fail(what string) {
	if d.bad == "" {
		d.bad = what
	}
	d.buf = nil
}

func (d *decoder) u(limit uint64) uint64 {
	v, n := binary.Uvarint(d.buf)
	if n <= 0 || v > limit || n > 1 && d.buf[n-1] == 0 {
		d.fail("number out of its range")
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

func (d *decoder) u64() uint64 { return d.u(math.MaxUint64) }
func (d *decoder) u32() uint32 { return uint32(d.u(math.MaxUint32)) }

func (d *decoder) i() int64 {
	v := d.u64()
	return int64(v>>1) ^ -int64(v&1)
}

func (d *decoder) flag() bool { return d.u(1) == 1 }

func (d *decoder) raw(n uint64) []byte {
	if n > uint64(len(d.buf)) {
		d.fail("record cut off")
		return nil
	}
	p := d.buf[:n]
	d.buf = d.buf[n:]
	return p
}

func (d *decoder) str() string { return string(d.raw(d.u(maxString))) }

// Read reads what Write wrote. It returns an error of r, or one that wraps ErrCorrupt and says where.
func Read(r io.Reader) (*State, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, readError("header", err)
	}
	if string(h[:8]) != magic || binary.LittleEndian.Uint32(h[12:]) != 0 {
		return nil, fmt.Errorf("header %x: %w", h, ErrCorrupt)
	}
	d := &decoder{s: New(), version: binary.LittleEndian.Uint32(h[8:])}
	if d.version < 1 || d.version > version {
		return nil, fmt.Errorf("version %d, know 1 to %d; a newer version of varve wrote it: %w", d.version, version, ErrCorrupt)
	}
	digest, at := sha256.New(), int64(headerSize)
	var body bytes.Buffer
	for {
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, readError(fmt.Sprintf("offset %d: block header", at), err)
		}
		length, crc := binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint32(b[4:])
		size := int64(length)
		if length == 0 {
			if size = int64(len(Sum{})); d.version == 1 {
				size = sha256.Size
			}
		}
		if size > maxBlock {
			return nil, fmt.Errorf("offset %d: block of %d bytes, at most %d: %w", at, size, maxBlock, ErrCorrupt)
		}
		body.Reset()
		if _, err := io.CopyN(&body, r, size); err != nil {
			return nil, readError(fmt.Sprintf("offset %d: block of %d bytes", at, size), err)
		}
		if got := crc32.Checksum(body.Bytes(), castagnoli); got != crc {
			return nil, fmt.Errorf("offset %d: checksum: want %08x, got %08x: %w", at, crc, got, ErrCorrupt)
		}
		if length == 0 {
			sum := d.s.Sum()
			got := sum[:]
			if d.version == 1 {
				got = digest.Sum(nil)
			}
			if !bytes.Equal(got, body.Bytes()) {
				return nil, fmt.Errorf("digest: want %x, got %x: %w", body.Bytes(), got, ErrCorrupt)
			}
			break
		}
		if d.version == 1 {
			digest.Write(body.Bytes())
		}
		if bad := d.block(body.Bytes()); bad != "" {
			return nil, fmt.Errorf("offset %d: %s: %w", at, bad, ErrCorrupt)
		}
		at += 8 + size
	}
	if d.last == 0 {
		return nil, fmt.Errorf("no records: %w", ErrCorrupt)
	}
	d.s.policy = d.s.configPolicy()
	return d.s, nil
}

func readError(what string, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%s: cut off: %w", what, ErrCorrupt)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// block decodes the records of one block; it returns what is wrong or "".
func (d *decoder) block(body []byte) string {
	d.buf = body
	for len(d.buf) > 0 {
		k := d.buf[0]
		d.buf = d.buf[1:]
		if k < d.last || (d.last == 0) != (k == kindCluster) || k == d.last && k == kindCluster {
			return fmt.Sprintf("record of kind %d after %d", k, d.last)
		}
		d.last = k
		d.record(k)
		if d.bad != "" {
			return fmt.Sprintf("record of kind %d: %s", k, d.bad)
		}
	}
	return ""
}

func (d *decoder) record(k byte) {
	switch k {
	case kindCluster:
		d.cluster()
	case kindSetting:
		v := Setting{Key: d.str(), Value: d.str()}
		if add(d, d.s.config, v, &d.runs.settings) {
			d.s.plus(sumSetting(d.s.scratch, v))
		}
	case kindMeta:
		v := &Meta{ID: id.MetaID(d.u32()), UUID: d.str(), Addr: d.str()}
		if add(d, d.s.metas, v, &d.runs.metas) {
			d.s.plus(sumMeta(d.s.scratch, v))
		}
	case kindServer:
		v := &Server{
			ID: id.ServerID(d.u(joiningBit - 1)), UUID: d.str(), Addr: d.str(), Host: d.str(), Rack: d.str(), Tier: d.u32(),
			Added: id.Index(d.u64()),
		}
		v.withStatus(d.u(uint64(lastMode) + 1))
		if rises(d, v.ID, &d.runs.servers) {
			d.s.putServer(v)
		}
	case kindSession:
		v := &Session{
			ID: id.SessionID(d.u64()), Host: d.str(), PID: d.u32(), Mount: d.str(), Nonce: d.str(),
			Opened: id.Index(d.u64()), Time: d.i(), Fenced: d.flag(),
		}
		if rises(d, v.ID, &d.runs.sessions) {
			d.s.putSession(v)
		}
	case kindInode:
		d.inode()
	case kindDentry:
		d.dentry()
	case kindChunk:
		d.chunk()
	case kindLease:
		v := Lease{Ino: id.Ino(d.u64()), Session: id.SessionID(d.u64()), Want: msg.Want(d.u(2)), Index: id.Index(d.u64())}
		if add(d, d.s.leases, v, &d.runs.leases) {
			d.s.plus(sumLease(d.s.scratch, v))
			d.s.held.ReplaceOrInsert(leaseKey{v.Session, v.Ino})
		}
	case kindResults:
		d.results()
	case kindLocks:
		v := &fileLocks{ino: id.Ino(d.u64()), posix: d.locks(), flock: d.locks()}
		if add(d, d.s.locks, v, &d.runs.locks) {
			d.s.plus(sumLocks(d.s.scratch, v))
		}
	case kindGarbage:
		v := garbageKey{id.ServerID(d.u32()), id.ChunkID(d.u64())}
		d.runs.garbage.next(d, v, func(a, b garbageKey) bool { return a.server < b.server || a.server == b.server && a.chunk < b.chunk })
		if d.bad == "" && d.s.garbage.Add(v) {
			d.s.plus(sumGarbage(d.s.scratch, v))
		}
	case kindNote:
		v := note{what: uint8(d.u(uint64(lastNote))), key: d.u64(), value: d.u64()}
		if v.what == 0 || v.value == 0 {
			d.fail("note about nothing")
		}
		if add(d, d.s.notes, v, &d.runs.notes) {
			d.s.plus(sumNote(d.s.scratch, v))
			d.s.indexNote(v)
		}
	case kindSecurity:
		d.security()
	case kindCert:
		d.cert()
	default:
		d.fail("unknown kind")
	}
}

// rises reports whether all is well, and the number above those before.
func rises[T cmp.Ordered](d *decoder, v T, r *run[T]) bool {
	r.next(d, v, func(a, b T) bool { return a < b })
	return d.bad == ""
}

// add adds a record, whose key must be above those before; it reports whether all is well.
func add[T any](d *decoder, t *tree[T], v T, r *run[T]) bool {
	r.next(d, v, t.less)
	if d.bad == "" {
		t.ReplaceOrInsert(v)
	}
	return d.bad == ""
}

func (d *decoder) dentry() {
	v := &Dentry{Parent: id.Ino(d.u64()), Name: d.str(), Ino: id.Ino(d.u64()), Cookie: d.u64(), Type: msg.FileType(d.u(7))}
	if d.version == 1 {
		d.runs.dentries.next(d, v, func(a, b *Dentry) bool { return compareNames(a, b.Parent, b.Name) < 0 })
	} else {
		d.runs.dentries.next(d, v, func(a, b *Dentry) bool { return placeOf(a).below(placeOf(b)) })
	}
	if d.bad != "" {
		return
	}
	_, twice := d.s.dentries.ReplaceOrInsert(nameOf(v))
	if !d.s.cookies.Insert(v) || twice {
		d.fail("name or cookie twice")
		return
	}
	d.s.plus(sumDentry(d.s.scratch, v))
}

func (d *decoder) cluster() {
	s := d.s
	s.index = id.Index(d.u64())
	copy(s.cluster[:], d.raw(uint64(len(s.cluster))))
	s.name = d.str()
	s.lastIno, s.lastChunk = id.Ino(d.u64()), id.ChunkID(d.u64())
	s.lastSession, s.lastServer, s.lastMeta = id.SessionID(d.u64()), id.ServerID(d.u32()), id.MetaID(d.u32())
}

func (d *decoder) inode() {
	n := &Inode{
		Ino: id.Ino(d.u64()), mode: uint16(d.u(math.MaxUint16)), Parent: id.Ino(d.u64()), Size: d.u64(),
		Atime: d.i(), Mtime: d.i(), Ctime: d.i(), Btime: d.i(),
		UID: d.u32(), GID: d.u32(), links: uint16(d.u(maxLinks)), count: d.u32(),
	}
	if d.flag() {
		n.rare = d.rare()
	}
	if d.bad == "" && (n.Type() == 0 || n.IsDir() && n.links != 0) {
		d.fail("inode of no type, or directory with links")
	}
	if !rises(d, n.Ino, &d.runs.inodes) {
		return
	}
	d.s.putInode(n)
	if n.Nlink() == 0 {
		d.s.orphans.ReplaceOrInsert(n.Ino)
	}
	if n.Unsettled() {
		d.s.unsettled.ReplaceOrInsert(n.Ino)
	}
	if _, ok := n.Punch(); ok {
		d.s.punching.ReplaceOrInsert(n.Ino)
	}
}

func (d *decoder) rare() *rare {
	r := &rare{rdev: d.u32(), target: d.str()}
	var prefer bool
	r.policy, prefer = unpack(d.u(2*policyPreferBit - 1))
	r.policy.Min = uint32(d.u(MaxReplicas))
	r.punchy = d.flag()
	r.punch = PendingPunch{Index: d.u32(), From: d.u32()}
	for range d.u(maxList) {
		if x := (Xattr{Name: d.str(), Value: d.str()}); d.bad == "" {
			r.xattrs = append(r.xattrs, x)
		} else {
			return r
		}
	}
	for i := 1; i < len(r.xattrs); i++ {
		if r.xattrs[i-1].Name >= r.xattrs[i].Name {
			d.fail("xattrs out of order")
		}
	}
	if prefer {
		r.policy.Prefer = d.str()
	}
	// The first versions let a policy be set in parts, so Min may be above Norm.
	if p := r.policy; p.Norm > MaxReplicas || p.Tier > AnyTier || p.Domain > Room || prefer && !validPrefer(p.Prefer) {
		d.fail("policy out of range")
	}
	if d.bad == "" && r.empty() {
		d.fail("empty rare part")
	}
	return r
}

func (d *decoder) chunk() {
	ino, at, k := id.Ino(d.u64()), d.u(maxChunks-1), id.ChunkID(d.u64())
	at |= d.u(maxEpoch) << indexBits
	r := replicaSet{norm: uint32(d.u(MaxReplicas))}
	for range d.u(MaxReplicas) {
		v := Replica{Server: id.ServerID(d.u(joiningBit - 1)), Joining: d.flag()}
		if _, twice := r.find(v.Server); twice || v.Server == 0 || !v.Joining && r.inSync() < r.len() {
			d.fail("replicas out of order")
			return
		}
		r.add(v.Server, v.Joining)
	}
	if d.bad != "" {
		return
	}
	c := &Chunk{ID: k, Ino: ino, at: at, set: d.s.sets.find(r)}
	if d.runs.chunks.next(d, c, lessAt); d.bad != "" {
		return
	}
	d.s.setChunk(c)
	if _, twice := d.s.byID.Put(uint64(c.ID), c); twice {
		d.fail("chunk id twice")
		return
	}
	d.s.account(c, 1)
	d.s.plus(sumChunk(d.s.scratch, c))
}

func (d *decoder) results() {
	r := &results{session: id.SessionID(d.u64()), floor: d.u64(), owner: d.s.owner}
	for range d.u(MaxResults) {
		v := Result{Seq: d.u64(), Ino: id.Ino(d.u64()), Index: id.Index(d.u64()), Value: d.u64()}
		if n := len(r.list); v.Seq <= r.floor || n > 0 && v.Seq <= r.list[n-1].Seq {
			d.fail("results out of order")
			return
		}
		d.s.addResult(r, len(r.list), v)
	}
	if !rises(d, r.session, &d.runs.results) {
		return
	}
	d.s.addResults(r)
}

func (d *decoder) locks() []Lock {
	var list []Lock
	for range d.u(maxList) {
		l := Lock{
			Owner: Owner{id.SessionID(d.u64()), d.u64()}, PID: d.u32(), Write: d.flag(), Start: d.u64(), End: d.u64(),
		}
		if n := len(list); d.bad != "" || l.Start > l.End || n > 0 && compareLocks(list[n-1], l) >= 0 {
			d.fail("locks out of order")
			return nil
		}
		list = append(list, l)
	}
	return list
}
