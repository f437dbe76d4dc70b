package client

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// fallocate extends, punches or zeroes a range, with the mode bits of fallocate(2).
func (in *inode) fallocate(ctx context.Context, mode uint32, off, n int64) error {
	if off < 0 || n <= 0 {
		return fserr.Invalid
	}
	if off > chunk.MaxFileSize-n {
		return fserr.FileTooBig
	}
	switch mode {
	case 0:
		return in.extend(ctx, off, n)
	case unix.FALLOC_FL_KEEP_SIZE:
		return nil
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE:
	default:
		return fserr.NotSupported
	}
	size, err := in.sizeFor(ctx, off+n)
	if err != nil {
		return err
	}
	if inside := min(n, size-off); inside > 0 {
		if err := in.punch(ctx, off, inside); err != nil {
			return err
		}
	}
	if mode == unix.FALLOC_FL_ZERO_RANGE {
		return in.extend(ctx, off, n)
	}
	return nil
}

// extend makes the file reach to off+n, if it does not.
func (in *inode) extend(ctx context.Context, off, n int64) error {
	end := off + n
	size, err := in.sizeFor(ctx, end)
	if err != nil || size >= end {
		return err
	}
	hold, err := in.lockForWrite(ctx, end, 1) // with what a failed write may have left before end
	if err != nil {
		return err
	}
	defer in.ranges.unlock(hold)
	in.layoutMu.RLock()
	in.mu.Lock()
	ours := in.mode == msg.Mode_EXCLUSIVE_WRITE
	if ours && end > in.size {
		in.growLocked(end)
	}
	in.mu.Unlock()
	in.layoutMu.RUnlock()
	if ours {
		return nil
	}
	_, err = in.writeDone(ctx, off, n, false) // the size only grows by it, whatever others do meanwhile
	return err
}

// truncate sets the size of a file that the caller has open for writing, and the other attributes of set with it. Once it
// was asked for it is seen to its end, with the whole file locked, even if the caller gives up.
func (in *inode) truncate(ctx context.Context, cred *msg.Cred, set *msg.SetAttr) (*msg.Attr, error) {
	size := int64(set.GetSize())
	if size < 0 || size > chunk.MaxFileSize {
		return nil, fserr.FileTooBig
	}
	open := in.bar(ctx) // what was taken to be written later while the size is set would be seen to go, and to come back
	if ctx.Err() != nil {
		open()
		return nil, ended(ctx)
	}
	hold, err := in.ranges.lock(ctx, 0, lastBlock, true) // our own requests end, and none begins
	if err != nil {
		open()
		return nil, err
	}
	if from, to := in.leftover(size); from < to {
		err = in.clear(ctx, from, to)
	}
	if err == nil { // the metadata server must know the size that it cuts
		err = in.flushAttr(ctx, false)
	}
	if err == nil { // what another reports of before must not come after the cut
		if err = in.attrOp.lock(ctx); err == nil {
			in.attrOp.unlock()
		}
	}
	if err != nil {
		open()
		in.ranges.unlock(hold)
		return nil, err
	}
	if cred != nil { // its slice is the caller's
		cred = &msg.Cred{Uid: cred.Uid, Gid: cred.Gid, Groups: slices.Clone(cred.Groups), Checked: cred.Checked}
	}
	type answer struct {
		attr *msg.Attr
		err  error
	}
	done := make(chan answer, 1)
	own := in.s.pin(in.ino)
	own.mu.Lock()
	own.writers++ // so that a recall keeps the lease
	own.mu.Unlock()
	in.s.changing.Add(1) // so that Suspend and Close wait for the punch that may be owed
	if !in.s.c.background(func() {
		defer in.s.changing.Add(-1)
		attr, err := in.cut(in.s.ctx, cred, set)
		open()
		in.ranges.unlock(hold)
		done <- answer{attr, err}
		_ = own.closeHandle(in.s.ctx, true) // a size that cannot be reported now stays due
	}) { // the client was closed: nothing was asked for
		in.s.changing.Add(-1)
		open()
		in.ranges.unlock(hold)
		_ = own.closeHandle(in.s.ctx, true) // its session is over
		return nil, fserr.Stale
	}
	select {
	case a := <-done:
		return a.attr, a.err
	case <-ctx.Done():
		return nil, ended(ctx)
	}
}

// cut asks for a new size and clears what is left of the last chunk. The whole file is locked.
func (in *inode) cut(ctx context.Context, cred *msg.Cred, set *msg.SetAttr) (*msg.Attr, error) {
	in.cutCached(int64(set.GetSize()))
	reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_SetAttr{SetAttr: set}})
	if err != nil {
		return nil, err
	}
	in.resized(int64(set.GetSize()), reply)
	if r := reply.GetSetAttr(); r.GetPunch() {
		err = in.punchTail(ctx, r)
	}
	return reply.Attr, err
}

// resized takes the size that a truncate has set.
func (in *inode) resized(size int64, reply *msg.MetaReply) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.forgetLayoutLocked()
	if size < in.size {
		in.written = size
	} else { // what a failed write has left past it is still there
		in.written = max(in.written, size)
	}
	in.size, in.sizeKnown, in.floor, in.answered = size, in.mode != msg.Mode_SHARED_WRITE, 0, 0
	in.attrIndex = max(in.attrIndex, reply.Index)
	in.sizeGen++
	for index := range in.unflushed {
		if int64(index)*chunk.Size >= size {
			delete(in.unflushed, index)
		}
	}
	if reply.Attr != nil {
		in.mtime = reply.Attr.Mtime
	}
	in.sizeDirty, in.timeDirty = false, false
	in.s.markDirty(in, false)
}

