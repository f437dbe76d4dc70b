package ssd

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"varve/internal/disk"
	"varve/internal/fserr"
)

// ring is the journal's file with what is in memory of it.
type ring struct {
	f          disk.File
	id         UUID
	generation uint64
	blocks     uint64 // in the ring
	head       header // as it was last written; owned by whoever writes headers: Open, then the destager, then Close
	page       []byte // for headers, aligned; owned likewise

	mu       sync.RWMutex
	index    *index
	next     uint64        // position behind the newest batch
	tail     uint64        // position of the oldest batch
	sequence uint64        // of the next batch
	tailSeq  uint64        // of the batch at the tail
	reserved uint64        // blocks promised to writers
	freed    chan struct{} // closed and replaced when the tail moves
	waiting  int           // writers that wait for freed
	claimed  uint64        // blocks that those of them need who cannot do without: nobody else gets them meanwhile
	stuck    error         // the slow disk is full: waiting for it is of no use

	written  atomic.Uint64 // batches below this sequence are with the disk
	durable  atomic.Uint64 // batches below this sequence are on stable media
	unsynced atomic.Int64  // blocks written since the newest sync began

	queueMu sync.Mutex
	queue   []*request
	busy    bool // one of those in the queue writes for all, and owns the four fields behind done
	done    sync.Cond
	batch   []*request
	lives   []*life // of the batch, as batchFile in plan.files
	plan    batch
	buf     []byte

	syncMu   sync.Mutex
	syncing  bool
	syncDone sync.Cond

	failed   atomic.Pointer[error]
	onFailed func(error)
}

// request is one entry to append.
type request struct {
	life  *life
	kind  byte
	page  uint32
	data  []byte // whole pages; whoever writes copies it
	sums  []uint32
	ready bool // guarded by ring.queueMu
	err   error
}

