package cs

import (
	"sync/atomic"
	"time"

	"varve/cs/store"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// maxBadListed bounds the bad blocks in one answer.
	maxBadListed = store.MaxBad
	// badChunksTold bounds the chunks with bad blocks in a heartbeat; the others follow when these are mended.
	badChunksTold = 32
	// badBlocksTold bounds the bad blocks in a heartbeat, of those chunks.
	badBlocksTold = 256
)

// busyOf returns what the store asks to know whether guests are served. The server it points to is set when it is there.
func busyOf(s *atomic.Pointer[Server]) func() bool {
	return func() bool {
		srv := s.Load()
		return srv != nil && srv.lease.inflight.Load() > 0
	}
}

func (s *Server) serveStoreStat(_ *wire.Frame, m *msg.StoreStat) (wire.Message, []byte, error) {
	reply := &msg.StoreStatReply{Chunks: uint64(s.store.Count())}
	if u, err := s.store.Usage(); err == nil {
		reply.Total, reply.Free, reply.Reserved, reply.Allocated, reply.Uncounted = u.Total, u.Free, u.Reserved, u.Allocated, uint64(u.Uncounted)
	}
	if err := s.store.Failure(); err != nil {
		reply.Failed = err.Error()
	}
	n, list := s.store.BadBlocks(int(min(m.MaxBad, maxBadListed)))
	reply.Bad = uint64(n)
	for _, b := range list {
		reply.BadBlocks = append(reply.BadBlocks, &msg.BadBlock{Chunk: uint64(b.Chunk), Block: b.Block, Cause: b.Cause.String(), Since: b.Since.UnixNano()})
	}
	reply.Scrub = scrubMessage(s.store.ScrubStat())
	waiting, underWay := s.gate.use()
	reply.Waiting, reply.UnderWay, reply.MostUnderWay, reply.DataPath = uint32(waiting), uint32(underWay), maxOps, s.dataPath
	reply.Memory, reply.Resident = uint64(s.o.Memory), uint64(resident())
	reply.Payload, reply.PayloadSize = uint64(s.payload.used()), uint64(s.payload.size())
	return reply, nil, nil
}

// serveScrub sets the scrub for an administrator.
func (s *Server) serveScrub(p peer) func(*wire.Frame, *msg.Scrub) (wire.Message, []byte, error) {
	return func(_ *wire.Frame, m *msg.Scrub) (wire.Message, []byte, error) {
		if p.role != msg.Hello_ADMIN && p.role != msg.Hello_METADATA_SERVER {
			return nil, nil, fserr.Perm
		}
		if (m.SetRate || m.Begin) && p.who != nil && p.who.Role != pki.RoleAdmin {
			return nil, nil, fserr.Denied
		}
		rate := int64(-1)
		if m.SetRate {
			if rate = int64(m.Rate); rate < 0 {
				return nil, nil, fserr.Invalid
			}
		}
		if m.SetRate || m.Begin {
			if err := s.store.SetScrub(rate, m.Begin); err != nil {
				return nil, nil, err
			}
			s.log.Info("scrub set", "rate", s.store.ScrubStat().Rate, "begin", m.Begin)
		}
		return scrubMessage(s.store.ScrubStat()), nil, nil
	}
}

func scrubMessage(st store.ScrubStat) *msg.ScrubStat {
	m := &msg.ScrubStat{
		Rate: uint64(st.Rate), Passes: st.Passes, Passed: unixNano(st.Passed), TookMs: st.Took.Milliseconds(),
		Chunks: st.Chunks, Bytes: st.Bytes, Found: st.Found, Permille: permille(st.Done), Waiting: st.Waiting,
	}
	if st.Running {
		m.Begun = unixNano(st.Begun)
	}
	return m
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func permille(share float64) uint32 { return uint32(min(max(share, 0), 1) * 1000) }

// addStore fills in what a heartbeat tells of the store.
func (s *Server) addStore(h *msg.Heartbeat) {
	if u, err := s.store.Usage(); err == nil {
		h.Allocated, h.Reserved, h.BadBlocks = u.Allocated, u.Reserved, uint64(u.Bad)
	}
	chunks := s.store.BadChunks(badChunksTold)
	for _, c := range chunks {
		h.BadChunks = append(h.BadChunks, uint64(c))
	}
	h.Bad = s.badOf(chunks)
	st := s.store.ScrubStat()
	h.Scrubbed, h.ScrubPermille = unixNano(st.Passed), permille(st.Done)
	if err := s.store.Failure(); err != nil {
		h.Reason = err.Error()
	}
}

// badOf says which blocks of the chunks are bad, of each chunk at least one, and which blocks of any chunk were until lately: for a few
// heartbeats, since one may be lost, and so may the leader that was told.
func (s *Server) badOf(chunks []id.ChunkID) (out []*msg.BadBlock) {
	tell := func(b store.BadBlock) {
		out = append(out, &msg.BadBlock{Chunk: uint64(b.Chunk), Block: b.Block, Cause: b.Cause.String(), Since: b.Since.UnixNano()})
	}
	if len(chunks) > 0 {
		_, list := s.store.BadBlocks(maxBadListed)
		for _, c := range chunks {
			listed := false
			for _, b := range list {
				if b.Chunk == c && (len(out) < badBlocksTold || !listed) {
					tell(b)
					listed = true
				}
			}
			if !listed && s.store.Headless(c) { // otherwise its blocks have been mended since
				out = append(out, &msg.BadBlock{Chunk: uint64(c), Cause: "header"})
			}
		}
	}
	for _, b := range s.store.MendedBlocks() {
		if len(out) >= badBlocksTold {
			break
		}
		tell(b)
	}
	return out
}

// Readmit lets a directory be used again whose disk was retired, or which was moved. It is for an administrator who knows better. It
// returns what had kept it out, nil if nothing did.
func Readmit(o Options) (was []string, server id.ServerID, err error) {
	o, d, err := whose(o)
	if err != nil {
		return nil, 0, err
	}
	was, err = store.Readmit(d.storeOptions(o))
	return was, d.Server, err
}

// StoreOptions returns the options with which the store of a server's directory can be checked or dumped while the server is stopped, with
// what is in its write journal, if it has one; done ends that.
func StoreOptions(o Options) (so store.Options, server id.ServerID, done func() error, err error) {
	o, d, err := whose(o)
	if err != nil {
		return store.Options{}, 0, nil, err
	}
	so = d.storeOptions(o)
	so.FS, done, err = OpenDisk(o)
	return so, d.Server, done, err
}

// MayStart says what keeps the server of a directory from starting, as Readmit would put right.
func MayStart(o Options) (id.ServerID, error) {
	o, d, err := whose(o)
	if err != nil {
		return 0, err
	}
	return d.Server, store.Owned(d.storeOptions(o))
}
