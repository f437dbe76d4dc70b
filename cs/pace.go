package cs

import (
	"context"
	"slices"
	"sync"
	"time"

	"varve/cs/admit"
	"varve/internal/chunk"
	"varve/internal/wire/msg"
)

// copying is what rebuilds have under way, and how fast they may go.
type copying struct {
	pace pacer

	mu  sync.Mutex
	all []*rebuild
}

func (c *copying) add(r *rebuild) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, r)
}

func (c *copying) remove(r *rebuild) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.all, r); i >= 0 {
		c.all = slices.Delete(c.all, i, i+1)
	}
}

func (c *copying) progress() (out []*msg.RebuildProgress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.all {
		out = append(out, &msg.RebuildProgress{Chunk: uint64(r.chunk), Copied: uint64(max(r.written.Load(), 0)) * chunk.BlockSize,
			Left: uint64(max(r.differ.Load(), 0)) * chunk.BlockSize})
	}
	return out
}

const (
	// paceLook is how often one who waits for the pace looks whether it has changed.
	paceLook = 100 * time.Millisecond
	// paceBurst is how long the pace may be saved up.
	paceBurst = 200 * time.Millisecond
)

// pacer bounds the bytes that go by in a second. What goes by may be larger than what was saved up: the next waits for it. The zero value
// sets no bound.
type pacer struct {
	mu    sync.Mutex
	rate  int64 // bytes a second, 0: no bound
	saved int64 // bytes; negative: a debt
	at    time.Time
}

// set changes the rate, for those that wait as well.
func (p *pacer) set(rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill(time.Now())
	p.rate = max(rate, 0)
}

func (p *pacer) refill(now time.Time) {
	if p.at.IsZero() {
		p.at = now
	}
	// The time is bounded, so that the product is; a debt is never longer.
	passed := min(now.Sub(p.at), time.Minute)
	p.at = now
	p.saved = min(p.saved+int64(float64(p.rate)*passed.Seconds()), int64(float64(p.rate)*paceBurst.Seconds()))
}

// take reports whether n bytes may go by now, else how long until they may at this rate.
func (p *pacer) take(n int64) (ok bool, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill(time.Now())
	if p.rate == 0 || p.saved >= 0 {
		if p.saved -= n; p.rate == 0 {
			p.saved = 0
		}
		return true, 0
	}
	return false, time.Duration(float64(-p.saved)/float64(p.rate)*float64(time.Second)) + time.Millisecond
}

// wait returns when n bytes may go by, or ctx has ended.
func (p *pacer) wait(ctx context.Context, n int64) error {
	for {
		ok, wait := p.take(n)
		if ok {
			return nil
		}
		t := time.NewTimer(min(wait, paceLook))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// loadReport tells what the server has met since the last heartbeat.
func (s *Server) loadReport() *msg.LoadReport {
	r := &msg.LoadReport{
		Latencies: s.stats.guests.Take(), Waiting: uint32(s.gate.waiting(admit.Guest)), Peers: s.peers.report(),
		Rebuilds: s.copying.progress(), Repaired: s.stats.repaired.Load(), LinkPermille: s.nic.use(time.Now()),
	}
	if size := s.payload.size(); size > 0 {
		r.MemoryPermille = uint32(s.payload.used() * 1000 / size)
	}
	return r
}
