package client

import (
	"context"
	"sync/atomic"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// lastKnownAfter is how long the metadata servers are asked for what umount(8), df and systemd want to know of a mount.
const lastKnownAfter = 2 * time.Second

// lastKnown is what was last known of a mount as a whole: the attributes of its root and its space. It is the answer when there is no metadata server to ask, so
// that nobody hangs who only wants to unmount. Whoever looks at names below the root waits.
type lastKnown struct {
	root  atomic.Pointer[msg.Attr]
	space atomic.Pointer[msg.StatFSReply]
}

// Know asks for what is answered when there is no metadata server any more.
func (c *Client) Know(ctx context.Context) error {
	if _, err := c.GetAttr(ctx, id.Root); err != nil {
		return err
	}
	_, err := c.StatFS(ctx)
	return err
}

// orLast asks, and returns what was last known if there is no answer in time.
func orLast[T any](ctx context.Context, last *atomic.Pointer[T], ask func(context.Context) (*T, error)) (*T, error) {
	old := last.Load()
	if old == nil {
		v, err := ask(ctx)
		if err == nil {
			last.Store(v)
		}
		return v, err
	}
	short, cancel := context.WithTimeout(ctx, lastKnownAfter)
	defer cancel()
	v, err := ask(short)
	switch {
	case err == nil:
		last.Store(v)
	case short.Err() != nil && ctx.Err() == nil:
		return old, nil
	}
	return v, err
}
