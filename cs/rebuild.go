package cs

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/cs/admit"
	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// rebuildRun bounds one read from the source, in blocks: 1 MiB.
	rebuildRun = (1 << 20) / chunk.BlockSize
	// rebuildDepth is the number of runs of a chunk that are copied at once.
	rebuildDepth = 4
	// rebuildPasses bounds how often the tables are compared.
	rebuildPasses = 8
	// rebuildTimeout bounds one answer of the source.
	rebuildTimeout = 10 * time.Second
)

// run is neighbouring blocks in which source and target differ, all holes or all data at the source.
type run struct {
	block, count uint32
	hole         bool
}

// rebuild makes this joining replica equal to the source and returns the bytes copied, also with an error.
//
// One pass would do: the source has refused writes of lower epochs since before the rebuild began, and what is written at this
// epoch reaches this replica too and is fresh here. The further passes verify that: they stop when one finds nothing to write. With writes
// under way one may find blocks that the source has and this replica is about to get, so their number is bounded.
func (s *Server) rebuild(ctx context.Context, m *msg.ChunkRebuild) (uint64, error) {
	if err := s.rebuilds.Acquire(ctx, 1); err != nil {
		return 0, fserr.Unavailable
	}
	defer s.rebuilds.Release(1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	r := rebuild{s: s, chunk: id.ChunkID(m.Chunk), epoch: id.Epoch(m.Epoch), source: id.ServerID(m.Source), class: wire.ClassRepair, own: admit.Repair}
	if m.Background {
		r.class, r.own = wire.ClassRebalance, admit.Rebalance
	}
	s.copying.add(&r)
	defer s.copying.remove(&r)
	if r.source == 0 || r.source == s.id {
		return 0, fserr.Invalid
	}
	if m.SourceAddr != "" {
		s.peers.learnRepair(r.source, m.SourceAddr)
	}
	err := r.copy(ctx)
	if err == nil {
		err = s.store.Flush(r.chunk, r.epoch)
	}
	if err == nil {
		err = s.store.Complete(r.chunk, r.epoch)
	}
	n := uint64(r.written.Load()) * chunk.BlockSize
	s.stats.rebuilds.Add(1)
	s.stats.rebuildBytes.Add(n)
	if err != nil {
		s.log.Warn("rebuild ended", "chunk", r.chunk, "epoch", r.epoch, "source", r.source, "bytes", n, "err", err)
	}
	return n, err
}

type rebuild struct {
	s       *Server
	chunk   id.ChunkID
	epoch   id.Epoch
	source  id.ServerID
	conn    *wire.Conn
	class   wire.Class   // of reads from the source
	own     admit.Class  // of writes here
	written atomic.Int64 // blocks
	differ  atomic.Int64 // blocks that are still to be copied in this pass
}

func (r *rebuild) copy(ctx context.Context) (err error) {
	if _, e, st, err := r.s.store.Table(r.chunk); err == nil && e == r.epoch && st == repl.Copied {
		return nil // the answer that said so was lost
	}
	if r.conn, _, err = r.s.peers.conn(ctx, r.source, r.s.peers.lane(r.source, r.chunk, r.class)); err != nil {
		return err
	}
	for range rebuildPasses {
		runs, err := r.compare(ctx)
		if err != nil {
			return err
		}
		before, left := r.written.Load(), int64(0)
		for _, run := range runs {
			left += int64(run.count)
		}
		r.differ.Store(left)
		if err := r.copyRuns(ctx, runs); err != nil {
			return err
		}
		if r.written.Load() == before {
			return nil
		}
	}
	return r.mergeEqual(ctx)
}

// mergeEqual takes the ordered changes that are in what the last pass has copied: those in whose blocks the replicas are equal now.
func (r *rebuild) mergeEqual(ctx context.Context) error {
	theirs, done, err := r.sourceTable(ctx)
	if err != nil {
		return err
	}
	ours, _, _, err := r.s.store.Table(r.chunk)
	if err != nil {
		return err
	}
	done = slices.DeleteFunc(done, func(d wire.Done) bool {
		first, count := chunk.Span(d.From, d.To-d.From)
		return !slices.Equal(theirs[first:first+count], ours[first:first+count])
	})
	return r.s.orders.merge(r.chunk, r.epoch, done)
}

// compare returns the runs in which the replicas differ.
func (r *rebuild) compare(ctx context.Context) ([]run, error) {
	// The source's table is the older one: a block written meanwhile is fresh here.
	theirs, done, err := r.sourceTable(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.s.orders.merge(r.chunk, r.epoch, done); err != nil {
		return nil, err
	}
	ours, e, st, err := r.s.store.Table(r.chunk)
	switch {
	case err != nil:
		return nil, err
	case e != r.epoch:
		return nil, fmt.Errorf("own epoch is %v, want %v: %w", e, r.epoch, fserr.StaleEpoch)
	case st != repl.Tracking:
		return nil, fmt.Errorf("own replica is %v: %w", st, fserr.NotReady)
	}
	return diff(theirs, ours), nil
}

// sourceTable returns the checksums of the source's blocks, and the ordered changes that are in them.
func (r *rebuild) sourceTable(ctx context.Context) ([]uint32, []wire.Done, error) {
	ctx, cancel := context.WithTimeout(ctx, rebuildTimeout)
	defer cancel()
	body, err := (&msg.ChunkTable{Chunk: uint64(r.chunk), Epoch: uint64(r.epoch)}).MarshalVT()
	if err != nil {
		return nil, nil, err
	}
	f, err := r.conn.Call(ctx, &wire.Frame{Type: wire.ChunkTable, Class: wire.ClassRepair, Body: body})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", failureCode(err), err)
	}
	defer f.Release()
	if f.Code != fserr.OK {
		return nil, nil, fmt.Errorf("table of the source: %w", f.Code)
	}
	reply := new(msg.ChunkTableReply)
	if err := reply.UnmarshalVT(f.Body); err != nil || len(f.Data) != 4*chunk.Blocks {
		return nil, nil, fmt.Errorf("table of the source, %d bytes: %w", len(f.Data), fserr.Protocol)
	}
	switch e := id.Epoch(reply.Epoch); {
	case e > r.epoch:
		return nil, nil, fmt.Errorf("epoch of the source is %v, want %v: %w", e, r.epoch, fserr.StaleEpoch)
	case e < r.epoch || reply.Joining || reply.Unclean:
		return nil, nil, fmt.Errorf("source at epoch %v, joining %t, unclean %t: %w", e, reply.Joining, reply.Unclean, fserr.NotReady)
	}
	done, err := wire.DecodeDone(nil, reply.Ordered)
	return wire.DecodeSums(make([]uint32, 0, chunk.Blocks), f.Data), done, err
}

// diff returns the runs of blocks whose checksums differ, each at most rebuildRun long.
func diff(theirs, ours []uint32) []run {
	var runs []run
	for b := range theirs {
		if theirs[b] == ours[b] {
			continue
		}
		hole := theirs[b] == chunk.Hole
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if last.hole == hole && last.block+last.count == uint32(b) && last.count < rebuildRun {
				last.count++
				continue
			}
		}
		runs = append(runs, run{block: uint32(b), count: 1, hole: hole})
	}
	return runs
}

