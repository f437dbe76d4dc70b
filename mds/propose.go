package mds

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/mds/event"
)

// proposeTimeout bounds how long an entry waits to be taken by Raft.
const proposeTimeout = 5 * time.Second

// proposer puts the events of many requests into few Raft entries. While maxEntriesFlying entries are under way, events
// gather for the next one.
type proposer struct {
	raft  *raft.Raft
	await func(raft.Future) error
	queue chan *proposal
	fly   chan struct{}
	stop  chan struct{}
	wg    sync.WaitGroup
}

type proposal struct {
	ev   *event.Event
	size int
	done chan error
}

func newProposer(s *Server) *proposer {
	p := &proposer{
		raft: s.raft, await: s.await, queue: make(chan *proposal, maxProposals), fly: make(chan struct{}, maxEntriesFlying), stop: make(chan struct{}),
	}
	p.wg.Add(1)
	go p.run()
	return p
}

// close fails what is queued and waits for what is under way, which ends when the leadership does.
func (p *proposer) close() {
	close(p.stop)
	p.wg.Wait()
}

// propose returns when ev is applied; then its Index is set. An error means that the leadership is over and the outcome
// unknown, or, with errNotProposed, that nothing happened.
func (p *proposer) propose(ev *event.Event) error {
	w := &proposal{ev: ev, size: ev.SizeVT(), done: make(chan error, 1)}
	select {
	case p.queue <- w:
	case <-p.stop:
		return errNotProposed
	}
	select {
	case err := <-w.done:
		return err
	case <-p.stop:
	}
	p.wg.Wait()
	select {
	case err := <-w.done:
		return err
	default:
		return errNotProposed
	}
}

var errNotProposed = fmt.Errorf("not proposed: %w", fserr.Unavailable)

func (p *proposer) run() {
	defer p.wg.Done()
	var next *proposal
	for {
		select {
		case p.fly <- struct{}{}:
		case <-p.stop:
			return
		}
		if next == nil {
			select {
			case next = <-p.queue:
			case <-p.stop:
				return
			}
		}
		batch := []*proposal{next}
		size := next.size
		next = nil
	gather:
		for len(batch) < maxBatchEvents {
			select {
			case w := <-p.queue:
				if size+w.size > maxBatchBytes {
					next = w
					break gather
				}
				batch, size = append(batch, w), size+w.size
			default:
				break gather
			}
		}
		p.send(batch)
	}
}

func (p *proposer) send(batch []*proposal) {
	b := &event.Batch{Events: make([]*event.Event, len(batch))}
	for i, w := range batch {
		b.Events[i] = w.ev
	}
	data, err := b.MarshalVT()
	if err != nil {
		<-p.fly
		finish(batch, 0, err)
		return
	}
	future := p.raft.Apply(data, proposeTimeout)
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		err := p.await(future)
		<-p.fly
		if err != nil {
			if errors.Is(err, raft.ErrEnqueueTimeout) {
				err = fmt.Errorf("%w: %w", errNotProposed, err)
			}
			finish(batch, 0, fmt.Errorf("propose: %w: %w", fserr.Unavailable, err))
			return
		}
		a, _ := future.Response().(applied)
		finish(batch, a.first, a.err)
	}()
}

func finish(batch []*proposal, first id.Index, err error) {
	for i, w := range batch {
		if err == nil {
			w.ev.Index = uint64(first) + uint64(i)
		}
		w.done <- err
	}
}
