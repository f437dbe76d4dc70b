package fuse

import (
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// Offsets in a directory: 0 is the start, 1 is after ".", 2 is after "..", and c+2 is after the entry with
// the Backend's cookie c.
const (
	afterDot    = 1
	afterDotDot = 2
)

// Directories need no state: their number is 0 and an offset says all.

func (s *Session) opendir(r *request) (int, error) {
	r.zeroed(openOutSize)
	return openOutSize, nil
}

func (s *Session) releasedir(*request) (int, error) { return 0, nil }

// fsyncdir has nothing to do: what was answered is on stable media.
func (s *Session) fsyncdir(*request) (int, error) { return 0, nil }

// direntRoom is the number of bytes of an entry, rounded up as the kernel wants it.
func direntRoom(name []byte) int { return (direntSize + len(name) + 7) &^ 7 }

// listing builds the answer to a READDIR.
type listing struct {
	b []byte
	n int // bytes used
}

// add appends one entry and reports whether it fitted. e.Cookie is the offset after it.
func (l *listing) add(e *msg.Dirent) bool {
	size := direntRoom(e.Name)
	if l.n+size > len(l.b) {
		return false
	}
	b := l.b[l.n : l.n+size]
	le.PutUint64(b, e.Ino)
	le.PutUint64(b[8:], e.Cookie)
	le.PutUint32(b[16:], uint32(len(e.Name)))
	le.PutUint32(b[20:], typeBits(e.Type)>>12)
	clear(b[direntSize+copy(b[direntSize:], e.Name):])
	l.n += size
	return true
}

var dot, dotDot = []byte("."), []byte("..")

// readdir is READDIR; READDIRPLUS is not used, see keep.go. It asks the Backend for as many entries as could fit; those that do
// not fit are asked for again, since the next request starts at the last one that did.
func (s *Session) readdir(r *request) (int, error) {
	off, size := r.u64(8), int(r.u32(16))
	if size > maxWrite {
		size = maxWrite
	}
	const typicalName = 8
	most := max(size/direntRoom(make([]byte, typicalName)), 1)
	cookie := uint64(0)
	if off > afterDotDot {
		cookie = off - afterDotDot
	}
	reply, err := s.backend.ReadDir(r.flight, r.cred(), r.ino, cookie, most, false)
	if _, removed := s.removedDir(r.ino, err); removed {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	l := listing{b: r.room(size)}
	if off < afterDot && !l.add(&msg.Dirent{Ino: uint64(r.ino), Type: msg.FileType_DIRECTORY, Name: dot, Cookie: afterDot}) {
		return 0, fserr.Invalid
	}
	if off < afterDotDot {
		parent := reply.Parent
		if parent == 0 {
			parent = uint64(id.Root)
		}
		if !l.add(&msg.Dirent{Ino: parent, Type: msg.FileType_DIRECTORY, Name: dotDot, Cookie: afterDotDot}) {
			return l.n, nil
		}
	}
	for _, e := range reply.Entries {
		shown := msg.Dirent{Ino: e.Ino, Type: e.Type, Name: e.Name, Cookie: e.Cookie + afterDotDot}
		if !l.add(&shown) {
			if l.n == 0 {
				return 0, fserr.Invalid // as getdents(2) says when not even one fits
			}
			break
		}
	}
	return l.n, nil
}
