package client

import (
	"context"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// pageChunks is how many chunks of layout are fetched at once.
const pageChunks = 64

// replica is where one copy of a chunk is. Immutable.
type replica struct {
	server  id.ServerID
	addr    string
	joining bool
}

// location is where a chunk is. Immutable: a change makes a new one.
type location struct {
	index    uint32
	chunk    id.ChunkID
	epoch    id.Epoch
	lost     id.Epoch  // what was written before it and not flushed may be gone; 0: nothing
	replicas []replica // in sync first; the first orders shared writes
}

func (l *location) has(s id.ServerID) bool {
	for i := range l.replicas {
		if l.replicas[i].server == s {
			return true
		}
	}
	return false
}

// page is a piece of a file's layout. A known chunk without location is a hole.
type page struct {
	version uint64
	known   uint64 // bit per chunk
	chunks  [pageChunks]*location
}

// lookup returns the location of a chunk, nil for a hole, and whether it is known at all.
func (in *inode) lookup(index uint32) (*location, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.lookupLocked(index)
}

func (in *inode) lookupLocked(index uint32) (*location, bool) {
	in.lapsedLocked()
	p := in.layout[index/pageChunks]
	if p == nil || p.known>>(index%pageChunks)&1 == 0 {
		return nil, false
	}
	return p.chunks[index%pageChunks], true
}

// forgetLayout makes everything about the layout unknown; answers that are under way are not taken either.
func (in *inode) forgetLayout() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.forgetLayoutLocked()
}

func (in *inode) forgetLayoutLocked() {
	clear(in.layout)
	in.layoutGen++
}

// lapsedLocked forgets the layout if the session has lapsed since it was learned. It is called before any of it is used or added to.
func (in *inode) lapsedLocked() {
	if n := in.s.lapses.Load(); n != in.lapses {
		in.lapses = n
		in.forgetLayoutLocked()
	}
}

func (in *inode) layoutGeneration() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.lapsedLocked()
	return in.layoutGen
}

// learnLayout takes an answer that was asked for at generation gen.
func (in *inode) learnLayout(r *msg.LayoutReply, gen uint64) {
	if r == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.lapsedLocked()
	if gen != in.layoutGen {
		return
	}
	stale := make(map[uint32]bool)
	for i, left := r.First, r.Count; left > 0; {
		n := min(left, pageChunks-i%pageChunks)
		p := in.layout[i/pageChunks]
		switch {
		case p == nil:
			p = &page{version: r.Version}
			in.layout[i/pageChunks] = p
		case r.Version < p.version:
			stale[i/pageChunks] = true
		default:
			p.version = r.Version
		}
		if !stale[i/pageChunks] {
			for k := i % pageChunks; k < i%pageChunks+n; k++ {
				p.known |= 1 << k
				p.chunks[k] = nil
			}
		}
		if i+n < i {
			break // the last chunk of the number space
		}
		i, left = i+n, left-n
	}
	for _, ch := range r.Chunks {
		p := in.layout[ch.Index/pageChunks]
		if p == nil || stale[ch.Index/pageChunks] || p.known>>(ch.Index%pageChunks)&1 == 0 {
			continue // outside of what the answer says it covers
		}
		loc := &location{index: ch.Index, chunk: id.ChunkID(ch.Id), epoch: id.Epoch(ch.Epoch), lost: id.Epoch(ch.Lost), replicas: make([]replica, len(ch.Replicas))}
		for i, r := range ch.Replicas {
			loc.replicas[i] = replica{server: id.ServerID(r.Server), addr: r.Addr, joining: r.Joining}
		}
		p.chunks[ch.Index%pageChunks] = loc
	}
}

// flight is a request that others wait for instead of sending their own.
type flight struct {
	index uint32
	alloc bool
}

// once runs f unless the same flight is under way, which is then waited for without result: the caller looks again.
func (in *inode) once(ctx context.Context, key flight, f func() error) error {
	in.mu.Lock()
	if ch, ok := in.flights[key]; ok {
		in.mu.Unlock()
		select {
		case <-ch:
			return nil
		case <-ctx.Done():
			return ended(ctx)
		}
	}
	ch := make(chan struct{})
	in.flights[key] = ch
	in.mu.Unlock()
	defer func() {
		in.mu.Lock()
		delete(in.flights, key)
		in.mu.Unlock()
		close(ch)
	}()
	return f()
}

