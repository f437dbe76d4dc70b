package decide

import (
	"bytes"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

const (
	maxName   = 255   // bytes of a name
	maxTarget = 4095  // bytes of a symlink's target
	maxLinks  = 65000 // names of an inode
	maxDepth  = 1 << 16

	setUID = 0o4000
	setGID = 0o2000
	sticky = 0o1000
)

// checkName returns the outcome of using a name that cannot be one. dots is the outcome for "." and "..".
func checkName(name []byte, dots fserr.Code) fserr.Code {
	switch {
	case len(name) == 0:
		return fserr.NotExist
	case len(name) > maxName:
		return fserr.NameTooLong
	case bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0:
		return fserr.Invalid
	case string(name) == "." || string(name) == "..":
		return dots
	}
	return fserr.OK
}

// dir returns the directory that a name is in, which the caller must be able to search.
func (d *decider) dir(ino uint64) (*state.Inode, fserr.Code) {
	n, ok := d.s.Inode(id.Ino(ino))
	switch {
	case !ok:
		return nil, fserr.NotExist // it was removed
	case !n.IsDir():
		return nil, fserr.NotDir
	case !d.may(n, MayExec):
		return nil, fserr.Access
	}
	return n, fserr.OK
}

// inode returns the inode that a handle or a cached lookup names.
func (d *decider) inode(ino uint64) (*state.Inode, fserr.Code) {
	n, ok := d.s.Inode(id.Ino(ino))
	if !ok {
		return nil, fserr.Stale
	}
	return n, fserr.OK
}

// child returns the inode with the name in the directory, nil if there is none.
func (d *decider) child(dir *state.Inode, name []byte) *state.Inode {
	e, ok := d.s.Dentry(dir.Ino, string(name))
	if !ok {
		return nil
	}
	n, _ := d.s.Inode(e.Ino)
	return n
}

func (d *decider) lookup(op *msg.Lookup) Outcome {
	dir, code := d.dir(op.Parent)
	if code != fserr.OK {
		return fail(code, "")
	}
	var n *state.Inode
	switch string(op.Name) {
	case ".":
		n = dir
	case "..":
		n, _ = d.s.Inode(dir.Parent)
	default:
		if code := checkName(op.Name, fserr.OK); code != fserr.OK {
			return fail(code, "")
		}
		n = d.child(dir, op.Name)
	}
	if n == nil {
		return fail(fserr.NotExist, "")
	}
	return d.answer(n, &msg.MetaReply{})
}

func (d *decider) create(op *msg.Create) Outcome {
	if code := checkName(op.Name, fserr.Exist); code != fserr.OK {
		return fail(code, "")
	}
	dir, code := d.dir(op.Parent)
	if code != fserr.OK {
		return fail(code, "")
	}
	if n := d.child(dir, op.Name); n != nil {
		return d.createExisting(op, n)
	}
	if op.Type < msg.FileType_REGULAR || op.Type > msg.FileType_SOCKET {
		return fail(fserr.Invalid, "file type")
	}
	if !d.may(dir, MayWrite) {
		return fail(fserr.Access, "")
	}
	ev := &event.Create{
		Parent: op.Parent, Name: op.Name, Type: uint32(op.Type), Perm: op.Perm & 0o7777, Uid: d.cred.GetUid(), Gid: d.cred.GetGid(),
	}
	switch op.Type {
	case msg.FileType_SYMLINK:
		if len(op.Target) == 0 {
			return fail(fserr.NotExist, "")
		}
		if len(op.Target) > maxTarget {
			return fail(fserr.NameTooLong, "")
		}
		ev.Target, ev.Perm = op.Target, 0o777
	case msg.FileType_CHAR, msg.FileType_BLOCK:
		if !d.free() {
			return fail(fserr.Perm, "")
		}
		ev.Rdev = op.Rdev
	}
	d.inherit(ev, dir)
	if op.Open && op.Type == msg.FileType_REGULAR && d.req.Session != 0 {
		ev.Want = uint32(msg.Want_WANT_WRITE)
	}
	ev.Ino = uint64(d.env.NextIno())
	return d.changes(&event.Event{Body: &event.Event_Create{Create: ev}})
}

// inherit applies the rules of a setgid directory: the group is the directory's, a directory becomes setgid
// too, and an executable file does not for somebody outside the group (fs/inode.c, inode_init_owner).
func (d *decider) inherit(ev *event.Create, dir *state.Inode) {
	if dir.Perm()&setGID == 0 {
		return
	}
	ev.Gid = dir.GID
	switch msg.FileType(ev.Type) {
	case msg.FileType_DIRECTORY:
		ev.Perm |= setGID
	case msg.FileType_REGULAR:
		if ev.Perm&(setGID|0o010) == setGID|0o010 && d.cred.GetUid() != 0 && !inGroup(d.cred, dir.GID) {
			ev.Perm &^= setGID
		}
	}
}

// createExisting is open(2) with O_CREAT of a name that is there.
func (d *decider) createExisting(op *msg.Create, n *state.Inode) Outcome {
	switch {
	case op.Exclusive || op.Type != msg.FileType_REGULAR:
		return fail(fserr.Exist, "")
	case n.IsDir():
		return fail(fserr.IsDir, "")
	case !n.IsRegular():
		return fail(fserr.Exist, "")
	case !op.Open:
		return d.nothing(n.Ino)
	case !d.may(n, MayWrite):
		return fail(fserr.Access, "")
	}
	return d.grant(n, msg.Want_WANT_WRITE, nil)
}

func (d *decider) link(op *msg.Link) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	if code := checkName(op.Name, fserr.Exist); code != fserr.OK {
		return fail(code, "")
	}
	dir, code := d.dir(op.Parent)
	switch {
	case code != fserr.OK:
		return fail(code, "")
	case d.child(dir, op.Name) != nil:
		return fail(fserr.Exist, "")
	case !d.may(dir, MayWrite):
		return fail(fserr.Access, "")
	case n.IsDir():
		return fail(fserr.Perm, "")
	case n.Nlink() == 0:
		return fail(fserr.NotExist, "")
	case n.Nlink() >= maxLinks:
		return fail(fserr.TooManyLinks, "")
	}
	return d.changes(&event.Event{Body: &event.Event_Link{Link: &event.Link{Ino: op.Ino, Parent: op.Parent, Name: op.Name}}})
}

