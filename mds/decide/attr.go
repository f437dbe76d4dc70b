package decide

import (
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Entries of one ReadDir answer.
const (
	defaultDirents = 1024
	maxDirents     = 4096
)

func (d *decider) getAttr(op *msg.GetAttr) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	return d.answer(n, &msg.MetaReply{})
}

func (d *decider) setAttr(op *msg.SetAttr) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	if op.Flush {
		return d.flushAttr(op, n)
	}
	ev := &event.SetAttr{Ino: op.Ino}
	for _, step := range []func(*msg.SetAttr, *state.Inode, *event.SetAttr) fserr.Code{d.chown, d.chmod, d.utimes, d.resize} {
		if code := step(op, n, ev); code != fserr.OK {
			return fail(code, "")
		}
	}
	if op.KillPriv {
		killPriv(n, ev)
	}
	return d.attrChanges(n, ev)
}

// attrChanges returns the outcome of ev, which is nothing if ev sets nothing.
func (d *decider) attrChanges(n *state.Inode, ev *event.SetAttr) Outcome {
	if ev.Perm == nil && ev.Uid == nil && ev.Gid == nil && ev.Size == nil && ev.Atime == nil && ev.Mtime == nil {
		return d.nothing(n.Ino)
	}
	return d.changes(&event.Event{Body: &event.Event_SetAttr{SetAttr: ev}})
}

func (d *decider) chown(op *msg.SetAttr, n *state.Inode, ev *event.SetAttr) fserr.Code {
	if op.Uid == nil && op.Gid == nil {
		return fserr.OK
	}
	if op.Uid != nil && !d.free() && (d.cred.GetUid() != n.UID || *op.Uid != n.UID) {
		return fserr.Perm
	}
	if op.Gid != nil && !d.free() && (d.cred.GetUid() != n.UID || *op.Gid != n.GID && !inGroup(d.cred, *op.Gid)) {
		return fserr.Perm
	}
	ev.Uid, ev.Gid = op.Uid, op.Gid
	if op.Perm == nil {
		killPriv(n, ev)
	}
	return fserr.OK
}

// killPriv clears setuid and, if group-executable (without that it meant mandatory locking), setgid of anything but a
// directory: device nodes and pipes too, as chown(2) does.
func killPriv(n *state.Inode, ev *event.SetAttr) {
	if n.IsDir() {
		return
	}
	perm := n.Perm()
	if ev.Perm != nil {
		perm = *ev.Perm
	}
	kept := perm &^ setUID
	if perm&0o010 != 0 {
		kept &^= setGID
	}
	if kept != perm {
		ev.Perm = &kept
	}
}

func (d *decider) chmod(op *msg.SetAttr, n *state.Inode, ev *event.SetAttr) fserr.Code {
	if op.Perm == nil {
		return fserr.OK
	}
	if !d.owner(n) {
		return fserr.Perm
	}
	perm, gid := *op.Perm&0o7777, n.GID
	if op.Gid != nil {
		gid = *op.Gid
	}
	if perm&setGID != 0 && d.cred.GetUid() != 0 && !inGroup(d.cred, gid) {
		perm &^= setGID
	}
	ev.Perm = &perm
	return fserr.OK
}

func (d *decider) utimes(op *msg.SetAttr, n *state.Inode, ev *event.SetAttr) fserr.Code {
	given := op.Atime != nil && !op.AtimeNow || op.Mtime != nil && !op.MtimeNow
	if given && !d.owner(n) {
		// A truncate may come with the time of the writer's clock.
		if op.Size == nil || !d.may(n, MayWrite) {
			return fserr.Perm
		}
	}
	if (op.AtimeNow || op.MtimeNow) && !d.owner(n) && !d.may(n, MayWrite) {
		return fserr.Access
	}
	now := d.env.Now
	ev.Atime, ev.Mtime = op.Atime, op.Mtime
	if op.AtimeNow {
		ev.Atime = &now
	}
	if op.MtimeNow {
		ev.Mtime = &now
	}
	return fserr.OK
}

func (d *decider) resize(op *msg.SetAttr, n *state.Inode, ev *event.SetAttr) fserr.Code {
	if op.Size == nil {
		return fserr.OK
	}
	switch {
	case n.IsDir():
		return fserr.IsDir
	case !n.IsRegular():
		return fserr.Invalid
	case *op.Size > 1<<63-1:
		return fserr.Invalid
	case *op.Size > chunk.MaxFileSize:
		return fserr.FileTooBig
	case !d.holds(n, msg.Want_WANT_WRITE) && !d.may(n, MayWrite):
		return fserr.Access
	case d.punchInTheWay(n, *op.Size):
		return fserr.NotReady
	}
	ev.Size = op.Size
	if *op.Size < n.Size && *op.Size%chunk.Size != 0 {
		ev.Puncher = d.req.Session // of the tail, if the size cuts into a chunk
	}
	if ev.Mtime == nil {
		ev.Mtime = &d.env.Now
	}
	return fserr.OK
}

