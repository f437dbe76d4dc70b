package mds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/plan"
	"varve/mds/settings"
	"varve/mds/state"
)

const (
	maxTidy          = 16                    // drops and removals of replicas under way beside rebuilds
	urgentShare      = 4                     // the part, 1 in so many, of the grace of a chunk that has one replica left
	replanPause      = 20 * time.Millisecond // after a step that has ended
	replanSweep      = 4096                  // chunks that lack nothing looked at then
	repairReserve    = 4 * chunk.Size        // bytes that stay free on a target, but on a small disk (plan.KeepsFree)
	joinTimeout      = 5 * time.Second       // a server's answer to ChunkJoin, ChunkAdopt, ChunkPromote, ChunkAccept
	rebuildTimeout   = 30 * time.Minute      // one chunk
	backoffFirst     = time.Second           // after a rebuild that failed
	backoffMax       = time.Minute
	garbageBatch     = 1024 // chunks in one ChunkDelete
	garbageTimeout   = 30 * time.Second
	minServersToLose = 2 // a server is given up only if others are live
)

// backoff is when a rebuild that failed is tried again.
type backoff struct {
	until          time.Duration // bootNow
	next           time.Duration
	target, source id.ServerID // of the last one
}

// forgetFailures has what failed on a server tried again without delay, now that it is back. The caller holds l.mu.
func (l *leadership) forgetFailures(server id.ServerID) {
	for k, b := range l.retry {
		if b.target == server || b.source == server {
			delete(l.retry, k)
		}
	}
}

// latchChunk returns the chunk, which does not change until release; nil if it is gone.
func (l *leadership) latchChunk(ctx context.Context, k id.ChunkID) (_ *state.Chunk, release func(), _ error) {
	look := func() (c *state.Chunk) {
		l.s.fsm.view(func(st *state.State) { c, _ = st.ChunkByID(k) })
		return c
	}
	c := look()
	if c == nil {
		return nil, nil, nil
	}
	latches := withMembership([]decide.Latch{{Kind: decide.LatchLayout, A: uint64(c.Ino), Exclusive: true}})
	if err := l.latches.acquire(ctx, latches); err != nil {
		return nil, nil, err
	}
	if c = look(); c == nil {
		l.latches.release(latches)
		return nil, nil, nil
	}
	return c, func() { l.latches.release(latches) }, nil
}

// join makes target a joining replica at the next epoch: first by an event, then at the target, which from then on notes what is
// written, then at the source, which from then on refuses the old epoch. No layout is handed out meanwhile, so that no write of
// the new epoch comes before the target knows it. It returns the epoch of the event, 0 if there is none because the chunk is gone
// or has changed, or with the error that kept it back.
func (l *leadership) join(ctx context.Context, k id.ChunkID, target, source id.ServerID, reason string) (id.Epoch, error) {
	var ino id.Ino
	l.s.fsm.view(func(st *state.State) {
		if c, ok := st.ChunkByID(k); ok {
			ino = c.Ino
		}
	})
	if ino == 0 {
		return 0, nil
	}
	freeze := freezeLatch(ino, true)
	if err := l.latches.acquire(ctx, freeze); err != nil {
		return 0, err
	}
	defer l.latches.release(freeze)
	epoch, err := l.joinEvent(ctx, k, target, source, reason)
	if err != nil || epoch == 0 {
		return 0, err
	}
	if !l.isLive(target) { // it joins when it is back
		return epoch, l.adopt(ctx, k, source, epoch)
	}
	err = l.askServer(ctx, target, joinTimeout, wire.ChunkJoin, &msg.ChunkJoin{Chunk: uint64(k), Epoch: uint64(epoch)}, nil)
	if err != nil {
		return epoch, errors.Join(err, l.adopt(ctx, k, source, epoch))
	}
	return epoch, l.adopt(ctx, k, source, epoch)
}

func (l *leadership) adopt(ctx context.Context, k id.ChunkID, source id.ServerID, epoch id.Epoch) error {
	return l.askServer(ctx, source, joinTimeout, wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: uint64(k), Epoch: uint64(epoch)}, nil)
}

