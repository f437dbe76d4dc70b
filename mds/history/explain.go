package history

import (
	"context"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// Chunk calls fn for each event up to index to that is about the chunk: its allocation, its replicas, the servers that had one when they were
// given up, the end of its file.
func Chunk(ctx context.Context, src Source, c id.ChunkID, to id.Index, fn func(*state.State, *event.Event) error, missing func(journal.GapError)) error {
	from, _, err := Earliest(ctx, src)
	if err != nil {
		return err
	}
	f := Filter{Chunk: c}
	var x Texter
	return Watch(ctx, src, Range{From: from, To: to}, func(s *state.State, ev *event.Event) error {
		if s == nil {
			return nil
		}
		if f.Match(&x, s, ev) || losesChunk(s, ev, c) {
			return fn(s, ev)
		}
		return nil
	}, missing)
}

// losesChunk reports whether the event gives up a server with a replica, or takes the file of the chunk away.
func losesChunk(s *state.State, ev *event.Event, c id.ChunkID) bool {
	chunk, ok := s.ChunkByID(c)
	if !ok {
		return false
	}
	switch b := ev.Body.(type) {
	case *event.Event_ServerLost:
		_, ok = chunk.Find(id.ServerID(b.ServerLost.Server))
		return ok
	case *event.Event_ServerRetire:
		_, ok = chunk.Find(id.ServerID(b.ServerRetire.Id))
		return ok
	case *event.Event_Remove:
		return id.Ino(b.Remove.Ino) == chunk.Ino
	case *event.Event_Rename:
		return id.Ino(b.Rename.Replaced) == chunk.Ino && !b.Rename.Exchange
	case *event.Event_SetAttr:
		return id.Ino(b.SetAttr.Ino) == chunk.Ino && b.SetAttr.Size != nil && *b.SetAttr.Size <= uint64(chunk.Index())<<26
	}
	return false
}

// ServerCounts is what happened to the replicas of a chunk server.
type ServerCounts struct {
	Allocated uint64            `json:"allocated"` // chunks that were made there
	Dropped   uint64            `json:"dropped"`   // chunks that it left, by drops and by being given up
	Joined    uint64            `json:"joined"`
	Synced    uint64            `json:"synced"`
	Deleted   uint64            `json:"deleted"`
	Reasons   map[string]uint64 `json:"reasons,omitempty"` // of drops, the first few hundred
}

// Server calls fn for each event up to index to about the chunk server itself, and counts those about its replicas.
func Server(ctx context.Context, src Source, server id.ServerID, to id.Index, fn func(*state.State, *event.Event) error, missing func(journal.GapError)) (*ServerCounts, error) {
	from, _, err := Earliest(ctx, src)
	if err != nil {
		return nil, err
	}
	c := &ServerCounts{Reasons: map[string]uint64{}}
	f := Filter{Server: server}
	var x Texter
	err = Watch(ctx, src, Range{From: from, To: to}, func(s *state.State, ev *event.Event) error {
		if s == nil || !f.Match(&x, s, ev) {
			return nil
		}
		switch b := ev.Body.(type) {
		case *event.Event_ChunkAlloc:
			for _, e := range b.ChunkAlloc.Chunks {
				for _, v := range e.Servers {
					if id.ServerID(v) == server {
						c.Allocated++
					}
				}
			}
		case *event.Event_ReplicaDrop:
			c.Dropped += uint64(len(b.ReplicaDrop.Chunks))
			c.reason(ev.Cause.GetReason())
		case *event.Event_ReplicaJoin:
			c.Joined++
		case *event.Event_ReplicaSync:
			c.Synced++
		case *event.Event_Purged:
			c.Deleted += uint64(len(b.Purged.Chunks))
		default:
			if ev.GetServerLost() != nil {
				s.ChunksOf(server, func(*state.Chunk) bool { c.Dropped++; return true })
				c.reason(ev.Cause.GetReason())
			}
			return fn(s, ev)
		}
		return nil
	}, missing)
	return c, err
}

func (c *ServerCounts) reason(r string) {
	const most = 256
	if r == "" {
		r = "a client could not write there"
	}
	if _, known := c.Reasons[r]; known || len(c.Reasons) < most {
		c.Reasons[r]++
	}
}
