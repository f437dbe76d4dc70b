package client

import (
	"fmt"
	"slices"
	"time"

	"varve/internal/fserr"
)

// A chunk server that answers nobody is given up sooner than after Options.WriteTimeout. That it has not answered one request says nothing: under
// load an answer takes as long as it takes. But the server's heartbeats do not wait for its disk, its clients or its memory. So who has waited for
// doubtAfter asks the leader, by renewing the session at once; and when the leader has not heard from that server either, though it hears from
// others, and no other request of ours was answered there meanwhile, the request is given up after silentAfter, as it would be after the time-out:
// the replica is dropped, if enough others remain, and what is still under way there is owed as ever (owed.go).
const (
	doubtAfter  = time.Second
	doubtPoll   = 250 * time.Millisecond
	silentAfter = 1500 * time.Millisecond
	// quietFor is how long no request must have been answered there; renewals tell, each doubtPoll.
	quietFor = 400 * time.Millisecond
	// silentFor is how long the word of the leader counts, if it cannot be asked again.
	silentFor = 3 * time.Second
)

// errSilent is why a server that answers nobody is not dialed: what a new connection would wait for is what is known.
var errSilent = fmt.Errorf("the leader does not hear from it either: %w", fserr.Unavailable)

// silent reports whether a request that has waited so long is given up because its server answers nobody. It has the leader asked.
func (s *session) silent(srv *server, waited time.Duration) bool {
	if waited < doubtAfter {
		return false
	}
	s.doubt()
	return srv.silent() && waited >= silentAfter && bootTime()-srv.answered.Load() >= int64(quietFor)
}

// nextLook is when a request that has waited so long looks again whether to wait on.
func nextLook(waited, timeout time.Duration) time.Duration {
	if waited < doubtAfter {
		return min(timeout, doubtAfter) - waited
	}
	return max(min(timeout-waited, doubtPoll), time.Millisecond)
}

// silent reports whether the leader has said lately that the server answers nobody.
func (srv *server) silent() bool {
	at := srv.silentAt.Load()
	return at != 0 && bootTime()-at < int64(silentFor)
}

// doubt has the session renewed at once, which tells who is silent. It does not wait for that.
func (s *session) doubt() {
	select {
	case s.doubts <- struct{}{}:
	default:
	}
}

// heardOf takes which servers the leader, asked at that time, called silent.
func (p *pool) heardOf(at int64, silent []uint32) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, srv := range p.all {
		is := slices.Contains(silent, uint32(srv.id))
		was := srv.silentAt.Load() != 0
		switch {
		case is:
			srv.silentAt.Store(at)
			srv.avoid()
		case was:
			srv.silentAt.Store(0)
		}
		if is != was {
			p.s.c.log.Info("whether the leader hears from a chunk server has changed", "cs", srv.id, "silent", is)
		}
	}
}