// fetch learns the layout around a chunk.
func (in *inode) fetch(ctx context.Context, index uint32) error {
	return in.once(ctx, flight{index: index / pageChunks}, func() error {
		if _, known := in.lookup(index); known {
			return nil
		}
		gen := in.layoutGeneration()
		reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_GetLayout{GetLayout: &msg.GetLayout{
			Ino: uint64(in.ino), First: index / pageChunks * pageChunks, Count: pageChunks}}})
		if err != nil {
			return err
		}
		in.learnLayout(reply.GetLayout(), gen)
		return nil
	})
}

// believeHole reports whether a hole found in the layout may be believed. Under a shared-write lease another mount may have
// put a chunk there since, so it is asked for once more, after the caller's operation has begun; then the caller looks again.
// Preconditions: layoutMu is not held.
func (in *inode) believeHole(ctx context.Context, index uint32, asked *bool) (bool, error) {
	if *asked || in.modeNow() != msg.Mode_SHARED_WRITE {
		return true, nil
	}
	in.mu.Lock()
	if p := in.layout[index/pageChunks]; p != nil && p.chunks[index%pageChunks] == nil {
		p.known &^= 1 << (index % pageChunks)
	}
	gen := in.layoutGen
	in.mu.Unlock()
	reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_GetLayout{GetLayout: &msg.GetLayout{
		Ino: uint64(in.ino), First: index, Count: 1}}})
	if err != nil {
		return false, err
	}
	in.learnLayout(reply.GetLayout(), gen)
	*asked = true
	return false, nil
}

// alloc makes a chunk where there is a hole.
func (in *inode) alloc(ctx context.Context, index uint32) error {
	return in.once(ctx, flight{index: index, alloc: true}, func() error {
		if loc, known := in.lookup(index); !known || loc != nil {
			return nil
		}
		gen := in.layoutGeneration()
		reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_AllocChunk{AllocChunk: &msg.AllocChunk{
			Ino: uint64(in.ino), First: index, Count: 1}}})
		if err != nil {
			return err
		}
		in.learnLayout(reply.GetLayout(), gen)
		return nil
	})
}

// drop asks for a failed replica to be taken out of the file's replica sets. It reports false if that is not allowed.
func (in *inode) drop(ctx context.Context, loc *location, server id.ServerID, reason string) (bool, error) {
	if err := in.dropOp.lock(ctx); err != nil {
		return false, err
	}
	defer in.dropOp.unlock()
	if cur, known := in.lookup(loc.index); !known || cur == nil || cur.epoch != loc.epoch || cur.chunk != loc.chunk || !cur.has(server) {
		return true, nil // somebody was faster
	}
	gen := in.layoutGeneration()
	reply, err := in.s.c.do(ctx, in.s, &msg.MetaRequest{Op: &msg.MetaRequest_DropReplica{DropReplica: &msg.DropReplica{
		Ino: uint64(in.ino), Server: uint32(server), Chunk: uint64(loc.chunk), Epoch: uint64(loc.epoch), Reason: reason,
		First: loc.index / pageChunks * pageChunks, Count: pageChunks}}})
	switch fserr.Of(err) {
	case fserr.OK:
	case fserr.TooFew:
		return false, nil
	case fserr.StaleEpoch, fserr.NoChunk, fserr.NotExist: // the set has changed meanwhile, or the chunk is gone
		in.forgetLayout()
		return true, nil
	default:
		return false, err
	}
	in.s.c.log.Warn("replica dropped", "inode", in.ino, "chunk", loc.chunk, "cs", server, "epoch", loc.epoch, "cause", reason)
	in.mu.Lock()
	current := in.layoutGen == gen // else it was forgotten meanwhile, and the answer may be older than that
	in.forgetLayoutLocked()        // in any case: an answer that is still under way may name the replica
	if current {
		gen = in.layoutGen
	}
	in.mu.Unlock()
	in.learnLayout(reply.GetLayout(), gen)
	return true, nil
}