func (l *leadership) joinEvent(ctx context.Context, k id.ChunkID, target, source id.ServerID, reason string) (id.Epoch, error) {
	c, release, err := l.latchChunk(ctx, k)
	if err != nil || c == nil {
		return 0, err
	}
	defer release()
	if r, ok := c.Find(source); !ok || r.Joining || source == target {
		return 0, nil
	}
	if _, ok := c.Find(target); !ok && c.Len() >= state.MaxReplicas {
		return 0, nil
	}
	epoch := c.Epoch() + 1
	err = l.propose(&event.Event{Body: &event.Event_ReplicaJoin{ReplicaJoin: &event.ReplicaJoin{
		Chunk: uint64(k), Server: uint32(target), Epoch: uint64(epoch)}}}, reason)
	return epoch, err
}

// repair runs the planner and starts what it says.
func (l *leadership) repair() {
	l.forgetFenced()
	l.endStandby(l.s.fsm.clone())
	l.giveUpLost()
	l.giveUpLast()
	st := l.s.fsm.clone()
	now := bootNow()
	l.noteShort(st, now)
	l.mendBad(st, now)
	l.endDrains(st)
	l.planNext(st, now, 0)
}

// planSoonLocked has the planner run again, now that something has ended or a server has come back. The caller holds l.mu.
func (l *leadership) planSoonLocked() {
	if !l.replan.Swap(true) {
		l.spawnLocked(func() {
			defer l.replan.Store(false)
			l.planOn()
		})
	}
}

// planOn plans again when something has ended, if there is more to do.
func (l *leadership) planOn() {
	if !sleep(l.ctx, replanPause) {
		return
	}
	l.planNext(l.s.fsm.clone(), bootNow(), replanSweep)
}

// planNext asks the planner and starts what it says. sweep is how many chunks that lack nothing it looks at, 0: many.
func (l *leadership) planNext(st *state.State, now time.Duration, sweep int) {
	l.planning.Lock()
	defer l.planning.Unlock()
	most, perServer := l.rebuildLimits(st)
	away := l.standbyAway(st)
	l.mu.Lock()
	joins := most - l.joins
	tidy := maxTidy - (len(l.jobs) - l.joins)
	l.mu.Unlock()
	if joins <= 0 && tidy <= 0 {
		return
	}
	joins, tidy = max(joins, 0), max(tidy, 0)
	out := l.planner.Next(plan.Input{
		State: st, Servers: l.views(st), Now: now,
		Budget: plan.Budget{Actions: joins + tidy, Joins: orNone(joins), PerServer: perServer, Reserve: repairReserve, Sweep: sweep},
		Hold:   func(c *state.Chunk) plan.Hold { return l.hold(st, c, now, away) },
	})
	l.warn(out, now)
	for _, a := range out.Actions {
		left := &tidy
		if a.Kind == plan.Join {
			left = &joins
		}
		if *left > 0 && l.start(st, a, now) {
			*left--
		}
	}
}

// orNone returns n, or, since 0 would be no limit for the planner, what says none.
func orNone(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// start begins an action, unless the chunk is being worked on.
func (l *leadership) start(st *state.State, a plan.Action, now time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, busy := l.busy[a.Chunk]; busy || l.closed {
		return false
	}
	if a.Bytes == 0 && a.Kind == plan.Join {
		if c, ok := st.ChunkByID(a.Chunk); ok {
			a.Bytes = insideFile(st, c)
		}
	}
	j := &job{Action: a, since: now}
	l.busy[a.Chunk], l.jobs[a.Chunk] = struct{}{}, j
	if a.Kind == plan.Join {
		l.joins++
		l.addLoad(a, 1)
	}
	l.spawnLocked(func() { l.act(j) })
	return true
}

// hold says how far the planner must leave the chunk alone: it is being worked on, failed lately, or is short so shortly that the server
// which has left it may be back at once. away is how many servers on standby are away.
func (l *leadership) hold(st *state.State, c *state.Chunk, now time.Duration, away int) plan.Hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, busy := l.busy[c.ID]; busy || now < l.retry[c.ID].until {
		return plan.HoldAll
	}
	if u := l.unclean[c.ID]; u != nil && len(u.servers) > 0 {
		return plan.HoldAll
	}
	if c.InSync() < c.Norm() && !l.mayMove(st, c, now, away) {
		return plan.HoldMoves
	}
	return plan.HoldNone
}

