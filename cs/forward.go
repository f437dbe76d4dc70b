package cs

import (
	"context"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

// forwarded is how one server of a forward list answered.
type forwarded struct {
	server id.ServerID
	code   fserr.Code
	err    error // why, if it is known
}

// forward sends an ordered write or punch to the servers of its list, in parallel, and returns when each has answered or can no longer
// carry it out. It is called with the blocks locked. The body goes with the outcome ReplicaFailed.
//
// It does not end with the client's connection: a client that lost it may send the write again once this request has
// ended, and then nothing of it may be left under way at another server.
func (s *Server) forward(req *wire.Frame, r *wire.DataRequest) ([]byte, error) {
	out := *r
	out.Flags = wire.Forwarded
	out.Forward = [wire.MaxForward]id.ServerID{}
	frame := wire.Frame{Type: req.Type, Class: wire.ClassReplication, Epoch: req.Epoch, Body: out.Append(nil), Data: req.Data}
	bad := s.sendAll(r, &frame)
	switch bad.code {
	case fserr.OK:
		return nil, nil
	case fserr.StaleEpoch, fserr.Fenced:
		return nil, bad.code // says something of the client, not of the server
	}
	s.log.Warn("forward failed", "chunk", r.Chunk, "cs", bad.server, "code", bad.code, "err", bad.err)
	return wire.AppendReplicaFailed(nil, bad.server, bad.code), fmt.Errorf("forward to %v: %w", bad.server, fserr.ReplicaFailed)
}

// worse orders outcomes by which of them the client must know if there are several.
func worse(code fserr.Code) int {
	switch code {
	case fserr.OK:
		return 0
	case fserr.NoSpace: // it has not done it
		return 1
	case fserr.StaleEpoch:
		return 3
	case fserr.Fenced:
		return 4
	}
	return 2
}

// forwardTo sends a frame to one server, a second time on a new connection if the first was lost: that is greeted when nothing of the lost
// one is under way, and doing it twice is doing it once.
func (s *Server) forwardTo(ctx context.Context, server id.ServerID, c id.ChunkID, frame *wire.Frame) forwarded {
	lane := s.peers.lane(server, c, wire.ClassReplication)
	for {
		conn, fresh, err := s.peers.conn(ctx, server, lane)
		if err != nil {
			return forwarded{server, failureCode(err), err}
		}
		start := time.Now()
		reply, err := conn.Call(ctx, frame)
		s.peers.waited(server, time.Since(start))
		if err == nil {
			code := reply.Code
			reply.Release()
			return forwarded{server, code, nil}
		}
		conn.Close() // after a time-out too: what is still under way there ends before the next greeting
		if fresh || ctx.Err() != nil {
			return forwarded{server, failureCode(err), err}
		}
	}
}

// failureCode is the outcome that tells a client of a failure to talk to a peer.
func failureCode(err error) fserr.Code {
	if code := fserr.Of(err); code != fserr.IO {
		return code
	}
	return fserr.Unavailable
}
