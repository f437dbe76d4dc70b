package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/chunk"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Reading ahead: pieces of a file that is read in sequence are fetched before they are asked for, and kept until they are read, once, or for
// keepAhead.
//
// A piece is as good as a read that is done now, because it goes away with whatever could change its bytes before that change can be
// seen. Our own writes, punches and truncates take the range lock of their blocks: a piece is fetched and kept under that lock for reading, and dropped when it
// was granted for writing, before anything is sent. Other mounts' need a recall of our lease or a call back of the layout, which ends the
// stamp that the piece was fetched under. Bytes that all servers lost with their power were there longer ago than keepAhead when these serve again.
//
// A read waits for a piece that is being fetched without holding a lock that the fetch needs.

const (
	// keepAhead is how long a piece is kept that nobody reads.
	keepAhead = 5 * time.Second
	// aheadPatience bounds the fetch of a piece, which keeps writers of its blocks waiting.
	aheadPatience = 3 * time.Second
	// pipelined is how many reads of a file must be under way for reading ahead to gain nothing.
	pipelined = 4
)

// fileAhead is what was read of an inode before it was asked for.
type fileAhead struct {
	on      atomic.Bool  // pieces are there, or being fetched
	reading atomic.Int32 // reads under way

	mu      sync.Mutex
	streams streams
	pieces  []*piece // few
}

// stamp says under which lease, and how many recalls of it, something was learnt of a file.
type stamp struct{ lease, recalls, layoutRecalls uint64 }

// piece is a part of a file that was, or is being, read ahead.
type piece struct {
	off     int64
	under   stamp
	fetched chan struct{} // closed when it is there, or will not be
	expire  *time.Timer

	// Guarded by fileAhead.mu.
	data    []byte // nil until it is there
	dropped bool
	users   int // that copy from data
}

// stampNow returns the present stamp, and false if nothing may be kept now.
func (in *inode) stampNow() (stamp, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	keeps := in.mode == msg.Mode_EXCLUSIVE_WRITE || in.mode == msg.Mode_SHARED_READ
	return stamp{in.lease, in.recalls, in.layoutRecalls}, keeps
}

// readAhead fills p from off if all of it was read ahead, and has the next pieces fetched. It reports false if the read is still to
// be done. Preconditions: none of the inode's locks is held; the session lives.
func (in *inode) readAhead(ctx context.Context, p []byte, off int64) bool {
	in.noteRead(off, int64(len(p)))
	there, _ := in.copyAhead(ctx.Done(), p, off)
	return there
}

// noteRead notes a read, and has fetched what may be read next.
func (in *inode) noteRead(off, n int64) {
	a := &in.ahead
	if in.s.c.o.ReadAhead < aheadPiece {
		return
	}
	a.mu.Lock()
	from, to := a.streams.read(off, n)
	a.mu.Unlock()
	if from < to && a.reading.Load() < pipelined {
		in.fetchAhead(from, to)
	}
}

// copyAhead fills p from off if all of it was read ahead. What is being fetched it waits for until giveUp is closed; then
// it says that it is coming.
func (in *inode) copyAhead(giveUp <-chan struct{}, p []byte, off int64) (there, coming bool) {
	a := &in.ahead
	if !a.on.Load() {
		return false, false
	}
	under, keeps := in.stampNow()
	used := false // a piece, up to its end
	for done := 0; done < len(p); {
		pc := a.take(off + int64(done))
		if pc == nil {
			return false, false
		}
		if !pc.await(giveUp) {
			in.give(pc, false)
			return false, true // the read itself says why
		}
		n := 0
		if keeps && pc.under == under {
			a.mu.Lock()
			data := pc.data
			if pc.dropped {
				data = nil
			}
			a.mu.Unlock()
			if at := off + int64(done) - pc.off; at < int64(len(data)) {
				n = copy(p[done:], data[at:])
			}
		}
		over := off+int64(done+n) == pc.off+aheadPiece
		in.give(pc, n == 0 || over)
		if n == 0 {
			return false, false
		}
		done += n
		used = used || over
	}
	if used {
		a.mu.Lock()
		a.streams.grow(off + int64(len(p)))
		a.mu.Unlock()
	}
	in.s.c.aheadStats.hits.Add(1)
	return true, false
}

// atOnce is for those who do not wait.
var atOnce = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// await waits until the piece is there, or will not be, or giveUp is closed.
func (pc *piece) await(giveUp <-chan struct{}) bool {
	select {
	case <-pc.fetched:
		return true
	default:
	}
	select {
	case <-pc.fetched:
		return true
	case <-giveUp:
		return false
	}
}

// take returns the piece that holds off, which the caller gives back.
func (a *fileAhead) take(off int64) *piece {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, pc := range a.pieces {
		if pc.off <= off && off < pc.off+aheadPiece {
			pc.users++
			return pc
		}
	}
	return nil
}

// has reports whether the piece at off is there, or on its way.
func (a *fileAhead) has(off int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, pc := range a.pieces {
		if pc.off == off {
			return true
		}
	}
	return false
}

