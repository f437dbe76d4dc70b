package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// maxPiece bounds the data of one request; pieces end at block boundaries.
	maxPiece = 1 << 20
	// maxParallel bounds the pieces of one operation under way.
	maxParallel = 8
	// maxPunch bounds one punch request in bytes: a whole chunk.
	maxPunch = chunk.Size
)

// split cuts [off, off+n) of a file into pieces of at most limit bytes, which do not cross chunks and end at multiples of
// limit.
func split(pieces []chunk.Piece, off int64, n int64, limit int64) []chunk.Piece {
	for n > 0 {
		p := chunk.First(off, int(min(n, limit)))
		if over := (off + int64(p.Length)) % chunk.BlockSize; over != 0 && int64(p.Length) < n && int64(p.Length) > over && off%chunk.Size+int64(p.Length) < chunk.Size {
			p.Length -= uint32(over)
		}
		pieces = append(pieces, p)
		off += int64(p.Length)
		n -= int64(p.Length)
	}
	return pieces
}

// wholeBlocks widens a piece to block boundaries.
func wholeBlocks(p chunk.Piece) chunk.Piece {
	first := p.Offset &^ (chunk.BlockSize - 1)
	end := (p.Offset + p.Length + chunk.BlockSize - 1) &^ (chunk.BlockSize - 1)
	return chunk.Piece{Index: p.Index, Offset: first, Length: end - first}
}

// write puts p at off and returns when it is on all replicas, and known to the metadata server if others may look.
func (in *inode) write(ctx context.Context, p []byte, off int64, appending bool) error {
	for {
		if err := in.writeOnce(ctx, p, off, appending); !errors.Is(err, errCut) {
			return err
		}
	}
}

// writeOnce is write, but fails with errCut if what it wrote may have been cut off before it was part of the file.
func (in *inode) writeOnce(ctx context.Context, p []byte, off int64, appending bool) error {
	if len(p) == 0 {
		return nil
	}
	n := int64(len(p))
	in.habit.writes()
	if err := in.s.c.roomToGiveUp(ctx); err != nil {
		return err
	}
	hold, err := in.lockForWrite(ctx, off, n)
	if err != nil {
		return err
	}
	if off%chunk.Size+n <= chunk.Size && n <= maxPiece {
		op := newDataOp(in, wire.Write, chunk.First(off, len(p)), p)
		op.appending = appending
		err := op.run(ctx)
		return in.finish(ctx, hold, []*dataOp{op}, []error{err}, off, n, false)
	}
	ops := make([]*dataOp, 0, 4)
	for _, pc := range split(nil, off, n, maxPiece) {
		op := newDataOp(in, wire.Write, pc, p[:pc.Length])
		op.appending = appending
		ops = append(ops, op)
		p = p[pc.Length:]
	}
	return in.finish(ctx, hold, ops, runAll(ctx, ops), off, n, false)
}

// lockForWrite locks the blocks of a write. If a failed write may have left something between the end of the file and
// off, that is locked as well and made to read as zeros, before the file grows over it.
func (in *inode) lockForWrite(ctx context.Context, off, n int64) (*rangeHold, error) {
	last := (off + n - 1) / chunk.BlockSize
	for {
		from, _ := in.leftover(off)
		hold, err := in.ranges.lock(ctx, from/chunk.BlockSize, last, true)
		if err != nil {
			return nil, err
		}
		now, to := in.leftover(off)
		if now >= off {
			return hold, nil
		}
		if now >= from && from < off {
			err := in.clear(ctx, now, to)
			if err == nil {
				return hold, nil
			}
			in.ranges.unlock(hold)
			return nil, err
		}
		in.ranges.unlock(hold)
	}
}

// leftover returns the range before off that is past the end of the file and may hold what a failed write left; off and off if
// there is none.
func (in *inode) leftover(off int64) (from, to int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mode != msg.Mode_EXCLUSIVE_WRITE || in.written <= in.size || off <= in.size {
		return off, off
	}
	return in.size, min(off, in.written)
}

// clear punches [from, to), whose blocks the caller has locked.
func (in *inode) clear(ctx context.Context, from, to int64) error {
	ops := in.punches(from, to-from)
	errs := runAll(ctx, ops)
	for _, op := range ops {
		op.free()
	}
	return errors.Join(errs...)
}

// punch makes [off, off+n) read as zeros on all replicas.
func (in *inode) punch(ctx context.Context, off, n int64) error {
	hold, err := in.ranges.lock(ctx, off/chunk.BlockSize, (off+n-1)/chunk.BlockSize, true)
	if err != nil {
		return err
	}
	ops := in.punches(off, n)
	return in.finish(ctx, hold, ops, runAll(ctx, ops), off, n, true)
}

func (in *inode) punches(off, n int64) []*dataOp {
	var ops []*dataOp
	for _, pc := range split(nil, off, n, maxPunch) {
		ops = append(ops, newDataOp(in, wire.Punch, pc, nil))
	}
	return ops
}

// runAll runs operations on different blocks at once.
func runAll(ctx context.Context, ops []*dataOp) []error {
	errs := make([]error, len(ops))
	if len(ops) == 1 {
		errs[0] = ops[0].run(ctx)
		return errs
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for i, op := range ops {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = op.run(ctx)
			<-slots
		})
	}
	wg.Wait()
	return errs
}

