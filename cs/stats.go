package cs

import (
	"log/slog"
	"sync/atomic"
	"time"

	"varve/cs/admit"
	"varve/cs/ssd"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/secure"
)

// Stats is what a server has done and holds. Counters are of this process.
type Stats struct {
	Server                        id.ServerID
	Reads, Writes, Punches        uint64
	Flushes, Errors               uint64 // errors: data requests answered with anything but OK
	ReadBytes, WriteBytes         uint64
	Forwards, ForwardErrors       uint64
	Rebuilds, RebuildBytes        uint64
	Latency                       time.Duration // of data requests, moving average
	Chunks                        int
	Total, Free                   uint64     // bytes of the filesystem
	Fenced, Connections, UnderWay int        // sessions; lanes of clients and peers; data requests
	Locals, LocalChunks           int        // clients on this host that read by themselves; chunks that they may read
	Registered, Serving, Failed   bool       // Failed: the disk is out of service
	Memory, Resident, Payload     int64      // bytes: what the process may take up, what it does, and payload of requests under way
	Waiting                       int        // requests that were not let go on yet
	Forged                        uint64     // connections that ended since what came was not what the peer had sent
	DataPath                      string     // how data requests are served
	Journal                       *ssd.Stats // nil: there is no write journal
}

type stats struct {
	reads, writes, punches, flushes, errors atomic.Uint64
	readBytes, writeBytes                   atomic.Uint64
	forwards, forwardErrors                 atomic.Uint64
	repeats, settles                        atomic.Uint64 // ordered changes that had been done already; times that replicas were made equal before an answer
	rebuilds, rebuildBytes                  atomic.Uint64
	latency                                 atomic.Int64 // nanoseconds
	guests                                  latency.Recorder
	repaired                                atomic.Uint64 // bytes, also of rebuilds under way
}

// latencyWeight is the share, 1 in so many, of a new sample in the moving average.
const latencyWeight = 16

// observe adds a sample. A sample that is lost to a race does not matter for the average.
func (t *stats) observe(k admit.Class, d time.Duration) {
	if k == admit.Guest {
		t.guests.Add(d)
	}
	old := t.latency.Load()
	if old == 0 {
		t.latency.Store(int64(d))
		return
	}
	t.latency.CompareAndSwap(old, old+(int64(d)-old)/latencyWeight)
}

// Stats returns the server's counters.
func (s *Server) Stats() Stats {
	t := &s.stats
	st := Stats{
		Server: s.id, Reads: t.reads.Load(), Writes: t.writes.Load(), Punches: t.punches.Load(),
		Flushes: t.flushes.Load(), Errors: t.errors.Load(),
		ReadBytes: t.readBytes.Load(), WriteBytes: t.writeBytes.Load(),
		Forwards: t.forwards.Load(), ForwardErrors: t.forwardErrors.Load(),
		Rebuilds: t.rebuilds.Load(), RebuildBytes: t.rebuildBytes.Load(),
		Latency: time.Duration(t.latency.Load()), Chunks: s.store.Count(), Fenced: s.fences.count(),
		UnderWay: int(s.lease.inflight.Load()), Registered: s.accepted.Load(), Serving: s.lease.held(), Failed: s.health.failed(),
	}
	if b := s.locals.board; b != nil {
		st.Locals, st.LocalChunks = s.locals.count(), b.Taken()
	}
	st.Memory, st.Resident, st.Payload, st.DataPath = s.o.Memory, resident(), s.payload.used(), s.dataPath
	st.Waiting, _ = s.gate.use()
	if n, ok := s.o.Network.(*secure.Network); ok {
		st.Forged = n.Forged()
	}
	st.Total, st.Free, _ = s.store.Space()
	if s.journal != nil {
		j := s.journal.Stats()
		st.Journal = &j
	}
	s.lanes.mu.Lock()
	st.Connections = len(s.lanes.conns)
	s.lanes.mu.Unlock()
	return st
}

// health remembers that the disk failed.
type health struct{ bad atomic.Bool }

func (h *health) failed() bool { return h.bad.Load() }

// fail notes the first failure and says what to do.
func (h *health) fail(log *slog.Logger, err error) {
	if !h.bad.Swap(true) {
		log.Error("the disk failed and is out of service: replace it, make a new chunk server on the new one and remove this one",
			"err", err)
	}
}

// code returns the outcome of what the store or another part answered, and takes note of a failed disk.
func (s *Server) code(err error) fserr.Code {
	code := fserr.Of(err)
	if code == fserr.IO {
		s.checkHealth()
	}
	return code
}

// checkHealth takes note of a store that went out of service.
func (s *Server) checkHealth() {
	// No chunk has the id 0: all but a failed store answer NoChunk.
	if _, _, _, err := s.store.Table(0); fserr.Of(err) == fserr.IO {
		s.health.fail(s.log, err)
	}
	// The journal may fail while it destages, with nobody else at work.
	if s.journal != nil && !s.closing.Load() {
		if err := s.journal.Err(); err != nil {
			s.health.fail(s.log, err)
		}
	}
}