// copyRuns copies rebuildDepth runs at a time and returns the first failure.
func (r *rebuild) copyRuns(ctx context.Context, runs []run) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var work sync.WaitGroup
	for range min(rebuildDepth, len(runs)) {
		work.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(runs) {
					return
				}
				if err := r.copyRun(ctx, runs[i]); err != nil {
					cancel(err)
				}
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

func (r *rebuild) copyRun(ctx context.Context, run run) error {
	if run.hole {
		n, err := r.s.store.RepairWrite(r.chunk, r.epoch, run.block, nil, make([]uint32, run.count))
		r.wrote(run, n)
		return err
	}
	if err := r.s.copying.pace.wait(ctx, int64(run.count)*chunk.BlockSize); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rebuildTimeout)
	defer cancel()
	req := wire.DataRequest{Chunk: r.chunk, Offset: run.block * chunk.BlockSize, Length: run.count * chunk.BlockSize}
	f, err := r.conn.Call(ctx, &wire.Frame{Type: wire.Read, Class: r.class, Epoch: r.epoch, Body: req.Append(nil)})
	if err != nil {
		return fmt.Errorf("%w: %w", failureCode(err), err)
	}
	defer f.Release()
	if f.Code != fserr.OK {
		return fmt.Errorf("read %d blocks at block %d from the source: %w", run.count, run.block, f.Code)
	}
	if len(f.Data) != int(req.Length) || len(f.Body) != 4*int(run.count) {
		return fmt.Errorf("read of %d blocks answered with %d bytes: %w", run.count, len(f.Data), fserr.Protocol)
	}
	// Only now: who waits for another server must not hold what that one's rebuild may wait for.
	g, err := r.s.admitOwn(ctx, r.own, int64(req.Length))
	if err != nil {
		return err
	}
	defer g.Release(nil)
	// RepairWrite verifies the data.
	n, err := r.s.store.RepairWrite(r.chunk, r.epoch, run.block, f.Data, wire.DecodeSums(nil, f.Body))
	r.wrote(run, n)
	r.s.stats.repaired.Add(uint64(run.count) * chunk.BlockSize)
	return err
}

// wrote notes that a run was done, and how many blocks of it had to be written.
func (r *rebuild) wrote(run run, n int) {
	r.written.Add(int64(n))
	r.differ.Add(-int64(run.count))
}
