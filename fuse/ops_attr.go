package fuse

import (
	"bytes"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// attrOf asks for the attributes of the request's inode.
func (s *Session) attrOf(r *request) (*msg.Attr, error) {
	a, err := s.backend.GetAttr(r.flight, r.ino)
	if removed, ok := s.removedDir(r.ino, err); ok {
		return removed, nil
	}
	if err == nil {
		s.nodes.seen(a)
	}
	return a, err
}

func (s *Session) getattr(r *request) (int, error) {
	a, err := s.attrOf(r)
	if err != nil {
		return 0, err
	}
	putAttrOut(r.room(attrOutSize), a)
	r.keep = kept{what: keepAttr, attr: a}
	return attrOutSize, nil
}

// statx is asked by kernels from 6.6 when a program wants the time of birth.
func (s *Session) statx(r *request) (int, error) {
	a, err := s.attrOf(r)
	if err != nil {
		return 0, err
	}
	putStatx(r.room(statxOutSize), a)
	r.keep = kept{what: keepAttr, attr: a}
	return statxOutSize, nil
}

func (s *Session) setattr(r *request) (int, error) {
	n, _ := s.nodes.get(r.ino)
	req, err := parseSetattr(r, n.typ == msg.FileType_DIRECTORY)
	if err != nil {
		return 0, err
	}
	a, err := s.backend.SetAttr(r.flight, r.cred(), req)
	if err != nil {
		return 0, err
	}
	s.nodes.seen(a)
	putAttrOut(r.room(attrOutSize), a)
	return attrOutSize, nil
}

// killPriv takes the setuid and setgid bits away before a change of the data by someone who may not
// keep them. It asks the Backend only if the attributes seen last have such bits, which is as much as the
// kernel knows when it does this itself; else each write of an ordinary user would cost a request more.
func (s *Session) killPriv(r *request) error {
	if !s.hasPriv(r.ino) {
		return nil
	}
	a, err := s.backend.SetAttr(r.flight, r.cred(), &msg.SetAttr{Ino: uint64(r.ino), KillPriv: true})
	if err != nil {
		return err
	}
	s.nodes.seen(a)
	return nil
}

// hasPriv tells whether a file may have a setuid or setgid bit that a change of its data takes away.
func (s *Session) hasPriv(ino id.Ino) bool {
	const setuid, setgid, groupExec = 0o4000, 0o2000, 0o010
	n, ok := s.nodes.get(ino)
	return !ok || n.perm&setuid != 0 || n.perm&(setgid|groupExec) == setgid|groupExec
}

func (s *Session) access(r *request) (int, error) {
	return 0, s.backend.Access(r.flight, r.cred(), r.ino, r.u32(0)&7)
}

// aclPrefix starts the names of POSIX ACLs. They are refused, since without FUSE_POSIX_ACL the kernel
// would store them and then not obey them.
var aclPrefix = []byte("system.posix_acl_")

// cutXattr takes the name of an extended attribute off b.
func cutXattr(b []byte) (name, rest []byte, err error) {
	name, rest, err = cutString(b)
	switch {
	case err != nil:
		return nil, nil, err
	case bytes.HasPrefix(name, aclPrefix):
		return nil, nil, fserr.NotSupported
	case len(name) == 0 || len(name) > maxName:
		return nil, nil, fserr.Range
	}
	return name, rest, nil
}

// sized answers a question that has a size: with the length of data if the size is 0, else with data.
func sized(r *request, data []byte) (int, error) {
	size := int(r.u32(0))
	if size == 0 {
		le.PutUint32(r.zeroed(8), uint32(len(data)))
		return 8, nil
	}
	if len(data) > size {
		return 0, fserr.Range
	}
	return copy(r.room(len(data)), data), nil
}

func (s *Session) getxattr(r *request) (int, error) {
	name, _, err := cutXattr(r.rest)
	if err != nil {
		return 0, err
	}
	v, err := s.backend.GetXattr(r.flight, r.cred(), r.ino, name)
	if err != nil {
		return 0, err
	}
	return sized(r, v)
}

func (s *Session) listxattr(r *request) (int, error) {
	names, err := s.backend.ListXattr(r.flight, r.cred(), r.ino)
	if err != nil {
		return 0, err
	}
	var list []byte
	for _, n := range names {
		list = append(append(list, n...), 0)
	}
	return sized(r, list)
}

func (s *Session) setxattr(r *request) (int, error) {
	name, value, err := cutXattr(r.rest)
	if err != nil {
		return 0, err
	}
	size, flags := r.u32(0), r.u32(4)
	if uint64(size) > uint64(len(value)) || flags&^(xattrCreate|xattrReplace) != 0 {
		return 0, fserr.Invalid
	}
	return 0, s.backend.SetXattr(r.flight, r.cred(), &msg.SetXattr{
		Ino: uint64(r.ino), Name: name, Value: value[:size], Create: flags&xattrCreate != 0, Replace: flags&xattrReplace != 0,
	})
}

func (s *Session) removexattr(r *request) (int, error) {
	name, _, err := cutXattr(r.rest)
	if err != nil {
		return 0, err
	}
	return 0, s.backend.RemoveXattr(r.flight, r.cred(), r.ino, name)
}
