package ssd

import (
	"sync/atomic"
	"time"
)

// Stats is what a journal holds and has done. Counters are of this process and count pages of 4 KiB unless they say something else.
type Stats struct {
	Size, Used, Dirty uint64 // bytes: of the ring; in use; of pages that are only in the journal
	Journaled         uint64 // pages written to the journal
	Bypassed          uint64 // of long sequences, written to the slow disk at once
	Overflowed        uint64 // written to the slow disk since there was no room
	Hits, Misses      uint64 // read from the journal; from the slow disk, of files that have something in the journal
	Destaged          uint64 // written to the slow disk in the background
	DestageWrites     uint64 // in so many writes
	DestageRate       uint64 // bytes a second that destaging writes while it works, of late
	SlowSyncs         uint64 // syncs of a file that had to sync the slow disk
	Paced             time.Duration
	Full, Failed      bool // Full: the slow disk is, so the journal cannot be emptied
}

type counters struct {
	journaled, bypassed, overflowed, hits, misses atomic.Uint64
	destaged, destageWrites, slowSyncs            atomic.Uint64
	pacedNanos                                    atomic.Int64
}

// Stats returns the journal's counters.
func (f *FS) Stats() Stats {
	c, r := &f.stats, f.ring
	s := Stats{
		Size: r.blocks * pageSize, Journaled: c.journaled.Load(), Bypassed: c.bypassed.Load(), Overflowed: c.overflowed.Load(),
		Hits: c.hits.Load(), Misses: c.misses.Load(), Destaged: c.destaged.Load(), DestageWrites: c.destageWrites.Load(),
		SlowSyncs: c.slowSyncs.Load(), Paced: time.Duration(c.pacedNanos.Load()), Failed: r.err() != nil,
		DestageRate: uint64(f.destager.speed.Load()) * pageSize,
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	s.Used, s.Dirty, s.Full = (r.next-r.tail)*pageSize, uint64(r.index.dirty)*pageSize, r.stuck != nil
	return s
}
