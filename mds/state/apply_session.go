package state

import (
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"

	"github.com/zeebo/xxh3"
)

func (s *State) sessionOpen(ev *event.Event, b *event.SessionOpen) {
	x := &Session{
		ID: id.SessionID(b.Id), Host: b.Host, PID: b.Pid, Mount: b.Mount, Nonce: string(b.Nonce), Opened: s.index, Time: ev.Time,
	}
	if _, ok := s.putSession(x); ok || x.ID == 0 {
		s.misfit("session %v is there", x.ID)
	}
	s.addResults(&results{session: x.ID, owner: s.owner})
	s.lastSession = max(s.lastSession, x.ID)
}

func (s *State) sessionClose(b *event.SessionClose) {
	old, ok := s.Session(id.SessionID(b.Id))
	if !ok || old.Fenced {
		s.misfit("close of session %d, which is not open", b.Id)
	}
	clean := b.Kind == event.SessionClose_CLEAN
	var held []Lease
	s.LeasesOf(old.ID, func(l Lease) bool {
		held = append(held, l)
		return true
	})
	for _, l := range held {
		if l.Want == msg.Want_WANT_WRITE && !clean {
			s.unsettle(l.Ino)
		}
		s.dropLease(l)
	}
	s.dropLocks(old.ID)
	s.dropResults(old.ID)
	if clean {
		s.dropSession(old)
		return
	}
	x := *old
	x.Fenced = true
	s.putSession(&x)
}

// unsettle marks the inode whose writer is gone: its replicas may differ.
func (s *State) unsettle(ino id.Ino) {
	n := s.must(ino, "session close")
	if n.Chunks() == 0 || n.Unsettled() {
		return
	}
	c := *n
	c.mode |= unsettledBit
	s.putInode(&c)
	s.unsettled.ReplaceOrInsert(ino)
}

func (s *State) dropLocks(session id.SessionID) {
	var list []*fileLocks
	s.locks.Ascend(func(f *fileLocks) bool {
		has := func(l Lock) bool { return l.Owner.Session == session }
		if slices.ContainsFunc(f.posix, has) || slices.ContainsFunc(f.flock, has) {
			list = append(list, f)
		}
		return true
	})
	for _, f := range list {
		s.putLocks(&fileLocks{ino: f.ino, posix: dropSession(f.posix, session), flock: dropSession(f.flock, session)})
	}
}

func (s *State) sessionForgotten(b *event.SessionForgotten) {
	old, ok := s.Session(id.SessionID(b.Id))
	if !ok || !old.Fenced {
		s.misfit("session %d forgotten, which is not fenced", b.Id)
	}
	s.dropSession(old)
}

func (s *State) leaseSet(ev *event.Event, b *event.LeaseSet) {
	if b.Attr != nil {
		s.setAttr(ev, b.Attr)
	}
	for _, e := range b.Entries {
		s.setLease(id.Ino(e.Ino), id.SessionID(e.Session), msg.Want(e.Want))
	}
	s.noteWriters(b)
}

// setLease records that the session holds the inode for want. To drop what is not held changes nothing.
func (s *State) setLease(ino id.Ino, session id.SessionID, want msg.Want) {
	if want > msg.Want_WANT_WRITE || want < 0 {
		s.misfit("lease on %v for want %d", ino, want)
	}
	old, had := s.Lease(ino, session)
	if want == msg.Want_WANT_NONE {
		if had {
			s.dropLease(old)
		}
		return
	}
	if n := s.must(ino, "lease"); !n.IsRegular() {
		s.misfit("lease: inode %v is a %v", ino, n.Type())
	}
	if x, ok := s.Session(session); !ok || x.Fenced {
		s.misfit("lease on %v for session %v, which is not open", ino, session)
	}
	l := Lease{Ino: ino, Session: session, Want: want, Index: s.index}
	if had && want <= old.Want {
		l.Index = old.Index
	}
	s.putLease(l)
	if !had {
		s.held.ReplaceOrInsert(leaseKey{session, ino})
	}
}

func (s *State) dropLease(l Lease) {
	s.delLease(l)
	s.held.Delete(leaseKey{l.Session, l.Ino})
	s.reap(s.must(l.Ino, "lease"))
}