// give ends the use of a piece; drop says that nobody will want it again.
func (in *inode) give(pc *piece, drop bool) {
	a := &in.ahead
	a.mu.Lock()
	pc.users--
	if drop {
		a.unlistLocked(pc)
	}
	in.releaseLocked(pc)
	a.mu.Unlock()
}

// unlistLocked takes a piece away from those that are found.
func (a *fileAhead) unlistLocked(pc *piece) {
	if pc.dropped {
		return
	}
	pc.dropped = true
	for i, o := range a.pieces {
		if o == pc {
			a.pieces = append(a.pieces[:i], a.pieces[i+1:]...)
			break
		}
	}
	a.on.Store(len(a.pieces) > 0)
}

// releaseLocked gives the memory of a piece back that nobody can find or uses any more.
func (in *inode) releaseLocked(pc *piece) {
	if !pc.dropped || pc.users > 0 || pc.data == nil {
		return
	}
	wire.Recycle(pc.data[:cap(pc.data)])
	pc.data = nil
	pc.expire.Stop()
	in.s.c.aheadStats.bytes.Add(-aheadPiece)
}

// dropAhead forgets what was read ahead of some blocks, both inclusive. The caller holds their range lock for writing.
func (in *inode) dropAhead(first, last int64) {
	a := &in.ahead
	if !a.on.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := 0; i < len(a.pieces); {
		pc := a.pieces[i]
		// A piece that is not there yet has not got the range lock, and is fetched after the write.
		if pc.data != nil && pc.off/chunk.BlockSize <= last && first <= (pc.off+aheadPiece-1)/chunk.BlockSize {
			a.unlistLocked(pc)
			in.releaseLocked(pc)
			continue
		}
		i++
	}
}

// fetchAhead begins to fetch [from, to), as far as memory and file reach.
func (in *inode) fetchAhead(from, to int64) {
	c := in.s.c
	under, keeps := in.stampNow()
	in.mu.Lock()
	size, known := in.size, in.sizeKnown || in.mode == msg.Mode_EXCLUSIVE_WRITE
	in.mu.Unlock()
	if !keeps || !known {
		return
	}
	a := &in.ahead
	for off := from; off < min(to, size); off += aheadPiece {
		if a.has(off) {
			continue
		}
		if c.aheadStats.bytes.Add(aheadPiece) > c.o.ReadAhead {
			c.aheadStats.bytes.Add(-aheadPiece)
			return
		}
		pc := &piece{off: off, under: under, fetched: make(chan struct{})}
		a.mu.Lock()
		a.pieces = append(a.pieces, pc)
		a.on.Store(true)
		a.mu.Unlock()
		own := in.s.pin(in.ino)
		if !c.background(func() {
			own.fetchPiece(pc)
			own.s.unpin(own)
		}) {
			in.s.unpin(own)
			in.fetched(pc, nil)
		}
	}
}

// fetchPiece reads one piece.
func (in *inode) fetchPiece(pc *piece) {
	ctx, cancel := context.WithTimeout(in.s.ctx, aheadPatience)
	defer cancel()
	hold, err := in.ranges.lock(ctx, pc.off/chunk.BlockSize, (pc.off+aheadPiece-1)/chunk.BlockSize, false)
	if err != nil {
		in.fetched(pc, nil)
		return
	}
	defer in.ranges.unlock(hold)
	in.mu.Lock()
	n := min(in.size-pc.off, aheadPiece)
	in.mu.Unlock()
	if n <= 0 {
		in.fetched(pc, nil)
		return
	}
	data := wire.Buffer(aheadPiece)
	if in.s.live(ctx) != nil || in.readPiece(ctx, chunk.First(pc.off, int(n)), data[:n]) != nil {
		wire.Recycle(data)
		in.fetched(pc, nil)
		return
	}
	in.s.c.aheadStats.fetched.Add(1)
	in.fetched(pc, data[:n])
}

// fetched ends the fetch of a piece; with nothing, it is dropped. Preconditions: if there is something, the range lock is held.
func (in *inode) fetched(pc *piece, data []byte) {
	a := &in.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	close(pc.fetched)
	if data == nil {
		a.unlistLocked(pc)
		in.s.c.aheadStats.bytes.Add(-aheadPiece)
		return
	}
	pc.data = data
	pc.expire = time.AfterFunc(keepAhead, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.unlistLocked(pc)
		in.releaseLocked(pc)
	})
	in.releaseLocked(pc) // if it was dropped meanwhile
}

// aheadCounts are of one client.
type aheadCounts struct {
	bytes         atomic.Int64 // that pieces hold, or will
	fetched, hits atomic.Uint64
}

// AheadStats is what a client has read ahead: pieces fetched, reads that were answered by them, bytes held now.
type AheadStats struct {
	Fetched uint64 `json:"fetched"`
	Hits    uint64 `json:"hits"`
	Bytes   int64  `json:"bytes"`
}

// AheadStats returns the counters.
func (c *Client) AheadStats() AheadStats {
	n := &c.aheadStats
	return AheadStats{Fetched: n.fetched.Load(), Hits: n.hits.Load(), Bytes: n.bytes.Load()}
}
