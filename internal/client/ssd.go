package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/readcache"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Reading from the SSD of this host (package readcache). What may be served and put in, and why it is what the servers have:
//   - only under a lease that keeps others from writing, and only since the metadata server has said with it who was let write before (trustCacheLocked);
//   - blocks are put in, and looked for, while their range lock and layoutMu are held, so no write of ours to them is under way, and a recall waits;
//   - a write, punch or truncate invalidates, with the range lock held for writing, before anything is sent.

// cachedFile is what the read cache has of an inode.
type cachedFile struct {
	file  atomic.Pointer[readcache.File]
	trust atomic.Bool // changed with layoutMu held for writing
	// What trust came with; guarded by inode.mu.
	before, now uint64
	scan        scan
}

// trustCacheLocked is called when the mode was given by the metadata server, with what it says of writers: as of before the grant, 0 if it does not know,
// and as of now.
func (in *inode) trustCacheLocked(before, now uint64) {
	c := in.s.c.o.ReadCache
	if !c.Usable() {
		in.cached.trust.Store(false)
		return
	}
	if in.mode != msg.Mode_SHARED_READ && in.mode != msg.Mode_EXCLUSIVE_WRITE {
		in.cached.trust.Store(false)
		return
	}
	if before == 0 {
		before = now
	}
	in.cached.before, in.cached.now = before, now
	f := c.File(uint64(in.ino))
	f.Opened(before, max(in.lease, now), in.mode == msg.Mode_EXCLUSIVE_WRITE)
	in.cached.file.Store(f)
	in.cached.trust.Store(true)
}

// doubtCacheLocked is called after a recall: others may write, or may have written when the mode was shared-write before.
func (in *inode) doubtCacheLocked(was msg.Mode) {
	alone := func(m msg.Mode) bool { return m == msg.Mode_SHARED_READ || m == msg.Mode_EXCLUSIVE_WRITE }
	if !alone(was) || !alone(in.mode) {
		in.cached.trust.Store(false)
	}
}

// believed returns what the cache has of the inode if that may be used. Preconditions: layoutMu is held.
func (in *inode) believed() *readcache.File {
	if !in.cached.trust.Load() {
		return nil
	}
	return in.cached.file.Load()
}

func blocksOf(loc *location, offset uint32) readcache.Blocks {
	return readcache.Blocks{Chunk: uint64(loc.chunk), Lost: uint64(loc.lost), First: offset / chunk.BlockSize}
}

// uncache has blocks that are about to change not count any more. Preconditions: their range lock is held for writing, and layoutMu.
func (in *inode) uncache(loc *location, pc chunk.Piece) {
	if f := in.cached.file.Load(); f != nil {
		f.Invalidate(blocksOf(loc, 0), pc.Offset, pc.Length)
	}
}

// cutCached has nothing of the file count any more if it is about to become shorter. Preconditions: the range lock of all of it is held for writing.
func (in *inode) cutCached(size int64) {
	in.mu.Lock()
	grows := in.mode == msg.Mode_EXCLUSIVE_WRITE && size >= in.size
	in.mu.Unlock()
	if !grows {
		in.cached.file.Load().Drop()
	}
}

// maxCached is the largest read that is put into the cache, in bytes. Larger ones are sequential, and as fast without.
const maxCached = 256 << 10

// cache puts whole blocks that were read and verified into the cache. sums are their checksums if data is the caller's, whom a guest may have given memory that
// it writes to; else nil. Preconditions: their range lock and layoutMu are held.
func (in *inode) cache(loc *location, whole chunk.Piece, data []byte, sums []uint32) {
	f := in.believed()
	if f == nil || in.s.ctx.Err() != nil {
		return
	}
	n := int64(whole.Length)
	f.Miss(len(data))
	if in.cached.scan.sequential(int64(whole.Index)*chunk.Size+int64(whole.Offset), n) || n > maxCached {
		f.Streamed(len(data))
		return
	}
	f.Fill(blocksOf(loc, whole.Offset), data[:whole.Length], sums)
}

