package mds

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/plan"
	"varve/mds/settings"
	"varve/mds/state"
)

const (
	// lastBatch bounds the replicas that one look of giveUpLast takes out of their sets; lastInterval is how often it looks at a server.
	lastBatch    = 256
	lastInterval = 5 * time.Second
	// maxStandby is how long a server may be on standby with an end.
	maxStandby = 365 * 24 * time.Hour
	// maxPathsTold bounds the files that an answer names.
	maxPathsTold = 10
)

// insideFile returns how many bytes of the chunk are inside its file.
func insideFile(st *state.State, c *state.Chunk) uint64 {
	n, ok := st.Inode(c.Ino)
	from := uint64(c.Index()) * chunk.Size
	if !ok || n.Size <= from {
		return 0
	}
	return min(n.Size-from, chunk.Size)
}

// newPaths returns what finds names of files.
func newPaths(st *state.State) *pathFinder {
	return &pathFinder{st: st, names: make(map[id.Ino]map[id.Ino]string)}
}

// name returns a path of the inode, or its number if none was found.
func (p *pathFinder) name(ino id.Ino) string {
	if path := p.find(ino); path != nil {
		return string(path)
	}
	return "inode " + ino.String()
}

// standby returns the servers that may be away for as long as they like.
func (l *leadership) standby() map[id.ServerID]bool {
	out := make(map[id.ServerID]bool)
	l.s.fsm.view(func(st *state.State) {
		st.Servers(func(x *state.Server) bool {
			if !x.Retired && x.Mode == event.ServerMode_STANDBY {
				out[x.ID] = true
			}
			return true
		})
	})
	return out
}

func (l *leadership) tierOf(server id.ServerID) (tier uint32) {
	l.s.fsm.view(func(st *state.State) {
		if x, ok := st.Server(server); ok {
			tier = x.Tier
		}
	})
	return tier
}

// serverOf returns the chunk server, which was not removed.
func (l *leadership) serverOf(server id.ServerID) (x *state.Server, err error) {
	l.s.fsm.view(func(st *state.State) { x, _ = st.Server(server) })
	switch {
	case x == nil:
		return nil, fmt.Errorf("there is no chunk server %v; varve list-services lists them: %w", server, fserr.NotExist)
	case x.Retired:
		return nil, fmt.Errorf("%v was removed for good: %w", server, fserr.Invalid)
	}
	return x, nil
}

// setMode has servers used for something else, at the request of an administrator.
func (l *leadership) setMode(ctx context.Context, m *msg.SetServerMode) error {
	mode := event.ServerMode_Mode(m.Mode)
	if mode != event.ServerMode_ACTIVE && mode != event.ServerMode_DRAINING && mode != event.ServerMode_STANDBY || len(m.Servers) == 0 || len(m.Servers) > maxChunkServers {
		return fmt.Errorf("mode %v for %d servers: %w", mode, len(m.Servers), fserr.Invalid)
	}
	if m.ForMs > 0 && mode != event.ServerMode_STANDBY || m.ForMs > uint64(maxStandby.Milliseconds()) {
		return fmt.Errorf("mode %v for %d ms: only standby has an end, in %v at most: %w", mode, m.ForMs, maxStandby, fserr.Invalid)
	}
	var leaving []id.ServerID
	for _, n := range m.Servers {
		x, err := l.serverOf(id.ServerID(n))
		if err != nil {
			return err
		}
		if mode == event.ServerMode_DRAINING && !x.Leaving() {
			leaving = append(leaving, x.ID)
		}
	}
	if err := l.fits(leaving); err != nil {
		return err
	}
	for _, n := range m.Servers {
		words := map[event.ServerMode_Mode]string{event.ServerMode_ACTIVE: "an administrator has it take new data",
			event.ServerMode_DRAINING: "an administrator drains it", event.ServerMode_STANDBY: "an administrator puts it on standby"}
		if err := l.modeEvent(ctx, id.ServerID(n), mode, time.Duration(m.ForMs)*time.Millisecond, words[mode]); err != nil {
			return err
		}
	}
	return nil
}

