package client

import (
	"context"
	"errors"
	"time"

	"varve/internal/chunk"
	"varve/internal/wire"
)

// fsync makes what was written on stable media of all replicas, then reports size and mtime. The modification time alone is
// reported at most every FlushEvery, so that a guest which flushes each of its writes makes no event of each: after a crash of
// the client it may be so much older than the last flush. With dataOnly it waits for the size to change.
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
	return in.flushAttr(ctx, dataOnly || in.reportedLately())
}

// reportedLately reports whether the modification time was told the metadata server so recently that it can wait for the
// periodic report.
func (in *inode) reportedLately() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return time.Since(in.reported) < in.s.c.o.FlushEvery
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
