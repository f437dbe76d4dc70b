package mds

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/state"
)

const (
	createTimeout = 3 * time.Second // one server's answer to ChunkCreate
	createTries   = 4               // placements of one allocation
)

// changeLayout handles a truncate or the drop of a replica: while the inode's layouts are frozen the other holders forget
// theirs.
func (l *leadership) changeLayout(ctx context.Context, req *msg.MetaRequest, ino id.Ino) (decide.Outcome, error) {
	if l.done(req) {
		return l.commit(ctx, req)
	}
	session := id.SessionID(req.Session)
	freeze := freezeLatch(ino, true)
	for {
		if err := l.latches.acquire(ctx, freeze); err != nil {
			return decide.Outcome{}, err
		}
		out := l.decideNow(req)
		if out.Event != nil {
			break
		}
		l.latches.release(freeze)
		if out.Code != fserr.NotReady { // refused, or done by another: nobody is called back for it
			return out, l.confirmRead(ctx)
		}
		if !sleep(ctx, settlePoll) { // the tail that another truncate left is not punched yet
			return decide.Outcome{}, waitError(ctx, "the tail of a truncated file to be punched")
		}
	}
	defer l.latches.release(freeze)
	if d := req.GetDropReplica(); d != nil && !l.soundWithout(id.Ino(d.Ino), id.ServerID(d.Server)) {
		return decide.Outcome{Code: fserr.TooFew}, nil
	}
	if err := l.recallLayouts(ctx, ino, session, req.GetDropReplica() != nil); err != nil {
		return decide.Outcome{}, err
	}
	out, err := l.commit(ctx, req)
	if err == nil && out.Code == fserr.OK {
		if d := req.GetDropReplica(); d != nil && out.Event != nil {
			l.noteDropped(out.Event.GetReplicaDrop())
			l.s.log.Info("replica dropped", "inode", ino, "chunk", id.ChunkID(d.Chunk), "cs", id.ServerID(d.Server), "session", session, "cause", d.Reason)
		}
	}
	return out, err
}