// modeEvent records the mode, for so long (0: without end), after every allocation that was decided before, unless a standby that is to end was
// prolonged meanwhile.
func (l *leadership) modeEvent(ctx context.Context, server id.ServerID, mode event.ServerMode_Mode, long time.Duration, reason string) error {
	latch := []decide.Latch{{Kind: latchMembership, Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return err
	}
	defer l.latches.release(latch)
	x, err := l.serverOf(server)
	if err != nil || mode == event.ServerMode_DRAINING && x.Mode == event.ServerMode_DRAINED {
		return err
	}
	var since, until int64
	l.s.fsm.view(func(st *state.State) { since, until = st.ModeSince(server), st.StandbyUntil(server) })
	if x.Mode == mode && long == 0 && until == 0 {
		return nil
	}
	if reason == standbyOver && (until == 0 || until > l.s.o.Wall().UnixNano()) {
		return nil
	}
	if mode == event.ServerMode_DRAINED && x.Mode != event.ServerMode_DRAINING {
		return nil // somebody has changed his mind
	}
	now := l.s.o.Wall()
	if x.Mode != mode || since == 0 {
		since = now.UnixNano()
	}
	until = 0
	if long > 0 {
		until = now.Add(long).UnixNano()
	}
	ev := &event.ServerMode{Id: uint32(server), Mode: mode, Since: since, Until: until}
	err = l.propose(&event.Event{Body: &event.Event_ServerMode{ServerMode: ev}}, reason)
	if err == nil {
		l.s.log.Info("mode of a chunk server changed", "cs", server, "mode", strings.ToLower(mode.String()), "for", long, "cause", reason)
	}
	return err
}

// fits refuses (Busy) what would leave chunks without the replicas or the room that they need, if nothing more were put on the servers.
func (l *leadership) fits(leaving []id.ServerID) error {
	if len(leaving) == 0 {
		return nil
	}
	st := l.s.fsm.clone()
	var takers, away []id.ServerID
	var room, need uint64
	st.Servers(func(x *state.Server) bool {
		if !x.TakesData() || slices.Contains(leaving, x.ID) {
			return true
		}
		if !l.isLive(x.ID) {
			away = append(away, x.ID)
			return true
		}
		takers = append(takers, x.ID)
		l.mu.Lock()
		defer l.mu.Unlock()
		if c := l.servers[x.ID]; c != nil {
			room += c.beat.Free - min(c.beat.Free, plan.KeepsFree(c.beat.Total, repairReserve))
		}
		return true
	})
	short, norm := 0, 0
	paths := newPaths(st)
	example := ""
	seen := make(map[id.ChunkID]bool)
	for _, server := range leaving {
		st.ChunksOf(server, func(c *state.Chunk) bool {
			need += insideFile(st, c)
			if c.Norm() > len(takers) && !seen[c.ID] {
				seen[c.ID] = true
				short++
				if norm = max(norm, c.Norm()); example == "" {
					example = paths.name(c.Ino)
				}
			}
			return true
		})
	}
	who := words(leaving)
	absent := ""
	if len(away) > 0 {
		absent = fmt.Sprintf(" (%s would, but is away)", words(away))
	}
	if short > 0 {
		return fmt.Errorf("without %s only %d chunk servers would take data%s, and %d chunks (such as of %s) are to have %d replicas: add chunk servers first, "+
			"or have fewer replicas with set-attr: %w", who, len(takers), absent, short, example, norm, fserr.Busy)
	}
	if need > room {
		return fmt.Errorf("what is on %s, %s, does not fit on the others, which have room for %s%s: add chunk servers or room first: %w",
			who, humanize.IBytes(need), humanize.IBytes(room), absent, fserr.Busy)
	}
	return nil
}

func words(list []id.ServerID) string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = x.String()
	}
	return strings.Join(out, ", ")
}

// removeServer drains a server so that its id is retired at the end, or with force retires it at once.
func (l *leadership) removeServer(ctx context.Context, m *msg.RemoveServer) (*msg.RemoveServerReply, error) {
	server := id.ServerID(m.Server)
	var x *state.Server
	l.s.fsm.view(func(st *state.State) { x, _ = st.Server(server) })
	if x != nil && x.Retired {
		return &msg.RemoveServerReply{Retired: true}, nil // asked for again
	}
	if _, err := l.serverOf(server); err != nil {
		return nil, err
	}
	if m.Force {
		return l.removeNow(ctx, server, m.Lose)
	}
	if !x.Leaving() {
		if err := l.fits([]id.ServerID{server}); err != nil {
			return nil, err
		}
	}
	return &msg.RemoveServerReply{}, l.modeEvent(ctx, server, event.ServerMode_REMOVING, 0, "an administrator removes it")
}

