package mds

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

const (
	maxLeaseShow   = 8192             // holders in one answer
	maxPathScan    = 1 << 20          // names looked at for the paths of one answer
	maxPathDepth   = 4096             // directories above a file
	maxReason      = 1 << 10          // bytes of an administrator's reason
	leaseTakeWait  = 10 * time.Second // for holders to answer, if the administrator does not say
	maxLeaseWait   = time.Minute
	endSessionPoll = 100 * time.Millisecond
)

// serveLeases answers what administrators ask about sessions and leases. Only the leader can.
func (s *Server) serveLeases(ctx context.Context, c *wire.Conn, p *peer, f *wire.Frame) {
	l := s.lead.Load()
	if l == nil {
		s.answer(c, f, fserr.NotLeader, nil)
		return
	}
	if p.role != msg.Hello_ADMIN {
		s.answer(c, f, fserr.Perm, nil)
		return
	}
	// To fence takes as long as the lease of a client that does not answer, and then of a chunk server that does not.
	limit := s.o.RequestTimeout + s.o.SessionLease + s.o.ServerLease + fenceTimeout
	var req interface{ UnmarshalVT([]byte) error }
	var handle func(context.Context) (wire.Message, error)
	switch f.Type {
	case wire.FenceSession:
		r := new(msg.FenceSession)
		req, handle = r, func(ctx context.Context) (wire.Message, error) {
			return l.fenceByHand(ctx, id.SessionID(r.Session), "fenced by hand"+because(r.Reason))
		}
	case wire.LeaseShow:
		r := new(msg.LeaseShow)
		req, handle = r, func(ctx context.Context) (wire.Message, error) { return l.showLeases(ctx, id.Ino(r.Ino)) }
	case wire.LeaseTake:
		r := new(msg.LeaseTake)
		limit += maxLeaseWait
		req, handle = r, func(ctx context.Context) (wire.Message, error) { return l.takeLease(ctx, r) }
	}
	if err := req.UnmarshalVT(f.Body); err != nil {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(l.ctx, cancel)
	defer stop()
	reply, err := handle(ctx)
	if err != nil {
		s.failure(c, f, err)
		return
	}
	s.answer(c, f, fserr.OK, reply)
}

// because returns an administrator's words as the end of a reason.
func because(words string) string {
	words = strings.TrimSpace(strings.ToValidUTF8(words, "?"))
	if len(words) > maxReason {
		words = strings.ToValidUTF8(words[:maxReason], "")
	}
	if words == "" {
		return ""
	}
	return ": " + words
}

// fenceByHand closes a session and returns when no chunk server takes anything from it any more. One that is fenced already
// is waited for.
func (l *leadership) fenceByHand(ctx context.Context, session id.SessionID, reason string) (*msg.FenceSessionReply, error) {
	f, err := l.endUnclean(ctx, session, event.SessionClose_FENCED, reason, false, false)
	if err != nil {
		return nil, err
	}
	return l.fenced(ctx, session, f)
}

// endUnclean closes a session, unless it is fenced already, and returns its fence. dead and forgot: see session.
func (l *leadership) endUnclean(ctx context.Context, session id.SessionID, kind event.SessionClose_Kind, reason string, dead, forgot bool) (*fence, error) {
	for {
		l.mu.Lock()
		x, f := l.sessions[session], l.fences[session]
		if x != nil {
			x.dead, x.forgot = x.dead || dead, x.forgot || forgot
		}
		if x != nil && f == nil && !x.closing {
			why := reason + "; " + l.lastHeard(x, bootNow())
			l.spawnLocked(func() { l.endSession(x, kind, why) })
		}
		l.mu.Unlock()
		switch {
		case f != nil:
			return f, nil
		case x == nil:
			if err := l.confirmRead(ctx); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("session %v is not open: %w", session, fserr.NotExist)
		}
		// Again and again, since another end of it may be under way, which may be a clean one, or fail.
		select {
		case <-x.gone:
		case <-time.After(endSessionPoll):
		case <-ctx.Done():
			return nil, waitError(ctx, "session "+session.String()+" to be closed")
		}
	}
}

func (l *leadership) fenced(ctx context.Context, session id.SessionID, f *fence) (*msg.FenceSessionReply, error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, waitError(ctx, "chunk servers to fence session "+session.String())
	}
	if err := l.confirmRead(ctx); err != nil {
		return nil, err
	}
	r := &msg.FenceSessionReply{Index: uint64(f.index)}
	for _, server := range f.silent {
		r.Silent = append(r.Silent, uint32(server))
	}
	return r, nil
}

