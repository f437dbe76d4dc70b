package fuse

import (
	"context"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// releaseTime bounds what is done on behalf of nobody, such as releasing a handle that the kernel never got.
const releaseTime = time.Minute

// entry answers with struct fuse_entry_out and counts the reference that the kernel gets by it.
func (s *Session) entry(r *request, a *msg.Attr) int {
	s.nodes.looked(a)
	ino := id.Ino(a.Ino)
	r.lost = func() { s.nodes.forget(ino, 1) }
	putEntry(r.room(entryOutSize), a)
	return entryOutSize
}

func (s *Session) lookup(r *request) (int, error) {
	name, _, err := cutName(r.rest)
	if err != nil {
		return 0, err
	}
	a, err := s.backend.Lookup(r.flight, r.cred(), r.ino, name)
	if _, removed := s.removedDir(r.ino, err); removed {
		return 0, fserr.NotExist
	}
	if err != nil && s.keeper != nil && fserr.Of(err) == fserr.NotExist {
		r.zeroed(entryOutSize) // an entry without inode, which the kernel may keep
		r.keep = kept{what: keepEntry, parent: r.ino, name: name}
		return entryOutSize, nil
	}
	if err != nil {
		return 0, err
	}
	r.keep = kept{what: keepEntry | keepAttr, parent: r.ino, name: name, attr: a}
	return s.entry(r, a), nil
}

func (s *Session) readlink(r *request) (int, error) {
	target, err := s.backend.ReadLink(r.flight, r.ino)
	if err != nil {
		return 0, err
	}
	if len(target) > pageSize-1 { // PATH_MAX with its zero byte
		return 0, fserr.NameTooLong
	}
	return copy(r.room(len(target)), target), nil
}

// makeNode creates what is not a regular file to be opened.
func (s *Session) makeNode(r *request, req *msg.Create) (int, error) {
	name, rest, err := cutName(r.rest)
	if err != nil {
		return 0, err
	}
	if req.Type == msg.FileType_SYMLINK {
		if req.Target, _, err = cutString(rest); err != nil {
			return 0, err
		}
	}
	req.Parent, req.Name, req.Exclusive = uint64(r.ino), name, true
	a, _, err := s.backend.Create(r.flight, r.cred(), req)
	if err != nil {
		return 0, err
	}
	r.keep = kept{what: keepEntry, parent: r.ino, name: name, attr: a}
	return s.entry(r, a), nil
}

func (s *Session) symlink(r *request) (int, error) {
	return s.makeNode(r, &msg.Create{Type: msg.FileType_SYMLINK, Perm: 0o777})
}

func (s *Session) mknod(r *request) (int, error) {
	mode := r.u32(0)
	req := &msg.Create{Type: typeOf(mode), Perm: mode & 0o7777}
	switch req.Type {
	case msg.FileType_CHAR, msg.FileType_BLOCK:
		req.Rdev = r.u32(4) // the kernel's 32-bit encoding, given back as it is
	case msg.FileType_REGULAR, msg.FileType_FIFO, msg.FileType_SOCKET:
	default:
		return 0, fserr.Invalid
	}
	return s.makeNode(r, req)
}

func (s *Session) mkdir(r *request) (int, error) {
	return s.makeNode(r, &msg.Create{Type: msg.FileType_DIRECTORY, Perm: r.u32(0) & 0o7777})
}

// create answers with struct fuse_entry_out and struct fuse_open_out. The kernel sends it for a name
// that did not exist a moment ago, and has checked that the caller may create, not that it may open. So
// if another mount made the name since, an open without O_EXCL must not simply succeed: ESTALE makes the
// kernel walk the path again, find the file, check permissions and OPEN it.
func (s *Session) create(r *request) (int, error) {
	name, _, err := cutName(r.rest)
	if err != nil {
		return 0, err
	}
	flags := r.u32(0)
	a, h, err := s.backend.Create(r.flight, r.cred(), &msg.Create{
		Parent: uint64(r.ino), Name: name, Type: msg.FileType_REGULAR, Perm: r.u32(4) & 0o7777, Exclusive: true, Open: true,
	})
	if err != nil {
		if fserr.Of(err) == fserr.Exist && flags&unix.O_EXCL == 0 {
			return 0, fserr.Stale
		}
		return 0, err
	}
	s.nodes.looked(a)
	ino := id.Ino(a.Ino)
	fh := s.files.add(&file{handle: h, ino: ino, write: true})
	r.lost = func() {
		s.nodes.forget(ino, 1)
		s.releaseLost(fh)
	}
	b := r.room(entryOutSize + openOutSize)
	putEntry(b, a)
	putOpen(b[entryOutSize:], fh)
	r.keep = kept{what: keepEntry, parent: r.ino, name: name, attr: a}
	return entryOutSize + openOutSize, nil
}

// releaseLost releases a file that the kernel did not learn of.
func (s *Session) releaseLost(fh uint64) {
	f := s.files.take(fh)
	if f == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	if err := f.handle.Release(ctx); err != nil {
		s.log.Warn("release failed", "inode", f.ino, "cause", err)
	}
}

// remove is UNLINK and RMDIR.
func (s *Session) remove(r *request) (int, error) {
	name, _, err := cutName(r.rest)
	if err != nil {
		return 0, err
	}
	return 0, s.backend.Remove(r.flight, r.cred(), r.ino, name, r.op == opRmdir)
}

// rename is RENAME and RENAME2.
func (s *Session) rename(r *request) (int, error) {
	var flags uint32
	if r.op == opRename2 {
		flags = r.u32(8)
	}
	if flags&^(renameNoReplace|renameExchange) != 0 || flags == renameNoReplace|renameExchange {
		return 0, fserr.Invalid
	}
	name, rest, err := cutName(r.rest)
	if err != nil {
		return 0, err
	}
	newName, _, err := cutName(rest)
	if err != nil {
		return 0, err
	}
	err = s.backend.Rename(r.flight, r.cred(), &msg.Rename{
		Parent: uint64(r.ino), Name: name, NewParent: r.u64(0), NewName: newName,
		NoReplace: flags&renameNoReplace != 0, Exchange: flags&renameExchange != 0,
	})
	if err == nil && inoOf(r.u64(0)) != r.ino {
		s.forgetNames() // the kernel moves the name with its validity, which is that of names in the other directory
	}
	return 0, err
}

func (s *Session) link(r *request) (int, error) {
	name, _, err := cutName(r.rest)
	if err != nil {
		return 0, err
	}
	a, err := s.backend.Link(r.flight, r.cred(), inoOf(r.u64(0)), r.ino, name)
	if err != nil {
		return 0, err
	}
	r.keep = kept{what: keepEntry, parent: r.ino, name: name, attr: a}
	return s.entry(r, a), nil
}

func (s *Session) statfs(r *request) (int, error) {
	st, err := s.backend.StatFS(r.flight)
	if err != nil {
		return 0, err
	}
	putStatfs(r.room(statfsSize), st)
	return statfsSize, nil
}

func (s *Session) ioctl(*request) (int, error) { return 0, syscall.ENOTTY }

func (s *Session) destroy(*request) (int, error) { return 0, nil }
