package mds

import (
	"context"
	"fmt"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// uncleanChunk is a chunk with in-sync replicas on servers that crashed.
type uncleanChunk struct {
	since   time.Duration // bootNow
	servers map[id.ServerID]trust
	busy    bool // it is being promoted late
}

// trust says what an unclean copy has.
type trust uint8

const (
	hasUnknown  trust = iota // it missed its promotion, and cannot be accepted
	hasFlushed               // what was flushed: its machine lost power
	hasAnswered              // all that was ever answered: only the process died
)

// chunkReport takes one page of what a chunk server holds. With the last one the server is ready.
func (l *leadership) chunkReport(ctx context.Context, conn *wire.Conn, p *peer, req *msg.ChunkReport) (*msg.ChunkReportReply, error) {
	server := id.ServerID(p.server.Load())
	l.mu.Lock()
	c := l.servers[server]
	if c == nil || c.conn != conn || c.reported == nil {
		l.mu.Unlock()
		return nil, fmt.Errorf("report of a chunk server that is not registering: %w", fserr.NotReady)
	}
	c.heard = bootNow()
	if len(c.reported)+len(req.Chunks) > maxReportChunks {
		l.mu.Unlock()
		return nil, fmt.Errorf("report of more than %d chunks: %w", maxReportChunks, fserr.Unavailable)
	}
	for _, k := range req.Chunks {
		c.reported[id.ChunkID(k.Id)] = chunkCopy{epoch: id.Epoch(k.Epoch), unclean: k.Unclean, joining: k.Joining, power: k.Power}
	}
	all := c.reported
	l.mu.Unlock()
	if !req.Last {
		return &msg.ChunkReportReply{}, nil
	}
	if err := l.confirmRead(ctx); err != nil {
		return nil, err
	}
	v := l.judge(server, all)
	if err := l.dropMissing(ctx, server, v.missing); err != nil {
		return nil, err
	}
	now := bootNow()
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.conn != conn {
		return nil, fmt.Errorf("%v registered again: %w", server, fserr.NotReady)
	}
	for k, epoch := range c.stale { // noted since it registered: perhaps of a drop that was not in the state yet that judge has seen
		if _, has := all[k]; has {
			v.stale[k] = epoch
		}
	}
	c.reported, c.stale = nil, v.stale
	for _, k := range v.unknown {
		key := copyKey{server, k}
		if _, ok := l.unknown[key]; !ok && len(l.unknown) < maxStaleCopies {
			l.unknown[key] = now
		}
	}
	unclean := func(k id.ChunkID) *uncleanChunk {
		u := l.unclean[k]
		if u == nil {
			u = &uncleanChunk{since: now, servers: make(map[id.ServerID]trust)}
			l.unclean[k] = u
		}
		return u
	}
	for _, k := range v.unclean {
		if unclean(k).servers[server] = hasAnswered; all[k].power {
			unclean(k).servers[server] = hasFlushed
		}
	}
	for _, k := range v.clean {
		if u := l.unclean[k]; u != nil {
			delete(u.servers, server)
		}
	}
	c.ready = true
	for _, k := range v.promote {
		u := unclean(k.ID)
		u.servers[server], u.busy = hasUnknown, true
		l.spawnLocked(func() { l.promoteLate(server, k, all[k.ID].epoch) })
	}
	l.unsited.Add(1)
	l.forgetFailures(server)
	l.planSoonLocked()
	l.s.log.Info("chunk server ready", "cs", server, "chunks", len(all), "unclean", len(v.unclean), "stale", len(v.stale),
		"unknown", len(v.unknown), "missing", len(v.missing))
	return &msg.ChunkReportReply{}, nil
}

// verdict is what a report means.
type verdict struct {
	stale          map[id.ChunkID]id.Epoch // old copies
	unknown        []id.ChunkID            // not in the state
	clean, unclean []id.ChunkID            // in-sync replicas
	promote        []*state.Chunk          // in sync in the state, still joining there
	missing        []*state.Chunk          // in sync in the state, not there
}

func (l *leadership) judge(server id.ServerID, all map[id.ChunkID]chunkCopy) verdict {
	v := verdict{stale: make(map[id.ChunkID]id.Epoch)}
	st := l.s.fsm.clone()
	for k, have := range all {
		c, ok := st.ChunkByID(k)
		if !ok {
			if !st.IsGarbage(server, k) { // else the garbage collector deletes it
				v.unknown = append(v.unknown, k)
			}
			continue
		}
		r, ok := c.Find(server)
		switch {
		case !ok && len(v.stale) < maxServerStale:
			v.stale[k] = have.epoch
		case !ok, r.Joining: // the planner joins it again
		case have.unclean:
			v.unclean = append(v.unclean, k)
		case have.joining:
			v.promote = append(v.promote, c)
		default:
			v.clean = append(v.clean, k)
		}
	}
	st.ChunksOf(server, func(c *state.Chunk) bool {
		if _, ok := all[c.ID]; !ok {
			if r, _ := c.Find(server); !r.Joining {
				v.missing = append(v.missing, c)
			}
		}
		return true
	})
	return v
}

// dropMissing takes the server out of the replica sets of chunks that it does not have, where another replica is in sync.
func (l *leadership) dropMissing(ctx context.Context, server id.ServerID, missing []*state.Chunk) error {
	return together(missing, func(c *state.Chunk) error {
		return l.dropReplica(ctx, c.ID, server, "the server does not have it")
	})
}

// dropReplica removes the server from the chunk's replica set, if another replica is in sync.
func (l *leadership) dropReplica(ctx context.Context, k id.ChunkID, server id.ServerID, reason string) error {
	c, release, err := l.latchChunk(ctx, k)
	if err != nil || c == nil {
		return err
	}
	defer release()
	r, ok := c.Find(server)
	if !ok {
		return nil
	}
	if !r.Joining && c.InSync() == 1 {
		l.s.log.Error("the only in-sync replica of a chunk is lost", "chunk", k, "inode", c.Ino, "cs", server, "cause", reason)
		return nil
	}
	err = l.propose(&event.Event{Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{Ino: uint64(c.Ino), Server: uint32(server),
		Chunks: []*event.ReplicaDrop_Entry{{Index: c.Index(), Epoch: uint64(c.Epoch()) + 1}}}}}, reason)
	if err == nil {
		l.noteStale(server, c)
		l.s.log.Info("replica dropped", "chunk", k, "inode", c.Ino, "cs", server, "epoch", c.Epoch()+1, "cause", reason)
	}
	return err
}

