package client

import (
	"container/list"
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/rwlock"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// inode is a regular file that this session has open, or still holds the lease of.
type inode struct {
	s    *session
	ino  id.Ino
	refs int           // guarded by session.mu: who uses it
	elem *list.Element // guarded by session.mu: its place among the idle

	leaseOp  opLock
	appendOp opLock
	flushOp  opLock
	attrOp   opLock
	dropOp   opLock
	ranges   rangeLock
	ahead    fileAhead
	cached   cachedFile
	behind   behind
	habit    flushHabit

	// layoutMu is held for reading while a data request that used the mode and the layout is under way.
	layoutMu rwlock.Mutex

	mu         sync.Mutex
	readers    int // open handles
	writers    int
	lease      uint64
	seen       seenWriters
	want       msg.Want // what the metadata server knows that we hold
	mode       msg.Mode // changed with layoutMu held for writing
	unlinked   bool
	recalls    uint64        // LEASE callbacks seen
	lastRecall uint64        // the newest lease that one was about
	asking     chan struct{} // closed when the lease that is asked for was answered; nil: none is

	// The size is ours under an exclusive lease. Under a shared-write lease it is the last one heard, and a read that goes
	// beyond it asks first.
	size      int64
	sizeKnown bool
	sizeGen   uint64    // raised when others may have changed the size
	attrIndex uint64    // of the answer that size came from
	floor     int64     // size reported in a recall, which the metadata server may still be committing
	floorTill time.Time // when that must be over
	// answered is that size too, until it is known that the metadata server has it, however long that takes: an append that comes before it there
	// must not go to where the file ended before, and a truncate cuts what it knows of. Who sets it to 0 ends floor with it.
	answered  int64
	mtime     int64
	sizeDirty bool // size is not yet known to the metadata server
	timeDirty bool
	reported  time.Time            // when the metadata server was last told mtime
	written   int64                // no byte at or after it was ever sent by us
	unflushed map[uint32]unflushed // chunks written since their last flush
	losses    uint64               // times that writes were lost before they were flushed
	told      uint64               // of these, how many some handle was told of

	layout    map[uint32]*page
	layoutGen uint64
	lapses    uint64 // session.lapses when layout was last found to hold
	// layoutRecalls counts LAYOUT callbacks that are not about replicas alone, changed with layoutMu held for writing: another mount may have
	// cut the file.
	layoutRecalls uint64
	flights       map[flight]chan struct{}

	doubts int           // changes under an exclusive lease that some replicas may have and others not
	sure   chan struct{} // closed when there are none any more
}

func newInode(s *session, ino id.Ino) *inode {
	in := &inode{
		s: s, ino: ino, leaseOp: newOpLock(), appendOp: newOpLock(), flushOp: newOpLock(), attrOp: newOpLock(), dropOp: newOpLock(),
		unflushed: make(map[uint32]unflushed), layout: make(map[uint32]*page), flights: make(map[flight]chan struct{}),
	}
	in.ranges.granted = in.dropAhead
	return in
}

// open returns a handle of the inode, which the caller has pinned; the handle takes the pin over. mask is what
// permissions to check, 0 for none.
func (in *inode) open(ctx context.Context, cred *msg.Cred, write bool, mask uint32) (*File, error) {
	if mask == 0 {
		if f := in.tryOpen(write); f != nil {
			return f, nil
		}
	}
	if err := in.leaseOp.lock(ctx); err != nil {
		return nil, err
	}
	defer in.leaseOp.unlock()
	for {
		if mask == 0 {
			if f := in.tryOpen(write); f != nil {
				return f, nil
			}
		}
		if f, err := in.ask(ctx, cred, write, mask); f != nil || err != nil {
			return f, err
		}
		mask = 0 // checked; the lease was called back before we knew that we had it
	}
}

// tryOpen opens under the lease that is there, if it is enough.
func (in *inode) tryOpen(write bool) *File {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.want < wantFor(write) || in.s.ctx.Err() != nil {
		return nil
	}
	return in.handleLocked(write)
}

func (in *inode) handleLocked(write bool) *File {
	if write {
		in.writers++
	} else {
		in.readers++
	}
	return &File{in: in, write: write, losses: in.told, fails: in.behind.told.Load()}
}

func wantFor(write bool) msg.Want {
	if write {
		return msg.Want_WANT_WRITE
	}
	return msg.Want_WANT_READ
}

// ask requests a lease, with leaseOp held. No handle and no error: the grant was overtaken by a recall.
func (in *inode) ask(ctx context.Context, cred *msg.Cred, write bool, mask uint32) (*File, error) {
	asking := make(chan struct{})
	in.mu.Lock()
	recalls, want := in.recalls, max(in.want, wantFor(write))
	in.asking = asking
	in.mu.Unlock()
	defer func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.asking = nil
		close(asking)
	}()
	gen := in.layoutGeneration()
	reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_Open{Open: &msg.Open{
		Ino: uint64(in.ino), Want: want, Mask: mask}}})
	if err != nil {
		return nil, err
	}
	if reply.GetOpen() == nil {
		return nil, fmt.Errorf("open of inode %v answered without a lease: %w", in.ino, fserr.Protocol)
	}
	return in.grant(reply, recalls, want, gen, write), nil
}

