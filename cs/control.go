package cs

import (
	"context"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// control answers what the leader asks on the connection that this server made.
type control Server

var _ wire.Handler = (*control)(nil)

// Serve implements wire.Handler.
func (h *control) Serve(ctx context.Context, c *wire.Conn, req *wire.Frame) {
	s := (*Server)(h)
	switch req.Type {
	case wire.ChunkCreate:
		answer(s, c, req, new(msg.ChunkCreate), each(func(m *msg.ChunkCreate) error {
			return s.store.Create(id.ChunkID(m.Chunk), id.Epoch(m.Epoch))
		}))
	case wire.ChunkDelete:
		answer(s, c, req, new(msg.ChunkDelete), each(func(m *msg.ChunkDelete) error {
			return eachEpoch(m.Chunks, m.Epochs, s.deletePaced(ctx))
		}))
	case wire.ChunkAccept:
		answer(s, c, req, new(msg.ChunkAccept), each(func(m *msg.ChunkAccept) error {
			return eachEpoch(m.Chunks, m.Epochs, s.store.AcceptAt)
		}))
	case wire.ChunkAdopt:
		answer(s, c, req, new(msg.ChunkAdopt), each(func(m *msg.ChunkAdopt) error {
			return s.store.Adopt(id.ChunkID(m.Chunk), id.Epoch(m.Epoch))
		}))
	case wire.ChunkJoin:
		answer(s, c, req, new(msg.ChunkJoin), each(func(m *msg.ChunkJoin) error {
			return s.join(id.ChunkID(m.Chunk), id.Epoch(m.Epoch))
		}))
	case wire.ChunkPromote:
		answer(s, c, req, new(msg.ChunkPromote), each(func(m *msg.ChunkPromote) error {
			return s.store.Promote(id.ChunkID(m.Chunk), id.Epoch(m.Epoch))
		}))
	case wire.ChunkPunch:
		answer(s, c, req, new(msg.ChunkPunch), each(s.servePunch))
	case wire.ChunkRebuild:
		answer(s, c, req, new(msg.ChunkRebuild), func(_ *wire.Frame, m *msg.ChunkRebuild) (wire.Message, []byte, error) {
			n, err := s.rebuild(ctx, m)
			return &msg.ChunkRebuildReply{BytesCopied: n}, nil, err
		})
	case wire.Fence:
		answer(s, c, req, new(msg.Fence), each(func(m *msg.Fence) error {
			return s.fences.fence(ctx, m.Sessions)
		}))
	default:
		s.log.Warn("request of the leader refused", "type", req.Type)
		_ = c.Reply(req, fserr.Protocol, nil, nil)
	}
}

// each turns a function that only fails or not into one that answers with Empty.
func each[M wire.Message](f func(M) error) func(*wire.Frame, M) (wire.Message, []byte, error) {
	return func(_ *wire.Frame, m M) (wire.Message, []byte, error) { return nil, nil, f(m) }
}

// eachChunk goes on after a failure, so that one bad chunk does not keep the others, and returns the first.
func eachChunk(chunks []uint64, f func(id.ChunkID) error) error {
	var first error
	for _, n := range chunks {
		if err := f(id.ChunkID(n)); err != nil && first == nil {
			first = err
		}
	}
	return first
}

const (
	// deleteRest is how many times as long as a deletion took the next one waits while guests are served.
	deleteRest = 3
	// deleteRestMost bounds that wait, and deletePace how long deletions of one request are paced: its answer is waited for.
	deleteRestMost = 50 * time.Millisecond
	deletePace     = 10 * time.Second
)

// deletePaced returns a function that deletes one chunk after the other. To delete a file keeps the disk and the filesystem's journal
// busy, so while guests are served most of the time is theirs. With ctx, the leader's connection, it ends: the next leader has to wait for what
// this one asked for, longer than the server's lease may last, and asks for the rest again.
func (s *Server) deletePaced(ctx context.Context) func(id.ChunkID, id.Epoch) error {
	begun := time.Now()
	return func(c id.ChunkID, upTo id.Epoch) error {
		if ctx.Err() != nil {
			return fserr.Unavailable
		}
		start := time.Now()
		err := s.delete(c, upTo)
		took := time.Since(start)
		if s.lease.inflight.Load() == 0 || time.Since(begun) > deletePace {
			return err
		}
		select {
		case <-time.After(min(deleteRest*took, deleteRestMost)):
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
		return err
	}
}

// eachEpoch is eachChunk for chunks that come with epochs, or without.
func eachEpoch(chunks, epochs []uint64, f func(id.ChunkID, id.Epoch) error) error {
	if n := len(epochs); n != 0 && n != len(chunks) {
		return fserr.Invalid
	}
	i := 0
	return eachChunk(chunks, func(c id.ChunkID) error {
		var e id.Epoch
		if len(epochs) > 0 {
			e = id.Epoch(epochs[i])
		}
		i++
		return f(c, e)
	})
}

// servePunch punches for a caller that died, durably.
func (s *Server) servePunch(m *msg.ChunkPunch) error {
	if m.From >= m.To {
		return fserr.Invalid
	}
	c, e := id.ChunkID(m.Chunk), id.Epoch(m.Epoch)
	if err := s.store.Punch(c, e, m.From, m.To); err != nil {
		return err
	}
	return s.store.Flush(c, e)
}