// err returns why the FS is out of service, or nil.
func (r *ring) err() error {
	if p := r.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail takes the FS out of service since its journal failed. What was acknowledged may be there only, so nothing may go on without it. The
// error does not wrap the cause, so that nobody takes the slow disk for the one that failed.
func (r *ring) fail(what string, cause error) error {
	return r.stop(fmt.Errorf("write journal out of service: %s: %w: %v", what, fserr.IO, cause))
}

// failSlow takes the FS out of service since the slow disk failed.
func (r *ring) failSlow(what string, cause error) error {
	return r.stop(fmt.Errorf("write journal out of service: the disk that it is for failed: %s: %w: %w", what, fserr.IO, cause))
}

func (r *ring) stop(err error) error {
	if r.failed.CompareAndSwap(nil, &err) {
		r.mu.Lock()
		r.free()
		r.mu.Unlock()
		if r.onFailed != nil {
			r.onFailed(err)
		}
	}
	return r.err()
}

// free wakes those that wait for room. It is called with mu held.
func (r *ring) free() {
	close(r.freed)
	r.freed = make(chan struct{})
}

// place returns the offset in the file of a position.
func (r *ring) place(position uint64) int64 { return ringOffset + int64(position%r.blocks)*pageSize }

// room reports whether n more blocks can be promised. The rest of the ring that a batch skips at its end is at most a batch.
func (r *ring) room(n uint64) bool {
	return r.next-r.tail+r.reserved+n+batchBlocks <= r.blocks
}

// cost is what a request of so many pages may take: one block of descriptor is enough for each.
func cost(pages int) uint64 { return uint64(pages) + 1 }

// append writes a request's entry to the journal, together with what others append at the same time, and returns when the journal's
// disk has it. Preconditions: cost(pages) is reserved; it no longer is afterwards.
func (r *ring) append(q *request) error {
	r.queueMu.Lock()
	defer r.queueMu.Unlock()
	r.queue = append(r.queue, q)
	for !q.ready {
		if r.busy {
			r.done.Wait()
			continue
		}
		r.busy = true
		r.take()
		r.queueMu.Unlock()
		err := r.err()
		if err == nil {
			err = r.write()
		}
		r.unreserve(r.batch)
		r.queueMu.Lock()
		r.busy = false
		for _, b := range r.batch {
			b.ready, b.err = true, err
		}
		r.done.Broadcast()
	}
	return q.err
}

// take moves as many requests from the queue as fit a batch. It is called with queueMu held.
func (r *ring) take() {
	n, pages := 0, 0
	for n < len(r.queue) && n < batchPages && pages+len(r.queue[n].sums) <= batchPages {
		pages += len(r.queue[n].sums)
		n++
	}
	r.batch = append(r.batch[:0], r.queue[:n]...)
	rest := copy(r.queue, r.queue[n:])
	clear(r.queue[rest:])
	r.queue = r.queue[:rest]
}

func (r *ring) unreserve(batch []*request) {
	r.mu.Lock()
	for _, q := range batch {
		r.reserved -= cost(len(q.sums))
	}
	r.mu.Unlock()
}

// write writes the batch that was taken and enters it into the index.
func (r *ring) write() error {
	b := &r.plan
	*b = batch{journal: r.id, generation: r.generation, durable: r.durable.Load(), files: b.files[:0], entries: b.entries[:0]}
	r.lives = r.lives[:0]
	for _, q := range r.batch {
		n := slices.Index(r.lives, q.life)
		if n < 0 {
			n = len(r.lives)
			r.lives = append(r.lives, q.life)
			b.files = append(b.files, batchFile{q.life.id, q.life.path})
		}
		b.entries = append(b.entries, entry{kind: q.kind, file: uint16(n), page: q.page, sums: q.sums})
	}
	all := uint64(b.descriptorBlocks() + b.pages())
	r.mu.Lock()
	if rest := r.blocks - r.next%r.blocks; rest < all {
		r.skip(rest)
	}
	b.position, b.sequence = r.next, r.sequence
	r.mu.Unlock()
	b.encode(r.buf)
	end := int(b.head) * pageSize
	for _, q := range r.batch {
		end += copy(r.buf[end:], q.data)
	}
	if _, err := r.f.WriteAt(r.buf[:end], r.place(b.position)); err != nil {
		return r.fail("write a batch", err)
	}
	r.mu.Lock()
	r.enter(b, r.lives)
	r.mu.Unlock()
	r.written.Store(b.sequence + 1)
	if r.unsynced.Add(int64(all)) > syncEvery {
		return r.sync(b.sequence)
	}
	return nil
}

// skip leaves the rest of the ring unused. It is called with mu held.
func (r *ring) skip(rest uint64) {
	at := r.next % r.blocks
	r.index.owner[at], r.index.page[at] = markGap, uint32(rest)
	r.next += rest
}

// enter takes a batch into the index and moves the end of the ring behind it. It is called with mu held, also at replay.
func (r *ring) enter(b *batch, lives []*life) {
	x := r.index
	at := b.position % r.blocks
	x.owner[at], x.page[at] = markBatch, b.blocks
	block := uint32(at) + b.head
	for _, e := range b.entries {
		l := lives[e.file]
		l.last = b.sequence
		if e.kind == kindEnd {
			l.ended = true
			continue
		}
		var flags uint8
		if e.kind == kindHole {
			flags = flagHole
		}
		for i, sum := range e.sums {
			x.put(l, e.page+uint32(i), block, sum, flags)
			block++
		}
	}
	r.next = b.position + uint64(b.blocks)
	r.sequence = b.sequence + 1
}

// sync returns when the batch of a sequence is on stable media. Those that wait together share one sync.
func (r *ring) sync(sequence uint64) error {
	if r.durable.Load() > sequence {
		return r.err()
	}
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	for r.durable.Load() <= sequence {
		if err := r.err(); err != nil {
			return err
		}
		if r.syncing {
			r.syncDone.Wait()
			continue
		}
		r.syncing = true
		r.syncMu.Unlock()
		covered, upto := r.unsynced.Load(), r.written.Load()
		err := r.f.Sync()
		r.syncMu.Lock()
		r.syncing = false
		r.syncDone.Broadcast()
		if err != nil {
			return r.fail("sync", err)
		}
		r.unsynced.Add(-covered)
		r.durable.Store(max(r.durable.Load(), upto))
	}
	return r.err()
}

// writeHeader writes h to the slot that is not the newest, durably.
func (r *ring) writeHeader(h header) error {
	h.number = r.head.number + 1
	h.encode(r.page)
	// Odd numbers are in slot A, even ones in slot B.
	if _, err := r.f.WriteAt(r.page, int64((h.number+1)%2)*pageSize); err != nil {
		return r.fail("write the header", err)
	}
	if err := r.f.Sync(); err != nil {
		return r.fail("sync the header", err)
	}
	r.head = h
	return nil
}
