package state

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"strings"

	"varve/internal/id"
)

// Difference is one record that two states do not have alike.
type Difference struct {
	Kind string // as in format.go
	Key  string // of the record, for people
	A, B string // what each has, for people; "" if the state has no such record
}

func (d Difference) String() string {
	text := func(v string) string {
		if v == "" {
			return "(none)"
		}
		return v
	}
	return fmt.Sprintf("%s %s: %s and %s", d.Kind, d.Key, text(d.A), text(d.B))
}

// FirstDifference returns the first record that a and b do not have alike, in the order of Differences, and whether there is one.
func FirstDifference(a, b *State) (Difference, bool) {
	for d := range Differences(a, b) {
		return d, true
	}
	return Difference{}, false
}

// Differences are the records that a and b do not have alike: the cluster's first, then as in a checkpoint. It reads both states
// once, and keeps nothing but the record that it is at. Unequal states, by their digests, have at least one.
func Differences(a, b *State) iter.Seq[Difference] {
	return func(yield func(Difference) bool) {
		more := true
		pairs(&more, yield, "cluster", seq(a.clusters), seq(b.clusters), func(x, y cluster) int { return 0 }, sumCluster,
			func(x cluster) (string, string) { return x.s.name, fmt.Sprintf("%+v", x.facts()) })
		pairs(&more, yield, "setting", seq(a.config.Ascend), seq(b.config.Ascend), func(x, y Setting) int { return cmp.Compare(x.Key, y.Key) },
			sumSetting, func(x Setting) (string, string) { return x.Key, fmt.Sprintf("%q", x.Value) })
		pairs(&more, yield, "metadata server", seq(a.metas.Ascend), seq(b.metas.Ascend), func(x, y *Meta) int { return cmp.Compare(x.ID, y.ID) },
			sumMeta, func(x *Meta) (string, string) { return x.ID.String(), fmt.Sprintf("%+v", *x) })
		pairs(&more, yield, "chunk server", seq(a.Servers), seq(b.Servers), func(x, y *Server) int { return cmp.Compare(x.ID, y.ID) },
			sumServer, func(x *Server) (string, string) { return x.ID.String(), fmt.Sprintf("%+v", *x) })
		pairs(&more, yield, "session", seq(a.Sessions), seq(b.Sessions), func(x, y *Session) int { return cmp.Compare(x.ID, y.ID) },
			sumSession, func(x *Session) (string, string) { return fmt.Sprint(uint64(x.ID)), fmt.Sprintf("%+v", *x) })
		inodes := func(s *State) iter.Seq[*Inode] { return seq(func(fn func(*Inode) bool) { s.Inodes(0, fn) }) }
		pairs(&more, yield, "inode", inodes(a), inodes(b), func(x, y *Inode) int { return cmp.Compare(x.Ino, y.Ino) }, sumInode, inodeText)
		pairs(&more, yield, "dentry", seq(a.cookies.Ascend), seq(b.cookies.Ascend), func(x, y *Dentry) int {
			return cmp.Or(cmp.Compare(x.Parent, y.Parent), cmp.Compare(x.Cookie, y.Cookie))
		}, sumDentry, func(x *Dentry) (string, string) {
			return fmt.Sprintf("cookie %d in %v", x.Cookie, x.Parent), fmt.Sprintf("%q, inode %v, %v", x.Name, x.Ino, x.Type)
		})
		pairs(&more, yield, "chunk", seq(a.eachChunk), seq(b.eachChunk), func(x, y *Chunk) int {
			return cmp.Or(cmp.Compare(x.Ino, y.Ino), cmp.Compare(x.Index(), y.Index()))
		}, sumChunk, chunkText)
		pairs(&more, yield, "lease", seq(a.leases.Ascend), seq(b.leases.Ascend), func(x, y Lease) int {
			return cmp.Or(cmp.Compare(x.Ino, y.Ino), cmp.Compare(x.Session, y.Session))
		}, sumLease, func(x Lease) (string, string) {
			return fmt.Sprintf("of session %d on inode %v", x.Session, x.Ino), fmt.Sprintf("%v since %v", x.Want, x.Index)
		})
		sessions := func(s *State) iter.Seq[*results] {
			return seq(func(fn func(*results) bool) { s.results.Ascend(0, fn) })
		}
		pairs(&more, yield, "outcomes", sessions(a), sessions(b), func(x, y *results) int { return cmp.Compare(x.session, y.session) },
			sumResults, func(x *results) (string, string) {
				return fmt.Sprintf("of session %d", x.session), fmt.Sprintf("acknowledged up to %d, then %+v", x.floor, x.list)
			})
		pairs(&more, yield, "locks", seq(a.locks.Ascend), seq(b.locks.Ascend), func(x, y *fileLocks) int { return cmp.Compare(x.ino, y.ino) },
			sumLocks, func(x *fileLocks) (string, string) {
				return fmt.Sprintf("of inode %v", x.ino), fmt.Sprintf("%+v, flock %+v", x.posix, x.flock)
			})
		pairs(&more, yield, "garbage", seq(a.garbage.Ascend), seq(b.garbage.Ascend), func(x, y garbageKey) int {
			return cmp.Or(cmp.Compare(x.server, y.server), cmp.Compare(x.chunk, y.chunk))
		}, sumGarbage, func(x garbageKey) (string, string) {
			return fmt.Sprintf("chunk %v on %v", x.chunk, x.server), "to be deleted"
		})
		pairs(&more, yield, "note", seq(a.notes.Ascend), seq(b.notes.Ascend), func(x, y note) int {
			return cmp.Or(cmp.Compare(x.what, y.what), cmp.Compare(x.key, y.key))
		}, sumNote, noteText)
		pairs(&more, yield, "security", seq(a.securities), seq(b.securities), func(x, y *Security) int { return 0 }, sumSecurity, securityText)
		pairs(&more, yield, "certificate", seq(a.certs.Ascend), seq(b.certs.Ascend), func(x, y *Cert) int { return cmp.Compare(x.Serial, y.Serial) },
			sumCert, certText)
	}
}