// mayMove reports whether a server that has no copy of a chunk that is short of replicas may get one. The caller holds l.mu.
func (l *leadership) mayMove(st *state.State, c *state.Chunk, now time.Duration, away int) bool {
	least := int(st.Policy(c.Ino).Min)
	if c.InSync() < least {
		return true
	}
	if c.Norm()-c.InSync() <= away && c.InSync() >= max(least, 2) {
		return false // whoever is on standby has it, as far as anybody knows
	}
	grace := l.s.o.RepairGrace
	if c.InSync() == 1 {
		grace /= urgentShare
	}
	since, ok := l.short[c.ID]
	return ok && now-since > grace
}

// standbyAway counts the servers that are away while they are on standby.
func (l *leadership) standbyAway(st *state.State) (n int) {
	st.Servers(func(x *state.Server) bool {
		if !x.Retired && x.Mode == event.ServerMode_STANDBY && !l.isLive(x.ID) {
			n++
		}
		return true
	})
	return n
}

// noteShort keeps since when chunks are degraded.
func (l *leadership) noteShort(st *state.State, now time.Duration) {
	seen := make(map[id.ChunkID]time.Duration)
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Degraded(func(c *state.Chunk) bool {
		since, ok := l.short[c.ID]
		if !ok {
			since = now
		}
		seen[c.ID] = since
		return len(seen) < maxStaleCopies
	})
	l.short = seen
	for k, b := range l.retry {
		if _, ok := seen[k]; !ok && now > b.until+backoffMax {
			delete(l.retry, k)
		}
	}
}

func (l *leadership) addLoad(a plan.Action, n int) {
	for _, server := range []id.ServerID{a.Target, a.Source} {
		if c := l.servers[server]; c != nil {
			c.load += n
		}
	}
}

// act does one step of the planner.
func (l *leadership) act(j *job) {
	var err error
	switch a := j.Action; a.Kind {
	case plan.Drop:
		err = l.dropJoining(a)
	case plan.Remove:
		err = l.removeSurplus(a)
	default:
		err = l.rebuild(a)
	}
	now := bootNow()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, j.Chunk)
	delete(l.jobs, j.Chunk)
	l.did.ended(j.Kind, err)
	if j.Kind == plan.Join {
		l.joins--
		l.addLoad(j.Action, -1)
	}
	if err == nil {
		delete(l.retry, j.Chunk)
		l.planSoonLocked()
		return
	}
	b := l.retry[j.Chunk]
	b.target, b.source = j.Target, j.Source
	b.next = min(max(2*b.next, backoffFirst), backoffMax)
	b.until = now + b.next
	l.retry[j.Chunk] = b
	if l.ctx.Err() == nil {
		l.s.log.Warn("step of repair failed, will be tried again", "chunk", j.Chunk, "cs", j.Target, "source", j.Source, "cause", j.Reason.String(),
			"after", b.next, "err", err)
	}
}

// removeSurplus takes a replica out that the chunk can do without, if that is still so.
func (l *leadership) removeSurplus(a plan.Action) error {
	var ino id.Ino
	l.s.fsm.view(func(st *state.State) {
		if c, ok := st.ChunkByID(a.Chunk); ok {
			ino = c.Ino
		}
	})
	if ino == 0 {
		return nil
	}
	return l.withoutLayouts(l.ctx, ino, func() error {
		var c *state.Chunk
		l.s.fsm.view(func(st *state.State) { c, _ = st.ChunkByID(a.Chunk) })
		if c == nil || c.InSync() <= c.Norm() {
			return nil
		}
		if r, ok := c.Find(a.Target); !ok || r.Joining {
			return nil
		}
		others := 0
		for i := range c.InSync() {
			if r := c.Replica(i).Server; r != a.Target && l.isLive(r) && !l.isUnclean(c.ID, r) {
				others++
			}
		}
		if others < c.Norm() {
			return fmt.Errorf("only %d of %d others are live and sound: %w", others, c.Norm(), fserr.NotReady)
		}
		return l.dropReplica(l.ctx, a.Chunk, a.Target, a.Reason.String())
	})
}