// soundWithout reports whether each of the inode's chunks keeps a replica that has all that was answered, if a server's leaves. One that lost power
// and was not made equal since may not, and the server's may be the only one that does, though it is away. Who is told no asks again.
func (l *leadership) soundWithout(ino id.Ino, server id.ServerID) bool {
	var chunks []*state.Chunk
	l.s.fsm.view(func(st *state.State) {
		st.Chunks(ino, 0, chunk.MaxFileSize/chunk.Size, func(c *state.Chunk) bool {
			if r, ok := c.Find(server); ok && !r.Joining && c.InSync() > 1 {
				chunks = append(chunks, c)
			}
			return true
		})
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range chunks {
		u := l.unclean[c.ID]
		if u == nil || len(u.servers) == 0 {
			continue
		}
		lacks := func(of id.ServerID) bool {
			has, unclean := u.servers[of]
			return unclean && has != hasAnswered
		}
		sound := lacks(server)
		for i := range c.InSync() {
			o := c.Replica(i).Server
			sound = sound || o != server && !lacks(o)
		}
		if !sound {
			return false
		}
	}
	return true
}

// noteDropped remembers what copies the server of the event was left with, to be brought up to date as soon as it is heard from again: who
// dropped it may have met a server that answers nobody, which the leader does not know yet.
func (l *leadership) noteDropped(ev *event.ReplicaDrop) {
	var chunks []*state.Chunk
	l.s.fsm.view(func(st *state.State) {
		for _, e := range ev.GetChunks() {
			if c, ok := st.Chunk(id.Ino(ev.Ino), e.Index); ok {
				chunks = append(chunks, c)
			}
		}
	})
	server := id.ServerID(ev.GetServer())
	l.noteStale(server, chunks...)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.servers[server]; c != nil {
		c.doubted = bootNow()
		l.unsited.Add(1)
	}
}

// recallLayouts returns when no holder but session uses a layout of the inode. members says that only replica sets are to change.
func (l *leadership) recallLayouts(ctx context.Context, ino id.Ino, session id.SessionID, members bool) error {
	var others []state.Lease
	l.s.fsm.view(func(st *state.State) {
		st.Leases(ino, func(h state.Lease) bool {
			if h.Session != session {
				others = append(others, h)
			}
			return true
		})
	})
	return together(others, func(h state.Lease) error {
		_, err := l.callback(ctx, h.Session, &msg.Callback{Kind: msg.Callback_LAYOUT, Ino: uint64(ino), Lease: uint64(h.Index), Members: members})
		return err
	})
}

// withoutLayouts runs change while layouts of the inode are frozen and nobody uses one. By that a replica leaves a set of which the leader
// itself takes it out: a session that knew the old set could go on reading there, when the server is back.
func (l *leadership) withoutLayouts(ctx context.Context, ino id.Ino, change func() error) error {
	freeze := freezeLatch(ino, true)
	if err := l.latches.acquire(ctx, freeze); err != nil {
		return err
	}
	defer l.latches.release(freeze)
	if err := l.recallLayouts(ctx, ino, 0, true); err != nil {
		return err
	}
	return change()
}

// holdLayouts returns, with the latch that keeps layouts of the inode as they are, when asker may have one. While the tail that a truncate
// left is not punched only the session that punches it may: what another wrote there would be punched too.
func (l *leadership) holdLayouts(ctx context.Context, ino id.Ino, asker id.SessionID) ([]decide.Latch, error) {
	var w *waits.Wait
	defer func() { w.End() }()
	for {
		freeze := freezeLatch(ino, false)
		if err := l.latches.acquire(ctx, freeze); err != nil {
			return nil, err
		}
		if !l.punchedByAnother(ino, asker) {
			return freeze, nil
		}
		l.latches.release(freeze)
		if w == nil {
			w = l.s.waits.For("the tail of a truncated file to be punched by the client that truncated it", "inode", ino, "session", l.puncher(ino))
		}
		l.oustHolders(ino, "it owes the punch of a file that another client uses")
		if !sleep(ctx, settlePoll) {
			return nil, waitError(ctx, "the tail of a truncated file to be punched")
		}
	}
}

// punchedByAnother reports whether a punch is pending that another session is known to owe.
func (l *leadership) punchedByAnother(ino id.Ino, asker id.SessionID) bool {
	owner := l.puncher(ino)
	return owner != 0 && owner != asker && asker != 0
}

// writeDone tells the other holders what was written, so that nothing older is in their caches when the writer is answered.
func (l *leadership) writeDone(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	out, err := l.commit(ctx, req)
	if err != nil || out.Code != fserr.OK {
		return out, err
	}
	w := req.GetWriteDone()
	return out, l.invalidateOthers(ctx, id.SessionID(req.Session), id.Ino(w.Ino), w.Offset, w.Length)
}

// truncate sets a size. The other holders forget what they know of it once more when it is set: one that asked for the size since its layout was
// called back was told the old one.
func (l *leadership) truncate(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	a := req.GetSetAttr()
	out, err := l.changeLayout(ctx, req, id.Ino(a.Ino))
	if err != nil || out.Code != fserr.OK {
		return out, err
	}
	return out, l.invalidateOthers(ctx, id.SessionID(req.Session), id.Ino(a.Ino), *a.Size, 0)
}

// invalidateOthers has the holders but one forget bytes of a file, all behind offset if length is 0, and its size.
func (l *leadership) invalidateOthers(ctx context.Context, but id.SessionID, ino id.Ino, offset, length uint64) error {
	var others []state.Lease
	l.s.fsm.view(func(st *state.State) {
		st.Leases(ino, func(h state.Lease) bool {
			if h.Session != but {
				others = append(others, h)
			}
			return true
		})
	})
	return together(others, func(h state.Lease) error {
		_, err := l.callback(ctx, h.Session, &msg.Callback{
			Kind: msg.Callback_INVALIDATE, Ino: uint64(ino), Lease: uint64(h.Index), Mode: msg.Mode_SHARED_WRITE, Offset: offset, Length: length})
		return err
	})
}

// alloc makes chunks: their files are there on all chosen servers before the event is proposed.
func (l *leadership) alloc(ctx context.Context, req *msg.MetaRequest) (decide.Outcome, error) {
	freeze := freezeLatch(id.Ino(req.GetAllocChunk().Ino), false)
	if err := l.latches.acquire(ctx, freeze); err != nil {
		return decide.Outcome{}, err
	}
	defer l.latches.release(freeze)
	l.awaitServers(ctx, id.Ino(req.GetAllocChunk().Ino))
	settle := l.allocating()
	tries, proposed := 0, false
	out, err := l.commitWith(ctx, req, func(ctx context.Context, ev *event.Event) ([]id.ServerID, error) {
		a := ev.GetChunkAlloc()
		if a == nil {
			return nil, nil
		}
		failed := l.createChunks(ctx, a)
		if len(failed) == 0 {
			proposed = true
			return nil, nil
		}
		l.deleteChunks(a)
		if tries++; tries >= createTries || ctx.Err() != nil {
			return nil, fmt.Errorf("chunk servers %v did not create chunks for inode %d: %w", failed, a.Ino, fserr.Unavailable)
		}
		return failed, nil
	})
	if err == nil || !proposed { // else it may be in the log yet
		settle()
	}
	return out, err
}

// allocating notes that numbers of chunks are given out from here on of which the state does not know yet. Call settle when it does, or never will.
func (l *leadership) allocating() (settle func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := id.ChunkID(l.nextChunk.Load())
	l.given[from]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.given[from]--; l.given[from] == 0 {
			delete(l.given, from)
		}
	}
}

// unsettled returns the lowest number of a chunk that an allocation under way may have given out, or the next one will.
func (l *leadership) unsettled() id.ChunkID {
	l.mu.Lock()
	defer l.mu.Unlock()
	least := id.ChunkID(l.nextChunk.Load())
	for from := range l.given {
		least = min(least, from)
	}
	return least
}

// createChunks returns the servers that failed.
func (l *leadership) createChunks(ctx context.Context, a *event.ChunkAlloc) []id.ServerID {
	type one struct {
		server id.ServerID
		entry  *event.ChunkAlloc_Entry
	}
	var all []one
	for _, e := range a.Chunks {
		for _, server := range e.Servers {
			all = append(all, one{id.ServerID(server), e})
		}
	}
	var mu sync.Mutex
	var failed []id.ServerID
	together(all, func(o one) error { // the failures are in failed
		err := l.askServer(ctx, o.server, createTimeout, wire.ChunkCreate, &msg.ChunkCreate{Chunk: o.entry.Id, Epoch: o.entry.Epoch}, nil)
		if err != nil {
			l.s.log.Warn("chunk not created", "cs", o.server, "chunk", id.ChunkID(o.entry.Id), "err", err)
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(failed, o.server) {
				failed = append(failed, o.server)
			}
		}
		return nil
	})
	return failed
}

// deleteChunks removes what an allocation that came to nothing has created, where it can. What stays is removed as if it were
// reported.
func (l *leadership) deleteChunks(a *event.ChunkAlloc) {
	at := make(map[id.ServerID][]uint64)
	for _, e := range a.Chunks {
		for _, server := range e.Servers {
			at[id.ServerID(server)] = append(at[id.ServerID(server)], e.Id)
		}
	}
	for server, chunks := range at {
		l.spawn(func() {
			if err := l.askServer(l.ctx, server, createTimeout, wire.ChunkDelete, &msg.ChunkDelete{Chunks: chunks}, nil); err != nil {
				l.s.log.Debug("chunks of a failed allocation are deleted later", "cs", server, "err", err)
				l.noteUnknown(server, chunks)
			}
		})
	}
}