// mayDelete checks the rights to take the name of n out of dir (fs/namei.c, may_delete).
func (d *decider) mayDelete(dir, n *state.Inode) fserr.Code {
	if d.free() {
		return fserr.OK
	}
	if !d.may(dir, MayWrite|MayExec) {
		return fserr.Access
	}
	if dir.Perm()&sticky != 0 && d.cred.GetUid() != n.UID && d.cred.GetUid() != dir.UID {
		return fserr.Perm
	}
	return fserr.OK
}

func (d *decider) remove(op *msg.Remove) Outcome {
	dots := fserr.IsDir
	if op.Dir {
		dots = fserr.Invalid
		if string(op.Name) == ".." {
			dots = fserr.NotEmpty
		}
	}
	if code := checkName(op.Name, dots); code != fserr.OK {
		return fail(code, "")
	}
	dir, code := d.dir(op.Parent)
	if code != fserr.OK {
		return fail(code, "")
	}
	n := d.child(dir, op.Name)
	if n == nil {
		return fail(fserr.NotExist, "")
	}
	if code := d.mayDelete(dir, n); code != fserr.OK {
		return fail(code, "")
	}
	switch {
	case op.Dir && !n.IsDir():
		return fail(fserr.NotDir, "")
	case !op.Dir && n.IsDir():
		return fail(fserr.IsDir, "")
	case op.Dir && !d.s.Empty(n.Ino):
		return fail(fserr.NotEmpty, "")
	}
	return d.changes(&event.Event{Body: &event.Event_Remove{Remove: &event.Remove{
		Parent: op.Parent, Name: op.Name, Ino: uint64(n.Ino), Dir: op.Dir,
	}}})
}

func (d *decider) rename(op *msg.Rename) Outcome {
	if op.NoReplace && op.Exchange {
		return fail(fserr.Invalid, "")
	}
	newDots := fserr.Busy
	if op.NoReplace {
		newDots = fserr.Exist
	}
	if code := checkName(op.Name, fserr.Busy); code != fserr.OK {
		return fail(code, "")
	}
	if code := checkName(op.NewName, newDots); code != fserr.OK {
		return fail(code, "")
	}
	from, code := d.dir(op.Parent)
	if code != fserr.OK {
		return fail(code, "")
	}
	to, code := d.dir(op.NewParent)
	if code != fserr.OK {
		return fail(code, "")
	}
	n, other := d.child(from, op.Name), d.child(to, op.NewName)
	switch {
	case n == nil || op.Exchange && other == nil:
		return fail(fserr.NotExist, "")
	case other != nil && op.NoReplace:
		return fail(fserr.Exist, "")
	case n.IsDir() && d.below(to, n.Ino), op.Exchange && other.IsDir() && d.below(from, other.Ino):
		return fail(fserr.Invalid, "")
	case other != nil && !op.Exchange && other.IsDir() && d.below(from, other.Ino):
		return fail(fserr.NotEmpty, "")
	case other != nil && n.Ino == other.Ino:
		return d.nothing(n.Ino)
	}
	if code := d.mayRename(op, from, to, n, other); code != fserr.OK {
		return fail(code, "")
	}
	ev := &event.Rename{
		Parent: op.Parent, Name: op.Name, Ino: uint64(n.Ino), NewParent: op.NewParent, NewName: op.NewName, Exchange: op.Exchange,
	}
	if other != nil {
		ev.Replaced = uint64(other.Ino)
	}
	return d.changes(&event.Event{Body: &event.Event_Rename{Rename: ev}})
}

// mayRename checks rights and types (fs/namei.c, vfs_rename). other is nil if the new name is free.
func (d *decider) mayRename(op *msg.Rename, from, to, n, other *state.Inode) fserr.Code {
	if code := d.mayDelete(from, n); code != fserr.OK {
		return code
	}
	if other == nil {
		if !d.may(to, MayWrite|MayExec) {
			return fserr.Access
		}
	} else if code := d.mayDelete(to, other); code != fserr.OK {
		return code
	}
	if other != nil && !op.Exchange {
		switch {
		case n.IsDir() && !other.IsDir():
			return fserr.NotDir
		case !n.IsDir() && other.IsDir():
			return fserr.IsDir
		}
	}
	if from.Ino != to.Ino { // ".." of a moved directory is written
		if n.IsDir() && !d.may(n, MayWrite) || op.Exchange && other.IsDir() && !d.may(other, MayWrite) {
			return fserr.Access
		}
	}
	if other != nil && !op.Exchange && other.IsDir() && !d.s.Empty(other.Ino) {
		return fserr.NotEmpty
	}
	return fserr.OK
}

// below reports whether n is the directory top or below it.
func (d *decider) below(n *state.Inode, top id.Ino) bool {
	for range maxDepth {
		if n.Ino == top {
			return true
		}
		if n.Ino == id.Root {
			return false
		}
		up, ok := d.s.Inode(n.Parent)
		if !ok {
			return false
		}
		n = up
	}
	return true
}
