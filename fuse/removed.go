package fuse

import (
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// removedDir returns attributes for a directory that was removed while the kernel holds it, as the working directory of a
// process or an open one. The Backend knows nothing of it any more; a local filesystem goes on showing it, empty
// and without links.
func (s *Session) removedDir(ino id.Ino, err error) (*msg.Attr, bool) {
	if err == nil || fserr.Of(err) != fserr.Stale {
		return nil, false
	}
	n, ok := s.nodes.get(ino)
	if !ok || n.typ != msg.FileType_DIRECTORY {
		return nil, false
	}
	return &msg.Attr{Ino: uint64(ino), Type: n.typ, Perm: n.perm, Uid: n.uid, Gid: n.gid}, true
}
