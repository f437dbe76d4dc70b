package state

import (
	"errors"
	"fmt"
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// maxFaults bounds what one Check reports.
const maxFaults = 20

// checker collects what does not agree.
type checker struct {
	s      *State
	faults []error
}

func (c *checker) badf(format string, args ...any) bool {
	c.faults = append(c.faults, fmt.Errorf(format, args...))
	return len(c.faults) < maxFaults
}

// Check verifies that the trees agree with one another, and returns what does not, or nil. It reads
// everything; the test of every change runs it.
func (s *State) Check() error {
	c := &checker{s: s}
	if s.index > 0 {
		c.names()
		c.inodes()
		c.chunks()
		c.leases()
		c.rest()
		if kept, counted := s.Sum(), s.Recount(); kept != counted {
			c.badf("digest: kept %x, counted %x", kept, counted)
		}
	}
	return errors.Join(c.faults...)
}

// names checks the dentries, and the link counts of the inodes that they name.
func (c *checker) names() {
	links, subdirs := map[id.Ino]uint32{}, map[id.Ino]uint32{}
	c.s.cookies.Ascend(func(d *Dentry) bool {
		n, ok := c.s.Inode(d.Ino)
		dir, okDir := c.s.Inode(d.Parent)
		switch {
		case !ok || n.Type() != d.Type:
			return c.badf("%q in %v: inode %v missing or not a %v", d.Name, d.Parent, d.Ino, d.Type)
		case !okDir || !dir.IsDir():
			return c.badf("%q in %v: parent missing or no directory", d.Name, d.Parent)
		case d.Name == "" || len(d.Name) > 255:
			return c.badf("name %q in %v", d.Name, d.Parent)
		case n.IsDir() && n.Parent != d.Parent:
			return c.badf("directory %v: in %v by name, in %v by parent", n.Ino, d.Parent, n.Parent)
		}
		links[d.Ino]++
		if n.IsDir() {
			subdirs[d.Parent]++
		}
		if other, ok := c.s.Dentry(d.Parent, d.Name); !ok || other != d {
			return c.badf("%q in %v: not found by name", d.Name, d.Parent)
		}
		return true
	})
	if a, b := c.s.dentries.Len(), c.s.cookies.Len(); a != b {
		c.badf("%d dentries, %d cookies", a, b)
	}
	c.s.inodes.Ascend(0, func(n *Inode) bool {
		switch {
		case n.Ino == id.Root:
			if links[n.Ino] != 0 || n.Parent != id.Root || !n.IsDir() {
				return c.badf("root: %d names, parent %v", links[n.Ino], n.Parent)
			}
		case n.IsDir() && links[n.Ino] != 1:
			return c.badf("directory %v: %d names", n.Ino, links[n.Ino])
		}
		if n.IsDir() && n.count != subdirs[n.Ino] {
			return c.badf("directory %v: counts %d subdirectories, has %d", n.Ino, n.count, subdirs[n.Ino])
		}
		if !n.IsDir() && n.Nlink() != links[n.Ino] {
			return c.badf("inode %v: nlink %d, %d names", n.Ino, n.Nlink(), links[n.Ino])
		}
		return true
	})
	c.loops()
}

// loops checks that every directory leads to the root.
func (c *checker) loops() {
	c.s.inodes.Ascend(0, func(n *Inode) bool {
		if !n.IsDir() {
			return true
		}
		at := n
		for range maxDepth {
			if at.Ino == id.Root {
				return true
			}
			up, ok := c.s.Inode(at.Parent)
			if !ok {
				break
			}
			at = up
		}
		return c.badf("directory %v: does not lead to the root", n.Ino)
	})
}

func (c *checker) inodes() {
	orphans, unsettled, punching := 0, 0, 0
	c.s.inodes.Ascend(0, func(n *Inode) bool {
		if n.Ino > c.s.lastIno {
			return c.badf("inode %v: above the highest used, %v", n.Ino, c.s.lastIno)
		}
		if n.Nlink() == 0 {
			orphans++
			if !c.s.orphans.Has(n.Ino) || !c.s.anyLease(n.Ino) {
				return c.badf("inode %v: no names; orphan %v, leased %v", n.Ino, c.s.orphans.Has(n.Ino), c.s.anyLease(n.Ino))
			}
		}
		if n.Unsettled() {
			unsettled++
			if !c.s.unsettled.Has(n.Ino) {
				return c.badf("inode %v: unsettled, not in the index", n.Ino)
			}
		}
		if p, ok := n.Punch(); ok {
			punching++
			_, there := c.s.Chunk(n.Ino, p.Index)
			if !c.s.punching.Has(n.Ino) || !there || p.From == 0 {
				return c.badf("inode %v: pending punch %+v, chunk there %v", n.Ino, p, there)
			}
		}
		if n.rare != nil && n.rare.empty() {
			return c.badf("inode %v: empty rare part", n.Ino)
		}
		return true
	})
	if orphans != c.s.orphans.Len() || unsettled != c.s.unsettled.Len() || punching != c.s.punching.Len() {
		c.badf("orphans, unsettled, punching: want %d %d %d, indexes have %d %d %d", orphans, unsettled, punching,
			c.s.orphans.Len(), c.s.unsettled.Len(), c.s.punching.Len())
	}
}

func (c *checker) chunks() {
	count, degraded, surplus, joining := map[id.Ino]uint32{}, 0, 0, 0
	c.s.eachChunk(func(k *Chunk) bool {
		count[k.Ino]++
		joining += k.Joining()
		switch n, ok := c.s.Inode(k.Ino); {
		case !ok || !n.IsRegular():
			return c.badf("chunk %v: inode %v missing or not regular", k.ID, k.Ino)
		case k.InSync() == 0 || k.Epoch() == 0 || k.ID > c.s.lastChunk:
			return c.badf("chunk %v: epoch %v, %d in sync, highest id %v", k.ID, k.Epoch(), k.InSync(), c.s.lastChunk)
		}
		if other, ok := c.s.ChunkByID(k.ID); !ok || other != k {
			return c.badf("chunk %v: not found by id", k.ID)
		}
		if k.Degraded() {
			degraded++
		}
		if k.InSync() > k.Norm() {
			surplus++
		}
		if more := k.InSync() > k.Norm(); more != c.s.surplus.Has(k.ID) {
			return c.badf("chunk %v: surplus is %v, index differs", k.ID, more)
		}
		if k.Degraded() != c.s.degraded.Has(degradedKey{uint8(k.InSync()), k.ID}) {
			return c.badf("chunk %v: degraded is %v, index differs", k.ID, k.Degraded())
		}
		seen := map[id.ServerID]bool{}
		for i := range k.Len() {
			r := k.Replica(i)
			_, known := c.s.Server(r.Server)
			if seen[r.Server] || !known || c.s.IsGarbage(r.Server, k.ID) {
				return c.badf("chunk %v on %v: twice %v, server known %v, or garbage", k.ID, r.Server, seen[r.Server], known)
			}
			seen[r.Server] = true
		}
		return true
	})
	c.s.inodes.Ascend(0, func(n *Inode) bool {
		if n.IsRegular() && n.count != count[n.Ino] {
			return c.badf("inode %v: counts %d chunks, has %d", n.Ino, n.count, count[n.Ino])
		}
		return true
	})
	if c.s.byID.Len() != c.s.heads.Len()+c.s.chunks.Len() || degraded != c.s.degraded.Len() || surplus != c.s.surplus.Len() || joining != c.s.joining {
		c.badf("chunks %d, by id %d; degraded %d, index %d; surplus %d, index %d; joining %d, counted %d", c.s.heads.Len()+c.s.chunks.Len(), c.s.byID.Len(),
			degraded, c.s.degraded.Len(), surplus, c.s.surplus.Len(), joining, c.s.joining)
	}
	c.s.garbage.Ascend(func(k garbageKey) bool {
		if _, live := c.s.ChunkByID(k.chunk); live {
			return c.badf("chunk %v: garbage of %v, but live", k.chunk, k.server)
		}
		return true
	})
}

func (c *checker) leases() {
	c.s.leases.Ascend(func(l Lease) bool {
		n, ok := c.s.Inode(l.Ino)
		x, open := c.s.Session(l.Session)
		if !ok || !n.IsRegular() || !open || x.Fenced || l.Want == msg.Want_WANT_NONE ||
			!c.s.held.Has(leaseKey{l.Session, l.Ino}) {
			return c.badf("lease %+v: inode %v, session %v", l, ok, open)
		}
		return true
	})
	if c.s.held.Len() != c.s.leases.Len() {
		c.badf("%d leases, %d by session", c.s.leases.Len(), c.s.held.Len())
	}
	c.s.locks.Ascend(func(f *fileLocks) bool {
		if _, ok := c.s.Inode(f.ino); !ok || len(f.posix)+len(f.flock) == 0 {
			return c.badf("locks of inode %v: missing, or none", f.ino)
		}
		for _, list := range [][]Lock{f.posix, f.flock} {
			if !slices.IsSortedFunc(list, compareLocks) {
				return c.badf("locks of inode %v: not sorted", f.ino)
			}
			for i, l := range list {
				x, open := c.s.Session(l.Owner.Session)
				o, bad := Conflict(list, l)
				if bad || !open || x.Fenced || l.Start > l.End {
					return c.badf("lock %+v of inode %v: session %v, conflict %+v", l, f.ino, open, o)
				}
				for _, o := range list[i+1:] {
					if o.Owner == l.Owner && o.overlaps(l.Start, l.End) {
						return c.badf("locks of inode %v: %+v overlaps %+v", f.ino, l, o)
					}
				}
			}
		}
		return true
	})
}

func (c *checker) rest() {
	c.s.results.Ascend(0, func(r *results) bool {
		x, ok := c.s.Session(r.session)
		if !ok || x.Fenced || len(r.list) > MaxResults || len(r.list) > 0 && r.list[0].Seq <= r.floor {
			return c.badf("results of session %v: open %v, %d of them", r.session, ok, len(r.list))
		}
		return true
	})
	c.s.sessions.Ascend(0, func(x *Session) bool {
		if x.ID > c.s.lastSession || x.Fenced == c.hasResults(x.ID) {
			return c.badf("session %v: fenced %v, highest %v", x.ID, x.Fenced, c.s.lastSession)
		}
		return true
	})
	writers := 0
	c.s.notes.Ascend(func(n note) bool {
		switch n.what {
		case noteLost:
			if k, ok := c.s.ChunkByID(id.ChunkID(n.key)); !ok || uint64(k.Epoch()) < n.value {
				return c.badf("note that chunk %x lost writes before epoch %d: there %v", n.key, n.value, ok)
			}
		case notePuncher:
			x, ok := c.s.Inode(id.Ino(n.key))
			if ok {
				_, ok = x.Punch()
			}
			if !ok {
				return c.badf("note of who punches inode %d, where nothing is to be punched", n.key)
			}
		case noteWriter:
			x, ok := c.s.Inode(id.Ino(n.key))
			_, aged := c.s.writers.Get(granted{id.Index(n.value), id.Ino(n.key)})
			writers++
			if !ok || !x.IsRegular() || !aged || id.Index(n.value) > c.s.index {
				return c.badf("note that inode %d was let be written to at index %d: a file %v, by age %v", n.key, n.value, ok, aged)
			}
		case noteSince:
			if n.key != 0 || id.Index(n.value) > c.s.index {
				return c.badf("note of writers up to index %d, about %d", n.value, n.key)
			}
		case noteMode, noteUntil:
			r, ok := c.s.Server(id.ServerID(n.key))
			if !ok || r.Retired || n.what == noteUntil && r.Mode != event.ServerMode_STANDBY {
				return c.badf("note of the mode of chunk server %d: there %v", n.key, ok)
			}
		}
		return true
	})
	if v := c.s.security; v != nil && (v.Oldest == 0 || v.Oldest > v.Authority || v.Changed > uint64(c.s.index)) {
		c.badf("security of generations %d to %d, changed at %d", v.Oldest, v.Authority, v.Changed)
	}
	if n := c.s.writers.Len(); n != writers || n > maxWriters {
		c.badf("%d writers by age, %d notes of them", n, writers)
	}
	c.s.garbage.Ascend(func(k garbageKey) bool {
		if r, ok := c.s.Server(k.server); !ok || r.Retired || k.chunk > c.s.lastChunk {
			return c.badf("garbage %v of %v: server missing or retired", k.chunk, k.server)
		}
		return true
	})
}

func (c *checker) hasResults(session id.SessionID) bool {
	_, ok := c.s.results.Get(uint64(session))
	return ok
}
