package history

import (
	"context"
	"fmt"
	"path"
	"slices"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// FindInode returns the inode that had the path at index at or, if none had it then, the last one before that had it, and whether it is
// there at that index.
func FindInode(ctx context.Context, src Source, p string, at id.Index) (ino id.Ino, there bool, err error) {
	p = path.Clean("/" + p)
	s, err := At(ctx, src, at, Hooks{})
	if err != nil {
		return 0, false, err
	}
	n, err := Lookup(s, p)
	if err == nil {
		return n.Ino, true, nil
	}
	if fserr.Of(err) != fserr.NotExist {
		return 0, false, err
	}
	var x Texter
	from, _, err := Earliest(ctx, src)
	if err != nil {
		return 0, false, err
	}
	err = Watch(ctx, src, Range{From: from, To: at}, func(s *state.State, ev *event.Event) error {
		if s == nil {
			return nil
		}
		base := []byte(path.Base(p))
		named := func(parent uint64, name []byte, which uint64) {
			if which != 0 && string(name) == string(base) && x.Names.Join(s, id.Ino(parent), string(name)) == p {
				ino = id.Ino(which)
			}
		}
		switch b := ev.Body.(type) {
		case *event.Event_Create:
			named(b.Create.Parent, b.Create.Name, b.Create.Ino)
		case *event.Event_Link:
			named(b.Link.Parent, b.Link.Name, b.Link.Ino)
		case *event.Event_Remove:
			named(b.Remove.Parent, b.Remove.Name, b.Remove.Ino)
		case *event.Event_Rename:
			named(b.Rename.Parent, b.Rename.Name, b.Rename.Ino)
			named(b.Rename.NewParent, b.Rename.NewName, b.Rename.Ino)
		}
		x.Note(ev)
		return nil
	}, nil)
	if err == nil && ino == 0 {
		err = fmt.Errorf("nothing had the path %s at index %d or before, as far as this journal reaches (from index %d): %w", p, at, from, fserr.NotExist)
	}
	return ino, false, err
}

// Blame calls fn for each event up to index to that touched the inode: its own, those of its chunks, and of servers that had one. The state
// is the one before the event.
func Blame(ctx context.Context, src Source, ino id.Ino, to id.Index, fn func(*state.State, *event.Event) error, missing func(journal.GapError)) error {
	from, _, err := Earliest(ctx, src)
	if err != nil {
		return err
	}
	var t Touched
	return Watch(ctx, src, Range{From: from, To: to}, func(s *state.State, ev *event.Event) error {
		if s == nil {
			return nil
		}
		if c := ev.GetCreate(); c != nil && id.Ino(c.Parent) == ino && id.Ino(c.Ino) != ino {
			return nil // what happens in a directory is not what happens to it
		}
		t.Of(s, ev)
		if slices.Contains(t.Inos, ino) && about(ev, ino) || lostWith(s, ev, ino) || closedWith(s, ev, ino) {
			return fn(s, ev)
		}
		return nil
	}, missing)
}

// about reports whether the event changes the inode itself, not only a directory that it is.
func about(ev *event.Event, ino id.Ino) bool {
	switch b := ev.Body.(type) {
	case *event.Event_Create:
		return id.Ino(b.Create.Ino) == ino
	case *event.Event_Link:
		return id.Ino(b.Link.Ino) == ino
	case *event.Event_Remove:
		return id.Ino(b.Remove.Ino) == ino
	case *event.Event_Rename:
		return id.Ino(b.Rename.Ino) == ino || id.Ino(b.Rename.Replaced) == ino
	}
	return true
}

// lostWith reports whether the event gives up a server that has a chunk of the inode.
func lostWith(s *state.State, ev *event.Event, ino id.Ino) (found bool) {
	server := ev.GetServerLost().GetServer() | ev.GetServerRetire().GetId()
	if server == 0 {
		return false
	}
	s.Chunks(ino, 0, 1<<31, func(c *state.Chunk) bool {
		_, found = c.Find(id.ServerID(server))
		return !found
	})
	return found
}

// closedWith reports whether the event closes a session that holds the inode.
func closedWith(s *state.State, ev *event.Event, ino id.Ino) bool {
	c := ev.GetSessionClose()
	if c == nil {
		return false
	}
	_, held := s.Lease(ino, id.SessionID(c.Id))
	return held
}
