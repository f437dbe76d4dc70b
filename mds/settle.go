package mds

import (
	"context"
	"errors"
	"fmt"
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
	settlePoll   = 20 * time.Millisecond
	punchTimeout = 5 * time.Second // one replica's answer to ChunkPunch
)

var errPuncherAlive = errors.New("whoever truncated the file has not punched it yet")

// settle does what a client that died left behind on the inode, so that a lease may be granted: it punches the
// tail of a truncate, and makes the replicas of each chunk follow one of them. The caller holds the grant latch.
func (l *leadership) settle(ctx context.Context, ino id.Ino, asker id.SessionID) error {
	var w *waits.Wait
	defer func() { w.End() }()
	for {
		err := l.settleOnce(ctx, ino, true)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errPuncherAlive) && !errors.Is(err, fserr.NotReady) {
			return err
		}
		if w == nil {
			w = l.s.waits.For("what a client that died left on a file to be settled", "inode", ino)
		}
		if !sleep(ctx, settlePoll) {
			return fmt.Errorf("inode %v for session %v: %w", ino, asker, errors.Join(waitError(ctx, "the inode to be settled"), err))
		}
	}
}

// settleBehind is settle without anybody who waits for it.
func (l *leadership) settleBehind(ino id.Ino) {
	ctx, cancel := context.WithTimeout(l.ctx, l.s.o.RequestTimeout)
	defer cancel()
	grant := grantLatch(ino)
	if err := l.latches.acquire(ctx, grant); err != nil {
		return
	}
	defer l.latches.release(grant)
	if err := l.settleOnce(ctx, ino, false); err != nil && l.ctx.Err() == nil {
		l.s.log.Debug("inode not settled yet", "inode", ino, "err", err)
	}
}

// settleOnce tries once. wanted: somebody waits for it, for whom a session that lapsed has to go.
func (l *leadership) settleOnce(ctx context.Context, ino id.Ino, wanted bool) error {
	var unsettled, punch bool
	var tail state.PendingPunch
	l.s.fsm.view(func(st *state.State) {
		if n, ok := st.Inode(ino); ok {
			unsettled = n.Unsettled()
			tail, punch = n.Punch()
		}
	})
	if punch && l.puncherAlive(ino, wanted) {
		return errPuncherAlive
	}
	if !unsettled && !punch {
		return nil
	}
	if err := l.awaitFences(ctx); err != nil {
		return err
	}
	if punch {
		if err := l.punchTail(ctx, ino, tail); err != nil {
			return err
		}
	}
	if unsettled {
		return l.settleChunks(ctx, ino)
	}
	return nil
}

// puncherAlive reports whether the session that truncated the inode may still punch it. Events of older versions do not say which one it
// is: any that holds it for writing.
func (l *leadership) puncherAlive(ino id.Ino, wanted bool) bool {
	if owner := l.puncher(ino); owner != 0 {
		x, ok := l.alive(owner)
		if ok && wanted {
			l.oust(x, "it owes the punch of a file that another client opens")
		}
		return ok
	}
	alive := false
	l.s.fsm.view(func(st *state.State) {
		st.Leases(ino, func(h state.Lease) bool {
			alive = alive || h.Want == msg.Want_WANT_WRITE
			return true
		})
	})
	if alive && wanted {
		l.oustHolders(ino, "it may owe the punch of a file that another client opens")
	}
	return alive
}

// puncher returns the session that owes the punch of the inode's tail, 0 if that is not known.
func (l *leadership) puncher(ino id.Ino) (owner id.SessionID) {
	l.s.fsm.view(func(st *state.State) { owner = st.Puncher(ino) })
	return owner
}

