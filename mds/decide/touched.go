package decide

import (
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Touched is what the event changes of what sessions are granted to cache, each number perhaps more than once: attributes of inodes,
// and names in directories. s is the state before the event. An inode that the event makes is not listed, since nobody has been told of
// it; nor is one whose last holder leaves.
func Touched(s *state.State, ev *event.Event) (attrs, names []id.Ino) {
	switch b := ev.Body.(type) {
	case *event.Event_Create:
		return inos(b.Create.Parent), inos(b.Create.Parent)
	case *event.Event_Link:
		return inos(b.Link.Ino, b.Link.Parent), inos(b.Link.Parent)
	case *event.Event_Remove:
		names = inos(b.Remove.Parent)
		if b.Remove.Dir {
			names = append(names, id.Ino(b.Remove.Ino))
		}
		return inos(b.Remove.Parent, b.Remove.Ino), names
	case *event.Event_Rename:
		return renamed(s, b.Rename)
	case *event.Event_SetAttr:
		return inos(b.SetAttr.Ino), nil
	case *event.Event_SetXattr:
		return inos(b.SetXattr.Ino), nil
	case *event.Event_RemoveXattr:
		return inos(b.RemoveXattr.Ino), nil
	case *event.Event_LeaseSet:
		return leased(s, b.LeaseSet), nil
	case *event.Event_PolicySet:
		return inos(b.PolicySet.Ino), nil
	case *event.Event_ChunkAlloc: // blocks
		return inos(b.ChunkAlloc.Ino), nil
	}
	return nil, nil
}

func inos(list ...uint64) []id.Ino {
	out := make([]id.Ino, 0, len(list))
	for _, n := range list {
		if n != 0 {
			out = append(out, id.Ino(n))
		}
	}
	return out
}

// renamed also has the names of a directory that gets another parent or is replaced: dot dot is one.
func renamed(s *state.State, r *event.Rename) (attrs, names []id.Ino) {
	attrs = inos(r.Parent, r.NewParent, r.Ino, r.Replaced)
	names = inos(r.Parent, r.NewParent)
	for _, ino := range inos(r.Ino, r.Replaced) {
		if n, ok := s.Inode(ino); ok && n.IsDir() && (r.Parent != r.NewParent || !r.Exchange && uint64(ino) == r.Replaced) {
			names = append(names, ino)
		}
	}
	return attrs, names
}

// leased has the inodes that somebody holds for writing once the event is applied, since a writer may have a size and times of its own,
// and one that is truncated by being opened.
func leased(s *state.State, l *event.LeaseSet) []id.Ino {
	var out []id.Ino
	if l.Attr != nil {
		out = inos(l.Attr.Ino)
	}
	for _, e := range l.Entries {
		switch msg.Want(e.Want) {
		case msg.Want_WANT_WRITE:
			out = append(out, id.Ino(e.Ino))
		case msg.Want_WANT_READ:
			if s.Holders(id.Ino(e.Ino)).Writers > 0 {
				out = append(out, id.Ino(e.Ino))
			}
		}
	}
	return out
}

// MayCache reports whether the session may be granted the attributes of the inode: not while somebody writes to it, but for a session that
// has it to itself.
func MayCache(s *state.State, ino id.Ino, session id.SessionID) bool {
	return s.Holders(ino).Writers == 0 || s.Mode(ino, session) == msg.Mode_EXCLUSIVE_WRITE
}
