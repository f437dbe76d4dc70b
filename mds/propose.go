package mds

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/waits"
	"varve/mds/event"
)

// proposeTimeout bounds how long an entry waits to be taken by Raft.
const proposeTimeout = 5 * time.Second

// proposer puts the events of many requests into few Raft entries. While entries are under way, events gather for the next one,
// which follows when as many have come as an entry under way has, or when the last one has landed. So two requests at once
// do not wait for one another, and many do not become many small entries, of which each costs every server a write and a sync.
type proposer struct {
	waits  *waits.Table
	raft   *raft.Raft
	await  func(raft.Future) error
	queue  chan *proposal
	landed chan int // how many events an entry had
	stop   chan struct{}
	wg     sync.WaitGroup
}

type proposal struct {
	ev   *event.Event
	size int
	done chan error
}

func newProposer(s *Server) *proposer {
	p := &proposer{
		raft: s.raft, await: s.await, waits: s.waits, queue: make(chan *proposal, maxProposals), landed: make(chan int, maxEntriesFlying), stop: make(chan struct{}),
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
	var batch []*proposal
	var next *proposal // does not fit the batch
	size, entries, events := 0, 0, 0
	add := func(w *proposal) {
		if size+w.size > maxBatchBytes && len(batch) > 0 {
			next = w
			return
		}
		batch, size = append(batch, w), size+w.size
	}
	for {
		full := next != nil || len(batch) >= maxBatchEvents
		for !full {
			select {
			case w := <-p.queue:
				add(w)
				full = next != nil || len(batch) >= maxBatchEvents
				continue
			default:
			}
			break
		}
		if len(batch) > 0 && (entries == 0 || entries < maxEntriesFlying && (full || len(batch)*entries >= events)) {
			entries, events = entries+1, events+len(batch)
			p.send(batch)
			batch, size = nil, 0
			if next != nil {
				w := next
				next = nil
				add(w)
			}
			continue
		}
		queue := p.queue
		if full {
			queue = nil
		}
		select {
		case w := <-queue:
			add(w)
			runtime.Gosched() // others that were woken together with this one's client have events, too
		case n := <-p.landed:
			entries, events = entries-1, events-n
		case <-p.stop:
			return
		}
	}
}

func (p *proposer) send(batch []*proposal) {
	b := &event.Batch{Events: make([]*event.Event, len(batch))}
	for i, w := range batch {
		b.Events[i] = w.ev
	}
	data, err := b.MarshalVT()
	if err != nil {
		p.landed <- len(batch)
		finish(batch, 0, err)
		return
	}
	future := p.raft.Apply(data, proposeTimeout)
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		w := p.waits.For("a majority to have the newest events on stable media")
		err := p.await(future)
		w.End()
		p.landed <- len(batch)
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
