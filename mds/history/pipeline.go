package history

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
)

const (
	batchEvents = 1024
	batchBytes  = 128 << 10
	batches     = 16 // in the pipeline at most; what it needs of memory
)

// batch is a run of records on their way from the reader through a decoder to the caller.
type batch struct {
	arena   []byte
	records []record
	events  []*event.Event
	memory  event.Recycler // of the events
	err     error          // of decoding; the events before it are good
	decoded chan struct{}  // one item when it is done
}

type record struct {
	index    id.Index
	from, to int // in the arena
}

// decode fills events.
func (b *batch) decode() {
	b.events, b.err = b.events[:0], nil
	b.memory.Recycle()
	for _, r := range b.records {
		ev, err := b.memory.Decode(b.arena[r.from:r.to])
		if err != nil {
			b.err = fmt.Errorf("record %d is no event: %w", r.index, err)
			return
		}
		ev.Index = uint64(r.index)
		b.events = append(b.events, ev)
	}
}

// stream calls fn for each event from index from to index to. An event is valid until fn returns: its memory
// is used for others then. ErrStop of fn ends it; a hole is a
// *journal.GapError, after all events before it.
func stream(ctx context.Context, src Source, from, to id.Index, fn func(*event.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	p := &pipeline{
		free: make(chan *batch, batches), order: make(chan *batch, batches), work: make(chan *batch, batches),
	}
	for range batches {
		p.free <- &batch{decoded: make(chan struct{}, 1)}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		wg.Go(func() {
			for b := range p.work {
				b.decode()
				b.decoded <- struct{}{}
			}
		})
	}
	var readErr error // read by this goroutine after order is closed
	wg.Go(func() {
		defer close(p.order)
		defer close(p.work)
		readErr = p.read(ctx, src, from, to)
	})
	for b := range p.order {
		<-b.decoded
		for _, ev := range b.events {
			if err := fn(ev); err != nil {
				if errors.Is(err, ErrStop) {
					return nil
				}
				return err
			}
		}
		if b.err != nil {
			return b.err
		}
		p.free <- b
	}
	return readErr
}

// pipeline is the ways that batches take. Each has room for all of them, so only a reader without a free one waits.
type pipeline struct {
	free  chan *batch
	order chan *batch
	work  chan *batch
}

func (p *pipeline) read(ctx context.Context, src Source, from, to id.Index) error {
	var b *batch
	send := func() {
		if b != nil && len(b.records) > 0 {
			p.order <- b
			p.work <- b
		}
		b = nil
	}
	err := src.Records(ctx, from, func(rec journal.Record) error {
		if rec.Index > to {
			return ErrStop
		}
		if b == nil {
			select {
			case b = <-p.free:
			case <-ctx.Done():
				return ctx.Err()
			}
			b.arena, b.records = b.arena[:0], b.records[:0]
		}
		start := len(b.arena)
		b.arena = append(b.arena, rec.Payload...)
		b.records = append(b.records, record{index: rec.Index, from: start, to: len(b.arena)})
		if len(b.records) >= batchEvents || len(b.arena) >= batchBytes {
			send()
		}
		if rec.Index == to {
			return ErrStop
		}
		return nil
	})
	send()
	return err
}