// grant takes the answer of an Open or Create and opens a handle under it; nil if a recall of that lease has come since `recalls` was
// read, so that nobody can tell which of the two was first. A recall of an earlier lease had ended when this one was granted.
func (in *inode) grant(reply *msg.MetaReply, recalls uint64, want msg.Want, gen uint64, write bool) *File {
	o := reply.GetOpen()
	in.layoutMu.Lock()
	defer in.layoutMu.Unlock()
	in.mu.Lock()
	if in.recalls != recalls && in.lastRecall >= o.Lease || o.Lease < in.lease {
		in.mu.Unlock()
		return nil
	}
	in.heardSizeLocked(math.MaxInt64) // nobody is granted a lease while a recall is under way
	exclusive := msg.Mode_EXCLUSIVE_WRITE
	if !(in.mode == exclusive && o.Mode == exclusive) && reply.Attr != nil {
		if in.mode != msg.Mode_SHARED_WRITE { // else an answer to a shared write may have brought later news
			in.attrIndex, in.written = 0, 0
		}
		in.takeSizeLocked(reply.Attr, reply.Index)
	}
	if in.mode == msg.Mode_SHARED_WRITE && o.Mode != in.mode {
		asked := gen == in.layoutGen
		in.forgetLayoutLocked() // its holes were not to be believed
		if asked {
			gen = in.layoutGen
		}
	}
	in.lease, in.mode, in.want = o.Lease, o.Mode, want
	in.seen.granted(o)
	in.trustCacheLocked(o.WritableBefore, o.Writable)
	f := in.handleLocked(write)
	in.mu.Unlock()
	in.learnLayout(o.Layout, gen)
	return f
}

// takeSizeLocked takes size and mtime from an answer, unless a later answer was there before.
func (in *inode) takeSizeLocked(a *msg.Attr, index uint64) {
	if index < in.attrIndex {
		return
	}
	in.attrIndex = index
	in.heardSizeLocked(int64(a.Size))
	in.size, in.sizeKnown = in.atLeastFloorLocked(int64(a.Size)), true
	in.written = max(in.written, in.size)
	if !in.timeDirty {
		in.mtime = a.Mtime
	}
}

// heardSizeLocked notes that the metadata server knows that the file had this size.
func (in *inode) heardSizeLocked(size int64) {
	if size >= in.answered {
		in.floor, in.answered = 0, 0
	}
}

// atLeastFloorLocked corrects a size by what a recall reported shortly before.
func (in *inode) atLeastFloorLocked(size int64) int64 {
	if in.floor > size && time.Now().Before(in.floorTill) {
		return in.floor
	}
	in.floor = 0
	return size
}