// removeNow retires a server that is lost, or that nobody needs. lose: although chunks are lost by it.
func (l *leadership) removeNow(ctx context.Context, server id.ServerID, lose bool) (*msg.RemoveServerReply, error) {
	reply := new(msg.RemoveServerReply)
	st := l.s.fsm.clone()
	paths := newPaths(st)
	st.ChunksOf(server, func(c *state.Chunk) bool {
		if r, _ := c.Find(server); r.Joining || c.InSync() > 1 {
			return true
		}
		reply.Lost++
		if path := []byte(paths.name(c.Ino)); len(reply.LostPaths) < maxPathsTold && !slices.ContainsFunc(reply.LostPaths, func(p []byte) bool { return string(p) == string(path) }) {
			reply.LostPaths = append(reply.LostPaths, path)
		}
		return true
	})
	if reply.Lost > 0 && l.isLive(server) {
		return nil, fmt.Errorf("%v lives, and has the only replica of %d chunks (of %s), which would be lost: remove it without --force, "+
			"which moves them first: %w", server, reply.Lost, filesTold(reply), fserr.Busy)
	}
	if reply.Lost > 0 && !lose {
		return nil, fmt.Errorf("%v has the only replica of %d chunks (of %s), which would be lost for good: bring it back if that can be done, else say "+
			"so with --lose-data: %w", server, reply.Lost, filesTold(reply), fserr.Busy)
	}
	if err := l.retire(ctx, server, "removed by force", true); err != nil {
		return nil, err
	}
	reply.Retired = true
	return reply, nil
}

// filesTold names the files of an answer, and says if there may be more.
func filesTold(r *msg.RemoveServerReply) string {
	names := make([]string, len(r.LostPaths))
	for i, p := range r.LostPaths {
		names[i] = string(p)
	}
	out := strings.Join(names, ", ")
	if len(names) == maxPathsTold {
		out += " and perhaps more"
	}
	return out
}

// standbyOver is the cause of what endStandby does.
const standbyOver = "its time on standby is over"

// endStandby makes servers active whose time on standby is over. One that is still away is given up by then as any other.
func (l *leadership) endStandby(st *state.State) {
	now := l.s.o.Wall().UnixNano()
	var over []id.ServerID
	st.Servers(func(x *state.Server) bool {
		if at := st.StandbyUntil(x.ID); at > 0 && at <= now {
			over = append(over, x.ID)
		}
		return true
	})
	for _, server := range over {
		if err := l.modeEvent(l.ctx, server, event.ServerMode_ACTIVE, 0, standbyOver); err != nil && l.ctx.Err() == nil {
			l.s.log.Warn("end of standby not recorded, will be tried again", "cs", server, "err", err)
		}
	}
}

// retire retires the id of a server, with the layouts of its files called back. Without force it does nothing if there are replicas on it.
func (l *leadership) retire(ctx context.Context, server id.ServerID, why string, force bool) error {
	inos := l.heldOn(server)
	var freeze []decide.Latch
	for _, ino := range inos {
		freeze = append(freeze, freezeLatch(ino, true)...)
	}
	if err := l.latches.acquire(ctx, freeze); err != nil {
		return err
	}
	defer l.latches.release(freeze)
	if err := together(inos, func(ino id.Ino) error { return l.recallLayouts(ctx, ino, 0, true) }); err != nil {
		return err
	}
	latch := []decide.Latch{{Kind: latchMembership, Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return err
	}
	defer l.latches.release(latch)
	x, err := l.serverOf(server)
	if err != nil {
		return err
	}
	empty := true
	l.s.fsm.clone().ChunksOf(server, func(*state.Chunk) bool {
		empty = false
		return false
	})
	if !force && (!empty || x.Mode != event.ServerMode_REMOVING) {
		return nil
	}
	for _, ino := range l.heldOn(server) {
		if _, frozen := slices.BinarySearch(inos, ino); !frozen {
			return fmt.Errorf("%v: more of its files are in use by now; try again: %w", server, fserr.Unavailable)
		}
	}
	err = l.propose(&event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: uint32(server)}}}, why)
	if err != nil {
		return err
	}
	l.s.log.Info("chunk server removed for good", "cs", server, "cause", why)
	l.mu.Lock()
	c := l.servers[server]
	delete(l.servers, server)
	l.mu.Unlock()
	if c != nil && c.conn != nil {
		c.conn.Close() // it registers again, and learns that it was removed
	}
	return nil
}

