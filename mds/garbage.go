package mds

import (
	"slices"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// collectGarbage has live servers delete what the state says is garbage, what it has not known for a while, and old
// copies of chunks that are whole again.
//
// What is decided here is carried out later, by a server that takes its time. So it is told up to which epoch a copy goes: one that joins again meanwhile has a
// higher one. A chunk that the state does not know may be one that is just being made: numbers from the lowest on that an allocation under way may have given
// out are left alone.
func (l *leadership) collectGarbage() {
	now := bootNow()
	floor := l.unsettled() // before the state is looked at: what is allocated by then is in it
	st := l.s.fsm.clone()
	type work struct {
		server            id.ServerID
		garbage, leftover []doomed
	}
	upTo := func(k id.ChunkID) doomed {
		if x, ok := st.ChunkByID(k); ok {
			return doomed{k, x.Epoch()}
		}
		return doomed{chunk: k}
	}
	var all []work
	l.mu.Lock()
	for _, c := range l.servers {
		if !l.live(c) {
			continue
		}
		w := work{server: c.id}
		for _, k := range st.Garbage(c.id, garbageBatch) {
			w.garbage = append(w.garbage, upTo(k))
		}
		for k := range c.stale {
			x, ok := st.ChunkByID(k)
			if _, busy := l.busy[k]; busy || len(w.leftover) >= garbageBatch {
				continue
			}
			if !ok {
				if k < floor { // else it is one that st does not know yet, and may join again before the server gets to it
					w.leftover = append(w.leftover, doomed{chunk: k})
				}
			} else if _, member := x.Find(c.id); !member && !x.Degraded() {
				w.leftover = append(w.leftover, upTo(k))
			}
		}
		all = append(all, w)
	}
	for key, since := range l.unknown {
		if now-since < l.s.o.UnknownGrace {
			continue
		}
		x, known := st.ChunkByID(key.chunk)
		i := slices.IndexFunc(all, func(w work) bool { return w.server == key.server })
		switch {
		case known:
			delete(l.unknown, key)
			if _, member := x.Find(key.server); !member { // the number was given to a chunk on other servers
				if c := l.servers[key.server]; c != nil && c.stale != nil && len(c.stale) < maxServerStale {
					c.stale[key.chunk] = x.Epoch()
				}
			}
		case st.IsGarbage(key.server, key.chunk):
			delete(l.unknown, key)
		case key.chunk >= floor:
			// An allocation made the file that came to nothing, under an earlier leader. The number will be given out again, or just was, perhaps to this
			// very server: so it is looked at anew when that is long over.
			l.unknown[key] = now
		case i >= 0 && len(all[i].leftover) < garbageBatch:
			all[i].leftover = append(all[i].leftover, doomed{chunk: key.chunk})
		}
	}
	l.mu.Unlock()
	together(all, func(w work) error { // what fails stays and is tried again
		l.deleteOn(w.server, w.garbage, true)
		l.deleteOn(w.server, w.leftover, false)
		return nil
	})
}

// doomed is a copy of a chunk that is to be deleted if its epoch is not above upTo, 0: whatever it is.
type doomed struct {
	chunk id.ChunkID
	upTo  id.Epoch
}

// deleteOn has the server delete chunks and forgets them: listed ones by an event.
func (l *leadership) deleteOn(server id.ServerID, chunks []doomed, listed bool) {
	if len(chunks) == 0 {
		return
	}
	raw, epochs := make([]uint64, len(chunks)), make([]uint64, len(chunks))
	for i, k := range chunks {
		raw[i], epochs[i] = uint64(k.chunk), uint64(k.upTo)
	}
	if err := l.askServer(l.ctx, server, garbageTimeout, wire.ChunkDelete, &msg.ChunkDelete{Chunks: raw, Epochs: epochs}, nil); err != nil {
		if l.ctx.Err() == nil {
			l.s.log.Warn("garbage not deleted", "cs", server, "chunks", len(chunks), "err", err)
		}
		return
	}
	if !listed {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, k := range chunks {
			delete(l.unknown, copyKey{server, k.chunk})
			if c := l.servers[server]; c != nil {
				delete(c.stale, k.chunk)
			}
		}
		l.s.log.Info("leftover chunks deleted", "cs", server, "chunks", len(chunks))
		return
	}
	err := l.propose(&event.Event{Body: &event.Event_Purged{Purged: &event.Purged{Server: uint32(server), Chunks: raw}}}, "deleted")
	if err != nil && l.ctx.Err() == nil {
		l.s.log.Warn("deleted garbage not recorded", "cs", server, "err", err)
	}
}

// noteUnknown remembers chunks that a server may have and the state does not know.
func (l *leadership) noteUnknown(server id.ServerID, chunks []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range chunks {
		if len(l.unknown) < maxStaleCopies {
			l.unknown[copyKey{server, id.ChunkID(k)}] = bootNow()
		}
	}
}

// settleAll settles, in the background, the inodes whose writer died.
func (l *leadership) settleAll() {
	var inos []id.Ino
	l.s.fsm.view(func(st *state.State) {
		add := func(ino id.Ino) bool {
			inos = append(inos, ino)
			return len(inos) < garbageBatch
		}
		st.Unsettled(add)
		st.Punching(add)
	})
	slices.Sort(inos)
	for _, ino := range slices.Compact(inos) {
		l.settleBehind(ino)
	}
}
