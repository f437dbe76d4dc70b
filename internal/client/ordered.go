package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

// A change under a shared-write lease has a name, (session, seq), under which chunk servers remember it, so that however often it is sent, by
// whatever replica it goes, it is done once (cs/order). It keeps the name until it is over.
//
// One under an exclusive lease has none, as nobody else reads or writes there. So a change that some replicas may have and others not
// must be over before the lease is shared: until then a recall is not answered (doubt). It is over as soon as those that do not answer are back, or
// are dropped, which needs no lease.

// ordinals are the changes of a session that have names and are not over.
type ordinals struct {
	mu    sync.Mutex
	last  uint64
	under []named // by seq; those that are over stay until all before them are
}

type named struct {
	seq   uint64
	chunk id.ChunkID
	over  bool
}

// take names a change.
func (n *ordinals) take(c id.ChunkID) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last++
	n.under = append(n.under, named{seq: n.last, chunk: c})
	return n.last
}

// tell fills in what servers are told of a change that is to be sent: its name, and which are over.
func (n *ordinals) tell(r *wire.DataRequest, seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	low, here := seq, seq
	for i := range n.under {
		x := &n.under[i]
		if x.seq == seq {
			x.chunk = r.Chunk // it may be another one than before
			break
		}
		if !x.over {
			low = min(low, x.seq)
			if x.chunk == r.Chunk {
				here = min(here, x.seq)
			}
		}
	}
	r.Seq, r.Low, r.Recent = seq, low, uint32(min(seq-here, math.MaxUint32))
}

// end says that a change is over.
func (n *ordinals) end(seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.under {
		if n.under[i].seq == seq {
			n.under[i].over = true
		}
	}
	i := 0
	for i < len(n.under) && n.under[i].over {
		i++
	}
	n.under = append(n.under[:0], n.under[i:]...)
}

// name gives the request its name.
func (op *dataOp) name() {
	n := &op.in.s.ordinals
	if op.seq == 0 {
		op.seq = n.take(op.req.Chunk)
	}
	n.tell(&op.req, op.seq)
}

// doubt notes that some replicas may have the change and others not. Preconditions: inode.layoutMu is held. An append is none: what it leaves is
// past the end of the file, and it moves elsewhere if the lease changes (abandon).
func (op *dataOp) doubt() {
	if op.doubtful || op.appending || op.seq != 0 || !op.sent || op.typ == wire.Flush {
		return
	}
	op.doubtful = true
	in := op.in
	in.mu.Lock()
	if in.doubts++; in.doubts == 1 {
		in.sure = make(chan struct{})
	}
	in.mu.Unlock()
}

// ended notes that the change is over: all replicas have it, or nobody will ask for it again.
func (op *dataOp) ended() {
	if op.seq != 0 {
		op.in.s.ordinals.end(op.seq)
		op.seq = 0
	}
	if !op.doubtful {
		return
	}
	op.doubtful = false
	in := op.in
	in.mu.Lock()
	if in.doubts--; in.doubts == 0 {
		close(in.sure)
	}
	in.mu.Unlock()
}

// doubtful returns what is closed when no change is in doubt any more, nil if none is.
func (in *inode) doubtful() <-chan struct{} {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.doubts == 0 {
		return nil
	}
	return in.sure
}

// lockSure locks layoutMu for writing when no change is in doubt. It fails when ctx or the session ends before.
func (in *inode) lockSure(ctx context.Context) error {
	for {
		in.layoutMu.Lock()
		sure := in.doubtful()
		if sure == nil {
			return nil
		}
		in.layoutMu.Unlock()
		select {
		case <-sure:
		case <-in.s.ctx.Done():
			in.layoutMu.Lock()
			return nil // what is left of it the metadata server settles
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

// order has a read go to the first replica as one of a shared-write lease: what it shows, all replicas have.
func (in *inode) order(req *wire.DataRequest, loc *location) {
	req.Flags = wire.Ordered
	for i, r := range loc.replicas[1:min(len(loc.replicas), maxReplicas)] {
		req.Forward[i] = r.server
	}
}

// lacking says that the first replica could not have another one have what it was to show.
type lacking struct {
	server id.ServerID
	why    fserr.Code
}

func (l *lacking) Error() string {
	return fmt.Sprintf("%v does not take what it lacks: %v", l.server, l.why)
}

// Unwrap returns the outcome that the read has.
func (l *lacking) Unwrap() error { return fserr.ReplicaFailed }

func lackingOf(f *wire.Frame) error {
	server, why, err := wire.DecodeReplicaFailed(f.Body)
	if err != nil {
		return err
	}
	return &lacking{server, why}
}

// dropLacking has a replica dropped that keeps the first one from answering a read, unless it may only need time. What cannot be dropped is waited for.
func (in *inode) dropLacking(ctx context.Context, loc *location, err error) {
	var l *lacking
	if !errors.As(err, &l) {
		return
	}
	switch l.why {
	case fserr.NotReady, fserr.NoChunk, fserr.StaleEpoch:
		return
	}
	if _, err := in.drop(ctx, loc, l.server, "the first replica could not write to it: "+l.why.Error()); err != nil && ctx.Err() == nil {
		in.s.c.log.Warn("replica not dropped", "inode", in.ino, "chunk", loc.chunk, "cs", l.server, "err", err)
	}
}