// punchTail clears what a truncate left of the last chunk and reports that.
func (in *inode) punchTail(ctx context.Context, r *msg.SetAttrReply) error {
	if r.From >= chunk.Size {
		return fmt.Errorf("truncate wants a punch from %d of a chunk: %w", r.From, fserr.Protocol)
	}
	op := newDataOp(in, wire.Punch, chunk.Piece{Index: r.Index, Offset: r.From, Length: chunk.Size - r.From}, nil)
	defer op.free()
	if err := op.run(ctx); err != nil {
		return err
	}
	_, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_PunchDone{PunchDone: &msg.PunchDone{Ino: uint64(in.ino)}}})
	return err
}

// seek finds the next data or hole at or after off.
func (in *inode) seek(ctx context.Context, off int64, hole bool) (int64, error) {
	if err := in.s.live(ctx); err != nil {
		return 0, err
	}
	size, err := in.sizeFor(ctx, chunk.MaxFileSize)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= size {
		return 0, fserr.NoDevice
	}
	for off < size {
		index := uint32(off / chunk.Size)
		at, found, err := in.seekChunk(ctx, index, uint32(off%chunk.Size), hole)
		if err != nil {
			return 0, err
		}
		if found {
			off = int64(index)*chunk.Size + int64(at)
			break
		}
		off = (int64(index) + 1) * chunk.Size
	}
	switch {
	case off < size:
		return off, nil
	case hole:
		return size, nil // the end counts as a hole
	}
	return 0, fserr.NoDevice
}

// seekChunk looks inside one chunk, at one replica after another.
func (in *inode) seekChunk(ctx context.Context, index, from uint32, hole bool) (at uint32, found bool, err error) {
	var wait backoff
	var st *stall
	defer func() { st.end() }()
	tried := uint32(0)
	asked := false
	for {
		loc, known := in.lookup(index)
		switch {
		case !known:
			asked = false
			if err := in.fetch(ctx, index); err != nil {
				return 0, false, err
			}
			continue
		case loc == nil:
			believed, err := in.believeHole(ctx, index, &asked)
			if err != nil {
				return 0, false, err
			}
			if !believed {
				continue
			}
			return from, hole, nil
		}
		in.layoutMu.RLock()
		var reply *msg.ChunkSeekReply
		if i := in.choose(loc, tried); i >= 0 {
			tried |= 1 << i
			reply, err = in.askSeek(ctx, loc, &loc.replicas[i], from, hole)
			in.layoutMu.RUnlock()
			if err == nil {
				return reply.Offset, reply.Found && reply.Offset < chunk.Size, nil
			}
			if gone(fserr.Of(err)) {
				in.s.kill(fserr.Of(err))
				return 0, false, fserr.Stale
			}
			continue
		}
		in.layoutMu.RUnlock()
		tried = 0
		in.forgetLayout()
		if st == nil {
			st = in.s.c.watch("a replica to say where data is", "inode", in.ino, "chunk", loc.chunk)
		}
		if err := wait.wait(ctx, in.s.ctx); err != nil {
			return 0, false, err
		}
	}
}

func (in *inode) askSeek(ctx context.Context, loc *location, r *replica, from uint32, hole bool) (*msg.ChunkSeekReply, error) {
	conn, err := in.s.servers.server(r).conn(0)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, in.s.c.o.ReadTimeout)
	defer cancel()
	body, err := (&msg.ChunkSeek{Chunk: uint64(loc.chunk), Offset: from, Hole: hole}).MarshalVT()
	if err != nil {
		return nil, err
	}
	f, err := conn.Call(ctx, &wire.Frame{Type: wire.ChunkSeek, Class: wire.ClassGuest, Epoch: loc.epoch, Body: body})
	if err != nil {
		return nil, err
	}
	defer f.Release()
	reply := new(msg.ChunkSeekReply)
	if f.Code != fserr.OK {
		return nil, f.Code
	}
	return reply, reply.UnmarshalVT(f.Body)
}

// setSize truncates by inode: it opens the file for writing meanwhile.
func (c *Client) setSize(ctx context.Context, cred *msg.Cred, req *msg.SetAttr) (*msg.Attr, error) {
	mask := uint32(2)
	if cred.GetChecked() {
		mask = 0
	}
	for {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		in := s.pin(id.Ino(req.Ino))
		var f *File
		if in.openForWriting() { // the descriptor's right counts, whatever the mode bits say now
			f, err = in.open(ctx, cred, true, 0)
		} else {
			f, err = in.open(ctx, cred, true, mask)
		}
		if err != nil {
			s.unpin(in)
			if s.ctx.Err() != nil && ctx.Err() == nil && c.ctx.Err() == nil {
				continue
			}
			return nil, err
		}
		attr, err := in.truncate(ctx, cred, req)
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		_ = f.Release(rctx) // what it cannot report now stays due
		cancel()
		return attr, err
	}
}

func (in *inode) openForWriting() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.writers > 0
}
