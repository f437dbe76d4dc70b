package client

import (
	"slices"

	"varve/internal/latency"
	"varve/internal/wire/msg"
)

// loadReport tells what this client and its requests to chunk servers have waited since the last renewal.
func (s *session) loadReport() *msg.LoadReport {
	r := &msg.LoadReport{Latencies: s.c.reads.Take(), Changes: s.c.changes.Take()}
	p := &s.servers
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, srv := range p.all {
		if counts := srv.met.Take(); counts != nil {
			srv.answered.Store(bootTime())
			r.Peers = append(r.Peers, &msg.PeerLatency{Server: uint32(srv.id), Requests: uint32(latency.Count(counts)),
				P90Us: uint32(latency.Quantile(counts, 0.9).Microseconds())})
		}
	}
	return r
}

// slow takes which servers the leader calls slow.
func (p *pool) slow(list []uint32) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, srv := range p.all {
		if slow := slices.Contains(list, uint32(srv.id)); srv.slow.Swap(slow) != slow {
			p.s.c.log.Info("reads prefer other chunk servers, or not any more", "cs", srv.id, "slow", slow)
		}
	}
}