// endDrains records what has come to its end: servers on which nothing is left.
func (l *leadership) endDrains(st *state.State) {
	var done []*state.Server
	st.Servers(func(x *state.Server) bool {
		if x.Leaving() && x.Mode != event.ServerMode_DRAINED {
			empty := true
			st.ChunksOf(x.ID, func(*state.Chunk) bool {
				empty = false
				return false
			})
			if empty {
				done = append(done, x)
			}
		}
		return true
	})
	for _, x := range done {
		var err error
		if x.Mode == event.ServerMode_REMOVING {
			err = l.retire(l.ctx, x.ID, "nothing is left on it", false)
		} else {
			err = l.modeEvent(l.ctx, x.ID, event.ServerMode_DRAINED, 0, "nothing is left on it")
		}
		if err != nil && l.ctx.Err() == nil {
			l.s.log.Warn("end of a drain not recorded, will be tried again", "cs", x.ID, "err", err)
		}
	}
}

// setTier gives a server another tier; its chunks and those that belong there move in the background.
func (l *leadership) setTier(ctx context.Context, m *msg.SetTier) error {
	x, err := l.serverOf(id.ServerID(m.Server))
	if err != nil {
		return err
	}
	if m.Tier > state.MaxTier {
		return fmt.Errorf("tier %d: want 0 to %d: %w", m.Tier, state.MaxTier, fserr.Invalid)
	}
	latch := []decide.Latch{{Kind: latchServer, Name: x.UUID, Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return err
	}
	defer l.latches.release(latch)
	if x, err = l.serverOf(x.ID); err != nil || x.Tier == m.Tier {
		return err
	}
	return l.propose(&event.Event{Body: &event.Event_ServerUpdate{ServerUpdate: &event.ServerUpdate{
		Id: uint32(x.ID), Addr: x.Addr, Host: x.Host, Rack: x.Rack, Tier: m.Tier}}}, "an administrator changes its tier")
}

// giveUpLast takes replicas on servers that are away out of their sets where one live replica is left, sooner than giveUpLost gives all of
// such a server up, so that there is another one soon.
func (l *leadership) giveUpLast() {
	st := l.s.fsm.clone()
	grace, err := settings.Age(setOr(st, settings.RepairLastGrace))
	if err != nil || grace == 0 {
		return
	}
	now, standby := bootNow(), l.standby()
	type away struct {
		server id.ServerID
		since  time.Duration
	}
	var list []away
	live := 0
	l.mu.Lock()
	for _, c := range l.servers {
		if l.live(c) {
			live++
		} else if c.down != 0 && now-c.down > grace && !standby[c.id] && now-c.looked > lastInterval {
			c.looked = now
			list = append(list, away{c.id, now - c.down})
		}
	}
	members := len(l.servers)
	l.mu.Unlock()
	if live < minServersToLose || members-live > live { // see giveUpLost
		return
	}
	slices.SortFunc(list, func(a, b away) int { return int(a.server) - int(b.server) })
	n := 0
	for _, a := range list {
		var last []*state.Chunk
		st.ChunksOf(a.server, func(c *state.Chunk) bool {
			r, _ := c.Find(a.server)
			if !r.Joining && c.InSync() > 1 && l.liveReplicas(c) == 1 {
				last = append(last, c)
			}
			n++
			return len(last) < lastBatch
		})
		for _, c := range last {
			err := l.withoutLayouts(l.ctx, c.Ino, func() error {
				if l.isLive(a.server) || l.liveReplicas(c) != 1 {
					return nil
				}
				return l.dropReplica(l.ctx, c.ID, a.server, fmt.Sprintf("away for %v, and one live replica is left", a.since.Round(time.Second)))
			})
			if err != nil && l.ctx.Err() == nil {
				l.s.log.Warn("replica of a server that is away not given up", "chunk", c.ID, "cs", a.server, "err", err)
				break
			}
		}
	}
}

// liveReplicas counts the in-sync replicas on live servers.
func (l *leadership) liveReplicas(c *state.Chunk) (n int) {
	for i := range c.InSync() {
		if l.isLive(c.Replica(i).Server) {
			n++
		}
	}
	return n
}
