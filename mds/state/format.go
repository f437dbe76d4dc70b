package state

import (
	"errors"

	"varve/internal/chunk"
)

// A checkpoint is a header, blocks and a trailer. All integers outside of block bodies are little-endian.
//
//	header   0  8  magic "varvCKPT"
//	         8  4  version
//	        12  4  zero
//	block    0  4  length of the body, 1 to maxBlock
//	         4  4  CRC32C of the body
//	         8     body: whole records
//	trailer  0  4  zero
//	         4  4  CRC32C of the sum
//	         8 16  sum of the records, the state's digest of kind 1 (below)
//
// Integers in them are unsigned varints (signed ones zigzag), strings a length and the bytes.
// A record starts with its kind, one byte. Kinds come in the order below, records of a kind in the order of
// their keys, each key once; dentries by parent and cookie. Where blocks end is of no meaning, but the writer ends one when it has
// reached blockTarget, so equal states have equal checkpoints.
//
//	1 cluster    index, uuid (16 bytes), name, highest ino, chunk, session, server, metadata server used (one record)
//	2 setting    key, value
//	3 metadata server  id, uuid, addr
//	4 chunk server     id, uuid, addr, host, rack, tier, index added, status: 0 active, 1 retired, else its mode (ServerMode in event.proto) + 1
//	5 session    id, host, pid, mount, nonce, index opened, time, fenced
//	6 inode      ino, mode (bit 15 unsettled, 14..12 type, permissions), parent, size, atime, mtime, ctime, btime, uid, gid,
//	             links (0 for directories), chunks or subdirectories, has rare part;
//	             rare: rdev, target, policy (norm, tier<<8, domain<<16, has hosts<<24), min, pending punch, its index, from,
//	             count of xattrs, (name, value)..., hosts that the policy prefers if it has some
//	7 dentry     parent, name, ino, cookie, type
//	8 chunk      ino, index, id, epoch, norm, count of replicas, (server, joining)...
//	9 lease      ino, session, want, index
//	10 results   session, floor, count, (seq, ino, index, value)...
//	11 locks     ino, twice (posix, flock): count, (session, owner, pid, write, start, end)...
//	12 garbage   server, chunk
//	13 note      what (1 lost, 2 puncher, 3 writer, 4 since, 5 mode since, 6 standby until), of which chunk, inode (4: 0) or chunk server; epoch,
//	             session, index or ns; only if there are any
//	14 security  version, sealed, bundle, authority, oldest, index of the last change, count of keys, (generation, public)...; only if there is any
//	15 certificate  serial, node, role, from, until, authority, revoked
//
// Versions: 1, the first: dentries by parent and name, a trailer of 32 bytes with the SHA-256 of the bodies in order. 2: the sum, which
// the writer counts from the records, so that damaged memory is not written down as the truth; dentries as they are kept, so that none
// are sorted. Version 1 is read. The status of chunk
// servers other than active and retired came later: a reader that does not know of it refuses such a checkpoint. Notes came later
// still, those of writers and modes after them, security and certificates last: a reader that does not know them refuses a checkpoint
// that has some.
//
// The digest of kind 0, Digest, is the SHA-256 of the bodies of version 1, which is the canonical encoding of the state.
//
// A torn, short or changed checkpoint is refused as a whole (ErrCorrupt); the caller takes the one before it and replays. Nothing
// is assumed of the disk. What can be derived (indexes by session, degraded chunks, ...) is not stored.
//
// The digest of kind 1, Sum, is the sum modulo 2^128 of the XXH3-128 (seed 0) of every record, which changes with a
// record at a time: out with the old, in with the new. It is printed big-endian. It names divergence, not adversaries: whoever can choose
// records can make two states with one sum. Records here are made of words of 8 bytes (w), little-endian, and strings (s), a
// word with the length and the bytes; they are not those of a checkpoint, since speed matters more here than size:
//
//	cluster    w 1, index, highest ino, chunk, session, server, metadata server used; uuid (16 bytes), s name
//	setting    w 2; s key, value
//	metadata server  w 3, id; s uuid, addr
//	chunk server     w 4, id, tier, index added, status; s uuid, addr, host, rack
//	session    w 5, id, pid, index opened, time, fenced; s host, mount, nonce
//	inode      w 6 | has rare<<8 | mode<<16 | links<<32, uid | gid<<32, ino, parent, size, atime, mtime, ctime, btime, count;
//	           rare: w rdev, policy, min, pending punch, its index, from, count of xattrs; s target, (name, value)..., hosts
//	dentry     w 7 | type<<8, parent, ino, cookie; the bytes of the name
//	chunk      w 8 | norm<<32 | index<<40, ino, id, epoch; 5 servers of 4 bytes, bit 31: joining, 0: none
//	lease      w 9, ino, session, want, index
//	floor      w 10, session, floor
//	outcome    w 10, session, seq, ino, index, value
//	locks      w 11, ino, twice (posix, flock): count, (session, owner, pid, write, start, end)...
//	garbage    w 12, server, chunk
//	note       w 13, what, key, value
//	security   w 14, version, authority, oldest, index of the last change, count of keys; s sealed, bundle; (w generation, s public)...
//	certificate      w 15, role, from, until, authority, revoked; s serial, node
const (
	magic   = "varvCKPT"
	version = 2

	headerSize  = 16
	blockTarget = 64 << 10
	maxBlock    = 32 << 20 // the largest record, a file with as many locks as it may have, is well below
)

const (
	kindCluster = iota + 1
	kindSetting
	kindMeta
	kindServer
	kindSession
	kindInode
	kindDentry
	kindChunk
	kindLease
	kindResults
	kindLocks
	kindGarbage
	kindNote
	kindSecurity
	kindCert
)

// maxChunks is the number of chunks of the largest file.
const maxChunks = chunk.MaxFileSize / chunk.Size

// ErrCorrupt is what Read returns for anything that Write did not write.
var ErrCorrupt = errors.New("state: corrupt checkpoint")