// scan finds out which reads are part of a sequential stream.
type scan struct {
	mu   sync.Mutex
	runs [4]run
	hand int
}

// run is reads that followed one another, nearly.
type run struct{ start, end, length int64 }

const (
	scanGap   = 128 << 10 // reads of a stream may come in another order
	scanBytes = 1 << 20   // so many bytes in sequence are a stream
)

// sequential notes a read that was not in the cache, and reports whether it is part of a stream: of more than scanBytes, most of which was read, and once.
func (s *scan) sequential(off, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.runs {
		r := &s.runs[i]
		if r.length == 0 || off < r.end-scanGap || off > r.end+scanGap {
			continue
		}
		r.end, r.length = max(r.end, off+n), r.length+n
		span := r.end - r.start
		if span > 4*scanBytes { // what was long ago counts for less
			r.start, r.length = r.end-span/2, r.length/2
		}
		return span > scanBytes && 2*r.length > r.end-r.start && r.length < 2*(r.end-r.start)
	}
	s.runs[s.hand] = run{off, off + n, n}
	s.hand = (s.hand + 1) % len(s.runs)
	return false
}

// place says what the disk is to read, and where.
func (op *localOp) place() (fd int, dst []byte, off int64) {
	if op.ssd != nil {
		return op.ssd.FD, op.ssd.Dst, op.ssd.Offset
	}
	return op.op.FD, op.op.Dst, op.op.Offset
}

func (op *localOp) do() error {
	if op.ssd == nil {
		return op.op.Do()
	}
	n, err := op.ssd.Do()
	return op.finish(n, err)
}

// errNotCached says that blocks were not what they should be.
var errNotCached = errors.New("not in the read cache")

func (op *localOp) finish(n int, err error) error {
	switch {
	case op.ssd == nil:
		return op.op.Finish(n, err)
	case op.ssd.Finish(n, err):
		return nil
	}
	return errNotCached
}

// readCached fills p, the part of a chunk that pc says and whole has in whole blocks, if the cache has all of it. Preconditions: the range lock and
// layoutMu are held.
func (in *inode) readCached(ctx context.Context, loc *location, whole, pc chunk.Piece, p []byte) bool {
	f := in.believed()
	if f == nil || !f.Has(blocksOf(loc, whole.Offset), int(whole.Length/chunk.BlockSize)) {
		return false
	}
	var room [maxPiece/readcache.SlotBytes + 2]*localOp
	ops := room[:0]
	ok := true
	for off, end := whole.Offset, whole.Offset+whole.Length; off < end && ok; {
		n := min(end-off, readcache.SlotBytes-off%readcache.SlotBytes)
		op := localOps.Get().(*localOp)
		op.buf, op.ssd = wire.Buffer(int(n)), new(readcache.Op)
		if ok = f.Begin(op.ssd, blocksOf(loc, off), op.buf); ok {
			in.s.c.disk.read(op)
			ops = append(ops, op)
		} else {
			op.free()
		}
		off += n
	}
	timer := time.NewTimer(in.s.c.o.ReadTimeout)
	defer timer.Stop()
	skip := pc.Offset - whole.Offset // less than a block
	for i, op := range ops {
		var err error
		select {
		case err = <-op.done:
		case <-timer.C:
			in.s.c.o.ReadCache.GiveUp(fmt.Errorf("a read takes longer than %v: %w", in.s.c.o.ReadTimeout, fserr.Timeout))
			abandonCached(ops[i:])
			return false
		case <-ctx.Done():
			abandonCached(ops[i:])
			return false
		}
		if err = op.outcome(err); err == nil {
			p = p[copy(p, op.buf[skip:]):]
			skip = 0
		} else {
			ok = false
		}
		op.free()
	}
	if ok {
		f.Hit(int(pc.Length))
	}
	return ok
}

// abandonCached leaves reads to end by themselves.
func abandonCached(ops []*localOp) {
	for _, op := range ops {
		go func() { _ = op.outcome(<-op.done) }()
	}
}
