package client

import (
	"context"

	"varve/internal/id"
)

// A request that was given up may still be carried out, by a server that was stopped, or reads what the connection had taken. So nothing may be
// sent to that server on another way, nor the blocks be given to others, before its next connection on the same lane has been greeted: the
// greeting waits until what came on the old one has ended. Until then the operation owes that connection. In parallel it is made anyway; a
// write that goes through the first replica, since the lease is shared by now, and an append that moves elsewhere, must see to it.

// owe notes a server that may still be carrying out a request of ours.
func (op *dataOp) owe(server id.ServerID) {
	for i, s := range op.owed {
		if s == server || s == 0 {
			op.owed[i] = server
			return
		}
	}
}

// pay notes that nothing of ours is under way at the server.
func (op *dataOp) pay(server id.ServerID) {
	for i, s := range op.owed {
		if s == server {
			copy(op.owed[i:], op.owed[i+1:])
			op.owed[maxReplicas-1] = 0
			return
		}
	}
}

// payUp makes the connections that are owed to replicas of the chunk. If one cannot be made it reports false, with that replica as
// the target that was unreachable. What a server does that is not in the replica set counts for nothing.
func (op *dataOp) payUp(loc *location) bool {
	for op.owed[0] != 0 {
		server := op.owed[0]
		for i := range loc.replicas {
			if r := &loc.replicas[i]; r.server == server {
				srv := op.in.s.servers.server(r)
				if _, err := srv.conn(op.lane); err != nil {
					op.n = 1
					op.targets[0] = target{r: r, srv: srv, outcome: outcome{what: unreachable, err: err}}
					return false
				}
			}
		}
		op.pay(server)
	}
	return true
}

// abandon ends an append whose place in the file is not ours any more, with errMoved when no server carries it out any more.
func (op *dataOp) abandon(ctx context.Context) error {
	in := op.in
	var wait backoff
	var st *stall
	defer func() { st.end() }()
	for op.owed[0] != 0 {
		if err := in.s.live(ctx); err != nil {
			return err
		}
		in.layoutMu.RLock()
		loc, known := in.lookup(op.piece.Index)
		if !known {
			in.layoutMu.RUnlock()
			if err := in.fetch(ctx, op.piece.Index); err != nil {
				return err
			}
			continue
		}
		if loc == nil || op.payUp(loc) {
			in.layoutMu.RUnlock()
			break // the chunk is gone, or nothing is under way
		}
		in.layoutMu.RUnlock()
		if st == nil {
			st = in.s.c.watch("replicas", "inode", in.ino, "chunk", loc.chunk)
		}
		if _, err := op.mend(ctx, loc); err != nil {
			return err
		}
		if err := wait.wait(ctx, in.s.ctx); err != nil {
			return err
		}
	}
	return errMoved
}
