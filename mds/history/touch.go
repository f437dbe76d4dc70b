package history

import (
	"slices"
	"strings"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Touched is what an event is about. Its slices are used again.
type Touched struct {
	Inos     []id.Ino
	Chunks   []id.ChunkID
	Servers  []id.ServerID
	Sessions []id.SessionID
	Paths    []string // only what the event itself names, the most important first; see Texter.Touch
}

func (t *Touched) reset() {
	t.Inos, t.Chunks, t.Servers, t.Sessions, t.Paths = t.Inos[:0], t.Chunks[:0], t.Servers[:0], t.Sessions[:0], t.Paths[:0]
}

func (t *Touched) ino(v ...uint64) {
	for _, i := range v {
		if i != 0 {
			t.Inos = append(t.Inos, id.Ino(i))
		}
	}
}

// chunk adds a chunk and the file it belongs to, if s knows it.
func (t *Touched) chunk(s *state.State, c uint64) {
	t.Chunks = append(t.Chunks, id.ChunkID(c))
	if s == nil {
		return
	}
	if x, ok := s.ChunkByID(id.ChunkID(c)); ok && !slices.Contains(t.Inos, x.Ino) {
		t.Inos = append(t.Inos, x.Ino)
	}
}

func (t *Touched) server(v ...uint32) {
	for _, n := range v {
		if x := id.ServerID(n); !slices.Contains(t.Servers, x) {
			t.Servers = append(t.Servers, x)
		}
	}
}

// Of fills t for ev, the next event of s, without paths. Of what an event does to many at once (a server given up, a session closed,
// a directory's policy) only the server, session or directory is in it.
func (t *Touched) Of(s *state.State, ev *event.Event) {
	t.reset()
	if x := ev.Cause.GetSession(); x != 0 {
		t.Sessions = append(t.Sessions, id.SessionID(x))
	}
	switch b := ev.Body.(type) {
	case *event.Event_SessionOpen:
		t.Sessions = append(t.Sessions, id.SessionID(b.SessionOpen.Id))
	case *event.Event_SessionClose:
		t.Sessions = append(t.Sessions, id.SessionID(b.SessionClose.Id))
	case *event.Event_SessionForgotten:
		t.Sessions = append(t.Sessions, id.SessionID(b.SessionForgotten.Id))
	case *event.Event_Create:
		t.ino(b.Create.Ino, b.Create.Parent)
	case *event.Event_Link:
		t.ino(b.Link.Ino, b.Link.Parent)
	case *event.Event_Remove:
		t.ino(b.Remove.Ino, b.Remove.Parent)
	case *event.Event_Rename:
		t.ino(b.Rename.Ino, b.Rename.Replaced, b.Rename.Parent, b.Rename.NewParent)
	case *event.Event_SetAttr:
		t.ino(b.SetAttr.Ino)
	case *event.Event_SetXattr:
		t.ino(b.SetXattr.Ino)
	case *event.Event_RemoveXattr:
		t.ino(b.RemoveXattr.Ino)
	case *event.Event_LeaseSet:
		for _, e := range b.LeaseSet.Entries {
			t.ino(e.Ino)
			t.Sessions = append(t.Sessions, id.SessionID(e.Session))
		}
		t.ino(b.LeaseSet.GetAttr().GetIno())
	case *event.Event_LockSet:
		t.ino(b.LockSet.Ino)
		t.Sessions = append(t.Sessions, id.SessionID(b.LockSet.Session))
	case *event.Event_PolicySet:
		t.ino(b.PolicySet.Ino)
	case *event.Event_PunchDone:
		t.ino(b.PunchDone.Ino)
	case *event.Event_Settled:
		t.ino(b.Settled.Ino)
	default:
		t.storage(s, ev)
	}
}

// storage is Of for chunks and servers.
func (t *Touched) storage(s *state.State, ev *event.Event) {
	switch b := ev.Body.(type) {
	case *event.Event_ChunkAlloc:
		t.ino(b.ChunkAlloc.Ino)
		for _, c := range b.ChunkAlloc.Chunks {
			t.Chunks = append(t.Chunks, id.ChunkID(c.Id))
			t.server(c.Servers...)
		}
	case *event.Event_ReplicaDrop:
		t.ino(b.ReplicaDrop.Ino)
		t.server(b.ReplicaDrop.Server)
		for _, e := range b.ReplicaDrop.Chunks {
			if s == nil {
				break
			}
			if c, ok := s.Chunk(id.Ino(b.ReplicaDrop.Ino), e.Index); ok {
				t.Chunks = append(t.Chunks, c.ID)
			}
		}
	case *event.Event_ReplicaJoin:
		t.chunk(s, b.ReplicaJoin.Chunk)
		t.server(b.ReplicaJoin.Server)
	case *event.Event_ReplicaSync:
		t.chunk(s, b.ReplicaSync.Chunk)
		t.server(b.ReplicaSync.Server)
	case *event.Event_ReplicaAccept:
		t.chunk(s, b.ReplicaAccept.Chunk)
		t.server(b.ReplicaAccept.Server)
	case *event.Event_BadBlocks:
		t.chunk(s, b.BadBlocks.Chunk)
		t.server(b.BadBlocks.Server)
	case *event.Event_ServerLost:
		t.server(b.ServerLost.Server)
	case *event.Event_Purged:
		t.server(b.Purged.Server)
		for _, c := range b.Purged.Chunks {
			t.Chunks = append(t.Chunks, id.ChunkID(c))
		}
	case *event.Event_ServerAdd:
		t.server(b.ServerAdd.Id)
	case *event.Event_ServerUpdate:
		t.server(b.ServerUpdate.Id)
	case *event.Event_ServerMode:
		t.server(b.ServerMode.Id)
	case *event.Event_ServerRetire:
		t.server(b.ServerRetire.Id)
	}
}

// Filter says which events are wanted; a zero field lets all pass.
type Filter struct {
	Path    string   // the event names it or something below
	Kinds   []string // one of these, as event.Kind says
	Session id.SessionID
	Inode   id.Ino
	Chunk   id.ChunkID
	Server  id.ServerID
	UID     int64 // what the user is, less one; 0: any
}

// Empty reports whether all events pass.
func (f *Filter) Empty() bool {
	return f.Path == "" && len(f.Kinds) == 0 && f.Session == 0 && f.Inode == 0 && f.Chunk == 0 && f.Server == 0 && f.UID == 0
}

// Match reports whether ev, the next event of s, is wanted. A nil s, where the state is not known, has no paths.
func (f *Filter) Match(x *Texter, s *state.State, ev *event.Event) bool {
	if len(f.Kinds) > 0 && !slices.Contains(f.Kinds, event.Kind(ev)) {
		return false
	}
	if f.UID != 0 && (ev.Cause.GetSession() == 0 || int64(ev.Cause.GetUid()) != f.UID-1) {
		return false
	}
	if f.Path == "" && f.Session == 0 && f.Inode == 0 && f.Chunk == 0 && f.Server == 0 {
		return true
	}
	t := &x.touched
	t.Of(s, ev)
	if f.Session != 0 && !slices.Contains(t.Sessions, f.Session) ||
		f.Inode != 0 && !slices.Contains(t.Inos, f.Inode) ||
		f.Chunk != 0 && !slices.Contains(t.Chunks, f.Chunk) ||
		f.Server != 0 && !slices.Contains(t.Servers, f.Server) {
		return false
	}
	return f.Path == "" || slices.ContainsFunc(x.Paths(s, ev), func(p string) bool { return Below(p, f.Path) })
}

// Below reports whether the path p is top or below it.
func Below(p, top string) bool {
	return top == "/" || p == top || strings.HasPrefix(p, top) && strings.HasPrefix(p[len(top):], "/")
}

// heldFor returns how many files a session holds, and how many of them for writing.
func heldFor(s *state.State, x id.SessionID) (all, write int) {
	s.LeasesOf(x, func(l state.Lease) bool {
		all++
		if l.Want == msg.Want_WANT_WRITE {
			write++
		}
		return true
	})
	return all, write
}
