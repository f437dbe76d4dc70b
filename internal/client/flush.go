package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

// fsync makes what was written on stable media of all replicas, then reports size and mtime. The modification time alone is
// reported at most every FlushEvery, so that a guest which flushes each of its writes makes no event of each: after a crash of
// the client it may be so much older than the last flush. With dataOnly it waits for the size to change.
func (in *inode) fsync(ctx context.Context, dataOnly bool) error {
	if in.s.ctx.Err() != nil {
		return in.s.live(ctx)
	}
	in.habit.flushes()
	if err := in.drainAll(ctx); err != nil {
		return err
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
	in.unflushed = make(map[uint32]unflushed)
	in.mu.Unlock()
	ops := make([]*dataOp, 0, len(due))
	for index := range due {
		ops = append(ops, newDataOp(in, wire.Flush, chunk.Piece{Index: index}, nil))
	}
	errs := runAll(ctx, ops)
	in.mu.Lock()
	for i, op := range ops {
		was := due[op.piece.Index]
		if errs[i] != nil {
			in.noteUnflushedLocked(op.piece.Index, was)
		} else {
			in.flushedLocked(was, &op.at)
		}
	}
	in.mu.Unlock()
	for _, op := range ops {
		op.free()
	}
	return errors.Join(errs...)
}

// flushedLocked notes that writes were flushed, where the chunk is now.
func (in *inode) flushedLocked(was unflushed, at *location) {
	if at.chunk == was.chunk && at.lost > was.epoch {
		in.losses++
		in.s.c.log.Error("every replica lost power before a flush: what was written since the last one may be gone, and fsync says so",
			"inode", in.ino, "chunk", was.chunk, "epoch", was.epoch, "lost_before", at.lost)
	}
}

// unflushed says of which chunk, and from which epoch on, writes are not flushed.
type unflushed struct {
	chunk id.ChunkID
	epoch id.Epoch
}

// noteUnflushedLocked notes a write. Of one chunk the lowest epoch counts; another chunk in the same place is there because the
// file was cut and has grown since, so what was written to the old one is of no concern.
func (in *inode) noteUnflushedLocked(index uint32, u unflushed) {
	if was, ok := in.unflushed[index]; ok && was.chunk == u.chunk && was.epoch <= u.epoch {
		return
	} else if ok && was.chunk > u.chunk {
		return // chunks get their numbers in order
	}
	in.unflushed[index] = u
}

// lost reports, once for each handle and loss, that writes which were not flushed yet are gone. A handle that was opened after
// the loss is told of it if no other one was.
func (f *File) lost() error {
	in := f.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if f.losses == in.losses {
		return nil
	}
	f.losses, in.told = in.losses, in.losses
	return fmt.Errorf("inode %v: every replica of a chunk lost power before a flush, and with it perhaps what was written: %w", in.ino, fserr.IO)
}
