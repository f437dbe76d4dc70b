package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/readcache"
	"varve/internal/wire"
)

// localOp is one read by a grant. It has memory of its own, so that a disk that does not answer holds up nobody.
type localOp struct {
	op    local.Op
	ssd   *readcache.Op // or, if not nil, one of the read cache
	buf   []byte
	n     int   // what the ring has read
	err   error // or why not
	lost  bool  // the kernel may write to buf for ever
	done  chan error
	timer *time.Timer
}

// errFetched says on localOp.done that the disk has answered, and that the read is still to be finished.
var errFetched = errors.New("fetched")

var localOps = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &localOp{done: make(chan error, 1), timer: t}
}}

func (op *localOp) free() {
	if !op.lost {
		wire.Recycle(op.buf)
	}
	op.buf, op.err, op.lost, op.ssd = nil, nil, false, nil
	localOps.Put(op)
}

// outcome returns the outcome of a read that came on done.
func (op *localOp) outcome(err error) error {
	if err == errFetched {
		return op.finish(op.n, op.err)
	}
	return err
}

// readLocal fills p, the part of a chunk that pc says and whole has in whole blocks, from the file of a replica on this host. It
// reports false if that cannot be done now. An error says that the replica is of no use to this read over the network either.
//
// Preconditions: as for readFrom. Like that it is done under inode.layoutMu, which a change of the replica set waits for.
func (in *inode) readLocal(ctx context.Context, loc *location, r *replica, whole, pc chunk.Piece, p []byte) (bool, error) {
	srv := in.s.servers.server(r)
	l := srv.bypass.Load()
	if l == nil {
		srv.seek()
		return false, nil
	}
	if l.stuck.Load() > 0 {
		return false, nil
	}
	g := l.find(loc.chunk, loc.epoch)
	if g == nil {
		return false, nil
	}
	op := localOps.Get().(*localOp)
	op.buf = wire.Buffer(int(whole.Length))
	if err := g.Begin(&op.op, op.buf, whole.Offset/chunk.BlockSize); err != nil {
		op.free()
		return l.judge(err, loc.chunk, g, len(p)), nil
	}
	srv.inFlight.Add(1)
	defer srv.inFlight.Add(-1)
	in.s.c.disk.read(op)
	op.timer.Reset(in.s.c.o.ReadTimeout)
	var err error
	select {
	case err = <-op.done:
		op.timer.Stop()
	case <-op.timer.C:
		l.abandon(op)
		in.s.c.localReads.failed.Add(1)
		return false, fmt.Errorf("read the file of %v: %w", srv.id, fserr.Timeout)
	case <-ctx.Done():
		l.abandon(op)
		return false, ended(ctx)
	}
	if err = op.outcome(err); err == nil {
		in.cache(loc, whole, op.buf, nil)
		copy(p, op.buf[pc.Offset-whole.Offset:])
	}
	op.free()
	return l.judge(err, loc.chunk, g, len(p)), nil
}

// abandon leaves a read to end by itself, which nobody waits for, as nobody can end it. Until then the bypass is not used.
func (l *bypass) abandon(op *localOp) {
	op.timer.Stop()
	l.stuck.Add(1)
	go func() {
		_ = op.outcome(<-op.done) // it comes too late
		l.stuck.Add(-1)
	}()
}

// judge counts a read and reports whether it is good.
func (l *bypass) judge(err error, c id.ChunkID, g *grant, n int) bool {
	k := &l.srv.s.c.localReads
	switch {
	case err == nil:
		k.reads.Add(1)
		k.bytes.Add(uint64(n))
		return true
	case errors.Is(err, local.ErrChanging):
		k.changing.Add(1)
	case errors.Is(err, local.ErrLapsed):
		k.lapsed.Add(1)
	case errors.Is(err, local.ErrRevoked), errors.Is(err, os.ErrClosed):
		k.revoked.Add(1)
		l.forget(c, g, 0)
	case errors.Is(err, local.ErrPlace):
		k.revoked.Add(1)
		l.close()
	case errors.Is(err, fserr.BadChecksum):
		k.damaged.Add(1) // the server finds it too, and says so
	default:
		k.failed.Add(1)
		l.forget(c, g, askAgain)
	}
	return false
}