// heard takes the attributes that came with an answer about this inode.
func (in *inode) heard(a *msg.Attr, index uint64) {
	if a == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mode != msg.Mode_EXCLUSIVE_WRITE {
		in.takeSizeLocked(a, index)
	}
}

// overlay puts what we know better than the metadata server into attributes it gave us, which are not changed. The kernel may not
// keep those of a file that is open for writing, so for it they are always another object than what is in the cache.
func (c *Client) overlay(a *msg.Attr) *msg.Attr {
	if a == nil || a.Type != msg.FileType_REGULAR {
		return a
	}
	s := c.sess.Load()
	in := s.peek(id.Ino(a.Ino))
	if in == nil {
		return a
	}
	in.mu.Lock()
	size, mtime := a.Size, a.Mtime
	if in.mode == msg.Mode_EXCLUSIVE_WRITE {
		size = uint64(in.size)
		if in.timeDirty {
			mtime = max(mtime, in.mtime)
		}
	} else {
		size = uint64(in.atLeastFloorLocked(int64(size)))
	}
	if a.Nlink == 0 {
		in.unlinked = true
	}
	if size != a.Size || mtime != a.Mtime || in.writers > 0 || in.sizeDirty || in.timeDirty {
		a = cloneAttr(a)
		a.Size, a.Mtime = size, mtime
	}
	in.mu.Unlock()
	s.unpin(in)
	return a
}

// refreshSize asks for the size under a shared-write lease.
func (in *inode) refreshSize(ctx context.Context) (int64, error) {
	for {
		in.mu.Lock()
		gen := in.sizeGen
		in.mu.Unlock()
		reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_GetAttr{GetAttr: &msg.GetAttr{Ino: uint64(in.ino)}}})
		if err != nil {
			return 0, err
		}
		in.mu.Lock()
		if in.mode != msg.Mode_EXCLUSIVE_WRITE && gen == in.sizeGen && reply.Attr != nil {
			in.takeSizeLocked(reply.Attr, reply.Index)
		}
		size, same := in.size, gen == in.sizeGen
		in.mu.Unlock()
		if same {
			return size, nil
		}
	}
}

// sizeFor returns a size that is right for a read that ends at end: if it is smaller than end, it is exact.
func (in *inode) sizeFor(ctx context.Context, end int64) (int64, error) {
	in.mu.Lock()
	size, mode, known := in.size, in.mode, in.sizeKnown
	in.mu.Unlock()
	if mode == msg.Mode_EXCLUSIVE_WRITE || known && (mode == msg.Mode_SHARED_READ || end <= size) {
		return size, nil
	}
	return in.refreshSize(ctx)
}

// wrote notes a data request that all replicas have carried out, before layoutMu is released.
func (in *inode) wrote(op *dataOp, mode msg.Mode) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if op.req.Flags&wire.Durable == 0 {
		in.noteUnflushedLocked(op.piece.Index, unflushed{op.at.chunk, op.at.epoch})
	}
	in.written = max(in.written, op.end())
	op.recalls = in.layoutRecalls
	if mode == msg.Mode_EXCLUSIVE_WRITE && !op.appending {
		in.growLocked(op.end())
	}
}

// growLocked records, under an exclusive lease, that the file now reaches to end and was modified.
func (in *inode) growLocked(end int64) {
	fresh := !in.sizeDirty && !in.timeDirty
	if end > in.size {
		in.size, in.sizeDirty = end, true
	}
	in.mtime, in.timeDirty = time.Now().UnixNano(), true
	if fresh {
		in.s.markDirty(in, true)
	}
}

