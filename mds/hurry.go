package mds

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"varve/internal/wire"
)

const (
	// goneDial bounds how long a follower asks whether the leader's port is still there.
	goneDial = 200 * time.Millisecond
	// goneStagger is how far apart followers that saw the leader go stand for election, by their ids: if two stood at once, neither might win.
	// Whoever stands earlier is refused, since the others do not miss the leader yet, and then votes for the later one.
	goneStagger = 40 * time.Millisecond
	// goneRestore is how long the shorter time-outs last at most.
	goneRestore = 3 * time.Second
)

// streamEnded is told that an append stream, which only a leader sends, has ended. If the leader's process is gone, which its kernel says by
// refusing connections, this follower does not wait for its whole election time-out, but for as long as it has promised not to
// vote, and some margin: leaseTimeout after the last contact. The leader's read lease is shorter and began earlier.
func (s *Server) streamEnded() {
	r := s.running.Load()
	if r == nil {
		return
	}
	addr, id := r.LeaderWithID()
	if addr == "" || id == s.raftID || r.State() != raft.Follower || !s.refused(string(addr)) {
		return
	}
	short := s.leaseTimeout()
	stand := time.Until(r.LastContact().Add(short)) + time.Duration(s.identity.Server%5)*goneStagger
	if !sleep(s.ctx, max(stand, 0)+time.Millisecond) {
		return
	}
	if now, _ := r.LeaderWithID(); now != addr || r.State() != raft.Follower || time.Since(r.LastContact()) < short {
		return // it is back, or there is another
	}
	s.log.Info("the leader's process is gone: standing for election early", "leader", string(id))
	setTimeouts(r, s.log, short)
	defer setTimeouts(r, s.log, s.o.ElectionTimeout)
	for deadline := time.Now().Add(goneRestore); time.Now().Before(deadline) && sleep(s.ctx, 50*time.Millisecond); {
		if now, _ := r.LeaderWithID(); now != "" && now != addr {
			return
		}
	}
}

// refused reports whether the kernel at addr says that nobody listens there. A process that is being killed closes its connections one by
// one, so it is asked a few times.
func (s *Server) refused(addr string) bool {
	ctx, cancel := context.WithTimeout(s.ctx, goneDial)
	defer cancel()
	for {
		c, err := s.o.Network.Dial(ctx, addr, wire.ClassHeartbeat)
		if err != nil {
			return errors.Is(err, unix.ECONNREFUSED)
		}
		c.Close()
		if !sleep(ctx, goneDial/20) {
			return false
		}
	}
}

func setTimeouts(r *raft.Raft, log *slog.Logger, d time.Duration) {
	c := r.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = d, d
	if err := r.ReloadConfig(c); err != nil {
		log.Warn("election time-outs not changed", "err", err)
	}
}
