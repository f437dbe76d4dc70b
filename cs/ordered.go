package cs

import (
	"context"
	"errors"
	"fmt"

	"varve/cs/order"
	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

const (
	// orderedTries bounds how often blocks are made equal for one request. Each time something has come in between.
	orderedTries = 16
	// spreadBlocks is how many blocks are sent at once when replicas are made equal.
	spreadBlocks = 64
	// maxSpreads bounds those who make replicas equal at once, each of whom has a buffer.
	maxSpreads = 4
)

// errAgain says that what a request has found out without the lock has changed.
var errAgain = errors.New("changed meanwhile")

// replicaFailed says that another replica has not done what this one sent to it.
type replicaFailed struct{ forwarded }

func (f *replicaFailed) Error() string {
	return fmt.Sprintf("forward to %v: %v: %v", f.server, f.code, f.err)
}

// Unwrap returns the outcome for the client. What says something of the client, not of the server, is its own.
func (f *replicaFailed) Unwrap() error {
	if f.code == fserr.StaleEpoch || f.code == fserr.Fenced {
		return f.code
	}
	return fserr.ReplicaFailed
}

// failedBody returns the body that goes with an outcome.
func (s *Server) failedBody(c id.ChunkID, err error) []byte {
	var f *replicaFailed
	if !errors.As(err, &f) || !errors.Is(err, fserr.ReplicaFailed) {
		return nil
	}
	s.log.Warn("forward failed", "chunk", c, "cs", f.server, "code", f.code, "err", f.err)
	return wire.AppendReplicaFailed(nil, f.server, f.code)
}

// ordered does a change with a name as the first replica: once, on all replicas, those of the list first (package order).
func (s *Server) ordered(req *wire.Frame, r *wire.DataRequest) (body []byte, err error) {
	if err := s.orders.enter(r); err != nil {
		return nil, err
	}
	defer s.orders.release()
	for range orderedTries {
		if err = s.orderedOnce(req, r); !errors.Is(err, errAgain) {
			return s.failedBody(r.Chunk, err), err
		}
	}
	return nil, fmt.Errorf("chunk %v: blocks at %d are changed again and again: %w", r.Chunk, r.Offset, fserr.Unavailable)
}

func (s *Server) orderedOnce(req *wire.Frame, r *wire.DataRequest) error {
	if err := s.settle(req.Epoch, r); err != nil {
		return err
	}
	var some [4]order.Range
	missing := s.orders.missing(some[:0], r)
	if len(missing) == 0 {
		s.stats.repeats.Add(1)
		// It is done, but for whom? A replica that is in no set any more must not say so.
		return s.store.Hold(r.Chunk, req.Epoch, r.Offset, r.Offset+r.Length, func(*store.Held) error {
			if s.orders.loose(r.Chunk, req.Epoch, r.Offset, r.Offset+r.Length) || len(s.orders.missing(nil, r)) > 0 {
				return errAgain
			}
			return nil
		})
	}
	for _, m := range missing {
		if err := s.orderedPart(req, r, m); err != nil {
			return err
		}
	}
	return nil
}

// orderedPart does the bytes m of a change.
func (s *Server) orderedPart(req *wire.Frame, r *wire.DataRequest, m order.Range) error {
	part := *r
	part.Offset, part.Length, part.Flags, part.Forward = m.From, m.To-m.From, wire.Forwarded, [wire.MaxForward]id.ServerID{}
	frame := wire.Frame{Type: req.Type, Class: wire.ClassReplication, Epoch: req.Epoch}
	if req.Type == wire.Write {
		// A part begins and ends at blocks, or where the whole does.
		skip := m.From/chunk.BlockSize - r.Offset/chunk.BlockSize
		_, count := chunk.Span(part.Offset, part.Length)
		part.Sums = r.Sums[skip : skip+count]
		frame.Data = req.Data[m.From-r.Offset : m.To-r.Offset]
	}
	frame.Body = part.Append(nil)
	around := store.Around{
		Before: func(h *store.Held) error {
			if now := s.orders.missing(nil, &part); len(now) != 1 || now[0] != m || s.orders.loose(r.Chunk, req.Epoch, m.From, m.To) {
				return errAgain
			}
			bad := s.sendAll(r, &frame)
			switch bad.code {
			case fserr.OK:
				return nil
			case fserr.NoSpace: // and nothing worse: it is taken back where there was room
				if undo := s.spread(h, req.Epoch, r, m.From, m.To); undo.code != fserr.OK {
					bad = undo
				}
			}
			return &replicaFailed{bad}
		},
		After: func(h *store.Held, err error) error {
			if err == nil {
				return s.orders.note(&part, req.Epoch, true)
			}
			if errors.Is(err, fserr.NoSpace) {
				if undo := s.spread(h, req.Epoch, r, m.From, m.To); undo.code != fserr.OK {
					return &replicaFailed{undo}
				}
			}
			return err
		},
	}
	if req.Type == wire.Punch {
		return s.store.PunchAround(r.Chunk, req.Epoch, m.From, m.To, around)
	}
	return s.store.WriteAround(r.Chunk, req.Epoch, m.From, frame.Data, part.Sums, around)
}

// settle makes the blocks of a request equal on the list if another replica may lack something of what this one has there.
func (s *Server) settle(epoch id.Epoch, r *wire.DataRequest) error {
	from, to := r.Offset, r.Offset+r.Length
	if !s.orders.loose(r.Chunk, epoch, from, to) {
		return nil
	}
	from, to = s.orders.closure(r.Chunk, epoch, from, to)
	return s.store.Hold(r.Chunk, epoch, from, to, func(h *store.Held) error {
		if a, b := s.orders.closure(r.Chunk, epoch, from, to); a != from || b != to {
			return errAgain
		}
		if !s.orders.loose(r.Chunk, epoch, from, to) {
			return nil
		}
		s.stats.settles.Add(1)
		if bad := s.spread(h, epoch, r, from, to); bad.code != fserr.OK {
			return &replicaFailed{bad}
		}
		return s.orders.change(func(t *order.Table) { t.Settle(r.Chunk, epoch, from, to) })
	})
}

// spread sends the blocks of [from, to), which are held, to the request's list, with the changes that are in them.
func (s *Server) spread(h *store.Held, epoch id.Epoch, r *wire.DataRequest, from, to uint32) forwarded {
	s.spreads <- struct{}{}
	defer func() { <-s.spreads }()
	var buf []byte
	var sums [spreadBlocks]uint32
	first, end := from/chunk.BlockSize, (to-1)/chunk.BlockSize+1
	for b := first; b < end; {
		n, hole := h.Run(b, end-b)
		if !hole {
			n = min(n, spreadBlocks)
		}
		out := wire.DataRequest{Chunk: r.Chunk, Session: r.Session, Offset: b * chunk.BlockSize, Length: n * chunk.BlockSize, Flags: wire.Forwarded | wire.Settled}
		if out.Done = s.orders.of(nil, r.Chunk, out.Offset, out.Offset+out.Length); len(out.Done) > wire.MaxDone {
			return forwarded{s.id, fserr.Unavailable, fmt.Errorf("%d changes in %d blocks", len(out.Done), n)}
		}
		frame := wire.Frame{Type: wire.Punch, Class: wire.ClassReplication, Epoch: epoch}
		if !hole {
			if buf == nil {
				buf = disk.AlignedBuffer(spreadBlocks * chunk.BlockSize)
			}
			out.Sums = sums[:n]
			frame.Type, frame.Data = wire.Write, buf[:n*chunk.BlockSize]
			if err := h.Read(b, frame.Data, out.Sums); err != nil {
				return forwarded{s.id, fserr.Of(s.rot(r.Chunk, err)), err}
			}
		}
		frame.Body = out.Append(nil)
		if bad := s.sendAll(r, &frame); bad.code != fserr.OK {
			return bad
		}
		b += n
	}
	return forwarded{}
}

// sendAll sends a frame to the servers of a request's list, in parallel, and returns the worst outcome when each has answered or can no
// longer carry it out.
func (s *Server) sendAll(r *wire.DataRequest, frame *wire.Frame) (bad forwarded) {
	// Not the request's context: see forward.
	ctx, cancel := context.WithTimeout(context.Background(), s.o.ForwardTimeout)
	defer cancel()
	answers := make(chan forwarded, wire.MaxForward)
	n := 0
	for _, server := range r.Forward {
		if server == 0 || server == s.id {
			continue
		}
		n++
		go func() { answers <- s.forwardTo(ctx, server, r.Chunk, frame) }()
	}
	s.stats.forwards.Add(uint64(n))
	for range n {
		if a := <-answers; a.code != fserr.OK {
			s.stats.forwardErrors.Add(1)
			if worse(a.code) > worse(bad.code) {
				bad = a
			}
		}
	}
	return bad
}

// named reports whether a request is a change that is remembered.
func named(r *wire.DataRequest) bool { return r.Seq != 0 || r.Flags&wire.Settled != 0 }

// noted does a change that another server, the first replica, has forwarded, with do, and remembers it while the blocks are locked.
func (s *Server) noted(epoch id.Epoch, r *wire.DataRequest, do func(store.Around) error) error {
	if r.Seq != 0 {
		if err := s.orders.enter(r); err != nil {
			return err
		}
		defer s.orders.release()
	}
	return do(store.Around{After: func(_ *store.Held, err error) error {
		if err != nil {
			return err
		}
		return s.took(epoch, r)
	}})
}

// took remembers what was forwarded and is done.
func (s *Server) took(epoch id.Epoch, r *wire.DataRequest) error {
	if r.Seq != 0 {
		return s.orders.note(r, epoch, false)
	}
	return s.orders.settled(r, epoch)
}
