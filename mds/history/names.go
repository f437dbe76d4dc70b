package history

import (
	"fmt"
	"path"
	"strings"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/state"
)

// MaxDepth bounds how deep a tree is walked.
const MaxDepth = 4096

// maxNames is the number of names that a Names remembers in each of its two generations.
const maxNames = 1 << 19

// Names finds the paths of inodes. The state knows which directory a file is in but not under which name, so
// what was found or seen in an event is remembered, within a limit, and checked against the state when it is used.
type Names struct {
	young, old map[id.Ino]entry
	nameless   map[id.Ino]bool // not found in the whole tree, until a name is made
}

// entry is a name that the inode has or had.
type entry struct {
	parent id.Ino
	name   string
}

// Path returns a path of the inode in s. Ok is false if it has none: then it is the one it had, if that is known, or else "".
func (n *Names) Path(s *state.State, ino id.Ino) (p string, ok bool) {
	if ino == id.Root {
		return "/", true
	}
	var parts []string
	ok = true
	for range MaxDepth {
		if ino == id.Root {
			for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
				parts[i], parts[j] = parts[j], parts[i]
			}
			return "/" + strings.Join(parts, "/"), ok
		}
		e, live, known := n.name(s, ino)
		if !known {
			return "", false
		}
		ok = ok && live
		parts = append(parts, e.name)
		ino = e.parent
	}
	return "", false
}

// Join returns the path of a name in a directory.
func (n *Names) Join(s *state.State, parent id.Ino, name string) string {
	dir, _ := n.Path(s, parent)
	if dir == "" {
		dir = fmt.Sprintf("(inode %d)", parent)
	}
	return path.Join(dir, name)
}

// name returns a name of the inode, whether it has it now, and whether one is known.
func (n *Names) name(s *state.State, ino id.Ino) (e entry, live, known bool) {
	e, known = n.young[ino]
	if !known {
		if e, known = n.old[ino]; known {
			n.put(ino, e)
		}
	}
	if known {
		if d, ok := s.Dentry(e.parent, e.name); ok && d.Ino == ino {
			return e, true, true
		}
	}
	node, ok := s.Inode(ino)
	if !ok || !node.IsDir() && node.Nlink() == 0 || n.nameless[ino] {
		return e, false, known
	}
	if found, ok := n.scan(s, node.Parent, ino); ok {
		return found, true, true
	}
	// Its first directory has it no longer: a hard link is left somewhere.
	var found *state.Dentry
	s.Names(func(d *state.Dentry) bool {
		if d.Ino == ino {
			found = d
		}
		return found == nil
	})
	if found == nil {
		if n.nameless == nil {
			n.nameless = map[id.Ino]bool{}
		}
		n.nameless[ino] = true
		return e, false, known
	}
	e = entry{found.Parent, found.Name}
	n.put(ino, e)
	return e, true, true
}

// scan remembers the names in a directory, and returns that of ino.
func (n *Names) scan(s *state.State, dir, ino id.Ino) (e entry, ok bool) {
	seen := 0
	s.Dentries(dir, 0, func(d *state.Dentry) bool {
		if d.Ino == ino {
			e, ok = entry{dir, d.Name}, true
		}
		if seen++; seen < maxNames/2 {
			n.put(d.Ino, entry{dir, d.Name})
		}
		return !ok || seen < maxNames/2
	})
	if ok {
		n.put(ino, e)
	}
	return e, ok
}

func (n *Names) put(ino id.Ino, e entry) {
	if n.young == nil || len(n.young) >= maxNames {
		n.old, n.young = n.young, make(map[id.Ino]entry)
	}
	n.young[ino] = e
}

// Note remembers the names that an event makes or takes away, after which the inode is still known by it.
func (n *Names) Note(ev *event.Event) {
	switch b := ev.Body.(type) {
	case *event.Event_Create:
		n.made(b.Create.Ino, b.Create.Parent, b.Create.Name)
	case *event.Event_Link:
		n.made(b.Link.Ino, b.Link.Parent, b.Link.Name)
	case *event.Event_Remove:
		n.made(b.Remove.Ino, b.Remove.Parent, b.Remove.Name)
	case *event.Event_Rename:
		n.made(b.Rename.Ino, b.Rename.NewParent, b.Rename.NewName)
		if r := b.Rename.Replaced; r != 0 && b.Rename.Exchange {
			n.made(r, b.Rename.Parent, b.Rename.Name)
		} else if r != 0 {
			n.made(r, b.Rename.NewParent, b.Rename.NewName)
		}
	}
}

func (n *Names) made(ino, parent uint64, name []byte) {
	n.put(id.Ino(ino), entry{id.Ino(parent), string(name)})
	delete(n.nameless, id.Ino(ino))
}

// Lookup returns the inode of an absolute path. Symbolic links are not followed.
func Lookup(s *state.State, p string) (*state.Inode, error) {
	ino := id.Root
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+p), "/"), "/") {
		if name == "" {
			continue
		}
		d, ok := s.Dentry(ino, name)
		if !ok {
			return nil, fmt.Errorf("%s at index %d: %w", p, s.Index(), fserr.NotExist)
		}
		ino = d.Ino
	}
	n, ok := s.Inode(ino)
	if !ok {
		return nil, fmt.Errorf("%s at index %d: inode %d: %w", p, s.Index(), ino, fserr.NotExist)
	}
	return n, nil
}

// Walk calls fn for n and all that is below it, a directory before its entries, those in the order of readdir.
func Walk(s *state.State, p string, n *state.Inode, fn func(string, *state.Inode) error) error {
	return walk(s, p, n, 0, fn)
}

func walk(s *state.State, p string, n *state.Inode, depth int, fn func(string, *state.Inode) error) error {
	if err := fn(p, n); err != nil || !n.IsDir() {
		return err
	}
	if depth > MaxDepth {
		return fmt.Errorf("%s: more than %d directories deep", p, MaxDepth)
	}
	var err error
	s.Dentries(n.Ino, 0, func(d *state.Dentry) bool {
		child, ok := s.Inode(d.Ino)
		if !ok {
			err = fmt.Errorf("%s: entry %q names inode %d, which is not there", p, d.Name, d.Ino)
			return false
		}
		err = walk(s, path.Join(p, d.Name), child, depth+1, fn)
		return err == nil
	})
	return err
}
