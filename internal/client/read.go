package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planted"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// damageRounds is how often every replica may answer with damage before a read fails with IO.
const damageRounds = 2

// readOp holds what one read request needs, so that a read allocates next to nothing.
type readOp struct {
	req   wire.DataRequest
	frame wire.Frame
	body  []byte
	sums  []uint32
	done  chan *wire.Call
	timer *time.Timer
}

var readOps = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &readOp{done: make(chan *wire.Call, 1), timer: t}
}}

// read fills p from off; it is short only at the end of the file.
func (in *inode) read(ctx context.Context, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	start := time.Now()
	defer func() { in.s.c.reads.Add(time.Since(start)) }()
	if err := in.s.live(ctx); err != nil {
		return 0, err
	}
	in.ahead.reading.Add(1)
	defer in.ahead.reading.Add(-1)
	if in.readAhead(ctx, p, off) {
		return len(p), nil
	}
	hold, err := in.ranges.lock(ctx, off/chunk.BlockSize, (off+int64(len(p))-1)/chunk.BlockSize, false)
	if err != nil {
		return 0, err
	}
	defer in.ranges.unlock(hold)
	size, err := in.sizeFor(ctx, off+int64(len(p)))
	if err != nil || off >= size {
		return 0, err
	}
	n := int(min(int64(len(p)), size-off))
	if off%chunk.Size+int64(n) <= chunk.Size && n <= maxPiece {
		if err := in.readPiece(ctx, chunk.First(off, n), p[:n]); err != nil {
			return 0, err
		}
		return n, nil
	}
	pieces := split(nil, off, int64(n), maxPiece)
	errs := make([]error, len(pieces))
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	rest := p[:n]
	for i, pc := range pieces {
		part := rest[:pc.Length]
		rest = rest[pc.Length:]
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = in.readPiece(ctx, pc, part)
			<-slots
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			done := 0
			for _, pc := range pieces[:i] {
				done += int(pc.Length)
			}
			return done, err
		}
	}
	return n, nil
}

// readPiece fills p with a part of one chunk.
func (in *inode) readPiece(ctx context.Context, pc chunk.Piece, p []byte) error {
	var (
		wait   backoff
		st     *stall
		tried  uint32 // bit per replica, of the location `last`
		last   *location
		damage int // rounds in which every replica answered with damage
		sound  bool
		asked  bool // for a hole, in this operation
	)
	defer func() { st.end() }()
	whole := wholeBlocks(pc)
	for {
		if err := in.s.live(ctx); err != nil {
			return err
		}
		in.layoutMu.RLock()
		loc, known := in.lookup(pc.Index)
		if !known {
			in.layoutMu.RUnlock()
			asked = false
			if err := in.fetch(ctx, pc.Index); err != nil {
				return err
			}
			continue
		}
		if loc == nil {
			in.layoutMu.RUnlock()
			hole, err := in.believeHole(ctx, pc.Index, &asked)
			if err != nil {
				return err
			}
			if !hole {
				continue
			}
			clear(p)
			return nil
		}
		if last == nil || loc.epoch != last.epoch || loc.chunk != last.chunk {
			last, tried, sound = loc, 0, false
		}
		if in.readCached(ctx, loc, whole, pc, p) {
			in.layoutMu.RUnlock()
			return nil
		}
		at := in.choose(loc, tried)
		if at >= 0 {
			tried |= 1 << at
			done, err := in.readLocal(ctx, loc, &loc.replicas[at], whole, pc, p)
			if done {
				in.layoutMu.RUnlock()
				return nil
			}
			var f *wire.Frame
			if err == nil {
				f, err = in.readFrom(ctx, loc, &loc.replicas[at], whole, int(pc.Offset>>20)+int(pc.Index))
			}
			if err == nil {
				in.cache(loc, whole, f.Data, nil)
				copy(p, f.Data[pc.Offset-whole.Offset:])
				in.layoutMu.RUnlock()
				f.Release()
				return nil
			}
			in.layoutMu.RUnlock()
			if ctx.Err() != nil {
				return ended(ctx)
			}
			code := fserr.Of(err)
			switch code {
			case fserr.StaleEpoch, fserr.NoChunk:
				in.forgetLayout()
				sound = true
			case fserr.Fenced, fserr.NoSession:
				in.s.kill(code)
				return fserr.Stale
			case fserr.NoCapability:
				in.s.wantCapability()
				sound = true
			case fserr.ReplicaFailed:
				in.dropLacking(ctx, loc, err)
				sound = true
			case fserr.BadChecksum, fserr.IO:
				in.elsewhere(loc, loc.replicas[at].server, err)
			default:
				sound = true
			}
			if code != fserr.StaleEpoch && code != fserr.ReplicaFailed {
				in.s.servers.server(&loc.replicas[at]).avoid()
			}
			if st == nil {
				st = in.s.c.watch("a replica to read from", "inode", in.ino, "chunk", loc.chunk)
			}
			continue
		}
		in.layoutMu.RUnlock()
		if !sound && tried != 0 {
			if damage++; damage >= damageRounds {
				return fmt.Errorf("chunk %v, [%d, +%d): every replica is damaged: %w", loc.chunk, pc.Offset, pc.Length, fserr.IO)
			}
		}
		tried, sound = 0, false
		in.forgetLayout()
		if err := wait.wait(ctx, in.s.ctx); err != nil {
			return err
		}
	}
}

