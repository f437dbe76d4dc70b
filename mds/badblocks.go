package mds

import (
	"cmp"
	"slices"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

const (
	// maxBadTold bounds the bad blocks of which it is remembered that there is an event about them.
	maxBadTold = 1 << 16
	// headerCause is the cause of a chunk whose header cannot be read; it is about no block.
	headerCause = "header"
)

// badBlock is one bad block, found at a time on its server's clock.
type badBlock struct {
	server id.ServerID
	chunk  id.ChunkID
	block  uint32
	since  int64
	cause  string
}

// tellBad makes an event of what chunk servers found: one for the blocks of a replica that are bad for one cause. A new leader does not
// know what there are events about, and tells once more of blocks that are still bad.
func (l *leadership) tellBad(st *state.State) {
	var fresh []badBlock
	l.mu.Lock()
	still := make(map[badBlock]struct{})
	for _, c := range l.servers {
		if !l.live(c) {
			for b := range l.badTold {
				if b.server == c.id {
					still[b] = struct{}{} // what it says when it is back is nothing new
				}
			}
			continue
		}
		for _, b := range c.beat.Bad {
			x := badBlock{server: c.id, chunk: id.ChunkID(b.Chunk), block: b.Block, since: b.Since, cause: b.Cause}
			if _, told := l.badTold[x]; told {
				still[x] = struct{}{}
			} else if len(l.badTold)+len(fresh) < maxBadTold {
				fresh = append(fresh, x)
			}
		}
	}
	l.badTold = still
	l.mu.Unlock()
	slices.SortFunc(fresh, func(a, b badBlock) int {
		return cmp.Or(cmp.Compare(a.server, b.server), cmp.Compare(a.chunk, b.chunk), cmp.Compare(a.cause, b.cause), cmp.Compare(a.block, b.block))
	})
	for len(fresh) > 0 {
		n := 1
		for n < len(fresh) && fresh[n].server == fresh[0].server && fresh[n].chunk == fresh[0].chunk && fresh[n].cause == fresh[0].cause {
			n++
		}
		l.tellBadOf(st, fresh[:n])
		fresh = fresh[n:]
	}
}

// tellBadOf makes the event about some blocks of one replica. Copies that count for nothing are passed over, and looked at again.
func (l *leadership) tellBadOf(st *state.State, bad []badBlock) {
	c, ok := st.ChunkByID(bad[0].chunk)
	if !ok {
		return
	}
	if _, ok := c.Find(bad[0].server); !ok {
		return
	}
	ev := &event.BadBlocks{Chunk: uint64(c.ID), Server: uint32(bad[0].server), Cause: bad[0].cause}
	for _, b := range bad {
		if b.cause != headerCause {
			ev.Blocks = append(ev.Blocks, b.block)
		}
	}
	if err := l.propose(&event.Event{Body: &event.Event_BadBlocks{BadBlocks: ev}}, "told by the server"); err != nil {
		if l.ctx.Err() == nil {
			l.s.log.Warn("bad blocks not recorded, will be tried again", "chunk", c.ID, "cs", bad[0].server, "err", err)
		}
		return
	}
	l.s.log.Warn("bad blocks", "chunk", c.ID, "inode", c.Ino, "cs", bad[0].server, "blocks", len(bad), "first", bad[0].block, "cause", bad[0].cause)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range bad {
		l.badTold[b] = struct{}{}
	}
}

// cloneBad keeps what a heartbeat says of bad blocks.
func cloneBad(list []*msg.BadBlock) []*msg.BadBlock {
	out := make([]*msg.BadBlock, 0, len(list))
	for _, b := range list {
		out = append(out, &msg.BadBlock{Chunk: b.Chunk, Block: b.Block, Cause: b.Cause, Since: b.Since})
	}
	return out
}
