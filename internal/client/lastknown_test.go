package client

import (
	"context"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// TestLastKnown: what umount(8) asks a mount is answered without a metadata server; all else waits.
func TestLastKnown(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	newTree(w)
	c := w.dial(t, func(o *Options) { o.NoCache = true })
	before := must2(t)(c.GetAttr(t.Context(), id.Root))
	c.last.space.Store(&msg.StatFSReply{Total: 17})
	w.setBefore(func(*msg.MetaRequest) (fserr.Code, bool) { return fserr.Unavailable, true })
	if a, err := c.GetAttr(t.Context(), id.Root); err != nil || a.Ino != before.Ino || a.Perm != before.Perm {
		t.Errorf("attributes of the root: %v, %v", a, err)
	}
	if st, err := c.StatFS(t.Context()); err != nil || st.Total != 17 {
		t.Errorf("space: %v, %v", st, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.GetAttr(ctx, id.Root); fserr.Of(err) != fserr.Timeout {
		t.Errorf("attributes of the root, for who waits less: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), lastKnownAfter+time.Second/2)
	defer cancel()
	if _, err := c.Lookup(ctx, checked, id.Root, []byte("x")); fserr.Of(err) != fserr.Timeout {
		t.Errorf("a name in the root: %v", err)
	}
}
