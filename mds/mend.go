package mds

import (
	"maps"
	"slices"
	"time"

	"varve/internal/id"
	"varve/mds/state"
)

const (
	// mendPause is how long a replica is left alone after it was made to join for its bad blocks: so long its heartbeats may
	// still tell of them.
	mendPause = 10 * time.Second
	// maxMending bounds the replicas that are joining, for whatever reason, while another is made to join for its bad blocks.
	maxMending = 4
)

// mendBad has replicas with bad blocks join again, so that the blocks are written anew from another replica: the rebuild finds that
// they differ. There is an event about the blocks first. One at a time, since a joining replica does not count.
func (l *leadership) mendBad(st *state.State, now time.Duration) {
	l.tellBad(st)
	if int(st.Counts().Joining) >= maxMending {
		return
	}
	type bad struct {
		server id.ServerID
		chunks []uint64
	}
	var all []bad
	l.mu.Lock()
	maps.DeleteFunc(l.mended, func(_ copyKey, at time.Duration) bool { return now-at > mendPause })
	for _, c := range l.servers {
		if l.live(c) && len(c.beat.BadChunks) > 0 {
			all = append(all, bad{c.id, c.beat.BadChunks})
		}
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b bad) int { return int(a.server) - int(b.server) })
	for _, b := range all {
		for _, n := range b.chunks {
			if l.mendOne(st, id.ChunkID(n), b.server, now) {
				return
			}
		}
	}
}

// mendOne reports whether it has begun to make the replica join.
func (l *leadership) mendOne(st *state.State, k id.ChunkID, server id.ServerID, now time.Duration) bool {
	c, ok := st.ChunkByID(k)
	if !ok {
		return false
	}
	if r, ok := c.Find(server); !ok || r.Joining {
		return false
	}
	source := l.soundInSync(c, server)
	key := copyKey{server, k}
	l.mu.Lock()
	_, busy := l.busy[k]
	_, lately := l.mended[key]
	u := l.unclean[k]
	wait := busy || lately || now < l.retry[k].until || u != nil && len(u.servers) > 0
	defer l.mu.Unlock()
	if source == 0 || wait {
		return false
	}
	l.mended[key], l.busy[k] = now, struct{}{}
	l.spawnLocked(func() {
		epoch, err := l.join(l.ctx, k, server, source, "it has bad blocks")
		l.mu.Lock()
		delete(l.busy, k)
		l.mu.Unlock()
		if err != nil && l.ctx.Err() == nil {
			l.s.log.Warn("replica with bad blocks not joined again", "chunk", k, "cs", server, "err", err)
		} else if epoch != 0 {
			l.s.log.Info("replica with bad blocks joins again", "chunk", k, "cs", server, "source", source, "epoch", epoch)
		}
	})
	return true
}

// soundInSync is liveInSync of a server that has told of no bad block in the chunk.
func (l *leadership) soundInSync(c *state.Chunk, not id.ServerID) id.ServerID {
	for i := range c.InSync() {
		server := c.Replica(i).Server
		if server == not || !l.isLive(server) || l.isUnclean(c.ID, server) {
			continue
		}
		l.mu.Lock()
		s := l.servers[server]
		bad := s == nil || slices.Contains(s.beat.BadChunks, uint64(c.ID))
		l.mu.Unlock()
		if !bad {
			return server
		}
	}
	return 0
}

// failed reports whether the server itself says that its disk is out of service, which no grace brings back. The caller holds l.mu.
func (c *chunkServer) failed() bool { return c.conn != nil && c.beat.State == stateFailed }
