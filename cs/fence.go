package cs

import (
	"context"
	"sync"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planted"
	"varve/internal/waits"
)

// maxFenced bounds the fenced sessions that a server knows. The leader sends only those that could still be alive somewhere.
const maxFenced = 1 << 20

// fences counts the requests under way of each session and refuses those of fenced ones.
type fences struct {
	waits    *waits.Table
	locals   *locals // what the sessions read by themselves; nil for none
	orders   *orders // what they have changed in order; nil for none
	mu       sync.Mutex
	inflight map[id.SessionID]int
	fenced   map[id.SessionID]struct{}
	idle     map[id.SessionID]chan struct{} // closed when a fenced session's last request has ended
}

func newFences() *fences {
	return &fences{
		inflight: make(map[id.SessionID]int),
		fenced:   make(map[id.SessionID]struct{}),
		idle:     make(map[id.SessionID]chan struct{}),
	}
}

// enter admits a request of a session, which must leave. Session 0 is a server's own.
func (f *fences) enter(s id.SessionID) bool {
	if s == 0 {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, fenced := f.fenced[s]; fenced {
		return false
	}
	f.inflight[s]++
	return true
}

func (f *fences) leave(s id.SessionID) {
	if s == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inflight[s]--; f.inflight[s] > 0 {
		return
	}
	delete(f.inflight, s)
	if ch, ok := f.idle[s]; ok {
		close(ch)
		delete(f.idle, s)
	}
}

// block fences sessions and returns what to wait for until none of their requests is under way.
func (f *fences) block(sessions []uint64) ([]chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var wait []chan struct{}
	for _, n := range sessions {
		s := id.SessionID(n)
		if s == 0 {
			continue
		}
		if _, known := f.fenced[s]; !known && len(f.fenced) >= maxFenced {
			return nil, fserr.NoSpace
		}
		if !planted.Is(planted.ForgetFence) {
			f.fenced[s] = struct{}{}
		}
		f.locals.fence(s)
		f.orders.fence(s)
		if f.inflight[s] == 0 {
			continue
		}
		ch, ok := f.idle[s]
		if !ok {
			ch = make(chan struct{})
			f.idle[s] = ch
		}
		wait = append(wait, ch)
	}
	return wait, nil
}

// fence returns when the sessions are fenced and nothing of theirs is under way.
func (f *fences) fence(ctx context.Context, sessions []uint64) error {
	wait, err := f.block(sessions)
	if err != nil {
		return err
	}
	if len(wait) > 0 {
		defer f.waits.For("requests of a session that is fenced to end", "sessions", len(wait)).End()
	}
	for _, ch := range wait {
		select {
		case <-ch:
		case <-ctx.Done():
			return fserr.Timeout
		}
	}
	return nil
}

// fences reports whether a session is fenced.
func (f *fences) fences(s id.SessionID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, fenced := f.fenced[s]
	return fenced
}

func (f *fences) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.fenced)
}
