package history

import (
	"fmt"
	"strings"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"

	"github.com/dustin/go-humanize"
)

// Texter says what events mean, with the paths that inodes had then. Its zero value works; Note must get every event after it was told.
type Texter struct {
	Names   Names
	Size    func(uint64) string // how sizes are shown; nil: as people like them
	touched Touched
}

func (x *Texter) size(n uint64) string {
	if x.Size != nil {
		return x.Size(n)
	}
	return humanize.IBytes(n)
}

// path of an inode, quoted if it would not print as it is.
func (x *Texter) path(s *state.State, ino uint64) string {
	if s != nil {
		if p, ok := x.Names.Path(s, id.Ino(ino)); p != "" {
			if !ok {
				return Quote(p) + " (removed)"
			}
			return Quote(p)
		}
	}
	return fmt.Sprintf("inode %d", ino)
}

func (x *Texter) join(s *state.State, parent uint64, name []byte) string {
	if s == nil {
		return fmt.Sprintf("%s in inode %d", Quote(string(name)), parent)
	}
	return Quote(x.Names.Join(s, id.Ino(parent), string(name)))
}

// Quote returns a path as it is, or quoted if a character of it does not print.
func Quote(p string) string {
	if q := fmt.Sprintf("%q", p); len(q) != len(p)+2 || strings.ContainsAny(p, " ") {
		return q
	}
	return p
}

