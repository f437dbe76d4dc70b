package client

import (
	"context"
	"errors"

	"varve/internal/chunk"
	"varve/internal/wire"
)

// fsync makes what was written on stable media of all replicas, then reports size and mtime; with dataOnly, mtime only if the size
// has changed too.
func (in *inode) fsync(ctx context.Context, dataOnly bool) error {
	if in.s.ctx.Err() != nil {
		return in.s.live(ctx)
	}
	if err := in.flushOp.lock(ctx); err != nil {
		return err
	}
	err := in.flushData(ctx)
	in.flushOp.unlock()
	if err != nil {
		return err
	}
	return in.flushAttr(ctx, dataOnly)
}

// flushData flushes the chunks written since the last time. What could not be flushed stays due.
func (in *inode) flushData(ctx context.Context) error {
	in.mu.Lock()
	if len(in.unflushed) == 0 {
		in.mu.Unlock()
		return nil
	}
	due := in.unflushed
	in.unflushed = make(map[uint32]struct{})
	in.mu.Unlock()
	ops := make([]*dataOp, 0, len(due))
	for index := range due {
		ops = append(ops, newDataOp(in, wire.Flush, chunk.Piece{Index: index}, nil))
	}
	errs := runAll(ctx, ops)
	in.mu.Lock()
	for i, op := range ops {
		if errs[i] != nil {
			in.unflushed[op.piece.Index] = struct{}{}
		}
	}
	in.mu.Unlock()
	for _, op := range ops {
		op.free()
	}
	return errors.Join(errs...)
}