// punchInTheWay reports whether an earlier truncate left a tail that has to be punched before the file can become
// size bytes long, since an inode has one pending punch at most.
func (d *decider) punchInTheWay(n *state.Inode, size uint64) bool {
	p, ok := n.Punch()
	if !ok {
		return false
	}
	return size != n.Size && size > uint64(p.Index)*chunk.Size+uint64(p.From)
}

// holds reports whether the request's session holds n for at least want. The leader itself always does.
func (d *decider) holds(n *state.Inode, want msg.Want) bool {
	if d.req.Session == 0 {
		return true
	}
	l, ok := d.s.Lease(n.Ino, id.SessionID(d.req.Session))
	return ok && l.Want >= want
}

// flushAttr records what an exclusive writer accumulated. It is no request of an application: nothing is checked
// but the bounds, and what is there already is not recorded again. A size from a session that does not write alone any more was told with the recall by which
// that ended, and another may have cut the file since.
func (d *decider) flushAttr(op *msg.SetAttr, n *state.Inode) Outcome {
	ev := &event.SetAttr{Ino: op.Ino}
	if op.Size != nil {
		switch {
		case !n.IsRegular():
			return fail(fserr.Invalid, "")
		case *op.Size > chunk.MaxFileSize:
			return fail(fserr.FileTooBig, "")
		case *op.Size > n.Size && d.alone(n):
			ev.Size = op.Size
		}
	}
	if op.Mtime != nil && *op.Mtime != n.Mtime {
		ev.Mtime = op.Mtime
	}
	if op.Atime != nil && *op.Atime != n.Atime {
		ev.Atime = op.Atime
	}
	return d.attrChanges(n, ev)
}

// alone reports whether nobody but the request's session holds n, and that for writing. While it is called back this stays so.
func (d *decider) alone(n *state.Inode) bool {
	return d.req.Session == 0 || d.s.Mode(n.Ino, id.SessionID(d.req.Session)) == msg.Mode_EXCLUSIVE_WRITE
}

func punchReply(n *state.Inode) *msg.SetAttrReply {
	p, ok := n.Punch()
	return &msg.SetAttrReply{Punch: ok, Index: p.Index, From: p.From}
}

func (d *decider) access(op *msg.Access) Outcome {
	n, code := d.inode(op.Ino)
	switch {
	case code != fserr.OK:
		return fail(code, "")
	case op.Mask&^7 != 0:
		return fail(fserr.Invalid, "")
	case !CheckAccess(n, d.cred, op.Mask):
		return fail(fserr.Access, "")
	}
	return d.answer(n, &msg.MetaReply{})
}

func (d *decider) statFS() Outcome {
	total, free := d.env.Space(int(d.s.Policy(id.Root).Norm))
	return d.answer(nil, &msg.MetaReply{Result: &msg.MetaReply_StatFs{StatFs: &msg.StatFSReply{
		Total: total, Free: free, Files: uint64(d.s.Counts().Inodes), NameMax: maxName,
	}}})
}

func (d *decider) readDir(op *msg.ReadDir) Outcome {
	dir, ok := d.s.Inode(id.Ino(op.Ino))
	switch {
	case !ok:
		return fail(fserr.NotExist, "")
	case !dir.IsDir():
		return fail(fserr.NotDir, "")
	case !d.may(dir, MayRead):
		return fail(fserr.Access, "")
	}
	limit := int(min(op.Max, maxDirents))
	if limit == 0 {
		limit = defaultDirents
	}
	r := &msg.ReadDirReply{End: true, Parent: uint64(dir.Parent)}
	d.s.Dentries(dir.Ino, op.Cookie, func(e *state.Dentry) bool {
		if len(r.Entries) == limit {
			r.End = false
			return false
		}
		x := &msg.Dirent{Ino: uint64(e.Ino), Type: e.Type, Name: []byte(e.Name), Cookie: e.Cookie}
		if op.Plus {
			if n, ok := d.s.Inode(e.Ino); ok {
				x.Attr = n.Attr()
			}
		}
		r.Entries = append(r.Entries, x)
		return true
	})
	return d.answer(dir, &msg.MetaReply{Result: &msg.MetaReply_ReadDir{ReadDir: r}})
}

func (d *decider) readLink(op *msg.ReadLink) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	if n.Type() != msg.FileType_SYMLINK {
		return fail(fserr.Invalid, "")
	}
	return d.answer(n, &msg.MetaReply{Result: &msg.MetaReply_Data{Data: []byte(n.Target())}})
}
