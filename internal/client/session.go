package client

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// session is one lease on the cluster, with all that hangs on it: files, connections to chunk servers, sequence numbers.
// When it is lost, everything of it is dead and a new session begins with nothing.
type session struct {
	c          *Client
	id         id.SessionID
	lease      time.Duration
	renewEvery time.Duration
	deadline   atomic.Int64 // boot time, ns: until then the metadata servers cannot have expired it
	// lapses counts the renewals that came after the deadline: meanwhile the metadata servers may have changed replica sets without asking.
	lapses  atomic.Uint64
	asOf    atomic.Uint64 // index of the newest event as of which the metadata servers said that it was open
	servers pool
	// capability is what chunk servers are shown, refused that one of them did not take it.
	capability atomic.Pointer[[]byte]
	refused    atomic.Bool
	doubts     chan struct{} // somebody wants to know now whether a chunk server is silent
	ordinals   ordinals      // of changes under shared-write leases
	changing   atomic.Int32  // writes and punches that some replicas may have carried out and others not, and truncates that are not over

	ctx    context.Context // ends with the session
	cancel context.CancelFunc

	seqMu sync.Mutex
	seq   uint64              // last one given out
	acked uint64              // every outcome up to it is known or given up
	done  map[uint64]struct{} // those above acked

	mu      sync.Mutex
	inodes  map[id.Ino]*inode
	idle    *list.List // of *inode without users, oldest first: their leases are kept
	dirty   map[*inode]struct{}
	creates int                 // requests under way that may grant a lease on an inode we have never heard of
	recalls map[id.Ino]struct{} // such leases that were recalled before the grant was seen
	lapsed  bool
}

func pid() uint32 { return uint32(os.Getpid()) }

func newSession(c *Client, n id.SessionID, r *msg.OpenSessionReply) *session {
	s := &session{
		c: c, id: n,
		lease: time.Duration(r.LeaseMs) * time.Millisecond, renewEvery: time.Duration(r.RenewMs) * time.Millisecond,
		done: make(map[uint64]struct{}), inodes: make(map[id.Ino]*inode), idle: list.New(), dirty: make(map[*inode]struct{}),
		recalls: make(map[id.Ino]struct{}), doubts: make(chan struct{}, 1),
	}
	if s.lease == 0 {
		s.lease = 10 * time.Second
	}
	if s.renewEvery == 0 {
		s.renewEvery = s.lease / 5
	}
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	s.servers.init(s)
	return s
}

// discard ends a session that was never used.
func (s *session) discard() {
	s.cancel()
	s.servers.close()
}

// kill makes the session and all its files dead. What the kernel cached of them is dropped.
func (s *session) kill(cause fserr.Code) {
	s.mu.Lock()
	first := s.ctx.Err() == nil
	s.cancel()
	inodes := make([]id.Ino, 0, len(s.inodes))
	for ino := range s.inodes {
		inodes = append(inodes, ino)
	}
	s.mu.Unlock()
	s.servers.close()
	if first {
		s.c.cache.drop()
	}
	if !first || s.c.ctx.Err() != nil {
		return
	}
	s.c.log.Warn("session lost", "session", s.id, "files", len(inodes), "cause", cause)
	s.c.background(func() {
		for _, ino := range inodes {
			s.c.invalidate(ino, 0, 0)
		}
	})
}

// forget returns when the kernel has dropped what it had cached of files, or ctx ends.
func (s *session) forget(ctx context.Context) {
	s.mu.Lock()
	inodes := slices.Collect(maps.Keys(s.inodes))
	s.mu.Unlock()
	for _, ino := range inodes {
		s.c.invalidateNow(ctx, ino, 0, 0)
	}
}

