package client

import (
	"context"
	"fmt"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// How often an outcome is put up with before the replica is dropped for it.
const (
	brokenLimit   = 1 // a broken connection is made again once
	missingLimit  = 2 // NoChunk at an epoch that the metadata server confirms
	provePatience = 5 // times Options.Patience: NoCapability
	damageLimit   = 4 // BadChecksum: the data was damaged on its way
)

// trouble is what one operation has put up with from one server.
type trouble struct {
	server   id.ServerID
	epoch    id.Epoch
	broken   int
	missing  int
	stale    int
	damaged  int
	notReady time.Time // since when
}

func (op *dataOp) trouble(s id.ServerID, e id.Epoch) *trouble {
	for i := range op.troubles {
		if t := &op.troubles[i]; t.server == s {
			if t.epoch != e {
				*t = trouble{server: s, epoch: e, notReady: t.notReady}
			}
			return t
		}
	}
	op.troubles = append(op.troubles, trouble{server: s, epoch: e})
	return &op.troubles[len(op.troubles)-1]
}

// remedy is what to do about one replica's outcome.
type remedy struct {
	forget bool   // learn the layout again
	pause  bool   // before the next attempt
	drop   string // why to drop the replica; empty: do not
	server id.ServerID
	full   bool // it has no space
}

// judge decides about one replica's outcome.
func (op *dataOp) judge(t *target, e id.Epoch, now time.Time) remedy {
	r := remedy{server: t.r.server}
	code := t.code
	switch t.what {
	case unsent:
		return r
	case unreachable:
		if gone(fserr.Of(t.err)) {
			op.in.s.kill(fserr.Of(t.err))
			return r
		}
		if fserr.Of(t.err) == fserr.NoCapability {
			return op.unproven(r, op.trouble(r.server, e), now)
		}
		r.drop = "cannot be reached: " + t.err.Error()
		return r
	case broken:
		tr := op.trouble(r.server, e)
		if tr.broken++; tr.broken > brokenLimit {
			r.drop = "connection lost again: " + t.err.Error()
		}
		return r
	case slow:
		r.drop = "no answer in time"
		return r
	}
	if code == fserr.ReplicaFailed {
		r.server, code = t.failed, t.why
		switch code {
		case fserr.OK, fserr.ReplicaFailed, fserr.Timeout, fserr.Unavailable:
			r.drop = "the first replica could not write to it: " + code.Error()
			return r
		}
	}
	tr := op.trouble(r.server, e)
	switch code {
	case fserr.OK:
	case fserr.Fenced, fserr.NoSession:
		op.in.s.kill(code)
	case fserr.StaleEpoch:
		tr.stale++
		r.forget, r.pause = true, tr.stale > 1 // the layout has been learned again and says the same
	case fserr.NoChunk:
		r.forget, r.pause = true, tr.missing > 0
		if tr.missing++; tr.missing > missingLimit {
			r.drop = "it does not have the chunk"
		}
	case fserr.NotReady, fserr.Unavailable:
		r.forget, r.pause = true, true
		if tr.notReady.IsZero() {
			tr.notReady = now
		}
		if now.Sub(tr.notReady) >= op.in.s.c.o.Patience {
			r.drop = "not ready for too long"
			if t.what == answered && t.code == fserr.ReplicaFailed {
				r.drop = "the first replica finds it not ready for too long"
			}
		}
	case fserr.NoCapability:
		return op.unproven(r, tr, now)
	case fserr.BadChecksum:
		if tr.damaged++; tr.damaged > damageLimit {
			r.drop = "it finds wrong checksums again and again"
		}
	case fserr.NoSpace:
		r.full = true
		r.drop = "no space left"
	default:
		r.drop = "it answered: " + code.Error()
	}
	return r
}

// unproven is the remedy for a server that does not believe that the session may do this: another capability, and some time, since the server may have to
// learn of a key first.
func (op *dataOp) unproven(r remedy, tr *trouble, now time.Time) remedy {
	op.in.s.wantCapability()
	r.pause = true
	if tr.notReady.IsZero() {
		tr.notReady = now
	}
	if now.Sub(tr.notReady) >= provePatience*op.in.s.c.o.Patience {
		r.drop = "it takes no capability of the session; are the clocks right?"
	}
	return r
}

// mend does what the outcomes of an attempt ask for and says whether to pause before the next.
func (op *dataOp) mend(ctx context.Context, loc *location) (pause bool, err error) {
	in := op.in
	if op.n == 0 {
		in.forgetLayout()
		return true, nil
	}
	now := time.Now()
	var remedies [maxReplicas]remedy
	full := 0
	for i := range op.n {
		remedies[i] = op.judge(&op.targets[i], loc.epoch, now)
		if remedies[i].full && op.targets[i].code == fserr.NoSpace {
			full++
		}
	}
	if in.s.ctx.Err() != nil {
		return false, fserr.Stale
	}
	if full > 0 && op.relay == byRelay && op.n == 1 {
		op.relay = inParallel // the relay has no room, and has sent nothing on: the others may have
		return false, nil
	}
	if full == op.n { // nobody has carried it out: under a shared-write lease the first would have been first
		return false, fmt.Errorf("chunk %v: %w", loc.chunk, fserr.NoSpace)
	}
	for _, r := range remedies[:op.n] {
		pause = pause || r.pause
		if r.forget {
			in.forgetLayout()
		}
		if r.drop == "" {
			continue
		}
		ok, err := in.drop(ctx, loc, r.server, r.drop)
		if err != nil {
			return false, err
		}
		if ok {
			continue
		}
		// One that has a name was taken back by the first replica.
		if r.full && (op.seq != 0 || op.undo(ctx, loc, r.server)) {
			return false, fmt.Errorf("chunk %v on %v: %w", loc.chunk, r.server, fserr.NoSpace)
		}
		pause = true
	}
	return pause, nil
}

// undo makes the replicas of a write equal again when one of them, which cannot be dropped, has no space for it: what
// that one still holds is written to the others. It reports whether that worked.
func (op *dataOp) undo(ctx context.Context, loc *location, full id.ServerID) bool {
	if op.typ != wire.Write {
		return false
	}
	in := op.in
	in.layoutMu.RLock()
	defer in.layoutMu.RUnlock()
	cur, _ := in.lookup(loc.index)
	if cur == nil || cur.epoch != loc.epoch {
		return false
	}
	var from *replica
	for i := range cur.replicas {
		if cur.replicas[i].server == full {
			from = &cur.replicas[i]
		}
	}
	if from == nil || from.joining {
		return false
	}
	piece := wholeBlocks(op.piece)
	ctx, cancel := context.WithTimeout(ctx, in.s.c.o.WriteTimeout)
	defer cancel()
	old, err := in.readFrom(ctx, cur, from, piece, op.lane)
	if err != nil {
		return false
	}
	defer old.Release()
	rest := *cur
	rest.replicas = nil
	for _, r := range cur.replicas {
		if r.server != full {
			rest.replicas = append(rest.replicas, r)
		}
	}
	if len(rest.replicas) == 0 {
		return true
	}
	return op.putBack(&rest, piece, old.Data, wire.DecodeSums(nil, old.Body))
}

// putBack writes whole blocks, and punches those that are holes: what a replica without room does not have takes no room of the others.
func (op *dataOp) putBack(loc *location, piece chunk.Piece, data []byte, sums []uint32) bool {
	for first := 0; first < len(sums); {
		hole, end := sums[first] == chunk.Hole, first+1
		for end < len(sums) && (sums[end] == chunk.Hole) == hole {
			end++
		}
		part := piece
		part.Offset += uint32(first * chunk.BlockSize)
		part.Length = uint32((end - first) * chunk.BlockSize)
		typ, p := wire.Write, data[first*chunk.BlockSize:end*chunk.BlockSize]
		if hole {
			typ, p = wire.Punch, nil
		}
		back := newDataOp(op.in, typ, part, p)
		back.lane, back.relay = op.lane, inParallel
		back.debts, back.nDebts = op.debts, op.nDebts
		back.attempt(loc, msg.Mode_EXCLUSIVE_WRITE)
		ok := back.allOK()
		back.free()
		if !ok {
			return false
		}
		first = end
	}
	return true
}