// dropJoining gives a joining replica up. It may have been in sync in the layout that a session has.
func (l *leadership) dropJoining(a plan.Action) error {
	var c *state.Chunk
	l.s.fsm.view(func(st *state.State) { c, _ = st.ChunkByID(a.Chunk) })
	if c == nil {
		return nil
	}
	return l.withoutLayouts(l.ctx, c.Ino, func() error {
		return l.dropReplica(l.ctx, a.Chunk, a.Target, "joining on a lost server")
	})
}

// rebuild makes target an in-sync replica. See ARCHITECTURE.md, section 7.
func (l *leadership) rebuild(a plan.Action) error {
	start := time.Now()
	why := fmt.Sprintf("%v; copied from %v", a.Reason, a.Source)
	if a.From != 0 {
		why += fmt.Sprintf(", in place of %v", a.From)
	}
	epoch, err := l.join(l.ctx, a.Chunk, a.Target, a.Source, why)
	if err != nil || epoch == 0 {
		return err
	}
	l.mu.Lock()
	if c := l.servers[a.Target]; c != nil {
		delete(c.stale, a.Chunk)
	}
	l.mu.Unlock()
	var addr string
	l.s.fsm.view(func(st *state.State) {
		if x, ok := st.Server(a.Source); ok {
			addr = planes.Book(x.Addr).Addr(planes.Repair)
		}
	})
	reply := new(msg.ChunkRebuildReply)
	err = l.askServer(l.ctx, a.Target, rebuildTimeout, wire.ChunkRebuild, &msg.ChunkRebuild{
		Chunk: uint64(a.Chunk), Epoch: uint64(epoch), Source: uint32(a.Source), SourceAddr: addr,
		Background: a.Class >= plan.Evacuate}, reply)
	if err != nil {
		return err
	}
	synced, err := l.syncEvent(a.Chunk, a.Target, epoch, fmt.Sprintf("rebuilt from %v, %s copied in %v", a.Source, humanize.IBytes(reply.BytesCopied),
		time.Since(start).Round(time.Millisecond)))
	if err != nil {
		return err
	}
	if !synced {
		return fmt.Errorf("the replica set changed during the rebuild at epoch %v: %w", epoch, fserr.StaleEpoch)
	}
	err = l.askServer(l.ctx, a.Target, joinTimeout, wire.ChunkPromote, &msg.ChunkPromote{Chunk: uint64(a.Chunk), Epoch: uint64(epoch)}, nil)
	if err != nil {
		l.s.log.Warn("replica not told of its promotion", "chunk", a.Chunk, "cs", a.Target, "err", err)
	}
	l.s.log.Info("replica rebuilt", "chunk", a.Chunk, "cs", a.Target, "source", a.Source, "epoch", epoch, "bytes", reply.BytesCopied,
		"took", time.Since(start).Round(time.Millisecond))
	return nil
}

func (l *leadership) syncEvent(k id.ChunkID, target id.ServerID, epoch id.Epoch, reason string) (bool, error) {
	c, release, err := l.latchChunk(l.ctx, k)
	if err != nil || c == nil {
		return false, err
	}
	defer release()
	if r, ok := c.Find(target); !ok || !r.Joining || c.Epoch() != epoch {
		return false, nil
	}
	return true, l.propose(&event.Event{Body: &event.Event_ReplicaSync{ReplicaSync: &event.ReplicaSync{
		Chunk: uint64(k), Server: uint32(target), Epoch: uint64(epoch)}}}, reason)
}