// Paths returns the paths that the event, the next one of s, is about.
func (x *Texter) Paths(s *state.State, ev *event.Event) []string {
	if s == nil {
		return nil
	}
	raw := func(parent uint64, name []byte) string { return x.Names.Join(s, id.Ino(parent), string(name)) }
	switch b := ev.Body.(type) {
	case *event.Event_Create:
		return []string{raw(b.Create.Parent, b.Create.Name)}
	case *event.Event_Link:
		p, _ := x.Names.Path(s, id.Ino(b.Link.Ino))
		return []string{raw(b.Link.Parent, b.Link.Name), p}
	case *event.Event_Remove:
		return []string{raw(b.Remove.Parent, b.Remove.Name)}
	case *event.Event_Rename:
		return []string{raw(b.Rename.Parent, b.Rename.Name), raw(b.Rename.NewParent, b.Rename.NewName)}
	}
	x.touched.Of(s, ev)
	var out []string
	for _, ino := range x.touched.Inos {
		if p, _ := x.Names.Path(s, ino); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// Note remembers what the event, which was told, makes of names.
func (x *Texter) Note(ev *event.Event) { x.Names.Note(ev) }

// Text says what the event, the next one of s, does. s is nil where the state is not known.
func (x *Texter) Text(s *state.State, ev *event.Event) string {
	switch b := ev.Body.(type) {
	case *event.Event_Create:
		return x.create(s, b.Create)
	case *event.Event_Link:
		return fmt.Sprintf("%s = %s", x.join(s, b.Link.Parent, b.Link.Name), x.path(s, b.Link.Ino))
	case *event.Event_Remove:
		return x.join(s, b.Remove.Parent, b.Remove.Name) + x.lastName(s, b.Remove)
	case *event.Event_Rename:
		return x.rename(s, b.Rename)
	case *event.Event_SetAttr:
		return x.path(s, b.SetAttr.Ino) + x.attr(s, b.SetAttr)
	case *event.Event_SetXattr:
		return fmt.Sprintf("%s %s = %s", x.path(s, b.SetXattr.Ino), b.SetXattr.Name, x.size(uint64(len(b.SetXattr.Value))))
	case *event.Event_RemoveXattr:
		return fmt.Sprintf("%s %s", x.path(s, b.RemoveXattr.Ino), b.RemoveXattr.Name)
	case *event.Event_LeaseSet:
		return x.leases(s, b.LeaseSet)
	case *event.Event_LockSet:
		return x.lock(s, b.LockSet)
	case *event.Event_PolicySet:
		return x.path(s, b.PolicySet.Ino) + policyText(b.PolicySet)
	case *event.Event_PunchDone:
		return x.path(s, b.PunchDone.Ino) + ": the tail that a truncate left is zero everywhere"
	case *event.Event_Settled:
		return x.path(s, b.Settled.Ino) + ": its replicas follow one again"
	}
	return x.storage(s, ev)
}

// policyText is what a PolicySet sets, as set-attr takes it.
func policyText(p *event.PolicySet) string {
	out := " replicas inherited"
	if p.Norm != 0 {
		out = fmt.Sprintf(" replicas=%d:%d", p.Norm, p.Min)
	}
	switch p.Tier {
	case 0:
	case state.AnyTier:
		out += " tier=any"
	default:
		out += fmt.Sprintf(" tier=%d", p.Tier-1)
	}
	if p.Domain != 0 {
		out += fmt.Sprintf(" failure-domain=%v", state.Domain(p.Domain))
	}
	if p.Prefer != "" {
		out += " prefer=" + Quote(p.Prefer)
	}
	return out
}

func (x *Texter) create(s *state.State, c *event.Create) string {
	t := msg.FileType(c.Type)
	out := fmt.Sprintf("%s %s %04o", x.join(s, c.Parent, c.Name), strings.ToLower(t.String()), c.Perm)
	if t == msg.FileType_SYMLINK {
		out = fmt.Sprintf("%s -> %s", x.join(s, c.Parent, c.Name), Quote(string(c.Target)))
	}
	if c.Uid != 0 || c.Gid != 0 {
		out += fmt.Sprintf(", owner %d:%d", c.Uid, c.Gid)
	}
	out += fmt.Sprintf(", inode %d", c.Ino)
	if msg.Want(c.Want) == msg.Want_WANT_WRITE {
		out += ", open for writing"
	}
	return out
}

func (x *Texter) lastName(s *state.State, r *event.Remove) string {
	if r.Dir || s == nil {
		return fmt.Sprintf(", inode %d", r.Ino)
	}
	n, ok := s.Inode(id.Ino(r.Ino))
	switch {
	case !ok:
		return fmt.Sprintf(", inode %d", r.Ino)
	case n.Nlink() > 1:
		return fmt.Sprintf(", inode %d has %d names left", r.Ino, n.Nlink()-1)
	}
	out := fmt.Sprintf(", inode %d, its last name", r.Ino)
	if n.IsRegular() {
		out += ", " + x.size(n.Size)
	}
	if h := s.Holders(n.Ino); h.Readers+h.Writers > 0 {
		out += ", still held"
	}
	return out
}

func (x *Texter) rename(s *state.State, r *event.Rename) string {
	from, to := x.join(s, r.Parent, r.Name), x.join(s, r.NewParent, r.NewName)
	switch {
	case r.Exchange:
		return fmt.Sprintf("%s <-> %s", from, to)
	case r.Replaced != 0:
		return fmt.Sprintf("%s -> %s, in place of inode %d", from, to, r.Replaced)
	}
	return fmt.Sprintf("%s -> %s", from, to)
}

func (x *Texter) attr(s *state.State, a *event.SetAttr) string {
	var out strings.Builder
	if a.Perm != nil {
		fmt.Fprintf(&out, " mode %04o", *a.Perm)
	}
	if a.Uid != nil {
		fmt.Fprintf(&out, " uid %d", *a.Uid)
	}
	if a.Gid != nil {
		fmt.Fprintf(&out, " gid %d", *a.Gid)
	}
	if a.Size != nil {
		fmt.Fprintf(&out, " size %s", x.size(*a.Size))
		if s != nil {
			if n, ok := s.Inode(id.Ino(a.Ino)); ok && n.Size != *a.Size {
				fmt.Fprintf(&out, " (was %s)", x.size(n.Size))
			}
		}
	}
	if a.Offset != nil {
		fmt.Fprintf(&out, ", appending at %d", *a.Offset)
	}
	for _, t := range []struct {
		name string
		v    *int64
	}{{"atime", a.Atime}, {"mtime", a.Mtime}} {
		if t.v != nil {
			fmt.Fprintf(&out, " %s %s", t.name, time.Unix(0, *t.v).UTC().Format("2006-01-02 15:04:05.000Z"))
		}
	}
	return out.String()
}

func (x *Texter) leases(s *state.State, l *event.LeaseSet) string {
	var parts []string
	for _, e := range l.Entries {
		what := map[msg.Want]string{msg.Want_WANT_NONE: "let go by", msg.Want_WANT_READ: "held for reading by",
			msg.Want_WANT_WRITE: "held for writing by"}[msg.Want(e.Want)]
		parts = append(parts, fmt.Sprintf("%s %s %s", x.path(s, e.Ino), what, x.session(s, e.Session)))
	}
	out := strings.Join(parts, "; ")
	if l.Attr != nil {
		out += ", " + strings.TrimSpace(x.attr(s, l.Attr))
	}
	return out
}

func (x *Texter) lock(s *state.State, l *event.LockSet) string {
	what := map[msg.LockType]string{msg.LockType_UNLOCK: "unlocked", msg.LockType_READ_LOCK: "locked for reading",
		msg.LockType_WRITE_LOCK: "locked for writing"}[msg.LockType(l.Type)]
	if l.Flock {
		return fmt.Sprintf("%s %s as a whole by %s", x.path(s, l.Ino), what, x.session(s, l.Session))
	}
	return fmt.Sprintf("%s %s, bytes %d to %d, by %s pid %d", x.path(s, l.Ino), what, l.Start, l.End, x.session(s, l.Session), l.Pid)
}

// session names a session by where its mount is.
func (x *Texter) session(s *state.State, n uint64) string {
	if s != nil {
		if v, ok := s.Session(id.SessionID(n)); ok && v.Host != "" {
			return fmt.Sprintf("session %d (%s)", n, strings.TrimSuffix(v.Host+":"+v.Mount, ":"))
		}
	}
	return fmt.Sprintf("session %d", n)
}

func (x *Texter) storage(s *state.State, ev *event.Event) string {
	switch b := ev.Body.(type) {
	case *event.Event_ClusterInit:
		return fmt.Sprintf("cluster %s, root directory %04o", b.ClusterInit.Name, b.ClusterInit.Perm)
	case *event.Event_SessionOpen:
		o := b.SessionOpen
		return fmt.Sprintf("session %d: %s:%s, pid %d", o.Id, o.Host, o.Mount, o.Pid)
	case *event.Event_SessionClose:
		return x.closing(s, b.SessionClose)
	case *event.Event_SessionForgotten:
		return fmt.Sprintf("session %d", b.SessionForgotten.Id)
	case *event.Event_ChunkAlloc:
		var parts []string
		for _, c := range b.ChunkAlloc.Chunks {
			parts = append(parts, fmt.Sprintf("#%d = %v on %s", c.Index, id.ChunkID(c.Id), servers(c.Servers...)))
		}
		return x.path(s, b.ChunkAlloc.Ino) + " chunk " + strings.Join(parts, "; ")
	case *event.Event_ReplicaDrop:
		d := b.ReplicaDrop
		var parts []string
		for _, e := range d.Chunks {
			parts = append(parts, fmt.Sprintf("#%d (epoch %d)", e.Index, e.Epoch))
		}
		return fmt.Sprintf("%s: %s leaves chunk %s", x.path(s, d.Ino), servers(d.Server), strings.Join(parts, ", "))
	case *event.Event_ReplicaJoin:
		return fmt.Sprintf("%s joins %s, epoch %d", servers(b.ReplicaJoin.Server), x.chunk(s, b.ReplicaJoin.Chunk), b.ReplicaJoin.Epoch)
	case *event.Event_ReplicaSync:
		return fmt.Sprintf("%s is in sync with %s, epoch %d", servers(b.ReplicaSync.Server), x.chunk(s, b.ReplicaSync.Chunk), b.ReplicaSync.Epoch)
	case *event.Event_ReplicaAccept:
		a := b.ReplicaAccept
		return fmt.Sprintf("%s is the truth for %s, epoch %d: what was not flushed before the loss of power may be gone", servers(a.Server), x.chunk(s, a.Chunk), a.Epoch)
	case *event.Event_BadBlocks:
		return x.badBlocks(s, b.BadBlocks)
	case *event.Event_ServerLost:
		return servers(b.ServerLost.Server) + " is given up: it leaves every chunk that another has"
	case *event.Event_Purged:
		return fmt.Sprintf("%s has deleted chunks: %d", servers(b.Purged.Server), len(b.Purged.Chunks))
	case *event.Event_ServerAdd:
		a := b.ServerAdd
		return fmt.Sprintf("%s at %s, host %s, tier %d", servers(a.Id), a.Addr, a.Host, a.Tier)
	case *event.Event_ServerUpdate:
		a := b.ServerUpdate
		return fmt.Sprintf("%s at %s, host %s, tier %d", servers(a.Id), a.Addr, a.Host, a.Tier)
	case *event.Event_ServerRetire:
		return servers(b.ServerRetire.Id) + " is retired for good"
	case *event.Event_ServerMode:
		out := servers(b.ServerMode.Id) + " " + modeWords(b.ServerMode.Mode)
		if b.ServerMode.Until > 0 {
			out += ", until " + time.Unix(0, b.ServerMode.Until).UTC().Format("2006-01-02 15:04:05Z")
		}
		return out
	case *event.Event_MetaAdd:
		return fmt.Sprintf("%v at %s", id.MetaID(b.MetaAdd.Id), b.MetaAdd.Addr)
	case *event.Event_MetaUpdate:
		return fmt.Sprintf("%v at %s", id.MetaID(b.MetaUpdate.Id), b.MetaUpdate.Addr)
	case *event.Event_MetaRemove:
		return id.MetaID(b.MetaRemove.Id).String()
	case *event.Event_ConfigSet:
		if b.ConfigSet.Value == "" {
			return b.ConfigSet.Key + " as by default"
		}
		return b.ConfigSet.Key + " = " + b.ConfigSet.Value
	case *event.Event_SecuritySet:
		a := b.SecuritySet
		return fmt.Sprintf("version %d: authority %d (trusted from %d on), keys for capabilities: %d", a.Version, a.Authority, a.Oldest, len(a.Keys))
	case *event.Event_CertIssue:
		a := b.CertIssue
		return fmt.Sprintf("%s to %s as %s until %s", a.Serial, a.Node, roleWord(a.Role), time.Unix(0, a.Until).UTC().Format("2006-01-02 15:04:05Z"))
	case *event.Event_CertRevoke:
		return strings.Join(b.CertRevoke.Serials, ", ")
	case *event.Event_Digest:
		return fmt.Sprintf("at index %d: %x", b.Digest.Index, b.Digest.Digest)
	}
	return "an event that this version does not know"
}

func modeWords(m event.ServerMode_Mode) string {
	switch m {
	case event.ServerMode_ACTIVE:
		return "is active: it takes new data"
	case event.ServerMode_DRAINING:
		return "is drained: it takes no new data, and what it has is moved to others"
	case event.ServerMode_STANDBY:
		return "is on standby: it takes no new data, serves what it has, and may be away"
	case event.ServerMode_REMOVING:
		return "is being removed: it is drained, then retired"
	case event.ServerMode_DRAINED:
		return "has been drained: nothing is left on it"
	}
	return m.String()
}

func (x *Texter) badBlocks(s *state.State, b *event.BadBlocks) string {
	const most = 8
	var at []string
	for _, n := range b.Blocks[:min(most, len(b.Blocks))] {
		at = append(at, fmt.Sprint(n))
	}
	if more := len(b.Blocks) - len(at); more > 0 {
		at = append(at, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("%s has bad blocks in %s: %s (%s)", servers(b.Server), x.chunk(s, b.Chunk), strings.Join(at, ", "), b.Cause)
}

func (x *Texter) closing(s *state.State, c *event.SessionClose) string {
	out := x.session(s, c.Id) + " " + strings.ToLower(c.Kind.String())
	if s == nil {
		return out
	}
	if all, write := heldFor(s, id.SessionID(c.Id)); all > 0 {
		files := "files"
		if all == 1 {
			files = "file"
		}
		out += fmt.Sprintf(", held %d %s, %d for writing", all, files, write)
	}
	return out
}

func (x *Texter) chunk(s *state.State, n uint64) string {
	if s != nil {
		if c, ok := s.ChunkByID(id.ChunkID(n)); ok {
			return fmt.Sprintf("%v, #%d of %s", c.ID, c.Index(), x.path(s, uint64(c.Ino)))
		}
	}
	return id.ChunkID(n).String()
}

func servers(list ...uint32) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = id.ServerID(v).String()
	}
	return strings.Join(out, " ")
}

// Who says who caused the event, the next one of s, and why.
func (x *Texter) Who(s *state.State, ev *event.Event) string {
	c := ev.GetCause()
	var parts []string
	if n := c.GetSession(); n != 0 {
		parts = append(parts, x.session(s, n))
		if c.GetSeq() != 0 {
			parts = append(parts, fmt.Sprintf("uid %d", c.GetUid()))
		}
	}
	if r := c.GetReason(); r != "" {
		parts = append(parts, r)
	}
	if len(parts) == 0 {
		return "cluster"
	}
	return strings.Join(parts, ", ")
}

// roleWord names the role of a certificate, as in package internal/pki.
func roleWord(r uint32) string {
	if words := []string{1: "node", 2: "admin", 3: "reader"}; r > 0 && int(r) < len(words) {
		return words[r]
	}
	return fmt.Sprintf("role %d", r)
}