// punchTail punches what a truncate left on all replicas, for the client that should have.
func (l *leadership) punchTail(ctx context.Context, ino id.Ino, tail state.PendingPunch) error {
	freeze := freezeLatch(ino, true)
	if err := l.latches.acquire(ctx, freeze); err != nil {
		return err
	}
	defer l.latches.release(freeze)
	// A replica that does not punch is dropped, and the rest are asked again at the next epoch, all under one freeze: if repair
	// could bring it back in between, a server that refuses to punch would go in and out of the set for ever.
	for again := true; again; {
		var err error
		if again, err = l.punchOnce(ctx, ino, tail); err != nil {
			return err
		}
	}
	latch := []decide.Latch{{Kind: decide.LatchInode, A: uint64(ino), Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return err
	}
	defer l.latches.release(latch)
	var now state.PendingPunch
	var pending bool
	l.s.fsm.view(func(st *state.State) {
		if n, ok := st.Inode(ino); ok {
			now, pending = n.Punch()
		}
	})
	if !pending || now != tail {
		return nil
	}
	err := l.propose(&event.Event{Body: &event.Event_PunchDone{PunchDone: &event.PunchDone{Ino: uint64(ino)}}}, "punched for a dead client")
	if err == nil {
		l.s.log.Info("tail punched for a dead client", "inode", ino, "chunk", tail.Index)
	}
	return err
}

// punchOnce has the tail punched on the replicas of the chunk. It reports true when it has dropped one that did not and the
// others are to be asked again, which happens at most once for each.
func (l *leadership) punchOnce(ctx context.Context, ino id.Ino, tail state.PendingPunch) (again bool, err error) {
	var c *state.Chunk
	l.s.fsm.view(func(st *state.State) { c, _ = st.Chunk(ino, tail.Index) })
	if c == nil {
		return false, nil
	}
	req := &msg.ChunkPunch{Chunk: uint64(c.ID), Epoch: uint64(c.Epoch()), From: tail.From, To: chunk.Size}
	for i := range c.Len() {
		r := c.Replica(i)
		err := l.askServer(ctx, r.Server, punchTimeout, wire.ChunkPunch, req, nil)
		if err == nil {
			continue
		}
		if lerr := l.recallLayouts(ctx, ino, 0, true); lerr != nil { // see withoutLayouts
			return false, lerr
		}
		if derr := l.dropReplica(ctx, c.ID, r.Server, "did not punch: "+err.Error()); derr != nil {
			return false, derr
		}
		var now *state.Chunk
		l.s.fsm.view(func(st *state.State) { now, _ = st.Chunk(ino, tail.Index) })
		if now != nil && now.Len() == c.Len() { // not allowed: it is the last one
			return false, fmt.Errorf("punch of chunk %v: %w: %w", c.ID, fserr.NotReady, err)
		}
		return true, nil
	}
	return false, nil
}

// settleChunks keeps one in-sync replica of each chunk and has the others join again from it.
func (l *leadership) settleChunks(ctx context.Context, ino id.Ino) error {
	var chunks []*state.Chunk
	l.s.fsm.view(func(st *state.State) {
		st.Chunks(ino, 0, chunk.MaxFileSize/chunk.Size, func(c *state.Chunk) bool {
			chunks = append(chunks, c)
			return true
		})
	})
	for _, c := range chunks {
		if err := l.settleChunk(ctx, c); err != nil {
			return err
		}
	}
	latch := []decide.Latch{{Kind: decide.LatchInode, A: uint64(ino), Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return err
	}
	defer l.latches.release(latch)
	var unsettled bool
	l.s.fsm.view(func(st *state.State) {
		n, ok := st.Inode(ino)
		unsettled = ok && n.Unsettled()
	})
	if !unsettled {
		return nil
	}
	err := l.propose(&event.Event{Body: &event.Event_Settled{Settled: &event.Settled{Ino: uint64(ino)}}}, "replicas follow one")
	if err == nil {
		l.s.log.Info("inode settled", "inode", ino, "chunks", len(chunks))
	}
	return err
}

func (l *leadership) settleChunk(ctx context.Context, c *state.Chunk) error {
	if c.InSync() < 2 {
		return nil
	}
	source := l.liveInSync(c, 0)
	if source == 0 {
		return fmt.Errorf("chunk %v: no in-sync replica is live: %w", c.ID, fserr.NotReady)
	}
	for i := range c.InSync() {
		target := c.Replica(i).Server
		if target == source {
			continue
		}
		epoch, err := l.join(ctx, c.ID, target, source, "its writer died")
		if epoch == 0 {
			return fmt.Errorf("chunk %v changed while it was settled: %w", c.ID, errors.Join(fserr.NotReady, err))
		}
		if err != nil { // it is joining all the same; repair has it join again
			l.s.log.Warn("replica of a dead writer's chunk did not join yet", "chunk", c.ID, "cs", target, "err", err)
		}
	}
	return nil
}
