package client

import (
	"context"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// A recall waits this long for a report of size and mtime that is under way, so that the report cannot arrive after
	// somebody else truncated the file. Not longer: the metadata server may hold the report until the recall is answered.
	recallPatience = 2 * time.Second
	// invalidatePatience is how long a callback about a write of another mount waits for the kernel.
	invalidatePatience = 250 * time.Millisecond
	// answerPatience is how long a recall waits for the answer to an Open, which may have come before it and not be taken yet: two mounts that open
	// a file at the same moment would otherwise take it from each other again and again. Not longer: the answer may wait for this recall.
	answerPatience = 5 * time.Millisecond
	// floorFor is how long the metadata server may take to commit what a recall reported.
	floorFor = 2 * time.Second
)

// callbacks answers what the leader asks on the connection of a session.
type callbacks struct {
	c *Client
	s atomic.Pointer[session]
}

var _ wire.Handler = (*callbacks)(nil)

// Serve implements wire.Handler.
func (h *callbacks) Serve(ctx context.Context, conn *wire.Conn, req *wire.Frame) {
	h.c.serving.Add(1)
	defer h.c.serving.Add(-1)
	if req.Type == wire.NetInfo || req.Type == wire.NetEcho || req.Type == wire.NetTest {
		h.c.serveNet(ctx, conn, req)
		return
	}
	if req.Type != wire.Callback {
		_ = conn.Reply(req, fserr.NotSupported, nil, nil) // if it fails, the connection's owner sees that
		return
	}
	cb := new(msg.Callback)
	if err := cb.UnmarshalVT(req.Body); err != nil {
		_ = conn.Reply(req, fserr.Protocol, nil, nil)
		return
	}
	reply := new(msg.CallbackReply)
	if cb.Kind == msg.Callback_META {
		h.c.meta(cb)
		_ = conn.ReplyMessage(req, fserr.OK, reply)
		return
	}
	var in *inode
	s := h.s.Load()
	if cb.Kind == msg.Callback_OVER {
		if reply.Over = s != nil; reply.Over {
			s.kill(fserr.Fenced) // nothing begins under it from here on
			s.forget(ctx)        // what is mapped the kernel serves without asking
		}
		_ = conn.ReplyMessage(req, fserr.OK, reply)
		return
	}
	st := h.c.watch("a callback", "kind", cb.Kind, "inode", cb.Ino)
	defer st.end()
	if s != nil && cb.Kind != msg.Callback_NOP {
		if cb.Kind == msg.Callback_LEASE {
			in = s.peekForRecall(id.Ino(cb.Ino))
		} else {
			in = s.peek(id.Ino(cb.Ino))
		}
	}
	if w := h.c.releaseWaiter(); w != nil && cb.Kind == msg.Callback_NOP && cb.Ino != 0 {
		w.WaitReleases(ctx, id.Ino(cb.Ino))
	}
	if in == nil {
		if cb.Kind == msg.Callback_INVALIDATE || cb.Kind == msg.Callback_LEASE {
			h.invalidate(ctx, cb)
		}
		_ = conn.ReplyMessage(req, fserr.OK, reply)
		return
	}
	defer s.unpin(in)
	switch cb.Kind {
	case msg.Callback_LEASE:
		if err := in.recall(ctx, cb, reply); err != nil {
			return // the connection is gone, and the leader asks again
		}
	case msg.Callback_ATTR:
		in.report(reply)
	case msg.Callback_LAYOUT:
		in.layoutMu.Lock() // waits for every request that uses the layout
		in.mu.Lock()
		if !cb.Members {
			in.layoutRecalls++
		}
		in.forgetLayoutLocked()
		in.forgetSizeLocked(!cb.Members) // servers come and go also while a recall is under way
		in.mu.Unlock()
		in.layoutMu.Unlock()
	case msg.Callback_INVALIDATE:
		in.mu.Lock()
		in.forgetSizeLocked(true)
		in.mu.Unlock()
		h.invalidate(ctx, cb)
	case msg.Callback_UPGRADE:
		recalls := in.recallCount() // before the answer: a recall that comes after it wins
		h.c.background(func() { in.upgrade(cb, recalls) })
	}
	err := conn.ReplyMessage(req, fserr.OK, reply)
	if cb.Kind == msg.Callback_LEASE && err == nil {
		in.recalled(reply)
	}
}

// invalidate drops what another mount has overwritten. It waits for the kernel, but not for ever: two mounts that write to one
// page through their page caches hold it locked while each waits for the other to drop it. Then the kernel drops it as soon
// as its own write has ended.
func (h *callbacks) invalidate(ctx context.Context, cb *msg.Callback) {
	ctx, cancel := context.WithTimeout(ctx, invalidatePatience)
	defer cancel()
	h.c.invalidateNow(ctx, id.Ino(cb.Ino), int64(cb.Offset), int64(cb.Length))
}