// showLeases lists who holds an inode, or, with 0, who holds what.
func (l *leadership) showLeases(ctx context.Context, ino id.Ino) (*msg.LeaseShowReply, error) {
	st := l.s.fsm.clone()
	reply := &msg.LeaseShowReply{}
	paths := pathFinder{st: st, names: make(map[id.Ino]map[id.Ino]string)}
	add := func(h state.Lease) bool {
		if len(reply.Holders) >= maxLeaseShow {
			reply.More = true
			return false
		}
		one := &msg.LeaseHolder{Ino: uint64(h.Ino), Path: paths.find(h.Ino), Session: uint64(h.Session), Want: h.Want,
			Mode: st.Mode(h.Ino, h.Session), Lease: uint64(h.Index), RenewedMs: -1, Connected: l.s.clients.get(h.Session) != nil}
		if x, ok := st.Session(h.Session); ok {
			one.Host, one.Mount = x.Host, x.Mount
		}
		reply.Holders = append(reply.Holders, one)
		return true
	}
	if ino != 0 {
		if _, ok := st.Inode(ino); !ok {
			return nil, fmt.Errorf("inode %v: %w", ino, fserr.NotExist)
		}
		st.Leases(ino, add)
	} else {
		st.Sessions(func(x *state.Session) bool {
			st.LeasesOf(x.ID, add)
			return !reply.More
		})
	}
	now := bootNow()
	l.mu.Lock()
	for _, one := range reply.Holders {
		if x := l.sessions[id.SessionID(one.Session)]; x != nil && x.heard {
			one.RenewedMs = (now - x.renewed).Milliseconds()
		}
	}
	l.mu.Unlock()
	return reply, l.confirmRead(ctx)
}

// pathFinder finds a path of inodes, as long as not too many names must be looked at.
type pathFinder struct {
	st    *state.State
	names map[id.Ino]map[id.Ino]string // directory -> inode -> name
	seen  int
}

// find returns a path of the inode from the root, nil if none was found: a hard link that was moved, a removed file.
func (p *pathFinder) find(ino id.Ino) []byte {
	const root = id.Ino(1)
	var parts []string
	for depth := 0; ino != root; depth++ {
		n, ok := p.st.Inode(ino)
		if !ok || depth > maxPathDepth {
			return nil
		}
		name, ok := p.in(n.Parent)[ino]
		if !ok {
			return nil
		}
		parts = append(parts, name)
		ino = n.Parent
	}
	slices.Reverse(parts)
	return []byte("/" + strings.Join(parts, "/"))
}

func (p *pathFinder) in(dir id.Ino) map[id.Ino]string {
	if m, ok := p.names[dir]; ok {
		return m
	}
	m := make(map[id.Ino]string)
	p.names[dir] = m
	p.st.Dentries(dir, 0, func(d *state.Dentry) bool {
		if _, ok := m[d.Ino]; !ok {
			m[d.Ino] = d.Name
		}
		p.seen++
		return p.seen < maxPathScan
	})
	return m
}

// takeLease has every holder give the inode up: by callback if nothing has it open there; with force those that have it open, or
// do not answer, are fenced. It keeps grants back meanwhile.
func (l *leadership) takeLease(ctx context.Context, req *msg.LeaseTake) (*msg.LeaseTakeReply, error) {
	ino := id.Ino(req.Ino)
	wait := leaseTakeWait
	if req.WaitMs > 0 {
		wait = min(time.Duration(req.WaitMs)*time.Millisecond, maxLeaseWait)
	}
	reply := &msg.LeaseTakeReply{}
	// Only from those: who waits for them, and is given it meanwhile, keeps it.
	from := l.holders(ctx, ino, 0)
	still := func(_ context.Context, ino id.Ino, _ time.Duration) []uint64 {
		return slices.DeleteFunc(l.holders(ctx, ino, 0), func(s uint64) bool { return !slices.Contains(from, s) })
	}
	grant := grantLatch(ino)
	// Somebody else may wait for a holder, with the latch. Who does not answer is found without it: first those that stand still,
	// then, since some holder leaves a callback unanswered, whoever holds it.
	for _, find := range []func(context.Context, id.Ino, time.Duration) []uint64{l.silentHolders, still, nil} {
		lctx, cancel := context.WithTimeout(ctx, wait)
		if find == nil {
			lctx, cancel = context.WithCancel(ctx)
		}
		err := l.latches.acquire(lctx, grant)
		cancel()
		if err == nil {
			break
		}
		if find == nil || ctx.Err() != nil {
			return nil, err
		}
		silent := find(ctx, ino, wait)
		if !req.Force && len(silent) > 0 {
			reply.Refused = silent
			return reply, l.confirmRead(ctx)
		}
		if err := l.fenceHolders(ctx, silent, req, reply); err != nil {
			return nil, err
		}
	}
	err := l.takeLatched(ctx, from, wait, req, reply)
	l.latches.release(grant)
	l.upgradeHolders(ino) // who keeps it was called back, and may cache again
	if err != nil {
		return nil, err
	}
	for _, list := range [][]uint64{reply.Released, reply.Fenced, reply.Refused} {
		slices.Sort(list)
	}
	return reply, l.confirmRead(ctx)
}

