package client

import (
	"sync/atomic"

	"varve/internal/wire/msg"
)

// localCounts are of one client.
type localCounts struct{ reads, bytes, changing, lapsed, revoked, damaged, failed atomic.Uint64 }

// LocalStats is what a client has read by itself from chunk servers on its host, around the network.
type LocalStats struct {
	Links  int    `json:"servers"` // chunk servers that let it
	Chunks int    `json:"chunks"`  // whose files are open
	Reads  uint64 `json:"reads"`   // since Dial
	Bytes  uint64 `json:"bytes"`
	// Reads that were begun so and had to go over the network: because the blocks were being changed, the server had lost its lease or did
	// not run, the grant or the session was over, the checksum did not match, or the disk failed or was too slow.
	Changing uint64 `json:"changing"`
	Lapsed   uint64 `json:"lapsed"`
	Revoked  uint64 `json:"revoked"`
	Damaged  uint64 `json:"damaged"`
	Failed   uint64 `json:"failed"`
}

// LocalStats returns the counters.
func (c *Client) LocalStats() LocalStats {
	n := &c.localReads
	st := LocalStats{
		Reads: n.reads.Load(), Bytes: n.bytes.Load(), Changing: n.changing.Load(), Lapsed: n.lapsed.Load(), Revoked: n.revoked.Load(),
		Damaged: n.damaged.Load(), Failed: n.failed.Load(),
	}
	s := c.sess.Load()
	if s == nil {
		return st
	}
	p := &s.servers
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, srv := range p.all {
		if l := srv.bypass.Load(); l != nil {
			st.Links++
			l.mu.RLock()
			for _, g := range l.grants {
				if g.Grant != nil {
					st.Chunks++
				}
			}
			l.mu.RUnlock()
		}
	}
	return st
}

// localMessage returns what a renewal says of local reads, nil if there were none.
func (c *Client) localMessage() *msg.LocalReads {
	st := c.LocalStats()
	if st.Links == 0 && st.Reads == 0 {
		return nil
	}
	return &msg.LocalReads{
		Servers: uint32(st.Links), Chunks: uint32(st.Chunks), Reads: st.Reads, Bytes: st.Bytes,
		Fallbacks: st.Changing + st.Lapsed + st.Revoked + st.Damaged + st.Failed, Damaged: st.Damaged,
	}
}
