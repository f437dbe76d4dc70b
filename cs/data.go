package cs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/cs/store"
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
	code, body, data := s.data(ctx, p, req, o)
	if code != fserr.OK {
		s.stats.errors.Add(1)
	}
	_ = c.Reply(req, code, body, data) // a lost connection needs no answer
	s.stats.observe(p.class(req.Class), time.Since(start))
}

// data does a data request. The answer's data is of the request's grant.
func (s *Server) data(ctx context.Context, p peer, req *wire.Frame, o *op) (code fserr.Code, body, data []byte) {
	r := &o.req
	if err := r.Decode(req.Body); err != nil {
		return fserr.Of(err), nil, nil
	}
	if code := permit(p, req, r); code != fserr.OK {
		return code, nil, nil
	}
	if s.closing.Load() || !s.lease.enter() {
		return fserr.Unavailable, nil, nil
	}
	defer s.lease.leave()
	if !s.fences.enter(r.Session) {
		return fserr.Fenced, nil, nil
	}
	defer s.fences.leave(r.Session)
	var err error
	switch req.Type {
	case wire.Read:
		body, data, err = s.read(ctx, req, o)
	case wire.Write:
		s.stats.writes.Add(1)
		s.stats.writeBytes.Add(uint64(len(req.Data)))
		if body, err = s.write(req, r); err == nil && r.Flags&wire.Durable != 0 {
			s.stats.flushes.Add(1)
			err = s.store.Flush(r.Chunk, req.Epoch)
		}
	case wire.Punch:
		s.stats.punches.Add(1)
		body, err = s.punch(req, r)
	case wire.Flush:
		s.stats.flushes.Add(1)
		err = s.store.Flush(r.Chunk, req.Epoch)
	}
	return s.code(err), body, data
}

// permit refuses what a peer of its kind may not ask, and what contradicts itself.
func permit(p peer, req *wire.Frame, r *wire.DataRequest) fserr.Code {
	changes := req.Type == wire.Write || req.Type == wire.Punch
	forwards := r.Forward != [wire.MaxForward]id.ServerID{}
	server := p.role == msg.Hello_CHUNK_SERVER || p.role == msg.Hello_METADATA_SERVER
	if code := p.may.permit(req.Type); code != fserr.OK {
		return code
	}
	switch {
	case p.role == msg.Hello_CLIENT && r.Session != p.session:
		return fserr.NoSession
	case r.Chunk.IsScratch() != (p.role == msg.Hello_ADMIN) && (changes || req.Type == wire.Flush || r.Chunk.IsScratch()):
		return fserr.Protocol // administrators change scratch chunks and nothing else, and nobody else does
	case changes && !server && r.Session == 0 && !r.Chunk.IsScratch():
		return fserr.NoSession // it could not be fenced
	case r.Flags&wire.Forwarded != 0 && (p.role != msg.Hello_CHUNK_SERVER || r.Flags&wire.Ordered != 0):
		return fserr.Protocol
	case r.Flags&wire.Ordered != 0 && !changes && req.Type != wire.Read, forwards && r.Flags&wire.Ordered == 0:
		return fserr.Protocol
	case r.Flags&wire.Settled != 0 && (r.Flags&wire.Forwarded == 0 || !changes || !chunk.Aligned(r.Offset, r.Length)):
		return fserr.Protocol
	case r.Flags&wire.Durable != 0 && (req.Type != wire.Write || r.Flags != wire.Durable || r.Seq != 0):
		return fserr.Protocol
	case r.Seq != 0 && (!changes || r.Flags&(wire.Ordered|wire.Forwarded) == 0 || r.Session == 0):
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

func (s *Server) read(ctx context.Context, req *wire.Frame, o *op) (body, data []byte, err error) {
	r := &o.req
	blocks := int(r.Length / chunk.BlockSize)
	if cap(o.sums) < blocks {
		o.sums = make([]uint32, blocks)
	}
	o.sums = o.sums[:blocks]
	g := req.Grant.(*grant)
	if g.answer, err = g.memory.Wait(ctx, int(r.Length)); err != nil {
		return nil, nil, fserr.Unavailable
	}
	for try := 0; ; try++ {
		if err := s.store.Read(r.Chunk, req.Epoch, r.Offset, r.Length, g.answer, o.sums); err != nil {
			return nil, nil, s.rot(r.Chunk, err)
		}
		// What was read is noted already, so it is looked at now.
		if r.Flags&wire.Ordered == 0 || !s.orders.loose(r.Chunk, req.Epoch, r.Offset, r.Offset+r.Length) {
			break
		}
		if try == orderedTries {
			return nil, nil, fserr.Unavailable
		}
		if err := s.settle(req.Epoch, r); err != nil && !errors.Is(err, errAgain) {
			return s.failedBody(r.Chunk, err), nil, err
		}
	}
	s.stats.reads.Add(1)
	s.stats.readBytes.Add(uint64(r.Length))
	o.body = wire.AppendSums(o.body[:0], o.sums)
	return o.body, g.answer, nil
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
	if _, count := chunk.Span(r.Offset, r.Length); int(count) != len(r.Sums) {
		return nil, fserr.Protocol
	}
	var then func() error
	switch {
	case named(r) && r.Flags&wire.Ordered != 0:
		body, err = s.ordered(req, r)
		return body, s.rotten(req, r, err)
	case named(r):
		err = s.noted(req.Epoch, r, func(a store.Around) error {
			return s.store.WriteAround(r.Chunk, req.Epoch, r.Offset, req.Data, r.Sums, a)
		})
		return nil, s.rotten(req, r, err)
	case r.Flags&wire.Ordered != 0:
		then = func() (err error) {
			body, err = s.forward(req, r)
			return err
		}
	}
	err = s.store.WriteThen(r.Chunk, req.Epoch, r.Offset, req.Data, r.Sums, then)
	return body, s.rotten(req, r, err)
}

// rotten is rot for a write, unless it is the payload that is wrong, and not the old block that it was to be merged into.
func (s *Server) rotten(req *wire.Frame, r *wire.DataRequest, err error) error {
	if errors.Is(err, fserr.BadChecksum) && chunk.VerifySums(r.Sums, r.Offset, req.Data) < 0 {
		return s.rot(r.Chunk, err)
	}
	return err
}

func (s *Server) punch(req *wire.Frame, r *wire.DataRequest) (body []byte, err error) {
	var then func() error
	switch {
	case named(r) && r.Flags&wire.Ordered != 0:
		body, err = s.ordered(req, r)
		return body, s.rot(r.Chunk, err)
	case named(r):
		err = s.noted(req.Epoch, r, func(a store.Around) error {
			return s.store.PunchAround(r.Chunk, req.Epoch, r.Offset, r.Offset+r.Length, a)
		})
		return nil, s.rot(r.Chunk, err)
	case r.Flags&wire.Ordered != 0:
		then = func() (err error) {
			body, err = s.forward(req, r)
			return err
		}
	}
	err = s.store.PunchThen(r.Chunk, req.Epoch, r.Offset, r.Offset+r.Length, then)
	return body, s.rot(r.Chunk, err)
}