// flushAttr reports size and mtime to the metadata server if they have news; with sizeOnly, only if the size has.
// Before it asks it waits for a report that is under way.
func (in *inode) flushAttr(ctx context.Context, sizeOnly bool) error {
	if size, mtime := in.attrNews(); size == nil && (mtime == nil || sizeOnly) {
		return nil
	}
	if err := in.attrOp.lock(ctx); err != nil {
		return err
	}
	defer in.attrOp.unlock()
	size, mtime := in.attrNews()
	if size == nil && mtime == nil {
		return nil
	}
	_, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_SetAttr{SetAttr: &msg.SetAttr{
		Ino: uint64(in.ino), Flush: true, Size: size, Mtime: mtime}}})
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case err == nil || fserr.Of(err) == fserr.NotExist:
	case fserr.Of(err) == fserr.Stale && in.s.ctx.Err() == nil && in.readers+in.writers == 0: // removed, and no handle pins it
	case in.mode != msg.Mode_EXCLUSIVE_WRITE && !in.sizeDirty && !in.timeDirty && in.answered == 0:
		return nil // recalled meanwhile, and reported with that
	default:
		return err
	}
	if size != nil {
		in.heardSizeLocked(int64(*size))
	}
	in.reportedLocked(size, mtime)
	return nil
}

// attrNews returns what the metadata server does not know yet, nil for what it knows.
func (in *inode) attrNews() (size *uint64, mtime *int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.sizeDirty {
		n := uint64(in.size)
		size = &n
	} else if in.answered > 0 {
		n := uint64(in.answered)
		size = &n
	}
	if in.timeDirty {
		t := in.mtime
		mtime = &t
	}
	return size, mtime
}

// reportedLocked notes that the metadata server knows a size and a time.
func (in *inode) reportedLocked(size *uint64, mtime *int64) {
	if size != nil && in.size == int64(*size) {
		in.sizeDirty = false
	}
	if mtime != nil {
		in.reported = time.Now()
		if in.mtime == *mtime {
			in.timeDirty = false
		}
	}
	if !in.sizeDirty && !in.timeDirty {
		in.s.markDirty(in, false)
	}
}

// closeHandle ends a handle and its pin.
func (in *inode) closeHandle(ctx context.Context, write bool) error {
	in.mu.Lock()
	if write {
		in.writers--
	} else {
		in.readers--
	}
	last := write && in.writers == 0
	dead := in.s.ctx.Err() != nil
	in.mu.Unlock()
	var err error
	if last && !dead {
		err = in.flushAttr(ctx, false) // if it fails, the inode stays on the dirty list and is tried again
	}
	in.s.unpin(in)
	return err
}

// forsake forgets an inode that is gone at the metadata server, with what was to be reported of it.
func (in *inode) forsake() {
	in.layoutMu.Lock()
	defer in.layoutMu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.readers+in.writers > 0 {
		return // an open handle pins an inode; what it does next says what is wrong
	}
	in.want, in.mode = msg.Want_WANT_NONE, msg.Mode_MODE_NONE
	in.sizeDirty, in.timeDirty = false, false
	clear(in.unflushed)
	in.forgetLayoutLocked()
	in.s.markDirty(in, false)
}

// giveBack releases the lease of an inode without handles.
func (in *inode) giveBack(ctx context.Context) error {
	if err := in.leaseOp.lock(ctx); err != nil {
		return err
	}
	defer in.leaseOp.unlock()
	if err := in.fsync(ctx, false); err != nil { // nobody would remember what is not flushed
		if fserr.Of(err) == fserr.Stale && in.s.ctx.Err() == nil {
			in.forsake()
			return nil
		}
		return err
	}
	in.layoutMu.Lock()
	in.mu.Lock()
	lease := in.lease
	busy := in.readers+in.writers > 0 || in.want == msg.Want_WANT_NONE || in.sizeDirty || in.timeDirty || len(in.unflushed) > 0 || in.behind.on.Load()
	if !busy {
		in.want, in.mode = msg.Want_WANT_NONE, msg.Mode_MODE_NONE
		in.forgetLayoutLocked()
	}
	in.mu.Unlock()
	in.layoutMu.Unlock()
	if busy {
		return nil
	}
	_, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_Release{Release: &msg.Release{Ino: uint64(in.ino), Lease: lease}}})
	return err
}