func (s *State) lockSet(b *event.LockSet) {
	ino, session := id.Ino(b.Ino), id.SessionID(b.Session)
	s.must(ino, "lock")
	typ := msg.LockType(b.Type)
	if x, ok := s.Session(session); typ != msg.LockType_UNLOCK && (!ok || x.Fenced) {
		s.misfit("lock on %v for session %v, which is not open", ino, session)
	}
	if b.Start > b.End || typ < msg.LockType_UNLOCK || typ > msg.LockType_WRITE_LOCK {
		s.misfit("lock on %v of type %d, from %d to %d", ino, typ, b.Start, b.End)
	}
	l := Lock{Owner: Owner{session, b.Owner}, PID: b.Pid, Start: b.Start, End: b.End}
	f := &fileLocks{ino: ino, posix: s.Locks(ino, false), flock: s.Locks(ino, true)}
	list := &f.posix
	if b.Flock {
		list = &f.flock
	}
	*list = SetLock(*list, l, typ)
	s.putLocks(f)
}

// ResultOf returns the outcome that an applied event is for the request which caused it.
func ResultOf(ev *event.Event) Result {
	r := Result{Seq: ev.Cause.GetSeq(), Index: id.Index(ev.Index)}
	switch b := ev.Body.(type) {
	case *event.Event_Create:
		r.Ino = id.Ino(b.Create.Ino)
	case *event.Event_Link:
		r.Ino = id.Ino(b.Link.Ino)
	case *event.Event_Remove:
		r.Ino = id.Ino(b.Remove.Ino)
	case *event.Event_Rename:
		r.Ino = id.Ino(b.Rename.Ino)
	case *event.Event_SetAttr:
		r.Ino, r.Value = id.Ino(b.SetAttr.Ino), b.SetAttr.GetOffset()
	case *event.Event_SetXattr:
		r.Ino = id.Ino(b.SetXattr.Ino)
	case *event.Event_RemoveXattr:
		r.Ino = id.Ino(b.RemoveXattr.Ino)
	case *event.Event_LeaseSet:
		for _, e := range b.LeaseSet.Entries {
			if e.Session == ev.Cause.GetSession() {
				r.Ino = id.Ino(e.Ino)
			}
		}
	case *event.Event_LockSet:
		r.Ino = id.Ino(b.LockSet.Ino)
	case *event.Event_PolicySet:
		r.Ino = id.Ino(b.PolicySet.Ino)
	case *event.Event_ChunkAlloc:
		r.Ino = id.Ino(b.ChunkAlloc.Ino)
	case *event.Event_ReplicaDrop:
		r.Ino = id.Ino(b.ReplicaDrop.Ino)
	case *event.Event_PunchDone:
		r.Ino = id.Ino(b.PunchDone.Ino)
	}
	return r
}

// remember keeps the outcome of the request that caused ev, and forgets what its session has acknowledged.
func (s *State) remember(ev *event.Event) {
	c := ev.Cause
	if c.GetSession() == 0 || c.GetSeq() == 0 {
		return
	}
	r, ok := s.results.Get(c.Session)
	if !ok {
		return // the session is over, nobody will ask
	}
	if r.owner != s.owner {
		r = r.copy(s.owner)
		s.results.Put(c.Session, r)
	}
	s.forget(r, c.Acked)
	if c.Seq <= r.floor {
		return // overtaken by MaxResults others; a repeat is refused
	}
	i, dup := r.find(c.Seq)
	if dup {
		s.misfit("session %d, seq %d: done before, by event %v", c.Session, c.Seq, r.list[i].Index)
	}
	s.addResult(r, i, ResultOf(ev))
	if len(r.list) > MaxResults {
		s.forget(r, r.list[0].Seq)
	}
}

// copy returns a copy that whoever has owner may change.
func (r *results) copy(owner *owned) *results {
	c := *r
	c.owner, c.list, c.sums = owner, slices.Clone(r.list), slices.Clone(r.sums)
	return &c
}

// recount computes what the digest counts of r.
func (r *results) recount() {
	var b [64]byte
	r.floorSum = xxh3.Hash128(sumFloor(b[:], r))
	for i, v := range r.list {
		r.sums[i] = xxh3.Hash128(sumResult(b[:], r.session, v))
	}
}

// drop drops the first n outcomes.
func (r *results) drop(n int) {
	r.list, r.sums = slices.Delete(r.list, 0, n), slices.Delete(r.sums, 0, n)
}

func (r *results) find(seq uint64) (int, bool) {
	if n := len(r.list); n == 0 || r.list[n-1].Seq < seq {
		return n, false // the usual case: seq rises
	}
	return slices.BinarySearchFunc(r.list, seq, func(a Result, seq uint64) int {
		switch {
		case a.Seq < seq:
			return -1
		case a.Seq > seq:
			return 1
		}
		return 0
	})
}