// promoteLate finishes the join of a replica that missed its end: by telling it, or, if it does not remember the join well enough, by
// another one. The join that made it in sync was at its own epoch, which the set may have left behind since. If there is nobody to copy
// from, resolveUnclean has it join again as soon as there is.
func (l *leadership) promoteLate(server id.ServerID, c *state.Chunk, epoch id.Epoch) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if u := l.unclean[c.ID]; u != nil {
			u.busy = false
		}
	}()
	err := l.askServer(l.ctx, server, joinTimeout, wire.ChunkPromote, &msg.ChunkPromote{Chunk: uint64(c.ID), Epoch: uint64(epoch)}, nil)
	if err == nil {
		l.cleaned(c.ID, server)
		return
	}
	source := l.liveInSync(c, server)
	if source == 0 {
		l.s.log.Warn("replica not promoted, and no other to copy from yet", "chunk", c.ID, "cs", server, "err", err)
		return
	}
	if _, err := l.join(l.ctx, c.ID, server, source, "missed its promotion"); err != nil && l.ctx.Err() == nil {
		l.s.log.Warn("replica not joined again", "chunk", c.ID, "cs", server, "err", err)
	}
}

// liveInSync returns the first in-sync replica on a live server other than not, 0 if there is none.
func (l *leadership) liveInSync(c *state.Chunk, not id.ServerID) id.ServerID {
	for i := range c.InSync() {
		if r := c.Replica(i); r.Server != not && l.isLive(r.Server) && !l.isUnclean(c.ID, r.Server) {
			return r.Server
		}
	}
	return 0
}

func (l *leadership) isUnclean(k id.ChunkID, server id.ServerID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.unclean[k]
	if u == nil {
		return false
	}
	_, unclean := u.servers[server]
	return unclean
}

// maxResolving bounds the unclean chunks that are looked after at once.
const maxResolving = 32

// resolveUnclean decides about chunks with unclean in-sync replicas: those with a clean live one are rebuilt from it; where
// all are unclean the lowest server of those that did not lose power is the truth, or else the lowest of all. It waits for servers that are not there yet, for a while.
func (l *leadership) resolveUnclean() {
	now := bootNow()
	var due []id.ChunkID
	l.mu.Lock()
	ages := make(map[id.ChunkID]bool)
	for k, u := range l.unclean {
		if len(u.servers) == 0 {
			delete(l.unclean, k)
		} else if !u.busy && len(due) < maxResolving*4 {
			due = append(due, k)
			ages[k] = now-u.since > l.s.o.UncleanWait
		}
	}
	l.mu.Unlock()
	together(due, func(k id.ChunkID) error { // failures are tried again
		l.resolveOne(k, ages[k])
		return nil
	})
}

