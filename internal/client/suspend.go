package client

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/ledger"
	"varve/internal/wire/msg"
)

// Suspended is what the Client of another process needs to go on with the session of one that was suspended: for the metadata servers it is the same client, which
// had lost its connection for a moment. What it could find out again, such as where chunks are, is left out.
type Suspended struct {
	Session    id.SessionID     `json:"session"`
	Lease      time.Duration    `json:"lease"`
	RenewEvery time.Duration    `json:"renew_every"`
	Deadline   int64            `json:"deadline"` // boot time, ns
	Seq        uint64           `json:"seq"`      // the last one given out; every outcome up to it is known
	Ordinal    uint64           `json:"ordinal"`  // as seq, of changes under shared-write leases
	Inodes     []SuspendedInode `json:"inodes"`
	Entry      *ledger.Kept     `json:"entry,omitempty"` // its descriptor stays open
}

// Descriptors returns those that stay open over the execve(2) of the next program.
func (x *Suspended) Descriptors() []int {
	if x.Entry == nil {
		return nil
	}
	return []int{x.Entry.FD}
}

// SuspendedInode is a file whose lease the session holds. Its fields are those of inode.
type SuspendedInode struct {
	Ino        id.Ino           `json:"ino"`
	Lease      uint64           `json:"lease"`
	Want       msg.Want         `json:"want"`
	Mode       msg.Mode         `json:"mode"`
	Unlinked   bool             `json:"unlinked,omitempty"`
	LastRecall uint64           `json:"last_recall,omitempty"`
	Size       int64            `json:"size"`
	SizeKnown  bool             `json:"size_known,omitempty"`
	AttrIndex  uint64           `json:"attr_index,omitempty"`
	Floor      int64            `json:"floor,omitempty"`
	Answered   int64            `json:"answered,omitempty"`
	Mtime      int64            `json:"mtime"`
	SizeDirty  bool             `json:"size_dirty,omitempty"`
	TimeDirty  bool             `json:"time_dirty,omitempty"`
	Written    int64            `json:"written"`
	Unflushed  []SuspendedFlush `json:"unflushed,omitempty"`
	Losses     uint64           `json:"losses,omitempty"`
	Told       uint64           `json:"told,omitempty"`

	BehindFails uint64 `json:"behind_fails,omitempty"`
	BehindTold  uint64 `json:"behind_told,omitempty"`
	BehindErr   string `json:"behind_err,omitempty"`

	// What the metadata server said of writers when it gave the mode; 0 and 0: the read cache is not trusted.
	Before uint64 `json:"before,omitempty"`
	Now    uint64 `json:"now,omitempty"`
}

// SuspendedFlush is a chunk that was written and not flushed.
type SuspendedFlush struct {
	Index uint32     `json:"index"`
	Chunk id.ChunkID `json:"chunk"`
	Epoch id.Epoch   `json:"epoch"`
}

// pause has the client without a connection to the leader.
type pause struct {
	stopped chan struct{} // closed when there is none, and nobody looks for one
	over    chan struct{} // closed when one is wanted again
}

// Suspend has the client do nothing any more, and returns what another one needs to go on. Everything that was written is at the servers then, and its size reported; nothing is closed.
// Preconditions: no operation is under way, and none begins, until Continue, if the other one is not to be after all. When it fails the client goes on by itself.
func (c *Client) Suspend(ctx context.Context) (*Suspended, error) {
	c.mu.Lock()
	l, closed := c.link, c.closed
	c.mu.Unlock()
	if closed || l == nil || l.s.ctx.Err() != nil {
		return nil, fmt.Errorf("no session that could be handed over: %w", fserr.Unavailable)
	}
	s := l.s
	if err := s.flushAll(ctx); err != nil {
		return nil, fmt.Errorf("report sizes: %w", err)
	}
	if err := s.settled(ctx); err != nil {
		return nil, err
	}
	if err := s.asked(ctx); err != nil {
		return nil, err
	}
	p := &pause{stopped: make(chan struct{}), over: make(chan struct{})}
	if !c.paused.CompareAndSwap(nil, p) {
		return nil, fmt.Errorf("suspended already: %w", fserr.Busy)
	}
	l.conn.Close()
	select {
	case <-p.stopped:
	case <-ctx.Done():
		c.Continue()
		return nil, fmt.Errorf("the connection to the leader did not end: %w", ended(ctx))
	}
	if err := untilIdle(ctx, "callbacks", func() bool { return c.serving.Load() == 0 }); err != nil {
		c.Continue()
		return nil, err
	}
	if s.ctx.Err() != nil {
		c.Continue()
		return nil, fmt.Errorf("the session was lost: %w", fserr.Stale)
	}
	return s.suspended(), nil
}