// holders returns the sessions that hold the inode.
func (l *leadership) holders(_ context.Context, ino id.Ino, _ time.Duration) (all []uint64) {
	l.s.fsm.view(func(st *state.State) {
		st.Leases(ino, func(h state.Lease) bool {
			all = append(all, uint64(h.Session))
			return true
		})
	})
	return all
}

// silentHolders returns the sessions that hold the inode and do not answer a callback that means nothing.
func (l *leadership) silentHolders(ctx context.Context, ino id.Ino, wait time.Duration) (silent []uint64) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var mu sync.Mutex
	_ = together(l.holders(ctx, ino, 0), func(session uint64) error {
		_, err := l.callback(ctx, id.SessionID(session), &msg.Callback{Kind: msg.Callback_NOP})
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			silent = append(silent, session)
		}
		return nil
	})
	return silent
}

// fenceHolders fences sessions for an administrator who takes a file. One that left by itself meanwhile has released it.
func (l *leadership) fenceHolders(ctx context.Context, sessions []uint64, req *msg.LeaseTake, reply *msg.LeaseTakeReply) error {
	reason := fmt.Sprintf("lease of inode %d taken by force%s", req.Ino, because(req.Reason))
	var mu sync.Mutex
	return together(sessions, func(session uint64) error {
		_, err := l.fenceByHand(ctx, id.SessionID(session), reason)
		to := &reply.Fenced
		if fserr.Of(err) == fserr.NotExist && ctx.Err() == nil {
			to, err = &reply.Released, nil
		}
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			*to = append(*to, session)
		}
		return err
	})
}

func (l *leadership) takeLatched(ctx context.Context, from []uint64, wait time.Duration, req *msg.LeaseTake, reply *msg.LeaseTakeReply) error {
	ino := id.Ino(req.Ino)
	var holders []state.Lease
	var found, regular bool
	l.s.fsm.view(func(st *state.State) {
		n, ok := st.Inode(ino)
		found, regular = ok, ok && n.IsRegular()
		st.Leases(ino, func(h state.Lease) bool {
			if slices.Contains(from, uint64(h.Session)) {
				holders = append(holders, h)
			}
			return true
		})
	})
	switch {
	case !found:
		return fmt.Errorf("inode %v: %w", ino, fserr.NotExist)
	case !regular:
		return fmt.Errorf("inode %v is not a regular file, so nobody holds it: %w", ino, fserr.Invalid)
	}
	var mu sync.Mutex
	var end []uint64 // to be fenced, or expired meanwhile, which is waited for
	err := together(holders, func(h state.Lease) error {
		gone, err := l.surrender(ctx, h, wait)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		to := &reply.Released
		switch {
		case l.isFenced(h.Session) || !gone && req.Force:
			to = &end
		case !gone:
			to = &reply.Refused
		}
		*to = append(*to, uint64(h.Session))
		return nil
	})
	if err != nil {
		return err
	}
	return l.fenceHolders(ctx, end, req, reply)
}

func (l *leadership) isFenced(session id.SessionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fences[session] != nil
}

// surrender calls a holder back and reports whether it holds the inode no longer.
func (l *leadership) surrender(ctx context.Context, h state.Lease, wait time.Duration) (bool, error) {
	cctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := l.askSize(cctx, h.Session, h.Ino, &msg.Callback{
		Kind: msg.Callback_LEASE, Ino: uint64(h.Ino), Lease: uint64(h.Index), Mode: msg.Mode_SHARED_WRITE}, true)
	switch {
	case ctx.Err() != nil:
		return false, waitError(ctx, "holders to give up the lease")
	case err != nil && cctx.Err() != nil:
		return false, nil // it did not answer in time
	case err != nil:
		return false, err
	}
	held := false
	l.s.fsm.view(func(st *state.State) { _, held = st.Lease(h.Ino, h.Session) })
	return !held, nil
}