func (l *leadership) resolveOne(k id.ChunkID, waited bool) {
	var c *state.Chunk
	l.s.fsm.view(func(st *state.State) { c, _ = st.ChunkByID(k) })
	if c == nil {
		l.mu.Lock()
		delete(l.unclean, k)
		l.mu.Unlock()
		return
	}
	var clean, unclean, absent []id.ServerID
	acceptable := make(map[trust][]id.ServerID)
	for i := range c.InSync() {
		server := c.Replica(i).Server
		switch {
		case !l.isLive(server):
			absent = append(absent, server)
		case l.isUnclean(k, server):
			unclean = append(unclean, server)
		default:
			clean = append(clean, server)
		}
	}
	l.mu.Lock()
	if u := l.unclean[k]; u != nil {
		for server, has := range u.servers {
			switch r, member := c.Find(server); {
			case !member || r.Joining: // dropped, or joining by now: the planner's concern
				delete(u.servers, server)
			case has != hasUnknown && slices.Contains(unclean, server):
				acceptable[has] = append(acceptable[has], server)
			}
		}
	}
	l.mu.Unlock()
	if len(unclean) == 0 || len(absent) > 0 && !waited || len(clean)+len(acceptable) == 0 {
		return
	}
	var truth id.ServerID
	switch {
	case len(clean) > 0:
		truth = clean[0]
	case len(acceptable[hasAnswered]) > 0:
		if truth = slices.Min(acceptable[hasAnswered]); !l.accept(k, truth, absent, hasAnswered) {
			return
		}
	default:
		if truth = slices.Min(acceptable[hasFlushed]); !l.accept(k, truth, absent, hasFlushed) {
			return
		}
	}
	for _, server := range unclean {
		if server == truth {
			continue
		}
		epoch, err := l.join(l.ctx, k, server, truth, "unclean after a crash")
		if err != nil && l.ctx.Err() == nil {
			l.s.log.Warn("unclean replica not joined again", "chunk", k, "cs", server, "err", err)
		}
		if err == nil && epoch != 0 { // 0: the set has changed, by which the truth may be out of it
			l.cleaned(k, server)
		}
	}
}

// accept makes an unclean replica the truth. The absent ones, whose bytes may be others, follow it when they are back; that is recorded
// first, so that none of them is taken for its equal meanwhile. If it may lack what was not flushed, that is recorded too, with the next
// epoch, before it serves: whoever wrote before that epoch learns of it with the layout that he needs to flush.
func (l *leadership) accept(k id.ChunkID, truth id.ServerID, absent []id.ServerID, has trust) bool {
	for _, server := range absent {
		epoch, err := l.join(l.ctx, k, server, truth, "absent when an unclean replica was accepted")
		if epoch == 0 {
			l.s.log.Warn("absent replica not joined again", "chunk", k, "cs", server, "err", err)
			return false
		}
	}
	req := &msg.ChunkAccept{Chunks: []uint64{uint64(k)}}
	if has == hasFlushed {
		epoch, err := l.acceptEvent(k, truth)
		if epoch == 0 {
			if err != nil && l.ctx.Err() == nil {
				l.s.log.Warn("unclean replica not accepted", "chunk", k, "cs", truth, "err", err)
			}
			return false
		}
		req.Epochs = []uint64{uint64(epoch)}
	}
	if err := l.askServer(l.ctx, truth, joinTimeout, wire.ChunkAccept, req, nil); err != nil {
		l.s.log.Warn("unclean replica not accepted", "chunk", k, "cs", truth, "err", err)
		return false
	}
	if has == hasFlushed {
		l.s.log.Warn("every replica of a chunk lost power: what was not flushed may be gone", "chunk", k, "cs", truth)
	} else {
		l.s.log.Debug("unclean replica accepted", "chunk", k, "cs", truth)
	}
	l.cleaned(k, truth)
	return true
}

// acceptEvent records that what was not flushed may be gone, unless that was recorded at the epoch that the set still has. It returns the
// epoch, 0 if the chunk is gone or the server not in sync with it.
func (l *leadership) acceptEvent(k id.ChunkID, truth id.ServerID) (id.Epoch, error) {
	c, release, err := l.latchChunk(l.ctx, k)
	if err != nil || c == nil {
		return 0, err
	}
	defer release()
	if r, ok := c.Find(truth); !ok || r.Joining {
		return 0, nil
	}
	var lost id.Epoch
	l.s.fsm.view(func(st *state.State) { lost = st.Lost(k) })
	if lost == c.Epoch() {
		return lost, nil
	}
	epoch := c.Epoch() + 1
	return epoch, l.propose(&event.Event{Body: &event.Event_ReplicaAccept{ReplicaAccept: &event.ReplicaAccept{
		Chunk: uint64(k), Server: uint32(truth), Epoch: uint64(epoch)}}}, "every replica lost power")
}

// cleaned notes that the replica is not a concern of resolveUnclean any more.
func (l *leadership) cleaned(k id.ChunkID, server id.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.unclean[k]; u != nil {
		delete(u.servers, server)
	}
}
