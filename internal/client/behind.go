package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Writing behind, if Options.WriteBehind is not 0: a write of a descriptor that promises nothing (no O_DIRECT, O_SYNC, O_DSYNC, no mapped page) returns when its
// bytes are in memory, and is carried out a second later at the latest, together with its neighbours. So a crash of this process may take what was not
// flushed, as a crash of the host does with any filesystem; that is why it is off unless asked for.
//
// It happens under an exclusive lease only. Everything that must find the bytes on the servers has them written first (drain): reads, other writes, punches and
// truncates of the same bytes, fsync, close, SEEK_HOLE, a recall of the lease and a truncate, which take no more in meanwhile, and the end of the session. One
// goroutine a file writes, a batch after the other, so that bytes which were written twice go out in that order. What cannot be written is told by the next
// fsync or close of each handle.

// behind is what was written to an inode and is not on the servers yet.
type behind struct {
	on atomic.Bool // there is some

	mu      sync.Mutex
	parts   []*part // of those that are not being written, no two overlap
	running bool    // a goroutine writes
	all     bool    // it is to write all parts, not only full ones
	barred  int     // recalls under way: nothing is taken
	err     error   // of the newest failure
	fails   uint64
	told    atomic.Uint64 // of these, how many some handle was told of
}

// part is bytes in sequence, which do not cross a multiple of maxPiece.
type part struct {
	off     int64
	data    []byte
	writing bool
	done    chan struct{} // closed when it was written, or has failed
	late    *time.Timer   // has it written if nothing else does
}

func (p *part) end() int64 { return p.off + int64(len(p.data)) }

func (p *part) overlaps(off, end int64) bool { return p.off < end && off < p.end() }

// minPart is the least memory of a part, in bytes.
const minPart = 64 << 10

// WritesBehind reports whether WriteBehind may ever take something.
func (f *File) WritesBehind() bool { return f.write && f.in.s.c.o.WriteBehind > 0 }

// WriteBehind takes a write to be carried out later. It reports false if it was not, or not wholly, taken: then WriteAt must carry it out. It does
// not wait. The caller must not have promised that the bytes are on the servers when it returns.
func (f *File) WriteBehind(p []byte, off int64) bool {
	in := f.in
	if !f.WritesBehind() || off < 0 || len(p) == 0 || off > chunk.MaxFileSize-int64(len(p)) {
		return false
	}
	if in.s.ctx.Err() != nil || bootTime() >= in.s.deadline.Load() || !in.layoutMu.TryRLock() {
		return false
	}
	defer in.layoutMu.RUnlock()
	for len(p) > 0 {
		n := min(int64(len(p)), maxPiece-off%maxPiece)
		if !in.keep(p[:n], off) {
			return false
		}
		p, off = p[n:], off+n
	}
	return true
}

// keep takes bytes that do not cross a multiple of maxPiece.
func (in *inode) keep(p []byte, off int64) bool {
	b := &in.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.barred > 0 || in.modeNow() != msg.Mode_EXCLUSIVE_WRITE { // which does not change while layoutMu is held
		return false
	}
	if from, _ := in.leftover(off); from < off {
		return false // it has to be cleared before the file grows over it
	}
	end := off + int64(len(p))
	var has, before *part // that has the bytes; that ends where they begin
	for _, o := range b.parts {
		switch {
		case o.writing:
		case o.off <= off && end <= o.end():
			has = o
		case o.overlaps(off, end):
			return false
		case o.end() == off && off%maxPiece != 0:
			before = o
		}
	}
	if has != nil {
		copy(has.data[off-has.off:], p)
	} else if !in.appendLocked(before, p, off) {
		return false
	}
	in.mu.Lock()
	in.growLocked(end)
	in.mu.Unlock()
	return true
}

