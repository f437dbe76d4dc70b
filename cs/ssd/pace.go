package ssd

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// pace slows writers gradually as the journal fills: from paceFrom on each write waits its turn, so that what comes in approaches what
// destaging frees, and is half of that when the journal is all but full. So it never fills in the middle of a burst and stops
// everybody at once.
type pace struct {
	mu   sync.Mutex
	next time.Time // when the next write may come
	rate float64   // blocks a second that destaging freed, of late
}

const (
	// paceFrom is how full the journal is when writes begin to wait.
	paceFrom = 0.75
	// paceMax bounds the wait of one write for its turn.
	paceMax = 150 * time.Millisecond
	// paceStart is the rate before anything was measured: that of a slow disk.
	paceStart = 500
	// paceWeight is the weight of a new sample in the moving average of the rate.
	paceWeight = 0.3
	// paceWorth is the shortest wait that is worth a sleep; shorter ones add up.
	paceWorth = 500 * time.Microsecond
)

// turn returns how long a write of n blocks has to wait if the journal is that full.
func (p *pace) turn(now time.Time, n uint64, fill float64) time.Duration {
	if fill <= paceFrom {
		return 0
	}
	share := (min(fill, 1) - paceFrom) / (1 - paceFrom)
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := p.rate
	if rate == 0 {
		rate = paceStart
	}
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / rate * 2 * share * float64(time.Second)))
	if limit := now.Add(paceMax); p.next.After(limit) {
		p.next = limit
	}
	return p.next.Sub(now)
}

// freed takes note of what a pass of destaging at full speed freed.
func (p *pace) freed(blocks uint64, took time.Duration) {
	if took <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sample := float64(blocks) / took.Seconds()
	if p.rate == 0 {
		p.rate = sample
		return
	}
	p.rate += paceWeight * (sample - p.rate)
}

// fill is how full the journal is, with what is promised: 0 to 1. It is called with ring.mu held.
func (r *ring) fill() float64 {
	return float64(r.next-r.tail+r.reserved) / float64(r.blocks-batchBlocks)
}

// reserve promises a writer the room for a request of so many pages. If there is none it waits: as long as it takes if must says so,
// else for Options.MaxWait, and then it returns false.
func (f *FS) reserve(pages int, must bool) (bool, error) {
	r, n := f.ring, cost(pages)
	r.mu.RLock()
	fill := r.fill()
	r.mu.RUnlock()
	if d := f.pace.turn(time.Now(), n, fill); d >= paceWorth {
		f.stats.pacedNanos.Add(int64(d))
		f.wakeDestager()
		time.Sleep(d)
	}
	var timeout <-chan time.Time
	r.mu.Lock()
	defer r.mu.Unlock()
	claims := false
	defer func() {
		if claims {
			r.claimed -= n
		}
	}()
	for {
		free := n
		if !must {
			free += r.claimed
		}
		if err := r.err(); err != nil {
			return false, err
		}
		if r.room(free) {
			r.reserved += n
			return true, nil
		}
		if r.stuck != nil {
			if !must {
				return false, nil
			}
			return false, fmt.Errorf("the journal is full, and so is the disk that it is for: %w: %w", syscall.ENOSPC, r.stuck)
		}
		if timeout == nil && !must {
			timer := time.NewTimer(f.o.MaxWait)
			defer timer.Stop()
			timeout = timer.C
		}
		if must && !claims {
			claims = true
			r.claimed += n
		}
		freed := r.freed
		r.waiting++
		r.mu.Unlock()
		f.wakeDestager()
		gaveUp := false
		select {
		case <-freed:
		case <-timeout:
			gaveUp = true
		}
		r.mu.Lock()
		r.waiting--
		if gaveUp {
			return false, nil
		}
	}
}