// lostGrace is how long a server may be away before it is given up.
func (l *leadership) lostGrace() time.Duration {
	var set string
	l.s.fsm.view(func(st *state.State) { set = st.Config(settings.RepairGrace) })
	if d, err := settings.Age(set); err == nil && d > 0 {
		return d
	}
	return l.s.o.LostGrace
}

// giveUpLost takes servers that are away for long, or whose disk failed, out of all replica sets, while others are there to rebuild on.
func (l *leadership) giveUpLost() {
	grace, now := l.lostGrace(), bootNow()
	lost := make(map[id.ServerID]string) // why
	live, failed := 0, 0
	standby := l.standby()
	l.mu.Lock()
	members := len(l.servers)
	for _, c := range l.servers {
		if l.live(c) {
			live++
		} else if c.failed() {
			failed++
			lost[c.id] = "its disk failed"
		} else if c.down != 0 && now-c.down > grace && !standby[c.id] {
			lost[c.id] = fmt.Sprintf("away for more than %v", grace)
		}
	}
	l.mu.Unlock()
	if live < minServersToLose {
		return
	}
	if away := members - failed - live; away > live && len(lost) > failed {
		// More are away than there: that is a network or a room, and they are more likely to come back than the rest is to hold all.
		l.addWarning(fmt.Sprintf("%d of %d chunk servers are away: none of them is given up until more are there than away", away, members), now)
		maps.DeleteFunc(lost, func(server id.ServerID, _ string) bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			c := l.servers[server]
			return c == nil || !c.failed()
		})
	}
	for server, why := range lost {
		if err := l.giveUp(server, why); err != nil && l.ctx.Err() == nil {
			l.s.log.Warn("lost chunk server not given up", "cs", server, "err", err)
		}
	}
}

// giveUp takes the server out of all replica sets, with the layouts of the files that sessions hold called back as by withoutLayouts. If
// more of its files are held by then, it is left for the next look.
func (l *leadership) giveUp(server id.ServerID, why string) error {
	inos := l.heldOn(server)
	var freeze []decide.Latch
	for _, ino := range inos {
		freeze = append(freeze, freezeLatch(ino, true)...)
	}
	if err := l.latches.acquire(l.ctx, freeze); err != nil {
		return err
	}
	defer l.latches.release(freeze)
	err := together(inos, func(ino id.Ino) error { return l.recallLayouts(l.ctx, ino, 0, true) })
	if err != nil {
		return err
	}
	latch := []decide.Latch{{Kind: latchMembership, Exclusive: true}}
	if err := l.latches.acquire(l.ctx, latch); err != nil {
		return err
	}
	defer l.latches.release(latch)
	held := 0
	l.s.fsm.clone().ChunksOf(server, func(c *state.Chunk) bool {
		if r, _ := c.Find(server); r.Joining || c.InSync() > 1 {
			held++
		}
		return true
	})
	if held == 0 || l.isLive(server) {
		return nil
	}
	for _, ino := range l.heldOn(server) {
		if _, frozen := slices.BinarySearch(inos, ino); !frozen {
			return nil
		}
	}
	err = l.propose(&event.Event{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: uint32(server)}}},
		why)
	if err == nil {
		l.mu.Lock()
		if c := l.servers[server]; c != nil && c.conn != nil && !c.failed() {
			c.conn.Close() // a process that only stood still registers again, and reports what it is left with
		}
		l.mu.Unlock()
		l.s.log.Info("chunk server given up", "cs", server, "replicas", held, "cause", why)
	}
	return err
}

// heldOn returns, in order, the inodes with a replica on the server that can be given up and that sessions hold.
func (l *leadership) heldOn(server id.ServerID) []id.Ino {
	var inos []id.Ino
	st := l.s.fsm.clone()
	st.ChunksOf(server, func(c *state.Chunk) bool {
		r, _ := c.Find(server)
		if h := st.Holders(c.Ino); (r.Joining || c.InSync() > 1) && h.Readers+h.Writers > 0 {
			inos = append(inos, c.Ino)
		}
		return true
	})
	slices.Sort(inos)
	return slices.Compact(inos)
}
