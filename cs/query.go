package cs

import (
	"context"

	"varve/cs/repl"
	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

type chunkInfo = store.Info

const (
	// maxList bounds the chunks in one answer to ChunkList.
	maxList = 4096
	// maxVerifies is the number of chunks that are verified at once.
	maxVerifies = 1
)

// answer decodes a control message, has it served and replies with what serve returned.
func answer[M wire.Message](s *Server, c *wire.Conn, req *wire.Frame, m M, serve func(*wire.Frame, M) (wire.Message, []byte, error)) {
	if err := m.UnmarshalVT(req.Body); err != nil {
		_ = c.Reply(req, fserr.Protocol, nil, nil)
		return
	}
	reply, data, err := serve(req, m)
	code := s.code(err)
	var body []byte
	if reply != nil {
		if body, err = reply.MarshalVT(); err != nil {
			code, body, data = fserr.Protocol, nil, nil
		}
	}
	_ = c.Reply(req, code, body, data)
}

// serveTable answers with the checksums of all blocks. The reply says what the replica is also if it is not what was asked for.
func (s *Server) serveTable(_ *wire.Frame, m *msg.ChunkTable) (wire.Message, []byte, error) {
	if !s.lease.held() {
		return nil, nil, fserr.Unavailable
	}
	// The changes first: what is in them is in the blocks that the table tells of.
	done := s.orders.of(nil, id.ChunkID(m.Chunk), 0, chunk.Size)
	sums, e, st, err := s.store.Table(id.ChunkID(m.Chunk))
	if err != nil {
		return nil, nil, err
	}
	reply := &msg.ChunkTableReply{Epoch: uint64(e), Joining: st.Joining(), Unclean: st == repl.Unclean, Ordered: wire.AppendDone(nil, done)}
	return reply, wire.AppendSums(make([]byte, 0, 4*len(sums)), sums), nil
}

func (s *Server) serveSeek(req *wire.Frame, m *msg.ChunkSeek) (wire.Message, []byte, error) {
	if !s.lease.held() {
		return nil, nil, fserr.Unavailable
	}
	off, found, err := s.store.Seek(id.ChunkID(m.Chunk), req.Epoch, m.Offset, m.Hole)
	if err != nil {
		return nil, nil, err
	}
	return &msg.ChunkSeekReply{Offset: off, Found: found}, nil, nil
}

func (s *Server) serveList(_ *wire.Frame, m *msg.ChunkList) (wire.Message, []byte, error) {
	n := int(min(m.Max, maxList))
	if n == 0 {
		n = maxList
	}
	infos, more := s.store.List(id.ChunkID(m.After), n)
	reply := &msg.ChunkListReply{Last: !more}
	for _, i := range infos {
		reply.Chunks = append(reply.Chunks, s.infoMessage(i))
	}
	return reply, nil, nil
}

func (s *Server) serveVerify(ctx context.Context, m *msg.ChunkVerify) (wire.Message, []byte, error) {
	if err := s.verifies.Acquire(ctx, 1); err != nil {
		return nil, nil, fserr.Unavailable
	}
	defer s.verifies.Release(1)
	blocks, bad, digest, err := s.store.Verify(id.ChunkID(m.Chunk))
	if err != nil {
		return nil, nil, err
	}
	return &msg.ChunkVerifyReply{Blocks: uint32(blocks), Bad: uint32(bad), Digest: digest[:]}, nil, nil
}