// finish ends an operation on [off, off+n): it tells the metadata server, frees the pieces and unlocks the blocks. Pieces that the
// caller gave up on while replicas may differ go on in the background, and keep the blocks locked until then.
func (in *inode) finish(ctx context.Context, hold *rangeHold, ops []*dataOp, errs []error, off, n int64, punched bool) error {
	err := errors.Join(errs...)
	if len(errs) == 1 {
		err = errs[0]
	}
	shared, appending, recalls := false, ops[0].appending, ops[0].recalls
	var left []*dataOp
	for i, op := range ops {
		if errs[i] == nil {
			shared = shared || op.mode == msg.Mode_SHARED_WRITE
			recalls = min(recalls, op.recalls)
			op.free()
			continue
		}
		in.mu.Lock()
		in.written = max(in.written, op.end())
		in.mu.Unlock()
		if op.sent && in.s.ctx.Err() == nil && (ctx.Err() != nil || !settled(errs[i])) {
			left = append(left, op)
			continue
		}
		op.free()
	}
	if len(left) > 0 {
		in.settle(hold, left)
		return err
	}
	defer in.ranges.unlock(hold)
	if err == nil && appending {
		return in.grown(off + n)
	}
	if err != nil || !shared {
		return err
	}
	size, err := in.writeDone(ctx, off, n, punched)
	if err != nil || punched {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	// In a file that is longer all the same it was written before it was cut off. Somebody may have seen that, so it is not written again.
	if in.layoutRecalls != recalls && size <= off+n {
		return errCut
	}
	return nil
}

// settled reports whether the outcome of a failed operation leaves all replicas equal.
func settled(err error) bool { return errors.Is(err, errMoved) || fserr.Of(err) == fserr.NoSpace }

// settle runs operations to their end without their caller, whose data it copies.
func (in *inode) settle(hold *rangeHold, ops []*dataOp) {
	bytes := int64(0)
	for _, op := range ops {
		op.data = append([]byte(nil), op.data...)
		bytes += int64(len(op.data))
	}
	in.s.c.patience.left.Add(bytes)
	in = in.s.pin(in.ino)
	in.mu.Lock()
	in.writers++ // so that a recall keeps the lease
	in.mu.Unlock()
	end := func() {
		for _, op := range ops {
			op.free()
		}
		in.ranges.unlock(hold)
		in.s.c.patience.left.Add(-bytes)
		_ = in.closeHandle(in.s.ctx, true) // a size that cannot be reported now stays due
	}
	if !in.s.c.background(func() {
		for _, err := range runAll(in.s.ctx, ops) {
			if err != nil && in.s.ctx.Err() == nil {
				in.s.c.log.Warn("an interrupted write could not be completed", "inode", in.ino, "err", err)
			}
		}
		end()
	}) {
		end() // the client was closed: the metadata server settles what the session left
	}
}

// writeDone tells the metadata server about a write under a shared-write lease, so that other mounts see it. It returns the size of the file, 0 if
// that is not known.
func (in *inode) writeDone(ctx context.Context, off, n int64, punched bool) (size int64, _ error) {
	reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_WriteDone{WriteDone: &msg.WriteDone{
		Ino: uint64(in.ino), Offset: uint64(off), Length: uint64(n), Mtime: time.Now().UnixNano(), Punch: punched}}})
	if err != nil {
		return 0, fmt.Errorf("report a shared write: %w", err)
	}
	in.heard(reply.Attr, reply.Index)
	size = int64(reply.Attr.GetSize())
	if punched {
		return size, nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.mode == msg.Mode_EXCLUSIVE_WRITE: // it became ours under way
		in.growLocked(off + n)
	case reply.Attr == nil && off+n > in.size:
		in.size = off + n
	}
	return size, nil
}

// appendTo writes p at the end of the file and returns where it ended.
func (in *inode) appendTo(ctx context.Context, p []byte) (end int64, err error) {
	if end, err = in.appendExclusive(ctx, p); !errors.Is(err, errMoved) {
		return end, err
	}
	in.mu.Lock()
	size := in.answered
	in.mu.Unlock()
	reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_Append{Append: &msg.Append{
		Ino: uint64(in.ino), Length: uint64(len(p)), Mtime: time.Now().UnixNano(), Size: uint64(size)}}})
	if err != nil {
		return 0, err
	}
	if reply.GetAppend() == nil {
		return 0, fmt.Errorf("append answered without an offset: %w", fserr.Protocol)
	}
	off := int64(reply.GetAppend().Offset)
	in.mu.Lock()
	in.heardSizeLocked(off)
	in.mu.Unlock()
	if err := in.write(ctx, p, off, false); err != nil {
		return 0, err
	}
	return off + int64(len(p)), nil
}

// appendExclusive appends at the size that we keep, and fails with errMoved when that is not ours. What it then left is past
// the end of the file and is overwritten when the append is done in the other way, at or after the same place.
func (in *inode) appendExclusive(ctx context.Context, p []byte) (end int64, err error) {
	if err := in.appendOp.lock(ctx); err != nil {
		return 0, err
	}
	defer in.appendOp.unlock()
	in.mu.Lock()
	mode, off := in.mode, in.size
	in.mu.Unlock()
	if mode != msg.Mode_EXCLUSIVE_WRITE {
		return 0, errMoved
	}
	end = off + int64(len(p))
	if end > chunk.MaxFileSize {
		return 0, fserr.FileTooBig
	}
	if err := in.write(ctx, p, off, true); err != nil {
		return 0, err
	}
	return end, nil
}

// grown makes an append, which is on all replicas, part of the file.
func (in *inode) grown(end int64) error {
	in.layoutMu.RLock()
	defer in.layoutMu.RUnlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mode != msg.Mode_EXCLUSIVE_WRITE {
		return errMoved
	}
	in.growLocked(end)
	return nil
}
