package client

import (
	"sync/atomic"

	"varve/internal/wire"
)

// flushHabit is how a file is flushed. Who flushes after each of its writes, as logs of databases and files with O_SYNC are written, waits for all replicas
// twice. Once that is the habit, replicas are asked to have the next write on stable media before they answer, and the flush that follows finds
// nothing due. If it does not follow, that write has taken longer than it had to, and the habit is over.
type flushHabit struct {
	since atomic.Int32 // writes since the last flush
	kept  atomic.Int32 // flushes in a row that came after one write each
}

// habitual is how many flushes make a habit.
const habitual = 4

// writes takes notice of a write, and tells whether a flush is to be expected right after it.
func (h *flushHabit) writes() bool {
	if h.since.Add(1) > 1 {
		if h.kept.Load() != 0 {
			h.kept.Store(0)
		}
		return false
	}
	return h.kept.Load() >= habitual
}

// flushes takes notice of a flush.
func (h *flushHabit) flushes() {
	if h.since.Swap(0) == 1 && h.kept.Load() < habitual {
		h.kept.Add(1)
	}
}

// durable tells whether all of these servers take durable writes.
func durable(conns []*hotConn) bool {
	for _, h := range conns {
		if h.lane.srv.takes.Load()&uint32(wire.Durable) == 0 {
			return false
		}
	}
	return true
}