// elsewhereEvery is how often it is logged that a replica was damaged to a read: a guest that changes the memory which a read of its fills has that happen as
// often as it likes.
const elsewhereEvery = time.Second

// elsewhere logs that a read goes on at another replica, since this one's blocks were not what they should be.
func (in *inode) elsewhere(loc *location, server id.ServerID, err error) {
	t := &in.s.c.damage
	now := time.Now().UnixNano()
	if last := t.last.Load(); now-last < int64(elsewhereEvery) || !t.last.CompareAndSwap(last, now) {
		t.others.Add(1)
		return
	}
	in.s.c.log.Warn("reading elsewhere", "inode", in.ino, "chunk", loc.chunk, "cs", server, "err", err, "others", t.others.Swap(0))
}

// toldDamage is when elsewhere logged last, ns of time.Now, and how often it has not since.
type toldDamage struct{ last, others atomic.Int64 }

// slowCost has reads go to another replica than that on a slow server, on whatever host that is.
const slowCost = 1 << 20

// choose picks a replica to read from that was not tried: under a shared-write lease the first, else one on this host, else the
// least busy; those on slow servers behind all others, and those that have let us down lately last. It returns -1 if there is none.
func (in *inode) choose(loc *location, tried uint32) int {
	now := time.Now().UnixNano()
	best, bestCost := -1, int64(0)
	shared := in.modeNow() == msg.Mode_SHARED_WRITE
	for i := range loc.replicas {
		r := &loc.replicas[i]
		if r.joining && !planted.Is(planted.ReadJoining) || tried>>i&1 != 0 || shared && i > 0 {
			continue
		}
		srv := in.s.servers.server(r)
		cost := 2 * int64(srv.inFlight.Load())
		if (int(r.server)+int(loc.index))%len(loc.replicas) != 0 { // chunks of a file prefer different servers
			cost++
		}
		if !srv.local.Load() {
			cost += 64
		}
		if srv.slow.Load() {
			cost += slowCost
		}
		if now < srv.avoidUntil.Load() {
			cost += 1 << 32
		}
		if best < 0 || cost < bestCost {
			best, bestCost = i, cost
		}
	}
	return best
}

// readFrom reads whole blocks from one replica and verifies them. The caller releases the frame. The error wraps
// the server's outcome, Timeout, or BadChecksum.
func (in *inode) readFrom(ctx context.Context, loc *location, r *replica, pc chunk.Piece, laneNo int) (*wire.Frame, error) {
	srv := in.s.servers.server(r)
	conn, err := srv.conn(laneNo)
	if err != nil {
		return nil, err
	}
	op := readOps.Get().(*readOp)
	defer readOps.Put(op)
	op.req = wire.DataRequest{Chunk: loc.chunk, Session: in.s.id, Offset: pc.Offset, Length: pc.Length}
	if r == &loc.replicas[0] && in.modeNow() == msg.Mode_SHARED_WRITE {
		in.order(&op.req, loc)
	}
	op.body = op.req.Append(op.body[:0])
	op.frame = wire.Frame{Type: wire.Read, Class: wire.ClassGuest, Epoch: loc.epoch, Body: op.body}
	srv.inFlight.Add(1)
	defer srv.inFlight.Add(-1)
	start := time.Now()
	defer func() { srv.met.Add(time.Since(start)) }()
	call := conn.Start(&op.frame, op.done)
	op.timer.Reset(in.s.c.o.ReadTimeout)
	select {
	case <-op.done:
	case <-op.timer.C:
		err = fmt.Errorf("read from %v: %w", srv.id, fserr.Timeout)
	case <-ctx.Done():
		err = ended(ctx)
	}
	op.timer.Stop()
	if err != nil {
		if conn.Abandon(call) {
			return nil, err
		}
		<-op.done // it was answered just now
	}
	if call.Err != nil {
		return nil, fmt.Errorf("read from %v: %w: %w", srv.id, fserr.Unavailable, call.Err)
	}
	f := call.Reply
	if f.Code != fserr.OK {
		err := error(f.Code)
		if f.Code == fserr.ReplicaFailed {
			err = lackingOf(f)
		}
		f.Release()
		return nil, fmt.Errorf("read from %v: %w", srv.id, err)
	}
	op.sums = wire.DecodeSums(op.sums[:0], f.Body)
	if len(f.Data) != int(pc.Length) || len(op.sums) != int(pc.Length/chunk.BlockSize) {
		f.Release()
		return nil, fmt.Errorf("read from %v: got %d bytes and %d checksums, want %d bytes: %w", srv.id, len(f.Data), len(op.sums), pc.Length, fserr.Protocol)
	}
	if bad := chunk.VerifySums(op.sums, pc.Offset, f.Data); bad >= 0 {
		f.Release()
		return nil, fmt.Errorf("read from %v: chunk %v block %d: %w", srv.id, loc.chunk, int(pc.Offset/chunk.BlockSize)+bad, fserr.BadChecksum)
	}
	return f, nil
}