// Continue ends what Suspend began.
func (c *Client) Continue() {
	if p := c.paused.Swap(nil); p != nil {
		close(p.over)
	}
}

// standStill is where the keeper of the connection waits while the client is suspended.
func (c *Client) standStill() {
	p := c.paused.Load()
	if p == nil {
		return
	}
	close(p.stopped)
	select {
	case <-p.over:
	case <-c.ctx.Done():
	}
}

// untilIdle waits until idle says so.
func untilIdle(ctx context.Context, what string, idle func() bool) error {
	for !idle() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not end: %w", what, ended(ctx))
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// asked returns when the outcome of every change is known.
func (s *session) asked(ctx context.Context) error {
	return untilIdle(ctx, "changes at the metadata servers", func() bool {
		s.seqMu.Lock()
		defer s.seqMu.Unlock()
		return s.acked == s.seq
	})
}

func (s *session) suspended() *Suspended {
	x := &Suspended{Session: s.id, Lease: s.lease, RenewEvery: s.renewEvery, Deadline: s.deadline.Load(), Entry: s.c.estate.keep()}
	s.seqMu.Lock()
	x.Seq = s.seq
	s.seqMu.Unlock()
	s.ordinals.mu.Lock()
	x.Ordinal = s.ordinals.last
	s.ordinals.mu.Unlock()
	s.mu.Lock()
	all := make([]*inode, 0, len(s.inodes))
	for _, in := range s.inodes {
		all = append(all, in)
	}
	s.mu.Unlock()
	for _, in := range all {
		if one, held := in.suspended(); held {
			x.Inodes = append(x.Inodes, one)
		}
	}
	slices.SortFunc(x.Inodes, func(a, b SuspendedInode) int { return int(int64(a.Ino) - int64(b.Ino)) })
	return x
}

// suspended returns what is known of the inode; held is false if that is nothing which a new one would not find out.
func (in *inode) suspended() (x SuspendedInode, held bool) {
	b := &in.behind
	b.mu.Lock()
	fails, told, failed := b.fails, b.told.Load(), ""
	if b.err != nil {
		failed = b.err.Error()
	}
	b.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	x = SuspendedInode{
		Ino: in.ino, Lease: in.lease, Want: in.want, Mode: in.mode, Unlinked: in.unlinked, LastRecall: in.lastRecall,
		Size: in.size, SizeKnown: in.sizeKnown, AttrIndex: in.attrIndex, Mtime: in.mtime, SizeDirty: in.sizeDirty, TimeDirty: in.timeDirty,
		Written: in.written, Losses: in.losses, Told: in.told, BehindFails: fails, BehindTold: told, BehindErr: failed,
	}
	if time.Now().Before(in.floorTill) {
		x.Floor = in.floor
	}
	x.Answered = in.answered
	for index, u := range in.unflushed {
		x.Unflushed = append(x.Unflushed, SuspendedFlush{Index: index, Chunk: u.chunk, Epoch: u.epoch})
	}
	if in.cached.trust.Load() {
		x.Before, x.Now = in.cached.before, in.cached.now
	}
	return x, in.want != msg.Want_WANT_NONE || in.readers+in.writers > 0 || in.sizeDirty || in.timeDirty || len(in.unflushed) > 0
}

// check refuses what Suspend never returns.
func (x *Suspended) check() error {
	if x.Session == 0 || x.Lease <= 0 || x.RenewEvery <= 0 || x.Deadline < 0 {
		return fmt.Errorf("a suspended session %d with a lease of %v, renewed every %v: %w", x.Session, x.Lease, x.RenewEvery, fserr.Invalid)
	}
	if x.Entry != nil && x.Entry.FD < 3 {
		return fmt.Errorf("a suspended session whose entry is descriptor %d: %w", x.Entry.FD, fserr.Invalid)
	}
	seen := make(map[id.Ino]bool, len(x.Inodes))
	for i := range x.Inodes {
		in := &x.Inodes[i]
		_, want := msg.Want_name[int32(in.Want)]
		_, mode := msg.Mode_name[int32(in.Mode)]
		if in.Ino == 0 || seen[in.Ino] || !want || !mode || in.Size < 0 || in.Written < 0 || in.Answered < 0 || in.Told > in.Losses || in.BehindTold > in.BehindFails {
			return fmt.Errorf("a suspended session with inode %v, want %d, mode %d, size %d: %w", in.Ino, in.Want, in.Mode, in.Size, fserr.Invalid)
		}
		seen[in.Ino] = true
	}
	return nil
}

// restore makes the session of a client that was suspended.
func (c *Client) restore(x *Suspended) *session {
	s := newSession(c, x.Session, &msg.OpenSessionReply{
		LeaseMs: uint32(x.Lease / time.Millisecond), RenewMs: uint32(x.RenewEvery / time.Millisecond)})
	s.seq, s.acked = x.Seq, x.Seq
	s.ordinals.last = x.Ordinal
	s.deadline.Store(x.Deadline)
	for i := range x.Inodes {
		v := &x.Inodes[i]
		in := s.pin(v.Ino)
		in.lease, in.want, in.mode, in.unlinked, in.lastRecall = v.Lease, v.Want, v.Mode, v.Unlinked, v.LastRecall
		in.size, in.sizeKnown, in.attrIndex, in.mtime, in.written = v.Size, v.SizeKnown, v.AttrIndex, v.Mtime, v.Written
		in.sizeDirty, in.timeDirty, in.answered = v.SizeDirty, v.TimeDirty, v.Answered
		if v.Floor > 0 {
			in.floor, in.floorTill = v.Floor, time.Now().Add(floorFor)
		}
		for _, u := range v.Unflushed {
			in.unflushed[u.Index] = unflushed{u.Chunk, u.Epoch}
		}
		in.losses, in.told = v.Losses, v.Told
		in.behind.fails = v.BehindFails
		in.behind.told.Store(v.BehindTold)
		if v.BehindFails > 0 {
			in.behind.err = fmt.Errorf("%s: %w", v.BehindErr, fserr.IO)
		}
		if in.sizeDirty || in.timeDirty {
			s.markDirty(in, true)
		}
		if v.Before != 0 || v.Now != 0 {
			in.trustCacheLocked(v.Before, v.Now)
		}
		c.restored = append(c.restored, in)
	}
	return s
}

// Restored says that every file was restored that was open. What nobody has open is kept as if it had just been closed. Only now the session is renewed: a recall that came before
// would find files that nobody has open.
func (c *Client) Restored() {
	for _, in := range c.restored {
		in.s.unpin(in)
	}
	c.restored = nil
	close(c.complete)
}

// savedFile is what is kept of a File besides its inode.
type savedFile struct {
	Losses uint64 `json:"losses,omitempty"`
	Fails  uint64 `json:"fails,omitempty"`
	Dead   bool   `json:"dead,omitempty"` // its session was lost before
}

// Save returns what RestoreFile needs. The client is suspended.
func (f *File) Save() []byte {
	x := savedFile{Dead: f.in.s.ctx.Err() != nil}
	f.in.mu.Lock()
	x.Losses = f.losses
	f.in.mu.Unlock()
	f.in.behind.mu.Lock()
	x.Fails = f.fails
	f.in.behind.mu.Unlock()
	b, err := json.Marshal(x)
	if err != nil {
		panic(err) // three plain fields
	}
	return b
}

// RestoreFile returns an open file of the client that this one goes on for: the inode number and the mode that it was opened with, and what Save returned. It is called before Restored.
func (c *Client) RestoreFile(ino id.Ino, write bool, saved []byte) (*File, error) {
	var x savedFile
	if err := json.Unmarshal(saved, &x); err != nil {
		return nil, fmt.Errorf("restore an open file of inode %v: %w", ino, err)
	}
	s := c.resumed
	if x.Dead {
		s = newSession(c, s.id, &msg.OpenSessionReply{})
		s.discard()
	}
	in := s.pin(ino) // closeHandle unpins it
	in.mu.Lock()
	defer in.mu.Unlock()
	if !x.Dead && in.want < wantFor(write) {
		return nil, fmt.Errorf("restore an open file of inode %v: the session holds %v of it, want %v: %w", ino, in.want, wantFor(write), fserr.Invalid)
	}
	f := in.handleLocked(write)
	f.losses, f.fails = x.Losses, x.Fails
	return f, nil
}

// resume is keep of a client that goes on for another one: it has a session, and no connection yet.
func (c *Client) resume(s *session) {
	select {
	case <-c.complete:
	case <-c.ctx.Done():
	}
	l, err := c.connect(c.ctx, s, false)
	if err != nil { // only Close ends it
		s.kill(fserr.Unavailable)
		c.wg.Done()
		return
	}
	c.log.Info("going on with the session of the process before", "addr", l.addr, "session", l.s.id)
	c.publish(l)
	c.keep(l)
}

// suspension is what a Client has for Suspend and for what comes after.
type suspension struct {
	paused   atomic.Pointer[pause]
	serving  atomic.Int64  // callbacks that are being answered
	resumed  *session      // that of the client before
	restored []*inode      // pinned until Restored
	complete chan struct{} // closed by Restored
}