// live returns nil while the session certainly holds its leases. When it could not be renewed in time it waits until
// it is renewed, or found dead.
func (s *session) live(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return fserr.Stale
	}
	if bootTime() < s.deadline.Load() {
		return nil
	}
	st := s.c.watch("session renewal", "session", s.id)
	defer st.end()
	var wait backoff
	for bootTime() >= s.deadline.Load() {
		if err := wait.wait(ctx, s.ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.lapsed = false
	s.mu.Unlock()
	return nil
}

// begin returns the next sequence number, which the caller ends with finish.
func (s *session) begin() uint64 {
	s.seqMu.Lock()
	defer s.seqMu.Unlock()
	s.seq++
	return s.seq
}

// finish says that the outcome of seq is known, or that nobody will ask for it any more.
func (s *session) finish(seq uint64) {
	s.seqMu.Lock()
	defer s.seqMu.Unlock()
	s.done[seq] = struct{}{}
	for {
		if _, ok := s.done[s.acked+1]; !ok {
			return
		}
		s.acked++
		delete(s.done, s.acked)
	}
}

func (s *session) ackedUpTo() uint64 {
	s.seqMu.Lock()
	defer s.seqMu.Unlock()
	return s.acked
}

// flushAll has what was written behind written, and reports size and mtime of every file that has news.
func (s *session) flushAll(ctx context.Context) error {
	s.mu.Lock()
	all := make([]*inode, 0, len(s.dirty))
	take := func(in *inode) {
		in.refs++ // pinned, see pin
		s.unidle(in)
		all = append(all, in)
	}
	for in := range s.dirty {
		take(in)
	}
	for _, in := range s.inodes {
		if _, dirty := s.dirty[in]; !dirty && in.behind.on.Load() { // its size was reported before it is there
			take(in)
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	slots := make(chan struct{}, 16)
	for i, in := range all {
		slots <- struct{}{}
		wg.Go(func() {
			if errs[i] = in.drainAll(ctx); errs[i] == nil { // the size is not to be known before what it covers is there
				errs[i] = in.flushAttr(ctx, false)
			}
			s.unpin(in)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// settled returns when no write or punch is under way.
func (s *session) settled(ctx context.Context) error {
	var wait backoff
	st := s.c.watch("writes that are not on all replicas yet", "session", s.id)
	defer st.end()
	for s.changing.Load() > 0 {
		if err := wait.wait(ctx, s.ctx); err != nil {
			return fmt.Errorf("%d writes are not on all replicas, the session is left to expire: %w", s.changing.Load(), err)
		}
	}
	return nil
}

// pin returns the inode, made if need be, and keeps it in the table until unpin.
func (s *session) pin(ino id.Ino) *inode {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.inodes[ino]
	if in == nil {
		in = newInode(s, ino)
		s.inodes[ino] = in
	}
	in.refs++
	s.unidle(in)
	return in
}

// peek returns the inode pinned, or nil if it is not in the table.
func (s *session) peek(ino id.Ino) *inode {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.inodes[ino]
	if in != nil {
		in.refs++
		s.unidle(in)
	}
	return in
}

func (s *session) unidle(in *inode) {
	if in.elem != nil {
		s.idle.Remove(in.elem)
		in.elem = nil
	}
}

// unpin ends a pin or peek. An inode that nobody uses goes, or stays with its lease until that is called back
// or too many are kept.
func (s *session) unpin(in *inode) {
	in.mu.Lock()
	leased := in.want != msg.Want_WANT_NONE || len(in.unflushed) > 0
	unlinked := in.unlinked
	in.mu.Unlock()
	victim := s.retire(in, leased, unlinked)
	if victim == nil {
		return
	}
	s.c.background(func() {
		if err := victim.giveBack(s.ctx); err != nil && s.ctx.Err() == nil {
			s.c.log.Warn("releasing a lease failed", "inode", victim.ino, "err", err)
		}
		s.unpin(victim)
	})
}

// retire ends a pin and returns an idle inode, pinned, whose lease shall be given back, or nil.
func (s *session) retire(in *inode, leased, unlinked bool) *inode {
	s.mu.Lock()
	defer s.mu.Unlock()
	in.refs--
	if in.refs > 0 || s.inodes[in.ino] != in {
		return nil
	}
	if !leased {
		if _, dirty := s.dirty[in]; !dirty {
			delete(s.inodes, in.ino)
			return nil
		}
	}
	in.elem = s.idle.PushBack(in)
	victim := in
	if !unlinked {
		if s.idle.Len() <= s.c.o.IdleLeases {
			return nil
		}
		victim = s.idle.Front().Value.(*inode)
	}
	if s.ctx.Err() != nil {
		return nil
	}
	victim.refs++
	s.unidle(victim)
	return victim
}

// watchLease drops what the kernel cached when the session was not renewed in time: another mount may be given the
// leases soon.
func (s *session) watchLease(within time.Duration) {
	if bootTime()+int64(within) < s.deadline.Load() {
		return
	}
	s.mu.Lock()
	first := !s.lapsed
	s.lapsed = true
	inodes := make([]id.Ino, 0, len(s.inodes))
	for ino := range s.inodes {
		inodes = append(inodes, ino)
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.c.log.Warn("session not renewed in time, dropping caches", "session", s.id, "files", len(inodes))
	for _, ino := range inodes {
		s.c.invalidate(ino, 0, 0)
	}
}

// creating brackets a request that may grant a lease on an unknown inode.
func (s *session) creating(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creates += n
	if s.creates == 0 {
		clear(s.recalls)
	}
}

// recalledEarly reports whether a lease that a create was granted was called back before the grant arrived.
func (s *session) recalledEarly(ino id.Ino) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.recalls[ino]
	return ok
}

// peekForRecall is peek that remembers the recall of an unknown inode while a create is under way.
func (s *session) peekForRecall(ino id.Ino) *inode {
	in := s.peek(ino)
	if in != nil {
		return in
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if in := s.inodes[ino]; in != nil {
		in.refs++
		s.unidle(in)
		return in
	}
	if s.creates > 0 {
		s.recalls[ino] = struct{}{}
	}
	return nil
}

// markDirty puts the inode on the list of those with news of size and mtime.
func (s *session) markDirty(in *inode, dirty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dirty {
		s.dirty[in] = struct{}{}
	} else {
		delete(s.dirty, in)
	}
}