// appendLocked puts bytes behind a part, or into a new one if that is nil.
func (in *inode) appendLocked(at *part, p []byte, off int64) bool {
	b, c := &in.behind, in.s.c
	have, used := 0, 0
	if at != nil {
		have, used = cap(at.data), len(at.data)
	}
	if need := used + len(p); need > have {
		more := wire.Buffer(max(need, min(2*have, maxPiece), minPart))
		if c.behindBytes.Add(int64(cap(more)-have)) > c.o.WriteBehind {
			c.behindBytes.Add(int64(have - cap(more)))
			wire.Recycle(more)
			return false
		}
		if at == nil {
			at = &part{off: off, done: make(chan struct{})}
			at.late = time.AfterFunc(c.o.FlushEvery, func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				if len(b.parts) > 0 {
					in.startLocked(true)
				}
			})
			b.parts = append(b.parts, at)
			b.on.Store(true)
		}
		copy(more, at.data)
		wire.Recycle(at.data)
		at.data = more[:used]
	}
	at.data = append(at.data, p...)
	if at.end()%maxPiece == 0 {
		in.startLocked(false)
	}
	return true
}

// drain has the bytes in [off, end) that were written behind written, and returns when they are. What cannot be written is no error of
// drain's.
func (in *inode) drain(ctx context.Context, off, end int64) error {
	b := &in.behind
	for b.on.Load() {
		var done chan struct{}
		b.mu.Lock()
		for _, p := range b.parts {
			if p.overlaps(off, end) {
				done = p.done
				in.startLocked(true)
				break
			}
		}
		b.mu.Unlock()
		if done == nil {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
	return nil
}

// drainAll is drain of the whole file.
func (in *inode) drainAll(ctx context.Context) error { return in.drain(ctx, 0, chunk.MaxFileSize) }

// bar has nothing taken to be written later any more, and drains, until ctx ends; open ends that.
func (in *inode) bar(ctx context.Context) (open func()) {
	b := &in.behind
	b.mu.Lock()
	b.barred++
	b.mu.Unlock()
	_ = in.drainAll(ctx) // it fails only with ctx; of a recall nobody hears the answer then
	return func() {
		b.mu.Lock()
		b.barred--
		b.mu.Unlock()
	}
}

// startLocked has the parts written: all, or those that are full.
func (in *inode) startLocked(all bool) {
	b := &in.behind
	b.all = b.all || all
	if b.running {
		return
	}
	b.running = true
	own := in.s.pin(in.ino)
	if !in.s.c.background(func() {
		own.writeBack()
		own.s.unpin(own)
	}) {
		go func() { // the client was closed
			in.fail(fserr.Stale)
			in.s.unpin(own)
		}()
	}
}

// writeBack writes parts until none is left that is to be written.
func (in *inode) writeBack() {
	b := &in.behind
	slots := make(chan struct{}, maxParallel)
	for {
		var batch []*part
		b.mu.Lock()
		for _, p := range b.parts {
			if b.all || p.end()%maxPiece == 0 {
				p.writing = true
				batch = append(batch, p)
			}
		}
		b.all = false
		if len(batch) == 0 {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		var wg sync.WaitGroup
		for _, p := range batch {
			slots <- struct{}{}
			wg.Go(func() {
				err := in.write(in.s.ctx, p.data, p.off, false)
				b.mu.Lock()
				in.writtenLocked(p, err)
				b.mu.Unlock()
				<-slots
			})
		}
		wg.Wait()
	}
}

// fail ends all parts with an error.
func (in *inode) fail(err error) {
	b := &in.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.parts) > 0 {
		in.writtenLocked(b.parts[0], err)
	}
	b.running = false
}

// writtenLocked ends a part.
func (in *inode) writtenLocked(p *part, err error) {
	b := &in.behind
	for i, o := range b.parts {
		if o == p {
			b.parts = append(b.parts[:i], b.parts[i+1:]...)
			break
		}
	}
	b.on.Store(len(b.parts) > 0)
	p.late.Stop()
	if err != nil {
		b.err = fmt.Errorf("inode %v: %d bytes at %d that were written behind are lost: %w", in.ino, len(p.data), p.off, err)
		b.fails++
		in.s.c.log.Error("a write could not be carried out after it had returned; the next fsync or close says so", "inode", in.ino,
			"offset", p.off, "bytes", len(p.data), "err", err)
	}
	in.s.c.behindBytes.Add(-int64(cap(p.data)))
	if err == nil { // else a request may still be under way that sends from it
		wire.Recycle(p.data)
	}
	close(p.done)
}

// failed reports, once for each handle and failure, that something which was written behind was lost. A handle that was opened later is
// told of it if no other one was.
func (f *File) failed() error {
	b := &f.in.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.fails == b.fails {
		return nil
	}
	f.fails = b.fails
	b.told.Store(b.fails)
	return b.err
}
