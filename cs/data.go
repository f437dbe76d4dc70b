package cs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// op is the memory of one data request, kept for the next.
type op struct {
	req  wire.DataRequest
	sums []uint32
	body []byte
}

var ops = sync.Pool{New: func() any { return new(op) }}

// serveData answers Read, Write, Punch and Flush.
func (s *Server) serveData(ctx context.Context, c *wire.Conn, p peer, req *wire.Frame) {
	start := time.Now()
	o := ops.Get().(*op)
	defer ops.Put(o)
	code, body, data, held := s.data(ctx, p, req, o)
	if code != fserr.OK {
		s.stats.errors.Add(1)
	}
	_ = c.Reply(req, code, body, data) // a lost connection needs no answer
	wire.Recycle(data)
	if held > 0 {
		s.clientMemory.Release(held)
	}
	s.stats.observe(time.Since(start))
}

// data does a data request. held is what the answer's data holds of the clients' memory.
func (s *Server) data(ctx context.Context, p peer, req *wire.Frame, o *op) (code fserr.Code, body, data []byte, held int64) {
	r := &o.req
	if err := r.Decode(req.Body); err != nil {
		return fserr.Of(err), nil, nil, 0
	}
	if code := permit(p, req, r); code != fserr.OK {
		return code, nil, nil, 0
	}
	if s.closing.Load() || !s.lease.enter() {
		return fserr.Unavailable, nil, nil, 0
	}
	defer s.lease.leave()
	if !s.fences.enter(r.Session) {
		return fserr.Fenced, nil, nil, 0
	}
	defer s.fences.leave(r.Session)
	var err error
	switch req.Type {
	case wire.Read:
		body, data, held, err = s.read(ctx, p, req.Epoch, o)
	case wire.Write:
		s.stats.writes.Add(1)
		s.stats.writeBytes.Add(uint64(len(req.Data)))
		body, err = s.write(req, r)
	case wire.Punch:
		s.stats.punches.Add(1)
		body, err = s.punch(req, r)
	case wire.Flush:
		s.stats.flushes.Add(1)
		err = s.store.Flush(r.Chunk, req.Epoch)
	}
	return s.code(err), body, data, held
}

// permit refuses what a peer of its kind may not ask, and what contradicts itself.
func permit(p peer, req *wire.Frame, r *wire.DataRequest) fserr.Code {
	changes := req.Type == wire.Write || req.Type == wire.Punch
	forwards := r.Forward != [wire.MaxForward]id.ServerID{}
	server := p.role == msg.Hello_CHUNK_SERVER || p.role == msg.Hello_METADATA_SERVER
	switch {
	case p.role == msg.Hello_CLIENT && r.Session != p.session:
		return fserr.NoSession
	case r.Chunk.IsScratch() != (p.role == msg.Hello_ADMIN) && (changes || req.Type == wire.Flush || r.Chunk.IsScratch()):
		return fserr.Protocol // administrators change scratch chunks and nothing else, and nobody else does
	case changes && !server && r.Session == 0 && !r.Chunk.IsScratch():
		return fserr.NoSession // it could not be fenced
	case r.Flags&wire.Forwarded != 0 && (p.role != msg.Hello_CHUNK_SERVER || r.Flags&wire.Ordered != 0):
		return fserr.Protocol
	case forwards && (r.Flags&wire.Ordered == 0 || !changes):
		return fserr.Protocol
	case changes && r.Length == 0:
		return fserr.Invalid
	case req.Type == wire.Write && int(r.Length) != len(req.Data):
		return fserr.Protocol
	case req.Type != wire.Write && (len(req.Data) > 0 || len(r.Sums) > 0):
		return fserr.Protocol
	case req.Type == wire.Read && (r.Length == 0 || r.Length > wire.MaxData || !chunk.Aligned(r.Offset, r.Length)):
		return fserr.Invalid
	}
	return fserr.OK
}

func (s *Server) read(ctx context.Context, p peer, e id.Epoch, o *op) (body, data []byte, held int64, err error) {
	r := &o.req
	n := int64(r.Length)
	if p.role != msg.Hello_CHUNK_SERVER {
		// Peers read for rebuilds, of which each has a limit of its own, and never wait for guests.
		if err := s.clientMemory.Acquire(ctx, n); err != nil {
			return nil, nil, 0, fserr.Unavailable
		}
		held = n
	}
	blocks := int(r.Length / chunk.BlockSize)
	if cap(o.sums) < blocks {
		o.sums = make([]uint32, blocks)
	}
	o.sums = o.sums[:blocks]
	data = wire.Buffer(int(r.Length))
	if err := s.store.Read(r.Chunk, e, r.Offset, r.Length, data, o.sums); err != nil {
		wire.Recycle(data)
		if held > 0 {
			s.clientMemory.Release(held)
		}
		return nil, nil, 0, s.rot(r.Chunk, err)
	}
	s.stats.reads.Add(1)
	s.stats.readBytes.Add(uint64(n))
	o.body = wire.AppendSums(o.body[:0], o.sums)
	return o.body, data, held, nil
}

// rot turns a checksum that is wrong on the disk into IO: the peer reads elsewhere.
func (s *Server) rot(c id.ChunkID, err error) error {
	if !errors.Is(err, fserr.BadChecksum) {
		return err
	}
	s.log.Error("block does not match its checksum", "chunk", c, "err", err)
	return fmt.Errorf("%w: %v", fserr.IO, err)
}

func (s *Server) write(req *wire.Frame, r *wire.DataRequest) (body []byte, err error) {
	var then func() error
	if r.Flags&wire.Ordered != 0 {
		then = func() (err error) {
			body, err = s.forward(req, r)
			return err
		}
	}
	if _, count := chunk.Span(r.Offset, r.Length); int(count) != len(r.Sums) {
		return nil, fserr.Protocol
	}
	err = s.store.WriteThen(r.Chunk, req.Epoch, r.Offset, req.Data, r.Sums, then)
	if errors.Is(err, fserr.BadChecksum) && chunk.VerifySums(r.Sums, r.Offset, req.Data) < 0 {
		err = s.rot(r.Chunk, err) // not the payload, but the old block that it was to be merged into
	}
	return body, err
}

func (s *Server) punch(req *wire.Frame, r *wire.DataRequest) (body []byte, err error) {
	var then func() error
	if r.Flags&wire.Ordered != 0 {
		then = func() (err error) {
			body, err = s.forward(req, r)
			return err
		}
	}
	err = s.store.PunchThen(r.Chunk, req.Epoch, r.Offset, r.Offset+r.Length, then)
	if errors.Is(err, fserr.BadChecksum) {
		err = s.rot(r.Chunk, err)
	}
	return body, err
}