// forgetSizeLocked notes that somebody else may have changed the size, unless it is ours. granted: somebody else holds the file, and so the metadata
// server has what a recall was answered with.
func (in *inode) forgetSizeLocked(granted bool) {
	in.sizeGen++
	if granted {
		in.floor, in.answered = 0, 0
	}
	if in.mode == msg.Mode_SHARED_WRITE {
		in.sizeKnown = false
	}
}

// awaitAnswer waits until the lease that is asked for was answered, but not for long.
func (in *inode) awaitAnswer(ctx context.Context) {
	in.mu.Lock()
	asking := in.asking
	in.mu.Unlock()
	if asking == nil {
		return
	}
	t := time.NewTimer(answerPatience)
	defer t.Stop()
	select {
	case <-asking:
	case <-t.C:
	case <-ctx.Done():
	}
}

// recall stops caching: the kernel writes back and forgets, requests under way end, the mode changes. What open handles
// still need is kept.
//
// It waits until no change is in doubt (see ordinals), and fails when ctx ends before: nobody waits for the answer any more.
func (in *inode) recall(ctx context.Context, cb *msg.Callback, reply *msg.CallbackReply) error {
	in.awaitAnswer(ctx)
	if err := in.lockSure(ctx); err != nil {
		return err
	}
	in.layoutMu.Unlock()
	in.s.c.invalidateNow(ctx, in.ino, 0, 0) // may write through us, so with no lock held
	defer in.bar(ctx)()
	pctx, cancel := context.WithTimeout(ctx, recallPatience)
	reporting := in.attrOp.lock(pctx) == nil
	cancel()
	if reporting {
		defer in.attrOp.unlock()
	}
	if err := in.lockSure(ctx); err != nil {
		return err
	}
	defer in.layoutMu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.recalls++
	in.lastRecall = max(in.lastRecall, cb.Lease)
	switch {
	case in.writers > 0:
		reply.Keep = msg.Want_WANT_WRITE
	case in.readers > 0:
		reply.Keep = msg.Want_WANT_READ
	default:
		reply.Keep = msg.Want_WANT_NONE
	}
	ours := in.mode == msg.Mode_EXCLUSIVE_WRITE
	in.reportLocked(reply)
	switch {
	case reply.HasAttr:
		in.floor, in.floorTill, in.answered = in.size, time.Now().Add(floorFor), in.size
	case in.answered > 0: // asked again: a new leader has not heard the first answer
		reply.HasAttr, reply.Size, reply.Mtime = true, uint64(in.answered), in.mtime
	}
	in.sizeKnown = false
	in.sizeGen++
	in.attrIndex = 0
	in.unlinked = in.unlinked || cb.Unlinked
	in.want = reply.Keep
	was := in.mode
	defer func() { in.doubtCacheLocked(was) }()
	switch {
	case in.want == msg.Want_WANT_NONE:
		in.mode = msg.Mode_MODE_NONE
		in.forgetLayoutLocked()
	case cb.Mode == msg.Mode_SHARED_READ && in.want == msg.Want_WANT_READ:
		in.mode = msg.Mode_SHARED_READ
		in.sizeKnown = ours
	default:
		in.mode = msg.Mode_SHARED_WRITE
	}
	return nil
}

// report answers with size and mtime if the metadata server does not know them.
func (in *inode) report(reply *msg.CallbackReply) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reportLocked(reply)
}

func (in *inode) reportLocked(reply *msg.CallbackReply) {
	if in.sizeDirty || in.timeDirty {
		reply.HasAttr = true
		reply.Size, reply.Mtime = uint64(in.size), in.mtime
	}
}

// recalled notes that the answer to a recall was sent: it carried what was to be reported. Had it not been sent, the
// metadata server would ask again, and until then the report stays due.
func (in *inode) recalled(reply *msg.CallbackReply) {
	if !reply.HasAttr {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reportedLocked(&reply.Size, &reply.Mtime)
}

func (in *inode) recallCount() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.recalls
}

// upgrade takes the mode that the metadata server offers because nobody else has the file open any more. The size is
// asked for first, with no lock held; a recall meanwhile wins.
func (in *inode) upgrade(cb *msg.Callback, recalls uint64) {
	in = in.s.pin(in.ino)
	defer in.s.unpin(in)
	in.mu.Lock()
	fits := in.recalls == recalls && in.lease == cb.Lease && in.mode == msg.Mode_SHARED_WRITE && in.want != msg.Want_WANT_NONE
	in.mu.Unlock()
	if !fits {
		return
	}
	if _, err := in.refreshSize(in.s.ctx); err != nil {
		return // stays as it is, which is slower but right
	}
	in.layoutMu.Lock()
	defer in.layoutMu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.recalls == recalls && in.lease == cb.Lease && in.sizeKnown && in.mode == msg.Mode_SHARED_WRITE {
		in.forgetLayoutLocked() // its holes were not to be believed
		in.mode = cb.Mode
		in.floor, in.answered = 0, 0 // as in grant
		in.seen.last = max(in.seen.last, cb.Writable)
		in.trustCacheLocked(cb.Writable, cb.Writable)
	}
}
