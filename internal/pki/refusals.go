package pki

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Refusals logs who was refused, so that whoever comes again and again cannot fill a disk with that: a line for each address every ten seconds at most, and
// two lines a second in all. What is left out is counted, and the next line says how much that was. The zero value works, and may be used by many at once.
type Refusals struct {
	mu      sync.Mutex
	last    map[netip.Addr]time.Time
	used    float64 // of the lines that may be written at once
	at      time.Time
	leftOut int
	now     func() time.Time // default time.Now
}

const (
	refusalEvery = 10 * time.Second       // of one address
	refusalsRate = 500 * time.Millisecond // of all
	refusalBurst = 100
	maxRefusers  = 1024
)

// Log writes a line about a peer, an address with a port, unless there have been too many.
func (r *Refusals) Log(log *slog.Logger, level slog.Level, text, peer string, args ...any) {
	if !log.Enabled(context.Background(), level) {
		return
	}
	n, ok := r.count(peer)
	if !ok {
		return
	}
	args = append([]any{"peer", peer}, args...)
	if n > 0 {
		args = append(args, "refused_without_a_line", n)
	}
	log.Log(context.Background(), level, text, args...)
}

// count reports whether there may be a line now, and how many were left out since the last one.
func (r *Refusals) count(peer string) (leftOut int, ok bool) {
	var from netip.Addr // of those that have none: all together
	if ap, err := netip.ParseAddrPort(peer); err == nil {
		from = ap.Addr().Unmap()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.now != nil {
		now = r.now()
	}
	r.used = max(0, r.used-max(0, now.Sub(r.at).Seconds())/refusalsRate.Seconds())
	r.at = now
	if since := now.Sub(r.last[from]); since < refusalEvery && since >= 0 || r.used+1 > refusalBurst {
		r.leftOut++
		return 0, false
	}
	r.used++
	if r.last == nil || len(r.last) >= maxRefusers {
		r.last = make(map[netip.Addr]time.Time) // what may follow is bounded by the rate of all
	}
	r.last[from] = now
	leftOut, r.leftOut = r.leftOut, 0
	return leftOut, true
}
