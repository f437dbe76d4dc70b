package main

import (
	"bytes"
	"context"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/history"
	"varve/mds/state"
)

// journalPiece is how much of a journal is asked for at once, in bytes.
const journalPiece = 1 << 20

// maxCheckpoint bounds a checkpoint that is fetched from a server, in bytes.
const maxCheckpoint = 16 << 30

// online is the journal of a running metadata server.
type online struct{ m *admin }

var _ history.Source = (*online)(nil)

func openOnline(ctx context.Context, d *clusterDir) (*online, error) {
	m, err := d.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	return &online{m}, nil
}

// Close implements history.Source.
func (o *online) Close() { o.m.close() }

// ask reads a piece. The reply is also there with the outcome NotExist.
func (o *online) ask(ctx context.Context, req *msg.JournalRead) (*msg.JournalReadReply, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	body, err := req.MarshalVT()
	if err != nil {
		return nil, nil, err
	}
	f, err := o.m.conn.Call(ctx, &wire.Frame{Type: wire.JournalRead, Class: wire.ClassMeta, Body: body})
	if err != nil {
		return nil, nil, fmt.Errorf("read the journal of %s: %w", o.m.addr, err)
	}
	defer f.Release()
	reply := new(msg.JournalReadReply)
	if err := reply.UnmarshalVT(f.Body); err != nil {
		return nil, nil, fmt.Errorf("read the journal of %s: %w: %w", o.m.addr, fserr.Protocol, err)
	}
	if f.Code != fserr.OK {
		return reply, nil, fmt.Errorf("read the journal of %s: %w", o.m.addr, f.Code)
	}
	return reply, bytes.Clone(f.Data), nil
}

// Bounds implements history.Source.
func (o *online) Bounds(ctx context.Context) (first, last id.Index, err error) {
	r, _, err := o.ask(ctx, &msg.JournalRead{From: 1, MaxBytes: 1})
	if err != nil && fserr.Of(err) != fserr.NotExist {
		return 0, 0, err
	}
	return id.Index(r.GetFirst()), id.Index(r.GetLast()), nil
}

// Records implements history.Source.
func (o *online) Records(ctx context.Context, from id.Index, fn func(journal.Record) error) error {
	// Each piece but the first begins with the last record of the one before, so that DecodeRaw also checks the chain
	// from piece to piece.
	overlap := false
	size := uint32(4 << 10) // often one record is wanted
	for {
		ask := from
		if overlap {
			ask--
		}
		r, data, err := o.ask(ctx, &msg.JournalRead{From: uint64(ask), MaxBytes: size})
		if err != nil {
			if fserr.Of(err) == fserr.NotExist && r != nil && uint64(from) > r.Last {
				return nil
			}
			return err
		}
		size = journalPiece
		if len(data) == 0 {
			if r.More && id.Index(r.Next) > from {
				return &journal.GapError{Last: from - 1, Next: id.Index(r.Next)}
			}
			return nil
		}
		begin := from
		err = journal.DecodeRaw(data, func(rec journal.Record) error {
			if rec.Index < begin {
				return nil
			}
			from = rec.Index + 1
			return fn(rec)
		})
		if err == history.ErrStop {
			return nil
		}
		if err != nil {
			return err
		}
		if !r.More {
			return nil
		}
		overlap = from > begin // else only the overlap came: what follows may be a hole
	}
}

// Checkpoint implements history.Source.
func (o *online) Checkpoint(ctx context.Context, index id.Index) (*state.State, error) {
	if index == 0 {
		return nil, nil
	}
	var all bytes.Buffer
	req := &msg.JournalRead{Checkpoint: true, CheckpointAt: uint64(index), MaxBytes: journalPiece}
	for {
		r, data, err := o.ask(ctx, req)
		if fserr.Of(err) == fserr.NotExist && all.Len() == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		all.Write(data)
		if all.Len() > maxCheckpoint {
			return nil, fmt.Errorf("the checkpoint at %d is over the limit of %d bytes", r.Checkpoint, int64(maxCheckpoint))
		}
		req.From, req.CheckpointAt = r.Next, r.Checkpoint
		if !r.More {
			break
		}
	}
	s, err := state.Read(&all)
	if err != nil {
		return nil, fmt.Errorf("checkpoint at %d from %s: %w", req.CheckpointAt, o.m.addr, err)
	}
	return s, nil
}

// Newest implements history.Source.
func (o *online) Newest(ctx context.Context, at id.Index) (id.Index, error) {
	if at == 0 {
		return 0, nil
	}
	r, _, err := o.ask(ctx, &msg.JournalRead{Checkpoint: true, CheckpointAt: uint64(at), MaxBytes: 1})
	if fserr.Of(err) == fserr.NotExist {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return id.Index(r.Checkpoint), nil
}

// FindTime implements history.Source, by bisection: times do not step back but for corrections of the clock, for which any such
// index is as good.
func (o *online) FindTime(ctx context.Context, t int64) (id.Index, error) {
	first, last, err := o.Bounds(ctx)
	if err != nil {
		return 0, err
	}
	lo, hi := first, last+1 // the answer is one less than the first index that is later
	for lo < hi {
		mid := lo + (hi-lo)/2
		at, err := history.TimeOf(ctx, o, mid)
		if err != nil {
			return 0, err
		}
		if at > t {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == first {
		return 0, nil
	}
	return lo - 1, nil
}
