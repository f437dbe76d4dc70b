package fuse

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/boottime"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// What the kernel keeps of names and attributes, and how it forgets.
//
// Attributes are given a time only in answers to LOOKUP, GETATTR and STATX. For those the kernel remembers when it asked, and takes no
// answer that an INVAL_INODE has overtaken; for others (SETATTR, LINK, CREATE and the like) it does not. Names are given a time
// in answers after which the kernel records the epoch in which it asked: not in READDIRPLUS, which reads the epoch when it
// has the answer; therefore that is not used at all, and would save nothing, as each name would still be looked up.
//
// The kernel checks owners (sticky directories, chmod) by attributes that it may have invalidated but not asked for again, as long as
// it believes the name. So names are forgotten too when attributes are called back, and no name is given a time whose attributes the
// Backend does not vouch for.
//
// INVAL_INODE with a negative offset and INC_EPOCH wait for no lock that an operation may hold; INVAL_ENTRY waits for that of
// the directory, so that it is not used here.

type keepWhat uint8

const keepNothing keepWhat = 0
const (
	keepEntry keepWhat = 1 << iota
	keepAttr
)

// kept is what of an answer the kernel may keep, if the Backend allows it.
type kept struct {
	what   keepWhat
	parent id.Ino
	name   []byte
	attr   *msg.Attr
}

// kernel is what is known of the kernel's side.
type kernel struct {
	epochs atomic.Bool  // it knows INC_EPOCH
	names  atomic.Int64 // boot time, ns: until then it may believe some name
}

func bootTime() int64 {
	return int64(boottime.Now())
}

// sendKept sends a successful answer with the times for which the kernel may keep it. From Hold to Unhold no callback about it
// gets past the Backend, so that one that comes later finds noted here what the kernel was told.
func (s *Session) sendKept(r *request, n int) error {
	k := &r.keep
	parent := k.parent
	if !s.kernel.epochs.Load() {
		parent = 0 // names could not be taken back
		if k.what&keepAttr == 0 {
			return r.via.send(r, 0, n)
		}
	}
	entry, attr := s.keeper.Hold(parent, k.name, k.attr)
	defer s.keeper.Unhold(parent, k.attr)
	now := bootTime()
	if k.what&keepEntry != 0 && entry > 0 {
		till := now + int64(entry)
		for old := s.kernel.names.Load(); old < till && !s.kernel.names.CompareAndSwap(old, till); old = s.kernel.names.Load() {
		}
		putTime(r.body[16:], r.body[32:], entry)
	}
	if k.what&keepAttr != 0 && attr > 0 {
		s.nodes.keep(id.Ino(k.attr.Ino), now+int64(attr))
		if k.what&keepEntry != 0 {
			putTime(r.body[24:], r.body[36:], attr)
		} else {
			putTime(r.body, r.body[8:], attr)
		}
	}
	return r.via.send(r, 0, n)
}

func putTime(sec, nsec []byte, d time.Duration) {
	le.PutUint64(sec, uint64(d/time.Second))
	le.PutUint32(nsec, uint32(d%time.Second))
}

// ForgetMeta makes the kernel forget the attributes of inodes and the names in directories, and returns when it has.
func (s *Session) ForgetMeta(attrs, dirs []id.Ino) {
	for _, list := range [...][]id.Ino{dirs, attrs} {
		for _, ino := range list {
			if _, known := s.nodes.get(ino); known {
				s.forgetNames()
				s.ForgetAttrs(attrs)
				return
			}
		}
	}
}

// ForgetAllMeta makes the kernel forget all attributes and names.
func (s *Session) ForgetAllMeta() {
	s.forgetNames()
	s.ForgetAttrs(s.nodes.believed(bootTime()))
}

// forgetNames ends the epoch if the kernel may believe a name.
func (s *Session) forgetNames() {
	if bootTime() < s.kernel.names.Load() {
		s.noted("epoch", 0, s.via.notify(notifyIncEpoch))
	}
}

// ForgetAttrs makes the kernel forget attributes.
func (s *Session) ForgetAttrs(inos []id.Ino) {
	for _, ino := range inos {
		if n, known := s.nodes.get(ino); known && bootTime() < n.kept {
			s.forgetAttr(ino)
		}
	}
}

// forgetAttr repeats the notification while the kernel says that it has no such inode although it was told of it: it has
// the answer in hand, or has sent a FORGET that we have not seen.
func (s *Session) forgetAttr(ino id.Ino) {
	var b [24]byte
	attributesOnly := int64(-1)
	le.PutUint64(b[:], uint64(ino))
	le.PutUint64(b[8:], uint64(attributesOnly))
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		err := s.via.notify(notifyInvalInode, b[:])
		if !errors.Is(err, unix.ENOENT) {
			s.noted("inode", ino, err)
			return
		}
		if n, known := s.nodes.get(ino); !known || bootTime() >= n.kept {
			return
		}
		select {
		case <-s.ended:
			return
		case <-time.After(pause):
		}
	}
}

// findEpochs finds out whether the kernel knows INC_EPOCH. Without it names are given no time.
func (s *Session) findEpochs() {
	s.kernel.epochs.Store(s.keeper != nil && s.via.notify(notifyIncEpoch) == nil)
}