func seq[T any](each func(func(T) bool)) iter.Seq[T] {
	return func(yield func(T) bool) { each(yield) }
}

// pairs merges two sequences that are sorted by compare, and yields the records that one side lacks or whose sums differ.
func pairs[T any](more *bool, yield func(Difference) bool, kind string, a, b iter.Seq[T], compare func(x, y T) int,
	sum func([]byte, T) []byte, text func(T) (key, value string)) {
	if !*more {
		return
	}
	nextA, stopA := iter.Pull(a)
	defer stopA()
	nextB, stopB := iter.Pull(b)
	defer stopB()
	var bufA, bufB []byte
	x, okX := nextA()
	y, okY := nextB()
	for *more && (okX || okY) {
		order := 0
		switch {
		case !okY:
			order = -1
		case !okX:
			order = 1
		default:
			order = compare(x, y)
		}
		if order == 0 {
			bufA, bufB = sum(bufA, x), sum(bufB, y)
		}
		if order != 0 || !bytes.Equal(bufA, bufB) {
			d := Difference{Kind: kind}
			if order <= 0 {
				d.Key, d.A = text(x)
			}
			if order >= 0 {
				d.Key, d.B = text(y)
			}
			*more = yield(d)
		}
		if order <= 0 {
			x, okX = nextA()
		}
		if order >= 0 {
			y, okY = nextB()
		}
	}
}

// cluster stands for the record of a state that its index and counters are.
type cluster struct{ s *State }

func (s *State) clusters(fn func(cluster) bool) { fn(cluster{s}) }

func (c cluster) facts() any {
	return struct {
		Index                               id.Index
		UUID                                id.Cluster
		Ino                                 id.Ino
		Chunk                               id.ChunkID
		Session, Server, MetadataServerUsed uint64
	}{c.s.index, c.s.cluster, c.s.lastIno, c.s.lastChunk, uint64(c.s.lastSession), uint64(c.s.lastServer), uint64(c.s.lastMeta)}
}

func inodeText(n *Inode) (string, string) {
	text := fmt.Sprintf("%v %04o uid %d gid %d nlink %d size %d, parent %v, atime %d mtime %d ctime %d btime %d, %d chunks or subdirectories",
		n.Type(), n.Perm(), n.UID, n.GID, n.Nlink(), n.Size, n.Parent, n.Atime, n.Mtime, n.Ctime, n.Btime, n.count)
	if n.Unsettled() {
		text += ", unsettled"
	}
	if n.rare != nil {
		text += fmt.Sprintf(", %+v", *n.rare)
	}
	return n.Ino.String(), text
}

func chunkText(c *Chunk) (string, string) {
	var on strings.Builder
	for i := range c.Len() {
		r := c.Replica(i)
		fmt.Fprintf(&on, " %v", r.Server)
		if r.Joining {
			on.WriteString("(joining)")
		}
	}
	return fmt.Sprintf("%d of inode %v", c.Index(), c.Ino), fmt.Sprintf("%v, epoch %v, norm %d, on%s", c.ID, c.Epoch(), c.Norm(), on.String())
}

func sumResults(b []byte, r *results) []byte {
	b = sumFloor(b, r)
	for _, v := range r.list {
		b = words(b, v.Seq, uint64(v.Ino), uint64(v.Index), v.Value)
	}
	return b
}
